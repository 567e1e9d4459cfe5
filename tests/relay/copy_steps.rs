//! The steps of the initial copy one by one, through the library: page ranges under an exported snapshot, attempts that are cut
//! off anywhere, what is being waited for, and the knot with synchronous commits.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walrelay::config::{
    APPLY_DEPTH, BATCH_DELAY, OnExistingRows, Pipeline, PostgresSink, ServerUrl, Sink, TablePattern, TableSet,
};
use walrelay::model::{PipelineName, QualifiedName, Retry, SlotName};
use walrelay::snapshot::store::{self, TableState};
use walrelay::snapshot::{self, Copy, CopyOutcome, CopyProgress, ExportedSnapshot, Imported, Prepared, SnapshotError};
use walrelay::source::{self, Additions, SnapshotUse};
use walrelay::wire::{Connection, Session};

use super::harness::{Pair, Rows, client, eventually, major_versions, try_run, value, values};

/// What a pipeline would hand to the copy.
struct Steps {
    primary: ServerUrl,
    standby: ServerUrl,
    pipeline: Pipeline,
    /// Instead of the managed publication's tables.
    tables: Option<Vec<QualifiedName>>,
    progress: Arc<CopyProgress>,
    cancel: CancellationToken,
}

impl Steps {
    fn new(pair: &Pair) -> Self {
        let standby = pair.standby.server_url("shop").unwrap();
        let pipeline = Pipeline {
            name: PipelineName::new("standby1").unwrap(),
            tables: TableSet { include: vec![TablePattern::new("*.*").unwrap()], exclude: vec![] },
            initial_copy: true,
            copy_workers: 4,
            on_existing_rows: OnExistingRows::Refuse,
            memory_limit_bytes: 64 << 20,
            publication: None,
            slot: None,
            sink: Sink::Postgres(PostgresSink {
                url: standby.clone(),
                read_only: true,
                batch_delay: BATCH_DELAY,
                apply_depth: APPLY_DEPTH,
                apply_connections: 1,
                prefetch_connections: 0,
                allow_fsync_off: false,
                may_be_binary: true,
            }),
        };
        Self {
            primary: pair.primary.server_url("shop").unwrap(),
            standby,
            pipeline,
            tables: None,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// Ranges of 8 MiB, so that small tables are cut too.
    async fn prepare(&self) -> Result<Prepared, SnapshotError> {
        let sql = walrelay::wire::sql::connect(&self.primary, &Session::new("test")).await.unwrap();
        let mut connection = Connection::connect(&self.primary, &Session::replication("test")).await.unwrap();
        let identity = source::identify(&mut connection).await.unwrap();
        let publication = self.pipeline.publication_name();
        let tables = match &self.tables {
            Some(tables) => tables.clone(),
            None => {
                let set = &self.pipeline.tables;
                source::ensure_publication(&sql, &publication, true, set, &Additions::Now).await.unwrap().tables
            }
        };
        let copy = Copy {
            pipeline: &self.pipeline,
            primary: &self.primary,
            sink: &PostgresSink {
                url: self.standby.clone(),
                read_only: true,
                batch_delay: BATCH_DELAY,
                apply_depth: APPLY_DEPTH,
                apply_connections: 1,
                prefetch_connections: 0,
                allow_fsync_off: false,
                may_be_binary: true,
            },
            publication: &publication,
            tables: &tables,
            others: &[],
            identity: &identity,
            smallest_range_pages: 1024,
            progress: Arc::clone(&self.progress),
            cancel: self.cancel.clone(),
        };
        snapshot::prepare(copy).await
    }

    async fn again(&self) -> Result<CopyOutcome, SnapshotError> {
        self.prepare().await?.import_own_snapshot().await?.run().await
    }

    /// A slot as the pipeline would make it, and the connection that keeps its snapshot.
    async fn slot(&self) -> (Connection, ExportedSnapshot) {
        let mut connection = Connection::connect(&self.primary, &Session::replication("test")).await.unwrap();
        let slot = SlotName::new("walrelay_standby1").unwrap();
        let created = source::create_slot(&mut connection, &slot, SnapshotUse::Export, true).await.unwrap();
        (connection, ExportedSnapshot { name: created.snapshot_name.unwrap(), lsn: created.consistent_point })
    }

    async fn waits_for(&self, text: &str) {
        eventually(text, || async { self.progress.waiting_for().filter(|what| what.contains(text)) }).await;
    }
}

const BIG: &str =
    "CREATE TABLE big (id int PRIMARY KEY, t text, n int); CREATE TABLE small (id serial PRIMARY KEY, n int)";
const BIG_ROWS: &str = "INSERT INTO big SELECT i, repeat('x', 500), 0 FROM generate_series(1, 100000) i;
    INSERT INTO small (n) SELECT 0 FROM generate_series(1, 1000)";

/// Updates, deletes and inserts in every part of `big`, until told to stop.
async fn write(pair: &Pair, writer: u32, stop: &CancellationToken) {
    let session = client(&pair.primary, "shop").await;
    let mut round = 0;
    while !stop.is_cancelled() {
        round += 1;
        let (id, new) = (round * 4 + writer, 1_000_000 + round * 4 + writer);
        let sql = format!(
            "BEGIN; UPDATE big SET n = n + 1 WHERE id % 1000 = {} ; DELETE FROM big WHERE id = {id};
             INSERT INTO big VALUES ({new}, 'new', 0); INSERT INTO small (n) VALUES (1); COMMIT",
            (round * 7 + writer) % 1000
        );
        session.batch_execute(&sql).await.unwrap();
    }
}

const CONTENT: [&str; 2] = [
    "SELECT count(*), sum(id), sum(n), md5(string_agg(id || ':' || n, ',' ORDER BY id)) FROM big",
    "SELECT count(*), sum(n) FROM small",
];

/// Imports while a witness is inside the same snapshot; runs; gives what the witness saw.
async fn copy_with_witness(steps: &Steps, prepared: Prepared, pair: &Pair) -> (CopyOutcome, Vec<Rows>) {
    let (connection, exported) = steps.slot().await;
    let witness = client(&pair.primary, "shop").await;
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'", exported.name);
    witness.batch_execute(&begin).await.unwrap();
    let imported: Imported = prepared.import(&exported).await.unwrap();
    drop(connection);
    let outcome = imported.run().await.unwrap();
    assert_eq!(outcome.copied.last(), exported.lsn);
    let mut seen = Vec::new();
    for sql in CONTENT {
        let messages = witness.simple_query(sql).await.unwrap();
        seen.push(super::harness::rows(&messages));
    }
    (outcome, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn page_ranges_hold_exactly_the_snapshot_while_others_write() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(BIG).await;
        pair.on_primary(BIG_ROWS).await;
        let steps = Steps::new(&pair);
        let stop = CancellationToken::new();
        let prepared = steps.prepare().await.unwrap();
        let copying = async {
            let result = copy_with_witness(&steps, prepared, &pair).await;
            stop.cancel();
            result
        };
        let ((outcome, seen), ..) =
            tokio::join!(copying, write(&pair, 0, &stop), write(&pair, 1, &stop), write(&pair, 2, &stop));
        for (sql, seen) in CONTENT.iter().zip(&seen) {
            assert_eq!(&pair.on_standby(sql).await, seen, "{major}: {sql}");
        }
        let rows =
            value(&pair.standby, "shop", "SELECT (SELECT count(*) FROM big) + (SELECT count(*) FROM small)").await;
        assert_eq!(outcome.report.rows.to_string(), rows);
        assert_eq!(steps.progress.report(), outcome.report);
    }
}

/// What the record calls done is whole, whatever happened.
async fn assert_done_is_whole(pair: &Pair) {
    let record = client(&pair.standby, "shop").await;
    let state = store::load(&record, &PipelineName::new("standby1").unwrap()).await.unwrap();
    for (name, state) in state.tables {
        if matches!(state, TableState::Done { .. }) {
            let sql = format!("SELECT count(*), sum(id) FROM {}", name.sql());
            assert_eq!(pair.on_primary(&sql).await, pair.on_standby(&sql).await, "{name}");
        }
    }
}

/// Waits until the sessions of the last attempt are gone: to end one of those cuts nothing off.
async fn without_copy(session: &tokio_postgres::Client) {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 copy'";
    eventually("the sessions of the last attempt are gone", || async {
        (session.query_one(count, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

/// Ends the sessions of the copy, until the attempt has ended: one of them may have done its work when it is met.
async fn terminate_copy(session: &tokio_postgres::Client) {
    let terminate =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 copy'";
    loop {
        session.query(terminate, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_cut_off_anywhere_leaves_no_half_table_that_looks_whole() {
    let pair = Pair::start(18).await;
    pair.on_both(BIG).await;
    pair.on_primary(BIG_ROWS).await;
    for table in ["a", "b", "c", "d"] {
        pair.on_both(&format!("CREATE TABLE {table} (id int PRIMARY KEY, t text)")).await;
        let rows = "SELECT i, repeat('y', 100) FROM generate_series(1, 20000) i";
        pair.on_primary(&format!("INSERT INTO {table} {rows}")).await;
    }
    // What is emptied again is referred to from inside and from outside.
    pair.on_both(
        "ALTER TABLE a ADD FOREIGN KEY (id) REFERENCES b NOT VALID; CREATE TABLE outside (id int REFERENCES big)",
    )
    .await;
    let mut steps = Steps::new(&pair);
    steps.pipeline.tables.exclude.push(TablePattern::new("public.outside").unwrap());
    let (on_primary, on_standby) = (client(&pair.primary, "shop").await, client(&pair.standby, "shop").await);
    let mut outcome = None;
    let mut attempts = 0;
    while outcome.is_none() {
        steps.cancel = CancellationToken::new();
        without_copy(&on_primary).await;
        without_copy(&on_standby).await;
        let cut = async {
            match attempts {
                // Before the first row, …
                0..4 => tokio::time::sleep(Duration::from_millis(attempts * 10)).await,
                // … and among them.
                4..10 => {
                    while steps.progress.report().rows < (attempts - 3) * 20_000 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                _ => pending().await,
            }
            match attempts % 3 {
                0 => steps.cancel.cancel(),
                1 => terminate_copy(&on_primary).await,
                _ => terminate_copy(&on_standby).await,
            }
            pending().await
        };
        let result = tokio::select! {
            result = steps.again() => result,
            never = cut => never,
        };
        match result {
            Ok(done) => outcome = Some(done),
            Err(error) => assert_eq!(error.retry(), Retry::Later, "{error}"),
        }
        assert_done_is_whole(&pair).await;
        attempts += 1;
    }
    assert!(attempts > 4, "only {attempts} attempts were cut off");
    assert_eq!(outcome.unwrap().report.tables_done, 6);
    pair.assert_equal(&["big", "small", "a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wait_is_told_and_ends_with_its_cause() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO a SELECT generate_series(1, 1000)").await;
    pair.on_standby("INSERT INTO a VALUES (0)").await;
    let mut steps = Steps::new(&pair);
    steps.pipeline.on_existing_rows = OnExistingRows::Truncate;
    drop(steps.prepare().await.unwrap());
    steps.tables = Some(["a", "b"].map(|name| QualifiedName::new("public", name)).into());
    let holder = client(&pair.primary, "shop").await;
    holder.batch_execute("BEGIN; LOCK TABLE a").await.unwrap();
    let (prepared, ()) = tokio::join!(steps.prepare(), async {
        steps.waits_for("an ACCESS EXCLUSIVE lock on public.a of process").await;
        holder.batch_execute("ROLLBACK").await.unwrap();
    });
    let prepared = prepared.unwrap();
    let first = async {
        steps.waits_for("another walrelay").await;
        holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        let (imported, ()) = tokio::join!(prepared.import_own_snapshot(), async {
            steps.waits_for("transactions to end: process").await;
            holder.batch_execute("ROLLBACK").await.unwrap();
        });
        let reader = client(&pair.standby, "shop").await;
        reader.batch_execute("BEGIN; SELECT FROM a").await.unwrap();
        let (outcome, ()) = tokio::join!(imported.unwrap().run(), async {
            steps.waits_for("the tables on the standby, used by process").await;
            reader.batch_execute("ROLLBACK").await.unwrap();
        });
        outcome.unwrap()
    };
    let (second, outcome) = tokio::join!(steps.prepare(), first);
    let second = second.unwrap();
    assert_eq!(second.tables().count(), 0);
    assert_eq!(second.import_own_snapshot().await.unwrap().run().await.unwrap(), outcome);
    pair.assert_equal(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_is_refused_while_commits_wait_for_this_standby() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY)").await;
    let steps = Steps::new(&pair);
    drop(steps.prepare().await.unwrap());
    values(&pair.primary, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1)'").await;
    values(&pair.primary, "postgres", "SELECT pg_reload_conf()").await;
    let waiting = try_run(&pair.primary, "shop", "INSERT INTO a VALUES (1)");
    let refused = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("a commit waits", || async { (value(&pair.primary, "shop", sql).await == "1").then_some(()) }).await;
        let error = steps.again().await.unwrap_err();
        values(&pair.primary, "postgres", "ALTER SYSTEM RESET synchronous_standby_names").await;
        values(&pair.primary, "postgres", "SELECT pg_reload_conf()").await;
        error
    };
    let (committed, error) = tokio::join!(waiting, refused);
    committed.unwrap();
    assert_eq!(error.retry(), Retry::Never);
    for part in ["synchronous_standby_names", "FIRST 1 (standby1)", "waits for a synchronous standby"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

const FAMILIES: &str =
    "CREATE TABLE plain (i int); CREATE UNLOGGED TABLE unlogged (i int); CREATE SCHEMA s; CREATE TABLE s.other (i int);
    CREATE TABLE root (i int) PARTITION BY RANGE (i); CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (1);
    CREATE TABLE middle PARTITION OF root FOR VALUES FROM (1) TO (9) PARTITION BY RANGE (i);
    CREATE TABLE deep PARTITION OF middle FOR VALUES FROM (1) TO (2);
    CREATE TABLE s.far PARTITION OF root FOR VALUES FROM (10) TO (12); CREATE TABLE child () INHERITS (plain)";

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_is_listed_as_the_server_does_but_without_waiting_for_a_lock() {
    let via_root = "WITH (publish_via_partition_root = true)";
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_primary(FAMILIES).await;
        let mut contents: Vec<&str> =
            vec!["", "FOR ALL TABLES", "FOR TABLE plain, root", "FOR TABLE leaf, middle, ONLY plain"];
        if major >= 15 {
            contents.extend([
                "FOR TABLES IN SCHEMA s",
                "FOR TABLES IN SCHEMA s, TABLE root, leaf",
                "FOR TABLES IN SCHEMA public",
            ]);
        }
        let session = client(&pair.primary, "shop").await;
        for (content, options) in contents.iter().flat_map(|content| [(content, ""), (content, via_root)]) {
            pair.on_primary(&format!("DROP PUBLICATION IF EXISTS p; CREATE PUBLICATION p {content} {options}")).await;
            let sql = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'p' ORDER BY 1";
            let expected: Vec<String> = pair.on_primary(sql).await.into_iter().flatten().flatten().collect();
            let found = source::published_tables(&session, "p").await.unwrap();
            let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
            found.sort();
            assert_eq!(found, expected, "{major}: {content} {options}");
        }
        let holder = client(&pair.primary, "shop").await;
        holder.batch_execute("BEGIN; LOCK TABLE plain, root").await.unwrap();
        let set = TableSet { include: vec![TablePattern::new("*.*").unwrap()], exclude: vec![] };
        let listing = source::ensure_publication(&session, "p", false, &set, &Additions::Now);
        tokio::time::timeout(Duration::from_secs(10), listing).await.unwrap().unwrap();
    }
}
