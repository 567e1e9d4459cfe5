//! One table of the file, read key by key: each getter checks the type, and what is left over is unknown. Makes errors that
//! name the whole key.

use std::time::Duration;

use toml::{Table, Value};

use super::error::{ConfigError, KeyError, nearest};

/// A table under a dotted name.
pub(super) struct Section<'a> {
    place: &'a str,
    path: String,
    table: Table,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(place: &'a str, path: impl Into<String>, table: Table) -> Self {
        Self { place, path: path.into(), table, known: Vec::new() }
    }

    /// Names the section by what it holds, e.g. a pipeline's name.
    pub(super) fn rename(&mut self, path: String) {
        self.path = path;
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// An error about a key of this section.
    pub(super) fn error(&self, key: &str, value: Option<String>, rule: impl Into<String>) -> ConfigError {
        KeyError { place: self.place.to_owned(), key: self.key(key), value, rule: rule.into(), nearest: None }.into()
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
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
            // From the environment everything is a text.
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(Some(text == "true")),
            Some(other) => Err(self.error(key, Some(shown(&other)), "must be true or false")),
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>, ConfigError> {
        let rule = format!("must be a whole number from {least} to {most}");
        let (value, text) = match self.take(key) {
            None => return Ok(None),
            Some(Value::Integer(value)) => (u64::try_from(value).ok(), value.to_string()),
            Some(Value::String(text)) => (text.parse().ok(), format!("\"{text}\"")),
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
        let Some(text) = self.string(key)? else { return Ok(None) };
        let value = duration_of(&text);
        value.map(Some).ok_or_else(|| {
            self.error(
                key,
                Some(format!("\"{text}\"")),
                "must be a duration such as \"500ms\", \"30s\", \"2min\" or \"1h\"",
            )
        })
    }

    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let rule = "must be a size such as \"64MB\", \"512kB\" or \"1GB\" (1 kB is 1024 bytes, as in postgresql.conf)";
        match self.take(key) {
            None => Ok(None),
            Some(Value::Integer(bytes)) if bytes > 0 => Ok(Some(bytes as u64)),
            Some(Value::String(text)) => match size_of(&text) {
                Some(bytes) => Ok(Some(bytes)),
                None => Err(self.error(key, Some(format!("\"{text}\"")), rule)),
            },
            Some(other) => Err(self.error(key, Some(shown(&other)), rule)),
        }
    }

    pub(super) fn section(&mut self, key: &'static str) -> Result<Option<Section<'a>>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Section::new(self.place, self.key(key), table))),
            Some(other) => Err(self.error(key, Some(shown(&other)), format!("must be a table: [{}]", self.key(key)))),
        }
    }

    /// What is left over is unknown.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        Err(KeyError {
            place: self.place.to_owned(),
            key: self.key(key),
            value: None,
            rule: format!("is not a key of walrelay; {} has: {}", self.described(), self.known.join(", ")),
            nearest: nearest(key, self.known.iter().copied()),
        }
        .into())
    }

    fn described(&self) -> String {
        if self.path.is_empty() { "the top level".to_owned() } else { format!("[{}]", self.path) }
    }
}

/// A value as it stands in the file, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
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
