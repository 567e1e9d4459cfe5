//! Where each value of a configuration stands: the file and line, or the environment variable that overrides it. Only for
//! messages.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The file's name, the line of each key, and what was overridden.
#[derive(Debug, Default)]
pub(super) struct Origin {
    file: String,
    /// Dotted key as the file nests it (`pipeline[0].sink.url`) to its line, from 1.
    lines: BTreeMap<String, usize>,
    /// The same key to the variable that gave its value.
    variables: BTreeMap<String, String>,
}

impl Origin {
    /// `text` is valid TOML, or no line is known.
    pub(super) fn new(file: String, text: &str) -> Self {
        let mut origin = Self { file, ..Self::default() };
        if let Ok(table) = DeTable::parse(text) {
            origin.note_table(text, "", table.get_ref());
        }
        origin
    }

    fn note_table(&mut self, text: &str, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = joined(path, key.get_ref());
            self.note(text, &path, key.span(), value);
        }
    }

    fn note(&mut self, text: &str, path: &str, span: Range<usize>, value: &Spanned<DeValue<'_>>) {
        self.lines.insert(path.to_owned(), line_of(text, span.start));
        match value.get_ref() {
            DeValue::Table(table) => self.note_table(text, path, table),
            DeValue::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.note(text, &format!("{path}[{index}]"), value.span(), value);
                }
            }
            _ => {}
        }
    }

    /// From now on the key's value is the variable's.
    pub(super) fn override_by(&mut self, key: String, variable: &str) {
        self.variables.insert(key, variable.to_owned());
    }

    /// Whether the value came from the environment, where everything is a text.
    pub(super) fn is_overridden(&self, key: &str) -> bool {
        self.variables.contains_key(key)
    }

    /// The place as a message names it.
    pub(super) fn place(&self, key: &str) -> String {
        if let Some(variable) = self.variables.get(key) {
            return format!("{} overridden by {variable}", self.file);
        }
        match self.lines.get(key) {
            Some(line) => format!("{} line {line}", self.file),
            None => self.file.clone(),
        }
    }
}

/// A key under a path.
pub(super) fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}
