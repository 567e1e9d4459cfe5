//! The startup packet and authentication: trust, password, md5, SCRAM-SHA-256 with and without channel binding.
//! Passwords are read out here and nowhere else, and never part of an error.

use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;

use crate::config::{ChannelBinding, Secret, ServerUrl};

use super::{Connection, ServerError, Session, WireError};

/// Settings of every replication session: the text forms that the other side's input functions read whatever its own
/// settings are, and no time-outs (`libpqrcv_connect` in `src/backend/replication/libpqwalreceiver`).
const REPLICATION_SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
    // Money is printed by it; the other side reads it by the same.
    ("lc_monetary", "C"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("row_security", "off"),
];

const AUTHENTICATION_MECHANISM: &str = "SCRAM-SHA-256";
const AUTHENTICATION_MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// From the startup packet to ReadyForQuery. `end_point` is the hash of the server's certificate when TLS is on.
pub(super) async fn start(
    connection: &mut Connection,
    url: &ServerUrl,
    session: &Session,
    end_point: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let options = options_text(session);
    let mut parameters = vec![
        ("user", url.user.as_str()),
        ("database", url.database.as_str()),
        ("application_name", session.application_name.as_str()),
        ("client_encoding", "UTF8"),
        ("options", options.as_str()),
    ];
    if session.is_replication {
        parameters.push(("replication", "database"));
    }
    frontend::startup_message(parameters, connection.outgoing())?;
    connection.flush().await?;
    authenticate(connection, url, end_point).await?;
    ready_for_query(connection).await?;
    connection.set_ready();
    if session.is_replication {
        // Not known to servers before 17, so it cannot stand in the startup packet.
        if connection.version_number() >= 170_000 {
            connection.simple_query("SET transaction_timeout = 0").await?;
        }
        connection.simple_query("SELECT pg_catalog.set_config('search_path', '', false)").await?;
    }
    Ok(())
}

/// `-c name=value` for each setting, with blanks and backslashes escaped as the server splits it (`pg_split_opts`).
pub(super) fn options_text(session: &Session) -> String {
    let defaults: &[(&str, &str)] = if session.is_replication { REPLICATION_SETTINGS } else { &[] };
    let given = session.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut text = String::new();
    for (name, value) in defaults.iter().copied().chain(given) {
        text.push_str(" -c ");
        for character in format!("{name}={value}").chars() {
            if character.is_whitespace() || character == '\\' {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

async fn authenticate(
    connection: &mut Connection,
    url: &ServerUrl,
    end_point: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let refuse = |text: &str| Err(WireError::Authentication(text.to_owned()));
    let is_binding_required = url.channel_binding == ChannelBinding::Require;
    loop {
        let body = authentication_message(connection).await?;
        let Some((kind, data)) = body.split_first_chunk::<4>() else {
            return refuse("the server sent an authentication message without a kind");
        };
        match u32::from_be_bytes(*kind) {
            0 if is_binding_required => {
                return refuse("channel_binding=require, but the server let us in without SCRAM and channel binding");
            }
            0 => return Ok(()),
            3 | 5 if is_binding_required => {
                return refuse("channel_binding=require, but the server asks for a password without SCRAM");
            }
            3 => {
                let password = password(url)?.reveal().as_bytes();
                frontend::password_message(password, connection.outgoing())?;
            }
            5 => {
                let Some(salt) = data.first_chunk::<4>() else { return refuse("md5 without a salt") };
                let hash = md5_hash(url.user.as_bytes(), password(url)?.reveal().as_bytes(), *salt);
                frontend::password_message(hash.as_bytes(), connection.outgoing())?;
            }
            10 => return scram(connection, url, data, end_point).await,
            kind => {
                return refuse(&format!(
                    "the server asks for method {kind}, which walrelay does not speak; \
                     use scram-sha-256, md5, password, cert or trust in pg_hba.conf"
                ));
            }
        }
        connection.flush().await?;
    }
}

fn password(url: &ServerUrl) -> Result<&Secret, WireError> {
    url.password.as_ref().ok_or_else(|| no_password(url))
}

pub(super) fn no_password(url: &ServerUrl) -> WireError {
    WireError::Authentication(format!(
        "the server asks for a password of \"{}\" and none is given: put it into password_file, a systemd credential, \
         PGPASSWORD or the password file ~/.pgpass (which does not count while others may read it: chmod 600)",
        url.user
    ))
}

async fn scram(
    connection: &mut Connection,
    url: &ServerUrl,
    mechanisms: &[u8],
    end_point: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let offered: Vec<&[u8]> = mechanisms.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    let has = |name: &str| offered.contains(&name.as_bytes());
    let is_wanted = url.channel_binding != ChannelBinding::Disable;
    let (mechanism, binding) = match end_point {
        Some(hash) if is_wanted && has(AUTHENTICATION_MECHANISM_PLUS) => {
            (AUTHENTICATION_MECHANISM_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
        }
        _ if url.channel_binding == ChannelBinding::Require => {
            return Err(WireError::Authentication(
                "channel_binding=require, but TLS is off or the server does not offer SCRAM-SHA-256-PLUS".to_owned(),
            ));
        }
        // We could bind, the server does not offer it: say so, which uncovers a man in the middle who took the offer away.
        Some(_) if is_wanted => (AUTHENTICATION_MECHANISM, sasl::ChannelBinding::unrequested()),
        _ => (AUTHENTICATION_MECHANISM, sasl::ChannelBinding::unsupported()),
    };
    if !has(mechanism) {
        return Err(WireError::Authentication("the server offers no SCRAM-SHA-256".to_owned()));
    }
    let failed = |error: std::io::Error| WireError::Authentication(format!("SCRAM: {error}"));
    let mut exchange = sasl::ScramSha256::new(password(url)?.reveal().as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, exchange.message(), connection.outgoing())?;
    connection.flush().await?;
    exchange.update(&sasl_data(connection, 11).await?).map_err(failed)?;
    frontend::sasl_response(exchange.message(), connection.outgoing())?;
    connection.flush().await?;
    exchange.finish(&sasl_data(connection, 12).await?).map_err(failed)?;
    sasl_data(connection, 0).await.map(drop)
}

/// The next authentication message, which must be of this kind.
async fn sasl_data(connection: &mut Connection, expected: u32) -> Result<Vec<u8>, WireError> {
    let body = authentication_message(connection).await?;
    match body.split_first_chunk::<4>() {
        Some((kind, data)) if u32::from_be_bytes(*kind) == expected => Ok(data.to_vec()),
        _ => Err(WireError::Authentication("the server broke off the SCRAM exchange".to_owned())),
    }
}

async fn authentication_message(connection: &mut Connection) -> Result<bytes::Bytes, WireError> {
    loop {
        let message = connection.next_message().await?;
        match message.tag {
            b'R' => return Ok(message.body),
            b'E' => return Err(WireError::Server(Box::new(ServerError::parse(&message.body)))),
            b'N' | b'v' => {}
            tag => return Err(WireError::Unexpected { tag, during: "authenticating" }),
        }
    }
}

async fn ready_for_query(connection: &mut Connection) -> Result<(), WireError> {
    loop {
        let message = connection.next_message().await?;
        match message.tag {
            b'K' => {
                let id = message.body.first_chunk::<4>().map_or(0, |bytes| i32::from_be_bytes(*bytes));
                connection.set_process_id(id);
            }
            b'Z' => return Ok(()),
            b'E' => return Err(WireError::Server(Box::new(ServerError::parse(&message.body)))),
            b'S' | b'N' => {}
            tag => return Err(WireError::Unexpected { tag, during: "starting a session" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_escaped_as_the_server_splits_them() {
        let session = Session::new("x").with("search_path", "").with("a.b", "two words\\");
        assert_eq!(options_text(&session), " -c search_path= -c a.b=two\\ words\\\\");
        let text = options_text(&Session::replication("x"));
        assert!(text.starts_with(" -c datestyle=ISO") && text.contains(" -c bytea_output=hex"), "{text}");
    }
}
