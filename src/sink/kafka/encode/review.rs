//! What can be said about a pipeline's events before any is sent: settings that name nothing, masks that cannot cover, keys that
//! differ from Debezium's. Pure; for `walrelay check`.

use crate::config::KafkaSink;
use crate::model::{QualifiedName, Relation, ReplicaIdentity};

use super::column::{Knowledge, PlannedColumn};
use super::facts::TableFacts;
use super::form::form_of;
use super::outbox::OutboxPlan;
use super::plan::Plan;
use super::tables::Tables;

/// One thing to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Whether the pipeline would stop over it.
    pub is_error: bool,
    /// What is so.
    pub message: String,
    /// What to do about it, if anything should be done.
    pub remedy: &'static str,
}

impl Remark {
    fn error(message: String, remedy: &'static str) -> Self {
        Self { is_error: true, message, remedy }
    }

    fn warning(message: String, remedy: &'static str) -> Self {
        Self { is_error: false, message, remedy }
    }
}

/// Reviews the settings against the tables that they would meet now.
pub fn review(settings: &KafkaSink, tables: &[TableFacts]) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut session = Tables::default();
    for facts in tables {
        let name = facts.qualified_name();
        let relation = relation_of(facts);
        if let Some(outbox) = settings.outbox.as_ref().filter(|outbox| outbox.table == name) {
            if let Err(error) = OutboxPlan::new(&relation, outbox, settings) {
                let remedy = "correct [pipeline.sink.outbox], or what hides a column that it names";
                remarks.push(Remark::error(error.to_string(), remedy));
            }
            continue;
        }
        let types = std::collections::HashMap::new();
        match Plan::new(&relation, &Knowledge { settings, facts: Some(facts), types: &types }) {
            Ok(plan) => review_table(settings, facts, &relation, &plan, &mut remarks),
            Err(error) => remarks.push(Remark::error(error.to_string(), "correct the mask")),
        }
        if let Err(error) = session.claim(&name, settings) {
            remarks.push(Remark::error(error.to_string(), "route one of them elsewhere"));
        }
    }
    review_patterns(settings, tables, &mut remarks);
    remarks
}

/// As the stream would describe the table: with FULL every column belongs to the identity.
fn relation_of(facts: &TableFacts) -> Relation {
    let replica_identity = match facts.replica_identity.as_str() {
        "f" => ReplicaIdentity::Full,
        "n" => ReplicaIdentity::Nothing,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Default,
    };
    let columns = facts.columns.iter().map(|column| crate::model::Column {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        is_key: match replica_identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => false,
            ReplicaIdentity::Index => facts.identity_index.contains(&column.name),
            ReplicaIdentity::Default => facts.primary_key.contains(&column.name),
        },
    });
    Relation { oid: facts.oid, name: facts.qualified_name(), replica_identity, columns: columns.collect() }
}

fn review_table(settings: &KafkaSink, facts: &TableFacts, relation: &Relation, plan: &Plan, remarks: &mut Vec<Remark>) {
    let name = &plan.name;
    let key = plan.key.iter().filter_map(|place| plan.columns.get(*place));
    let names: Vec<&str> = key.clone().map(|column| column.name.as_str()).collect();
    if names.is_empty() {
        let message = format!("{name} has no key: its records have none, and all go to one partition");
        remarks.push(Remark::warning(message, "add a primary key, or name columns in message_key"));
    }
    let own = (&facts.primary_key, &facts.identity_index);
    let is_configured = settings.message_key.iter().any(|(pattern, _)| pattern.matches(name));
    if !is_configured && !own.0.is_empty() && !own.1.is_empty() && own.0 != own.1 {
        let message = format!(
            "{name} has a primary key and another index as its replica identity: the records' key is ({}), since only its \
             old values come; Debezium's is the primary key, with wrong deletes",
            names.join(", ")
        );
        remarks.push(Remark::warning(message, "consumers that come from Debezium see another key here"));
    }
    if is_configured && relation.replica_identity != ReplicaIdentity::Full {
        let outside: Vec<&str> =
            key.clone().filter(|column| !column.is_identity).map(|column| column.name.as_str()).collect();
        if !outside.is_empty() {
            let message = format!(
                "message_key of {name} has columns outside its replica identity ({}): a delete does not bring them, so its \
                 key has NULL or an empty value there",
                outside.join(", ")
            );
            remarks.push(Remark::warning(
                message,
                "ALTER TABLE … REPLICA IDENTITY FULL, or leave them out of message_key",
            ));
        }
    }
    for column in key.filter(|column| column.mask.is_some()) {
        let message = format!("a mask covers {} of {name}, but not the records' key, which holds it too", column.name);
        remarks.push(Remark::warning(message, "name another key with message_key"));
    }
    let is_dropped = |column: &&PlannedColumn| form_of(&column.base, column.modifier, settings).is_none();
    if !settings.include_unknown_types {
        let dropped: Vec<&str> = plan.columns.iter().filter(is_dropped).map(|column| column.name.as_str()).collect();
        if !dropped.is_empty() {
            let message = format!("columns of {name} are left out, as Debezium does: {}", dropped.join(", "));
            remarks.push(Remark::warning(message, "include_unknown_types = true sends them as text"));
        }
    }
}

/// Patterns that match nothing: a mask or an exclusion with a slip of the pen would show what it should hide.
fn review_patterns(settings: &KafkaSink, tables: &[TableFacts], remarks: &mut Vec<Remark>) {
    let has_column = |matches: &dyn Fn(&QualifiedName, &str) -> bool| {
        tables.iter().any(|facts| {
            let name = facts.qualified_name();
            facts.columns.iter().any(|column| matches(&name, &column.name))
        })
    };
    let masked = settings.masks.iter().flat_map(|mask| &mask.columns).map(|pattern| ("a mask", pattern));
    let excluded = settings.column_exclude.iter().map(|pattern| ("column_exclude", pattern));
    let included = settings.column_include.iter().map(|pattern| ("column_include", pattern));
    for (what, pattern) in masked.chain(excluded).chain(included) {
        if !has_column(&|table, column| pattern.matches(table, column)) {
            let message = format!("{what} names {}.{}, which matches no column", pattern.table, pattern.column);
            remarks.push(Remark::warning(message, "correct the pattern: case counts, nothing is quoted"));
        }
    }
    let routed = settings.routes.iter().flat_map(|route| &route.tables).map(|pattern| ("a route", pattern));
    let keyed = settings.message_key.iter().map(|(pattern, _)| ("message_key", pattern));
    for (what, pattern) in routed.chain(keyed) {
        if !tables.iter().any(|facts| pattern.matches(&facts.qualified_name())) {
            let message = format!("{what} names {pattern}, which matches no table");
            remarks.push(Remark::warning(message, "correct the pattern: case counts, nothing is quoted"));
        }
    }
    let is_there = |name: &QualifiedName| tables.iter().any(|facts| facts.qualified_name() == *name);
    if let Some(outbox) = settings.outbox.as_ref().filter(|outbox| !is_there(&outbox.table)) {
        let message = format!("the outbox {} is not among the pipeline's tables", outbox.table);
        remarks.push(Remark::warning(message, "create it, or add it to tables"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::IndexFacts;
    use super::super::facts::plain_column;
    use super::super::testing::settings;
    use super::*;

    /// A table of `id int`, `a text`, `b pg_lsn`.
    fn table(name: &str) -> TableFacts {
        let column = |name: &str, oid: u32| plain_column(name, oid, false);
        TableFacts {
            schema: "public".to_owned(),
            name: name.to_owned(),
            oid: 1,
            replica_identity: "d".to_owned(),
            columns: vec![column("id", 23), column("a", 25), column("b", 3220)],
            primary_key: vec!["id".to_owned()],
            identity_index: Vec::new(),
            unique_indexes: Vec::<IndexFacts>::new(),
        }
    }

    /// Each text must be among the remarks, and there must be no more.
    fn check(lines: &str, tables: &[TableFacts], expected: &[(bool, &str)]) {
        let remarks = review(&settings("shop", lines), tables);
        assert_eq!(remarks.len(), expected.len(), "{lines}: {remarks:?}");
        for (remark, (is_error, text)) in remarks.iter().zip(expected) {
            assert!(remark.is_error == *is_error && remark.message.contains(text), "{lines}: {remark:?}");
        }
    }

    #[test]
    fn tables_without_surprises_have_no_remarks() {
        check("", &[table("t"), table("u")], &[]);
    }

    #[test]
    fn keys_that_differ_are_said() {
        let keyless = TableFacts { primary_key: Vec::new(), ..table("t") };
        check("", &[keyless], &[(false, "public.t has no key")]);
        let other = TableFacts { replica_identity: "i".to_owned(), identity_index: vec!["a".to_owned()], ..table("t") };
        check("", &[other], &[(false, "the records' key is (a)")]);
        check(
            "message_key = { \"public.t\" = [\"a\"] }",
            &[table("t")],
            &[(false, "outside its replica identity (a)")],
        );
        let full = TableFacts { replica_identity: "f".to_owned(), ..table("t") };
        check("message_key = { \"public.t\" = [\"a\"] }", &[full], &[]);
    }

    #[test]
    fn masks_that_cover_nothing_or_cannot_cover_are_said() {
        let mask = |column: &str| format!("[[pipeline.sink.mask]]\ncolumns = [\"public.t.{column}\"]\nwith = \"hash\"");
        check(&mask("a"), &[table("t")], &[]);
        check(&mask("A"), &[table("t")], &[(false, "a mask names public.t.A, which matches no column")]);
        check(&mask("id"), &[table("t")], &[(true, "id of public.t, which is no text")]);
        let keyed = TableFacts { primary_key: vec!["a".to_owned()], ..table("t") };
        check(&mask("a"), &[keyed], &[(false, "but not the records' key")]);
    }

    #[test]
    fn settings_that_name_nothing_are_said() {
        let route = "[[pipeline.sink.route]]\ntables = [\"public.x*\"]\ntopic = \"shop.x\"";
        check(route, &[table("t")], &[(false, "a route names public.x*, which matches no table")]);
        check("column_exclude = [\"public.t.x\"]", &[table("t")], &[(false, "column_exclude names public.t.x")]);
        check("include_unknown_types = false", &[table("t")], &[(false, "left out, as Debezium does: b")]);
        let outbox = "[pipeline.sink.outbox]\ntable = \"public.t\"";
        check(outbox, &[table("u")], &[(false, "the outbox public.t is not among")]);
        check(outbox, &[table("t")], &[(true, "no column \"aggregatetype\"")]);
        let hidden =
            format!("column_exclude = [\"public.t.a\"]\n{outbox}\nroute = \"x\"\nkey = \"id\"\npayload = \"a\"");
        check(&hidden, &[table("t")], &[(true, "leaves out the column a of public.t")]);
        check("", &[table("a-b"), table("a$b"), table("a_b")], &[(true, "public.a$b and public.a_b")]);
    }
}
