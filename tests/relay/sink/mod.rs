//! The Postgres sink alone, driven with streams captured from a real server (`pg_logical_slot_get_binary_changes`).

mod beside;
mod depth;
mod faults;
mod flushing;
mod guard;
mod keys;
mod long_reader;
mod plans;
mod prefetch;
mod random_schemas;
mod rows;
mod setwise;
mod stalled;
mod types;

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};
use walrelay::config::{APPLY_DEPTH, ServerUrl};
use walrelay::decode::{Context, Message, decode};
use walrelay::model::{
    Body, Copied, Fallbacks, Heartbeat, Lsn, PipelineName, Prefetching, Progress, QualifiedName, SlotName, Transaction,
};
use walrelay::sink::postgres::{Opening, PostgresSink, TableFilter, open_session, store};
use walrelay::sink::worker::{Outcome, Worker};
use walrelay::sink::{AnySink, Batch, Commit, Receipt, SinkError};
use walrelay::snapshot::{Agreement, agreement};
use walrelay::wire::sql::SqlClient;

use super::harness::{Pair, client, major_versions, oldest_and_newest};

/// What a replication session sets, so that values are printed alike everywhere.
const FORMS: &str = "SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET timezone = 'UTC'; \
    SET lc_monetary = 'C'; SET search_path = ''";

/// Of the tests' own sessions.
const SEARCH_PATH: &str = "SET search_path = public, odd";

/// Every version with values as text, the oldest and the newest in binary form too.
fn forms() -> impl Iterator<Item = (u32, bool)> {
    let as_text = major_versions().into_iter().map(|major| (major, false));
    as_text.chain(oldest_and_newest().into_iter().map(|major| (major, true)))
}

/// A primary and a standby with a sink between them, and no relay.
pub struct Replay {
    primary: SqlClient,
    standby: SqlClient,
    primary_url: ServerUrl,
    standby_url: ServerUrl,
    pipeline: PipelineName,
    sink: Option<PostgresSink>,
    is_read_only: bool,
    is_binary: bool,
    copied: Copied,
    apply_depth: usize,
    apply_connections: usize,
    prefetch_connections: usize,
    prefetching: Prefetching,
    fallbacks: Fallbacks,
    /// Whether transactions tell how many rows they have: one of a single row, alone in its batch, is then written as it is.
    counts_rows: bool,
    _pair: Pair,
}

impl Replay {
    /// Fresh servers; the schema is made on both, then publication and slot.
    async fn new(major: u32, schema: &str) -> Self {
        Self::unlike(Pair::start(major).await, schema, schema).await
    }

    /// With another schema on the standby.
    async fn unlike(pair: Pair, primary_schema: &str, standby_schema: &str) -> Self {
        let (primary, standby) = (client(&pair.primary, "shop").await, client(&pair.standby, "shop").await);
        for client in [&primary, &standby] {
            client.batch_execute(SEARCH_PATH).await.unwrap();
        }
        primary.batch_execute(primary_schema).await.unwrap();
        standby.batch_execute(standby_schema).await.unwrap();
        primary.batch_execute("CREATE PUBLICATION p FOR ALL TABLES").await.unwrap();
        primary.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
        Self {
            primary,
            standby,
            primary_url: pair.primary.server_url("shop").unwrap(),
            standby_url: pair.standby.server_url("shop").unwrap(),
            pipeline: PipelineName::new("standby1").unwrap(),
            sink: None,
            is_read_only: false,
            is_binary: false,
            copied: Copied::default(),
            apply_depth: APPLY_DEPTH,
            apply_connections: 1,
            prefetch_connections: 0,
            prefetching: Prefetching::default(),
            fallbacks: Fallbacks::default(),
            counts_rows: false,
            _pair: pair,
        }
    }

    /// Opens the sink; makes the progress row at first.
    async fn open(&mut self) -> Result<(), SinkError> {
        let mut control = open_session(&self.standby_url, &self.pipeline, "control").await?;
        store::ensure_store(&mut control).await?;
        if store::durable_progress(&mut control, &self.pipeline).await?.is_none() {
            let progress = Progress {
                system_identifier: "7".to_owned(),
                timeline: 1,
                database: "shop".to_owned(),
                slot: SlotName::new("s").unwrap(),
                lsn: Lsn(1),
                commit_time: None,
            };
            store::write_first_progress(&mut control, &self.pipeline, &progress).await?;
        }
        let binary = if self.is_binary { Some(self.agreement().await.types) } else { None };
        let opening = Opening {
            pipeline: self.pipeline.clone(),
            filter: TableFilter::All,
            guard_for: self.is_read_only.then(|| self.primary_url.clone()),
            copied: self.copied.clone(),
            apply_depth: self.apply_depth,
            apply_connections: self.apply_connections,
            prefetch_connections: self.prefetch_connections,
            prefetching: self.prefetching.clone(),
            binary,
        };
        self.sink = PostgresSink::open(&self.standby_url, opening, Heartbeat::default()).await?;
        if let Some(sink) = &mut self.sink {
            sink.count_fallbacks_in(self.fallbacks.clone());
        }
        Ok(())
    }

    /// What both servers say of the types of their columns now.
    async fn agreement(&self) -> Agreement {
        let published = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = 'p'";
        let rows = self.primary.query(published, &[]).await.unwrap();
        let names: Vec<QualifiedName> =
            rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
        agreement(&self.primary, (&self.standby_url, &self.pipeline), &names).await.unwrap()
    }

    /// From here on values come in binary form; all types must be alike.
    async fn in_binary(mut self) -> Self {
        self.is_binary = true;
        assert_eq!(self.agreement().await.differing, [""; 0]);
        self
    }

    /// The same where that is wanted.
    async fn in_form(self, is_binary: bool) -> Self {
        if is_binary { self.in_binary().await } else { self }
    }

    /// Everything committed since the last capture.
    async fn capture(&self) -> Vec<Transaction> {
        let binary = if self.is_binary { ", 'binary', 'true'" } else { "" };
        let sql = format!(
            "SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', \
             'publication_names', 'p'{binary})"
        );
        self.primary.batch_execute(FORMS).await.unwrap();
        let messages = self.primary.query(&sql, &[]).await.unwrap();
        self.primary.batch_execute(&format!("RESET ALL; {SEARCH_PATH}")).await.unwrap();
        let mut transactions = Vec::new();
        let (mut chunk, mut rows) = (BytesMut::new(), 0);
        for row in &messages {
            let message: &[u8] = row.get(0);
            match decode(message, Context::default()).unwrap() {
                Message::Begin { .. } => {
                    chunk.clear();
                    rows = 0;
                }
                Message::Commit { commit_lsn, end_lsn, commit_time } => transactions.push(Transaction {
                    xid: 1,
                    commit_lsn,
                    end_lsn,
                    commit_time,
                    origin: None,
                    streamed: false,
                    taken_back: 0,
                    rows: if self.counts_rows { rows } else { 0 },
                    size_bytes: chunk.len() as u64,
                    body: Body::Memory(VecDeque::from([chunk.split().freeze()])),
                    reservation: None,
                }),
                other => {
                    let is_row =
                        matches!(other, Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. });
                    rows += u64::from(is_row);
                    chunk.put_u8(b'd');
                    chunk.put_u32(4 + 25 + message.len() as u32);
                    chunk.put_u8(b'w');
                    chunk.put_bytes(0, 24);
                    chunk.put_slice(message);
                }
            }
        }
        transactions
    }

    /// Applies these as one batch; a sink that failed is opened again the next time.
    async fn apply(&mut self, transactions: Vec<Transaction>) -> Result<Receipt, SinkError> {
        if self.sink.is_none() {
            self.open().await?;
        }
        let mut sink = self.sink.take().unwrap();
        let position = transactions.last().map_or(sink.position(), |transaction| transaction.end_lsn);
        let receipt = sink.apply(Batch { transactions, position, commit: Commit::Durable, ahead: None }).await?;
        assert_eq!((receipt.applied.0, receipt.durable.unwrap().0, sink.position()), (position, position, position));
        self.sink = Some(sink);
        Ok(receipt)
    }

    /// A worker with the sink, opened anew.
    async fn worker(&mut self) -> Worker {
        self.open().await.unwrap();
        Worker::new(AnySink::Postgres(Box::new(self.sink.take().unwrap())))
    }

    /// Applies everything committed since the last capture.
    async fn relay(&mut self) -> Result<Receipt, SinkError> {
        let transactions = self.capture().await;
        self.apply(transactions).await
    }

    /// The same, and it must fail with a text that holds all these parts.
    async fn fails(&mut self, parts: &[&str]) -> SinkError {
        let error = self.relay().await.unwrap_err();
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "\"{part}\" is not in: {text}");
        }
        error
    }

    async fn on_primary(&self, sql: &str) {
        self.primary.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn on_standby(&self, sql: &str) {
        self.standby.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn on_both(&self, sql: &str) {
        self.on_primary(sql).await;
        self.on_standby(sql).await;
    }

    /// Asserts that all was written as sets, at the first try, but for rows of these tables, of which none can be made.
    fn all_went_as_sets(&self, but: &[&str], what: &str) {
        assert_eq!(self.fallbacks.counts(), [], "{what}");
        let mut in_order = self.fallbacks.rows_in_order();
        in_order.retain(|(table, _)| !but.contains(&table.as_str()));
        assert_eq!(in_order, [], "{what}");
    }

    /// Rows on the standby as text, ordered.
    async fn found(&self, query: &str) -> Vec<String> {
        texts(&self.standby, query).await
    }

    /// Asserts that both sides answer alike, and gives the number of rows.
    async fn equal(&self, query: &str) -> usize {
        let ours = texts(&self.primary, query).await;
        assert_eq!(ours, self.found(query).await, "{query}");
        ours.len()
    }
}

/// What comes next of batches or flushes.
async fn outcome(worker: &mut Worker) -> Result<Outcome, SinkError> {
    loop {
        match worker.outcome().await? {
            Outcome::Sent => {}
            other => return Ok(other),
        }
    }
}

async fn texts(client: &SqlClient, query: &str) -> Vec<String> {
    let rows = client.query(&format!("SELECT q::text FROM ({query}) q ORDER BY 1"), &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
