//! The read-only guard, and the rights that the relay needs.

use walrelay::model::{PipelineName, QualifiedName};
use walrelay::sink::postgres::{
    ensure_guards, open_session, origin_grants_sql, remove, remove_guards, replica_role_sql, store,
};

use super::Replay;
use crate::harness::major_versions;

/// Whether the guard refuses a statement on the standby; any other error fails the test.
async fn is_refused(replay: &Replay, sql: &str) -> bool {
    match replay.standby.batch_execute(sql).await {
        Ok(()) => false,
        Err(error) => {
            let error = error.as_db_error().unwrap();
            assert_eq!(error.code().code(), "25006", "{error:?}");
            assert!(error.hint().unwrap().contains("write there"), "{error:?}");
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_tables_refuse_every_other_writer() {
    let schema = "CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE other (a int);
        CREATE TABLE p (a int) PARTITION BY LIST (a);
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1) PARTITION BY LIST (a); CREATE TABLE p11 PARTITION OF p1 DEFAULT";
    for major in major_versions() {
        let mut replay = Replay::new(major, schema).await;
        replay.is_read_only = true;
        replay.open().await.unwrap();
        let mut control = open_session(&replay.standby_url, &replay.pipeline, "control").await.unwrap();
        let tables = ["t", "p11"].map(|name| QualifiedName::new("public", name));
        let (pipeline, primary) = (replay.pipeline.clone(), replay.primary_url.clone());
        assert_eq!(ensure_guards(&mut control, &pipeline, &primary, &tables).await.unwrap(), 4);
        assert_eq!(ensure_guards(&mut control, &pipeline, &primary, &tables).await.unwrap(), 0);
        replay.on_standby("INSERT INTO other VALUES (1)").await;
        for sql in [
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 2",
            "DELETE FROM t",
            "TRUNCATE t",
            "COPY t FROM PROGRAM 'echo 1'",
            "INSERT INTO p VALUES (1)",
            "DELETE FROM p11",
            "TRUNCATE p",
        ] {
            assert!(is_refused(&replay, sql).await, "{major}: {sql}");
        }
        // The relay writes; a table that appears in the stream has its guard before its first row is visible.
        replay.on_both("CREATE TABLE fresh (a int)").await;
        replay.on_primary("INSERT INTO fresh VALUES (1); INSERT INTO t VALUES (1); INSERT INTO p VALUES (1)").await;
        replay.on_primary("UPDATE t SET a = 2; TRUNCATE p").await;
        replay.relay().await.unwrap();
        assert_eq!(replay.equal("SELECT * FROM t").await, 1);
        assert!(is_refused(&replay, "DELETE FROM fresh").await);
        // Tables leave the set.
        ensure_guards(&mut control, &pipeline, &primary, &tables[..1]).await.unwrap();
        assert!(!is_refused(&replay, "DELETE FROM fresh").await);
        assert!(!is_refused(&replay, "DELETE FROM p").await);
        assert!(is_refused(&replay, "DELETE FROM t").await);
        assert_eq!(remove_guards(&mut control, &pipeline).await.unwrap(), 1);
        assert!(!is_refused(&replay, "DELETE FROM t").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_guard_is_mended() {
    let replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    let mut control = open_session(&replay.standby_url, &replay.pipeline, "control").await.unwrap();
    store::ensure_store(&mut control).await.unwrap();
    let tables = [QualifiedName::new("public", "t")];
    ensure_guards(&mut control, &replay.pipeline, &replay.primary_url, &tables).await.unwrap();
    let events = "INSERT OR UPDATE OR DELETE OR TRUNCATE ON t FOR EACH STATEMENT";
    let function = "walrelay.guard_standby1()";
    for spoil in [
        "ALTER TABLE t DISABLE TRIGGER walrelay_guard_standby1".to_owned(),
        "ALTER TABLE t ENABLE ALWAYS TRIGGER walrelay_guard_standby1".to_owned(),
        "ALTER TABLE t ENABLE REPLICA TRIGGER walrelay_guard_standby1".to_owned(),
        "DROP TRIGGER walrelay_guard_standby1 ON t".to_owned(),
        format!("CREATE OR REPLACE TRIGGER walrelay_guard_standby1 AFTER {events} EXECUTE FUNCTION {function}"),
        format!(
            "CREATE OR REPLACE TRIGGER walrelay_guard_standby1 BEFORE {} EXECUTE FUNCTION {function}",
            events.replace("UPDATE", "UPDATE OF a")
        ),
        format!(
            "CREATE OR REPLACE TRIGGER walrelay_guard_standby1 BEFORE {events} WHEN (false) EXECUTE FUNCTION {function}"
        ),
        format!(
            "CREATE OR REPLACE TRIGGER walrelay_guard_standby1 BEFORE {events} \
             EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
    ] {
        replay.on_standby(&spoil).await;
        let mended = ensure_guards(&mut control, &replay.pipeline, &replay.primary_url, &tables).await.unwrap();
        assert_eq!(mended, 1, "{spoil}");
        assert!(is_refused(&replay, "DELETE FROM t").await, "{spoil}");
    }
    let hollow = "CREATE OR REPLACE FUNCTION walrelay.guard_standby1() RETURNS trigger LANGUAGE plpgsql AS \
                  'BEGIN RETURN NULL; END'";
    replay.on_standby(hollow).await;
    ensure_guards(&mut control, &replay.pipeline, &replay.primary_url, &tables).await.unwrap();
    assert!(is_refused(&replay, "DELETE FROM t").await);
}

/// Whoever has a table can give it a trigger of that name: the guards of all tables must not be put up anew for it at every start.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_somebody_else_with_the_guards_name_is_none_of_ours() {
    let replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE other (a int)").await;
    let mut control = open_session(&replay.standby_url, &replay.pipeline, "control").await.unwrap();
    store::ensure_store(&mut control).await.unwrap();
    let tables = [QualifiedName::new("public", "t")];
    assert_eq!(ensure_guards(&mut control, &replay.pipeline, &replay.primary_url, &tables).await.unwrap(), 1);
    let foreign = "CREATE TRIGGER walrelay_guard_standby1 BEFORE INSERT ON other FOR EACH STATEMENT \
                   EXECUTE FUNCTION suppress_redundant_updates_trigger()";
    replay.on_standby(foreign).await;
    assert_eq!(ensure_guards(&mut control, &replay.pipeline, &replay.primary_url, &tables).await.unwrap(), 0);
    assert_eq!(remove_guards(&mut control, &replay.pipeline).await.unwrap(), 1);
    let left = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'walrelay_guard_standby1'";
    assert_eq!(replay.found(left).await, ["(other)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_leaves_nothing_and_may_be_repeated() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.is_read_only = true;
    replay.on_primary("INSERT INTO t VALUES (1)").await;
    replay.relay().await.unwrap();
    replay.sink = None;
    let removed = remove(&replay.standby_url, &replay.pipeline).await.unwrap();
    assert_eq!(removed.len(), 3, "{removed:?}");
    assert!(remove(&replay.standby_url, &replay.pipeline).await.unwrap().is_empty());
    assert!(!is_refused(&replay, "DELETE FROM t").await);
    assert!(replay.found("SELECT * FROM walrelay.progress").await.is_empty());
    assert!(replay.found("SELECT * FROM pg_replication_origin").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_errors_ask_for_are_enough() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.on_standby("CREATE ROLE relay LOGIN").await;
    replay.standby_url.user = "relay".to_owned();
    replay.is_read_only = true;
    for sql in [
        replica_role_sql("relay", 180_000),
        store::grant_schema_sql("relay").join("; "),
        origin_grants_sql("relay").join("; "),
    ] {
        let error = replay.open().await.unwrap_err().to_string();
        assert!(error.contains(&sql), "\"{sql}\" is not in: {error}");
        replay.on_standby(&sql).await;
    }
    replay.open().await.unwrap();
    replay.on_primary("INSERT INTO t VALUES (1)").await;
    replay.fails(&["GRANT TRIGGER ON TABLE \"public\".\"t\""]).await;
    replay.on_standby("GRANT TRIGGER ON t TO relay").await;
    replay.on_primary("INSERT INTO t VALUES (2)").await;
    replay.fails(&["INSERT on public.t (a=2)", "42501", "Grant"]).await;
    assert!(!is_refused(&replay, "DELETE FROM t").await, "the guard stayed although its batch was rolled back");
    replay.on_standby("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO relay").await;
    replay.on_primary("INSERT INTO t VALUES (3); UPDATE t SET a = 4 WHERE a = 3; DELETE FROM t WHERE a = 4").await;
    replay.on_primary("TRUNCATE t; INSERT INTO t VALUES (5)").await;
    replay.relay().await.unwrap();
    assert!(is_refused(&replay, "DELETE FROM t").await);
    let mut control = open_session(&replay.standby_url, &replay.pipeline, "control").await.unwrap();
    assert_eq!(remove_guards(&mut control, &replay.pipeline).await.unwrap(), 1);
    replay.sink = None;
    assert_eq!(remove(&replay.standby_url, &replay.pipeline).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_with_the_longest_name_is_guarded_taken_over_and_removed() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.pipeline = PipelineName::new(&"x".repeat(PipelineName::LIMIT_BYTES)).unwrap();
    replay.is_read_only = true;
    replay.open().await.unwrap();
    let frozen = replay.sink.take();
    replay.open().await.unwrap();
    replay.on_primary("INSERT INTO t VALUES (1)").await;
    replay.relay().await.unwrap();
    assert!(is_refused(&replay, "DELETE FROM t").await);
    let roles = "SELECT right(application_name, 6) FROM pg_stat_activity WHERE application_name LIKE 'walrelay x%'";
    assert_eq!(replay.found(roles).await, ["(\" apply\")", "(\" flush\")"]);
    drop((frozen, replay.sink.take()));
    assert_eq!(remove(&replay.standby_url, &replay.pipeline).await.unwrap().len(), 3);
}
