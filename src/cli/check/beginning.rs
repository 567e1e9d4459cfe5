//! The doctor at the point where a start would begin: the rules of resume, over what both servers say. Opens the same kind of
//! connection that `run` streams over, and changes nothing.

use crate::config::{self, Config};
use crate::model::Progress;
use crate::pipeline::{Facts, Holder, adoption, beginning};
use crate::source::{SourceError, identify, slot_facts, timeline_switch_point};
use crate::wire::{Connection, Session};

use super::finding::{Finding, Findings};
use super::primary::Primary;

/// What the standby holds of this pipeline.
pub(super) enum Record {
    /// It could not be read; another finding says why.
    Unknown,
    /// Its progress row, if there is one.
    Read(Option<Progress>),
}

/// Examines where the pipeline would begin.
pub(super) async fn examine(
    primary: &Primary,
    config: &Config,
    pipeline: &config::Pipeline,
    record: Record,
    findings: &mut Findings,
) {
    if !primary.may_stream {
        return;
    }
    match refusal(primary, config, pipeline, record).await {
        Ok(None) => {}
        Ok(Some(reason)) => {
            let remedy = "do what it says, then systemctl reload walrelay. Drop only where it says so: that forgets how far the pipeline is, \
                          also where only the url is wrong";
            findings.push(Finding::error(pipeline.name.as_str(), reason, remedy));
        }
        Err(error) => {
            let message = format!("no replication connection to {}: {error}", config.primary);
            findings.push(Finding::error("primary", message, "check pg_hba.conf, max_wal_senders and the role"));
        }
    }
}

async fn refusal(
    primary: &Primary,
    config: &Config,
    pipeline: &config::Pipeline,
    record: Record,
) -> Result<Option<String>, SourceError> {
    let session = Session::replication("walrelay check");
    let connected = Connection::connect(&config.primary, &session).await;
    let mut replication = connected.map_err(SourceError::wire("connecting"))?;
    let identity = identify(&mut replication).await?;
    let slot_name = pipeline.slot_name();
    let slot = slot_facts(&primary.sql, &slot_name).await?;
    if slot.as_ref().is_some_and(|slot| slot.maker().is_some()) {
        // A start waits for that, too.
        return Ok(None);
    }
    // Without a record to compare with, the slot alone is judged.
    let is_known = matches!(record, Record::Read(_));
    let (progress, initial_copy) = match record {
        Record::Unknown => (None, false),
        Record::Read(progress) => (progress, pipeline.initial_copy && !matches!(pipeline.sink, config::Sink::Stdout)),
    };
    let switch_point = match &progress {
        Some(progress) if progress.timeline < identity.timeline => {
            timeline_switch_point(&mut replication, identity.timeline, progress.timeline).await?
        }
        _ => None,
    };
    let facts = Facts {
        pipeline: &pipeline.name,
        identity: &identity,
        slot_name: &slot_name,
        slot: slot.as_ref(),
        progress: progress.as_ref(),
        initial_copy,
        holder: Holder::of(&pipeline.sink),
        switch_point,
    };
    let begun = beginning(&facts).and_then(|begun| match &pipeline.sink {
        config::Sink::Kafka(sink) if is_known => adoption(&facts, begun, sink.start_lsn),
        _ => Ok(begun),
    });
    Ok(begun.err())
}
