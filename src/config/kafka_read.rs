//! Reads `[pipeline.sink]` with `type = "kafka"`: every key, its rule and its default. Connects nowhere.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Value;

use super::environment::Environment;
use super::error::{ConfigError, nearest};
use super::kafka::*;
use super::kafka_parts::{masks, outbox, routes};
use super::kafka_patterns::{column_patterns, placeholders};
use super::kafka_refused::{client_reason, instead_of, without_salt};
use super::keys::CREATE_TOPICS;
use super::password;
use super::section::{Section, shown};
use super::{TablePattern, topic_rule};
use crate::model::PipelineName;

/// Every key of the sink.
pub(super) const KAFKA_SINK: &[&str] = &[
    "type",
    "brokers",
    "topic_prefix",
    "topic",
    "format",
    "delete_handling",
    "add_fields",
    "schemas_key",
    "schemas_value",
    "delivery",
    "transaction_topic",
    "transaction_timeout",
    "on_large_transaction",
    "on_oversized",
    "create_topics",
    "progress_topic",
    "transactional_id",
    "apply_means",
    "tombstones",
    "context_headers",
    "include_unknown_types",
    "skipped_operations",
    "decimal",
    "time_precision",
    "interval",
    "hstore",
    "binary",
    "replace_null_with_default",
    "unavailable_value",
    "column_include",
    "column_exclude",
    "message_key",
    "password_file",
    "start_lsn",
    "route",
    "mask",
    "outbox",
    "client",
];

/// The broker's own default limit, which most clusters keep.
const DEFAULT_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const DEFAULT_TOPIC: &str = "{prefix}.{schema}.{table}";
const DEFAULT_TRANSACTIONAL_ID: &str = "walrelay.{prefix}.{pipeline}";
const DEFAULT_UNAVAILABLE: &str = "__debezium_unavailable_value";

/// The words of a key; the first is its default.
type Words<T> = &'static [(&'static str, T)];

const DELIVERIES: Words<Delivery> =
    &[("exactly_once", Delivery::ExactlyOnce), ("at_least_once", Delivery::AtLeastOnce)];
const ON_LARGE_TRANSACTION: Words<OnLargeTransaction> =
    &[("stop", OnLargeTransaction::Stop), ("split", OnLargeTransaction::Split)];
const ON_OVERSIZED: Words<OnOversized> = &[("stop", OnOversized::Stop), ("dead_letter", OnOversized::DeadLetter)];
const APPLY_MEANS: Words<ApplyMeans> = &[("committed", ApplyMeans::Committed), ("readable", ApplyMeans::Readable)];
const DECIMALS: Words<DecimalMode> =
    &[("precise", DecimalMode::Precise), ("string", DecimalMode::String), ("double", DecimalMode::Double)];
const TIME_PRECISIONS: Words<TimePrecision> = &[
    ("adaptive", TimePrecision::Adaptive),
    ("adaptive_time_microseconds", TimePrecision::AdaptiveTimeMicroseconds),
    ("connect", TimePrecision::Connect),
    ("isostring", TimePrecision::IsoString),
    ("microseconds", TimePrecision::Microseconds),
    ("nanoseconds", TimePrecision::Nanoseconds),
];
const INTERVALS: Words<IntervalMode> = &[("numeric", IntervalMode::Numeric), ("string", IntervalMode::String)];
const HSTORES: Words<HstoreMode> = &[("json", HstoreMode::Json), ("map", HstoreMode::Map)];
const BINARIES: Words<BinaryMode> = &[
    ("bytes", BinaryMode::Bytes),
    ("base64", BinaryMode::Base64),
    ("base64-url-safe", BinaryMode::Base64UrlSafe),
    ("hex", BinaryMode::Hex),
];

/// Reads the section; `initial_copy` is the pipeline's.
pub(super) fn kafka(
    sink: &mut Section<'_>,
    pipeline: &PipelineName,
    initial_copy: bool,
    environment: &Environment,
) -> Result<KafkaSink, ConfigError> {
    refuse_other_names(sink, KAFKA_SINK)?;
    sink.only(KAFKA_SINK, "a sink of type kafka")?;
    let topic_prefix = prefix(sink)?;
    let format = format(sink)?;
    let schemas_value = sink.boolean("schemas_value")?.unwrap_or(false);
    if schemas_value && format != KafkaFormat::Debezium {
        return Err(sink.error(
            "schemas_value",
            Some("true".to_owned()),
            "belongs to format = \"debezium\": a plain row has no schema yet",
        ));
    }
    let start_lsn = start_lsn(sink, initial_copy)?;
    if sink.has("column_include") && sink.has("column_exclude") {
        return Err(sink.error("column_exclude", None, "and column_include cannot stand together: keep one of them"));
    }
    let client = client(sink)?;
    let password = sasl_password(sink, pipeline, &client, environment)?;
    Ok(KafkaSink {
        brokers: brokers(sink)?,
        topic: topic(sink)?,
        format,
        schemas_key: sink.boolean("schemas_key")?.unwrap_or(false),
        schemas_value,
        delivery: word(sink, "delivery", DELIVERIES)?,
        transaction_topic: sink.boolean("transaction_topic")?.unwrap_or(false),
        transaction_timeout: transaction_timeout(sink)?,
        on_large_transaction: word(sink, "on_large_transaction", ON_LARGE_TRANSACTION)?,
        on_oversized: word(sink, "on_oversized", ON_OVERSIZED)?,
        create_topics: create_topics(sink)?,
        progress_topic: topic_name(sink, "progress_topic", "walrelay.progress")?,
        transactional_id: transactional_id(sink, &topic_prefix, pipeline)?,
        apply_means: word(sink, "apply_means", APPLY_MEANS)?,
        tombstones: sink.boolean("tombstones")?.unwrap_or(true),
        context_headers: sink.boolean("context_headers")?.unwrap_or(false),
        include_unknown_types: sink.boolean("include_unknown_types")?.unwrap_or(true),
        skipped_operations: skipped_operations(sink)?,
        decimal: word(sink, "decimal", DECIMALS)?,
        time_precision: word(sink, "time_precision", TIME_PRECISIONS)?,
        interval: word(sink, "interval", INTERVALS)?,
        hstore: word(sink, "hstore", HSTORES)?,
        binary: word(sink, "binary", BINARIES)?,
        replace_null_with_default: sink.boolean("replace_null_with_default")?.unwrap_or(false),
        unavailable_value: sink.string("unavailable_value")?.unwrap_or_else(|| DEFAULT_UNAVAILABLE.to_owned()),
        column_include: column_patterns(sink, "column_include")?,
        column_exclude: column_patterns(sink, "column_exclude")?,
        message_key: message_key(sink)?,
        password,
        start_lsn,
        routes: routes(sink)?,
        masks: masks(sink)?,
        outbox: outbox(sink)?,
        client,
        topic_prefix,
    })
}

/// Keys that are tables themselves.
const TABLES: &[&str] = &["create_topics", "message_key", "route", "mask", "outbox", "client"];

/// Debezium's names get ours; librdkafka's get the table they belong to.
pub(super) fn refuse_other_names(section: &Section<'_>, known: &[&str]) -> Result<(), ConfigError> {
    let names = section.dotted_keys();
    let is_ours = |name: &str| {
        let first = name.split('.').next().unwrap_or(name);
        known.contains(&name) || TABLES.contains(&first) || first == "sink"
    };
    let mut others = names.iter().map(String::as_str).filter(|name| !is_ours(name));
    if let Some((name, instead)) = others.clone().find_map(|name| Some((name, instead_of(name)?))) {
        return Err(match section.error(name, None, format!("is Debezium's name; walrelay's is {instead}")) {
            ConfigError::Key(mut error) => {
                error.key = without_salt(&error.key);
                ConfigError::Key(error)
            }
            other => other,
        });
    }
    if let Some(name) = others.find(|name| name.contains('.')) {
        let rule = format!(
            "is neither a key of walrelay nor a name of Debezium's that it knows; a property of librdkafka stands in \
             [pipeline.sink.client] as \"{name}\" = …"
        );
        return Err(section.error(name, None, rule));
    }
    Ok(())
}

/// One of some words, the first is the default.
fn word<T: Copy>(sink: &mut Section<'_>, key: &'static str, words: &[(&str, T)]) -> Result<T, ConfigError> {
    let default = words.first().map(|(_, value)| *value);
    let Some(text) = sink.string(key)? else {
        return default.ok_or_else(|| sink.error(key, None, "has no default"));
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let list = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let nearest = nearest(&text, words.iter().map(|(word, _)| *word));
    Err(sink.error_near(key, format!("\"{text}\""), &format!("must be one of {list}"), nearest))
}

fn brokers(sink: &mut Section<'_>) -> Result<String, ConfigError> {
    let rule = "must be hosts with ports between commas, e.g. \"kafka1:9092,kafka2:9092\"";
    let text = sink.required_string("brokers", rule)?;
    let is_broker = |broker: &str| {
        let broker = broker.trim().rsplit_once("://").map_or(broker.trim(), |(_, rest)| rest);
        let (host, port) = match broker.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.starts_with('[')) => {
                (host, Some(port))
            }
            _ => (broker, None),
        };
        !host.is_empty()
            && !host.contains([' ', '/', '@'])
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    if text.split(',').all(is_broker) {
        Ok(text)
    } else {
        // A url may hold a password.
        Err(sink.error("brokers", (!text.contains('@')).then(|| format!("\"{text}\"")), rule))
    }
}

fn prefix(sink: &mut Section<'_>) -> Result<String, ConfigError> {
    let text = sink.required_string("topic_prefix", "the first part of every topic's name, e.g. \"shop\"")?;
    match topic_rule(&text) {
        None => Ok(text),
        Some(rule) => Err(sink.error("topic_prefix", Some(format!("\"{text}\"")), rule)),
    }
}

fn topic_name(sink: &mut Section<'_>, key: &'static str, default: &str) -> Result<String, ConfigError> {
    let text = sink.string(key)?.unwrap_or_else(|| default.to_owned());
    match topic_rule(&text) {
        None => Ok(text),
        Some(rule) => Err(sink.error(key, Some(format!("\"{text}\"")), rule)),
    }
}

fn topic(sink: &mut Section<'_>) -> Result<String, ConfigError> {
    let text = sink.string("topic")?.unwrap_or_else(|| DEFAULT_TOPIC.to_owned());
    let names = placeholders(&text);
    let is_known = |names: &[&str]| names.iter().all(|name| ["prefix", "schema", "table"].contains(name));
    if !names.as_deref().is_some_and(is_known) {
        let rule = "may hold {prefix}, {schema} and {table}, and no other braces";
        return Err(sink.error("topic", Some(format!("\"{text}\"")), rule));
    }
    if !names.is_some_and(|names| names.contains(&"table")) {
        let rule = "must hold {table}: tables are brought into one topic with [[pipeline.sink.route]]";
        return Err(sink.error("topic", Some(format!("\"{text}\"")), rule));
    }
    Ok(text)
}

fn transactional_id(sink: &mut Section<'_>, prefix: &str, pipeline: &PipelineName) -> Result<String, ConfigError> {
    let text = sink.string("transactional_id")?.unwrap_or_else(|| DEFAULT_TRANSACTIONAL_ID.to_owned());
    let names = placeholders(&text);
    let is_known = names.is_some_and(|names| names.iter().all(|name| ["prefix", "pipeline"].contains(name)));
    if !is_known || text.is_empty() {
        let rule = "must be a text that may hold {prefix} and {pipeline}, and no other braces";
        return Err(sink.error("transactional_id", Some(format!("\"{text}\"")), rule));
    }
    Ok(text.replace("{prefix}", prefix).replace("{pipeline}", pipeline.as_str()))
}

fn transaction_timeout(sink: &mut Section<'_>) -> Result<Duration, ConfigError> {
    let timeout = sink.duration("transaction_timeout")?.unwrap_or(DEFAULT_TRANSACTION_TIMEOUT);
    if timeout < Duration::from_secs(1) {
        return Err(sink.error("transaction_timeout", Some(format!("\"{timeout:?}\"")), "must be at least \"1s\""));
    }
    Ok(timeout)
}

fn format(sink: &mut Section<'_>) -> Result<KafkaFormat, ConfigError> {
    let is_plain = word(sink, "format", &[("debezium", false), ("plain", true)])?;
    if !is_plain {
        for key in ["delete_handling", "add_fields"] {
            if sink.has(key) {
                return Err(sink.error(key, None, "belongs to format = \"plain\" only"));
            }
        }
        return Ok(KafkaFormat::Debezium);
    }
    let rewrite_deletes = word(sink, "delete_handling", &[("tombstone", false), ("rewrite", true)])?;
    let mut add_fields = Vec::new();
    for text in sink.strings("add_fields")?.unwrap_or_default() {
        let field = AddedField::of(&text).ok_or_else(|| {
            let words = AddedField::WORDS.iter().map(|(word, _)| *word);
            let rule = format!("each must be one of {}", words.clone().collect::<Vec<_>>().join(", "));
            sink.error_near("add_fields", format!("\"{text}\""), &rule, nearest(&text, words))
        })?;
        add_fields.push((format!("__{}", text.replace('.', "_")), field));
    }
    Ok(KafkaFormat::Plain(PlainFormat { rewrite_deletes, add_fields }))
}

fn create_topics(sink: &mut Section<'_>) -> Result<Option<CreateTopics>, ConfigError> {
    if sink.is_boolean("create_topics") {
        let is_wanted = sink.boolean("create_topics")?.unwrap_or(true);
        return Ok(is_wanted.then(CreateTopics::default));
    }
    let Some(mut section) = sink.section("create_topics", CREATE_TOPICS)? else {
        return Ok(Some(CreateTopics::default()));
    };
    let partitions = section.count_or_default("partitions", 100_000)?;
    let replication_factor = section.count_or_default("replication_factor", 1_000)?;
    let config = section.texts("config")?;
    Ok(Some(CreateTopics { partitions, replication_factor, config }))
}

fn skipped_operations(sink: &mut Section<'_>) -> Result<SkippedOperations, ConfigError> {
    let words = sink.strings("skipped_operations")?.unwrap_or_else(|| vec!["t".to_owned()]);
    let mut skipped = SkippedOperations { create: false, update: false, delete: false, truncate: false };
    for word in &words {
        match word.as_str() {
            "c" => skipped.create = true,
            "u" => skipped.update = true,
            "d" => skipped.delete = true,
            "t" => skipped.truncate = true,
            "none" if words.len() == 1 => {}
            other => {
                let rule = "each must be \"c\", \"u\", \"d\" or \"t\"; [] skips nothing";
                return Err(sink.error("skipped_operations", Some(format!("\"{other}\"")), rule));
            }
        }
    }
    Ok(skipped)
}

fn message_key(sink: &mut Section<'_>) -> Result<Vec<(TablePattern, Vec<String>)>, ConfigError> {
    let rule = "must be a table such as { \"public.orders\" = [\"region\", \"id\"] }";
    let table = match sink.take("message_key") {
        None => return Ok(Vec::new()),
        Some(Value::Table(table)) => table,
        Some(other) => return Err(sink.error("message_key", Some(shown(&other)), rule)),
    };
    let mut keys = Vec::new();
    for (pattern, columns) in table {
        let given = format!("{{ \"{pattern}\" = {} }}", shown(&columns));
        let refused = |rule: &str| sink.error("message_key", Some(given.clone()), rule);
        let table = TablePattern::new(&pattern).map_err(|error| refused(&error.to_string()))?;
        let columns = columns.as_array().filter(|columns| !columns.is_empty()).ok_or_else(|| refused(rule))?;
        let columns: Option<Vec<String>> = columns.iter().map(|column| column.as_str().map(str::to_owned)).collect();
        keys.push((table, columns.ok_or_else(|| refused(rule))?));
    }
    Ok(keys)
}

fn start_lsn(sink: &mut Section<'_>, initial_copy: bool) -> Result<Option<crate::model::Lsn>, ConfigError> {
    let Some(text) = sink.string("start_lsn")? else { return Ok(None) };
    let shown = || Some(format!("\"{text}\""));
    let lsn = text
        .parse()
        .map_err(|error: crate::model::LsnParseError| sink.error("start_lsn", shown(), error.to_string()))?;
    if initial_copy {
        let rule = "adopts an existing slot, which needs initial_copy = false in its [[pipeline]]";
        return Err(sink.error("start_lsn", shown(), rule));
    }
    Ok(Some(lsn))
}

fn client(sink: &mut Section<'_>) -> Result<ClientProperties, ConfigError> {
    let properties: BTreeMap<String, String> = sink.texts("client")?;
    for name in properties.keys() {
        if let Some(reason) = client_reason(name) {
            return Err(sink.error(&format!("client.\"{name}\""), None, reason));
        }
    }
    Ok(ClientProperties(properties))
}

/// password_file, else the systemd credential `NAME.password`; a password in the table of the client is passed on as it is.
fn sasl_password(
    sink: &mut Section<'_>,
    pipeline: &PipelineName,
    client: &ClientProperties,
    environment: &Environment,
) -> Result<Option<super::Secret>, ConfigError> {
    let file = sink.path("password_file")?;
    if file.is_some() && client.0.contains_key("sasl.password") {
        return Err(sink.error(
            "password_file",
            None,
            "and client.\"sasl.password\" say the same thing twice: keep one",
        ));
    }
    password::of_file(file.as_deref(), &format!("{pipeline}.password"), environment)
        .map_err(|rule| sink.error("password_file", None, rule))
}
