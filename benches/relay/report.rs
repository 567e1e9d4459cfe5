//! What came out: comparisons as ratios of medians with their spread, what each contestant cost, and the bars of the issue. Prints a
//! table at the end and writes it to a file. Judges, but does not fail.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use super::apply::Drain;
use super::measure::{median, verdict};
use super::workload::Workload;

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
    /// A number of ours that has no peer.
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

    fn cells(&self) -> [String; 8] {
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

/// What one contestant cost in one case, in medians.
#[derive(Clone, Debug)]
pub struct Cost {
    cells: [String; 10],
}

impl Cost {
    /// Of the drains of a backlog.
    pub fn of(workload: &Workload, title: &str, drains: &[Drain]) -> Self {
        let middle = |value: fn(&Drain) -> f64| median(drains.iter().map(value));
        let seconds = |value: fn(&Drain) -> f64| format!("{:.2}", middle(value));
        let peak = middle(|drain| drain.peak_mb);
        Self {
            cells: [
                workload.case.to_owned(),
                title.to_owned(),
                with_spread(&drains.iter().map(|drain| drain.wall_s).collect::<Vec<_>>(), "s"),
                seconds(|drain| drain.visible_s),
                format!("{:.0} {}/s", workload.units as f64 / middle(|drain| drain.wall_s), workload.unit),
                format!("{} ({})", seconds(|drain| drain.usage.primary_s), seconds(|drain| drain.walsender_s)),
                seconds(|drain| drain.usage.target_s),
                seconds(|drain| drain.usage.own_s),
                seconds(|drain| drain.usage.sum_s()),
                if peak > 0.0 { format!("{peak:.0} MB") } else { String::new() },
            ],
        }
    }
}

/// `12.30 s (11.00–14.10)`
fn with_spread(values: &[f64], unit: &str) -> String {
    if values.is_empty() {
        return String::new();
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = if high >= 1000.0 { 0 } else { 2 };
    let middle = median(values.iter().copied());
    format!("{middle:.digits$} {unit} ({low:.digits$}–{high:.digits$})")
}

/// Everything that came out of one run of the program.
pub struct Report {
    /// Machine, versions, date.
    pub head: Vec<String>,
    /// Whether it must not be quoted.
    pub is_quick: bool,
    /// Cases in words.
    pub cases: Vec<(String, String)>,
    /// The comparisons.
    pub comparisons: Vec<Comparison>,
    costs: Vec<Cost>,
    sections: Vec<String>,
    began: Instant,
}

impl Report {
    /// An empty one.
    pub fn new(head: Vec<String>, is_quick: bool) -> Self {
        Self {
            head,
            is_quick,
            cases: Vec::new(),
            comparisons: Vec::new(),
            costs: Vec::new(),
            sections: Vec::new(),
            began: Instant::now(),
        }
    }

    /// One run is over.
    pub fn progress(&self, text: &str) {
        println!("{:>6} s  {text}", self.began.elapsed().as_secs());
        let _ = std::io::stdout().flush();
    }

    /// What a case measured, in words.
    pub fn case(&mut self, case: &str, title: &str) {
        self.cases.push((case.to_owned(), title.to_owned()));
    }

    /// One more line.
    pub fn compare(&mut self, comparison: Comparison) {
        self.comparisons.push(comparison);
    }

    /// One more contestant.
    pub fn cost(&mut self, cost: Cost) {
        self.costs.push(cost);
    }

    /// Some more text, in Markdown.
    pub fn section(&mut self, text: String) {
        self.sections.push(text);
    }

    /// The whole of it, in Markdown that reads well in a terminal too.
    pub fn text(&self) -> String {
        let mut text = String::from("# walrelay: make bench\n\n");
        if self.is_quick {
            text.push_str(
                "**QUICK RUN: sizes cut down, one round. It shows that the cases work; it must not be quoted.**\n\n",
            );
        }
        for line in &self.head {
            let _ = writeln!(text, "* {line}");
        }
        text.push_str("\n## Cases\n\n");
        for (case, title) in &self.cases {
            let _ = writeln!(text, "* **{case}** {title}");
        }
        let title = ["case", "measure", "walrelay", "peer", "peer's", "ratio", "aim", ""];
        text.push_str("\n## Against the peers\n\nMedian (min–max) of the rounds; the ratio is that of the medians. A time's ratio is the peer's over ours, a cost's and a rate's is ours over the peer's.\n\n");
        let rows: Vec<[String; 8]> = self.comparisons.iter().map(Comparison::cells).collect();
        table(&mut text, &title, &rows);
        if !self.costs.is_empty() {
            let title =
                ["case", "who", "wall", "visible", "rate", "primary (walsender)", "target", "walrelay", "sum", "peak"];
            text.push_str("\n## Where the CPU went\n\nSeconds, medians.\n\n");
            let rows: Vec<[String; 10]> = self.costs.iter().map(|cost| cost.cells.clone()).collect();
            table(&mut text, &title, &rows);
        }
        for section in &self.sections {
            let _ = write!(text, "\n{section}");
        }
        text
    }
}

/// A table whose columns stand under each other.
fn table<const N: usize>(text: &mut String, title: &[&str; N], rows: &[[String; N]]) {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([title[at].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut line = |cells: &[String; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "| {} |", padded.join(" | "));
    };
    line(&title.map(str::to_owned));
    line(&widths.map(|width| "-".repeat(width)));
    rows.iter().for_each(line);
}
