//! Removes what a pipeline owns in Kafka: its records in the progress topic, by tombstones. For `walrelay drop`. Topics with events
//! stay, and so does the progress topic: other pipelines may have their records there.

use tokio::runtime::Handle;

use crate::config::KafkaSink;
use crate::model::PipelineName;
use crate::sink::SinkError;

use super::open::{self, Transactional};
use super::producer::{Halt, Outgoing, Producer};
use super::progress::copied_key;
use super::reader::{look_at_records, read_records};
use super::sink::in_background;
use super::topics::Topics;

/// Writes the tombstones and tells, in words, what was removed. What is not there is no fault.
pub async fn remove(sink: &KafkaSink, pipeline: &PipelineName, copy_workers: usize) -> Result<Vec<String>, SinkError> {
    let (sink, pipeline, runtime) = (sink.clone(), pipeline.clone(), Handle::current());
    in_background(move |halt| remove_now(&sink, &pipeline, copy_workers, runtime, halt)).await
}

fn remove_now(
    sink: &KafkaSink,
    pipeline: &PipelineName,
    copy_workers: usize,
    runtime: Handle,
    halt: &Halt,
) -> Result<Vec<String>, SinkError> {
    let mut topics = Topics::new(sink, runtime.clone());
    if !topics.absent(std::slice::from_ref(&sink.progress_topic))?.is_empty() {
        return Ok(Vec::new());
    }
    // Fences off whoever may still write, so that the tombstone is the last word.
    let Transactional { mut producer, timeout } =
        open::transactional(sink, 0, topics.smallest_record_bytes(), &runtime, halt)?;
    if look_at_records(sink, pipeline, halt)?.may_have_left_copies() {
        open::fence_copies(sink, copy_workers, topics.smallest_record_bytes(), &runtime, halt)?;
    }
    let records = read_records(sink, pipeline, halt)?;
    let mut keys: Vec<Vec<u8>> = records.copied.keys().map(|table| copied_key(&sink.transactional_id, table)).collect();
    let mut removed = Vec::new();
    if !keys.is_empty() {
        removed.push(format!("the records of {} copied tables in the topic \"{}\"", keys.len(), sink.progress_topic));
    }
    if records.progress.is_some() {
        keys.push(sink.transactional_id.as_bytes().to_vec());
        removed.push(format!(
            "the progress record \"{}\" in the topic \"{}\"",
            sink.transactional_id, sink.progress_topic
        ));
    }
    if keys.is_empty() {
        return Ok(removed);
    }
    let written = write_tombstones(&mut producer, &sink.progress_topic, &keys).and_then(|()| producer.commit(timeout));
    written.map_err(|fault| fault.while_doing("removing the pipeline's records", producer.events().connection()))?;
    Ok(removed)
}

fn write_tombstones(producer: &mut Producer, topic: &str, keys: &[Vec<u8>]) -> Result<(), super::fault::Fault> {
    producer.begin()?;
    let topic = producer.topic(topic)?;
    for key in keys {
        let tombstone = Outgoing { partition: 0, key: Some(key), value: None, headers: &[], timestamp_ms: 0 };
        producer.produce(topic, tombstone, None)?;
    }
    Ok(())
}
