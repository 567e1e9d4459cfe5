//! One throw-away Kafka Connect worker with Debezium's connector for Postgres, from which a feed takes over and against which it is
//! measured: start, kill -9, start again; gone with its folder when dropped. Its topics stay with the broker.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{self, last_lines};
use super::server::free_port;
use super::{ConnectPrograms, ThrowawayError};

/// How long a worker may take until it answers.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// One answer of the worker.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// What a worker of a group logs once it takes connectors.
const READY_LINE: &str = "Finished starting connectors and tasks";
/// The topic in which a worker of a group keeps the offsets of its connectors.
const OFFSETS_TOPIC: &str = "connect-offsets";

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Lines of the worker's properties beside those that every worker gets; the later one wins.
    pub properties: Vec<(String, String)>,
    /// Flags of its Java.
    pub java_flags: Vec<String>,
}

/// A running worker.
#[derive(Debug)]
pub struct Connect {
    programs: ConnectPrograms,
    options: ConnectOptions,
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Connect {
    /// A worker on its own with one connector, its offsets in a file; does not wait for it. Call it on a thread that lives as long
    /// as the worker.
    pub fn standalone(
        programs: &ConnectPrograms,
        options: ConnectOptions,
        connector: &[(String, String)],
    ) -> Result<Self, ThrowawayError> {
        let mut connect = Self::prepare(programs, options)?;
        let offsets = connect.folder.path().join("offsets").display().to_string();
        connect.write_worker(&[("offset.storage.file.filename", &offsets)])?;
        connect.write("connector.properties", &lines(connector))?;
        let verb = "org.apache.kafka.connect.cli.ConnectStandalone";
        connect.spawn(&[verb, "worker.properties", "connector.properties"])?;
        Ok(connect)
    }

    /// A worker of a group of one, offsets in the topic `connect-offsets`; waits until it takes connectors. Call it on a thread that
    /// lives as long as the worker.
    pub async fn distributed(programs: &ConnectPrograms, options: ConnectOptions) -> Result<Self, ThrowawayError> {
        let mut connect = Self::prepare(programs, options)?;
        connect.write_worker(&[
            ("group.id", "connect"),
            ("offset.storage.topic", OFFSETS_TOPIC),
            ("offset.storage.replication.factor", "1"),
            ("offset.storage.partitions", "5"),
            ("config.storage.topic", "connect-configs"),
            ("config.storage.replication.factor", "1"),
            ("status.storage.topic", "connect-status"),
            ("status.storage.replication.factor", "1"),
            ("status.storage.partitions", "1"),
        ])?;
        connect.spawn(&["org.apache.kafka.connect.cli.ConnectDistributed", "worker.properties"])?;
        let began = Instant::now();
        while !connect.log().contains(READY_LINE) {
            let has_ended = connect.child.as_mut().and_then(|child| child.try_wait().ok()).flatten().is_some();
            if has_ended || began.elapsed() > READY_LIMIT {
                let seconds = began.elapsed().as_secs();
                return Err(ThrowawayError::NotReady { port: connect.port, seconds, log: connect.log_tail(30) });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(connect)
    }

    fn prepare(programs: &ConnectPrograms, options: ConnectOptions) -> Result<Self, ThrowawayError> {
        let folder = tempfile::Builder::new().prefix("walrelay-connect-").tempdir();
        let folder = folder.map_err(ThrowawayError::io("making a folder for a Connect worker"))?;
        let connect = Self { programs: programs.clone(), options, folder, port: free_port()?, child: None };
        connect.write("log4j2.xml", process::LOG_CONFIGURATION)?;
        Ok(connect)
    }

    fn write(&self, name: &str, content: &str) -> Result<(), ThrowawayError> {
        let path = self.folder.path().join(name);
        fs::write(&path, content).map_err(ThrowawayError::io(format!("writing {}", path.display())))
    }

    fn write_worker(&self, more: &[(&str, &str)]) -> Result<(), ThrowawayError> {
        let converter = "org.apache.kafka.connect.json.JsonConverter";
        let plugins = self.programs.plugins().display().to_string();
        let listener = format!("http://127.0.0.1:{}", self.port);
        let usual = [
            ("bootstrap.servers", self.options.brokers.as_str()),
            ("key.converter", converter),
            ("value.converter", converter),
            ("key.converter.schemas.enable", "false"),
            ("value.converter.schemas.enable", "false"),
            ("plugin.path", &plugins),
            // Without looking into every class for plugins.
            ("plugin.discovery", "service_load"),
            ("listeners", &listener),
        ];
        let fixed = usual.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let all: Vec<(String, String)> = fixed.chain(self.options.properties.iter().cloned()).collect();
        self.write("worker.properties", &lines(&all))
    }

    fn spawn(&mut self, arguments: &[&str]) -> Result<(), ThrowawayError> {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(ThrowawayError::io("opening the log of a Connect worker"))?;
        let second = log.try_clone().map_err(ThrowawayError::io("opening the log of a Connect worker"))?;
        let mut command = Command::new(self.programs.java());
        command.args(&self.options.java_flags).arg("-cp").arg(self.programs.class_path());
        command.arg("-Dlog4j2.configurationFile=log4j2.xml").args(arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(log).stderr(second).process_group(0);
        process::end_with_us(&mut command);
        self.child = Some(command.spawn().map_err(ThrowawayError::io("starting java"))?);
        Ok(())
    }

    /// Gives a worker of a group a connector, or new settings of one that it has.
    pub async fn put(&self, name: &str, connector: &[(String, String)]) -> Result<(), ThrowawayError> {
        let pairs = connector.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())));
        let body = serde_json::Value::Object(pairs.collect()).to_string();
        let (port, path) = (self.port, format!("/connectors/{name}/config"));
        let asked = tokio::task::spawn_blocking(move || put(port, &path, &body)).await;
        let answer = asked.map_err(std::io::Error::other).and_then(|answer| answer);
        let answer = answer.map_err(ThrowawayError::io("asking a Connect worker"))?;
        if answer.starts_with("HTTP/1.1 2") {
            return Ok(());
        }
        Err(ThrowawayError::Connector { name: name.to_owned(), answer })
    }

    /// Where it keeps the offsets, in a group.
    pub fn offsets_topic(&self) -> &'static str {
        OFFSETS_TOPIC
    }

    /// Its process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("connect.log")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of it.
    pub fn log_tail(&self, lines: usize) -> String {
        last_lines(&self.log(), lines)
    }

    /// A crash.
    pub fn kill9(&mut self) {
        process::kill9(&mut self.child);
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Settings as Connect takes them.
pub fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What any connector to a throw-away server's database `shop` is told: whence, through what, and under which prefix.
pub fn connector_settings(port: u16, prefix: &str, slot: &str, publication: &str) -> Vec<(String, String)> {
    settings(&[
        ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
        ("tasks.max", "1"),
        ("plugin.name", "pgoutput"),
        ("database.hostname", "127.0.0.1"),
        ("database.port", &port.to_string()),
        ("database.user", "postgres"),
        ("database.password", "none"),
        ("database.dbname", "shop"),
        ("topic.prefix", prefix),
        ("slot.name", slot),
        ("publication.name", publication),
        ("publication.autocreate.mode", "disabled"),
        ("topic.creation.default.replication.factor", "1"),
    ])
}

/// Of a file of Java's properties. None of our values holds what would need an escape.
fn lines(properties: &[(String, String)]) -> String {
    properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

fn put(port: u16, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let length = body.len();
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
