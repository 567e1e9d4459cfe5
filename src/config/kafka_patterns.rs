//! The two small languages in a Kafka sink's texts: names with placeholders, and patterns of columns. Knows no key.

use super::error::ConfigError;
use super::kafka::ColumnPattern;
use super::section::Section;

/// The placeholders of a text in braces, or `None` for a brace without its other.
pub(super) fn placeholders(text: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (name, behind) = rest.get(at..)?.strip_prefix('{')?.split_once('}')?;
        if name.contains('{') {
            return None;
        }
        found.push(name);
        rest = behind;
    }
    Some(found)
}

/// A list of `schema.table.column`.
pub(super) fn column_patterns(section: &mut Section<'_>, key: &'static str) -> Result<Vec<ColumnPattern>, ConfigError> {
    let texts = section.strings(key)?.unwrap_or_default();
    let pattern = |text: &String| {
        let rule = "must be a column pattern, schema.table.column, where * stands for any characters";
        ColumnPattern::new(text).ok_or_else(|| section.error(key, Some(format!("\"{text}\"")), rule))
    };
    texts.iter().map(pattern).collect()
}
