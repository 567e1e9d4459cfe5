//! Those who bring the rows to the target: walrelay and the native subscription in its variants. Each is made ready on an existing
//! slot, switched on, and taken away again; what is measured lies between.

use std::time::Duration;

use tokio::time::Instant;

use super::database::{RUN, drop_slot};
use super::harness::{Pair, Relay, client, eventually, value, values};
use super::measure::process_cpu;
use super::plan::Plan;

/// How often it is looked whether a slot is in use: the start of the clock.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a contestant may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How long a live batch gathers.
const DELAY: &str = "batch_delay";

/// How many sessions read ahead.
const PREFETCH: &str = "prefetch_connections";

/// A contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// walrelay.
    Relay,
    /// walrelay with `batch_delay = 0`.
    RelayNoDelay,
    /// walrelay with four sessions that read pages ahead.
    RelayPrefetch,
    /// walrelay without any.
    RelayNoPrefetch,
    /// binary, streaming = parallel, `synchronous_commit = off`, as CREATE SUBSCRIPTION makes it.
    Native,
    /// The same with `synchronous_commit = on`: durable when it says so.
    NativeDurable,
    /// Two, the tables shared between them: they tear transactions apart.
    NativeTwo,
}

impl Peer {
    /// In the tables.
    pub fn title(self) -> &'static str {
        match self {
            Peer::Relay => "walrelay",
            Peer::RelayNoDelay => "walrelay, batch_delay = 0",
            Peer::RelayPrefetch => "walrelay, prefetch_connections = 4",
            Peer::RelayNoPrefetch => "walrelay, prefetch_connections = 0",
            Peer::Native => "native",
            Peer::NativeDurable => "native, synchronous_commit = on",
            Peer::NativeTwo => "native, two subscriptions",
        }
    }

    /// Slots and their publications. A slot, its subscription or pipeline, and its standby name are one word.
    pub fn links(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Peer::Relay | Peer::RelayNoDelay | Peer::RelayPrefetch | Peer::RelayNoPrefetch => &[("walrelay", "bench")],
            Peer::Native => &[("native", "bench")],
            Peer::NativeDurable => &[("native_durable", "bench")],
            Peer::NativeTwo => &[("native_accounts", "bench_accounts"), ("native_rest", "bench_rest")],
        }
    }

    /// Whether this version of walrelay can be run so.
    pub fn is_known(self) -> bool {
        self != Peer::RelayNoDelay || place_of(DELAY).is_some()
    }

    fn is_relay(self) -> bool {
        matches!(self, Peer::Relay | Peer::RelayNoDelay | Peer::RelayPrefetch | Peer::RelayNoPrefetch)
    }
}

/// Where the rows come from: the database, and the port at which the primary is reached (a delaying proxy's, or its own).
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The database on the primary.
    pub database: &'a str,
    /// The port.
    pub port: u16,
}

/// A contestant on the database `run` of the target.
pub struct Attached {
    peer: Peer,
    relay: Option<Relay>,
}

/// Makes everything but the connection.
pub async fn prepare(pair: &Pair, plan: &Plan, origin: Origin<'_>, peer: Peer) {
    if peer.is_relay() {
        let drop_origins =
            "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'walrelay%'";
        values(&pair.standby, "postgres", drop_origins).await;
        return;
    }
    let durable = if peer == Peer::NativeDurable { "on" } else { "off" };
    // Parallel from 16 on.
    let streaming = if plan.major >= 16 { "parallel" } else { "on" };
    for (name, publication) in peer.links() {
        let sql = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={} user=postgres dbname={}' PUBLICATION {publication} WITH \
             (enabled = false, create_slot = false, slot_name = '{name}', copy_data = false, binary = true, streaming = {streaming}, \
             synchronous_commit = {durable})",
            origin.port, origin.database
        );
        values(&pair.standby, RUN, &sql).await;
    }
}

/// Where a key of a pipeline stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pipeline,
    Sink,
}

/// Where the explained configuration shows this key; `None` if this version does not know it.
fn place_of(key: &str) -> Option<Place> {
    let text = include_str!("../../config/walrelay.toml");
    let is_shown = |line: &str| line.trim_start_matches(['#', ' ']).starts_with(key);
    let at = text.lines().position(is_shown)?;
    let sink = text.lines().position(|line| line.starts_with("[pipeline.sink]"))?;
    Some(if at < sink { Place::Pipeline } else { Place::Sink })
}

/// walrelay's configuration, as this contestant has it.
pub fn config(pair: &Pair, plan: &Plan, origin: Origin<'_>, peer: Peer) -> String {
    let (name, publication) = peer.links()[0];
    let mut lines = [plan.lines.clone(), plan.sink_lines.clone()];
    let own = match peer {
        Peer::RelayNoDelay => Some((DELAY, "\"0ms\"")),
        Peer::RelayPrefetch => Some((PREFETCH, "4")),
        Peer::RelayNoPrefetch => Some((PREFETCH, "0")),
        _ => None,
    };
    if let Some((key, value)) = own {
        let place = place_of(key).unwrap_or(Place::Pipeline);
        lines[place as usize].push_str(&format!("\n{key} = {value}"));
    }
    let [lines, sink_lines] = lines;
    format!(
        "[primary]\nurl = \"postgres://postgres@127.0.0.1:{}/{}\"\n[[pipeline]]\nname = \"{name}\"\nslot = \"{name}\"\n\
         publication = \"{publication}\"\ninitial_copy = false\non_existing_rows = \"keep\"\n{lines}\n\
         [pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n{sink_lines}\n",
        origin.port,
        origin.database,
        pair.standby.url(RUN),
    )
}

/// Switches it on; gives the moment at which the primary had all its connections.
pub async fn attach(pair: &Pair, plan: &Plan, origin: Origin<'_>, peer: Peer) -> (Attached, Instant) {
    let connected = all_active(pair, peer);
    if peer.is_relay() {
        let text = config(pair, plan, origin, peer);
        let variables = [("WALRELAY__LOG__LEVEL", "info")];
        let (relay, connected) = tokio::join!(Relay::start_with(&text, &variables), connected);
        let Some(moment) = connected else {
            panic!("{} does not connect:\n{}", peer.title(), relay.log());
        };
        return (Attached { peer, relay: Some(relay) }, moment);
    }
    for (name, _) in peer.links() {
        values(&pair.standby, RUN, &format!("ALTER SUBSCRIPTION {name} ENABLE")).await;
    }
    let moment = connected.await;
    let moment = moment.unwrap_or_else(|| panic!("{} does not connect:\n{}", peer.title(), pair.standby.log_tail(20)));
    (Attached { peer, relay: None }, moment)
}

async fn all_active(pair: &Pair, peer: Peer) -> Option<Instant> {
    let session = client(&pair.primary, "postgres").await;
    let names: Vec<&str> = peer.links().iter().map(|(name, _)| *name).collect();
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name = ANY ($1::text[])";
    let query = session.prepare(sql).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < CONNECT_LIMIT {
        let active: i64 = session.query_one(&query, &[&names]).await.unwrap().get(0);
        if active as usize == names.len() {
            return Some(Instant::now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

impl Attached {
    /// walrelay's process.
    pub fn process_id(&self) -> Option<u32> {
        self.relay.as_ref().map(Relay::process_id)
    }

    /// Panics with the reason if walrelay has given up.
    pub async fn must_live(&self) {
        let Some(relay) = &self.relay else { return };
        let name = self.peer.links()[0].0;
        let Some(report) = relay.report(name).await else { panic!("walrelay does not answer:\n{}", relay.log()) };
        assert_ne!(report["state"], "failed", "walrelay has stopped: {}", report["last_error"]);
    }

    /// Until walrelay knows that the primary waits for it: it asks once a second, and gathers until then. Others need not know.
    pub async fn knows_listed(&self) {
        let Some(relay) = &self.relay else { return };
        let name = self.peer.links()[0].0;
        eventually("walrelay knows that it is listed", || async {
            relay.report(name).await.filter(|report| report["sync_state"] == "sync").map(|_| ())
        })
        .await;
    }

    /// CPU of the walsenders that serve it.
    pub async fn walsender_s(&self, pair: &Pair) -> f64 {
        let names: Vec<String> = self.peer.links().iter().map(|(name, _)| format!("'{name}'")).collect();
        let sql =
            format!("SELECT active_pid FROM pg_replication_slots WHERE active AND slot_name IN ({})", names.join(", "));
        let rows = values(&pair.primary, "postgres", &sql).await;
        let ids = rows.into_iter().flatten().flatten().filter_map(|text| text.parse().ok());
        ids.map(|id| process_cpu(id).as_secs_f64()).sum()
    }

    /// Takes it away, its slots too.
    pub async fn detach(mut self, pair: &Pair, is_whole: bool) {
        if let Some(relay) = &mut self.relay {
            if is_whole {
                relay.stop().await;
            } else {
                relay.kill9();
            }
        } else {
            for (name, _) in self.peer.links() {
                for statement in ["DISABLE", "SET (slot_name = NONE)"] {
                    values(&pair.standby, RUN, &format!("ALTER SUBSCRIPTION {name} {statement}")).await;
                }
                values(&pair.standby, RUN, &format!("DROP SUBSCRIPTION {name}")).await;
            }
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%worker'";
            eventually("the workers of the subscription have ended", || async {
                (value(&pair.standby, "postgres", sql).await == "0").then_some(())
            })
            .await;
        }
        for (name, _) in self.peer.links() {
            drop_slot(&pair.primary, name).await;
        }
    }
}
