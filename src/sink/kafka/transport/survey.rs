//! What the doctor wants to know of a Kafka cluster: the record, the topics, the settings that a promise hangs on. Makes nothing
//! and fences nobody.

use std::collections::HashMap;

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::runtime::Handle;

use crate::config::KafkaSink;
use crate::model::{PipelineName, QualifiedName};
use crate::sink::SinkError;

use super::open::{broker_settings, topics_of};
use super::progress::Records;
use super::reader::read_records;
use super::sink::in_background;
use super::topics::Topics;

/// The transaction coordinator's own topic; there once anybody has used a transaction.
const TRANSACTION_STATE: &str = "__transaction_state";

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSurvey {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: i32,
    /// Replicas of the partition that has the fewest.
    pub replicas: usize,
    /// `min.insync.replicas`, where it may be read.
    pub least_in_sync: Option<usize>,
    /// `cleanup.policy`, where it may be read.
    pub cleanup_policy: Option<String>,
    /// `unclean.leader.election.enable`.
    pub has_unclean_elections: bool,
}

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The pipeline's records.
    pub records: Records,
    /// The topics of the pipeline that exist: of its tables, of its progress, of the transaction coordinator.
    pub topics: Vec<TopicSurvey>,
    /// Topics that do not exist.
    pub missing: Vec<String>,
    /// A broker's settings, where they may be read.
    pub broker: HashMap<String, String>,
}

/// Looks at everything.
pub async fn survey(sink: &KafkaSink, pipeline: &PipelineName, tables: &[QualifiedName]) -> Result<Survey, SinkError> {
    let (sink, pipeline, tables, runtime) = (sink.clone(), pipeline.clone(), tables.to_vec(), Handle::current());
    in_background(move |halt| {
        let mut topics = Topics::new(&sink, runtime.clone());
        let mut names = topics_of(&sink, &pipeline, &tables);
        names.push(sink.progress_topic.clone());
        let missing = topics.absent(&names)?;
        // Internal: one who may not see it learns it from the broker's settings.
        let state = TRANSACTION_STATE.to_owned();
        if topics.absent(std::slice::from_ref(&state)).is_ok_and(|missing| missing.is_empty()) {
            names.push(state);
        }
        let broker = match broker_settings(&sink, &runtime) {
            Ok(settings) => settings,
            Err(fault) if fault.code == Some(Code::ClusterAuthorizationFailed) => HashMap::new(),
            Err(fault) => return Err(fault.while_doing("reading a broker's settings", None)),
        };
        let found = names.iter().filter_map(|name| {
            let facts = topics.known(name)?;
            Some(TopicSurvey {
                name: name.clone(),
                partitions: facts.partitions,
                replicas: facts.replicas,
                least_in_sync: facts.settings.get("min.insync.replicas").and_then(|text| text.parse().ok()),
                cleanup_policy: facts.settings.get("cleanup.policy").cloned(),
                has_unclean_elections: facts
                    .settings
                    .get("unclean.leader.election.enable")
                    .is_some_and(|it| it == "true"),
            })
        });
        let topics = found.collect();
        let is_new = missing.contains(&sink.progress_topic);
        let records = if is_new { Records::default() } else { read_records(&sink, &pipeline, halt)? };
        Ok(Survey { records, topics, missing, broker })
    })
    .await
}
