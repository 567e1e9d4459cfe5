//! Puts the values of `WALRELAY__…` variables into the file's table, before anything is validated. A variable that overrides
//! no key is an error; its value is never shown.

use toml::{Table, Value};

use super::environment::{Environment, PREFIX};
use super::error::{ConfigError, KeyError, nearest};
use super::kafka_read::KAFKA_SINK;
use super::keys::{CREATE_TOPICS, HTTP, LOG, OUTBOX, PIPELINE, POSTGRES_SINK, PRIMARY, TOP};
use super::origin::Origin;

/// Tables of the file: what stands before their keys, these, and which of them are no single values.
type Tables = [(&'static str, &'static [&'static str], &'static [&'static str])];

const TOP_TABLES: &Tables = &[
    ("", TOP, &["log", "primary", "http", "pipeline"]),
    ("primary.", PRIMARY, &[]),
    ("http.", HTTP, &[]),
    ("log.", LOG, &[]),
];
const PIPELINE_TABLES: &Tables = &[
    ("", PIPELINE, &["name", "sink"]),
    ("sink.", POSTGRES_SINK, &[]),
    ("sink.", KAFKA_SINK, &["message_key", "route", "mask", "outbox", "client"]),
    ("sink.create_topics.", CREATE_TOPICS, &["config"]),
    ("sink.outbox.", OUTBOX, &[]),
];
/// Any property of librdkafka, its dots written as underscores: `…__SINK__CLIENT__SECURITY_PROTOCOL`.
const CLIENT_KEYS: [&str; 2] = ["sink", "client"];

/// Overrides; a pipeline is named by its name.
pub(super) fn override_from(
    table: &mut Table,
    environment: &Environment,
    origin: &mut Origin,
) -> Result<(), ConfigError> {
    let names = pipeline_names(table);
    for (variable, words, value) in environment.overrides() {
        if words.first().is_none_or(|first| first != "pipeline") {
            check_among(variable, &words.join("."), TOP_TABLES, "")?;
            set(table, &words, value);
            origin.override_by(words.join("."), variable);
            continue;
        }
        let (index, path) = pipeline_of(variable, &words[1..], &names)?;
        let between = format!("PIPELINE__{}__", names[index].to_uppercase());
        let property = property_of(path);
        let path = property.as_deref().unwrap_or(path);
        if property.is_none() {
            check_among(variable, &path.join("."), PIPELINE_TABLES, &between)?;
        }
        let pipeline = table.get_mut("pipeline").and_then(|pipelines| pipelines.get_mut(index));
        if let Some(Value::Table(pipeline)) = pipeline {
            set(pipeline, path, value);
            origin.override_by(format!("pipeline[{index}].{}", path.join(".")), variable);
        }
    }
    Ok(())
}

/// The path of a librdkafka property with its dots, if the words name one.
fn property_of(path: &[String]) -> Option<Vec<String>> {
    match path {
        [sink, client, property] if [sink, client] == CLIENT_KEYS && !property.is_empty() => {
            Some(vec![sink.clone(), client.clone(), property.replace('_', ".")])
        }
        _ => None,
    }
}

/// In file order; one without a name, which is refused later, is empty.
fn pipeline_names(table: &Table) -> Vec<String> {
    let name = |pipeline: &Value| pipeline.get("name").and_then(Value::as_str).unwrap_or("").to_lowercase();
    match table.get("pipeline") {
        Some(Value::Array(pipelines)) => pipelines.iter().map(name).collect(),
        _ => Vec::new(),
    }
}

/// Which pipeline the words name, and the rest. A name may hold `__` itself: the longest that fits is meant.
fn pipeline_of<'a>(
    variable: &str,
    words: &'a [String],
    names: &[String],
) -> Result<(usize, &'a [String]), ConfigError> {
    for length in (1..=words.len()).rev() {
        let name = words[..length].join("__");
        if let Some(index) = names.iter().position(|known| !name.is_empty() && *known == name) {
            return Ok((index, &words[length..]));
        }
    }
    let name = words.first().map_or("", String::as_str);
    let nearest = nearest(name, names.iter().map(String::as_str).filter(|name| !name.is_empty()))
        .map(|name| format!("{PREFIX}PIPELINE__{}__…", name.to_uppercase()));
    Err(unknown(variable, format!("there is no pipeline \"{name}\" in the file"), nearest))
}

fn check_among(variable: &str, key: &str, tables: &Tables, between: &str) -> Result<(), ConfigError> {
    let single = |(before, keys, others): &(&str, &[&'static str], &[&str])| -> Vec<String> {
        keys.iter().filter(|key| !others.contains(key)).map(|key| format!("{before}{key}")).collect()
    };
    let known: Vec<String> = tables.iter().flat_map(single).collect();
    if known.iter().any(|known| known == key) {
        return Ok(());
    }
    let nearest = nearest(key, known.iter().map(String::as_str))
        .map(|key| format!("{PREFIX}{between}{}", key.replace('.', "__").to_uppercase()));
    Err(unknown(variable, "overrides no key of walrelay".to_owned(), nearest))
}

fn unknown(variable: &str, rule: String, nearest: Option<String>) -> ConfigError {
    KeyError { place: "environment".into(), key: variable.to_owned(), value: None, rule, nearest }.into()
}

fn set(table: &mut Table, words: &[String], value: &str) {
    match words {
        [] => {}
        [last] => {
            table.insert(last.clone(), Value::String(value.to_owned()));
        }
        [first, rest @ ..] => {
            let entry = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                // `create_topics = false` in the file, and a key of it here: the environment wins.
                *entry = Value::Table(Table::new());
            }
            if let Value::Table(inner) = entry {
                set(inner, rest, value);
            }
        }
    }
}
