//! One throw-away server: initdb, start, stop, kill -9, start again; gone with its folder when dropped.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::{Environment, ServerUrl, parse_url};
use crate::wire::{Connection, Session};

use super::process::{self, last_lines};
use super::{Account, Programs, ThrowawayError};

/// How long a server may take to answer; crash recovery counts.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// What a folder's name may not hold as the value of a URL's parameter in a quoted text.
const SPELT_OUT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Settings beside those that every server gets.
    pub settings: Vec<(String, String)>,
    /// The whole of pg_hba.conf; by default everybody who reaches the server is trusted.
    pub hba: Option<String>,
    /// Reached only through a Unix socket in a folder that nobody else may enter; else by everybody on this machine.
    pub is_private: bool,
    /// More arguments of initdb, e.g. another encoding.
    pub initdb: Vec<String>,
    /// Keep the folder when dropped.
    pub keep: bool,
}

impl Options {
    /// For a server that stands while its user looks around: a superuser of it may run programs as its account.
    pub fn private() -> Self {
        Self { is_private: true, ..Self::default() }
    }

    /// With one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running server (or a stopped one, between `stop` and `start_again`).
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    account: Account,
    options: Options,
    /// `None` once kept.
    folder: Option<tempfile::TempDir>,
    path: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Makes a data folder and starts the server. Call it on a thread that lives as long as the server: the kernel ends the
    /// server with the thread that started it, so that nothing stays behind a killed test.
    pub async fn start(programs: &Programs, options: Options) -> Result<Self, ThrowawayError> {
        let account = Account::choose()?;
        let mut builder = tempfile::Builder::new();
        if options.is_private {
            builder.permissions(Permissions::from_mode(0o700));
        }
        let folder = builder.prefix("walrelay-server-").tempdir();
        let folder = folder.map_err(ThrowawayError::io("making a folder for a server"))?;
        account.own(folder.path()).map_err(ThrowawayError::io("giving the server's folder to its account"))?;
        let path = folder.path().to_path_buf();
        let mut server = Self {
            programs: programs.clone(),
            account,
            options,
            folder: Some(folder),
            path,
            port: free_port()?,
            child: None,
        };
        server.initdb()?;
        server.start_again().await?;
        Ok(server)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.path(program));
        command.env("LC_ALL", "C.UTF-8").env_remove("PGDATA").current_dir(&self.path).stdin(Stdio::null());
        if self.programs.library_folder().join("postgresql").is_dir() {
            command.env("LD_LIBRARY_PATH", self.programs.library_folder());
        }
        self.account.apply(&mut command);
        command
    }

    fn initdb(&self) -> Result<(), ThrowawayError> {
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.data_dir()).args(["-U", "postgres", "-A", "trust", "--no-sync"]);
        if self.options.initdb.is_empty() {
            command.args(["-E", "UTF8", "--locale=C.UTF-8"]);
        }
        command.args(&self.options.initdb);
        let output = command.output().map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => ThrowawayError::Unreachable {
                account: self.account.name().to_owned(),
                path: self.programs.path("initdb"),
            },
            _ => ThrowawayError::io("running initdb")(error),
        })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(ThrowawayError::Program { program: "initdb".to_owned(), output });
        }
        self.write_settings()?;
        let hba = self.options.hba.as_deref().unwrap_or("local all all trust\nhost all all all trust\n");
        self.write("pg_hba.conf", hba)
    }

    /// Into a file, not onto the command line, so that ALTER SYSTEM can change them.
    fn write_settings(&self) -> Result<(), ThrowawayError> {
        let usual = [
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "60"),
        ];
        let given = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let path = self.data_dir().join("postgresql.conf");
        let mut text = fs::read_to_string(path).map_err(ThrowawayError::io("reading postgresql.conf"))?;
        for (name, value) in usual.into_iter().chain(given) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        self.write("postgresql.conf", &text)
    }

    /// Writes a file into the data folder, owned by the server's account.
    pub fn write(&self, name: &str, content: &str) -> Result<(), ThrowawayError> {
        let path = self.data_dir().join(name);
        fs::write(&path, content)
            .and_then(|()| self.account.own(&path))
            .and_then(|()| {
                // A server refuses a key that others may read.
                fs::set_permissions(&path, Permissions::from_mode(0o600))
            })
            .map_err(ThrowawayError::io(format!("writing {}", path.display())))
    }

    /// Starts a stopped server on the same data and port, and waits until it answers.
    pub async fn start_again(&mut self) -> Result<(), ThrowawayError> {
        let began = Instant::now();
        loop {
            if self.child.is_none() {
                self.child = Some(self.spawn()?);
            }
            if self.answers().await {
                return Ok(());
            }
            // After a kill -9 the children of the old server may still hold its memory: the new one gives up at once.
            if self.child.as_mut().and_then(|child| child.try_wait().ok()).flatten().is_some() {
                self.child = None;
            }
            if began.elapsed() > READY_LIMIT {
                return Err(ThrowawayError::NotReady {
                    port: self.port,
                    seconds: READY_LIMIT.as_secs(),
                    log: self.log_tail(30),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn spawn(&self) -> Result<Child, ThrowawayError> {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(ThrowawayError::io("opening the server's log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir()).stdout(Stdio::null()).stderr(log).process_group(0);
        let port = self.port.to_string();
        let socket_folder = self.path.display().to_string();
        let addresses = if self.options.is_private { "" } else { "127.0.0.1" };
        let fixed =
            [("port", port.as_str()), ("listen_addresses", addresses), ("unix_socket_directories", &socket_folder)];
        for (name, value) in fixed {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // SAFETY: prctl is async-signal-safe and touches only the new process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT);
                Ok(())
            });
        }
        command.spawn().map_err(ThrowawayError::io("starting postgres"))
    }

    async fn answers(&self) -> bool {
        let Ok(url) = self.server_url("postgres") else { return false };
        match Connection::connect(&url, &Session::new("walrelay throwaway")).await {
            Ok(_) => true,
            // Only a server that is up can refuse somebody.
            Err(error) => error.code().is_some_and(|code| code.starts_with("28")),
        }
    }

    /// The superuser's URL of a database, over TCP unless the server is private.
    pub fn url(&self, database: &str) -> String {
        self.url_for("postgres", database)
    }

    /// A role's URL of a database, over TCP unless the server is private.
    pub fn url_for(&self, role: &str, database: &str) -> String {
        if !self.options.is_private {
            return format!("postgres://{role}@127.0.0.1:{}/{database}", self.port);
        }
        let folder = self.path.display().to_string();
        let folder = utf8_percent_encode(&folder, SPELT_OUT);
        format!("postgres://{role}@/{database}?host={folder}&port={}", self.port)
    }

    /// The superuser's URL, parsed.
    pub fn server_url(&self, database: &str) -> Result<ServerUrl, ThrowawayError> {
        parse_url(&self.url(database), &Environment::default())
            .map_err(|rule| ThrowawayError::Program { program: "url".to_owned(), output: rule })
    }

    /// Its TCP port, which is part of the Unix socket's name too.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The folder of its Unix socket, and of everything else of it.
    pub fn folder(&self) -> &Path {
        &self.path
    }

    fn log_path(&self) -> PathBuf {
        self.path.join("server.log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&log), lines)
    }

    /// The postmaster's process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A signal to the postmaster: SIGTERM smart, SIGINT fast, SIGQUIT immediate, SIGHUP reload.
    pub fn signal(&self, signal: i32) {
        process::signal(self.child.as_ref(), signal);
    }

    /// Stops by a signal and waits for the end.
    pub fn stop(&mut self, signal: i32) {
        self.signal(signal);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// The fast stop of `pg_ctl stop`.
    pub fn stop_fast(&mut self) {
        self.stop(libc::SIGINT);
    }

    /// `kill -9` of the postmaster and everything it started: a crash.
    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = children_of(child.id());
        let _ = child.kill();
        for process_id in children {
            // SAFETY: as above; a process that has ended meanwhile is no harm, ids are not reused this fast.
            unsafe { libc::kill(process_id as i32, libc::SIGKILL) };
        }
        let _ = child.wait();
    }

    /// Keeps the folder when the server is dropped, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
        self.path.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.options.keep {
            self.keep();
        }
        self.stop(libc::SIGQUIT);
    }
}

/// The direct children of a process, from /proc.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |id: &u32| {
        let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // pid (name) state parent: the name may hold blanks and brackets.
        let after_name = status.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

/// Below the ports that the kernel gives to outgoing connections: a client that retries while its server is down could be given the
/// server's own port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Who was given a port may take its time to bind it, or gives it up for a moment: it is nobody else's in this process.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that was free a moment ago, and was never given before.
pub fn free_port() -> Result<u16, ThrowawayError> {
    let is_new = |port: u16| GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && is_new(*port);
    let mut guesses = std::iter::repeat_with(|| rand::random_range(PORTS)).take(1000);
    let none = || std::io::Error::new(std::io::ErrorKind::AddrInUse, format!("none in {PORTS:?}"));
    guesses.find(is_free).ok_or_else(none).map_err(ThrowawayError::io("looking for a free port"))
}
