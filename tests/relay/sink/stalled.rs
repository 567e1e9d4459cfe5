//! A standby that reads nothing for a while, since a statement waits for a lock or works long: what was committed before is told all the
//! same, and the session is not taken for lost.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::time::timeout;
use walrelay::model::Lsn;

use super::beside::lock_wait;
use super::depth::{batch, begin, receipt};
use super::{Replay, outcome};
use crate::harness::{client, eventually};

/// More than the kernels of both sides hold on the way.
const ROWS: usize = 40_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_told_while_the_batch_behind_it_stands_in_a_full_socket() {
    let tables = "CREATE TABLE s (a int PRIMARY KEY, b int); CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO s VALUES (1, 0)";
    let mut replay = Replay::new(18, tables).await;
    replay.apply_depth = 4;
    // The first one names both tables: such a one waits for its answers.
    replay.on_primary("UPDATE s SET b = 1; INSERT INTO t VALUES (0, 'x')").await;
    replay.on_primary("UPDATE s SET b = 2").await;
    let large = format!("INSERT INTO t SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, {ROWS}) i");
    replay.on_primary(&large).await;
    let captured = replay.capture().await;
    let ends: Vec<Lsn> = captured.iter().map(|transaction| transaction.end_lsn).collect();
    let mut batches = captured.into_iter().map(|transaction| batch(vec![transaction]));
    let mut worker = replay.worker().await;
    let mut receipts = Vec::new();
    begin(&mut worker, batches.next().unwrap(), &mut receipts).await.unwrap();
    receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    let user = client(&replay._pair.standby, "shop").await;
    user.batch_execute("BEGIN; LOCK TABLE public.t").await.unwrap();
    for batch in batches {
        begin(&mut worker, batch, &mut receipts).await.unwrap();
    }
    while receipts.len() < 2 {
        let told = timeout(Duration::from_secs(20), outcome(&mut worker)).await;
        receipt(told.expect("the small batch is not told").unwrap(), &mut receipts);
    }
    eventually("the large batch waits for the user", || lock_wait(&replay, " apply")).await;
    assert_eq!(receipts, ends[..2]);
    user.batch_execute("COMMIT").await.unwrap();
    while receipts.len() < ends.len() {
        receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    }
    assert_eq!(receipts, ends);
    assert_eq!(replay.equal("SELECT a, md5(b) FROM t").await, 1 + ROWS);
    replay.all_went_as_sets(&[], "a large batch behind a lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_sessions_that_push_rows_may_find_the_standby_not_reading_for_long() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.apply_connections = 2;
    replay.open().await.unwrap();
    let mut found = Vec::new();
    for role in ["apply", "apply2", "flush"] {
        let sql =
            format!("SELECT client_port FROM pg_stat_activity WHERE application_name = 'walrelay standby1 {role}'");
        let port: i32 = replay.standby.query_one(&sql, &[]).await.unwrap().get(0);
        found.push((role, user_timeout(port as u16, replay._pair.standby.port())));
    }
    assert_eq!(found, [("apply", None), ("apply2", None), ("flush", Some(Duration::from_secs(60)))]);
}

/// `TCP_USER_TIMEOUT` of this process' socket between these ports.
fn user_timeout(own: u16, other: u16) -> Option<Duration> {
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let name = entry.unwrap().file_name();
        let number: RawFd = name.to_str().unwrap().parse().unwrap();
        // SAFETY: it is only asked what it is; of one that another test has closed meanwhile the kernel knows nothing.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let socket = SockRef::from(&descriptor);
        let ports = [socket.local_addr(), socket.peer_addr()]
            .map(|address| address.ok().and_then(|address| address.as_socket()).map(|address| address.port()));
        if ports == [Some(own), Some(other)] {
            return socket.tcp_user_timeout().unwrap();
        }
    }
    panic!("no socket between the ports {own} and {other}");
}
