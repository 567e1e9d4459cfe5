//! Reads the tables inside a Kafka sink: routes, masks, the outbox. Connects nowhere; a salt file is read.

use toml::Value;

use super::error::ConfigError;
use super::kafka::{AddedField, Mask, MaskWith, Outbox, Route};
use super::kafka_patterns::{column_patterns, placeholders};
use super::keys::OUTBOX;
use super::section::Section;
use super::{Secret, TablePattern, text_file};
use crate::model::QualifiedName;

impl AddedField {
    /// The words of `add_fields`, as ExtractNewRecordState has them.
    pub(super) const WORDS: &[(&str, AddedField)] = &[
        ("op", AddedField::Op),
        ("ts_ms", AddedField::TsMs),
        ("ts_us", AddedField::TsUs),
        ("ts_ns", AddedField::TsNs),
        ("lsn", AddedField::Lsn),
        ("txId", AddedField::TxId),
        ("schema", AddedField::Schema),
        ("table", AddedField::Table),
        ("db", AddedField::Db),
        ("sequence", AddedField::Sequence),
        ("snapshot", AddedField::Snapshot),
        ("name", AddedField::Name),
        ("connector", AddedField::Connector),
        ("version", AddedField::Version),
        ("source.ts_ms", AddedField::SourceTsMs),
        ("source.ts_us", AddedField::SourceTsUs),
        ("source.ts_ns", AddedField::SourceTsNs),
        ("source.lsn", AddedField::Lsn),
        ("source.txId", AddedField::TxId),
        ("source.schema", AddedField::Schema),
        ("source.table", AddedField::Table),
        ("source.db", AddedField::Db),
        ("transaction.id", AddedField::TransactionId),
    ];

    /// The field that a word means.
    pub(super) fn of(word: &str) -> Option<AddedField> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, field)| *field)
    }
}

/// The tables of an array of tables.
fn elements<'a>(sink: &mut Section<'a>, key: &'static str, known: &[&str]) -> Result<Vec<Section<'a>>, ConfigError> {
    let rule = format!("must be written [[pipeline.sink.{key}]], once for each");
    let values = match sink.take(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(sink.error(key, None, rule)),
    };
    let mut sections = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let Value::Table(table) = value else { return Err(sink.error(key, None, rule)) };
        let mut section = sink.element(key, index, table);
        section.rename(format!("{}[{index}]", sink.key(key)));
        section.only(known, &format!("[[pipeline.sink.{key}]]"))?;
        sections.push(section);
    }
    Ok(sections)
}

/// `[[pipeline.sink.route]]`.
pub(super) fn routes(sink: &mut Section<'_>) -> Result<Vec<Route>, ConfigError> {
    let mut routes = Vec::new();
    for mut section in elements(sink, "route", &["tables", "topic"])? {
        let texts = section.strings("tables")?.unwrap_or_default();
        if texts.is_empty() {
            return Err(section.error("tables", None, "must name at least one pattern, e.g. [\"public.orders_*\"]"));
        }
        let tables: Result<Vec<_>, _> = texts.iter().map(|text| TablePattern::new(text)).collect();
        let tables = tables.map_err(|error| section.error("tables", None, error.to_string()))?;
        let topic = section.required_string("topic", "the topic of these tables, e.g. \"shop.orders\"")?;
        let is_known = |names: Vec<&str>| names.iter().all(|name| ["prefix", "schema", "table"].contains(name));
        if topic.is_empty() || !placeholders(&topic).is_some_and(is_known) {
            let rule = "must be a topic's name that may hold {prefix}, {schema} and {table}, and no other braces";
            return Err(section.error("topic", Some(format!("\"{topic}\"")), rule));
        }
        routes.push(Route { tables, topic });
    }
    Ok(routes)
}

/// `[[pipeline.sink.mask]]`.
pub(super) fn masks(sink: &mut Section<'_>) -> Result<Vec<Mask>, ConfigError> {
    let mut masks = Vec::new();
    for mut section in elements(sink, "mask", &["columns", "with", "salt_file"])? {
        let columns = column_patterns(&mut section, "columns")?;
        if columns.is_empty() {
            return Err(section.error("columns", None, "must name at least one column, e.g. [\"public.users.email\"]"));
        }
        let rule = "must be \"fixed:TEXT\", \"truncate:CHARACTERS\" or \"hash\"";
        let text = section.required_string("with", rule)?;
        let salt_file = section.path("salt_file")?;
        if salt_file.is_some() && text != "hash" {
            return Err(section.error("salt_file", None, "belongs to with = \"hash\" only"));
        }
        let with = if let Some(fixed) = text.strip_prefix("fixed:") {
            MaskWith::Fixed(fixed.to_owned())
        } else if let Some(count) = text.strip_prefix("truncate:").and_then(|count| count.parse().ok()) {
            MaskWith::Truncate(count)
        } else if text == "hash" {
            let read = salt_file.map(|path| text_file::read(&path).map_err(|error| (path, error))).transpose();
            let salt = read.map_err(|(path, error)| {
                section.error("salt_file", None, format!("the file {} cannot be read: {error}", path.display()))
            })?;
            MaskWith::Hash { salt: salt.map(|salt| Secret::new(salt.trim_end_matches(['\r', '\n']))) }
        } else {
            return Err(section.error("with", Some(format!("\"{text}\"")), rule));
        };
        masks.push(Mask { columns, with });
    }
    Ok(masks)
}

/// `[pipeline.sink.outbox]`.
pub(super) fn outbox(sink: &mut Section<'_>) -> Result<Option<Outbox>, ConfigError> {
    let Some(mut section) = sink.section("outbox", OUTBOX)? else {
        return Ok(None);
    };
    let text = section.required_string("table", "schema.table of the outbox, e.g. \"public.outbox\"")?;
    let table = TablePattern::new(&text).ok().and_then(|pattern| pattern.exact());
    let table: QualifiedName = table.ok_or_else(|| {
        section.error("table", Some(format!("\"{text}\"")), "must be one table, schema.table, without *")
    })?;
    let route = section.string("route")?.unwrap_or_else(|| "outbox.event.{aggregatetype}".to_owned());
    if route.is_empty() || placeholders(&route).is_none() {
        let rule = "must be a topic's name that may hold columns in braces, e.g. \"outbox.event.{aggregatetype}\"";
        return Err(section.error("route", Some(format!("\"{route}\"")), rule));
    }
    let headers = section.strings("headers")?.unwrap_or_else(|| vec!["id".to_owned()]);
    let headers = headers.into_iter().map(|text| match text.split_once(':') {
        Some((column, header)) => (column.to_owned(), header.to_owned()),
        None => (text.clone(), text),
    });
    Ok(Some(Outbox {
        table,
        route,
        key: section.string("key")?.unwrap_or_else(|| "aggregateid".to_owned()),
        payload: section.string("payload")?.unwrap_or_else(|| "payload".to_owned()),
        headers: headers.collect(),
    }))
}
