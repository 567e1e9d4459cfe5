//! What a libpq connection URL says, as data. Parsing is a pure function; nothing is resolved or connected here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;

/// A parsed `postgres://` URL with libpq's meaning and defaults, password resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerUrl {
    /// Tried in order.
    pub hosts: Vec<Host>,
    /// Role.
    pub user: String,
    /// Database; libpq's default is the user's name.
    pub database: String,
    /// From the url, a file, a credential or PGPASSWORD: the same for every host.
    pub password: Option<Secret>,
    /// From the password file, if none of those gave one: what its lines say of each host.
    pub host_passwords: Vec<(Host, Secret)>,
    /// `sslmode`, default `prefer`.
    pub ssl_mode: SslMode,
    /// `sslrootcert`: PEM file with one or more certificates, or `system`.
    pub ssl_root_certificate: Option<PathBuf>,
    /// `sslcert`: PEM file of the client's certificate chain.
    pub ssl_certificate: Option<PathBuf>,
    /// `sslkey`: PEM file of the client's key.
    pub ssl_key: Option<PathBuf>,
    /// `channel_binding`, default `prefer`.
    pub channel_binding: ChannelBinding,
    /// `target_session_attrs`, default `any`.
    pub target_session_attributes: TargetSessionAttributes,
    /// `connect_timeout`, default 10 s: for each host, until it is ready for queries.
    pub connect_timeout: Duration,
}

impl ServerUrl {
    /// As one of its hosts is to see it: a password that the password file has for another host is not shown to this one.
    pub fn at(&self, host: &Host) -> Self {
        let own = self.host_passwords.iter().find(|(known, _)| known == host).map(|(_, password)| password);
        Self { password: self.password.as_ref().or(own).cloned(), host_passwords: Vec::new(), ..self.clone() }
    }
}

impl fmt::Display for ServerUrl {
    /// Without the password: `user@host:port/database`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@", self.user)?;
        for (at, host) in self.hosts.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(formatter, "{separator}{host}")?;
        }
        write!(formatter, "/{}", self.database)
    }
}

/// One host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// TCP: name or address, and port.
    Tcp(String, u16),
    /// The folder of a Unix socket, and the port that is part of the socket's name.
    Unix(PathBuf, u16),
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp(name, port) if name.contains(':') => write!(formatter, "[{name}]:{port}"),
            Host::Tcp(name, port) => write!(formatter, "{name}:{port}"),
            Host::Unix(folder, port) => write!(formatter, "{}/.s.PGSQL.{port}", folder.display()),
        }
    }
}

/// `sslmode`, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// First without, then with.
    Allow,
    /// First with, then without.
    Prefer,
    /// Only with; the certificate is verified only if `sslrootcert` is given.
    Require,
    /// The certificate's chain must verify.
    VerifyCa,
    /// Chain and host name must verify.
    VerifyFull,
}

/// `channel_binding`, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If server and TLS offer it.
    Prefer,
    /// Only SCRAM-SHA-256-PLUS.
    Require,
}

/// `target_session_attrs`, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttributes {
    /// The first host that answers.
    Any,
    /// Not in recovery, and transactions are read-write by default.
    ReadWrite,
    /// In recovery, or read-only by default.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery, else any.
    PreferStandby,
}
