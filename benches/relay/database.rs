//! The database of a run: made anew as a copy, compared with the primary's by count and hash, its slots dropped.

use walrelay::throwaway::Server;

use super::harness::{eventually, value, values};

/// The database of a run.
pub const RUN: &str = "run";

/// Makes `name` anew as a copy of `template`. Nobody may be connected to either.
pub async fn copy_database(server: &Server, template: &str, name: &str, major: u32) {
    values(server, "postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    // By copying files: through the WAL it would be written twice.
    let strategy = if major >= 15 { " STRATEGY file_copy" } else { "" };
    values(server, "postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}{strategy}")).await;
    values(server, "postgres", "CHECKPOINT").await;
}

/// Count and hash of each table, independent of the order of rows.
pub async fn fingerprints(server: &Server, database: &str, tables: &[String]) -> Vec<String> {
    let mut prints = Vec::new();
    for table in tables {
        let sql = format!(
            "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
        );
        prints.push(format!("{table}: {}", value(server, database, &sql).await));
    }
    prints
}

/// The published tables of a database, quoted.
pub async fn published(server: &Server, database: &str) -> Vec<String> {
    let sql =
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = 'bench' ORDER BY 1";
    values(server, database, sql).await.into_iter().flatten().flatten().collect()
}

/// Drops a slot once nobody reads it any more.
pub async fn drop_slot(primary: &Server, name: &str) {
    eventually(&format!("the slot {name} is free"), || async {
        let sql = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND active");
        (value(primary, "postgres", &sql).await == "0").then_some(())
    })
    .await;
    let sql =
        format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'");
    values(primary, "postgres", &sql).await;
}
