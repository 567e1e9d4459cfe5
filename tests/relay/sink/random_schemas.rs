//! Random work over random tables, whose standby side differs in what may differ: both sides end alike, and nothing is written row by
//! row that need not be. `WALRELAY_TEST_SEED` repeats a round, `WALRELAY_TEST_SECONDS` sets how long it goes on with each form of values.

use std::time::{Duration, Instant};

use walrelay::model::Fallbacks;

use super::Replay;
use crate::harness::{Pair, from_environment};
use crate::random_schema::Table;
use crate::random_work::{Dice, TYPES};

const TABLES: usize = 8;

/// One round: tables, work, both sides alike, tables gone.
async fn round(replay: &mut Replay, round: usize, dice: &mut Dice, is_alike: bool) -> usize {
    let tables: Vec<Table> = (0..TABLES).map(|at| Table::random(dice, format!("r{round}_{at}"), is_alike)).collect();
    for table in &tables {
        replay.on_primary(&table.schema(false)).await;
        replay.on_standby(&table.schema(true)).await;
    }
    // A new session compares the types of the new tables, and counts anew.
    (replay.sink, replay.fallbacks) = (None, Fallbacks::default());
    let in_order: Vec<String> =
        tables.iter().filter(|table| table.goes_in_order()).map(|table| format!("public.{}", table.name)).collect();
    let in_order: Vec<&str> = in_order.iter().map(String::as_str).collect();
    let mut rows = 0;
    for part in 0..4 {
        for transaction in 0..15 {
            let count = 1 + dice.roll(6);
            let statements: Vec<String> = (0..count)
                .map(|at| {
                    let table = dice.roll(TABLES as u64) as usize;
                    tables[table].statement(dice, part * 1000 + transaction * 10 + at)
                })
                .collect();
            replay.on_primary(&statements.join("; ")).await;
        }
        if let Err(error) = replay.relay().await {
            panic!("{error}; tables: {tables:#?}");
        }
        for table in &tables {
            rows += replay.equal(&format!("SELECT {} FROM {}", table.columns(), table.name)).await;
        }
        replay.all_went_as_sets(&in_order, &format!("{tables:#?}"));
    }
    for table in &tables {
        replay.on_both(&format!("DROP TABLE {}", table.name)).await;
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn random_work_over_random_tables_ends_alike_without_a_fallback() {
    let budget = Duration::from_secs(from_environment("WALRELAY_TEST_SECONDS", 8));
    let mut seed = Dice::seed();
    for (major, is_binary) in [(18, false), (18, true), (14, false)] {
        let mut replay = Replay::unlike(Pair::start(major).await, TYPES, TYPES).await;
        replay = replay.in_form(is_binary).await;
        let (began, mut rounds, mut rows) = (Instant::now(), 0, 0);
        while rounds == 0 || began.elapsed() < budget {
            rows += round(&mut replay, rounds, &mut Dice::of(seed), is_binary).await;
            rounds += 1;
            seed += 1;
        }
        println!("{major}, binary: {is_binary}: {rounds} rounds of {TABLES} tables, {rows} rows compared");
        assert!(rows > 100 * rounds, "the work left next to nothing");
    }
}
