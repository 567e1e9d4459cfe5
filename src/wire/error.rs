//! What a connection can say when it fails: the server's own words whole, the socket's, or what we refuse.

use std::fmt;
use std::io;

use memchr::memchr;
use rustls::AlertDescription;

use crate::model::Retry;

/// An error or a notice of the server, with the fields of the manual's page "Error and Notice Message Fields".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE` … never translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// The server's suggestion.
    pub hint: Option<String>,
    /// Where in functions or COPY lines it happened. May hold row values: for debug logs only, never printed by `Display`.
    pub context: Option<String>,
    /// Schema, if the error is about an object.
    pub schema: Option<String>,
    /// Table.
    pub table: Option<String>,
    /// Column.
    pub column: Option<String>,
    /// Constraint.
    pub constraint: Option<String>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse. Total: what cannot be read is left out.
    pub fn parse(body: &[u8]) -> Self {
        let mut error = Self::default();
        let mut rest = body;
        while let Some((&field, after)) = rest.split_first() {
            if field == 0 {
                break;
            }
            let end = memchr(0, after).unwrap_or(after.len());
            let text = || String::from_utf8_lossy(&after[..end]).into_owned();
            match field {
                b'S' if error.severity.is_empty() => error.severity = text(),
                b'V' => error.severity = text(),
                b'C' => error.code = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                b'H' => error.hint = Some(text()),
                b'W' => error.context = Some(text()),
                b's' => error.schema = Some(text()),
                b't' => error.table = Some(text()),
                b'c' => error.column = Some(text()),
                b'n' => error.constraint = Some(text()),
                _ => {}
            }
            rest = after.get(end + 1..).unwrap_or(&[]);
        }
        error
    }

    /// Whether the same may succeed later without anyone changing anything (SQLSTATE classes of the manual's appendix A).
    pub fn retry(&self) -> Retry {
        let is_transient = match self.code.as_str() {
            // Slot or origin in use, lock not available, too many connections, serialization, deadlock, statement cancelled.
            "55006" | "55P03" | "53300" | "40001" | "40P01" | "57014" | "25P03" | "25P04" => true,
            code => ["08", "57P", "58", "53"].iter().any(|class| code.starts_with(class)),
        };
        if is_transient { Retry::Later } else { Retry::Never }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(formatter, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(formatter, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: owned(error.detail()),
            hint: owned(error.hint()),
            context: owned(error.where_()),
            schema: owned(error.schema()),
            table: owned(error.table()),
            column: owned(error.column()),
            constraint: owned(error.constraint()),
        }
    }
}

/// An error of a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The server refused or failed.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The socket.
    #[error("the connection was lost: {0}")]
    Io(#[source] io::Error),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// A length no message can have.
    #[error("the server sent a message {:?} with the length {length}; a message has 4 to {} bytes", *tag as char, super::frame::LIMIT_BYTES)]
    Length {
        /// Its tag.
        tag: u8,
        /// The length it claims.
        length: usize,
    },
    /// A chunk that ends inside a message.
    #[error("a message is torn: {available} bytes are left and it needs more")]
    Torn {
        /// Bytes left.
        available: usize,
    },
    /// A message inside CopyData that is neither `w` nor `k`, or too short.
    #[error("the server sent a replication message {:?} of {size_bytes} bytes, which the protocol does not know", *tag as char)]
    Replication {
        /// Its tag.
        tag: u8,
        /// Its size.
        size_bytes: usize,
    },
    /// A message that must not come now.
    #[error("the server sent a message {:?} while {during}", *tag as char)]
    Unexpected {
        /// Its tag.
        tag: u8,
        /// What was under way.
        during: &'static str,
    },
    /// TLS could not be set up as the URL demands.
    #[error("TLS: {0}")]
    Tls(String),
    /// tokio-postgres could not do what it was asked for: a value that does not fit its Rust type, say. A bug of ours.
    #[error("{0}")]
    Sql(String),
    /// Authentication cannot be done as the server asks.
    #[error("authentication: {0}")]
    Authentication(String),
    /// No host of the URL could be used.
    #[error("could not connect to {summary}")]
    Hosts {
        /// Every host tried, and why not.
        summary: String,
        /// Whether any of the reasons may pass.
        retry: Retry,
        /// SQLSTATE of the last server error among them.
        code: Option<String>,
    },
}

impl WireError {
    /// Whether the same may succeed later without anyone changing anything.
    pub fn retry(&self) -> Retry {
        match self {
            WireError::Server(error) => error.retry(),
            WireError::Io(_) | WireError::Closed => Retry::Later,
            WireError::Hosts { retry, .. } => *retry,
            _ => Retry::Never,
        }
    }

    /// Whether there is no session because of what the url says, and will be none until it says something else: role, password,
    /// database, TLS, or what listens there is no Postgres.
    pub fn is_of_url(&self) -> bool {
        let WireError::Hosts { retry: Retry::Never, code, .. } = self else { return false };
        code.as_deref().is_none_or(|code| code.starts_with("28") || code == "3D000")
    }

    /// SQLSTATE, if the server spoke.
    pub fn code(&self) -> Option<&str> {
        match self {
            WireError::Server(error) => Some(&error.code),
            WireError::Hosts { code, .. } => code.as_deref(),
            _ => None,
        }
    }
}

impl From<io::Error> for WireError {
    /// With TLS 1.3 a server refuses our certificate only after the handshake: that does not pass by itself.
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => {
                WireError::Tls(format!("the server refuses our certificate (sslcert, sslkey): {alert:?}"))
            }
            _ => WireError::Io(error),
        }
    }
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    )
}

impl From<tokio_postgres::Error> for WireError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(error) = error.as_db_error() {
            return WireError::Server(Box::new(error.into()));
        }
        if error.is_closed() {
            return WireError::Closed;
        }
        let is_authentication = ["authentication error", "invalid configuration"].contains(&error.to_string().as_str());
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        match error.into_source().map(|source| source.downcast::<io::Error>()) {
            _ if is_authentication => WireError::Authentication(text),
            Some(Ok(error)) if error.kind() != io::ErrorKind::InvalidInput => WireError::from(*error),
            _ => WireError::Sql(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_servers_words() {
        let body = b"SFEHLER\0VERROR\0C55006\0Mslot is active\0Dfor PID 7\0Hwait\0sschema1\0tt1\0cc1\0nx1\0\0";
        let error = ServerError::parse(body);
        assert_eq!(error.severity, "ERROR");
        assert_eq!(error.to_string(), "slot is active (SQLSTATE 55006); for PID 7; hint: wait");
        assert_eq!(error.table.as_deref(), Some("t1"));
        assert_eq!(error.constraint.as_deref(), Some("x1"));
        assert_eq!(error.retry(), Retry::Later);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (code, expected) in [
            ("57P01", Retry::Later),
            ("57P03", Retry::Later),
            ("08006", Retry::Later),
            ("53300", Retry::Later),
            ("53100", Retry::Later),
            ("40P01", Retry::Later),
            ("28P01", Retry::Never),
            ("42501", Retry::Never),
            ("23505", Retry::Never),
            ("55000", Retry::Never),
            ("22P02", Retry::Never),
        ] {
            let error = ServerError { code: code.to_owned(), ..ServerError::default() };
            assert_eq!(error.retry(), expected, "{code}");
        }
    }

    #[test]
    fn what_the_url_says_is_told_from_what_may_pass_and_from_rights() {
        for (retry, code, expected) in [
            (Retry::Never, Some("28P01"), true),
            (Retry::Never, Some("28000"), true),
            (Retry::Never, Some("3D000"), true),
            (Retry::Never, None, true),
            (Retry::Never, Some("42501"), false),
            // Another host of the url may come back.
            (Retry::Later, Some("28P01"), false),
            (Retry::Later, None, false),
        ] {
            let error = WireError::Hosts { summary: String::new(), retry, code: code.map(str::to_owned) };
            assert_eq!(error.is_of_url(), expected, "{error:?}");
        }
        assert!(!WireError::Closed.is_of_url());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for body in [&b""[..], b"S", b"M", b"Mabc", b"\0", b"\xff\xff\0", b"Mabc\0C"] {
            ServerError::parse(body);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_fields_are_read_without_a_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = (ServerError::parse(&body).to_string(), ServerError::parse(&body).retry());
        }
    }
}
