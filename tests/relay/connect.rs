//! URLs against real servers: every way to authenticate, every sslmode, certificates good and bad, several hosts. Each URL is
//! tried with our own protocol and with tokio-postgres: both must have the same outcome.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use walrelay::config::{Environment, ServerUrl, parse_url};
use walrelay::model::Retry;
use walrelay::throwaway::{Options, Server};
use walrelay::wire::sql::{self, SqlClient};
use walrelay::wire::{Connection, Session, WireError};

use super::harness::certificates::{Authority, Identity, self_signed};
use super::harness::{server, start_server, value, values};

/// Who may come in, and how. The superuser is trusted everywhere.
const HBA: &str = "local all all trust
    host all postgres,trusted all trust
    host all scram all scram-sha-256
    host all md5 all md5
    host all plain_password all password
    hostssl all only_tls all trust
    hostnossl all only_plain all trust
    hostssl all by_certificate all cert
    hostssl all scram_tls all scram-sha-256\n";

const ROLES: &str = "SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD 'right';
    SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'right';
    CREATE ROLE scram_tls LOGIN PASSWORD 'right'; CREATE ROLE plain_password LOGIN PASSWORD 'right'; CREATE ROLE trusted LOGIN;
    CREATE ROLE only_tls LOGIN; CREATE ROLE only_plain LOGIN; CREATE ROLE by_certificate LOGIN";

fn parsed(url: &str) -> ServerUrl {
    parse_url(url, &Environment::default()).unwrap_or_else(|rule| panic!("{url} {rule}"))
}

/// Whether the session is encrypted, or the error, by our own protocol.
async fn by_own_protocol(url: &ServerUrl) -> Result<bool, WireError> {
    let mut connection = Connection::connect(url, &Session::new("walrelay test")).await?;
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let results = connection.simple_query(sql).await?;
    Ok(results[0].rows[0][0].as_deref() == Some(b"t"))
}

/// The same by tokio-postgres.
async fn by_tokio_postgres(url: &ServerUrl) -> Result<bool, WireError> {
    let client: SqlClient = sql::connect(url, &Session::new("walrelay test")).await?;
    Ok(client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?.get(0))
}

/// Connects both ways; expects an encrypted session (`Ok(true)`), a plain one, or an error with this text.
async fn check(url: &str, expected: Result<bool, &str>) {
    let parsed = parsed(url);
    for (speaker, result) in
        [("own", by_own_protocol(&parsed).await), ("tokio-postgres", by_tokio_postgres(&parsed).await)]
    {
        match (result, expected) {
            (Ok(is_encrypted), Ok(expected)) => assert_eq!(is_encrypted, expected, "{url} by {speaker}: encrypted?"),
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part), "{url} by {speaker}: {text}, without \"{part}\"");
                assert!(!text.contains("right") && !text.contains("wr0ng"), "a password in {text}");
            }
            (result, expected) => panic!("{url} by {speaker}: {result:?} instead of {expected:?}"),
        }
    }
}

/// A server, a folder for client files, and URLs made short.
struct Case {
    server: Server,
    folder: tempfile::TempDir,
}

impl Case {
    async fn start(major: u32) -> Self {
        let server = server(major).await;
        values(&server, "postgres", ROLES).await;
        server.write("pg_hba.conf", HBA).unwrap();
        let mut case = Self { server, folder: tempfile::tempdir().unwrap() };
        case.restart("").await;
        case
    }

    /// With these settings in place of earlier ones.
    async fn restart(&mut self, settings: &str) {
        self.server.write("postgresql.auto.conf", settings).unwrap();
        self.server.stop_fast();
        self.server.start_again().await.unwrap();
    }

    /// Offers TLS with this certificate; client certificates are checked by `authority`.
    async fn offer(&mut self, identity: &Identity, authority: &Authority, settings: &str) {
        self.server.write("server.crt", &identity.certificate).unwrap();
        self.server.write("server.key", &identity.key).unwrap();
        self.server.write("root.crt", &authority.pem()).unwrap();
        self.restart(&format!("ssl = on\nssl_ca_file = 'root.crt'\n{settings}")).await;
    }

    /// A file of the client.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    async fn check(&self, user: &str, host: &str, parameters: &str, expected: Result<bool, &str>) {
        let port = self.server.port();
        let parameters = parameters.replace('@', self.folder.path().to_str().unwrap());
        check(&format!("postgres://{user}@{host}:{port}/postgres?{parameters}"), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_authenticate_without_tls() {
    let refused = Err("password authentication failed for user");
    for major in [14, 18] {
        let case = Case::start(major).await;
        for (user, parameters, expected) in [
            ("trusted", "", Ok(false)),
            ("scram:right", "", Ok(false)),
            ("scram:right", "sslmode=disable", Ok(false)),
            ("md5:right", "", Ok(false)),
            ("plain_password:right", "", Ok(false)),
            ("scram:wr0ng", "", refused),
            ("md5:wr0ng", "sslmode=disable", refused),
            ("plain_password:wr0ng", "", refused),
            ("scram", "", Err("asks for a password of \"scram\" and none is given")),
            ("md5", "", Err("asks for a password of \"md5\" and none is given")),
            ("scram:right", "channel_binding=require", Err("authentication: ")),
            ("trusted", "channel_binding=require", Err("authentication: ")),
            ("md5:right", "channel_binding=require", Err("authentication: ")),
            ("trusted", "sslmode=require", Err("does not offer TLS")),
            ("trusted", "sslmode=verify-full", Err("does not offer TLS")),
            ("only_tls", "", Err("no pg_hba.conf entry")),
            ("nobody", "sslmode=disable", Err("(SQLSTATE 28000)")),
        ] {
            case.check(user, "127.0.0.1", parameters, expected).await;
        }
        let socket = case.server.folder().display().to_string().replace('/', "%2F");
        case.check("trusted", &socket, "sslmode=require", Ok(false)).await;
        let error =
            by_own_protocol(&parsed(&format!("{}?sslmode=disable", case.server.url_for("nobody", "postgres")))).await;
        assert_eq!(error.unwrap_err().retry(), Retry::Never);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sslmode_means_what_libpq_means() {
    let mut case = Case::start(18).await;
    let (right, wrong) = (Authority::new("right authority"), Authority::new("wrong authority"));
    case.offer(&right.issue("some name", &["localhost"]), &right, "").await;
    case.file("right.crt", &right.pem());
    case.file("wrong.crt", &wrong.pem());
    case.file("both.crt", &format!("{}{}", wrong.pem(), right.pem()));
    case.file("empty.crt", "");
    let unknown = Err("no authority of sslrootcert issued it");
    for (user, host, parameters, expected) in [
        ("trusted", "127.0.0.1", "sslmode=disable", Ok(false)),
        ("trusted", "127.0.0.1", "sslmode=allow", Ok(false)),
        ("trusted", "127.0.0.1", "", Ok(true)),
        ("trusted", "127.0.0.1", "sslmode=require", Ok(true)),
        ("only_plain", "127.0.0.1", "", Ok(false)),
        ("only_plain", "127.0.0.1", "sslmode=require", Err("no pg_hba.conf entry")),
        ("only_tls", "127.0.0.1", "sslmode=allow", Ok(true)),
        ("only_tls", "127.0.0.1", "sslmode=disable", Err("no pg_hba.conf entry")),
        ("scram_tls:right", "127.0.0.1", "sslmode=allow", Ok(true)),
        ("scram_tls:wr0ng", "127.0.0.1", "sslmode=allow", Err("password authentication failed")),
        ("scram_tls:wr0ng", "127.0.0.1", "sslmode=prefer", Err("password authentication failed")),
        ("trusted", "127.0.0.1", "sslmode=require&sslrootcert=@/right.crt", Ok(true)),
        ("trusted", "127.0.0.1", "sslmode=require&sslrootcert=@/wrong.crt", unknown),
        ("trusted", "127.0.0.1", "sslmode=prefer&sslrootcert=@/wrong.crt", Ok(true)),
        ("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=@/right.crt", Ok(true)),
        ("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=@/both.crt", Ok(true)),
        ("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=@/wrong.crt", unknown),
        ("trusted", "127.0.0.1", "sslmode=verify-ca", Err("name a file, or use sslmode=verify-full")),
        ("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=@/none.crt", Err("none.crt cannot be read")),
        ("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=@/empty.crt", Err("holds no certificate")),
        ("trusted", "localhost", "sslmode=verify-full&sslrootcert=@/both.crt", Ok(true)),
        ("trusted", "localhost", "sslmode=verify-full&sslrootcert=@/wrong.crt", unknown),
        ("trusted", "127.0.0.1", "sslmode=verify-full&sslrootcert=@/right.crt", Err("it is not for this host name")),
        ("trusted", "localhost", "sslmode=verify-full&sslrootcert=system", unknown),
    ] {
        case.check(user, host, parameters, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_binding_holds_for_every_hash_of_a_certificate() {
    let mut case = Case::start(18).await;
    let authority = Authority::new("authority");
    for (algorithm, binding) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, true),
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        // Names no hash: neither libpq nor we can bind to it.
        (&rcgen::PKCS_ED25519, false),
    ] {
        // What counts is the hash of the authority's signature, whatever the server's own key.
        let identity = Authority::with_key("signs", algorithm).issue("x", &["localhost"]);
        for protocol in ["TLSv1.2", "TLSv1.3"] {
            let settings =
                format!("ssl_min_protocol_version = '{protocol}'\nssl_max_protocol_version = '{protocol}'\n");
            case.offer(&identity, &authority, &settings).await;
            let required = if binding { Ok(true) } else { Err("authentication: ") };
            for (user, parameters, expected) in [
                ("scram:right", "channel_binding=require&sslmode=require", required),
                ("scram:right", "channel_binding=prefer&sslmode=require", Ok(true)),
                ("scram:right", "channel_binding=disable&sslmode=require", Ok(true)),
                ("scram:wr0ng", "sslmode=require", Err("password authentication failed")),
                ("trusted", "channel_binding=require&sslmode=require", Err("authentication: ")),
                ("md5:right", "channel_binding=require&sslmode=require", Err("authentication: ")),
            ] {
                case.check(user, "127.0.0.1", parameters, expected).await;
            }
            let url = format!("{}?sslmode=require", case.server.url_for("scram:right", "postgres"));
            let mut walsender = Connection::connect(&parsed(&url), &Session::replication("walsender")).await.unwrap();
            let identified = walsender.simple_query("IDENTIFY_SYSTEM").await.unwrap();
            assert_eq!(identified[0].rows[0][3].as_deref(), Some(&b"postgres"[..]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_openssl_accepts_are_accepted() {
    let mut case = Case::start(18).await;
    let authority = Authority::new("authority");
    case.file("authority.crt", &authority.pem());
    let refused = Err("it is not for this host name");
    for (identity, root, by_name, by_address) in [
        // Its own root, with the name where `openssl req -x509 -subj /CN=localhost` puts it.
        (self_signed("localhost", true, false), None, Ok(true), refused),
        (self_signed("localhost", false, false), None, Ok(true), refused),
        (self_signed("127.0.0.1", true, false), None, refused, Ok(true)),
        (self_signed("localhost", true, true), None, Err("it has expired"), Err("it has expired")),
        (authority.issue_version_1("localhost"), Some("authority.crt"), Ok(true), refused),
        (authority.issue("localhost", &[]), Some("authority.crt"), Ok(true), refused),
        (authority.issue("localhost", &["other.example"]), Some("authority.crt"), refused, refused),
        (authority.issue("x", &["127.0.0.1"]), Some("authority.crt"), refused, Ok(true)),
    ] {
        case.file("own.crt", &identity.certificate);
        let root = root.unwrap_or("own.crt");
        for protocol in ["TLSv1.2", "TLSv1.3"] {
            case.offer(&identity, &authority, &format!("ssl_max_protocol_version = '{protocol}'\n")).await;
            let full = format!("sslmode=verify-full&sslrootcert=@/{root}");
            case.check("trusted", "localhost", &full, by_name).await;
            case.check("trusted", "127.0.0.1", &full, by_address).await;
            case.check("scram:right", "127.0.0.1", "sslmode=require&channel_binding=require", Ok(true)).await;
        }
    }
    let stranger = Authority::new("authority");
    case.file("stranger.crt", &stranger.pem());
    for identity in [authority.issue_version_1("localhost"), authority.issue("x", &["localhost"])] {
        case.offer(&identity, &authority, "").await;
        let parameters = "sslmode=verify-ca&sslrootcert=@/stranger.crt";
        case.check("trusted", "localhost", parameters, Err("the certificate of localhost is refused")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_opens_the_door_and_a_strangers_does_not() {
    let mut case = Case::start(18).await;
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    case.offer(&authority.issue("x", &["localhost"]), &authority, "").await;
    for (name, identity) in [
        ("right", authority.issue("by_certificate", &[])),
        ("version_1", authority.issue_version_1("by_certificate")),
        ("other", authority.issue("somebody_else", &[])),
        ("stranger", stranger.issue("by_certificate", &[])),
    ] {
        case.file(&format!("{name}.crt"), &identity.certificate);
        let key = case.file(&format!("{name}.key"), &identity.key);
        std::fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
        if name == "right" {
            case.file("open.key", &identity.key);
        }
    }
    for (parameters, expected) in [
        ("sslcert=@/right.crt&sslkey=@/right.key", Ok(true)),
        ("sslcert=@/version_1.crt&sslkey=@/version_1.key", Ok(true)),
        ("sslcert=@/right.crt&sslkey=@/open.key", Err("/open.key has mode 0644, so that others may read")),
        ("", Err("requires a valid client certificate")),
        ("sslcert=@/other.crt&sslkey=@/other.key", Err("certificate authentication failed")),
        ("sslcert=@/stranger.crt&sslkey=@/stranger.key", Err("the server refuses our certificate")),
        ("sslcert=@/right.crt&sslkey=@/other.key", Err("sslcert and sslkey are no pair")),
        ("sslcert=@/right.crt", Err("sslcert and sslkey must be given together")),
        ("sslcert=@/right.crt&sslkey=@/none.key", Err("none.key cannot be read")),
    ] {
        case.check("by_certificate", "localhost", &format!("sslmode=require&{parameters}"), expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_many_answers_arrive_whole_through_tls() {
    let mut case = Case::start(18).await;
    let authority = Authority::new("authority");
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let settings = format!("ssl_max_protocol_version = '{protocol}'\n");
        case.offer(&authority.issue("x", &["localhost"]), &authority, &settings).await;
        let url = parsed(&format!("{}?sslmode=require", case.server.url("postgres")));
        let mut connection = Connection::connect(&url, &Session::new("walrelay test")).await.unwrap();
        let sql = "SELECT repeat('x', 20000000); SELECT i FROM generate_series(1, 200000) i";
        let results = connection.simple_query(sql).await.unwrap();
        assert_eq!(results[0].rows[0][0].as_ref().unwrap().len(), 20_000_000);
        let sum = results[1].rows.iter().map(|row| std::str::from_utf8(row[0].as_ref().unwrap()).unwrap());
        assert_eq!(sum.map(|text| text.parse::<u64>().unwrap()).sum::<u64>(), 200_000 * 200_001 / 2);
        // A whole chunk is much more than one record of TLS.
        postgres_protocol::message::frontend::query(
            "COPY (SELECT repeat('y', 1000) FROM generate_series(1, 100000)) TO STDOUT",
            connection.outgoing(),
        )
        .unwrap();
        connection.flush().await.unwrap();
        let (mut received_bytes, mut largest_bytes) = (0, 0);
        while received_bytes < 100_000 * 1001 {
            let chunk = connection.read_chunk().await.unwrap();
            let data =
                walrelay::wire::frame::frames(&chunk).map(|frame| frame.unwrap()).filter(|frame| frame.tag == b'd');
            received_bytes += data.map(|frame| frame.body.len()).sum::<usize>();
            largest_bytes = largest_bytes.max(chunk.len());
        }
        assert_eq!(received_bytes, 100_000 * 1001);
        assert!(largest_bytes > 64 * 1024, "{largest_bytes}");
    }
}

/// A port where the kernel accepts and nobody answers.
fn silent_listener() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up_after_connect_timeout() {
    let (_listener, port) = silent_listener();
    for mode in ["disable", "prefer", "require"] {
        let began = Instant::now();
        let url = parsed(&format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1&sslmode={mode}"));
        let error = by_own_protocol(&url).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("could not connect to 127.0.0.1:{port}: no answer within 1 s (connect_timeout)")
        );
        assert_eq!(error.retry(), Retry::Later);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_of_the_wanted_kind_is_taken() {
    let primary = server(18).await;
    let read_only = start_server(18, Options::default().with("default_transaction_read_only", "on")).await;
    let mut standby = server(18).await;
    standby.stop_fast();
    standby.write("standby.signal", "").unwrap();
    standby.start_again().await.unwrap();
    assert_eq!(value(&standby, "postgres", "SHOW in_hot_standby").await, "on");
    let (_listener, silent) = silent_listener();
    let dead = {
        let (listener, port) = silent_listener();
        drop(listener);
        port
    };
    let place = |port: u16| format!("127.0.0.1:{port}");
    let (p, r, s) = (place(primary.port()), place(read_only.port()), place(standby.port()));
    let (dead, silent) = (place(dead), place(silent));
    for (hosts, wanted, expected) in [
        (vec![&dead, &silent, &s, &r, &p], "read-write", Ok(&p)),
        (vec![&dead, &s, &r, &p], "primary", Ok(&r)),
        (vec![&p, &s, &r], "standby", Ok(&s)),
        (vec![&p, &r, &s], "prefer-standby", Ok(&s)),
        (vec![&dead, &p, &r], "prefer-standby", Ok(&p)),
        (vec![&p, &s], "read-only", Ok(&s)),
        (vec![&p, &r], "read-only", Ok(&r)),
        (vec![&dead, &s], "any", Ok(&s)),
        (
            vec![&dead, &silent, &s, &r],
            "read-write",
            Err(["refused", "no answer", "the session is read-only", "the session is read-only"]),
        ),
        (vec![&p, &p, &p, &r], "standby", Err(["the server is not in recovery"; 4])),
    ] {
        let list = hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(",");
        let url =
            parsed(&format!("postgres://postgres@{list}/postgres?target_session_attrs={wanted}&connect_timeout=1"));
        let opened = Connection::connect(&url, &Session::new("walrelay test")).await;
        match (opened, expected) {
            (Ok(connection), Ok(host)) => assert_eq!(connection.host(), host, "{url} {wanted}"),
            (Err(error), Err(parts)) => {
                let text = error.to_string();
                for (host, part) in hosts.iter().zip(parts) {
                    let said = text.split("; ").find(|said| said.contains(host.as_str())).unwrap_or_default();
                    assert!(said.contains(part), "{host} in {text}");
                }
                assert_eq!(error.retry(), Retry::Later);
            }
            (result, expected) => panic!("{url} {wanted}: {result:?} instead of {expected:?}"),
        }
        assert_eq!(sql::connect(&url, &Session::new("walrelay test")).await.is_ok(), expected.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_ends_the_search_as_in_libpq() {
    let case = Case::start(18).await;
    let place = format!("127.0.0.1:{}", case.server.port());
    let url = parsed(&format!("postgres://scram:wr0ng@{place},{place}/postgres"));
    let error = by_own_protocol(&url).await.unwrap_err();
    assert_eq!((error.code(), error.retry()), (Some("28P01"), Retry::Never));
    assert_eq!(error.to_string().matches("password authentication failed").count(), 1, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_have_the_settings_that_were_asked_for() {
    for major in [14, 18] {
        let server = server(major).await;
        let url = server.server_url("postgres").unwrap();
        let session = Session::replication("exactly_this").with("wal_sender_timeout", "12s");
        let mut connection = Connection::connect(&url, &session).await.unwrap();
        assert_eq!(connection.version_number() / 10_000, major);
        let mut expected = vec![
            ("application_name", "exactly_this"),
            ("wal_sender_timeout", "12s"),
            ("statement_timeout", "0"),
            ("idle_session_timeout", "0"),
            ("extra_float_digits", "3"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, MDY"),
            ("client_encoding", "UTF8"),
            ("search_path", ""),
            // Waiting for synchronous standbys is left as it is.
            ("synchronous_commit", "on"),
        ];
        if major >= 17 {
            expected.push(("transaction_timeout", "0"));
        }
        for (name, value) in expected {
            let results = connection.simple_query(&format!("SHOW {name}")).await.unwrap();
            let seen = results[0].rows[0][0].as_deref().map(String::from_utf8_lossy);
            assert_eq!(seen.as_deref(), Some(value), "{name} on {major}");
        }
        let odd = "two words, a \\ and a 'quote'";
        let session = Session::new("walrelay x control").with("synchronous_commit", "local").with("walrelay.odd", odd);
        let client = sql::connect(&url, &session).await.unwrap();
        for (name, value) in
            [("synchronous_commit", "local"), ("application_name", "walrelay x control"), ("walrelay.odd", odd)]
        {
            let seen: String = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0);
            assert_eq!(seen, value, "{name}");
        }
    }
}
