//! The daemon: starts the pipelines of a configuration, keeps them through reloads, drains them on a stop. Each runs and fails
//! apart from the others.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, ConfigError, Environment};
use crate::model::{PipelineName, State};
use crate::pipeline::{self, Running, Settings};
use crate::shutdown::{Wish, Wishes};
use crate::status::Board;
use crate::status::service::Notifier;
use crate::telemetry::LogLevel;

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The HTTP address is taken or not ours.
    #[error("[http] listen = \"{address}\": {source}; choose another address or port, or leave [http] out")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// No signal handlers, no temporary folder.
    #[error("the daemon cannot start: {0}")]
    System(#[from] io::Error),
}

/// What a running daemon holds.
struct Daemon {
    config: Config,
    config_path: Option<PathBuf>,
    environment: Environment,
    spool_dir: PathBuf,
    pipelines: BTreeMap<PipelineName, (Settings, Running)>,
    /// Asked to stop by a reload, and not yet seen to end.
    leaving: Vec<Running>,
    board: Arc<Board>,
    notifier: Notifier,
    log_level: LogLevel,
}

/// Runs until SIGTERM or SIGINT has drained it.
pub async fn run(
    config: Config,
    config_path: Option<&Path>,
    environment: Environment,
    log_level: LogLevel,
) -> Result<(), DaemonError> {
    let mut wishes = Wishes::listen()?;
    // A temporary one is kept for as long as the daemon runs, and removed with it.
    let (spool_dir, _temporary) = match &config.spool_dir {
        Some(folder) => (folder.clone(), None),
        None => match own_spool_dir(&std::env::temp_dir()) {
            Ok(folder) => (folder, None),
            Err(error) => {
                tracing::warn!(%error, "the spool folder of this account cannot be used; a new one is made (spool_dir names another)");
                let folder = tempfile::Builder::new().prefix("walrelay-spool-").tempdir()?;
                (folder.path().to_path_buf(), Some(folder))
            }
        },
    };
    let board = Arc::new(Board::default());
    let stop_http = CancellationToken::new();
    let http = match config.http {
        Some(address) => {
            let listener =
                TcpListener::bind(address).await.map_err(|source| DaemonError::Listen { address, source })?;
            tracing::info!(%address, "listening: /healthz /readyz /metrics /status");
            Some(tokio::spawn(crate::status::serve(listener, Arc::clone(&board), stop_http.clone())))
        }
        None => None,
    };
    let notifier = Notifier::start(&environment_socket(&environment), Arc::clone(&board));
    let mut daemon = Daemon {
        config,
        config_path: config_path.map(Path::to_path_buf),
        environment,
        spool_dir,
        pipelines: BTreeMap::new(),
        leaving: Vec::new(),
        board,
        notifier,
        log_level,
    };
    daemon.start_missing(None);
    daemon.notifier.ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pipelines = daemon.pipelines.len(), "walrelay runs");
    while wishes.next().await == Wish::Reload {
        if daemon.reload_unless_stopped(&mut wishes).await {
            break;
        }
    }
    daemon.stop(&mut wishes).await;
    stop_http.cancel();
    if let Some(http) = http {
        let _ = timeout(Duration::from_secs(1), http).await;
    }
    Ok(())
}

/// `walrelay-spool-UID` among the temporary files: the same at every start, so that what a killed daemon left there is found and removed.
fn own_spool_dir(parent: &Path) -> io::Result<PathBuf> {
    let own_id = std::fs::metadata("/proc/self")?.uid();
    let folder = parent.join(format!("walrelay-spool-{own_id}"));
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Anybody may make a folder of that name there, or a link to one of ours.
    let facts = std::fs::symlink_metadata(&folder)?;
    if !facts.is_dir() || facts.uid() != own_id || facts.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is not a folder that only this account may enter", folder.display())));
    }
    Ok(folder)
}

fn environment_socket(environment: &Environment) -> crate::status::service::Systemd {
    crate::status::service::Systemd {
        notify_socket: environment.get("NOTIFY_SOCKET").map(PathBuf::from),
        watchdog: environment.get("WATCHDOG_USEC").and_then(|text| text.parse().ok()).map(Duration::from_micros),
    }
}

impl Daemon {
    fn settings(&self, pipeline: &config::Pipeline) -> Settings {
        Settings { pipeline: pipeline.clone(), primary: self.config.primary.clone(), spool_dir: self.spool_dir.clone() }
    }

    /// Starts every configured pipeline that does not run, or only the one of this name.
    fn start_missing(&mut self, only: Option<&PipelineName>) {
        for pipeline in &self.config.pipelines {
            let is_meant = only.is_none_or(|name| *name == pipeline.name);
            if is_meant && !self.pipelines.contains_key(&pipeline.name) {
                let settings = self.settings(pipeline);
                let running = pipeline::start(settings.clone());
                self.board.add(running.report.clone());
                self.pipelines.insert(pipeline.name.clone(), (settings, running));
            }
        }
    }

    /// Reloads, and once more for a SIGHUP that comes while pipelines drain: the file may be another since it was read. A stop does
    /// not wait for that; gives whether one was asked for.
    async fn reload_unless_stopped(&mut self, wishes: &mut Wishes) -> bool {
        let mut is_wished = true;
        while std::mem::take(&mut is_wished) {
            let reload = self.reload();
            tokio::pin!(reload);
            loop {
                tokio::select! {
                    () = &mut reload => break,
                    wish = wishes.next() => match wish {
                        Wish::Reload => is_wished = true,
                        Wish::Stop => return true,
                    },
                }
            }
        }
        false
    }

    /// SIGHUP: the log level, pipelines added, removed and changed; a failed one starts again, an unchanged one goes on.
    async fn reload(&mut self) {
        self.notifier.reloading();
        match config::load(self.config_path.as_deref(), &self.environment) {
            Ok(config) => self.take_over(config).await,
            Err(error) => complain(&error),
        }
        self.notifier.ready();
    }

    async fn take_over(&mut self, config: Config) {
        if let Err(error) = self.log_level.set(&config.log.level) {
            tracing::error!(%error, "the log level stays as it was");
        }
        if config.http != self.config.http
            || config.spool_dir != self.config.spool_dir
            || config.log.format != self.config.log.format
        {
            tracing::warn!("[http] listen, spool_dir and log.format change only with a restart");
        }
        self.config = config;
        let wanted: BTreeMap<PipelineName, Settings> =
            self.config.pipelines.iter().map(|pipeline| (pipeline.name.clone(), self.settings(pipeline))).collect();
        let is_to_stop = |name: &PipelineName, settings: &Settings, running: &Running| {
            wanted.get(name) != Some(settings) || running.report.borrow().state == State::Failed
        };
        let leaving: Vec<PipelineName> = self
            .pipelines
            .iter()
            .filter(|(name, (settings, running))| is_to_stop(name, settings, running))
            .map(|(name, _)| name.clone())
            .collect();
        for name in leaving {
            if let Some((_, running)) = self.pipelines.remove(&name) {
                tracing::info!(pipeline = %name, "stopping; its slot and its guards stay");
                running.stop.cancel();
                self.leaving.push(running);
            }
        }
        let deadline = Instant::now() + self.config.shutdown_timeout;
        while !self.leaving.is_empty() {
            let ending = self.leaving.iter_mut().map(|running| Box::pin(end(running, deadline)));
            let (_, place, _) = futures_util::future::select_all(ending).await;
            let running = self.leaving.swap_remove(place);
            let name = running.report.borrow().name.clone();
            self.board.remove(&name);
            // One that drains for long does not hold up the others: commits may wait for those.
            self.start_missing(Some(&name));
        }
        // Behind all that ended: under a new name it may be one of those.
        self.start_missing(None);
        tracing::info!(pipelines = self.pipelines.len(), "the configuration was read again");
    }

    /// Drains all pipelines at once, within the time limit.
    async fn stop(mut self, wishes: &mut Wishes) {
        self.notifier.stopping();
        let limit = self.config.shutdown_timeout;
        let deadline = Instant::now() + limit;
        tracing::info!(limit_seconds = limit.as_secs_f64(), "stopping");
        for (_, running) in self.pipelines.values() {
            running.stop.cancel();
        }
        let all = async {
            let running = self.pipelines.values_mut().map(|(_, running)| running).chain(&mut self.leaving);
            futures_util::future::join_all(running.map(|running| end(running, deadline))).await;
        };
        tokio::select! {
            () = all => {}
            () = until_stop(wishes) => tracing::warn!("asked to stop again: ending at once; what was not confirmed is sent again at the next start"),
        }
    }
}

/// Until SIGTERM or SIGINT; other wishes are too late.
async fn until_stop(wishes: &mut Wishes) {
    while wishes.next().await != Wish::Stop {}
}

async fn end(running: &mut Running, deadline: Instant) {
    let name = running.report.borrow().name.clone();
    // A task that ended must not be asked again: a reload that was cut off may have seen it.
    if !running.task.is_finished() && timeout_at(deadline, &mut running.task).await.is_err() {
        running.task.abort();
        tracing::warn!(
            pipeline = %name,
            "not drained within shutdown_timeout; what was not confirmed is sent again at the next start"
        );
    }
}

fn complain(error: &ConfigError) {
    tracing::error!(%error, "the configuration was not read again; the old one stays");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_spool_folder_of_an_account_is_one_and_nobody_elses() {
        let parent = tempfile::tempdir().unwrap();
        let folder = own_spool_dir(parent.path()).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(own_spool_dir(parent.path()).unwrap(), folder);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(own_spool_dir(parent.path()).is_err());
        std::fs::remove_dir(&folder).unwrap();
        symlink(parent.path(), &folder).unwrap();
        assert!(own_spool_dir(parent.path()).is_err());
    }
}
