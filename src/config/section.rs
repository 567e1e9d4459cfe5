//! One table of the file, read key by key: each getter checks the type, and what is left over is unknown. Makes errors that
//! name the whole key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::error::{ConfigError, KeyError, nearest};
use super::origin::{Origin, joined};

/// Longest duration anybody means.
const LONGEST_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// A table under a dotted name.
pub(super) struct Section<'a> {
    origin: &'a Origin,
    /// As messages name it: `pipeline.standby1`.
    path: String,
    /// As the file nests it: `pipeline[0]`.
    file_path: String,
    table: Table,
}

impl<'a> Section<'a> {
    pub(super) fn new(origin: &'a Origin, path: &str, table: Table) -> Self {
        Self { origin, path: path.to_owned(), file_path: path.to_owned(), table }
    }

    /// One table of an array of tables.
    pub(super) fn element(&self, key: &str, index: usize, table: Table) -> Section<'a> {
        Section::new(self.origin, &format!("{}[{index}]", joined(&self.file_path, key)), table)
    }

    /// Names the section by what it holds, e.g. a pipeline's name.
    pub(super) fn rename(&mut self, path: String) {
        self.path = path;
    }

    /// A text, without taking it.
    pub(super) fn peek(&self, key: &str) -> Option<&str> {
        self.table.get(key).and_then(Value::as_str)
    }

    /// Every name with its dots: TOML takes `a.b = 1` without quotation marks for a table in a table.
    pub(super) fn dotted_keys(&self) -> Vec<String> {
        fn gather(before: &str, table: &Table, names: &mut Vec<String>) {
            for (name, value) in table {
                match value {
                    Value::Table(inner) if !inner.is_empty() => gather(&joined(before, name), inner, names),
                    _ => names.push(joined(before, name)),
                }
            }
        }
        let mut names = Vec::new();
        gather("", &self.table, &mut names);
        names
    }

    /// Whether the key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A text of a table inside, without taking either.
    pub(super) fn peek_inside(&self, key: &str, inner: &str) -> Option<&str> {
        self.table.get(key).and_then(|table| table.get(inner)).and_then(Value::as_str)
    }

    /// Whether the value is true or false, or was given so in the environment.
    pub(super) fn is_boolean(&self, key: &str) -> bool {
        matches!(self.table.get(key), Some(Value::Boolean(_) | Value::String(_)))
    }

    /// The whole dotted name of a key.
    pub(super) fn key(&self, key: &str) -> String {
        joined(&self.path, key)
    }

    pub(super) fn is_overridden(&self, key: &str) -> bool {
        self.origin.is_overridden(&joined(&self.file_path, key))
    }

    /// An error that knows a better word.
    pub(super) fn error_near(&self, key: &str, value: String, rule: &str, nearest: Option<String>) -> ConfigError {
        let place = self.origin.place(&joined(&self.file_path, key));
        KeyError { place, key: self.key(key), value: Some(value), rule: rule.to_owned(), nearest }.into()
    }

    /// Refuses every key that is not among these; `what` has them.
    pub(super) fn only(&self, known: &[&str], what: &str) -> Result<(), ConfigError> {
        let Some((key, value)) = self.table.iter().find(|(key, _)| !known.contains(&key.as_str())) else {
            return Ok(());
        };
        Err(KeyError {
            place: self.origin.place(&joined(&self.file_path, key)),
            key: self.key(key),
            value: (!value.is_table() && !may_be_secret(key)).then(|| shown(value)),
            rule: format!("is not a key of walrelay; {what} has: {}", known.join(", ")),
            nearest: nearest(key, known.iter().copied()),
        }
        .into())
    }

    /// An error about a key of this section.
    pub(super) fn error(&self, key: &str, value: Option<String>, rule: impl Into<String>) -> ConfigError {
        let place = self.origin.place(&joined(&self.file_path, key));
        KeyError { place, key: self.key(key), value, rule: rule.into(), nearest: None }.into()
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.table.remove(key)
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, Some(shown(&other)), "must be a text in quotes")),
        }
    }

    pub(super) fn required_string(&mut self, key: &'static str, rule: &str) -> Result<String, ConfigError> {
        self.string(key)?.ok_or_else(|| self.error(key, None, format!("is missing: {rule}")))
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(Value::String(text)) if self.is_overridden(key) && (text == "true" || text == "false") => {
                Ok(Some(text == "true"))
            }
            Some(other) => Err(self.error(key, Some(shown(&other)), "must be true or false")),
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>, ConfigError> {
        let rule = format!("must be a whole number from {least} to {most}");
        let (value, text) = match self.take(key) {
            None => return Ok(None),
            Some(Value::Integer(value)) => (u64::try_from(value).ok(), value.to_string()),
            Some(Value::String(text)) if self.is_overridden(key) => (text.parse().ok(), format!("\"{text}\"")),
            Some(other) => (None, shown(&other)),
        };
        match value.filter(|value| (least..=most).contains(value)) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(key, Some(text), rule)),
        }
    }

    pub(super) fn strings(&mut self, key: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        let rule = "must be a list of texts, e.g. [\"public.*\"]";
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(values)) => {
                let given = shown(&Value::Array(values.clone()));
                let texts: Option<Vec<String>> =
                    values.into_iter().map(|value| value.as_str().map(str::to_owned)).collect();
                texts.map(Some).ok_or_else(|| self.error(key, Some(given), rule))
            }
            Some(Value::String(text)) if !self.is_overridden(key) => {
                Err(self.error(key, Some(shown(&Value::String(text))), rule))
            }
            // From the environment: a TOML array, or words between commas.
            Some(Value::String(text)) if !text.trim_start().starts_with('[') => {
                Ok(Some(text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()))
            }
            Some(Value::String(text)) => {
                let parsed = toml::from_str::<Table>(&format!("list = {text}"))
                    .ok()
                    .and_then(|table| table.get("list").cloned());
                let texts = parsed.and_then(|list| list.as_array().cloned()).and_then(|list| {
                    list.into_iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
                });
                texts.map(Some).ok_or_else(|| self.error(key, Some(format!("\"{text}\"")), rule))
            }
            Some(other) => Err(self.error(key, Some(shown(&other)), rule)),
        }
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let rule = "must be a duration such as \"500ms\", \"30s\", \"2min\" or \"1h\", at most 24h";
        let (value, given) = match self.take(key) {
            None => return Ok(None),
            Some(Value::String(text)) => (duration_of(&text), format!("\"{text}\"")),
            Some(other) => (None, shown(&other)),
        };
        let value = value.filter(|duration| *duration <= LONGEST_DURATION);
        value.map(Some).ok_or_else(|| self.error(key, Some(given), rule))
    }

    pub(super) fn size(&mut self, key: &'static str, least_bytes: u64) -> Result<Option<u64>, ConfigError> {
        let (bytes, given) = match self.take(key) {
            None => return Ok(None),
            Some(Value::Integer(bytes)) => (u64::try_from(bytes).ok(), bytes.to_string()),
            Some(Value::String(text)) => (size_of(&text), format!("\"{text}\"")),
            Some(other) => (None, shown(&other)),
        };
        match bytes.filter(|bytes| *bytes >= least_bytes) {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let rule = format!(
                    "must be a size such as \"64MB\", \"512kB\" or \"1GB\" (1 kB is 1024 bytes, as in postgresql.conf), at least {} kB",
                    least_bytes >> 10
                );
                Err(self.error(key, Some(given), rule))
            }
        }
    }

    /// A file or folder.
    pub(super) fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        match self.string(key)? {
            Some(text) if text.is_empty() => {
                Err(self.error(key, Some("\"\"".to_owned()), "must be a path; leave the key out for the default"))
            }
            text => Ok(text.map(PathBuf::from)),
        }
    }

    /// A count from 1 on, or -1 (the default) for what the other side has as its default.
    pub(super) fn count_or_default(&mut self, key: &'static str, most: i32) -> Result<i32, ConfigError> {
        let (value, text) = match self.take(key) {
            None => return Ok(-1),
            Some(Value::Integer(value)) => (i32::try_from(value).ok(), value.to_string()),
            Some(Value::String(text)) if self.is_overridden(key) => (text.parse().ok(), format!("\"{text}\"")),
            Some(other) => (None, shown(&other)),
        };
        match value.filter(|value| *value == -1 || (1..=most).contains(value)) {
            Some(value) => Ok(value),
            None => Err(self.error(
                key,
                Some(text),
                format!("must be -1 for the broker's default, or a number from 1 to {most}"),
            )),
        }
    }

    /// A table of names and texts; numbers and true or false are taken as their texts. Values are never shown.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<BTreeMap<String, String>, ConfigError> {
        let rule = "must be a table of \"name\" = \"value\"";
        let table = match self.take(key) {
            None => return Ok(BTreeMap::new()),
            Some(Value::Table(table)) => table,
            Some(_) => return Err(self.error(key, None, rule)),
        };
        let mut texts = BTreeMap::new();
        self.gather_texts(key, "", table, &mut texts)?;
        Ok(texts)
    }

    /// A dotted name without quotes is a table in a table to TOML, and one name to whoever wrote it.
    fn gather_texts(
        &self,
        key: &str,
        before: &str,
        table: Table,
        texts: &mut BTreeMap<String, String>,
    ) -> Result<(), ConfigError> {
        // What is written whole, perhaps in the environment, wins.
        let (nested, whole): (Vec<_>, Vec<_>) = table.into_iter().partition(|(_, value)| value.is_table());
        for (name, value) in nested.into_iter().chain(whole) {
            let name = joined(before, &name);
            let text = match value {
                Value::Table(inner) => {
                    self.gather_texts(key, &name, inner, texts)?;
                    continue;
                }
                Value::String(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(truth) => truth.to_string(),
                _ => {
                    return Err(self.error(
                        &format!("{key}.\"{name}\""),
                        None,
                        "must be a text, a number, true or false",
                    ));
                }
            };
            texts.insert(name, text);
        }
        Ok(())
    }

    /// A table with these keys and no others.
    pub(super) fn section(&mut self, key: &'static str, known: &[&str]) -> Result<Option<Section<'a>>, ConfigError> {
        let section = self.open_section(key, known)?;
        if let Some(section) = &section {
            section.only(known, &format!("[{}]", section.path))?;
        }
        Ok(section)
    }

    /// A table; who reads it checks its keys.
    pub(super) fn open_section(
        &mut self,
        key: &'static str,
        known: &[&str],
    ) -> Result<Option<Section<'a>>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Table(table)) => {
                let file_path = joined(&self.file_path, key);
                Ok(Some(Section { origin: self.origin, path: self.key(key), file_path, table }))
            }
            Some(other) => {
                let keys = known.join(", ");
                Err(self.error(key, Some(shown(&other)), format!("must be a table, [{}], with {keys}", self.key(key))))
            }
        }
    }
}

/// Whether the value of an unknown key might be a password, or hold one.
fn may_be_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    let words = ["pass", "pw", "secret", "token", "key", "cred", "url", "uri", "dsn", "conn"];
    words.iter().any(|word| key.contains(word)) || strsim::jaro_winkler(&key, "password") > 0.8
}

/// A value as it stands in the file, shortened.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.contains("://") || text.to_lowercase().contains("password") {
        // A url may hold one.
        return "(not shown)".to_owned();
    }
    if text.chars().count() > 80 { format!("{}…", text.chars().take(80).collect::<String>()) } else { text }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

fn duration_of(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "min" | "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn size_of(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "b" | "" => 1,
        "kb" | "kib" => 1 << 10,
        "mb" | "mib" => 1 << 20,
        "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("2min", Some(120_000)),
            ("1 h", Some(3_600_000)),
            ("30", None),
            ("s", None),
            ("", None),
            ("-1s", None),
        ] {
            assert_eq!(duration_of(text), expected.map(Duration::from_millis), "{text}");
        }
        for (text, expected) in [
            ("64MB", Some(64 << 20)),
            ("512kB", Some(512 << 10)),
            ("1GiB", Some(1 << 30)),
            ("100", Some(100)),
            ("0MB", None),
            ("64XB", None),
            ("MB", None),
        ] {
            assert_eq!(size_of(text), expected, "{text}");
        }
    }
}
