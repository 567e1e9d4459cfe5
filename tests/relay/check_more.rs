//! The doctor on what a start would do next: tables that are about to join, the copy's rights where it goes to Kafka, a name that is
//! listed beside others; on whose hands the relay's rights would be in; and on statistics that nobody would gather.

use super::check::{Checked, set};
use super::harness::{Pair, Relay, eventually, major_versions, server, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// A start plans new tables before it publishes them, and refuses where they have no place: so does the doctor.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_about_to_join_are_looked_at_like_published_ones() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    assert!(relay.stop().await.success());
    pair.on_primary(
        "CREATE TABLE missing (id int PRIMARY KEY); CREATE TABLE narrow (id int PRIMARY KEY, item text); \
         CREATE TABLE filled (id int PRIMARY KEY)",
    )
    .await;
    pair.on_standby(
        "CREATE TABLE narrow (id int PRIMARY KEY); CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1)",
    )
    .await;
    let first = Checked::of(&pair.config(""));
    first.refused();
    first.names(
        "error",
        "standby1",
        "do not exist on the standby: public.missing",
        "CREATE TABLE \"public\".\"missing\"",
    );
    first.names("error", "standby1", "public.narrow lacks the column item", "ADD COLUMN \"item\"");
    first.names("error", "standby1", "not empty: public.filled", "");
    relay.start_again().await;
    relay.fails_with(&["public.missing", "public.narrow"]).await;
    first.mend(&mut pair).await;
    let rows = Checked::of(&pair.config(""));
    rows.refused();
    rows.names("error", "standby1", "not empty: public.filled", "");
    Checked::of(&pair.config("on_existing_rows = \"keep\"")).passes();
    pair.on_standby("DELETE FROM filled").await;
    Checked::of(&pair.config("")).passes();
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.on_primary(
        "INSERT INTO missing VALUES (1); INSERT INTO narrow VALUES (1, 'x'); INSERT INTO filled VALUES (2)",
    )
    .await;
    pair.equal_after_catching_up(&["missing", "narrow", "filled"]).await;
    // While commits may wait for the pipeline nothing joins, so nothing is in a start's way.
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    pair.on_primary("CREATE TABLE latest (id int PRIMARY KEY)").await;
    pair.caught_up("standby1").await;
    Checked::of(&pair.config("")).passes();
}

/// No broker answers there: what is wrong on the primary is found all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_copies_needs_to_read_its_tables() {
    let primary = server(18).await;
    values(&primary, "postgres", "CREATE DATABASE shop").await;
    let sql = "CREATE ROLE relay LOGIN REPLICATION; CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY); \
               CREATE TABLE sales.hidden (id int PRIMARY KEY); ALTER TABLE sales.hidden ENABLE ROW LEVEL SECURITY; \
               CREATE SCHEMA streamed; CREATE TABLE streamed.notes (id int PRIMARY KEY)";
    values(&primary, "shop", sql).await;
    let url = primary.url_for("relay", "shop");
    let checked = Checked::of(&format!(
        "[primary]\nurl = \"{url}\"\n[[pipeline]]\nname = \"feed1\"\ntables = [\"sales.*\"]\n[pipeline.sink]\ntype = \"kafka\"\n\
         brokers = \"127.0.0.1:1\"\ntopic_prefix = \"shop\"\n[[pipeline]]\nname = \"lines\"\ntables = [\"streamed.*\"]\n\
         [pipeline.sink]\ntype = \"stdout\"\n"
    ));
    checked.names("error", "primary", "may not use the schema sales", "GRANT USAGE ON SCHEMA \"sales\" TO \"relay\"");
    checked.names("error", "primary", "may not read sales.orders", "GRANT SELECT ON sales.orders TO \"relay\"");
    checked.names("error", "primary", "would apply to the role \"relay\" on sales.hidden", "BYPASSRLS");
    let said = checked.answer.to_string();
    assert!(!said.contains("may not use the schema streamed") && !said.contains("may not read streamed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_listed_too_early_is_taken_out_and_others_stay() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    set(&mut pair.primary, &[("synchronous_standby_names", "FIRST 2 (standby1, far)")]).await;
    let few = Checked::of(&pair.config(""));
    few.refused();
    few.names("error", "primary", "already stands in synchronous_standby_names", "");
    let said = few.answer.to_string();
    assert!(!said.contains("ALTER SYSTEM SET synchronous_standby_names"), "{said}");
    set(&mut pair.primary, &[("synchronous_standby_names", "ANY 1 (standby1, far)")]).await;
    let first = Checked::of(&pair.config(""));
    first.refused();
    first.names(
        "error",
        "primary",
        "already stands in synchronous_standby_names",
        "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (\"far\")'",
    );
    first.mend(&mut pair).await;
    Checked::of(&pair.config("")).passes();
    assert_eq!(value(&pair.primary, "shop", "SHOW synchronous_standby_names").await, "ANY 1 (\"far\")");
}

/// Who owns the relay's own tables could have triggers there, which would run with its rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_another_role_is_refused_until_it_is_handed_over() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_standby("CREATE ROLE other LOGIN; CREATE SCHEMA walrelay AUTHORIZATION other").await;
    let relay = Relay::start(&pair.config("")).await;
    let hand_over = "ALTER SCHEMA walrelay OWNER TO \"postgres\"";
    relay.fails_with(&["the schema walrelay on the standby belongs to the role \"other\"", hand_over]).await;
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    let first = Checked::of(&pair.config(""));
    first.refused();
    first.names("error", "standby1", "the schema walrelay belongs to the role \"other\"", hand_over);
    first.mend(&mut pair).await;
    Checked::of(&pair.config("")).passes();
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    // The same of a table in it.
    pair.on_standby("ALTER TABLE walrelay.progress OWNER TO other").await;
    let table = Checked::of(&pair.config(""));
    table.refused();
    table.names("error", "standby1", "table walrelay.progress belongs", "ALTER TABLE walrelay.progress OWNER TO");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_replicated_tables_who_get_the_relays_rights_are_named() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_both("CREATE TABLE lent (id int PRIMARY KEY)").await;
    pair.on_standby("CREATE ROLE other LOGIN; CREATE ROLE relay LOGIN; ALTER TABLE lent OWNER TO other").await;
    // A superuser counts as a member of every role: it is told all the same.
    let owns = "the role \"other\" owns public.lent on the standby";
    let checked = Checked::of(&pair.config(""));
    checked.passes();
    checked.names("info", "standby1", owns, "");
    assert!(!checked.answer.to_string().contains("owns public.orders"), "{:#}", checked.answer);
    // Nothing new to a role that has the owner's rights, or is the owner.
    let config = pair.config("").replace(&pair.standby.url("shop"), &pair.standby.url_for("relay", "shop"));
    Checked::of(&config).names("info", "standby1", owns, "");
    for sql in ["GRANT other TO relay", "REVOKE other FROM relay; ALTER TABLE lent OWNER TO relay"] {
        pair.on_standby(sql).await;
        let said = Checked::of(&config).answer.to_string();
        assert!(!said.contains("public.lent on the standby: constraints"), "{sql}: {said}");
    }
}

/// ANALYZE skips a table with a warning only: who may not is told before the copy, and in the log behind it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_the_role_may_not_analyze_are_named_by_check_and_in_the_log() {
    let rights = "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER ON orders TO relay";
    for major in major_versions().into_iter().filter(|major| [16, 18].contains(major)) {
        let has_right = major >= 17;
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        pair.on_both("CREATE TABLE owned_here (id int PRIMARY KEY)").await;
        pair.on_standby("CREATE ROLE relay LOGIN; CREATE SCHEMA walrelay AUTHORIZATION relay").await;
        pair.on_standby("ALTER TABLE owned_here OWNER TO relay").await;
        pair.on_standby(
            "GRANT SET ON PARAMETER session_replication_role TO relay; \
             GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), \
             pg_replication_origin_drop(text), pg_replication_origin_session_setup(text), \
             pg_replication_origin_progress(text, boolean) TO relay",
        )
        .await;
        pair.on_standby(rights).await;
        pair.on_primary("INSERT INTO orders VALUES (1, 'x'); INSERT INTO owned_here VALUES (1)").await;
        let config = pair.config("").replace(&pair.standby.url("shop"), &pair.standby.url_for("relay", "shop"));
        let check = |is_told: bool| {
            let checked = Checked::of(&config);
            checked.passes();
            let said = checked.answer.to_string();
            assert!(!said.contains("ANALYZE public.owned_here"), "{major}: {said}");
            assert_eq!(said.contains("may not ANALYZE public.orders on the standby"), is_told, "{major}: {said}");
            checked
        };
        let sql = if has_right { "GRANT MAINTAIN ON public.orders TO \"relay\"" } else { "" };
        check(true).names("warning", "standby1", "may not ANALYZE public.orders on the standby", sql);
        let (give, take) = if has_right {
            ("GRANT MAINTAIN ON orders TO relay", "REVOKE MAINTAIN ON orders FROM relay")
        } else {
            ("ALTER TABLE orders OWNER TO relay", "ALTER TABLE orders OWNER TO postgres")
        };
        let of_database = ("ALTER DATABASE shop OWNER TO relay", "ALTER DATABASE shop OWNER TO postgres");
        for (give, take) in [(give, take), of_database] {
            pair.on_standby(give).await;
            check(false);
            pair.on_standby(take).await;
            // What was granted to the owner for a while went with him.
            pair.on_standby(rights).await;
        }
        let relay = Relay::start(&config).await;
        relay.wait_state("streaming").await;
        let remedy = if has_right {
            "GRANT MAINTAIN ON ALL TABLES IN SCHEMA \"public\" TO \"relay\""
        } else {
            "let \"relay\" own them"
        };
        eventually("the log names the table and the remedy", || async {
            let log = relay.log();
            (log.contains("may not ANALYZE") && log.contains("public.orders") && log.contains(remedy)).then_some(())
        })
        .await;
        eventually("the others have statistics", || async {
            let rows = "SELECT reltuples FROM pg_class WHERE relname = 'owned_here'";
            (value(&pair.standby, "shop", rows).await == "1").then_some(())
        })
        .await;
        let rows = value(&pair.standby, "shop", "SELECT reltuples FROM pg_class WHERE relname = 'orders'").await;
        assert_eq!(rows, "-1", "{major}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_begun_is_to_be_finished_before_there_is_to_be_none() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    assert!(relay.stop().await.success());
    let without = pair.config("initial_copy = false");
    Checked::of(&without).passes();
    pair.on_standby("UPDATE walrelay.copy SET state = 'pending', snapshot_lsn = NULL").await;
    let said = "the copy of \"standby1\" was begun and is not finished (table walrelay.copy on the standby): rows are missing there";
    let checked = Checked::of(&without);
    checked.refused();
    checked.names("error", "standby1", said, "");
    relay.rewrite_config(&without);
    relay.start_again().await;
    relay.fails_with(&[said, "initial_copy = true to finish it"]).await;
    Checked::of(&pair.config("")).passes();
    relay.rewrite_config(&pair.config(""));
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
}
