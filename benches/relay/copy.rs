//! Case D: the initial copy of one table, and of four, against the subscription's own copy and `psql COPY TO (FORMAT binary) | psql COPY
//! FROM`; with the primary keys in place, and made after the rows.

use std::process::Command;
use std::time::{Duration, Instant};

use super::comparison::{Comparison, Kind, each};
use super::database::{RUN, copy_database, fingerprints};
use super::harness::{Pair, Relay, client, eventually, value, values};
use super::plan::Plan;
use super::program::{output, tool};
use super::report::Report;
use super::servers::pair;
use super::usage::Meter;

/// The pipe's time over ours, and the subscription's over ours, at least.
const PIPE_AIM: f64 = 0.95;
const SYNC_AIM: f64 = 1.0;
/// The subscription's time over ours with the keys made after the rows, at least.
const AFTER_AIM: f64 = 1.5;
/// How long a copy may take.
const LIMIT: Duration = Duration::from_secs(1800);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copier {
    Pipes,
    /// A subscription of its own, binary, with as many workers as tables.
    Tablesync,
    Relay,
    /// walrelay into tables without a key; the keys are made after the rows, and count.
    RelayKeysAfter,
}

const COPIERS: [Copier; 4] = [Copier::Pipes, Copier::Tablesync, Copier::Relay, Copier::RelayKeysAfter];

/// One copy.
struct Turn {
    seconds: f64,
    cpu_s: f64,
    is_disturbed: bool,
}

fn names(tables: usize) -> Vec<String> {
    (0..tables).map(|number| format!("c{number}")).collect()
}

/// psql into psql, all tables at once.
async fn pipes(pair: &Pair, tables: usize) {
    let psql = tool("psql");
    let one = |name: &String| {
        format!(
            "\"{psql}\" -X -q -d {} -c 'COPY {name} TO STDOUT (FORMAT binary)' | \
             \"{psql}\" -X -q -d {} -c 'COPY {name} FROM STDIN (FORMAT binary)'",
            pair.primary.url("shop"),
            pair.standby.url(RUN),
            psql = psql.display()
        )
    };
    let script = names(tables).iter().map(one).collect::<Vec<_>>().join(" & ");
    output(Command::new("sh").arg("-c").arg(format!("{script} & wait")));
}

/// Until every table's rows are there.
async fn tablesync(pair: &Pair, tables: usize) {
    let port = pair.primary.port();
    let sql = format!(
        "CREATE SUBSCRIPTION sync CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=shop' PUBLICATION bench{tables} \
         WITH (binary = true)"
    );
    values(&pair.standby, RUN, &sql).await;
    let session = client(&pair.standby, RUN).await;
    let copied =
        session.prepare("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate IN ('f', 's', 'r')").await.unwrap();
    let began = Instant::now();
    while session.query_one(&copied, &[]).await.unwrap().get::<_, i64>(0) as usize != tables {
        assert!(began.elapsed() < LIMIT, "the subscription does not copy:\n{}", pair.standby.log_tail(20));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn relay(pair: &Pair, tables: usize) -> Relay {
    let config = format!(
        "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"copy\"\npublication = \"bench{tables}\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.primary.url("shop"),
        pair.standby.url(RUN)
    );
    let relay = Relay::start_with(&config, &[("WALRELAY__LOG__LEVEL", "info")]).await;
    let began = Instant::now();
    loop {
        let report = relay.report("copy").await.unwrap_or_default();
        if report["copy"]["tables_done"] == tables
            && matches!(report["state"].as_str(), Some("catching_up" | "streaming"))
        {
            return relay;
        }
        assert_ne!(report["state"], "failed", "walrelay has stopped: {}", report["last_error"]);
        assert!(began.elapsed() < LIMIT, "walrelay does not copy:\n{}", relay.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All keys at once, a session each.
async fn make_keys(pair: &Pair, tables: usize) {
    let names = names(tables);
    let keys = names.iter().map(|name| async move {
        values(&pair.standby, RUN, &format!("ALTER TABLE {name} ADD PRIMARY KEY (id)")).await;
    });
    futures_util::future::join_all(keys).await;
}

/// Slots and subscriptions, so that the database can be made anew.
async fn clean(pair: &Pair, copier: Copier) {
    if copier == Copier::Tablesync {
        values(&pair.standby, RUN, "DROP SUBSCRIPTION sync").await;
    }
    eventually("the slots are free", || async {
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE active";
        (value(&pair.primary, "postgres", sql).await == "0").then_some(())
    })
    .await;
    values(&pair.primary, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
}

async fn turn(pair: &Pair, plan: &Plan, copier: Copier, tables: usize) -> Turn {
    let template = if copier == Copier::RelayKeysAfter { "bare" } else { "shop" };
    copy_database(&pair.standby, template, RUN, plan.major).await;
    let meter = Meter::start(&[&pair.primary, &pair.standby], None);
    let began = Instant::now();
    let mut running = None;
    match copier {
        Copier::Pipes => pipes(pair, tables).await,
        Copier::Tablesync => tablesync(pair, tables).await,
        Copier::Relay => running = Some(relay(pair, tables).await),
        Copier::RelayKeysAfter => {
            running = Some(relay(pair, tables).await);
            make_keys(pair, tables).await;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let usage = meter.stop(running.as_ref().map(Relay::process_id));
    if let Some(mut relay) = running {
        relay.stop().await;
    }
    clean(pair, copier).await;
    let tables = names(tables);
    let expected = fingerprints(&pair.primary, "shop", &tables).await;
    assert_eq!(fingerprints(&pair.standby, RUN, &tables).await, expected, "{copier:?}: the target differs");
    Turn { seconds, cpu_s: usage.sum_s(), is_disturbed: usage.is_disturbed() }
}

async fn open(plan: &Plan) -> Pair {
    let pair = pair(plan.major).await;
    values(&pair.standby, "postgres", "CREATE DATABASE bare").await;
    for name in names(4) {
        let columns = "a int, b bigint, at timestamptz, amount float8, filler text";
        pair.on_both(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, {columns})")).await;
        values(&pair.standby, "bare", &format!("CREATE TABLE {name} (id bigint NOT NULL, {columns})")).await;
        let fill = format!(
            "INSERT INTO {name} SELECT i, i % 1000, i * 7, timestamptz '2026-01-01 UTC' + i * interval '1 second', i / 3.0, \
             repeat(md5(i::text), 4) FROM generate_series(1, {}) i",
            plan.rows
        );
        pair.on_primary(&fill).await;
    }
    for tables in [1, 4] {
        pair.on_primary(&format!("CREATE PUBLICATION bench{tables} FOR TABLE {}", names(tables).join(", "))).await;
    }
    pair.on_primary("VACUUM FREEZE").await;
    values(&pair.primary, "postgres", "CHECKPOINT").await;
    pair
}

/// One table, then four.
pub async fn run(plan: &Plan, report: &mut Report) {
    let pair = open(plan).await;
    for tables in [1, 4] {
        let case = format!("d {tables}");
        report.case(
            &case,
            &format!("initial copy, {tables} × {} rows of about 200 bytes, binary, several tables at once", plan.rows),
        );
        let mut turns: [Vec<Turn>; 4] = Default::default();
        for round in 0..plan.rounds {
            for (copier, turns) in COPIERS.into_iter().zip(&mut turns) {
                let turn = turn(&pair, plan, copier, tables).await;
                report.progress(&format!("{case} round {}: {copier:?} {:.2} s", round + 1, turn.seconds));
                turns.push(turn);
            }
        }
        compare(report, &case, &turns);
    }
}

fn compare(report: &mut Report, case: &str, turns: &[Vec<Turn>; 4]) {
    let [pipes, sync, own, after] = turns;
    let mut line = |measure: &str, kind, value: fn(&Turn) -> f64, own: &[Turn], peer: (&str, &[Turn]), aim| {
        let disturbed = own.iter().chain(peer.1).filter(|turn| turn.is_disturbed).count();
        let alone = Comparison::absolute(case, measure, "s", each(own, value), aim);
        report.compare(alone.against(kind, peer.0, each(peer.1, value), disturbed));
    };
    let wall: fn(&Turn) -> f64 = |turn| turn.seconds;
    let (pipes, sync) = (("psql COPY pipe, binary", &pipes[..]), ("tablesync, binary", &sync[..]));
    line("wall", Kind::Speed, wall, own, pipes, Some(PIPE_AIM));
    line("wall", Kind::Speed, wall, own, sync, Some(SYNC_AIM));
    line("wall, keys after the rows", Kind::Speed, wall, after, sync, Some(AFTER_AIM));
    // Of the pipes the clients' CPU is missing: they are strangers to both clusters.
    line("sum of CPU", Kind::Share, |turn| turn.cpu_s, own, sync, None);
}
