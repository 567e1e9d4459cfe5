//! The lines of K and K2 in the tables, with the bars of the issue. Measures nothing.

use super::bare::Bare;
use super::latency::{Ages, AllAges};
use super::peer::Peer;
use super::turn::Turn;
use crate::comparison::{Comparison, Kind, each};
use crate::drain::Drain;
use crate::plan::Plan;
use crate::report::Report;

/// Our events a second over Debezium's, at least.
const RATE_AIM: f64 = 5.0;
/// Our CPU per event over Debezium's, at most.
const CPU_AIM: f64 = 0.1;
/// Our memory over Debezium's, at most; and MB.
const MEMORY_AIM: f64 = 0.067;
const MEMORY_AIM_MB: f64 = 150.0;
/// Half of the events are younger, ms.
const AGE_AIM_MS: f64 = 5.0;
/// Our rate over a bare producer's, at least.
const BARE_AIM: f64 = 0.7;
/// The time of draining to nothing over ours, at least.
const DRAIN_AIM: f64 = 0.85;
/// A lone transaction may take so many times what a bare one takes, and so many ms more.
const LONE_TIMES: f64 = 1.5;
const LONE_MORE_MS: f64 = 2.0;

/// What is compared of a turn.
type Value = fn(&Turn) -> f64;

/// The turns of one backlog.
pub struct Grouped<'a> {
    /// In the tables.
    pub case: &'a str,
    /// Ours.
    pub own: &'a [Turn],
    /// Against whom.
    pub peer_name: &'a str,
    /// Theirs; empty without a peer.
    pub theirs: &'a [Turn],
}

impl Grouped<'_> {
    fn line(&self, measure: &str, unit: &'static str, kind: Kind, of: (Value, Value), aim: Option<f64>) -> Comparison {
        let alone = |aim| Comparison::absolute(self.case, measure, unit, each(self.own, of.0), aim);
        if self.theirs.is_empty() {
            return alone(None).against(Kind::Absolute, self.peer_name, Vec::new(), 0);
        }
        let disturbed = self.own.iter().chain(self.theirs).filter(|turn| turn.is_disturbed).count();
        alone(aim).against(kind, self.peer_name, each(self.theirs, of.1), disturbed)
    }
}

/// K, of one backlog.
pub fn with_debezium(turns: &Grouped<'_>, report: &mut Report) {
    let both = |value: Value| (value, value);
    let whole: Value = |turn| turn.per_million(turn.cpu_s);
    let without_start: Value = |turn| turn.per_million(turn.cpu_s - turn.start_cpu_s);
    let walsender: Value = |turn| turn.per_million(turn.walsender_s);
    let primary: Value = |turn| turn.per_million(turn.primary_s);
    let broker: Value = |turn| turn.per_million(turn.broker_s);
    let name = "events/s, first to last";
    report.compare(turns.line(name, "/s", Kind::Rate, both(Turn::rate), Some(RATE_AIM)));
    report.compare(turns.line("events/s, from its start", "/s", Kind::Rate, both(Turn::whole_rate), None));
    let name = "CPU of a million events; theirs without the start of the JVM";
    report.compare(turns.line(name, "s", Kind::Share, (whole, without_start), Some(CPU_AIM)));
    report.compare(turns.line("the same with it", "s", Kind::Share, both(whole), None));
    report.compare(turns.line("walsender CPU of a million events", "s", Kind::Share, both(walsender), None));
    report.compare(turns.line("primary CPU of a million events", "s", Kind::Share, both(primary), None));
    report.compare(turns.line("broker CPU of a million events", "s", Kind::Share, both(broker), None));
    let peak: Value = |turn| turn.peak_mb;
    report.compare(turns.line("peak resident set", "MB", Kind::Share, both(peak), Some(MEMORY_AIM)));
    let own = each(turns.own, peak);
    report.compare(Comparison::absolute(turns.case, "peak resident set", "MB", own, Some(MEMORY_AIM_MB)));
}

/// K2, of one backlog: whichever bound was measured.
pub fn with_bound(own: &[Turn], bare: &[Bare], drained: &[Drain], report: &mut Report) {
    let disturbed = own.iter().filter(|turn| turn.is_disturbed).count();
    if !bare.is_empty() {
        let (measure, rates) = ("events/s, first to last", each(own, Turn::rate));
        let alone = Comparison::absolute("k2 1000", measure, "/s", rates, Some(BARE_AIM));
        let name = "bare rdkafka producer, same bytes and settings";
        report.compare(alone.against(Kind::Rate, name, each(bare, Bare::rate), disturbed));
    }
    if !drained.is_empty() {
        let (measure, times) = ("wall, from the connection", each(own, |turn| turn.connected_s));
        let alone = Comparison::absolute("k2 1", measure, "s", times, Some(DRAIN_AIM));
        let walls = each(drained, |drain| drain.client.wall_s);
        let disturbed = disturbed + drained.iter().filter(|drain| drain.is_disturbed).count();
        report.compare(alone.against(Kind::Speed, "walrelay, drained to nothing", walls, disturbed));
    }
}

/// K and K2, of live events.
pub fn ages(plan: &Plan, peer: &Peer, ages: &AllAges, report: &mut Report) {
    let AllAges { contestants: [own, by_default, tuned], bare_ms } = ages;
    let line =
        |measure: &str, unit, value: fn(&Ages) -> f64, peer_name: &str, (theirs, disturbed): (Vec<f64>, usize)| {
            let kind = if theirs.is_empty() { Kind::Absolute } else { Kind::Share };
            let alone = Comparison::absolute("k live", measure, unit, each(own, value), None);
            alone.against(kind, peer_name, theirs, Ages::disturbed(own) + disturbed)
        };
    let p50: fn(&Ages) -> f64 = |ages| ages.p50_ms;
    let p99: fn(&Ages) -> f64 = |ages| ages.p99_ms;
    if plan.wants("k") {
        for (name, theirs) in [(peer.name(" by default"), by_default), (peer.name(", tuned"), tuned)] {
            if theirs.is_empty() && peer.programs().is_some() {
                // A quick run leaves it out.
                continue;
            }
            let of = |value: fn(&Ages) -> f64| (each(theirs, value), Ages::disturbed(theirs));
            report.compare(line("age, p50", "ms", p50, &name, of(p50)));
            report.compare(line("age, p99", "ms", p99, &name, of(p99)));
            let cpu: fn(&Ages) -> f64 = |ages| ages.cpu_percent;
            report.compare(line("CPU", "% of a core", cpu, &name, of(cpu)));
        }
        report.compare(Comparison::absolute("k live", "age, p50", "ms", each(own, p50), Some(AGE_AIM_MS)));
        let answered = each(own, |ages| ages.answered_p50_ms);
        report.compare(Comparison::absolute("k live", "p50 from the commit's answer", "ms", answered, None));
    }
    if !bare_ms.is_empty() {
        let name = "bare Kafka transaction of as many records";
        let age = line("age, p50", "ms", p50, name, (bare_ms.to_vec(), 0));
        report.compare(Comparison { case: "k2 live".to_owned(), ..age });
        let parts = own.iter().zip(bare_ms).map(|(own, bare)| own.p50_ms / (LONE_TIMES * bare + LONE_MORE_MS));
        let name = format!("age, p50 / ({LONE_TIMES} × bare + {LONE_MORE_MS} ms)");
        report.compare(Comparison::absolute("k2 live", &name, "×", parts.collect(), Some(1.0)));
    }
}
