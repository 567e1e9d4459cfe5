//! What both stories are played with: a relay process in a folder of its own, sessions on the servers, claims that are checked.
//! The relay ends with its stage, however that ends.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::cli::status;
use crate::throwaway::Server;
use crate::wire::Session;
use crate::wire::sql::{SqlClient, connect};

use super::DemoError;
use super::screen::{proven, say, sql, table};

/// A condition of the story is given up after this.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// So long a commit must wait before the story believes that it waits.
const WAITING: Duration = Duration::from_secs(2);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// The relay.
pub(super) struct Relay {
    folder: tempfile::TempDir,
    http: SocketAddr,
    child: Option<Child>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Relay {
    /// Not started yet.
    pub(super) fn new() -> Result<Self, DemoError> {
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = tempfile::Builder::new().prefix("walrelay-demo-").tempdir()?;
        Ok(Self { folder, http, child: None })
    }

    pub(super) fn http(&self) -> SocketAddr {
        self.http
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.folder.path().join("walrelay.toml")
    }

    /// Writes the configuration and shows it.
    pub(super) fn configure(&self, text: &str) -> Result<(), DemoError> {
        for line in text.lines().filter(|line| !line.is_empty()) {
            say(&format!("  {line}"));
        }
        Ok(fs::write(self.config_path(), text)?)
    }

    pub(super) fn start(&mut self) -> Result<(), DemoError> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("walrelay.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--config"])
            .arg(self.config_path())
            // Whoever tries the demo may have WALRELAY__… set for servers of their own.
            .env_clear()
            // What a kill -9 leaves of its temporary folder goes with the stage.
            .env("TMPDIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl is async-signal-safe and touches only the new process: it ends with the demo, however that ends.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    async fn state(&self) -> String {
        let answer = status::get(self.http, "/status").await.unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        status["pipelines"][0]["state"].as_str().unwrap_or("").to_owned()
    }

    pub(super) async fn until_it_streams(&self) -> Result<(), DemoError> {
        self.until("the relay streams", async || Ok(self.state().await == "streaming")).await
    }

    pub(super) async fn until(
        &self,
        what: &str,
        is_met: impl AsyncFn() -> Result<bool, DemoError>,
    ) -> Result<(), DemoError> {
        let began = Instant::now();
        while !is_met().await? {
            if began.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.folder.path().join("walrelay.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(10)..].join("\n");
                return Err(DemoError::Unexpected(format!(
                    "{what}: not within {PATIENCE:?}; the relay's log:\n{tail}"
                )));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Lists the pipeline in `synchronous_standby_names` and shows what the primary makes of it; the session's commits wait for
    /// it from then on.
    pub(super) async fn become_synchronous(&self, primary: &SqlClient, pipeline: &str) -> Result<(), DemoError> {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ({pipeline})'");
        for statement in [set.as_str(), "SELECT pg_reload_conf()"] {
            sql("primary", statement);
            primary.batch_execute(statement).await?;
        }
        let columns = ["application_name", "state", "sync_state", "flush_lsn", "replay_lsn"];
        let query =
            format!("SELECT {} FROM pg_stat_replication WHERE application_name = '{pipeline}'", columns.join(", "));
        let is_sync = async || Ok(rows(primary, &query).await?.first().is_some_and(|row| row[2] == "sync"));
        self.until(&format!("{pipeline} is synchronous"), is_sync).await?;
        sql("primary", "SELECT … FROM pg_stat_replication");
        let mut shown = vec![columns.map(str::to_owned).to_vec()];
        shown.extend(rows(primary, &query).await?);
        table(&shown);
        sql("primary", "SET synchronous_commit = remote_apply");
        Ok(primary.batch_execute("SET synchronous_commit = remote_apply").await?)
    }
}

/// A commit that waits for somebody who is away.
pub(super) struct WaitingCommit {
    commit: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
    began: Instant,
}

impl WaitingCommit {
    /// Begins the statement in a session of its own, and sees that it does not return.
    pub(super) async fn begin(server: &Server, statement: &str) -> Result<Self, DemoError> {
        sql("primary", statement);
        let writer = session(server, "shop").await?;
        let began = Instant::now();
        let statement = format!("SET synchronous_commit = remote_apply; {statement}");
        let mut commit = tokio::spawn(async move { writer.batch_execute(&statement).await });
        if timeout(WAITING, &mut commit).await.is_ok() {
            return Err(DemoError::Unexpected("the commit did not wait".to_owned()));
        }
        proven(&format!("after {} s the commit still waits: the primary does not pretend", WAITING.as_secs()));
        Ok(Self { commit, began })
    }

    /// Waits for its return; how long it took from its begin.
    pub(super) async fn returns(self) -> Result<Duration, DemoError> {
        let ended = timeout(PATIENCE, self.commit).await;
        ended
            .map_err(|_| DemoError::Unexpected("the commit did not return when all were back".to_owned()))?
            .map_err(|error| DemoError::Unexpected(error.to_string()))??;
        Ok(self.began.elapsed())
    }
}

/// The middle one.
pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

pub(super) async fn session(server: &Server, database: &str) -> Result<SqlClient, DemoError> {
    Ok(connect(&server.server_url(database)?, &Session::new("walrelay demo").with("synchronous_commit", "local"))
        .await?)
}

pub(super) async fn rows(client: &SqlClient, query: &str) -> Result<Vec<Vec<String>>, DemoError> {
    let messages = client.simple_query(query).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).unwrap_or("").to_owned()).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

pub(super) async fn text(client: &SqlClient, query: &str) -> Result<String, DemoError> {
    Ok(rows(client, query).await?.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_default())
}

pub(super) fn expect(claim: &str, found: &str, expected: &str) -> Result<(), DemoError> {
    if found == expected {
        return Ok(());
    }
    Err(DemoError::Unexpected(format!("{claim}: found {found} instead of {expected}")))
}
