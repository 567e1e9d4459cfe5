//! Draws comparisons as bars: one SVG of our own making, no program needed to look at it. Draws nothing that is not in the table.

use std::fmt::Write as _;

use super::comparison::{Comparison, Kind};

const WIDTH: f64 = 860.0;
const NAMES: f64 = 330.0;
const ROW: f64 = 26.0;
const HEAD: f64 = 56.0;
/// Ratios beyond this are cut off and say so.
const RATIO_LIMIT: f64 = 8.0;

/// One bar a comparison: the advantage of walrelay, 1 being the peer; whiskers for the rounds, a tick for the bar to be reached.
pub fn svg(title: &str, comparisons: &[&Comparison]) -> String {
    let height = HEAD + ROW * comparisons.len() as f64 + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"12\" y=\"40\" fill=\"#666\">longer is better; 1 is the peer; thin line: the rounds; red tick: what must be reached</text>\n",
        escaped(title)
    );
    let longest = comparisons.iter().map(|comparison| advantage(comparison).2.max(aim(comparison).unwrap_or(0.0)));
    let longest = longest.fold(2.0, f64::max).min(RATIO_LIMIT);
    let x = |ratio: f64| NAMES + ratio.clamp(0.0, longest) / longest * (WIDTH - NAMES - 70.0);
    for (at, comparison) in comparisons.iter().enumerate() {
        let y = HEAD + ROW * at as f64;
        let (low, middle, high) = advantage(comparison);
        let name = format!("{}: {} / {}", comparison.case, comparison.measure, comparison.peer_name);
        let color = if middle >= aim(comparison).unwrap_or(1.0) { "#3a7d44" } else { "#c78a2c" };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{}\">{middle:.2}×</text>",
            NAMES - 8.0,
            y + 12.0,
            escaped(&name),
            y + 1.0,
            x(middle) - NAMES,
            x(low),
            x(high),
            y + 8.0,
            y + 8.0,
            x(high) + 6.0,
            y + 12.0,
        );
        if let Some(aim) = aim(comparison) {
            let _ = writeln!(
                out,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#c0392b\" stroke-width=\"2\"/>",
                x(aim),
                y - 2.0,
                y + 18.0
            );
        }
    }
    let (one, bottom) = (x(1.0), height - 20.0);
    let _ = writeln!(
        out,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{HEAD}\" y2=\"{bottom}\" stroke=\"#888\" stroke-dasharray=\"3 3\"/>"
    );
    out.push_str("</svg>\n");
    out
}

/// Smallest, middle and largest ratio, turned so that more is better.
fn advantage(comparison: &Comparison) -> (f64, f64, f64) {
    let (low, high) = comparison.spread();
    let middle = comparison.ratio();
    if comparison.kind == Kind::Share { (1.0 / high, 1.0 / middle, 1.0 / low) } else { (low, middle, high) }
}

fn aim(comparison: &Comparison) -> Option<f64> {
    comparison.aim.map(|aim| if comparison.kind == Kind::Share { 1.0 / aim } else { aim })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
