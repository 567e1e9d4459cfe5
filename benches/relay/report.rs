//! Everything that came out of one run: the cases in words, the comparisons, what each contestant cost. Put together here as one text of
//! tables; where it goes is no matter of this file.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use super::comparison::Comparison;

/// The columns of the table of costs.
pub const COST_COLUMNS: [&str; 10] =
    ["case", "who", "wall", "visible", "rate", "primary (walsender)", "target", "walrelay", "sum", "peak"];

/// What one contestant cost in one case: a cell for each of these.
pub type Cost = [String; COST_COLUMNS.len()];

/// Everything that came out of one run of the program.
pub struct Report {
    /// What its files are called.
    pub stem: String,
    /// Machine, versions, date.
    pub head: Vec<String>,
    /// Whether it must not be quoted.
    pub is_quick: bool,
    /// When the run began.
    began: Instant,
    /// Cases in words.
    pub cases: Vec<(String, String)>,
    /// The comparisons.
    pub comparisons: Vec<Comparison>,
    costs: Vec<Cost>,
    sections: Vec<String>,
}

impl Report {
    /// An empty one.
    pub fn new(stem: String, head: Vec<String>, is_quick: bool) -> Self {
        Self {
            stem,
            head,
            is_quick,
            began: Instant::now(),
            cases: Vec::new(),
            comparisons: Vec::new(),
            costs: Vec::new(),
            sections: Vec::new(),
        }
    }

    /// One run is over.
    pub fn progress(&self, text: &str) {
        println!("  {text}");
        let _ = std::io::stdout().flush();
    }

    /// What a case measured, in words.
    pub fn case(&mut self, case: &str, title: &str) {
        self.cases.push((case.to_owned(), title.to_owned()));
    }

    /// One more line, which is said at once.
    pub fn compare(&mut self, comparison: Comparison) {
        println!("  {}", comparison.cells(self.is_quick).join(" | "));
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
        let rows: Vec<[String; 8]> = self.comparisons.iter().map(|one| one.cells(self.is_quick)).collect();
        table(&mut text, &title, &rows);
        if !self.costs.is_empty() {
            text.push_str("\n## Where the CPU went\n\nSeconds, medians.\n\n");
            table(&mut text, &COST_COLUMNS, &self.costs);
        }
        for section in &self.sections {
            let _ = write!(text, "\n{section}");
        }
        let minutes = self.began.elapsed().as_secs() / 60;
        let _ = writeln!(text, "\nThe run took {} h {:02} min up to here.", minutes / 60, minutes % 60);
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
