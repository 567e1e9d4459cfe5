//! Case D: the initial copy of one table, of four, and of one with three indexes, against the subscription's own copy and
//! `psql COPY TO (FORMAT binary) | psql COPY FROM`; with the indexes in place, and made after the rows.

use std::process::Command;
use std::time::{Duration, Instant};

use super::comparison::{Comparison, Kind, each};
use super::database::{RUN, copy_database, fingerprints};
use super::harness::{Pair, Relay, client, eventually, value, values};
use super::plan::Plan;
use super::program::{output, tool};
use super::report::Report;
use super::servers::pair;
use super::usage::{Meter, Usage};

/// The pipe's time over ours, and the subscription's over ours, at least.
const PIPE_AIM: f64 = 0.95;
const SYNC_AIM: f64 = 1.0;
/// The subscription's time over ours with the indexes made after the rows, at least.
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
    /// walrelay into tables without an index; the indexes are made after the rows, and count.
    RelayIndexesAfter,
}

const COPIERS: [Copier; 4] = [Copier::Pipes, Copier::Tablesync, Copier::Relay, Copier::RelayIndexesAfter];

/// What is copied.
struct Set {
    /// The last word of the case's name, and of the publication's.
    name: &'static str,
    tables: &'static [&'static str],
    /// Columns with an index each, beside the primary key.
    indexed: &'static [&'static str],
}

const SETS: [Set; 3] = [
    Set { name: "1", tables: &["c0"], indexed: &[] },
    Set { name: "4", tables: &["c0", "c1", "c2", "c3"], indexed: &[] },
    Set { name: "indexed", tables: &["i0"], indexed: &["a", "filler"] },
];

/// One copy.
struct Turn {
    seconds: f64,
    usage: Usage,
}

/// psql into psql, all tables at once.
async fn pipes(pair: &Pair, set: &Set) {
    let psql = tool("psql");
    let one = |name: &&str| {
        format!(
            "\"{psql}\" -X -q -d {} -c 'COPY {name} TO STDOUT (FORMAT binary)' | \
             \"{psql}\" -X -q -d {} -c 'COPY {name} FROM STDIN (FORMAT binary)'",
            pair.primary.url("shop"),
            pair.standby.url(RUN),
            psql = psql.display()
        )
    };
    let script = set.tables.iter().map(one).collect::<Vec<_>>().join(" & ");
    output(Command::new("sh").arg("-c").arg(format!("{script} & wait")));
}

/// Until every table's rows are there.
async fn tablesync(pair: &Pair, set: &Set) {
    let port = pair.primary.port();
    let sql = format!(
        "CREATE SUBSCRIPTION sync CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=shop' PUBLICATION bench_{} \
         WITH (binary = true)",
        set.name
    );
    values(&pair.standby, RUN, &sql).await;
    let session = client(&pair.standby, RUN).await;
    let copied =
        session.prepare("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate IN ('f', 's', 'r')").await.unwrap();
    let began = Instant::now();
    while session.query_one(&copied, &[]).await.unwrap().get::<_, i64>(0) as usize != set.tables.len() {
        assert!(began.elapsed() < LIMIT, "the subscription does not copy:\n{}", pair.standby.log_tail(20));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn relay(pair: &Pair, set: &Set) -> Relay {
    let config = format!(
        "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"copy\"\npublication = \"bench_{}\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.primary.url("shop"),
        set.name,
        pair.standby.url(RUN)
    );
    let relay = Relay::start_with(&config, &[("WALRELAY__LOG__LEVEL", "info")]).await;
    let began = Instant::now();
    loop {
        let report = relay.report("copy").await.unwrap_or_default();
        if report["copy"]["tables_done"] == set.tables.len()
            && matches!(report["state"].as_str(), Some("catching_up" | "streaming"))
        {
            return relay;
        }
        assert_ne!(report["state"], "failed", "walrelay has stopped: {}", report["last_error"]);
        assert!(began.elapsed() < LIMIT, "walrelay does not copy:\n{}", relay.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All tables at once, a session each.
async fn make_indexes(pair: &Pair, set: &Set) {
    let tables = set.tables.iter().map(|name| async move {
        values(&pair.standby, RUN, &indexes(name, set)).await;
    });
    futures_util::future::join_all(tables).await;
}

/// The table's indexes as SQL.
fn indexes(name: &str, set: &Set) -> String {
    let others = set.indexed.iter().map(|column| format!("; CREATE INDEX ON {name} ({column})"));
    format!("ALTER TABLE {name} ADD PRIMARY KEY (id){}", others.collect::<String>())
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

async fn turn(pair: &Pair, plan: &Plan, copier: Copier, set: &Set) -> Turn {
    let template = if copier == Copier::RelayIndexesAfter { "bare" } else { "shop" };
    copy_database(&pair.standby, template, RUN, plan.major).await;
    let meter = Meter::start(&[&pair.primary, &pair.standby], None);
    let began = Instant::now();
    let mut running = None;
    match copier {
        Copier::Pipes => pipes(pair, set).await,
        Copier::Tablesync => tablesync(pair, set).await,
        Copier::Relay => running = Some(relay(pair, set).await),
        Copier::RelayIndexesAfter => {
            running = Some(relay(pair, set).await);
            make_indexes(pair, set).await;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let usage = meter.stop(running.as_ref().map(Relay::process_id));
    if let Some(mut relay) = running {
        relay.stop().await;
    }
    clean(pair, copier).await;
    let tables: Vec<String> = set.tables.iter().map(|name| (*name).to_owned()).collect();
    let expected = fingerprints(&pair.primary, "shop", &tables).await;
    assert_eq!(fingerprints(&pair.standby, RUN, &tables).await, expected, "{copier:?}: the target differs");
    Turn { seconds, usage }
}

async fn open(plan: &Plan) -> Pair {
    let pair = pair(plan.major).await;
    values(&pair.standby, "postgres", "CREATE DATABASE bare").await;
    // The first set's table is one of the second's.
    let created = SETS[1..].iter().flat_map(|set| set.tables.iter().map(move |name| (set, *name)));
    for (set, name) in created {
        let table = "(id bigint NOT NULL, a int, b bigint, at timestamptz, amount float8, filler text)";
        pair.on_both(&format!("CREATE TABLE {name} {table}; {}", indexes(name, set))).await;
        values(&pair.standby, "bare", &format!("CREATE TABLE {name} {table}")).await;
        let fill = format!(
            "INSERT INTO {name} SELECT i, i % 1000, i * 7, timestamptz '2026-01-01 UTC' + i * interval '1 second', i / 3.0, \
             repeat(md5(i::text), 4) FROM generate_series(1, {}) i",
            plan.rows
        );
        pair.on_primary(&fill).await;
    }
    for Set { name, tables, .. } in SETS {
        pair.on_primary(&format!("CREATE PUBLICATION bench_{name} FOR TABLE {}", tables.join(", "))).await;
    }
    pair.on_primary("VACUUM FREEZE").await;
    values(&pair.primary, "postgres", "CHECKPOINT").await;
    pair
}

/// One set after the other.
pub async fn run(plan: &Plan, report: &mut Report) {
    let pair = open(plan).await;
    for set in SETS {
        let case = format!("d {}", set.name);
        let (tables, indexes) = (set.tables.len(), 1 + set.indexed.len());
        let what = format!(
            "initial copy, {tables} × {} rows of about 200 bytes, {indexes} index(es) a table, binary",
            plan.rows
        );
        report.case(&case, &what);
        let mut turns: [Vec<Turn>; 4] = Default::default();
        for round in 0..plan.rounds {
            for (copier, turns) in COPIERS.into_iter().zip(&mut turns) {
                let turn = turn(&pair, plan, copier, &set).await;
                let Usage { primary_s, target_s, own_s, .. } = turn.usage;
                let cpu = format!("CPU {primary_s:.2} + {target_s:.2} s of the servers, {own_s:.2} s of walrelay");
                report.progress(&format!("{case} round {}: {copier:?} {:.2} s; {cpu}", round + 1, turn.seconds));
                turns.push(turn);
            }
        }
        compare(report, &case, &turns);
    }
}

fn compare(report: &mut Report, case: &str, turns: &[Vec<Turn>; 4]) {
    let [pipes, sync, own, after] = turns;
    let mut line = |measure: &str, kind, value: fn(&Turn) -> f64, own: &[Turn], peer: (&str, &[Turn]), aim| {
        let disturbed = own.iter().chain(peer.1).filter(|turn| turn.usage.is_disturbed()).count();
        let alone = Comparison::absolute(case, measure, "s", each(own, value), aim);
        report.compare(alone.against(kind, peer.0, each(peer.1, value), disturbed));
    };
    let wall: fn(&Turn) -> f64 = |turn| turn.seconds;
    let (pipes, sync) = (("psql COPY pipe, binary", &pipes[..]), ("tablesync, binary", &sync[..]));
    line("wall", Kind::Speed, wall, own, pipes, Some(PIPE_AIM));
    line("wall", Kind::Speed, wall, own, sync, Some(SYNC_AIM));
    line("wall, indexes after the rows", Kind::Speed, wall, after, sync, Some(AFTER_AIM));
    // Of the pipes the clients' CPU is missing: they are strangers to both clusters.
    line("sum of CPU", Kind::Share, |turn| turn.usage.sum_s(), own, sync, None);
}
