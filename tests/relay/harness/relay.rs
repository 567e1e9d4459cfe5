//! The walrelay process under test: started with a configuration text, asked over HTTP, killed when dropped.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walrelay::throwaway::free_port;

use super::eventually;

/// A running relay.
pub struct Relay {
    folder: tempfile::TempDir,
    port: u16,
    variables: Vec<(String, String)>,
    child: Child,
}

impl Relay {
    /// Starts `walrelay run` with this configuration and an HTTP listener of its own; waits until it listens.
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, &[]).await
    }

    /// With variables in its environment.
    pub async fn start_with(config: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("walrelay-test-").tempdir().unwrap();
        let port = free_port().unwrap();
        let spool = folder.path().join("spool");
        let head =
            if config.contains("spool_dir") { String::new() } else { format!("spool_dir = \"{}\"\n", spool.display()) };
        let text = format!("{head}{}\n[http]\nlisten = \"127.0.0.1:{port}\"\n", config);
        fs::write(folder.path().join("walrelay.toml"), text).unwrap();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = spawn(&folder, &variables);
        let mut relay = Self { folder, port, variables, child };
        relay.wait_listening().await;
        relay
    }

    async fn wait_listening(&mut self) {
        let port = self.port;
        let ended = eventually("walrelay listens", || {
            let ended = self.child.try_wait().unwrap();
            async move { TcpStream::connect(("127.0.0.1", port)).await.map(|_| None).ok().or(ended.map(Some)) }
        })
        .await;
        if let Some(status) = ended {
            panic!("walrelay ended with {status}:\n{}", self.log());
        }
    }

    /// Starts it again with the same configuration and variables, after `kill9` or a stop.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.variables);
        self.wait_listening().await;
    }

    /// Replaces the configuration file, keeping the listener and the spool folder.
    pub fn rewrite_config(&self, config: &str) {
        let spool = self.folder.path().join("spool");
        let text =
            format!("spool_dir = \"{}\"\n{}\n[http]\nlisten = \"127.0.0.1:{}\"\n", spool.display(), config, self.port);
        fs::write(self.config_path(), text).unwrap();
    }

    pub fn config_path(&self) -> std::path::PathBuf {
        self.folder.path().join("walrelay.toml")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// One GET: status code and body; code 0 when it does not answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)).await else { return (0, String::new()) };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        if stream.write_all(request.as_bytes()).await.is_err() || stream.read_to_string(&mut answer).await.is_err() {
            return (0, String::new());
        }
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (code, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
    }

    /// The report of one pipeline, if the relay answers.
    pub async fn report(&self, name: &str) -> Option<Value> {
        let (_, body) = self.get("/status").await;
        let status: Value = serde_json::from_str(&body).ok()?;
        status["pipelines"].as_array()?.iter().find(|pipeline| pipeline["name"] == name).cloned()
    }

    /// Waits for a state of `standby1`.
    pub async fn wait_state(&self, state: &str) -> Value {
        self.wait("standby1", &format!("state {state}"), |report| report["state"] == state).await
    }

    /// Waits for a condition on a pipeline's report.
    pub async fn wait(&self, name: &str, what: &str, is_met: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        let waiting = eventually(what, || async {
            let report = self.report(name).await?;
            *last.borrow_mut() = report.clone();
            is_met(&report).then_some(report)
        });
        match tokio::time::timeout(super::PATIENCE - std::time::Duration::from_secs(1), waiting).await {
            Ok(report) => report,
            Err(_) => panic!("waited in vain for {what}; last report: {}\nlog:\n{}", last.borrow(), self.log()),
        }
    }

    /// A refusal: state `failed`, with all these parts in `last_error`.
    pub async fn fails_with(&self, parts: &[&str]) -> String {
        let is_told = |report: &Value| {
            let error = report["last_error"].as_str().unwrap_or_default();
            report["state"] == "failed" && parts.iter().all(|part| error.contains(part))
        };
        let report = self.wait("standby1", &format!("failed with {parts:?}"), is_told).await;
        report["last_error"].as_str().unwrap_or_default().to_owned()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is our child and not yet reaped.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// A crash.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and how it ended.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        eventually("walrelay stops", || std::future::ready(self.child.try_wait().unwrap())).await
    }
}

fn spawn(folder: &tempfile::TempDir, variables: &[(String, String)]) -> Child {
    let log = File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_walrelay"))
        .args(["run", "--config"])
        .arg(folder.path().join("walrelay.toml"))
        .env("WALRELAY__LOG__LEVEL", "debug,tokio_postgres=info,hyper=info")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the relay's log, its end:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}
