//! From a URL to a session: hosts in order, with and without TLS as sslmode allows, the first session of the wanted kind.
//!
//! ```text
//! host 1 ─▶ socket ─▶ [SSLRequest ─▶ TLS] ─▶ startup ─▶ authentication ─▶ ready ─▶ target_session_attrs? ─▶ done
//!    │         refused with TLS (or without): once more the other way, if sslmode is prefer (or allow)
//!    └▶ host 2 …                                          each host within connect_timeout
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::{Host, ServerUrl, SslMode, TargetSessionAttributes};
use crate::model::Retry;

use super::sql::{self, SqlClient};
use super::transport::{Socket, Transport};
use super::{Connection, Session, WireError, startup, tls};

/// Connects with our own protocol.
pub(super) async fn connect(url: &ServerUrl, session: &Session) -> Result<Connection, WireError> {
    match first_usable(url, session, Speaker::Own).await? {
        Opened::Own(connection) => Ok(connection),
        Opened::Sql(_) => Err(WireError::Unexpected { tag: 0, during: "connecting" }),
    }
}

/// Connects with tokio-postgres on top of the same transport.
pub(super) async fn connect_sql(url: &ServerUrl, session: &Session) -> Result<SqlClient, WireError> {
    match first_usable(url, session, Speaker::TokioPostgres).await? {
        Opened::Sql(client) => Ok(client),
        Opened::Own(_) => Err(WireError::Unexpected { tag: 0, during: "connecting" }),
    }
}

/// Who speaks the protocol on the transport.
#[derive(Clone, Copy)]
enum Speaker {
    Own,
    TokioPostgres,
}

enum Opened {
    Own(Connection),
    Sql(SqlClient),
}

impl Opened {
    fn parameter(&self, name: &str) -> Option<&str> {
        match self {
            Opened::Own(connection) => connection.parameter(name),
            Opened::Sql(client) => client.parameter(name),
        }
    }

    /// Whether the session is of the wanted kind; the reason if not. Servers from 14 on report both parameters.
    fn refuse(&self, wanted: TargetSessionAttributes) -> Option<&'static str> {
        let is_standby = self.parameter("in_hot_standby") == Some("on");
        let is_read_only = is_standby || self.parameter("default_transaction_read_only") == Some("on");
        match wanted {
            TargetSessionAttributes::ReadWrite if is_read_only => Some("the session is read-only"),
            TargetSessionAttributes::ReadOnly if !is_read_only => Some("the session is read-write"),
            TargetSessionAttributes::Primary if is_standby => Some("the server is in recovery"),
            TargetSessionAttributes::Standby | TargetSessionAttributes::PreferStandby if !is_standby => {
                Some("the server is not in recovery")
            }
            _ => None,
        }
    }
}

/// Why each host could not be used.
#[derive(Default)]
struct Reasons {
    texts: Vec<String>,
    may_pass: bool,
    code: Option<String>,
}

impl Reasons {
    fn note(&mut self, host: &Host, error: &WireError) {
        self.texts.push(format!("{host}: {error}"));
        self.may_pass |= error.retry() == Retry::Later;
        self.code = error.code().map(str::to_owned).or(self.code.take());
    }

    fn into_error(self) -> WireError {
        let retry = if self.may_pass { Retry::Later } else { Retry::Never };
        WireError::Hosts { summary: self.texts.join("; "), retry, code: self.code }
    }
}

async fn first_usable(url: &ServerUrl, session: &Session, speaker: Speaker) -> Result<Opened, WireError> {
    let mut reasons = Reasons::default();
    let wanted = url.target_session_attributes;
    let passes: &[TargetSessionAttributes] = match wanted {
        TargetSessionAttributes::PreferStandby => &[TargetSessionAttributes::Standby, TargetSessionAttributes::Any],
        TargetSessionAttributes::Any => &[TargetSessionAttributes::Any],
        TargetSessionAttributes::ReadWrite => &[TargetSessionAttributes::ReadWrite],
        TargetSessionAttributes::ReadOnly => &[TargetSessionAttributes::ReadOnly],
        TargetSessionAttributes::Primary => &[TargetSessionAttributes::Primary],
        TargetSessionAttributes::Standby => &[TargetSessionAttributes::Standby],
    };
    for pass in passes {
        for host in &url.hosts {
            match within(url.connect_timeout, one_host(url, host, session, speaker)).await {
                Ok(opened) => match opened.refuse(*pass) {
                    None => return Ok(opened),
                    Some(reason) => {
                        reasons.texts.push(format!("{host}: {reason} (target_session_attrs)"));
                        // A failover may be under way.
                        reasons.may_pass = true;
                    }
                },
                Err(error) => reasons.note(host, &error),
            }
        }
    }
    Err(reasons.into_error())
}

/// `connect_timeout`; zero waits for ever, as in libpq.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    if limit.is_zero() {
        return work.await;
    }
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("no answer within {} s (connect_timeout)", limit.as_secs_f64());
            Err(WireError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
        }
    }
}

async fn one_host(url: &ServerUrl, host: &Host, session: &Session, speaker: Speaker) -> Result<Opened, WireError> {
    if matches!(host, Host::Unix(..)) {
        return attempt(url, host, session, speaker, Encryption::Off).await;
    }
    let (first, second) = match url.ssl_mode {
        SslMode::Disable => (Encryption::Off, None),
        SslMode::Allow => (Encryption::Off, Some(Encryption::Required)),
        SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Off)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Required, None),
    };
    let error = match attempt(url, host, session, speaker, first).await {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let Some(second) = second.filter(|_| may_go_the_other_way(&error)) else { return Err(error) };
    // If neither way works, the first way's reason is the one to mend.
    attempt(url, host, session, speaker, second).await.map_err(|_| error)
}

/// A server that cannot be reached is not reached the other way either; one that refuses may let us in.
fn may_go_the_other_way(error: &WireError) -> bool {
    match error {
        WireError::Server(error) => error.code.starts_with("28") || error.code.starts_with("08"),
        WireError::Tls(_) | WireError::Closed | WireError::Io(_) => true,
        _ => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Off,
    IfOffered,
    Required,
}

async fn attempt(
    url: &ServerUrl,
    host: &Host,
    session: &Session,
    speaker: Speaker,
    encryption: Encryption,
) -> Result<Opened, WireError> {
    let socket = Socket::connect(host).await?;
    let (transport, end_point) = encrypt(socket, url, host, encryption).await?;
    match speaker {
        Speaker::Own => {
            let mut connection = Connection::new(transport, host.to_string());
            startup::start(&mut connection, url, session, end_point).await?;
            Ok(Opened::Own(connection))
        }
        Speaker::TokioPostgres => sql::start(transport, url, session, end_point).await.map(Opened::Sql),
    }
}

/// Asks for TLS and does the handshake (the manual's page "SSL Session Encryption").
async fn encrypt(
    mut socket: Socket,
    url: &ServerUrl,
    host: &Host,
    encryption: Encryption,
) -> Result<(Transport, Option<Vec<u8>>), WireError> {
    let Host::Tcp(name, _) = host else { return Ok((Transport::Plain(socket), None)) };
    if encryption == Encryption::Off {
        return Ok((Transport::Plain(socket), None));
    }
    socket.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await?;
    // One byte at a time: what follows belongs to the handshake, and bytes smuggled in before it must not be believed.
    match socket.read_u8().await? {
        b'S' => {
            let stream = tls::handshake(socket, url, name).await?;
            let end_point = tls::end_point(&stream);
            Ok((Transport::Tls(Box::new(stream)), end_point))
        }
        b'N' if encryption == Encryption::IfOffered => Ok((Transport::Plain(socket), None)),
        b'N' => Err(WireError::Tls("the server does not offer TLS (ssl = off), and sslmode demands it".to_owned())),
        b'E' => Err(WireError::Closed),
        tag => Err(WireError::Unexpected { tag, during: "asking for TLS" }),
    }
}
