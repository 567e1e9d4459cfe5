//! `walrelay resync`: asks a feed to send tables again, by a mark in the progress topic, and wakes the daemon that runs it. Sends no
//! event itself, and needs no way into the daemon: whoever may write the progress topic may ask.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::{Config, KafkaSink, Pipeline, Sink, TablePattern};
use crate::model::{PipelineName, QualifiedName, listed};
use crate::sink::kafka::transport::{CopiedTable, Records, mark_copied, read_records};
use crate::source::{
    Additions, ensure_publication, lists_standby, partitioned_above, slot_facts, synchronous_standby_names,
};
use crate::wire::sql::SqlClient;

use super::PipelineError;
use super::forget_kafka::stranger;
use super::joining::RESYNC_ROLE;
use super::primary::errand;

/// The daemon looks every few seconds; one that has not stopped its stream by then is busy, or runs another version.
const WAKE_LIMIT: Duration = Duration::from_secs(30);
/// Role of the session that asks the catalogs; the one that wakes is another.
const ERRAND_ROLE: &str = "errand";
/// Pause between two looks at its slot.
const PAUSE: Duration = Duration::from_millis(200);

/// Marks the tables that match any of the patterns, and waits until the daemon has noticed. Gives, in words, what was done.
pub async fn resync(
    config: &Config,
    pipeline: &Pipeline,
    patterns: &[TablePattern],
) -> Result<Vec<String>, PipelineError> {
    let name = &pipeline.name;
    let Sink::Kafka(sink) = &pipeline.sink else {
        return Err(PipelineError::Refused(format!(
            "the pipeline \"{name}\" goes to {}, only tables of a feed to Kafka can be sent again. To copy a standby anew: walrelay drop \
             {name} --yes, empty its tables, start",
            pipeline.sink.kind()
        )));
    };
    let sql = errand(&config.primary, name, ERRAND_ROLE).await?;
    let records = read_records(sink, name).await?;
    refuse_unready(&sql, pipeline, sink, &records).await?;
    let publication =
        ensure_publication(&sql, &pipeline.publication_name(), false, &pipeline.tables, &Additions::Later).await?;
    let wanted = matching(name, &publication.tables, &partitioned_above(&sql).await?, patterns)?;
    let copied = |table: &QualifiedName| records.copied.get(table).copied();
    let of = |is_it: &dyn Fn(CopiedTable) -> bool| -> Vec<QualifiedName> {
        wanted.iter().filter(|table| copied(table).is_some_and(is_it)).cloned().collect()
    };
    let (in_work, asked) = (of(&|copied| copied.is_unfinished()), of(&|copied| copied.again));
    let new: Vec<(QualifiedName, CopiedTable)> = wanted
        .iter()
        .filter(|table| !in_work.contains(table) && !asked.contains(table))
        .map(|table| (table.clone(), CopiedTable { again: true, ..copied(table).unwrap_or_default() }))
        .collect();
    let mut said = Vec::new();
    if !in_work.is_empty() {
        said.push(format!("the initial copy has still to send {}", listed(&in_work)));
    }
    if !asked.is_empty() {
        said.push(format!("was asked for before, and is not finished: {}", listed(&asked)));
    }
    if new.is_empty() {
        return Ok(said);
    }
    mark_copied(sink, new.clone()).await?;
    let names: Vec<QualifiedName> = new.into_iter().map(|(table, _)| table).collect();
    said.push(format!("to be sent again: {}", listed(&names)));
    said.push(wake(config, &sql, pipeline).await?);
    Ok(said)
}

/// What speaks against it.
async fn refuse_unready(
    sql: &SqlClient,
    pipeline: &Pipeline,
    sink: &KafkaSink,
    records: &Records,
) -> Result<(), PipelineError> {
    let name = &pipeline.name;
    let Some(progress) = records.progress.as_ref().filter(|progress| !progress.lsn.is_zero()) else {
        return Err(PipelineError::Refused(format!(
            "the topic \"{}\" has no progress record of \"{name}\" (key \"{}\"): it has not streamed yet, and its first start sends every \
             table",
            sink.progress_topic, sink.transactional_id
        )));
    };
    if let Some(stranger) = stranger(sql, pipeline, progress).await? {
        return Err(PipelineError::Refused(format!(
            "the progress record \"{}\" in the topic \"{}\" is about {stranger}, not about \"{name}\" on this primary",
            sink.transactional_id, sink.progress_topic
        )));
    }
    let names = synchronous_standby_names(sql).await?;
    if lists_standby(&names, name.as_str()) {
        return Err(PipelineError::Refused(format!(
            "synchronous_standby_names on the primary is '{names}' and lists \"{name}\": the snapshot waits for running transactions, and \
             those would wait for it. Take it out, run this again, and put it back once the tables are sent"
        )));
    }
    Ok(())
}

/// The published tables that match, or a partitioned table above them does; each pattern must match one.
fn matching(
    name: &PipelineName,
    published: &[QualifiedName],
    above: &BTreeMap<QualifiedName, Vec<QualifiedName>>,
    patterns: &[TablePattern],
) -> Result<Vec<QualifiedName>, PipelineError> {
    let is_meant = |pattern: &TablePattern, table: &QualifiedName| {
        pattern.matches(table) || above.get(table).is_some_and(|above| above.iter().any(|it| pattern.matches(it)))
    };
    for pattern in patterns {
        if !published.iter().any(|table| is_meant(pattern, table)) {
            return Err(PipelineError::Refused(format!(
                "no table of \"{name}\" matches \"{pattern}\"; its publication has {}",
                if published.is_empty() { "none".to_owned() } else { listed(published) }
            )));
        }
    }
    let is_wanted = |table: &&QualifiedName| patterns.iter().any(|pattern| is_meant(pattern, table));
    Ok(published.iter().filter(is_wanted).cloned().collect())
}

/// Waits until the daemon's stream has ended for it.
async fn wake(config: &Config, sql: &SqlClient, pipeline: &Pipeline) -> Result<String, PipelineError> {
    let slot = pipeline.slot_name();
    let streams = async || -> Result<Option<i32>, PipelineError> {
        let facts = slot_facts(sql, &slot).await?;
        Ok(facts.filter(|facts| facts.active).and_then(|facts| facts.active_pid))
    };
    let Some(before) = streams().await? else {
        return Ok("no daemon streams now: its next start sends them".to_owned());
    };
    // As long as this session is there the daemon knows that it is asked; by now the marks are there to be read.
    let _asking = errand(&config.primary, &pipeline.name, RESYNC_ROLE).await?;
    let began = Instant::now();
    while began.elapsed() < WAKE_LIMIT {
        if streams().await? != Some(before) {
            return Ok("the daemon has begun; walrelay status shows how far it is".to_owned());
        }
        sleep(PAUSE).await;
    }
    Ok("the daemon has not noticed yet: it sends them with its next start (systemctl restart walrelay)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pattern_must_match_a_published_table() {
        let (name, table) = (PipelineName::new("a").unwrap(), |name: &str| QualifiedName::new("public", name));
        let published = [table("orders"), table("order_items"), table("users")];
        let pattern = |text: &str| TablePattern::new(text).unwrap();
        // `users` is a partition of `people`, which itself is one of `all`.
        let above = [(table("users"), vec![table("people"), table("all")])].into();
        let found = |patterns: &[&str]| {
            let patterns: Vec<TablePattern> = patterns.iter().map(|text| pattern(text)).collect();
            matching(&name, &published, &above, &patterns).map_err(|error| error.to_string())
        };
        assert_eq!(found(&["public.order*", "public.orders"]).unwrap(), [table("orders"), table("order_items")]);
        assert_eq!(found(&["public.people"]).unwrap(), [table("users")]);
        assert_eq!(found(&["public.all", "public.orders"]).unwrap(), [table("orders"), table("users")]);
        let error = found(&["public.orders", "sales.*"]).unwrap_err();
        assert!(error.contains("no table of \"a\" matches \"sales.*\"; its publication has public.orders"), "{error}");
    }
}
