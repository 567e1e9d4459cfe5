//! Names for a message, cut short where there are many. Knows not what they name.

use std::fmt::Display;

/// More names are only counted.
const SHOWN: usize = 5;

/// The first of them, and how many more there are: `a, b, c, d, e and 3 more`.
pub fn listed(names: &[impl Display]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}
