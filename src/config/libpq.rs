//! Reads libpq connection URLs. Pure; what is not in the URL has libpq's default, for TLS its variables too. The grammar: the manual's
//! page "Connection Strings".

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::environment::Environment;
use super::error::nearest;
use super::{ChannelBinding, Host, Secret, ServerUrl, SslMode, TargetSessionAttributes};

/// `connect_timeout` where the URL names none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Parameters with a meaning here.
const PARAMETERS: &[&str] = &[
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "connect_timeout",
    "target_session_attrs",
];

/// Parameters of libpq that change nothing here: the session's settings are walrelay's own.
const IGNORED: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslsni",
    "sslcompression",
    "krbsrvname",
    "load_balance_hosts",
];

/// Parses a URL. The error is the rule that it breaks, without the password.
pub(super) fn parse(text: &str, environment: &Environment) -> Result<ServerUrl, String> {
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let rest = rest.ok_or("must be a url like postgres://user@host:5432/database")?;
    if is_cut_short(rest) {
        return Err("seems to have a / or ? in its password, or an @ in its database: write them as %2F, %3F, %40 \
                    (and % as %25, : as %3A)"
            .to_owned());
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_part, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match user_part.split_once(':') {
        Some((user, password)) => (decoded(user)?, Some(decoded(password)?)),
        None => (decoded(user_part)?, None),
    };
    let mut parts = Parts { hosts: hosts.to_owned(), user, password, database: decoded(database)?, ..Parts::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or("has a parameter without a value after the ? (write name=value)")?;
        parts.set(&decoded(name)?, decoded(value)?)?;
    }
    parts.finish(environment)
}

/// Whether what stands before the first `/` or `?` has the form `user:password` of somebody who forgot to encode the rest: an
/// `@` comes later only, and a port is no number or the path holds it.
fn is_cut_short(rest: &str) -> bool {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if authority.contains('@') || !tail.contains('@') || authority.starts_with('[') {
        return false;
    }
    let path = tail.split('?').next().unwrap_or("");
    let is_port = |entry: &str| entry.rsplit_once(':').is_none_or(|(_, port)| has_digits_only(port));
    authority.contains(':') && (path.contains('@') || !authority.split(',').all(is_port))
}

/// Whether `user:password` stands where the hosts belong, of somebody who left `@host` out: then the port is no number.
fn lacks_host(rest: &str) -> bool {
    let authority = rest.split(['/', '?']).next().unwrap_or("");
    let is_odd = |entry: &str| name_and_port(entry).is_ok_and(|(_, port)| !has_digits_only(port));
    !authority.contains('@') && authority.split(',').any(is_odd)
}

fn has_digits_only(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit())
}

/// The URL with its password covered, for messages: what is not known to be harmless is not shown.
pub(super) fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return "(not shown)".to_owned() };
    if is_cut_short(rest) || lacks_host(rest) {
        return format!("{scheme}://(not shown)");
    }
    let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
    let main = match main.rsplit_once('@') {
        Some((user, hosts)) => format!("{}@{hosts}", user.split(':').next().unwrap_or("")),
        None => main.to_owned(),
    };
    let covered = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if name != "password" && (PARAMETERS.contains(&name) || IGNORED.contains(&name)) => {
            pair.to_owned()
        }
        Some((name, _)) => format!("{name}=***"),
        None => "***".to_owned(),
    };
    let query: Vec<String> = query.split('&').filter(|pair| !pair.is_empty()).map(covered).collect();
    let separator = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{main}{separator}{}", query.join("&"))
}

/// Decodes `%XX`. The error never shows the text, which may be a password.
fn decoded(text: &str) -> Result<String, String> {
    let is_hexadecimal = |tail: &str| tail.len() >= 2 && tail.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(is_hexadecimal) {
        return Err("has a % that two hexadecimal digits do not follow: write a percent sign as %25".to_owned());
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "holds bytes that are not UTF-8".to_owned())?;
    if decoded.contains('\0') {
        return Err("holds %00, which Postgres cannot read".to_owned());
    }
    Ok(decoded.into_owned())
}

#[derive(Default)]
struct Parts {
    hosts: String,
    host_parameter: Option<String>,
    port_parameter: Option<String>,
    user: String,
    password: Option<String>,
    database: String,
    ssl_mode: Option<SslMode>,
    ssl_root_certificate: Option<PathBuf>,
    ssl_certificate: Option<PathBuf>,
    ssl_key: Option<PathBuf>,
    channel_binding: Option<ChannelBinding>,
    target_session_attributes: Option<TargetSessionAttributes>,
    connect_timeout: Option<Duration>,
}

impl Parts {
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "host" => self.host_parameter = Some(value),
            "port" => self.port_parameter = Some(value),
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" => self.database = value,
            "sslmode" => self.ssl_mode = Some(ssl_mode(&value)?),
            "sslrootcert" => self.ssl_root_certificate = Some(value.into()),
            "sslcert" => self.ssl_certificate = Some(value.into()),
            "sslkey" => self.ssl_key = Some(value.into()),
            "channel_binding" => self.channel_binding = Some(channel_binding(&value)?),
            "target_session_attrs" => self.target_session_attributes = Some(session_attributes(&value)?),
            "connect_timeout" => {
                let seconds: i32 =
                    value.parse().map_err(|_| format!("connect_timeout={value} is not a number of seconds"))?;
                // Zero or less waits for ever.
                self.connect_timeout = Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
            }
            "application_name" => {
                return Err(
                    "names an application_name; walrelay sets it itself: the pipeline's name is what the primary lists"
                        .to_owned(),
                );
            }
            "options" => {
                return Err("has the parameter options; walrelay sets its sessions' settings itself".to_owned());
            }
            // The others of its values let a session without GSSAPI pass.
            "gssencmode" if value == "require" => {
                return Err("has gssencmode=require; walrelay speaks no GSSAPI, so the session would not be encrypted by it: take it \
                            out, and demand TLS with sslmode=verify-full"
                    .to_owned());
            }
            name if IGNORED.contains(&name) => tracing::debug!(parameter = name, "this url parameter has no effect"),
            name => {
                let nearest = nearest(name, PARAMETERS.iter().copied())
                    .map_or(String::new(), |nearest| format!(" (did you mean {nearest}?)"));
                return Err(format!("has the unknown parameter {name}{nearest}; known are {}", PARAMETERS.join(", ")));
            }
        }
        Ok(())
    }

    fn finish(self, environment: &Environment) -> Result<ServerUrl, String> {
        let hosts = self.hosts()?;
        let user = if self.user.is_empty() { environment.user().unwrap_or("").to_owned() } else { self.user };
        if user.is_empty() {
            return Err("names no user, and the operating system's user is unknown".to_owned());
        }
        let ssl_root_certificate =
            self.ssl_root_certificate.or_else(|| environment.get("PGSSLROOTCERT").map(PathBuf::from));
        let is_system = ssl_root_certificate.as_deref().is_some_and(|path| path.as_os_str() == "system");
        let ssl_mode = self.ssl_mode.map_or_else(|| ssl_mode_of(environment), |mode| Ok(Some(mode)))?;
        let ssl_mode = ssl_mode.unwrap_or(if is_system { SslMode::VerifyFull } else { SslMode::Prefer });
        if is_system && ssl_mode != SslMode::VerifyFull {
            return Err(
                "has sslrootcert=system (or PGSSLROOTCERT says so) with a weaker sslmode than verify-full: anybody can have a certificate of \
                        a public authority"
                    .to_owned(),
            );
        }
        let default = |name| default_file(name, environment);
        // As in libpq, `require` verifies where there is a file to verify with.
        let verifies = matches!(ssl_mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull);
        let ssl_root_certificate = ssl_root_certificate.or_else(|| default("root.crt").filter(|_| verifies));
        if let Some(list) = default("root.crl").filter(|_| verifies && ssl_root_certificate.is_some() && !is_system) {
            return Err(format!(
                "would have libpq refuse the certificates that {} lists as revoked; walrelay cannot check that: move the file \
                 away if nothing depends on it",
                list.display()
            ));
        }
        let ssl_certificate = self.ssl_certificate.or_else(|| default("postgresql.crt"));
        let ssl_key = self.ssl_key.or_else(|| default("postgresql.key").filter(|_| ssl_certificate.is_some()));
        Ok(ServerUrl {
            hosts,
            database: if self.database.is_empty() { user.clone() } else { self.database },
            user,
            password: self.password.map(Secret::new),
            host_passwords: Vec::new(),
            ssl_mode,
            ssl_root_certificate,
            ssl_certificate,
            ssl_key,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            target_session_attributes: self.target_session_attributes.unwrap_or(TargetSessionAttributes::Any),
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        })
    }

    /// `host=` stands for the names before the path and `port=` for their ports, each by itself (`conninfo_uri_parse_options` in
    /// `src/interfaces/libpq/fe-connect.c`); one port is that of all.
    fn hosts(&self) -> Result<Vec<Host>, String> {
        let authority = self.hosts.split(',').map(name_and_port).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<&str> = match &self.host_parameter {
            Some(names) => names.split(',').collect(),
            None => authority.iter().map(|(name, _)| *name).collect(),
        };
        let ports: Vec<&str> = match &self.port_parameter {
            Some(ports) => ports.split(',').collect(),
            None if authority.iter().all(|(_, port)| port.is_empty()) => Vec::new(),
            None => authority.iter().map(|(_, port)| *port).collect(),
        };
        if ports.len() > 1 && ports.len() != names.len() {
            return Err(format!(
                "names {} hosts and {} ports; give one port for all, or one for each",
                names.len(),
                ports.len()
            ));
        }
        let port = |at: usize| if ports.len() == 1 { ports.first() } else { ports.get(at) };
        names.iter().enumerate().map(|(at, name)| host(name, port(at).copied().unwrap_or(""))).collect()
    }
}

/// `name`, `name:port`, `[::1]:port`, a percent-encoded or plain folder of a Unix socket.
fn name_and_port(entry: &str) -> Result<(&str, &str), String> {
    if entry.starts_with('/') {
        return Ok((entry, ""));
    }
    let Some(rest) = entry.strip_prefix('[') else { return Ok(entry.split_once(':').unwrap_or((entry, ""))) };
    let (address, tail) =
        rest.split_once(']').ok_or_else(|| format!("has the host {entry} without a closing bracket"))?;
    let port = if tail.is_empty() { Some("") } else { tail.strip_prefix(':') };
    Ok((address, port.ok_or_else(|| format!("has the host {entry}: after the bracket only :port may follow"))?))
}

/// One host; an empty name is localhost, an empty port 5432.
fn host(name: &str, port: &str) -> Result<Host, String> {
    if !has_digits_only(port) {
        // It may be a password: that is never shown.
        return Err("has a port that is no number from 1 to 65535; after user:password an @ and the host must follow"
            .to_owned());
    }
    let port = if port.is_empty() { "5432" } else { port };
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("has the port {port}, which is none from 1 to 65535"))?;
    let name = decoded(name)?;
    if name.starts_with('/') {
        return Ok(Host::Unix(name.into(), port));
    }
    Ok(Host::Tcp(if name.is_empty() { "localhost".to_owned() } else { name }, port))
}

/// One of libpq's own files, if it is there. Without a root.crt the modes that verify use the system's certificates.
fn default_file(name: &str, environment: &Environment) -> Option<PathBuf> {
    Some(environment.home()?.join(".postgresql").join(name)).filter(|path| path.exists())
}

/// libpq's variables for a URL that names no sslmode, the old one last: who set them must not get less than they say.
fn ssl_mode_of(environment: &Environment) -> Result<Option<SslMode>, String> {
    let Some(value) = environment.get("PGSSLMODE") else {
        return Ok(environment.get("PGREQUIRESSL").filter(|value| value.starts_with('1')).map(|_| SslMode::Require));
    };
    let mode = ssl_mode(value).map_err(|rule| format!("names no sslmode, and the variable PGSSLMODE {rule}"))?;
    Ok(Some(mode))
}

fn ssl_mode(value: &str) -> Result<SslMode, String> {
    Ok(match value {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(format!(
                "has sslmode={value}; it must be disable, allow, prefer, require, verify-ca or verify-full"
            ));
        }
    })
}

fn channel_binding(value: &str) -> Result<ChannelBinding, String> {
    Ok(match value {
        "disable" => ChannelBinding::Disable,
        "prefer" => ChannelBinding::Prefer,
        "require" => ChannelBinding::Require,
        _ => return Err(format!("has channel_binding={value}; it must be disable, prefer or require")),
    })
}

fn session_attributes(value: &str) -> Result<TargetSessionAttributes, String> {
    Ok(match value {
        "any" => TargetSessionAttributes::Any,
        "read-write" => TargetSessionAttributes::ReadWrite,
        "read-only" => TargetSessionAttributes::ReadOnly,
        "primary" => TargetSessionAttributes::Primary,
        "standby" => TargetSessionAttributes::Standby,
        "prefer-standby" => TargetSessionAttributes::PreferStandby,
        _ => {
            return Err(format!(
                "has target_session_attrs={value}; it must be any, read-write, read-only, primary, standby or prefer-standby"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses and compares hosts, user, database and mode; `Err` is a part of the rule.
    fn check(url: &str, expected: Result<(&str, &str, &str), &str>) {
        let environment = Environment::from_pairs([("USER", "me")]);
        match (parse(url, &environment), expected) {
            (Ok(url), Ok((hosts, user, database))) => {
                let seen: Vec<String> = url.hosts.iter().map(ToString::to_string).collect();
                assert_eq!(
                    (seen.join(",").as_str(), url.user.as_str(), url.database.as_str()),
                    (hosts, user, database)
                );
            }
            (Err(rule), Err(part)) => assert!(rule.contains(part), "{rule}"),
            (result, expected) => panic!("{url}: {result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn urls_mean_what_libpqs_mean() {
        check("postgres://u@h:1/d", Ok(("h:1", "u", "d")));
        check("postgresql://", Ok(("localhost:5432", "me", "me")));
        check("postgres://u@a:1,b,[::1]:3/d", Ok(("a:1,b:5432,[::1]:3", "u", "d")));
        check("postgres://u@/d?host=/var/run&port=7", Ok(("/var/run/.s.PGSQL.7", "u", "d")));
        check("postgres://u@localhost:7/d?host=/var/run", Ok(("/var/run/.s.PGSQL.7", "u", "d")));
        check("postgres://u@:7/d?host=a,b", Ok(("a:7,b:7", "u", "d")));
        check("postgres://u@h:1/d?port=2", Ok(("h:2", "u", "d")));
        check("postgres://u@a:1,b:2/d?host=x,y", Ok(("x:1,y:2", "u", "d")));
        check("postgres://u@a:1,b:2/d?host=x", Err("1 hosts and 2 ports"));
        check("postgres://u@%2Fvar%2Frun:7/d", Ok(("/var/run/.s.PGSQL.7", "u", "d")));
        check("postgres://a%40b:p%2F@h/d%20e", Ok(("h:5432", "a@b", "d e")));
        check("postgres://h/?user=u&dbname=d", Ok(("h:5432", "u", "d")));
        check("mysql://h", Err("must be a url like"));
        check("postgres://h:0/d", Err("port 0"));
        check("postgres://h:70000/d", Err("port 70000"));
        check("postgres://h/d?port=x", Err("a port that is no number"));
        check("postgres://h/d?sslmode=on", Err("sslmode=on"));
        check("postgres://u@h/d?gssencmode=prefer", Ok(("h:5432", "u", "d")));
        check("postgres://u@h/d?gssencmode=require", Err("speaks no GSSAPI"));
        check("postgres://h/d?ssl_mode=on", Err("did you mean sslmode?"));
        check("postgres://h/d?application_name=x", Err("pipeline's name"));
        check("postgres://a,b/d?port=1,2,3", Err("2 hosts and 3 ports"));
        check("postgres://[::1]x/d", Err("after the bracket"));
        check("postgres://u%zz@h/d", Err("write a percent sign as %25"));
        check("postgres://u%00@h/d", Err("%00"));
        check("postgres://u@h/d?sslmode", Err("without a value"));
        check("postgres://u@h/d?connect_timeout=-1", Ok(("h:5432", "u", "d")));
        check("postgres://h:5432/?user=a@b", Ok(("h:5432", "a@b", "a@b")));
        check("postgres://u@h/d?sslrootcert=system", Ok(("h:5432", "u", "d")));
        check("postgres://u@h/d?sslrootcert=system&sslmode=require", Err("weaker sslmode than verify-full"));
    }

    #[test]
    fn the_password_is_read_and_never_shown() {
        let environment = Environment::default();
        let url = parse("postgres://u:s3cret@h/d", &environment).unwrap();
        assert_eq!(url.password.as_ref().unwrap().reveal(), "s3cret");
        for text in [
            format!("{url:?}"),
            url.to_string(),
            without_password("postgres://u:s3cret@h/d?a=b"),
            without_password("postgres://h/d?password=s3cret&x=y"),
            without_password("postgres://u:s3cret/d"),
            without_password("postgres://u:s3cret"),
            without_password("postgres://u:7s3cret,h:1/d?sslmode=disable"),
            parse("postgres://u:s3cret/d", &environment).unwrap_err(),
        ] {
            assert!(!text.contains("s3cret"), "{text}");
        }
        for harmless in ["postgres://h:5433,[::1]:1,%2Frun:2/d", "postgres:///d?host=/run"] {
            assert_eq!(without_password(harmless), harmless);
        }
    }

    #[test]
    fn libpqs_variables_for_tls_count_where_the_url_is_silent() {
        let url = |query: &str, variables: &[(&'static str, &'static str)]| {
            let environment = Environment::from_pairs(variables.iter().copied());
            parse(&format!("postgres://u@h/d{query}"), &environment).map(|url| {
                let certificate = url.ssl_root_certificate.map_or("-".to_owned(), |path| path.display().to_string());
                (url.ssl_mode, certificate)
            })
        };
        let (mode, root, old) = (("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", "r"), ("PGREQUIRESSL", "1"));
        let system = ("PGSSLROOTCERT", "system");
        for (query, variables, expected) in [
            ("", &[mode, root][..], (SslMode::VerifyCa, "r")),
            ("", &[], (SslMode::Prefer, "-")),
            ("?sslmode=require", &[mode, root], (SslMode::Require, "r")),
            ("?sslrootcert=own", &[mode, root], (SslMode::VerifyCa, "own")),
            ("", &[("PGSSLMODE", ""), root], (SslMode::Prefer, "r")),
            ("", &[old], (SslMode::Require, "-")),
            ("", &[("PGREQUIRESSL", "0")], (SslMode::Prefer, "-")),
            ("", &[mode, old], (SslMode::VerifyCa, "-")),
            ("", &[system], (SslMode::VerifyFull, "system")),
        ] {
            let (mode, certificate) = expected;
            assert_eq!(url(query, variables), Ok((mode, certificate.to_owned())), "{query} {variables:?}");
        }
        assert!(url("", &[system, mode]).unwrap_err().contains("weaker sslmode than verify-full"));
        assert!(url("", &[("PGSSLMODE", "on")]).unwrap_err().contains("variable PGSSLMODE has sslmode=on"));
        assert!(url("?sslmode=disable", &[("PGSSLMODE", "on")]).is_ok());
    }

    #[test]
    fn libpqs_own_files_count_where_it_takes_them() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".postgresql");
        std::fs::create_dir(&folder).unwrap();
        let environment = Environment::from_pairs([("HOME", home.path().to_str().unwrap()), ("USER", "u")]);
        let url = |mode: &str| parse(&format!("postgres://h/d?sslmode={mode}"), &environment);
        let names = |url: ServerUrl| {
            let name = |path: Option<PathBuf>| path.map_or("-".to_owned(), |path| path.display().to_string());
            [url.ssl_root_certificate, url.ssl_certificate, url.ssl_key]
                .map(name)
                .join(" ")
                .replace(&format!("{}/", folder.display()), "")
        };
        let put = |name: &str| std::fs::write(folder.join(name), "").unwrap();
        put("postgresql.key");
        assert_eq!(names(url("verify-full").unwrap()), "- - -");
        put("postgresql.crt");
        put("root.crt");
        for (mode, expected) in [
            ("prefer", "- postgresql.crt postgresql.key"),
            ("require", "root.crt postgresql.crt postgresql.key"),
            ("verify-full", "root.crt postgresql.crt postgresql.key"),
            ("verify-full&sslrootcert=r&sslcert=c&sslkey=k", "r c k"),
        ] {
            assert_eq!(names(url(mode).unwrap()), expected, "{mode}");
        }
        put("root.crl");
        assert!(url("verify-full").unwrap_err().contains("root.crl lists as revoked"));
        assert!(url("prefer").is_ok() && url("verify-full&sslrootcert=system").is_ok());
    }
}
