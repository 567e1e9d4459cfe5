//! Why no session could be opened, and what mends that: the server's SQLSTATE decides. Pure.

use postgres_protocol::escape::escape_identifier;

use crate::cli::Exit;
use crate::config::ServerUrl;
use crate::wire::WireError;

use super::finding::Finding;

/// The finding for a url that gives no session. `attributes` are what a role made for it needs, e.g. `LOGIN`.
pub(super) fn no_session(place: &str, url: &ServerUrl, attributes: &str, error: &WireError) -> Finding {
    let message = format!("no session on {url}: {error}");
    let exit = match error.code() {
        _ if error.is_of_url() => Exit::Configuration,
        None => Exit::Unreachable,
        Some(_) => Exit::Refused,
    };
    let finding = |remedy: &str| Finding::error(place, message.clone(), remedy).with_exit(exit);
    let user = escape_identifier(&url.user);
    match error.code() {
        None => finding("check url and network, and that the server runs and takes password and TLS as the url says"),
        Some("28P01") => finding(
            "correct the password (url, password_file, credential, PGPASSWORD or ~/.pgpass, the first that is there), or the role",
        ),
        Some("28000") if is_missing_role(&message, &url.user) => finding(
            "create the role, with a password where pg_hba.conf asks for one (\\password in psql), or correct the url",
        )
        .with_sql([format!("CREATE ROLE {user} {attributes}")]),
        Some("28000") => {
            finding("let pg_hba.conf admit the role to this database from this machine, then SELECT pg_reload_conf()")
        }
        Some("3D000") => finding("create the database, or correct the url")
            .with_sql([format!("CREATE DATABASE {}", escape_identifier(&url.database))]),
        Some("42501") => finding("let the role connect to the database")
            .with_sql([format!("GRANT CONNECT ON DATABASE {} TO {user}", escape_identifier(&url.database))]),
        Some("53300") => finding("raise max_connections and restart the server, or end sessions that nobody needs"),
        Some(_) => finding("check url, network, pg_hba.conf and password"),
    }
}

/// The same SQLSTATE stands for a role that is not there and for a refusal by pg_hba.conf; the text of the first is this in English.
fn is_missing_role(message: &str, role: &str) -> bool {
    message.contains(&format!("role \"{role}\" does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse_url};
    use crate::model::Retry;

    /// What is said to a server's refusal, and what `check` ends with.
    fn check(code: &str, text: &str, (remedy, exit): (&str, Exit), sql: &[&str]) {
        let url = parse_url("postgres://Re%20lay@h/shop", &Environment::default()).unwrap();
        let code = Some(code.to_owned()).filter(|code| !code.is_empty());
        let retry = if code.is_none() { Retry::Later } else { Retry::Never };
        let error = WireError::Hosts { summary: text.to_owned(), retry, code };
        let finding = no_session("primary", &url, "LOGIN REPLICATION", &error);
        assert!(finding.remedy.contains(remedy) && finding.exit == exit, "{finding:?}");
        assert_eq!(finding.sql, sql);
    }

    #[test]
    fn each_refusal_has_its_remedy() {
        let missing = "role \"Re lay\" does not exist";
        let of_url = |remedy| (remedy, Exit::Configuration);
        check("28000", missing, of_url("create the role"), &["CREATE ROLE \"Re lay\" LOGIN REPLICATION"]);
        check("28000", "no pg_hba.conf entry for host", of_url("pg_hba.conf"), &[]);
        check("28P01", "password authentication failed", of_url("correct the password"), &[]);
        let missing = "database \"shop\" does not exist";
        check("3D000", missing, of_url("create the database"), &["CREATE DATABASE \"shop\""]);
        let grant = "GRANT CONNECT ON DATABASE \"shop\" TO \"Re lay\"";
        check("42501", "permission denied", ("connect", Exit::Refused), &[grant]);
        check("XX000", "odd", ("check url", Exit::Refused), &[]);
        check("", "connection refused", ("that the server runs", Exit::Unreachable), &[]);
    }
}
