//! Tables that leave the set and come back into it, by the configuration, by a name or under a partitioned parent: never with a gap that
//! nobody tells, and never at the price of what goes on.

use super::check::Checked;
use super::harness::{Pair, Relay, eventually, value};

const HAVE_LEFT: &str =
    "SELECT coalesce(string_agg(table_name, ', ' ORDER BY table_name), '') FROM walrelay.copy WHERE has_left";

/// It applies something of `a`, so it streams.
async fn goes_on(pair: &Pair, relay: &Relay) {
    pair.on_primary("INSERT INTO a SELECT coalesce(max(id), 0) + 1 FROM a").await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a"]).await;
}

async fn tables_a_and_x() -> Pair {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE x (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO x VALUES (1)").await;
    pair
}

/// A relay that has copied `x` and left it out since, with a row that the standby lacks.
async fn without_x(pair: &Pair, lines: &str) -> Relay {
    let mut relay = pair.relay("").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    assert!(relay.stop().await.success());
    relay.rewrite_config(&pair.config(&format!("exclude = [\"public.x\"]\n{lines}")));
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO x VALUES (2)").await;
    goes_on(pair, &relay).await;
    relay
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_back_while_commits_wait_for_us_stays_out_until_another_start() {
    let pair = tables_a_and_x().await;
    let mut relay = without_x(&pair, "").await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    relay.rewrite_config(&pair.config("on_existing_rows = \"truncate\""));
    relay.signal(libc::SIGHUP);
    relay
        .wait("standby1", "it began anew", |report| report["transactions"] == 0 && report["state"] == "streaming")
        .await;
    goes_on(&pair, &relay).await;
    assert_eq!(value(&pair.standby, "shop", HAVE_LEFT).await, "x");
    assert!(relay.log().contains("does not stand in synchronous_standby_names"), "{}", relay.log());
    let unlisted = "ALTER SYSTEM RESET synchronous_standby_names";
    pair.on_primary(unlisted).await;
    pair.on_primary("SELECT pg_reload_conf()").await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_initial_copy_a_table_that_comes_back_streams_and_what_it_missed_stays_missing() {
    let pair = tables_a_and_x().await;
    let mut relay = without_x(&pair, "initial_copy = false").await;
    assert!(relay.stop().await.success());
    relay.rewrite_config(&pair.config("initial_copy = false"));
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO x VALUES (3)").await;
    goes_on(&pair, &relay).await;
    let rows = "SELECT string_agg(id::text, ', ' ORDER BY id) FROM x";
    assert_eq!(value(&pair.standby, "shop", rows).await, "1, 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_came_back_in_vain_is_copied_when_it_comes_back_again() {
    let pair = Pair::start(18).await;
    pair.on_both(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    .await;
    pair.on_primary("INSERT INTO p VALUES (1)").await;
    let both = pair.config("tables = [\"public.a\", \"public.p\"]");
    let alone = pair.config("tables = [\"public.a\"]");
    let mut relay = Relay::start(&both).await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "p"]).await;
    for attempt in 0..2 {
        assert!(relay.stop().await.success());
        relay.rewrite_config(&alone);
        relay.start_again().await;
        pair.on_primary(&format!("INSERT INTO p VALUES ({})", 10 + attempt)).await;
        goes_on(&pair, &relay).await;
        assert!(relay.stop().await.success());
        if attempt == 1 {
            // As the refusal says.
            pair.on_standby("TRUNCATE p").await;
        }
        relay.rewrite_config(&both);
        relay.start_again().await;
        if attempt == 0 {
            relay.fails_with(&["public.p1"]).await;
            assert_eq!(value(&pair.standby, "shop", HAVE_LEFT).await, "p1", "a start that is refused changes nothing");
        }
    }
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "p"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_back_under_a_stream_is_not_applied_behind_a_gap() {
    let pair = tables_a_and_x().await;
    let mut relay = Relay::start(&pair.config("tables = [\"public.a\", \"public.x\"]")).await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    pair.on_primary("ALTER TABLE x RENAME TO x_away").await;
    relay.kill9();
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO x_away VALUES (2)").await;
    goes_on(&pair, &relay).await;
    pair.on_primary(
        "BEGIN; ALTER TABLE x_away RENAME TO x; INSERT INTO x VALUES (3); UPDATE x SET id = 4 WHERE id = 2; COMMIT",
    )
    .await;
    goes_on(&pair, &relay).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT string_agg(id::text, ', ') FROM x").await, "1");
    assert_eq!(value(&pair.standby, "shop", HAVE_LEFT).await, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_empty_for_a_moment_is_waited_for() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY)").await;
    let relay = Relay::start(&pair.config("tables = [\"public.a\"]")).await;
    relay.wait_state("streaming").await;
    goes_on(&pair, &relay).await;
    pair.on_primary("ALTER TABLE a RENAME TO a_away").await;
    pair.on_primary("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await;
    let waits = |report: &serde_json::Value| {
        report["waiting_for"].as_str().is_some_and(|reason| reason.contains("to be there again"))
    };
    relay.wait("standby1", "it waits for the table", waits).await;
    pair.on_primary("ALTER TABLE a_away RENAME TO a").await;
    relay.wait_state("streaming").await;
    goes_on(&pair, &relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_table_that_becomes_a_partition_of_its_own_name_is_not_copied_again() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO t VALUES (1)").await;
    let mut relay = pair.relay("").await;
    pair.equal_after_catching_up(&["a", "t"]).await;
    assert!(relay.stop().await.success());
    pair.on_both(
        "ALTER TABLE t RENAME TO t_rest; CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         ALTER TABLE t ATTACH PARTITION t_rest DEFAULT",
    )
    .await;
    pair.on_primary("INSERT INTO t VALUES (2)").await;
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "t"]).await;
    let done =
        "SELECT string_agg(table_name || ' ' || state || ' ' || rows, ', ' ORDER BY table_name) FROM walrelay.copy";
    assert_eq!(value(&pair.standby, "shop", done).await, "a done 0, t_rest done 1");
}

/// A partition that commits while the publication waits for its table's lock is copied, though the relay is killed right then.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_made_while_its_table_joins_is_copied_though_the_relay_is_killed() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY)").await;
    let mut relay = pair.relay("").await;
    goes_on(&pair, &relay).await;
    assert!(relay.stop().await.success());
    pair.on_both(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    .await;
    pair.on_primary("INSERT INTO p VALUES (1)").await;
    let late = "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)";
    pair.on_standby(late).await;
    let holder = super::harness::client(&pair.primary, "shop").await;
    holder.batch_execute(&format!("BEGIN; {late}; INSERT INTO p VALUES (101)")).await.unwrap();
    relay.start_again().await;
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER PUBLICATION%' AND wait_event_type = 'Lock'";
    eventually("the publication waits", || async { (value(&pair.primary, "shop", waits).await == "1").then_some(()) })
        .await;
    relay.kill9();
    holder.batch_execute("COMMIT").await.unwrap();
    eventually("nobody waits", || async { (value(&pair.primary, "shop", waits).await == "0").then_some(()) }).await;
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "p"]).await;
}

/// Its owner adds a table to the publication, and a commit to it waits for us: it is not kept waiting for a copy that waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_added_to_somebodys_publication_while_commits_wait_for_us_is_copied_by_a_later_start() {
    let pair = tables_a_and_x().await;
    pair.on_primary("CREATE PUBLICATION mine FOR TABLE a").await;
    let mut relay = pair.relay("publication = \"mine\"").await;
    goes_on(&pair, &relay).await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    pair.on_primary("ALTER PUBLICATION mine ADD TABLE x").await;
    pair.on_primary("INSERT INTO x VALUES (2)").await;
    goes_on(&pair, &relay).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM x").await, "0");
    assert_eq!(value(&pair.standby, "shop", HAVE_LEFT).await, "x");
    pair.on_primary("ALTER SYSTEM RESET synchronous_standby_names").await;
    pair.on_primary("SELECT pg_reload_conf()").await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "x"]).await;
}

/// Partitions that streamed from their first row on, or came while their table was out, have no copy that would tell of the gap.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_were_never_copied_come_back_whole_too() {
    let pair = Pair::start(18).await;
    let partition = |number: u32| {
        format!("CREATE TABLE p{number} PARTITION OF p FOR VALUES FROM ({number}00) TO ({}00)", number + 1)
    };
    let tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)";
    pair.on_both(&format!("{tables}; {}", partition(1))).await;
    pair.on_primary("INSERT INTO p VALUES (100)").await;
    let both = pair.config("tables = [\"public.a\", \"public.p\"]\non_existing_rows = \"truncate\"");
    let mut relay = Relay::start(&both).await;
    relay.wait_state("streaming").await;
    pair.on_both(&partition(2)).await;
    pair.on_primary("INSERT INTO p VALUES (200)").await;
    pair.equal_after_catching_up(&["a", "p"]).await;
    assert!(relay.stop().await.success());
    relay.rewrite_config(&pair.config("tables = [\"public.a\"]"));
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.on_both(&partition(3)).await;
    pair.on_primary("INSERT INTO p VALUES (201), (300)").await;
    goes_on(&pair, &relay).await;
    assert!(relay.stop().await.success());
    relay.rewrite_config(&both);
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "p"]).await;
}

/// What somebody's publication holds beside the set is known from the first start on.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_made_wider_within_somebodys_publication_is_copied() {
    let pair = tables_a_and_x().await;
    pair.on_primary("CREATE PUBLICATION mine FOR ALL TABLES").await;
    let lines = "publication = \"mine\"\ntables = [\"public.a\"]";
    let mut relay = Relay::start(&pair.config(lines)).await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO x VALUES (2)").await;
    goes_on(&pair, &relay).await;
    let report = relay.wait_state("streaming").await;
    assert_eq!(report["copy"]["tables_total"], 1, "{report}");
    assert!(relay.stop().await.success());
    pair.on_primary("INSERT INTO x VALUES (3)").await;
    let wide = pair.config("publication = \"mine\"");
    // The doctor looks at it as the start will.
    pair.on_standby("INSERT INTO x VALUES (9)").await;
    Checked::of(&wide).names("error", "standby1", "not empty: public.x", "");
    pair.on_standby("TRUNCATE x").await;
    Checked::of(&wide).passes();
    relay.rewrite_config(&wide);
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "x"]).await;
}

/// A parent or a schema that somebody adds brings rows that are in no stream; what is made in it later streams from the first on.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_adds_with_a_parent_or_a_schema_is_copied() {
    let pair = tables_a_and_x().await;
    pair.on_both(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
         CREATE SCHEMA billing; CREATE TABLE billing.b (id int PRIMARY KEY)",
    )
    .await;
    pair.on_primary("INSERT INTO p VALUES (1); INSERT INTO billing.b VALUES (1)").await;
    pair.on_primary("CREATE PUBLICATION mine FOR TABLE a").await;
    let mut relay = pair.relay("publication = \"mine\"").await;
    goes_on(&pair, &relay).await;
    pair.on_primary("ALTER PUBLICATION mine ADD TABLE p").await;
    pair.on_primary("INSERT INTO p VALUES (2)").await;
    pair.equal_after_catching_up(&["a", "p"]).await;
    assert!(relay.stop().await.success());
    pair.on_primary("ALTER PUBLICATION mine ADD TABLES IN SCHEMA billing").await;
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "p", "billing.b"]).await;
    pair.on_both(
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); CREATE TABLE billing.c (id int PRIMARY KEY)",
    )
    .await;
    pair.on_primary("INSERT INTO p VALUES (101); INSERT INTO billing.c VALUES (1)").await;
    pair.equal_after_catching_up(&["a", "p", "billing.b", "billing.c"]).await;
    for _ in 0..2 {
        assert!(relay.stop().await.success());
        relay.start_again().await;
        pair.on_primary(
            "INSERT INTO p SELECT max(id) + 1 FROM p; INSERT INTO billing.c SELECT max(id) + 1 FROM billing.c",
        )
        .await;
        goes_on(&pair, &relay).await;
        pair.equal_after_catching_up(&["a", "p", "billing.b", "billing.c"]).await;
    }
}

/// A table that is made again has another identity under its old name, and is published only from when its owner says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_again_in_somebodys_publication_is_copied_again() {
    let pair = tables_a_and_x().await;
    pair.on_primary("CREATE PUBLICATION mine FOR TABLE a, x").await;
    let mut relay = pair.relay("publication = \"mine\"").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    for is_running in [true, false] {
        if !is_running {
            assert!(relay.stop().await.success());
        }
        pair.on_both("DROP TABLE x; CREATE TABLE x (id int PRIMARY KEY)").await;
        pair.on_primary("INSERT INTO x SELECT generate_series(1, 5)").await;
        pair.on_primary("ALTER PUBLICATION mine ADD TABLE x").await;
        pair.on_primary("INSERT INTO x VALUES (6)").await;
        if !is_running {
            relay.start_again().await;
        }
        pair.equal_after_catching_up(&["a", "x"]).await;
        pair.on_primary("INSERT INTO x VALUES (7)").await;
        goes_on(&pair, &relay).await;
        pair.equal_after_catching_up(&["a", "x"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_out_of_somebodys_publication_for_a_time_is_copied_again_or_refused() {
    let pair = tables_a_and_x().await;
    pair.on_primary("CREATE PUBLICATION mine FOR TABLE a, x").await;
    let mut relay = pair.relay("publication = \"mine\"").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    assert!(relay.stop().await.success());
    pair.on_primary("ALTER PUBLICATION mine DROP TABLE x").await;
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    assert_eq!(value(&pair.standby, "shop", HAVE_LEFT).await, "x");
    pair.on_primary("INSERT INTO x VALUES (2)").await;
    pair.on_primary("ALTER PUBLICATION mine ADD TABLE x").await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    relay.fails_with(&["public.x"]).await;
    relay.stop().await;
    relay.rewrite_config(&pair.config("publication = \"mine\"\non_existing_rows = \"truncate\""));
    relay.start_again().await;
    goes_on(&pair, &relay).await;
    pair.equal_after_catching_up(&["a", "x"]).await;
}
