//! Names of topics. Pure; makes none.

use crate::config::KafkaSink;
use crate::model::QualifiedName;

/// The topic of a table: the first route that matches, else the pipeline's template.
pub(super) fn topic_of(table: &QualifiedName, settings: &KafkaSink) -> String {
    let route = settings.routes.iter().find(|route| route.tables.iter().any(|pattern| pattern.matches(table)));
    filled(route.map_or(&settings.topic, |route| &route.topic), table, settings)
}

/// Whether the table was sent there on purpose, perhaps together with others.
pub(super) fn is_routed(table: &QualifiedName, settings: &KafkaSink) -> bool {
    settings.routes.iter().any(|route| route.tables.iter().any(|pattern| pattern.matches(table)))
}

fn filled(template: &str, table: &QualifiedName, settings: &KafkaSink) -> String {
    let mut name = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        name.push_str(before);
        let (word, more) = behind.split_once('}').unwrap_or((behind, ""));
        name.push_str(match word {
            "prefix" => &settings.topic_prefix,
            "schema" => &table.schema,
            "table" => &table.name,
            _ => "",
        });
        rest = more;
    }
    name.push_str(rest);
    sanitized(&name)
}

/// With `_` for every character that Kafka does not allow.
pub(super) fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
}
