//! From a URL to a session: hosts in order, each address of a host, the first session of the wanted kind.
//!
//! ```text
//! host 1 ─▶ addresses ─▶ [socket ─▶ TLS ─▶ startup ─▶ authentication ─▶ ready] ─▶ target_session_attrs? ─▶ done
//!    │                    each address within connect_timeout; unreachable: next address
//!    └▶ host 2 …          a refused password or role ends the search, as in libpq
//! ```

use std::future::Future;
use std::time::Duration;

use crate::config::{Host, ServerUrl, TargetSessionAttributes};
use crate::model::Retry;

use super::attempt::{self, Opened, Speaker, Wish};
use super::sql_client::SqlClient;
use super::transport::Address;
use super::{Connection, Session, WireError};

/// Connects with our own protocol.
pub(super) async fn connect(url: &ServerUrl, session: &Session) -> Result<Connection, WireError> {
    match first_usable(Wish { url, session, speaker: Speaker::Own }).await? {
        Opened::Own(connection) => Ok(*connection),
        Opened::Sql(_) => Err(WireError::Unexpected { tag: 0, during: "connecting" }),
    }
}

/// Connects with tokio-postgres on top of the same transport.
pub(super) async fn connect_sql(url: &ServerUrl, session: &Session) -> Result<SqlClient, WireError> {
    match first_usable(Wish { url, session, speaker: Speaker::TokioPostgres }).await? {
        Opened::Sql(client) => Ok(*client),
        Opened::Own(_) => Err(WireError::Unexpected { tag: 0, during: "connecting" }),
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
    fn note(&mut self, host: &Host, address: Option<&Address>, error: &WireError) {
        let place = match (host, address) {
            (Host::Tcp(name, _), Some(Address::Tcp(address))) if address.ip().to_string() != *name => {
                format!("{host} ({})", address.ip())
            }
            _ => host.to_string(),
        };
        self.add(match error {
            // Nothing was lost that was never there.
            WireError::Io(error) => format!("{place}: {error}"),
            error => format!("{place}: {error}"),
        });
        self.may_pass |= error.retry() == Retry::Later;
        self.code = error.code().map(str::to_owned).or(self.code.take());
    }

    fn add(&mut self, text: String) {
        if !self.texts.contains(&text) {
            self.texts.push(text);
        }
    }

    fn into_error(self) -> WireError {
        let retry = if self.may_pass { Retry::Later } else { Retry::Never };
        WireError::Hosts { summary: self.texts.join("; "), retry, code: self.code }
    }
}

async fn first_usable(wish: Wish<'_>) -> Result<Opened, WireError> {
    let mut reasons = Reasons::default();
    let wanted = wish.url.target_session_attributes;
    let passes: &[TargetSessionAttributes] = match &wanted {
        TargetSessionAttributes::PreferStandby => &[TargetSessionAttributes::Standby, TargetSessionAttributes::Any],
        one => std::slice::from_ref(one),
    };
    for pass in passes {
        for host in &wish.url.hosts {
            let url = wish.url.at(host);
            match one_host(Wish { url: &url, ..wish }, host, *pass, &mut reasons).await {
                Search::Found(opened) => return Ok(*opened),
                Search::NextHost => {}
                Search::Over => return Err(reasons.into_error()),
            }
        }
    }
    Err(reasons.into_error())
}

enum Search {
    Found(Box<Opened>),
    NextHost,
    Over,
}

async fn one_host(wish: Wish<'_>, host: &Host, wanted: TargetSessionAttributes, reasons: &mut Reasons) -> Search {
    let limit = wish.url.connect_timeout;
    let addresses = match within(limit, async { Ok(Address::of(host).await?) }).await {
        Ok(addresses) => addresses,
        Err(error) => {
            reasons.note(host, None, &error);
            return Search::NextHost;
        }
    };
    for address in &addresses {
        let error = match within(limit, attempt::open(wish, host, address)).await {
            Ok(opened) => match refusal(&opened, wanted) {
                None => return Search::Found(Box::new(opened)),
                Some(reason) => {
                    reasons.add(format!("{host}: {reason} (target_session_attrs)"));
                    // A failover may be under way.
                    reasons.may_pass = true;
                    return Search::NextHost;
                }
            },
            Err(error) => error,
        };
        reasons.note(host, Some(address), &error);
        match &error {
            // The manual, "Specifying Multiple Hosts": if authentication fails, the remaining hosts are not tried.
            WireError::Authentication(_) => return Search::Over,
            WireError::Server(error) if error.code.starts_with("28") => return Search::Over,
            WireError::Server(_) => return Search::NextHost,
            _ => {}
        }
    }
    Search::NextHost
}

/// Why the session is not of the wanted kind. Servers from 14 on report both parameters.
fn refusal(opened: &Opened, wanted: TargetSessionAttributes) -> Option<&'static str> {
    let is_standby = opened.parameter("in_hot_standby") == Some("on");
    let is_read_only = is_standby || opened.parameter("default_transaction_read_only") == Some("on");
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
