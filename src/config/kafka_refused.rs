//! Names that are refused with a better one: Debezium's settings, and librdkafka's properties that exactness or memory depend
//! on. Knows only words.

/// Debezium's name and what to write instead, or why nothing is needed.
pub(super) const DEBEZIUM: &[(&str, &str)] = &[
    ("topic.prefix", "topic_prefix"),
    ("database.server.name", "topic_prefix"),
    ("table.include.list", "tables of the [[pipeline]]"),
    ("table.exclude.list", "exclude of the [[pipeline]]"),
    ("schema.include.list", "tables of the [[pipeline]], e.g. [\"sales.*\"]"),
    ("schema.exclude.list", "exclude of the [[pipeline]], e.g. [\"sales.*\"]"),
    ("column.include.list", "column_include"),
    ("column.exclude.list", "column_exclude"),
    ("message.key.columns", "message_key"),
    ("decimal.handling.mode", "decimal"),
    ("time.precision.mode", "time_precision"),
    ("interval.handling.mode", "interval"),
    ("hstore.handling.mode", "hstore"),
    ("binary.handling.mode", "binary"),
    ("include.unknown.datatypes", "include_unknown_types"),
    ("unavailable.value.placeholder", "unavailable_value"),
    ("tombstones.on.delete", "tombstones"),
    ("skipped.operations", "skipped_operations"),
    ("provide.transaction.metadata", "transaction_topic"),
    ("topic.transaction", "transaction_topic (the topic is {prefix}.transaction)"),
    ("extended.headers.enabled", "context_headers"),
    ("snapshot.mode", "initial_copy of the [[pipeline]]: true or false"),
    ("slot.name", "slot of the [[pipeline]]"),
    ("publication.name", "publication of the [[pipeline]]"),
    ("publication.autocreate.mode", "publication of the [[pipeline]]; without it walrelay manages its own"),
    ("plugin.name", "nothing: walrelay reads pgoutput"),
    ("database.hostname", "url of [primary]"),
    ("database.port", "url of [primary]"),
    ("database.user", "url of [primary]"),
    ("database.password", "url or password_file of [primary]"),
    ("database.dbname", "url of [primary]"),
    ("database.sslmode", "url of [primary], with ?sslmode=…"),
    ("snapshot.max.threads", "copy_workers of the [[pipeline]]"),
    ("max.batch.size", "nothing: batches grow with what waits"),
    ("max.queue.size", "memory_limit of the [[pipeline]]"),
    ("max.queue.size.in.bytes", "memory_limit of the [[pipeline]]"),
    ("poll.interval.ms", "nothing: events are sent as they come"),
    ("heartbeat.interval.ms", "nothing: idle positions are recorded and confirmed"),
    ("heartbeat.action.query", "nothing: idle positions are recorded and confirmed"),
    ("topic.naming.strategy", "topic and [[pipeline.sink.route]]"),
    ("topic.creation.default.partitions", "create_topics.partitions"),
    ("topic.creation.default.replication.factor", "create_topics.replication_factor"),
    ("key.converter.schemas.enable", "schemas_key"),
    ("value.converter.schemas.enable", "schemas_value"),
    ("key.converter.replace.null.with.default", "replace_null_with_default"),
    ("value.converter.replace.null.with.default", "replace_null_with_default"),
    ("key.converter", "nothing: keys are JSON"),
    ("value.converter", "nothing: values are JSON"),
    ("delete.tombstone.handling.mode", "delete_handling, with format = \"plain\""),
    ("delete.handling.mode", "delete_handling, with format = \"plain\""),
    ("add.fields", "add_fields, with format = \"plain\""),
    ("signal.data.collection", "nothing: there are no signals; new tables are copied by themselves"),
    ("exactly.once.support", "delivery = \"exactly_once\""),
    ("bootstrap.servers", "brokers"),
    ("offset.storage.topic", "progress_topic"),
    ("connector.class", "type = \"kafka\""),
    ("tasks.max", "nothing: a pipeline is one task"),
    ("topic.heartbeat.prefix", HEARTBEAT),
    ("transforms", TRANSFORMS),
    ("predicates", TRANSFORMS),
    (
        "converters",
        "nothing: there are no converters; decimal, time_precision, interval, hstore and binary choose forms",
    ),
    (
        "post.processors",
        "nothing: there are no post processors; an UPDATE's large values that did not come are named in a header",
    ),
    ("datatype.propagate.source.type", SOURCE_TYPE),
    ("column.propagate.source.type", SOURCE_TYPE),
    ("replica.identity.autoset.values", "nothing: walrelay alters no table of the primary"),
    ("flush.lsn.source", CONFIRMED),
    ("lsn.flush.mode", CONFIRMED),
    ("status.update.interval.ms", "nothing: positions are told as they move"),
    ("event.processing.failure.handling.mode", "nothing: a fault stops the pipeline, which says so"),
];

const HEARTBEAT: &str = "nothing: idle positions are recorded and confirmed";
const TRANSFORMS: &str =
    "format = \"plain\", [[pipeline.sink.route]], [[pipeline.sink.mask]] or [pipeline.sink.outbox]";
const CONFIRMED: &str = "nothing: a position is confirmed once its events are on the brokers";
const SOURCE_TYPE: &str = "nothing: the events do not name the columns' types in Postgres";
const SIGNALS: &str =
    "nothing: there are no signals; new tables are copied by themselves, and walrelay resync sends one again";

/// How whole families of such names begin, the narrower ones first. Looked at behind the single names. Above all a mask must never be
/// taken for something that the client would leave out in silence.
const FAMILIES: &[(&str, &str)] = &[
    ("column.mask.hash.", "[[pipeline.sink.mask]] with = \"hash\", and salt_file"),
    ("column.mask.", "[[pipeline.sink.mask]] with = \"fixed:***\""),
    ("column.truncate.", "[[pipeline.sink.mask]] with = \"truncate:CHARACTERS\""),
    ("transforms.", TRANSFORMS),
    ("predicates.", TRANSFORMS),
    ("snapshot.select.statement.overrides", "nothing: a table is copied whole"),
    ("snapshot.", "initial_copy of the [[pipeline]]: true or false; a table is copied whole, under one snapshot"),
    ("incremental.snapshot.", SIGNALS),
    ("signal.", SIGNALS),
    ("notification.", "nothing: /status and /metrics tell how far a pipeline is"),
    ("heartbeat.", HEARTBEAT),
    ("database.", "url of [primary]"),
    ("driver.", "url of [primary]"),
    ("slot.", "slot of the [[pipeline]], its name"),
    ("publication.", "publication of the [[pipeline]], its name"),
    ("topic.creation.", "create_topics"),
    ("key.converter.", "nothing: keys are JSON"),
    ("value.converter.", "nothing: values are JSON"),
    ("header.converter", "nothing: headers are texts"),
    ("producer.override.", "[pipeline.sink.client], with what stands behind producer.override"),
    (
        "errors.",
        "nothing: what may pass is tried again, anything else stops the pipeline; on_oversized knows a dead letter topic",
    ),
];

/// What stands before the salt in the name of one of Debezium's masks.
const BEFORE_SALT: &str = ".with.salt.";

/// Property of librdkafka, why it cannot be set, and what to write instead.
const CLIENT: &[(&str, &str)] = &[
    ("bootstrap.servers", "is the key brokers of [pipeline.sink]"),
    ("metadata.broker.list", "is the key brokers of [pipeline.sink]"),
    ("transactional.id", "is the key transactional_id of [pipeline.sink]: it names the progress record"),
    ("transaction.timeout.ms", "is the key transaction_timeout of [pipeline.sink]"),
    ("enable.idempotence", "is always true: without it a retry may write twice"),
    ("enable.gapless.guarantee", "would end the producer where walrelay replays instead"),
    ("acks", "is always all: less may lose what was confirmed to the primary"),
    ("request.required.acks", "is always all: less may lose what was confirmed to the primary"),
    ("max.in.flight", "is set by walrelay: more than 5 breaks the order within a key"),
    ("max.in.flight.requests.per.connection", "is set by walrelay: more than 5 breaks the order within a key"),
    ("partitioner", "is Java's murmur2, computed by walrelay: the same key must stay in its partition"),
    ("partitioner_cb", "is Java's murmur2, computed by walrelay: the same key must stay in its partition"),
    ("sticky.partitioning.linger.ms", "would spread records without a key: they all go to one partition"),
    ("message.timeout.ms", "is set by walrelay: a record that expires in the queue would be lost"),
    ("delivery.timeout.ms", "is set by walrelay: a record that expires in the queue would be lost"),
    ("retries", "is set by walrelay: a record that is given up would be lost"),
    ("message.send.max.retries", "is set by walrelay: a record that is given up would be lost"),
    ("queue.buffering.max.messages", "follows from memory_limit of the [[pipeline]]"),
    ("queue.buffering.max.kbytes", "follows from memory_limit of the [[pipeline]]"),
    ("queue.buffering.backpressure.threshold", "is set by walrelay: it belongs to the queue's memory"),
    ("message.copy.max.bytes", "is set by walrelay: it belongs to the queue's memory"),
    ("message.max.bytes", "is read from each topic (max.message.bytes), so that nothing is refused after it was sent"),
    ("receive.message.max.bytes", "is set by walrelay: it bounds memory"),
    ("delivery.report.only.error", "is set by walrelay: every delivery counts"),
    ("produce.offset.report", "is set by walrelay"),
    ("dr_cb", "is walrelay's own"),
    ("dr_msg_cb", "is walrelay's own"),
    ("opaque", "is walrelay's own"),
    ("allow.auto.create.topics", "is always false: topics are made before the first event, with create_topics"),
    ("isolation.level", "is always read_committed: the progress record is read with it"),
    ("group.id", "is walrelay's own: it reads its progress record only, as no group"),
    ("group.instance.id", "is walrelay's own: it reads its progress record only, as no group"),
    ("enable.auto.commit", "is walrelay's own: positions are in the progress record"),
    ("enable.auto.offset.store", "is walrelay's own: positions are in the progress record"),
    ("auto.offset.reset", "is walrelay's own: the progress record is read from its beginning"),
    ("enable.partition.eof", "is always true: it ends the reading of the progress record"),
    ("plugin.library.paths", "would load foreign code into the daemon"),
];

/// What to write instead of a name that Debezium or Kafka Connect has. Also found where dots became underscores.
pub(super) fn instead_of(key: &str) -> Option<&'static str> {
    let dotted = key.replace('_', ".");
    let single = DEBEZIUM.iter().find(|(name, _)| *name == key || *name == dotted);
    let found = single.or_else(|| FAMILIES.iter().find(|(beginning, _)| dotted.starts_with(*beginning)));
    found.map(|(_, instead)| *instead)
}

/// A key for a message: the salt of a mask, which Debezium has in the name, is a secret.
pub(super) fn without_salt(key: &str) -> String {
    match key.replace('_', ".").find(BEFORE_SALT) {
        Some(at) => format!("{}…", &key[..at + BEFORE_SALT.len()]),
        None => key.to_owned(),
    }
}

/// Why a property of librdkafka cannot be set.
pub(super) fn client_reason(property: &str) -> Option<&'static str> {
    CLIENT.iter().find(|(name, _)| *name == property).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Environment, read};
    use super::*;

    #[test]
    fn families_of_debeziums_names_point_to_what_is_ours() {
        for (name, ours) in [
            ("column.mask.with.12.chars", "[[pipeline.sink.mask]] with = \"fixed:***\""),
            ("column_mask_with_12_chars", "[[pipeline.sink.mask]] with = \"fixed:***\""),
            ("column.mask.hash.v2.SHA-256.with.salt.x", "with = \"hash\""),
            ("column.truncate.to.20.chars", "truncate:"),
            ("transforms", "[[pipeline.sink.mask]]"),
            ("transforms.mask.type", "[[pipeline.sink.mask]]"),
            ("predicates.isTable.pattern", "[[pipeline.sink.route]]"),
            ("snapshot.select.statement.overrides", "copied whole"),
            ("snapshot.select.statement.overrides.public.orders", "copied whole"),
            ("snapshot.mode", "true or false"),
            ("snapshot.fetch.size", "initial_copy"),
            ("incremental.snapshot.chunk.size", "resync"),
            ("signal.enabled.channels", "resync"),
            ("heartbeat.topics.prefix", "nothing"),
            ("connector.class", "type = \"kafka\""),
            ("database.sslrootcert", "[primary]"),
            ("slot.drop.on.stop", "slot of the [[pipeline]]"),
            ("topic.creation.default.cleanup.policy", "create_topics"),
            ("value.converter.schema.registry.url", "JSON"),
            ("value.converter.schemas.enable", "schemas_value"),
            ("producer.override.linger.ms", "[pipeline.sink.client]"),
        ] {
            let instead = instead_of(name);
            assert!(instead.is_some_and(|instead| instead.contains(ours)), "{name}: {instead:?}");
        }
        // Neither the client's properties nor keys of ours, misspelt ones too, are taken for such names.
        let clients = ["linger.ms", "compression.type", "ssl.ca.location", "topic.metadata.refresh.interval.ms"];
        let misspelt = ["message_keys", "schema_value", "topic_prefx", "column_exclud"];
        for name in clients.iter().chain(&misspelt) {
            assert_eq!(instead_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_mask_of_debezium_is_refused_without_its_salt() {
        let text = "[primary]\nurl = \"postgres://u@h/d\"\n[[pipeline]]\nname = \"feed1\"\n[pipeline.sink]\ntype = \"kafka\"\n\
                    brokers = \"k:9092\"\ntopic_prefix = \"shop\"\n";
        for key in ["\"column.mask.hash.SHA-256.with.salt.s3cret\"", "column_mask_hash_v2_SHA-256_with_salt_s3cret"] {
            let text = format!("{text}{key} = \"public.users.email\"\n");
            let error = read(Path::new("walrelay.toml"), &text, &Environment::default()).unwrap_err().to_string();
            assert!(error.contains("line 9") && error.contains("[[pipeline.sink.mask]]"), "{error}");
            assert!(!error.contains("s3cret") && !error.contains("pipeline.sink.client"), "{error}");
        }
    }
}
