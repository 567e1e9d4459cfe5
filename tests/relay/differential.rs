//! One primary, two standbys: a native subscription and the relay apply the same publication, and all three are alike at the end.
//! Random work over many shapes from several sessions at once, with savepoints, failures and truncations in between.
//! `WALRELAY_TEST_SEED` repeats the dice, not the interleaving.

use walrelay::throwaway::{Options, Server};
use walrelay::wire::sql::SqlClient;

use super::harness::{Pair, Relay, Rows, client, eventually, oldest_and_newest, start_server, value, values};
use super::random_work::{Dice, IN_ORDER, SHAPES, alike_schema, columns, schema, statement};

const WRITERS: usize = 3;
const ROUNDS: usize = 4;
const TRANSACTIONS: u64 = 25;
/// Tables without a key, whose rows native finds too: types with equality only.
const KEYLESS: &str =
    "CREATE TABLE bag (a int, b text NOT NULL, c numeric(8, 2), l text[]); ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE TABLE log (a int, b text, j json);";

/// Work on the tables without a key.
fn keyless(dice: &mut Dice) -> String {
    let (one, other) = (dice.roll(30), dice.roll(5));
    let picked = format!("WHERE ctid IN (SELECT ctid FROM bag WHERE a % 5 = {other} LIMIT {})", 1 + one);
    match dice.roll(8) {
        0..3 => format!(
            "INSERT INTO bag SELECT i % 9, 'b' || i % 2, i / 4.0, ARRAY['\"', NULL] FROM generate_series({one}, 40) i"
        ),
        3 => format!("UPDATE bag SET a = {one}, l = NULL {picked}"),
        4 => format!("UPDATE bag SET c = c + 0.50 {picked}"),
        5 => format!("DELETE FROM bag {picked}"),
        6 => format!("INSERT INTO log SELECT {one}, 'x', '{{\"a\": 1}}' FROM generate_series(1, {one})"),
        _ => format!("INSERT INTO bag SELECT * FROM bag {picked}"),
    }
}

/// One transaction: some of it may be undone, by a savepoint or in whole.
fn transaction(dice: &mut Dice, mark: u64) -> String {
    let statements = (0..1 + dice.roll(6)).map(|at| match dice.roll(14) {
        0..3 => keyless(dice),
        3 => format!("SAVEPOINT s; {}; ROLLBACK TO s", statement(dice, mark + at)),
        4 => format!("SAVEPOINT s; {}; RELEASE s", statement(dice, mark + at)),
        5 if dice.roll(6) == 0 => format!("TRUNCATE {}", ["log", "t_int", "t_pair"][dice.roll(3) as usize]),
        _ => statement(dice, mark + at),
    });
    let statements: Vec<String> = statements.collect();
    let end = if dice.roll(12) == 0 { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", statements.join("; "))
}

/// A session's share of a round. Sessions get in each other's way: what fails is undone.
async fn work(session: SqlClient, transactions: Vec<String>) -> usize {
    let mut done = 0;
    for transaction in transactions {
        match session.batch_execute(&transaction).await {
            Ok(()) => done += 1,
            Err(error) => {
                let code = error.code().map_or("none", |code| code.code()).to_owned();
                assert!(["40001", "40P01", "23505", "23P01"].contains(&code.as_str()), "{error:?} of {transaction}");
                session.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    }
    done
}

async fn round(primary: &Server, dice: &mut Dice, round: usize) -> usize {
    let mut sessions = Vec::new();
    for writer in 0..WRITERS {
        let mark = (round * WRITERS + writer) as u64 * 100_000;
        let transactions = (0..TRANSACTIONS).map(|at| transaction(dice, mark + at * 10)).collect();
        sessions.push(tokio::spawn(work(client(primary, "shop").await, transactions)));
    }
    let mut done = 0;
    for session in sessions {
        done += session.await.unwrap();
    }
    done
}

async fn subscribe(native: &Server, primary: &Server) {
    let sql = format!(
        "CREATE SUBSCRIPTION native CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=shop' PUBLICATION p WITH (binary = true)",
        primary.port()
    );
    values(native, "shop", &sql).await;
}

/// Waits until each table is copied and follows the stream.
async fn native_streams(native: &Server) {
    let sql = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
    eventually("the native subscription has copied its tables", || async {
        (value(native, "shop", sql).await == "0").then_some(())
    })
    .await;
}

/// Rows that only one of the two has, shortened.
fn only(one: &Rows, other: &Rows) -> String {
    let rows = one.iter().filter(|row| !other.contains(row)).take(3);
    rows.map(|row| format!("{row:?}").chars().take(200).collect::<String>()).collect::<Vec<_>>().join("\n")
}

/// The rows of each table, by what both sides have of it.
async fn content(server: &Server) -> Vec<(String, Rows)> {
    let shapes = SHAPES.iter().map(|shape| (shape.0, columns(shape)));
    let keyless = [("bag", "a, b, c, l".to_owned()), ("log", "a, b, j".to_owned())];
    let mut content = Vec::new();
    for (table, columns) in shapes.chain(keyless) {
        let sql = format!("SELECT q::text FROM (SELECT {columns} FROM {table}) q ORDER BY q::text COLLATE \"C\"");
        content.push((table.to_owned(), values(server, "shop", &sql).await));
    }
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_subscription_and_the_relay_end_alike() {
    let mut dice = Dice::new();
    // The oldest and the newest say enough: most of the time goes into native's copies.
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        let native = start_server(major, Options::default()).await;
        values(&native, "postgres", "CREATE DATABASE shop").await;
        // The native worker checks unique constraints row by row: it gets those of the primary, which wait. The relay gets strict ones.
        values(&pair.primary, "shop", &format!("{}{KEYLESS}", schema(false))).await;
        values(&native, "shop", &format!("{}{KEYLESS}", schema(false))).await;
        values(&pair.standby, "shop", &format!("{}{KEYLESS}", alike_schema())).await;
        values(&pair.primary, "shop", "CREATE PUBLICATION p FOR ALL TABLES").await;
        // Some rows are copied, the others streamed.
        let mut done = round(&pair.primary, &mut dice, 0).await;
        subscribe(&native, &pair.primary).await;
        let mut relay: Relay = pair.relay("publication = \"p\"").await;
        for at in 1..ROUNDS {
            match at {
                2 => pair.wait_for_standbys("FIRST 1 (standby1)").await,
                3 => relay.kill9(),
                _ => {}
            }
            let working = round(&pair.primary, &mut dice, at);
            let starting = async {
                if at == 3 {
                    relay.start_again().await;
                }
            };
            done += tokio::join!(working, starting).0;
        }
        relay.wait_state("streaming").await;
        pair.caught_up("standby1").await;
        native_streams(&native).await;
        pair.caught_up("native").await;
        let expected = content(&pair.primary).await;
        for (server, name) in [(&native, "native"), (&pair.standby, "the relay's")] {
            for ((table, ours), (_, theirs)) in expected.iter().zip(content(server).await) {
                let (missing, surplus) = (only(ours, &theirs), only(&theirs, ours));
                assert!(
                    *ours == theirs,
                    "{major}: {table} differs on {name} standby; missing:\n{missing}\nsurplus:\n{surplus}"
                );
            }
        }
        assert!(relay.log().contains("binary=true"), "{major}: values travelled as text");
        let rows: usize = expected.iter().map(|(_, rows)| rows.len()).sum();
        let (_, metrics) = relay.get("/metrics").await;
        let fallbacks: Vec<&str> = metrics.lines().filter(|line| line.contains("apply_fallbacks_total{")).collect();
        let is_in_order = |line: &&str| line.starts_with("walrelay_apply_rows_in_order_total{");
        let is_known = |line: &&str| IN_ORDER.iter().any(|table| line.contains(&format!("table=\"{table}\"")));
        let in_order: Vec<&str> = metrics.lines().filter(is_in_order).filter(|line| !is_known(line)).collect();
        println!("{major}: {done} transactions of {WRITERS} sessions, {rows} rows at the end");
        assert!(fallbacks.is_empty(), "{major}: {fallbacks:?}\n{}", relay.log());
        assert!(in_order.is_empty(), "{major}: {in_order:?}");
        assert!(rows > 100, "{major}: the work left next to nothing: {rows} rows");
    }
}
