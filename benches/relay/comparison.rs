//! One comparison: our numbers beside a peer's, a number a round, as a ratio of medians with its spread and the bar of the issue. Judges,
//! but does not fail.

use super::measure::{median, verdict};

/// A turn that takes less is short beside what a machine does now and then.
const SHORT_S: f64 = 15.0;

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of times: the peer's over ours; the more the better.
    Speed,
    /// Of costs: ours over the peer's; the less the better.
    Share,
    /// Of rates: ours over the peer's; the more the better.
    Rate,
    /// No peer: our number itself, the less the better.
    Absolute,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Of which case.
    pub case: String,
    /// What was measured.
    pub measure: String,
    /// Its unit.
    pub unit: &'static str,
    /// What the ratio says.
    pub kind: Kind,
    /// Ours, a number a round.
    pub own: Vec<f64>,
    /// Against whom.
    pub peer_name: String,
    /// Theirs.
    pub peer: Vec<f64>,
    /// What the ratio must be.
    pub aim: Option<f64>,
    /// Runs among these with too much foreign CPU.
    pub disturbed: usize,
    /// Runs among these that were cut off at the limit.
    pub cut_off: usize,
}

impl Comparison {
    /// A number of ours that has no peer; [`Comparison::against`] gives it one.
    pub fn absolute(case: &str, measure: &str, unit: &'static str, own: Vec<f64>, aim: Option<f64>) -> Self {
        Self {
            case: case.to_owned(),
            measure: measure.to_owned(),
            unit,
            kind: Kind::Absolute,
            own,
            peer_name: String::new(),
            peer: Vec::new(),
            aim,
            disturbed: 0,
            cut_off: 0,
        }
    }

    /// The same beside a peer's numbers; and how many of all these runs were disturbed.
    pub fn against(self, kind: Kind, peer_name: &str, peer: Vec<f64>, disturbed: usize) -> Self {
        Self { kind, peer_name: peer_name.to_owned(), peer, disturbed, ..self }
    }

    fn ratio_of(&self, own: f64, peer: f64) -> f64 {
        match self.kind {
            Kind::Speed => peer / own,
            Kind::Share | Kind::Rate => own / peer,
            Kind::Absolute => own,
        }
    }

    /// The ratio of medians.
    pub fn ratio(&self) -> f64 {
        self.ratio_of(median(self.own.iter().copied()), self.peer_median())
    }

    fn peer_median(&self) -> f64 {
        if self.peer.is_empty() { f64::NAN } else { median(self.peer.iter().copied()) }
    }

    /// The smallest and the largest ratio of one round; of a peer with fewer rounds, against its median.
    pub fn spread(&self) -> (f64, f64) {
        let is_paired = self.peer.len() == self.own.len();
        let ratios = self
            .own
            .iter()
            .enumerate()
            .map(|(at, own)| self.ratio_of(*own, if is_paired { self.peer[at] } else { self.peer_median() }));
        ratios.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), ratio| (low.min(ratio), high.max(ratio)))
    }

    fn is_met(&self) -> Option<bool> {
        let aim = self.aim?;
        Some(if matches!(self.kind, Kind::Speed | Kind::Rate) { self.ratio() >= aim } else { self.ratio() <= aim })
    }

    /// Whether the peer had less than [`SHORT_S`] in the middle of its turns, where these are times.
    fn is_short(&self) -> bool {
        self.kind == Kind::Speed && self.unit == "s" && self.peer_median() < SHORT_S
    }

    /// Its row of the table. Of a quick run all turns are short.
    pub fn cells(&self, is_quick: bool) -> [String; 8] {
        let sign = if matches!(self.kind, Kind::Speed | Kind::Rate) { '≥' } else { '≤' };
        let mut remarks: Vec<String> = Vec::new();
        remarks.extend(self.is_met().map(|is_met| verdict(is_met).to_owned()));
        if self.disturbed > 0 {
            remarks.push(format!("{} of {} runs disturbed", self.disturbed, self.own.len() + self.peer.len()));
        }
        if self.cut_off > 0 {
            remarks.push(format!("{} cut off", self.cut_off));
        }
        let is_alone = self.kind == Kind::Absolute;
        if !is_alone && self.peer.len() < self.own.len() {
            remarks.push(format!("peer: {} of {} rounds", self.peer.len(), self.own.len()));
        }
        if !is_quick && self.is_short() {
            remarks.push(format!("peer's turn under {SHORT_S} s"));
        }
        let (low, high) = self.spread();
        [
            self.case.clone(),
            self.measure.clone(),
            with_spread(&self.own, self.unit),
            self.peer_name.clone(),
            if is_alone { String::new() } else { with_spread(&self.peer, self.unit) },
            if is_alone { String::new() } else { format!("{:.2} ({low:.2}–{high:.2})", self.ratio()) },
            self.aim.map(|aim| format!("{sign} {aim}")).unwrap_or_default(),
            remarks.join("; "),
        ]
    }
}

/// One number of each turn.
pub fn each<T>(turns: &[T], value: impl Fn(&T) -> f64) -> Vec<f64> {
    turns.iter().map(value).collect()
}

/// `12.30 s (11.00–14.10)`
pub fn with_spread(values: &[f64], unit: &str) -> String {
    if values.is_empty() {
        return String::new();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = if high >= 1000.0 { 0 } else { 2 };
    let middle = median(values.iter().copied());
    format!("{middle:.digits$} {unit} ({low:.digits$}–{high:.digits$})")
}
