//! The lines of K and K2 in the tables, with the bars of the issue. Measures nothing.

use super::bare::Bare;
use super::latency::{Ages, AllAges};
use super::peer::Peer;
use super::turn::Turn;
use crate::comparison::{Comparison, Kind};
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
        let own: Vec<f64> = self.own.iter().map(of.0).collect();
        if self.theirs.is_empty() {
            let peer_name = self.peer_name.to_owned();
            return Comparison { peer_name, ..Comparison::absolute(self.case, measure, unit, own, None) };
        }
        Comparison {
            case: self.case.to_owned(),
            measure: measure.to_owned(),
            unit,
            kind,
            own,
            peer_name: self.peer_name.to_owned(),
            peer: self.theirs.iter().map(of.1).collect(),
            aim,
            disturbed: self.own.iter().chain(self.theirs).filter(|turn| turn.is_disturbed).count(),
            cut_off: 0,
        }
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
    let own = turns.own.iter().map(peak).collect();
    report.compare(Comparison::absolute(turns.case, "peak resident set", "MB", own, Some(MEMORY_AIM_MB)));
}

/// K2, of one backlog: whichever bound was measured.
pub fn with_bound(own: &[Turn], bare: &[Bare], drained: &[Drain], report: &mut Report) {
    let disturbed = own.iter().filter(|turn| turn.is_disturbed).count();
    if !bare.is_empty() {
        report.compare(Comparison {
            case: "k2 1000".to_owned(),
            measure: "events/s, first to last".to_owned(),
            unit: "/s",
            kind: Kind::Rate,
            own: own.iter().map(Turn::rate).collect(),
            peer_name: "bare rdkafka producer, same bytes and settings".to_owned(),
            peer: bare.iter().map(Bare::rate).collect(),
            aim: Some(BARE_AIM),
            disturbed,
            cut_off: 0,
        });
    }
    if !drained.is_empty() {
        report.compare(Comparison {
            case: "k2 1".to_owned(),
            measure: "wall, from the connection".to_owned(),
            unit: "s",
            kind: Kind::Speed,
            own: own.iter().map(|turn| turn.connected_s).collect(),
            peer_name: "walrelay, drained to nothing".to_owned(),
            peer: drained.iter().map(|drain| drain.client.wall_s).collect(),
            aim: Some(DRAIN_AIM),
            disturbed: disturbed + drained.iter().filter(|drain| drain.is_disturbed).count(),
            cut_off: 0,
        });
    }
}

/// K and K2, of live events.
pub fn ages(plan: &Plan, peer: &Peer, ages: &AllAges, report: &mut Report) {
    let AllAges { contestants: [own, by_default, tuned], bare_ms } = ages;
    let of = |ages: &[Ages], value: fn(&Ages) -> f64| ages.iter().map(value).collect::<Vec<f64>>();
    let line = |measure: &str, unit, value: fn(&Ages) -> f64, peer_name: &str, theirs: Vec<f64>| Comparison {
        kind: if theirs.is_empty() { Kind::Absolute } else { Kind::Share },
        peer_name: peer_name.to_owned(),
        peer: theirs,
        ..Comparison::absolute("k live", measure, unit, of(own, value), None)
    };
    let p50: fn(&Ages) -> f64 = |ages| ages.p50_ms;
    let p99: fn(&Ages) -> f64 = |ages| ages.p99_ms;
    if plan.wants("k") {
        for (name, theirs) in [(peer.name(" by default"), by_default), (peer.name(", tuned"), tuned)] {
            if theirs.is_empty() && peer.programs().is_some() {
                // A quick run leaves it out.
                continue;
            }
            report.compare(line("age, p50", "ms", p50, &name, of(theirs, p50)));
            report.compare(line("age, p99", "ms", p99, &name, of(theirs, p99)));
            let cpu: fn(&Ages) -> f64 = |ages| ages.cpu_percent;
            report.compare(line("CPU", "% of a core", cpu, &name, of(theirs, cpu)));
        }
        report.compare(Comparison::absolute("k live", "age, p50", "ms", of(own, p50), Some(AGE_AIM_MS)));
        let answered = of(own, |ages| ages.answered_p50_ms);
        report.compare(Comparison::absolute("k live", "p50 from the commit's answer", "ms", answered, None));
    }
    if !bare_ms.is_empty() {
        let name = "bare Kafka transaction of as many records";
        report
            .compare(Comparison { case: "k2 live".to_owned(), ..line("age, p50", "ms", p50, name, bare_ms.to_vec()) });
        let parts = own.iter().zip(bare_ms).map(|(own, bare)| own.p50_ms / (LONE_TIMES * bare + LONE_MORE_MS));
        let name = format!("age, p50 / ({LONE_TIMES} × bare + {LONE_MORE_MS} ms)");
        report.compare(Comparison::absolute("k2 live", &name, "×", parts.collect(), Some(1.0)));
    }
}
