//! What the demo shows: steps, commands, small tables. Prints; decides nothing.
#![allow(clippy::print_stdout)]

use std::io::IsTerminal as _;

fn styled(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A new step.
pub(super) fn step(number: usize, text: &str) {
    println!("\n{}", styled("1", &format!("{number}. {text}")));
}

/// A line below it.
pub(super) fn say(text: &str) {
    println!("   {text}");
}

/// Something that was proven.
pub(super) fn proven(text: &str) {
    println!("   {} {text}", styled("32", "✓"));
}

/// A statement as a person would type it.
pub(super) fn sql(server: &str, text: &str) {
    println!("   {}", styled("36", &format!("{server}=# {text}")));
}

/// Rows below a header.
pub(super) fn table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("     {}", cells.join("  ").trim_end());
    }
}
