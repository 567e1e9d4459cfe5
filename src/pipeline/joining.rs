//! Tables that come into a running feed, or are to be sent again: noticed while it streams. Without an initial copy they are published at once; with one,
//! the attempt ends, and the next one publishes and copies them before it streams on. Copies nothing itself.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use crate::backoff::every;
use crate::config;
use crate::model::{QualifiedName, listed};
use crate::source::{
    Additions, SourceError, ensure_publication, joining_tables, lists_standby, synchronous_standby_names,
};
use crate::wire::sql::{self, SqlClient};

use super::monitor::primary_session;
use super::{PipelineError, Settings};

/// How often it is looked for new tables.
const EVERY: Duration = Duration::from_secs(5);
/// An answer that takes longer is given up, and the session with it.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Role of the session of a `walrelay resync` that waits for us.
pub(super) const RESYNC_ROLE: &str = "resync";

/// What an attempt of this pipeline was ended for: none is ended twice for the same, as long as it is there.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    tables: Mutex<BTreeSet<QualifiedName>>,
    /// The last request: process id and begin of its session.
    request: Mutex<Option<String>>,
}

impl Noticed {
    /// Those that are new to it. One that is no longer found has joined or is gone, and may come again.
    fn take_new(&self, found: Vec<QualifiedName>) -> Vec<QualifiedName> {
        let mut noticed = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.retain(|table| found.contains(table));
        found.into_iter().filter(|table| noticed.insert(table.clone())).collect()
    }

    /// An attempt found these published: one that is found missing later has come anew.
    #[cfg(feature = "kafka")]
    pub(super) fn joined(&self, published: &[QualifiedName]) {
        let mut noticed = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.retain(|table| !published.contains(table));
    }

    /// Whether there is a request, and it is another than the last.
    fn is_new(&self, request: Option<String>) -> bool {
        let mut last = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        request.is_some_and(|request| last.replace(request.clone()) != Some(request))
    }
}

/// Runs until tables have come that must be copied, or somebody asks for tables again. Only a feed takes them up: a standby's tables are made by a person.
pub(super) async fn watch(settings: &Settings, noticed: &Noticed) -> PipelineError {
    let is_feed = matches!(settings.pipeline.sink, config::Sink::Kafka(_));
    if !is_feed {
        return std::future::pending().await;
    }
    let mut ticks = every(EVERY);
    let mut session = None;
    let mut is_told = false;
    loop {
        ticks.tick().await;
        match timeout(ANSWER_LIMIT, look(settings, &mut session, &mut is_told)).await {
            Ok(Ok((found, request))) => {
                if noticed.is_new(request) {
                    return PipelineError::NotYet("tables that are asked for again".to_owned());
                }
                let new = noticed.take_new(found);
                if !new.is_empty() {
                    return PipelineError::NotYet(format!("the copy of {}", listed(&new)));
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the primary's tables cannot be listed");
                session = None;
            }
            Err(_) => session = None,
        }
    }
}

/// The tables that are to be copied, and the session of a request, if one waits.
async fn look(
    settings: &Settings,
    session: &mut Option<SqlClient>,
    is_told: &mut bool,
) -> Result<(Vec<QualifiedName>, Option<String>), SourceError> {
    let pipeline = &settings.pipeline;
    let sql = match session {
        Some(sql) => sql,
        None => {
            let opened = sql::connect(&settings.primary, &primary_session(&pipeline.name, "tables")).await;
            session.insert(opened.map_err(SourceError::wire("opening a session"))?)
        }
    };
    let query = "SELECT pid::text || ' ' || backend_start::text FROM pg_catalog.pg_stat_activity \
                 WHERE application_name = $1 AND datname = pg_catalog.current_database() AND usename = current_user \
                 ORDER BY backend_start DESC LIMIT 1";
    let asking = pipeline.name.session_name(RESYNC_ROLE);
    let request = sql.query_opt(query, &[&asking]).await.map_err(SourceError::sql("looking for requests"))?;
    let request = request.map(|row| row.get(0));
    let found = if pipeline.publication.is_some() { Vec::new() } else { new_tables(settings, sql, is_told).await? };
    Ok((found, request))
}

/// The tables that are to be copied; what needs no copy is published here.
async fn new_tables(
    settings: &Settings,
    sql: &SqlClient,
    is_told: &mut bool,
) -> Result<Vec<QualifiedName>, SourceError> {
    let pipeline = &settings.pipeline;
    let name = pipeline.publication_name();
    let found = joining_tables(sql, &name, &pipeline.tables).await?;
    if found.is_empty() {
        return Ok(found);
    }
    if !pipeline.initial_copy {
        ensure_publication(sql, &name, true, &pipeline.tables, &Additions::IfAllowed).await?;
        tracing::info!(tables = listed(&found), "joined the feed, with what is written from now on");
        return Ok(Vec::new());
    }
    // The snapshot of their copy waits for running transactions, and those would wait for us.
    let names = synchronous_standby_names(sql).await?;
    if !lists_standby(&names, pipeline.name.as_str()) {
        return Ok(found);
    }
    if !std::mem::replace(is_told, true) {
        tracing::warn!(
            tables = listed(&found),
            "new tables are copied once this pipeline does not stand in synchronous_standby_names"
        );
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_noticed_once() {
        let noticed = Noticed::default();
        for (request, expected) in
            [(None, false), (Some("1 a"), true), (Some("1 a"), false), (None, false), (Some("2 a"), true)]
        {
            assert_eq!(noticed.is_new(request.map(str::to_owned)), expected, "{request:?}");
        }
    }

    #[test]
    fn a_table_is_noticed_once() {
        let table = |name: &str| QualifiedName::new("public", name);
        let noticed = Noticed::default();
        assert_eq!(noticed.take_new(vec![table("a")]), [table("a")]);
        assert_eq!(noticed.take_new(vec![table("a"), table("b")]), [table("b")]);
        assert_eq!(noticed.take_new(vec![table("a")]), []);
        // It joined, was dropped, and was made again.
        assert_eq!(noticed.take_new(vec![]), []);
        assert_eq!(noticed.take_new(vec![table("a")]), [table("a")]);
    }
}
