//! Why a throw-away server cannot be had, and what to install.

use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// No programs.
    #[error(
        "no PostgreSQL {wanted} was found; looked in {}. Run scripts/fetch-servers, install postgresql, or set PG_BIN to the folder \
         that holds initdb and postgres",
        .looked_in.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoPrograms {
        /// Which version.
        wanted: String,
        /// Where.
        looked_in: Vec<PathBuf>,
    },
    /// No jars.
    #[error("no Kafka broker was found: {} is not a folder. Run scripts/fetch-kafka, or set KAFKA_LIBS to the libs folder of a Kafka distribution", .libs.display())]
    NoBroker {
        /// Where.
        libs: PathBuf,
    },
    /// No Debezium.
    #[error("no Kafka Connect with Debezium was found: {} is not a folder. Run scripts/fetch-debezium", .folder.display())]
    NoConnect {
        /// Where.
        folder: PathBuf,
    },
    /// Kafka Connect refused a connector.
    #[error("Kafka Connect refuses the connector \"{name}\": {answer}")]
    Connector {
        /// Its name.
        name: String,
        /// What Connect answered.
        answer: String,
    },
    /// No Java.
    #[error(
        "no java was found in JAVA_HOME or PATH, and a Kafka broker needs Java 17: apt-get install openjdk-17-jre-headless"
    )]
    NoJava,
    /// PostgreSQL refuses to run as root, and there is no other account.
    #[error(
        "PostgreSQL refuses to run as root, and there is neither an account \"postgres\" nor \"nobody\": useradd -r postgres"
    )]
    NoAccount,
    /// The account cannot reach the programs.
    #[error("the account \"{account}\" cannot run {}: a folder above it is closed to others; run scripts/fetch-servers again or move the checkout", .path.display())]
    Unreachable {
        /// Which account.
        account: String,
        /// Which program.
        path: PathBuf,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
    /// The server did not come up.
    #[error("the server on port {port} did not become ready within {seconds} s; the end of its log:\n{log}")]
    NotReady {
        /// Its port.
        port: u16,
        /// How long.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// The system.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

impl ThrowawayError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
