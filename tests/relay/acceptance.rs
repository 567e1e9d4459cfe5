//! What is left of the acceptance experiments of the protocol notes: names are never shared, the stream ends in order while much is
//! under way, a COMMIT that fails on the standby moves nothing.

use super::harness::{Pair, eventually, major_versions, value, values};

const TABLES: &str = "CREATE TABLE t (a int PRIMARY KEY, b text)";

#[tokio::test(flavor = "multi_thread")]
async fn no_other_session_ever_bears_the_standbys_name() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_primary("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i").await;
    let relay = super::harness::Relay::start(&pair.config("")).await;
    let mut looks = 0;
    // Through copy, start and stream: at most one, and only the streaming walsender.
    while relay.report("standby1").await.unwrap()["state"] != "streaming" || looks < 20 {
        let sql = "SELECT count(*) FILTER (WHERE backend_type <> 'walsender'), count(*) FROM pg_stat_activity WHERE application_name = 'standby1'";
        let row = values(&pair.primary, "shop", sql).await;
        assert_eq!(row[0][0].as_deref(), Some("0"), "a session that does not stream bears the name");
        assert!(row[0][1].as_deref().unwrap().parse::<u32>().unwrap() <= 1, "two sessions share the name");
        looks += 1;
    }
    let sessions =
        value(&pair.primary, "shop", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'standby1'").await;
    assert_eq!(sessions, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_flood_ends_in_order_and_goes_on_later() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let mut relay = pair.relay("").await;
        for round in 0..3 {
            let insert = format!(
                "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({}, {}) i",
                round * 30_000 + 1,
                (round + 1) * 30_000
            );
            pair.on_primary(&insert).await;
            assert!(relay.stop().await.success(), "{major}: the stop failed");
            relay.start_again().await;
        }
        relay.wait_state("streaming").await;
        pair.equal_after_catching_up(&["t"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_on_the_standby_moves_nothing() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    // An ALWAYS constraint trigger that fails at COMMIT, when every statement has succeeded.
    pair.on_standby(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.b = 'bad' THEN RAISE 'refused at commit'; END IF; RETURN NULL; END$$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
         ALTER TABLE t ENABLE ALWAYS TRIGGER late",
    )
    .await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO t VALUES (1, 'good')").await;
    pair.caught_up("standby1").await;
    let before = value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await;
    pair.on_primary("INSERT INTO t VALUES (2, 'bad')").await;
    relay.fails_with(&["refused at commit"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await, before);
    pair.on_standby("DROP TRIGGER late ON t").await;
    relay.signal(libc::SIGHUP);
    eventually("the row arrives once", || async {
        (value(&pair.standby, "shop", "SELECT count(*) FROM t").await == "2").then_some(())
    })
    .await;
    pair.equal_after_catching_up(&["t"]).await;
}
