//! One address tried: socket, TLS as sslmode says, startup; once more the other way where sslmode allows both. Chooses no host.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::{Host, ServerUrl, SslMode};

use super::sql_client::{self, SqlClient};
use super::transport::{Address, Socket, Transport};
use super::{Connection, Session, WireError, startup, tls};

/// The SSLRequest message (the manual's page "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Who speaks the protocol on the transport.
#[derive(Clone, Copy)]
pub(super) enum Speaker {
    Own,
    TokioPostgres,
}

/// A session that is ready for queries.
pub(super) enum Opened {
    Own(Box<Connection>),
    Sql(Box<SqlClient>),
}

impl Opened {
    /// A parameter the server reported.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        match self {
            Opened::Own(connection) => connection.parameter(name),
            Opened::Sql(client) => client.parameter(name),
        }
    }
}

/// What to open, and as whom.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) url: &'a ServerUrl,
    pub(super) session: &'a Session,
    pub(super) speaker: Speaker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Off,
    IfOffered,
    Required,
}

/// How far an attempt came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Socket,
    Negotiation,
    Plain,
    Encrypted,
}

/// Opens a session at one address of a host.
pub(super) async fn open(wish: Wish<'_>, host: &Host, address: &Address) -> Result<Opened, WireError> {
    // As in libpq, sslmode means nothing on a Unix socket.
    let mode = if matches!(address, Address::Unix(_)) { SslMode::Disable } else { wish.url.ssl_mode };
    let (first, second) = match mode {
        SslMode::Disable => (Encryption::Off, None),
        SslMode::Allow => (Encryption::Off, Some(Encryption::Required)),
        SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Off)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Required, None),
    };
    let mut stage = Stage::Socket;
    let error = match attempt(wish, host, address, first, &mut stage).await {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let is_other_way_new = match first {
        Encryption::Off => stage == Stage::Plain,
        _ => matches!(stage, Stage::Negotiation | Stage::Encrypted),
    };
    match second {
        Some(second) if is_other_way_new && may_be_the_encryption(&error) => {
            let again = attempt(wish, host, address, second, &mut stage).await;
            again.map_err(|other| to_mend(error, other))
        }
        _ => Err(error),
    }
}

/// Whether the other way may have another answer: pg_hba.conf, a handshake that fails, a connection cut.
fn may_be_the_encryption(error: &WireError) -> bool {
    match error {
        WireError::Server(error) => error.code.starts_with("28") || error.code.starts_with("08"),
        WireError::Tls(_) | WireError::Closed | WireError::Io(_) => true,
        _ => false,
    }
}

/// Which of two refusals to report: the one beyond pg_hba.conf and the handshake, else the first.
fn to_mend(first: WireError, second: WireError) -> WireError {
    let came_nowhere = |error: &WireError| error.code().is_none_or(|code| code == "28000");
    if came_nowhere(&first) && !came_nowhere(&second) { second } else { first }
}

async fn attempt(
    wish: Wish<'_>,
    host: &Host,
    address: &Address,
    encryption: Encryption,
    stage: &mut Stage,
) -> Result<Opened, WireError> {
    *stage = Stage::Socket;
    let socket = Socket::connect(address).await?;
    *stage = Stage::Negotiation;
    let (transport, end_point) = match host {
        Host::Tcp(name, _) if encryption != Encryption::Off => encrypt(socket, wish.url, name, encryption).await?,
        _ => (Transport::Plain(socket), None),
    };
    *stage = if matches!(transport, Transport::Tls(_)) { Stage::Encrypted } else { Stage::Plain };
    match wish.speaker {
        Speaker::Own => {
            let mut connection = Connection::new(transport, host.to_string());
            startup::start(&mut connection, wish.url, wish.session, end_point).await?;
            Ok(Opened::Own(Box::new(connection)))
        }
        Speaker::TokioPostgres => {
            let client = sql_client::start(transport, wish.url, wish.session, end_point).await?;
            Ok(Opened::Sql(Box::new(client)))
        }
    }
}

/// Asks for TLS and does the handshake (the manual's section "SSL Session Encryption"). Gives the hash for channel binding too.
async fn encrypt(
    mut socket: Socket,
    url: &ServerUrl,
    name: &str,
    encryption: Encryption,
) -> Result<(Transport, Option<Vec<u8>>), WireError> {
    socket.write_all(&SSL_REQUEST).await?;
    // One byte and no more: what follows belongs to the handshake, and bytes smuggled in before it must not be believed.
    match socket.read_u8().await? {
        b'S' => {
            let stream = tls::handshake(socket, url, name).await?;
            let end_point = tls::end_point(&stream);
            Ok((Transport::Tls(Box::new(stream)), end_point))
        }
        b'N' if encryption == Encryption::IfOffered => Ok((Transport::Plain(socket), None)),
        b'N' => Err(WireError::Tls("the server does not offer TLS (ssl = off), and sslmode demands it".to_owned())),
        // A server without resources answers with an error; its text is not authenticated and stays unread.
        b'E' => Err(WireError::Closed),
        tag => Err(WireError::Unexpected { tag, during: "asking for TLS" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ServerError;

    fn server(code: &str) -> WireError {
        WireError::Server(Box::new(ServerError { code: code.to_owned(), ..ServerError::default() }))
    }

    #[test]
    fn the_refusal_that_came_further_is_reported() {
        let tls = || WireError::Tls("the server does not offer TLS".to_owned());
        for (first, second, expected) in [
            (server("28P01"), server("28000"), Some("28P01")),
            (server("28000"), server("28P01"), Some("28P01")),
            (server("28000"), tls(), Some("28000")),
            (tls(), server("28P01"), Some("28P01")),
            (tls(), server("28000"), None),
            (server("28P01"), server("28P01"), Some("28P01")),
        ] {
            assert_eq!(to_mend(first, second).code(), expected);
        }
    }
}
