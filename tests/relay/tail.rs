//! `walrelay tail`: a look at the changes that is in nobody's way and leaves nothing behind.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use walrelay::throwaway::{Options, Server};

use super::harness::{eventually, server, start_server, value, values};

fn start(server: &Server, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    command.args(["tail", "--primary", &server.url("postgres")]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn publications(server: &Server) -> String {
    value(server, "postgres", "SELECT count(*) FROM pg_publication").await
}

async fn until_it_streams(server: &Server) {
    eventually("it streams", || async {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        (value(server, "postgres", sql).await == "1").then_some(())
    })
    .await;
}

/// What a killed one left is swept up by the next, and never a pipeline's own publication.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_tables_without_a_key_are_not_disturbed_and_nothing_stays() {
    let server = server(18).await;
    values(
        &server,
        "postgres",
        "CREATE TABLE keyed (id int PRIMARY KEY, t text); CREATE TABLE keyless (a int); CREATE PUBLICATION walrelay_tail_1;
         CREATE TABLE parted (a int) PARTITION BY LIST (a); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)",
    )
    .await;
    let mut killed = start(&server, &[]);
    until_it_streams(&server).await;
    assert_eq!(publications(&server).await, "3");
    killed.kill().await.unwrap();
    eventually("its sessions are gone", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walrelay tail%'";
        (value(&server, "postgres", sql).await == "0").then_some(())
    })
    .await;
    assert_eq!(publications(&server).await, "3", "a killed one cannot clean up");

    let mut tail = start(&server, &["--count", "4"]);
    until_it_streams(&server).await;
    values(
        &server,
        "postgres",
        "INSERT INTO keyless VALUES (1); UPDATE keyless SET a = 2; DELETE FROM keyless; INSERT INTO parted VALUES (1);
         UPDATE parted SET a = 1; INSERT INTO keyed VALUES (1, NULL); DELETE FROM keyed",
    )
    .await;
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let change: Value = serde_json::from_str(&line).unwrap();
        seen.push(format!("{} {}", change["op"].as_str().unwrap(), change["table"].as_str().unwrap()));
    }
    assert_eq!(seen, ["insert keyless", "insert parted_1", "insert keyed", "delete keyed"]);
    let mut warnings = String::new();
    tail.stderr.take().unwrap().read_to_string(&mut warnings).await.unwrap();
    assert!(warnings.contains("public.keyless") && !warnings.contains("public.keyed"), "{warnings}");
    assert!(tail.wait().await.unwrap().success());
    assert_eq!(
        value(&server, "postgres", "SELECT string_agg(pubname, ',') FROM pg_publication").await,
        "walrelay_tail_1"
    );
    eventually("the temporary slot is gone", || async {
        (value(&server, "postgres", "SELECT count(*) FROM pg_replication_slots").await == "0").then_some(())
    })
    .await;
}

/// Whoever reads its output may rest: the primary hears of it all the same, and so does whoever ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_rests_holds_up_neither_the_primary_nor_the_end() {
    let server = start_server(18, Options::default().with("wal_sender_timeout", "2s")).await;
    values(&server, "postgres", "CREATE TABLE keyed (id int PRIMARY KEY, filler text)").await;
    let mut tail = start(&server, &[]);
    until_it_streams(&server).await;
    let walsender = value(&server, "postgres", "SELECT pid FROM pg_stat_replication").await;
    // More than a pipe holds.
    values(&server, "postgres", "INSERT INTO keyed SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i").await;
    let written_at = value(&server, "postgres", "SELECT clock_timestamp()").await;
    let heard = format!(
        "SELECT bool_and(pid = {walsender} AND reply_time > '{written_at}'::timestamptz + interval '5 s') FROM pg_stat_replication"
    );
    eventually("the primary hears from it", || async {
        (value(&server, "postgres", &heard).await == "t").then_some(())
    })
    .await;
    // SAFETY: the process is our child and not yet reaped.
    unsafe { libc::kill(tail.id().unwrap() as i32, libc::SIGTERM) };
    assert!(tail.wait().await.unwrap().success());
    assert_eq!(publications(&server).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_order() {
    let server = server(18).await;
    values(&server, "postgres", "CREATE TABLE keyed (id int PRIMARY KEY)").await;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut tail = start(&server, &["--tables", "public.*"]);
        until_it_streams(&server).await;
        // SAFETY: the process is our child and not yet reaped.
        unsafe { libc::kill(tail.id().unwrap() as i32, signal) };
        assert!(tail.wait().await.unwrap().success());
        assert_eq!(publications(&server).await, "0");
    }
}
