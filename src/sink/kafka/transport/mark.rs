//! Writes tables' records into the progress topic beside the producer that runs: for `walrelay resync`. Fences nobody, and touches
//! no progress record.

use std::time::Duration;

use crate::config::KafkaSink;
use crate::model::QualifiedName;
use crate::sink::SinkError;

use super::client::{self, Events};
use super::fault::Fault;
use super::producer::{Halt, Outgoing, Producer};
use super::progress::{CopiedTable, copied_key, copied_value};
use super::sink::in_background;

/// All of it is acknowledged within this, or it failed.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);
/// Records of a table are small.
const RECORD_BYTES: usize = 100_000;

/// Writes what these tables' records say from now on; on return it is in the logs of all in-sync replicas.
pub async fn mark_copied(sink: &KafkaSink, tables: Vec<(QualifiedName, CopiedTable)>) -> Result<(), SinkError> {
    let sink = sink.clone();
    in_background(move |halt| {
        let events = Events::default();
        let written = write(&sink, &tables, events.clone(), halt);
        let doing = format!("writing to the progress topic \"{}\"", sink.progress_topic);
        written.map_err(|fault| fault.while_doing(doing, events.connection()))
    })
    .await
}

fn write(sink: &KafkaSink, tables: &[(QualifiedName, CopiedTable)], events: Events, halt: &Halt) -> Result<(), Fault> {
    let mut settings = client::producer_settings(sink, 0, RECORD_BYTES);
    settings.set("message.timeout.ms", DELIVERY_LIMIT.as_millis().to_string());
    let mut producer = Producer::new(&settings, events, halt.clone())?;
    let topic = producer.topic(&sink.progress_topic)?;
    for (table, copied) in tables {
        let (key, value) = (copied_key(&sink.transactional_id, table), copied_value(table, *copied));
        let record = Outgoing { partition: 0, key: Some(&key), value: Some(&value), headers: &[], timestamp_ms: 0 };
        producer.produce(topic, record, None)?;
    }
    producer.flush(DELIVERY_LIMIT)
}
