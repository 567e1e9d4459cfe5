//! `walrelay drop`: takes away what a pipeline made, slot first, so that the primary stops retaining WAL whatever happens
//! afterwards. Refuses while a daemon runs it; leaves what it may not drop, or what may be somebody else's, and says so.

use std::collections::BTreeMap;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::config::{self, Config, PostgresSink};
use crate::model::{PipelineName, SlotName};
use crate::sink::postgres::{self, open_session};
use crate::source::{
    SlotFacts, SourceError, drop_publication, drop_slot, lists_standby, slot_facts, synchronous_standby_names,
};
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::PipelineError;
use super::ownership;
use super::primary::errand;
use super::removed::Removed;

/// The primary that is spoken to.
struct Here {
    system_identifier: String,
    database: String,
}

impl Here {
    async fn read(sql: &SqlClient) -> Result<Self, SourceError> {
        let query =
            "SELECT system_identifier::text, pg_catalog.current_database()::text FROM pg_catalog.pg_control_system()";
        let row = sql.query_one(query, &[]).await;
        let row = row.map_err(SourceError::sql("reading the primary's system identifier"))?;
        Ok(Self { system_identifier: row.get(0), database: row.get(1) })
    }
}

/// What the pipeline's progress record says of its slot.
enum Recorded {
    /// It names this slot, of this database of the primary.
    Slot { slot: SlotName, database: String },
    /// No slot of the primary, and why.
    Nothing(String),
}

impl Recorded {
    fn nothing(name: &PipelineName) -> Self {
        Recorded::Nothing(format!("no progress record of \"{name}\" names it"))
    }

    fn unreadable(error: &dyn std::fmt::Display) -> Self {
        Recorded::Nothing(format!("the progress record cannot be read ({error})"))
    }
}

/// Removes slot, managed publication, guards, record, copy records and origin of a pipeline.
pub async fn remove(config: &Config, pipeline: &config::Pipeline) -> Result<Vec<Removed>, PipelineError> {
    let name = &pipeline.name;
    let sql = errand(&config.primary, name, "drop").await?;
    refuse_running(&sql, pipeline).await?;
    let here = Here::read(&sql).await?;
    #[cfg(not(feature = "kafka"))]
    if matches!(pipeline.sink, config::Sink::Kafka(_)) {
        return Err(PipelineError::Refused(super::attempt::NO_KAFKA.to_owned()));
    }
    #[cfg(feature = "kafka")]
    let kafka = match &pipeline.sink {
        config::Sink::Kafka(sink) => {
            let lock = super::forget_kafka::own(config, &sql, name).await?;
            Some((lock, sink, super::forget_kafka::read(sink, name).await))
        }
        config::Sink::Postgres(_) | config::Sink::Stdout => None,
    };
    let mut standby = match &pipeline.sink {
        config::Sink::Postgres(sink) => Some(own_standby(sink, name).await),
        config::Sink::Kafka(_) | config::Sink::Stdout => None,
    };
    // A daemon that holds the lock stops us before anything is removed; a standby that is gone does not.
    if let Some(Err(error @ PipelineError::Refused(_))) = standby {
        return Err(error);
    }
    let recorded = match &mut standby {
        Some(Ok((connection, _))) => recorded_on_standby(connection, name, &here).await,
        Some(Err(error)) => Recorded::unreadable(error),
        None => Recorded::Nothing("a pipeline to stdout keeps no progress record".to_owned()),
    };
    let heirs = match &mut standby {
        Some(Ok((connection, _))) => heirs(connection, name, &here).await,
        _ => Heirs::new(),
    };
    #[cfg(feature = "kafka")]
    let recorded = kafka.as_ref().map_or(recorded, |(_, _, read)| recorded_in_kafka(read, pipeline, &here));
    let mut report = Vec::new();
    report.extend(warn_if_listed(&sql, name).await?);
    report.extend(drop_slots(&sql, pipeline, &here.database, (&recorded, &heirs)).await?);
    report.extend(drop_managed_publication(&sql, pipeline, &heirs).await);
    match standby {
        // The lock is held until everything is gone.
        Some(Ok((lock, sink))) => {
            match postgres::remove(&sink.url, name).await {
                Ok(said) => report.extend(said.into_iter().map(Removed::Done)),
                Err(error) => report.push(Removed::Left(format!("what is on the standby: {error}"))),
            };
            drop(lock);
        }
        Some(Err(error)) => {
            report.push(Removed::Left(format!("everything on the standby: {error}; run drop again once it answers")))
        }
        None => {}
    }
    #[cfg(feature = "kafka")]
    if let Some((lock, sink, read)) = kafka {
        report.extend(super::forget_kafka::forget(&sql, pipeline, sink, read).await?);
        drop(lock);
    }
    Ok(report)
}

fn done(was_there: bool, what: &str) -> Removed {
    Removed::Done(if was_there { format!("dropped {what}") } else { format!("{what} is not there") })
}

/// Gives a row where the standby has progress records.
const HAS_RECORDS: &str = "SELECT 1 WHERE pg_catalog.to_regclass('walrelay.progress') IS NOT NULL";

/// Slots of this database of the primary that the standby's other records name, each with its pipeline.
type Heirs = BTreeMap<String, String>;

/// A pipeline that was given another name may go on with the slot of the old one. A record that is behind our own is one of the past.
/// Where the records cannot be read there are none to be seen, as where the standby is gone.
async fn heirs(connection: &mut Connection, name: &PipelineName, here: &Here) -> Heirs {
    let query = format!(
        "SELECT pg_catalog.string_agg(slot || ' ' || pipeline, E'\\n') FROM walrelay.progress p \
         WHERE pipeline <> {0} AND system_identifier = {1} AND database = {2} AND NOT EXISTS (SELECT FROM walrelay.progress o \
         WHERE o.pipeline = {0} AND o.slot = p.slot AND (o.lsn, o.updated_at) > (p.lsn, p.updated_at))",
        escape_literal(name.as_str()),
        escape_literal(&here.system_identifier),
        escape_literal(&here.database)
    );
    let doing = "reading the other progress rows on the standby";
    let text = match ownership::first_value(connection, HAS_RECORDS, doing).await {
        Ok(Some(_)) => ownership::first_value(connection, &query, doing).await.ok().flatten().unwrap_or_default(),
        _ => String::new(),
    };
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(slot, pipeline)| (slot.to_owned(), pipeline.to_owned())).collect()
}

/// What the progress row says, which stands at 0/0 where a start was cut off before its slot was made.
async fn recorded_on_standby(connection: &mut Connection, name: &PipelineName, here: &Here) -> Recorded {
    match recorded_text(connection, name, here).await {
        Ok(text) => match text.as_deref().and_then(|text| text.split_once(' ')) {
            Some((slot, database)) => SlotName::new(slot).map_or_else(
                |error| Recorded::unreadable(&error),
                |slot| Recorded::Slot { slot, database: database.to_owned() },
            ),
            None => Recorded::nothing(name),
        },
        Err(error) => Recorded::unreadable(&error),
    }
}

/// `SLOT DATABASE` of the progress row, if it is about this primary.
async fn recorded_text(
    connection: &mut Connection,
    name: &PipelineName,
    here: &Here,
) -> Result<Option<String>, PipelineError> {
    let doing = "reading the progress row on the standby";
    if ownership::first_value(connection, HAS_RECORDS, doing).await?.is_none() {
        return Ok(None);
    }
    let query = format!(
        "SELECT slot || ' ' || database FROM walrelay.progress WHERE pipeline = {} AND system_identifier = {}",
        escape_literal(name.as_str()),
        escape_literal(&here.system_identifier)
    );
    ownership::first_value(connection, &query, doing).await
}

/// A record that names another slot may be another pipeline's, of the same transactional id: that is told where the record is left.
#[cfg(feature = "kafka")]
fn recorded_in_kafka(
    read: &Result<Option<crate::model::Progress>, crate::sink::SinkError>,
    pipeline: &config::Pipeline,
    here: &Here,
) -> Recorded {
    let slot = pipeline.slot_name();
    match read {
        Ok(Some(progress)) if progress.slot == slot && progress.system_identifier == here.system_identifier => {
            Recorded::Slot { slot, database: progress.database.clone() }
        }
        Ok(_) => Recorded::nothing(&pipeline.name),
        Err(error) => Recorded::unreadable(error),
    }
}

/// Drops the slot of the configuration, and another one that the record names.
async fn drop_slots(
    sql: &SqlClient,
    pipeline: &config::Pipeline,
    database: &str,
    (recorded, heirs): (&Recorded, &Heirs),
) -> Result<Vec<Removed>, PipelineError> {
    let mut slots = vec![pipeline.slot_name()];
    if let Recorded::Slot { slot, .. } = recorded
        && !slots.contains(slot)
    {
        slots.push(slot.clone());
    }
    let mut report = Vec::new();
    for slot in &slots {
        let facts = slot_facts(sql, slot).await?;
        let heir = heirs.get(slot.as_str()).map(|heir| format!("the progress record of \"{heir}\" names it"));
        let doubt = heir.or_else(|| doubt(slot, &pipeline.name, database, recorded));
        report.push(match facts.and_then(|facts| reason_to_leave(slot, &facts, database, doubt)) {
            Some(reason) => Removed::Left(reason),
            None => done(drop_slot(sql, slot).await?, &format!("the slot \"{slot}\"")),
        });
    }
    Ok(report)
}

/// Why the slot may be somebody else's, if so: it neither has the pipeline's own name, nor does its record name it.
fn doubt(slot: &SlotName, name: &PipelineName, database: &str, recorded: &Recorded) -> Option<String> {
    if *slot == SlotName::owned_by(name) {
        return None;
    }
    match recorded {
        Recorded::Slot { slot: named, database: of } if named == slot && of == database => None,
        Recorded::Slot { slot: named, database: of } => {
            Some(format!("the progress record of \"{name}\" names the slot \"{named}\" of the database \"{of}\""))
        }
        Recorded::Nothing(why) => Some(why.clone()),
    }
}

/// Why a slot that is there stays, if so.
fn reason_to_leave(slot: &SlotName, facts: &SlotFacts, database: &str, doubt: Option<String>) -> Option<String> {
    if !is_of_pgoutput(facts) {
        let plugin = facts.plugin.as_deref().unwrap_or("none");
        return Some(format!(
            "the slot \"{slot}\" is {} with the plugin {plugin}, a pipeline's is logical with pgoutput: it is somebody else's. Correct \
             `slot` in the configuration",
            facts.slot_type
        ));
    }
    let reason = if facts.database.as_deref() != Some(database) {
        let of = facts.database.as_deref().unwrap_or_default();
        format!("it belongs to the database \"{of}\", the url names \"{database}\"")
    } else if facts.active {
        format!("it is in use (walsender process {} on the primary)", facts.active_pid.unwrap_or(0))
    } else {
        format!("it may be somebody else's: {}", doubt?)
    };
    Some(format!("the slot \"{slot}\": {reason}. If nobody needs it: SELECT pg_drop_replication_slot('{slot}')"))
}

/// Whether a pipeline could have made it.
fn is_of_pgoutput(facts: &SlotFacts) -> bool {
    facts.slot_type == "logical" && facts.plugin.as_deref() == Some("pgoutput")
}

/// Drops the publication, where it is ours. Who took the slot over may stream from it.
async fn drop_managed_publication(sql: &SqlClient, pipeline: &config::Pipeline, heirs: &Heirs) -> Option<Removed> {
    if pipeline.publication.is_some() {
        return None;
    }
    let publication = pipeline.publication_name();
    let slot = pipeline.slot_name();
    if let Some(heir) = heirs.get(slot.as_str()) {
        return Some(Removed::Left(format!(
            "the publication \"{publication}\": it may be that of \"{heir}\", whose progress record names the slot \"{slot}\". If nobody needs \
             it: DROP PUBLICATION {}",
            escape_identifier(&publication)
        )));
    }
    Some(match drop_publication(sql, &publication).await {
        Ok(was_there) => done(was_there, &format!("the publication \"{publication}\"")),
        Err(error) => Removed::Left(error.to_string()),
    })
}

/// A walsender on a slot that no pipeline could have made runs nothing of ours.
async fn refuse_running(sql: &SqlClient, pipeline: &config::Pipeline) -> Result<(), PipelineError> {
    let slot = pipeline.slot_name();
    let facts = slot_facts(sql, &slot).await?;
    let Some(facts) = facts.filter(|facts| facts.active && is_of_pgoutput(facts)) else { return Ok(()) };
    if let Some(process_id) = facts.maker() {
        return Err(PipelineError::Refused(format!(
            "the slot \"{slot}\" is still being made (walsender process {process_id} on the primary), by a start that goes on or was cut \
             off: it waits for the transactions that ran when it began. Stop a daemon that runs \"{}\", end the process \
             (SELECT pg_terminate_backend({process_id})), then drop again",
            pipeline.name
        )));
    }
    let process_id = facts.active_pid.unwrap_or(0);
    if let Some(other) = session_name(sql, process_id).await?.filter(|other| other != pipeline.name.as_str()) {
        return Err(PipelineError::Refused(format!(
            "the slot \"{slot}\" is in use (walsender process {process_id} on the primary) by \"{other}\" (its application_name), not by \
             \"{}\". If another pipeline took the slot over, take \"{}\" out of the configuration and drop nothing; else end what uses the \
             slot, then drop again",
            pipeline.name, pipeline.name
        )));
    }
    Err(PipelineError::Refused(format!(
        "the slot \"{slot}\" is in use (walsender process {process_id} on the primary): a daemon streams \"{}\". Stop it first, or take \
         the pipeline out of its configuration, send it SIGHUP, and drop with a file that still has it (--config)",
        pipeline.name
    )))
}

/// What the session of this process calls itself, if it is there still.
async fn session_name(sql: &SqlClient, process_id: i32) -> Result<Option<String>, SourceError> {
    let query = "SELECT application_name FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    let row = sql.query_opt(query, &[&process_id]).await;
    let row = row.map_err(SourceError::sql(format!("asking whose the walsender process {process_id} is")))?;
    Ok(row.and_then(|row| row.get(0)))
}

async fn warn_if_listed(sql: &SqlClient, name: &PipelineName) -> Result<Option<Removed>, PipelineError> {
    let names = synchronous_standby_names(sql).await?;
    Ok(lists_standby(&names, name.as_str()).then(|| {
        Removed::Left(format!(
            "synchronous_standby_names on the primary is '{names}' and lists \"{name}\": commits wait for it until you take it out \
             (ALTER SYSTEM SET synchronous_standby_names = …; SELECT pg_reload_conf())"
        ))
    }))
}

/// A session on the standby that owns the pipeline; refuses while a daemon does.
async fn own_standby<'a>(
    sink: &'a PostgresSink,
    name: &PipelineName,
) -> Result<(Connection, &'a PostgresSink), PipelineError> {
    let mut connection = open_session(&sink.url, name, "drop").await?;
    if ownership::try_lock(&mut connection, &ownership::standby_lock(name)).await? {
        return Ok((connection, sink));
    }
    Err(PipelineError::Refused(format!(
        "a daemon runs \"{name}\" (it holds the pipeline's lock on the standby): stop it first"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> SlotName {
        SlotName::new(name).unwrap()
    }

    /// A slot of this name is there, and the record names that one; a part of the reason why it is left.
    fn check(there: &str, facts: &SlotFacts, recorded: Option<(&str, &str)>, expected: Option<&str>) {
        let name = PipelineName::new("a").unwrap();
        let recorded = match recorded {
            Some((named, database)) => Recorded::Slot { slot: slot(named), database: database.to_owned() },
            None => Recorded::nothing(&name),
        };
        let there = slot(there);
        let reason = reason_to_leave(&there, facts, "shop", doubt(&there, &name, "shop", &recorded));
        match (&reason, expected) {
            (None, None) => {}
            (Some(text), Some(part)) if text.contains(part) => {}
            _ => panic!("{there}: {reason:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_slot_is_dropped_only_where_it_is_surely_the_pipelines() {
        let ours = SlotFacts {
            slot_type: "logical".into(),
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            ..SlotFacts::default()
        };
        check("walrelay_a", &ours, None, None);
        check("walrelay_a", &ours, Some(("other", "shop")), None);
        check("mine", &ours, Some(("mine", "shop")), None);
        check("mine", &ours, None, Some("no progress record of \"a\" names it. If nobody needs it: SELECT pg_drop"));
        check("mine", &ours, Some(("other", "shop")), Some("names the slot \"other\" of the database \"shop\""));
        check("mine", &ours, Some(("mine", "else")), Some("of the database \"else\""));
        let active = SlotFacts { active: true, active_pid: Some(7), ..ours.clone() };
        check("mine", &active, Some(("mine", "shop")), Some("walsender process 7"));
        let elsewhere = SlotFacts { database: Some("else".into()), ..ours.clone() };
        check("walrelay_a", &elsewhere, Some(("walrelay_a", "shop")), Some("belongs to the database \"else\""));
        let decoding = SlotFacts { plugin: Some("test_decoding".into()), ..ours };
        check("walrelay_a", &decoding, Some(("walrelay_a", "shop")), Some("plugin test_decoding"));
        let physical = SlotFacts { slot_type: "physical".into(), ..SlotFacts::default() };
        check("walrelay_a", &physical, Some(("walrelay_a", "shop")), Some("is physical with the plugin none"));
    }
}
