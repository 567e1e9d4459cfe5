//! Where a pipeline may begin: the safety rules of start and reconnect, as a pure function over what both servers say.
//! Never re-creates a slot silently, never goes on where something may be missing.

use std::fmt;

use crate::config::Sink;
use crate::model::{Lsn, PipelineName, PrimaryIdentity, Progress, SlotName};
use crate::source::SlotFacts;

/// What both sides say.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Which pipeline.
    pub pipeline: &'a PipelineName,
    /// Who the primary is.
    pub identity: &'a PrimaryIdentity,
    /// The slot it streams from.
    pub slot_name: &'a SlotName,
    /// What the primary says of it.
    pub slot: Option<&'a SlotFacts>,
    /// The sink's record.
    pub progress: Option<&'a Progress>,
    /// Whether the existing rows are to be copied: then a slot without a record is none of ours.
    pub initial_copy: bool,
    /// Where the rows go.
    pub holder: Holder,
    /// Where the server's history left the record's timeline; asked only if the server's timeline is another.
    pub switch_point: Option<Lsn>,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing is there: publication, slot and record are to be made.
    Fresh,
    /// A start was cut off between slot and record: the slot is ours and begins here.
    Unrecorded(Lsn),
    /// An existing slot is adopted at its confirmed position.
    Adopt(Lsn),
    /// The record stands; stream from here.
    Resume(Lsn),
}

/// Where the rows go, in the words of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// And the record stands in its tables.
    Standby,
    /// And the record stands in a topic, under the transactional id.
    KafkaCluster,
}

impl Holder {
    /// Of a pipeline with this sink.
    pub fn of(sink: &Sink) -> Self {
        match sink {
            Sink::Kafka(_) => Holder::KafkaCluster,
            Sink::Postgres(_) | Sink::Stdout => Holder::Standby,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Holder::Standby => "the standby",
            Holder::KafkaCluster => "the Kafka cluster",
        })
    }
}

/// Decides, or says with numbers and remedy why not.
pub fn beginning(facts: &Facts<'_>) -> Result<Beginning, String> {
    if let Some(slot) = facts.slot {
        check_slot(facts, slot)?;
    }
    let confirmed = facts.slot.map(|slot| {
        slot.confirmed_flush().ok_or_else(|| {
            format!(
                "the slot \"{name}\" has no confirmed position: its making was cut off. Drop it (SELECT pg_drop_replication_slot('{name}')), \
                 and start again",
                name = facts.slot_name
            )
        })
    });
    let confirmed = confirmed.transpose()?;
    match (facts.progress, confirmed) {
        (None, None) => Ok(Beginning::Fresh),
        (None, Some(lsn)) if !facts.initial_copy => Ok(Beginning::Adopt(lsn)),
        (None, Some(lsn)) => Err(format!(
            "the slot \"{slot}\" exists on the primary (confirmed to {lsn}), but {holder} has no progress record of the pipeline \
             \"{name}\": either {holder} was replaced, or the slot is somebody else's{elsewhere}. If {holder} already holds every row up \
             to {lsn}, set initial_copy = false to adopt the slot; if not, start over: walrelay drop {name} --yes",
            holder = facts.holder,
            elsewhere = if facts.holder == Holder::KafkaCluster {
                ", or the record stands under another transactional_id (its default holds topic_prefix and \
                 the pipeline's name)"
            } else {
                ""
            },
            slot = facts.slot_name,
            name = facts.pipeline
        )),
        (Some(progress), confirmed) => with_record(facts, progress, confirmed),
    }
}

fn with_record(facts: &Facts<'_>, progress: &Progress, confirmed: Option<Lsn>) -> Result<Beginning, String> {
    let (name, slot, identity, holder) = (facts.pipeline, facts.slot_name, facts.identity, facts.holder);
    if progress.system_identifier != identity.system_identifier {
        return Err(format!(
            "the primary is another cluster than {holder} was filled from: its system identifier is {}, the progress record says \
             {}. Point [primary] url at the old cluster or its promoted standby; for a new one start over: walrelay drop {name} --yes",
            identity.system_identifier, progress.system_identifier
        ));
    }
    if progress.database != identity.database {
        return Err(format!(
            "the progress record of \"{name}\" is about the primary's database \"{}\", the url names \"{}\": correct the url, or give \
             the pipeline another name",
            progress.database, identity.database
        ));
    }
    if progress.slot != *slot {
        return Err(format!(
            "the progress record of \"{name}\" belongs to the slot \"{}\", the configuration names \"{slot}\": set slot = \"{}\", or \
             start over: walrelay drop {name} --yes",
            progress.slot, progress.slot
        ));
    }
    let Some(confirmed) = confirmed else {
        return if progress.lsn.is_zero() { Ok(Beginning::Fresh) } else { Err(vanished(facts, progress)) };
    };
    if progress.lsn.is_zero() {
        return Ok(Beginning::Unrecorded(confirmed));
    }
    check_timeline(facts, progress)?;
    if progress.lsn > identity.flushed_lsn {
        return Err(format!(
            "{holder} is ahead of the primary: it holds everything up to {}, the primary's WAL ends at {}. The primary was restored \
             from a backup, or lost its last WAL. Streaming from here would silently skip what it writes next; start over: walrelay \
             drop {name} --yes",
            progress.lsn, identity.flushed_lsn
        ));
    }
    if confirmed > progress.lsn {
        return Err(format!(
            "the slot \"{slot}\" is confirmed to {confirmed}, but {holder} only holds everything up to {}: {} bytes of WAL are \
             between. Somebody else read from the slot, it was re-created, or {holder} was restored from a backup. What is \
             between cannot be sent again; start over: walrelay drop {name} --yes",
            progress.lsn,
            confirmed.bytes_since(progress.lsn)
        ));
    }
    Ok(Beginning::Resume(progress.lsn))
}

fn vanished(facts: &Facts<'_>, progress: &Progress) -> String {
    format!(
        "the slot \"{}\" is gone from the primary, and with it what was committed since {}, where {} stands. It was dropped, \
         or the primary failed over to a server that did not have it. walrelay never re-creates a slot silently; start over: walrelay \
         drop {} --yes",
        facts.slot_name, progress.lsn, facts.holder, facts.pipeline
    )
}

fn check_timeline(facts: &Facts<'_>, progress: &Progress) -> Result<(), String> {
    let (recorded, current, holder) = (progress.timeline, facts.identity.timeline, facts.holder);
    if current == recorded {
        return Ok(());
    }
    match facts.switch_point {
        _ if current < recorded => Err(format!(
            "the primary is on timeline {current}, {holder} has already followed timeline {recorded}: this is an old primary that \
             was failed over from. Point [primary] url at the new one"
        )),
        None => Err(format!(
            "the primary is on timeline {current}, which did not come from timeline {recorded} that {holder} follows; start over: \
             walrelay drop {} --yes",
            facts.pipeline
        )),
        Some(switch) if switch < progress.lsn => Err(format!(
            "the primary's timeline {current} left timeline {recorded} at {switch}, but {holder} already holds everything up to {}: \
             {} bytes that the new primary does not have. Start over: walrelay drop {} --yes",
            progress.lsn,
            progress.lsn.bytes_since(switch),
            facts.pipeline
        )),
        Some(_) => Ok(()),
    }
}

fn check_slot(facts: &Facts<'_>, slot: &SlotFacts) -> Result<(), String> {
    let name = facts.slot_name;
    if slot.slot_type != "logical" || slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none");
        return Err(format!(
            "the slot \"{name}\" is {} with the plugin {plugin}; walrelay needs a logical slot with pgoutput. Name another one \
             with `slot`",
            slot.slot_type
        ));
    }
    if slot.database.as_deref() != Some(facts.identity.database.as_str()) {
        return Err(format!(
            "the slot \"{name}\" belongs to the database \"{}\", the url names \"{}\": correct the url, or name another slot with `slot`",
            slot.database.as_deref().unwrap_or(""),
            facts.identity.database
        ));
    }
    if slot.two_phase {
        return Err(format!(
            "the slot \"{name}\" decodes prepared transactions (two_phase), which walrelay does not apply yet; use a slot without it"
        ));
    }
    if let Some(reason) = slot.invalid_reason() {
        return Err(format!(
            "the slot \"{name}\" is invalid on the primary ({reason}): what it kept is gone. Start over: walrelay drop {} --yes; to keep it \
             from happening again, raise max_slot_wal_keep_size or watch retained_wal_bytes in /status",
            facts.pipeline
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        slot: Option<SlotFacts>,
        progress: Option<Progress>,
        identity: PrimaryIdentity,
        initial_copy: bool,
        switch_point: Option<Lsn>,
    }

    fn slot(confirmed: &str) -> Option<SlotFacts> {
        Some(SlotFacts {
            slot_type: "logical".into(),
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            confirmed_flush_lsn: Some(confirmed.into()),
            wal_status: Some("reserved".into()),
            ..SlotFacts::default()
        })
    }

    fn progress(lsn: u64) -> Option<Progress> {
        Some(Progress {
            system_identifier: "7".into(),
            timeline: 1,
            database: "shop".into(),
            slot: SlotName::new("walrelay_a").unwrap(),
            lsn: Lsn(lsn),
            commit_time: None,
        })
    }

    fn identity(timeline: u32, flushed: u64) -> PrimaryIdentity {
        PrimaryIdentity {
            system_identifier: "7".into(),
            timeline,
            flushed_lsn: Lsn(flushed),
            database: "shop".into(),
            version_number: 180_004,
        }
    }

    fn case(slot: Option<SlotFacts>, progress: Option<Progress>) -> Case {
        Case { slot, progress, identity: identity(1, 0x1000), initial_copy: true, switch_point: None }
    }

    /// Decides and compares; `Err` is a part of the refusal.
    fn check(case: &Case, expected: Result<Beginning, &str>) {
        let name = PipelineName::new("a").unwrap();
        let slot_name = SlotName::owned_by(&name);
        let facts = Facts {
            pipeline: &name,
            identity: &case.identity,
            slot_name: &slot_name,
            slot: case.slot.as_ref(),
            progress: case.progress.as_ref(),
            initial_copy: case.initial_copy,
            holder: Holder::Standby,
            switch_point: case.switch_point,
        };
        match (beginning(&facts), expected) {
            (Ok(beginning), Ok(expected)) => assert_eq!(beginning, expected),
            (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_start_begins_where_nothing_is_missing() {
        check(&case(None, None), Ok(Beginning::Fresh));
        check(&case(None, progress(0)), Ok(Beginning::Fresh));
        check(&case(slot("0/500"), progress(0)), Ok(Beginning::Unrecorded(Lsn(0x500))));
        check(&case(slot("0/500"), progress(0x500)), Ok(Beginning::Resume(Lsn(0x500))));
        check(&case(slot("0/500"), progress(0x600)), Ok(Beginning::Resume(Lsn(0x600))));
        check(&Case { initial_copy: false, ..case(slot("0/500"), None) }, Ok(Beginning::Adopt(Lsn(0x500))));
        let promoted = Case {
            identity: identity(2, 0x1000),
            switch_point: Some(Lsn(0x600)),
            ..case(slot("0/500"), progress(0x600))
        };
        check(&promoted, Ok(Beginning::Resume(Lsn(0x600))));
    }

    #[test]
    fn whatever_may_have_lost_something_is_refused() {
        check(&case(slot("0/500"), None), Err("no progress record"));
        check(&case(None, progress(0x500)), Err("never re-creates a slot silently"));
        check(&case(slot("0/700"), progress(0x600)), Err("256 bytes of WAL are between"));
        check(&case(slot("0/500"), progress(0x2000)), Err("ahead of the primary"));
        let other = Case {
            identity: PrimaryIdentity { system_identifier: "8".into(), ..identity(1, 0x1000) },
            ..case(slot("0/500"), progress(0x500))
        };
        check(&other, Err("another cluster"));
        let other = Case {
            identity: PrimaryIdentity { database: "other".into(), ..identity(1, 0x1000) },
            ..case(None, progress(0x500))
        };
        check(&other, Err("database \"shop\""));
        let forked = Case {
            identity: identity(2, 0x1000),
            switch_point: Some(Lsn(0x5ff)),
            ..case(slot("0/500"), progress(0x600))
        };
        check(&forked, Err("1 bytes that the new primary does not have"));
        let unrelated = Case { identity: identity(3, 0x1000), ..case(slot("0/500"), progress(0x600)) };
        check(&unrelated, Err("did not come from timeline 1"));
        let old = Progress { timeline: 2, ..progress(0x600).unwrap() };
        check(&case(slot("0/500"), Some(old)), Err("old primary"));
        let moved = Progress { slot: SlotName::new("mine").unwrap(), ..progress(0x600).unwrap() };
        check(&case(slot("0/500"), Some(moved)), Err("belongs to the slot \"mine\""));
    }

    #[test]
    fn a_slot_that_cannot_be_read_is_refused() {
        let change = |change: fn(&mut SlotFacts)| {
            let mut facts = slot("0/500").unwrap();
            change(&mut facts);
            case(Some(facts), progress(0x500))
        };
        check(&change(|slot| slot.wal_status = Some("lost".into())), Err("invalid on the primary"));
        check(&change(|slot| slot.invalidation_reason = Some("idle_timeout".into())), Err("idle_timeout"));
        check(&change(|slot| slot.two_phase = true), Err("two_phase"));
        check(&change(|slot| slot.plugin = Some("wal2json".into())), Err("wal2json"));
        check(&change(|slot| slot.slot_type = "physical".into()), Err("physical"));
        check(&change(|slot| slot.database = Some("other".into())), Err("\"other\""));
    }
}
