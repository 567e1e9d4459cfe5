//! One throw-away Apache Kafka broker (KRaft, one node): format, start, stop, kill -9, start again on the same data and ports;
//! gone with its folder when dropped. Speaks no Kafka itself: ready is what the broker's log says.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{self, last_lines};
use super::server::free_port;
use super::{BrokerPrograms, ThrowawayError};

/// How long a broker may take to start; recovery after a crash counts.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long a stop by SIGTERM may take before the broker is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// What the broker logs once it takes clients.
const READY_LINE: &str = "Kafka Server started";
/// What every Java process of ours gets: it lives for seconds, on a machine with few cores.
const JAVA_FLAGS: [&str; 3] = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
/// A cluster id is 16 bytes in base64; a folder of our own needs no better one.
const CLUSTER_ID: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct BrokerOptions {
    /// Lines of `server.properties` beside those that every broker gets; the later one wins.
    pub properties: Vec<(String, String)>,
    /// Listeners with TLS, and SCRAM over TLS.
    pub secure: Option<SecureListeners>,
    /// Where the controller of a running broker listens, whose cluster this one joins as a second node.
    pub joins: Option<u16>,
    /// Flags of its Java beside those that every broker gets; the later one wins.
    pub java_flags: Vec<String>,
}

impl BrokerOptions {
    /// With one more property.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What the secure listeners need.
#[derive(Clone)]
pub struct SecureListeners {
    /// PEM: PKCS#8 key, server certificate, certificate of the authority, one after the other.
    pub keystore_pem: String,
    /// PEM: the authority whose client certificates are accepted.
    pub authority_pem: String,
    /// The SCRAM-SHA-512 user.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for SecureListeners {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SecureListeners").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A running broker (or a stopped one, between `stop` and `start_again`).
#[derive(Debug)]
pub struct Broker {
    programs: BrokerPrograms,
    options: BrokerOptions,
    folder: tempfile::TempDir,
    ports: Ports,
    child: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    controller: u16,
    scram: u16,
    tls: u16,
}

impl Broker {
    /// Formats a data folder and starts the broker. Call it on a thread that lives as long as the broker: the kernel ends the
    /// broker with the thread that started it, so that nothing stays behind a killed test.
    pub async fn start(programs: &BrokerPrograms, options: BrokerOptions) -> Result<Self, ThrowawayError> {
        let folder = tempfile::Builder::new().prefix("walrelay-broker-").tempdir();
        let folder = folder.map_err(ThrowawayError::io("making a folder for a broker"))?;
        let ports = Ports { plain: free_port()?, controller: free_port()?, scram: free_port()?, tls: free_port()? };
        let mut broker = Self { programs: programs.clone(), options, folder, ports, child: None };
        broker.write_files()?;
        broker.format().await?;
        broker.start_again().await?;
        Ok(broker)
    }

    fn write_files(&self) -> Result<(), ThrowawayError> {
        self.write("log4j2.xml", process::LOG_CONFIGURATION)?;
        if let Some(secure) = &self.options.secure {
            self.write("keystore.pem", &secure.keystore_pem)?;
            self.write("ca.pem", &secure.authority_pem)?;
        }
        self.write_properties()
    }

    fn write(&self, name: &str, content: &str) -> Result<(), ThrowawayError> {
        let path = self.folder.path().join(name);
        fs::write(&path, content).map_err(ThrowawayError::io(format!("writing {}", path.display())))
    }

    fn write_properties(&self) -> Result<(), ThrowawayError> {
        let mut fixed = properties(self.ports, self.options.secure.is_some());
        if let Some(controller) = self.options.joins {
            fixed.extend(joining(self.ports, controller));
        }
        let given = self.options.properties.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let lines: Vec<String> =
            fixed.into_iter().chain(given).map(|(name, value)| format!("{name}={value}")).collect();
        self.write("server.properties", &(lines.join("\n") + "\n"))
    }

    /// Replaces the given properties; they count from the next start on.
    pub fn set_properties(&mut self, properties: &[(&str, &str)]) -> Result<(), ThrowawayError> {
        let owned = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.options.properties = owned.collect();
        self.write_properties()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.programs.java());
        command.args(JAVA_FLAGS).args(&self.options.java_flags).arg("-cp").arg(self.programs.class_path());
        command.arg("-Dlog4j2.configurationFile=log4j2.xml").current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    async fn format(&self) -> Result<(), ThrowawayError> {
        let mut command = self.command();
        command.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "server.properties"]);
        if let Some(secure) = &self.options.secure {
            let user = format!("SCRAM-SHA-512=[name={},password={}]", secure.user, secure.password);
            command.arg("--add-scram").arg(user);
        }
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
        let output = output.map_err(ThrowawayError::io("running kafka.tools.StorageTool"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Err(ThrowawayError::Program { program: "kafka.tools.StorageTool format".to_owned(), output: said })
    }

    /// Starts a stopped broker on the same data and ports, and waits until it takes clients.
    pub async fn start_again(&mut self) -> Result<(), ThrowawayError> {
        let log_start = fs::metadata(self.log_path()).map_or(0, |metadata| metadata.len());
        let began = Instant::now();
        self.child = Some(self.spawn()?);
        while !self.log_since(log_start).contains(READY_LINE) {
            let has_ended = self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten().is_some();
            if has_ended || began.elapsed() > READY_LIMIT {
                let seconds = began.elapsed().as_secs();
                return Err(ThrowawayError::NotReady { port: self.ports.plain, seconds, log: self.log_tail(30) });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Child, ThrowawayError> {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(ThrowawayError::io("opening the broker's log"))?;
        let second = log.try_clone().map_err(ThrowawayError::io("opening the broker's log"))?;
        let mut command = self.command();
        command.args(["kafka.Kafka", "server.properties"]).stdout(log).stderr(second).process_group(0);
        process::end_with_us(&mut command);
        command.spawn().map_err(ThrowawayError::io("starting java"))
    }

    /// Where clients without TLS connect: `bootstrap.servers`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// Where its controller listens, for a second broker.
    pub fn controller_port(&self) -> u16 {
        self.ports.controller
    }

    /// The listener with TLS and SCRAM.
    pub fn scram_address(&self) -> String {
        format!("localhost:{}", self.ports.scram)
    }

    /// The listener with TLS alone.
    pub fn tls_address(&self) -> String {
        format!("localhost:{}", self.ports.tls)
    }

    /// Its folder: properties, log, data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("broker.log")
    }

    fn log_since(&self, start: u64) -> String {
        let read = || {
            let mut file = File::open(self.log_path())?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        last_lines(&self.log_since(0), lines)
    }

    /// Its process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A signal to the broker: SIGTERM stops it, SIGSTOP freezes it.
    pub fn signal(&self, signal: i32) {
        process::signal(self.child.as_ref(), signal);
    }

    /// The orderly stop; a broker that does not end in time is killed.
    pub async fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let began = Instant::now();
        while let Some(child) = &mut self.child {
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                self.child = None;
            } else if began.elapsed() > STOP_LIMIT {
                self.kill9();
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// A crash.
    pub fn kill9(&mut self) {
        process::kill9(&mut self.child);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// What makes it the second node of a cluster: a broker without a controller of its own.
fn joining(ports: Ports, controller: u16) -> Vec<(&'static str, String)> {
    vec![
        ("process.roles", "broker".to_owned()),
        ("node.id", "2".to_owned()),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
        ("listeners", format!("PLAINTEXT://127.0.0.1:{}", ports.plain)),
    ]
}

/// What every broker gets. Topics are never made by a mere look at them, and one node keeps every internal topic.
fn properties(ports: Ports, is_secure: bool) -> Vec<(&'static str, String)> {
    let Ports { plain, controller, scram, tls } = ports;
    let fixed = |name, value: &str| (name, value.to_owned());
    let (more, more_advertised) = match is_secure {
        true => (
            format!(",SASL_SSL://127.0.0.1:{scram},SSL://127.0.0.1:{tls}"),
            format!(",SASL_SSL://localhost:{scram},SSL://localhost:{tls}"),
        ),
        false => (String::new(), String::new()),
    };
    let mut properties = vec![
        fixed("process.roles", "broker,controller"),
        fixed("node.id", "1"),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
        ("listeners", format!("PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}{more}")),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{plain}{more_advertised}")),
        fixed("controller.listener.names", "CONTROLLER"),
        fixed("inter.broker.listener.name", "PLAINTEXT"),
        fixed("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT"),
        fixed("log.dirs", "data"),
        fixed("auto.create.topics.enable", "false"),
        fixed("offsets.topic.replication.factor", "1"),
        fixed("offsets.topic.num.partitions", "1"),
        fixed("transaction.state.log.replication.factor", "1"),
        fixed("transaction.state.log.min.isr", "1"),
        fixed("transaction.state.log.num.partitions", "1"),
        fixed("group.initial.rebalance.delay.ms", "0"),
    ];
    if is_secure {
        let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        properties.extend([
            fixed("listener.name.sasl_ssl.sasl.enabled.mechanisms", "SCRAM-SHA-512"),
            fixed("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config", login),
            fixed("ssl.keystore.type", "PEM"),
            fixed("ssl.keystore.location", "keystore.pem"),
            fixed("ssl.truststore.type", "PEM"),
            fixed("ssl.truststore.location", "ca.pem"),
        ]);
    }
    properties
}
