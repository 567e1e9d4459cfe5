//! A physical standby of a primary, made from a copy of its folder: the peer that PostgreSQL itself offers. Runs only in its turns.

use std::process::Command;

use walrelay::throwaway::Server;

use super::harness::{eventually, start_server, value, values};
use super::servers::options;

/// Its name at the primary, and its slot's.
pub const NAME: &str = "physical";

/// A stopped standby of a primary, which is stopped and started again meanwhile.
pub async fn make(primary: &mut Server, major: u32) -> Server {
    values(primary, "postgres", &format!("SELECT pg_create_physical_replication_slot('{NAME}', true)")).await;
    let mut standby = start_server(major, options()).await;
    standby.stop_fast();
    primary.stop_fast();
    let target = standby.data_dir();
    std::fs::remove_dir_all(&target).unwrap();
    // With its owner: we may be root, the server is not.
    let status = Command::new("cp").arg("-a").arg(primary.data_dir()).arg(&target).status().unwrap();
    assert!(status.success(), "cp -a of the primary's folder");
    // The primary's slots are none of its own.
    for slot in std::fs::read_dir(target.join("pg_replslot")).unwrap().flatten() {
        std::fs::remove_dir_all(slot.path()).unwrap();
    }
    standby.write("standby.signal", "").unwrap();
    primary.start_again().await.unwrap();
    standby
}

/// Starts it, fed from that port of the primary.
pub async fn start(standby: &mut Server, port: u16) {
    let settings = format!(
        "primary_conninfo = 'host=127.0.0.1 port={port} user=postgres application_name={NAME}'\nprimary_slot_name = '{NAME}'\n"
    );
    standby.write("postgresql.auto.conf", &settings).unwrap();
    standby.start_again().await.unwrap();
}

/// Until it has replayed the primary's WAL up to there, by its own word.
pub async fn wait_replayed(standby: &Server, end: &str) {
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    eventually(&format!("{NAME} has replayed {end}"), || async {
        (value(standby, "postgres", &sql).await == "t").then_some(())
    })
    .await;
}
