//! Somebody changes tables of the standby while rows stream, without a restart and without a word to the relay: the batches that
//! follow go by what the tables are now.

use walrelay::wire::sql::SqlClient;

use super::harness::{Pair, Relay, client, eventually, oldest_and_newest, value};

/// The checks of the primary wait for the end of a transaction.
const PRIMARY: &str = "CREATE TABLE plain (k int PRIMARY KEY, v int, UNIQUE (v) DEFERRABLE INITIALLY DEFERRED)";
const STANDBY: &str = "CREATE TABLE plain (k int PRIMARY KEY, v int)";
const BOTH: &str = "CREATE TABLE fired (k int PRIMARY KEY, v int); CREATE TABLE ruled (k int PRIMARY KEY, v int);
    CREATE TABLE wider (k int PRIMARY KEY, v int); CREATE TABLE keyed (k int PRIMARY KEY, v int); CREATE TABLE beat (k serial PRIMARY KEY);
    CREATE TABLE parts (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (100); CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
    CREATE TABLE held (k int PRIMARY KEY, v int) PARTITION BY RANGE (k); CREATE TABLE held_1 PARTITION OF held DEFAULT";
const TABLES: &[&str] = &["plain", "fired", "ruled", "wider", "keyed", "parts"];

/// Each of them makes a set of rows that was right before wrong from now on: rows in each other's way, rows that are not touched, a
/// statement that is refused, a value that would be lost, a key that no index holds.
const CHANGES: &[&str] = &[
    "CREATE UNIQUE INDEX plain_v ON plain (v)",
    "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.k = 3 THEN RETURN NULL; END IF; RETURN new; END $$;
     CREATE TRIGGER skip BEFORE UPDATE ON fired FOR EACH ROW EXECUTE FUNCTION skip(); ALTER TABLE fired ENABLE ALWAYS TRIGGER skip",
    "CREATE RULE skip AS ON UPDATE TO ruled WHERE old.k = 3 DO INSTEAD NOTHING; ALTER TABLE ruled ENABLE ALWAYS RULE skip",
    "ALTER TABLE wider ADD mine text DEFAULT 'none'; SET session_replication_role = replica; UPDATE wider SET mine = 'of ' || k",
    "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey",
    "CREATE UNIQUE INDEX parts_1_v ON parts_1 (v)",
];

/// Tables of which the relay has read anew what they are.
fn read_again(relay: &Relay) -> Vec<String> {
    let log = relay.log();
    let lines = log.lines().filter(|line| line.contains("what is known of it is read again"));
    let table =
        |line: &str| line.split("table=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let mut tables: Vec<String> = lines.map(table).collect();
    tables.sort_unstable();
    tables
}

/// Rows stream, of another table too, until so many tables were read anew.
async fn wait_read_again(relay: &Relay, primary: &SqlClient, count: usize) {
    eventually(&format!("{count} tables are read again"), || async {
        primary.batch_execute("INSERT INTO beat DEFAULT VALUES").await.unwrap();
        (read_again(relay).len() >= count).then_some(())
    })
    .await;
}

async fn changes_of_tables_are_seen(major: u32) {
    let pair = Pair::start(major).await;
    pair.on_both(BOTH).await;
    pair.on_primary(PRIMARY).await;
    pair.on_standby(STANDBY).await;
    let relay = pair.relay("").await;
    let primary = client(&pair.primary, "shop").await;
    for table in TABLES.iter().chain(&["held"]) {
        primary.batch_execute(&format!("INSERT INTO {table} SELECT i, i FROM generate_series(1, 20) i")).await.unwrap();
    }
    pair.caught_up("standby1").await;
    // Who holds a lock on a table may wait for this pipeline: it is not waited for.
    let holder = client(&pair.standby, "shop").await;
    holder.batch_execute("BEGIN; LOCK TABLE held_1 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for change in CHANGES {
        pair.on_standby(change).await;
    }
    wait_read_again(&relay, &primary, CHANGES.len()).await;
    holder.batch_execute("COMMIT").await.unwrap();

    // In one transaction each, so that all rows of a table are one set.
    for table in ["plain", "fired", "ruled", "keyed", "parts"] {
        primary.batch_execute(&format!("UPDATE {table} SET v = v + 1")).await.unwrap();
    }
    primary.batch_execute("UPDATE wider SET k = k + 1000").await.unwrap();
    pair.equal_after_catching_up(&["plain", "keyed", "parts", "beat", "held"]).await;
    for table in ["fired", "ruled"] {
        pair.assert_equal(&[&format!("(SELECT * FROM {table} WHERE k <> 3)")]).await;
        assert_eq!(value(&pair.standby, "shop", &format!("SELECT v FROM {table} WHERE k = 3")).await, "3");
    }
    pair.assert_equal(&["(SELECT k, v FROM wider)"]).await;
    let kept = "SELECT count(*) FROM wider WHERE mine = 'of ' || (k - 1000)";
    assert_eq!(value(&pair.standby, "shop", kept).await, "20", "{major}: a column of the standby's own was lost");
    let (_, metrics) = relay.get("/metrics").await;
    assert!(!metrics.contains("apply_fallbacks_total{"), "{major}: {metrics}");

    // Maintenance changes nothing, and what is undone is seen as well.
    pair.on_standby("VACUUM (ANALYZE)").await;
    pair.on_standby("VACUUM FULL plain").await;
    pair.on_standby("REINDEX TABLE plain").await;
    pair.on_standby("ALTER TABLE keyed ADD PRIMARY KEY (k)").await;
    wait_read_again(&relay, &primary, CHANGES.len() + 1).await;
    primary.batch_execute("UPDATE keyed SET k = k + 1000").await.unwrap();
    pair.equal_after_catching_up(&["keyed"]).await;
    let told = read_again(&relay);
    let parts = told.iter().find(|table| table.contains("parts")).unwrap();
    let expected =
        ["public.fired", "public.keyed", "public.keyed", parts, "public.plain", "public.ruled", "public.wider"];
    assert_eq!(told, expected, "{major}");
}

/// Batches of one row each: what was prepared for the table as it was meets the table as it is, before anybody looked.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_row_behind_a_change_of_its_table_is_written_as_the_table_is_now() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
        let relay = pair.relay("").await;
        let changes = [
            "ALTER TABLE t ALTER k ADD GENERATED ALWAYS AS IDENTITY",
            "ALTER TABLE t ALTER v TYPE jsonb USING v::jsonb",
            "ALTER TABLE t ALTER k DROP IDENTITY, ALTER v TYPE text",
        ];
        for (round, change) in changes.into_iter().cycle().take(6).enumerate() {
            // Prepared by now, since the last look.
            for at in 0..2 {
                pair.on_primary(&format!("INSERT INTO t VALUES ({}, '{{}}')", round * 10 + at)).await;
                pair.caught_up("standby1").await;
            }
            pair.on_standby(change).await;
            pair.on_primary(&format!("INSERT INTO t VALUES ({}, '[1]')", round * 10 + 5)).await;
            pair.caught_up("standby1").await;
        }
        pair.assert_equal(&["(SELECT k, v::text FROM t)"]).await;
        let report = relay.report("standby1").await.unwrap();
        assert!(report["last_error"].is_null() && report["state"] == "streaming", "{major}: {report}");
    }
}

/// On 14 a partition's own of its parent's triggers look like those of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_a_partitioned_table_fires_for_each_change_of_its_partitions() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both(
            "CREATE TABLE r (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
             CREATE TABLE r_1 PARTITION OF r FOR VALUES FROM (0) TO (100)",
        )
        .await;
        pair.on_standby(
            "CREATE TABLE audit (operation text);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit VALUES (TG_OP); RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON r FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE r ENABLE ALWAYS TRIGGER note; ALTER TABLE r_1 ENABLE ALWAYS TRIGGER note",
        )
        .await;
        let _relay = pair.relay("exclude = [\"public.audit\"]").await;
        pair.on_primary(
            "BEGIN; INSERT INTO r SELECT i, 0 FROM generate_series(1, 20) i; UPDATE r SET v = 1; UPDATE r SET v = 2;
             DELETE FROM r WHERE k <= 10; COMMIT",
        )
        .await;
        pair.equal_after_catching_up(&["r"]).await;
        let counts = "SELECT string_agg(operation || ' ' || n, ', ' ORDER BY operation) FROM
                      (SELECT operation, count(*) AS n FROM audit GROUP BY 1) c";
        let counts = value(&pair.standby, "shop", counts).await;
        assert_eq!(counts, "DELETE 10, INSERT 20, UPDATE 40", "{major}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_table_of_the_standby_is_seen_while_rows_stream() {
    for major in oldest_and_newest() {
        changes_of_tables_are_seen(major).await;
    }
}
