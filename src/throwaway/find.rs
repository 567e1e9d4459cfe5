//! Finds PostgreSQL's programs (PG_BIN, PATH, Debian's folders, the project's own `.servers`) those of a
//! Kafka broker (KAFKA_LIBS, `.servers`), and those of Kafka Connect with Debezium (`.servers`).

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Environment;

use super::ThrowawayError;

/// Where Debian keeps versions side by side.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    fn in_folder(folder: &Path) -> Option<Self> {
        let is_whole = ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file());
        // The real path: a folder above a link may be closed to the account that runs the server.
        is_whole.then(|| Self { folder: fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf()) })
    }

    /// The path of one program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// The folder of its libraries, beside `bin`.
    pub fn library_folder(&self) -> PathBuf {
        self.folder.parent().unwrap_or(&self.folder).join("lib")
    }
}

fn debian_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let version =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    folders.sort_by_key(|path| std::cmp::Reverse(version(path)));
    folders.into_iter().map(|folder| folder.join("bin")).collect()
}

/// Any version: PG_BIN, PATH, Debian's newest, then `.servers` below `project`.
pub fn find_any(environment: &Environment, project: &Path) -> Result<Programs, ThrowawayError> {
    let mut looked_in: Vec<PathBuf> = environment.get("PG_BIN").map(PathBuf::from).into_iter().collect();
    let is_decided = !looked_in.is_empty();
    if !is_decided {
        looked_in.extend(environment.get("PATH").into_iter().flat_map(std::env::split_paths));
        looked_in.extend(debian_folders());
        looked_in.extend((14..=18).rev().map(|major| project.join(format!(".servers/postgres-{major}/bin"))));
    }
    let found = looked_in.iter().find_map(|folder| Programs::in_folder(folder));
    found.ok_or_else(|| ThrowawayError::NoPrograms { wanted: "server".to_owned(), looked_in })
}

/// One major version: `.servers` below `project`, else Debian's.
pub fn find_major(major: u32, project: &Path) -> Result<Programs, ThrowawayError> {
    let looked_in =
        vec![project.join(format!(".servers/postgres-{major}/bin")), PathBuf::from(format!("{DEBIAN}/{major}/bin"))];
    let found = looked_in.iter().find_map(|folder| Programs::in_folder(folder));
    found.ok_or_else(|| ThrowawayError::NoPrograms { wanted: major.to_string(), looked_in })
}

/// A client program (`psql`, `pgbench`, `pg_recvlogical`): `.servers/tools-18`, PATH, Debian's newest.
pub fn find_tool(program: &str, environment: &Environment, project: &Path) -> Option<PathBuf> {
    let mut folders = vec![project.join(".servers/tools-18/bin")];
    folders.extend(debian_folders());
    folders.extend(environment.get("PATH").into_iter().flat_map(std::env::split_paths));
    folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Where scripts/fetch-kafka puts the broker's jars, below the project.
const KAFKA_LIBS: &str = ".servers/kafka-4.4.0/libs";

/// Java, and the jars of a Kafka broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerPrograms {
    java: PathBuf,
    libs: PathBuf,
}

impl BrokerPrograms {
    /// The Java that runs it.
    pub fn java(&self) -> &Path {
        &self.java
    }

    /// Every jar; Java expands the star.
    pub fn class_path(&self) -> PathBuf {
        self.libs.join("*")
    }
}

/// A Kafka broker: the jars in KAFKA_LIBS (the `libs` folder of a distribution), else `.servers` below `project`; Java in JAVA_HOME,
/// else PATH.
pub fn find_broker(environment: &Environment, project: &Path) -> Result<BrokerPrograms, ThrowawayError> {
    let libs = environment.get("KAFKA_LIBS").map_or_else(|| project.join(KAFKA_LIBS), PathBuf::from);
    let java = find_java(environment)?;
    if libs.is_dir() { Ok(BrokerPrograms { java, libs }) } else { Err(ThrowawayError::NoBroker { libs }) }
}

fn find_java(environment: &Environment) -> Result<PathBuf, ThrowawayError> {
    let folders: Vec<PathBuf> = match environment.get("JAVA_HOME") {
        Some(home) => vec![Path::new(home).join("bin")],
        None => environment.get("PATH").into_iter().flat_map(std::env::split_paths).collect(),
    };
    let found = folders.into_iter().map(|folder| folder.join("java")).find(|path| path.is_file());
    found.ok_or(ThrowawayError::NoJava)
}

/// Where scripts/fetch-debezium puts Kafka Connect and the connector, below the project.
const CONNECT_LIBS: &str = ".servers/connect-4.3.1/libs";
const DEBEZIUM: &str = ".servers/debezium-3.7.0.Final";

/// Java, the jars of Kafka Connect, and the folder of its plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectPrograms {
    java: PathBuf,
    libs: PathBuf,
    plugins: PathBuf,
}

impl ConnectPrograms {
    /// The Java that runs it.
    pub fn java(&self) -> &Path {
        &self.java
    }

    /// Every jar; Java expands the star.
    pub fn class_path(&self) -> PathBuf {
        self.libs.join("*")
    }

    /// `plugin.path`.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }
}

/// Kafka Connect with Debezium's connector for Postgres: `.servers` below `project`; Java in JAVA_HOME, else PATH.
pub fn find_connect(environment: &Environment, project: &Path) -> Result<ConnectPrograms, ThrowawayError> {
    let java = find_java(environment)?;
    let (libs, plugins) = (project.join(CONNECT_LIBS), project.join(DEBEZIUM));
    for folder in [&libs, &plugins] {
        if !folder.is_dir() {
            return Err(ThrowawayError::NoConnect { folder: folder.clone() });
        }
    }
    Ok(ConnectPrograms { java, libs, plugins })
}
