//! Which existing slot a Kafka pipeline may adopt: only where the position is named, since nothing in Kafka tells how far its
//! former reader came. A pure rule on top of the rules of resume.

use crate::model::Lsn;

use super::resume::{Beginning, Facts};

/// Judges what the rules of resume allow, with `start_lsn` of the configuration.
pub fn adoption(facts: &Facts<'_>, beginning: Beginning, start_lsn: Option<Lsn>) -> Result<Beginning, String> {
    let (name, slot, end) = (facts.pipeline, facts.slot_name, facts.identity.flushed_lsn);
    match (beginning, start_lsn) {
        (Beginning::Adopt(confirmed), None) => Err(format!(
            "the slot \"{slot}\" exists on the primary (confirmed to {confirmed}), but {} has no progress record of \"{name}\". To adopt \
             the slot, say from where on with start_lsn = \"{confirmed}\" (or the position where its former reader stopped); to start \
             over: walrelay drop {name} --yes",
            facts.holder
        )),
        (Beginning::Adopt(confirmed), Some(start)) if start < confirmed => Err(format!(
            "start_lsn = \"{start}\" lies before {confirmed}, up to which the slot \"{slot}\" is confirmed: what is between cannot be \
             sent again. Name a position from {confirmed} on"
        )),
        (Beginning::Adopt(_), Some(start)) if start > end => Err(format!(
            "start_lsn = \"{start}\" lies behind the end of the primary's WAL ({end}): what it writes next would be passed over"
        )),
        (Beginning::Adopt(_), Some(start)) => Ok(Beginning::Adopt(start)),
        (Beginning::Fresh, Some(start)) if facts.progress.is_none() => Err(format!(
            "start_lsn = \"{start}\" adopts an existing slot, and the slot \"{slot}\" does not exist: name the slot with `slot`, or leave \
             start_lsn out"
        )),
        (beginning, _) => Ok(beginning),
    }
}

#[cfg(test)]
mod tests {
    use super::super::resume::Holder;
    use super::*;
    use crate::model::{PipelineName, PrimaryIdentity, SlotName};

    #[test]
    fn a_slot_is_adopted_only_where_the_position_is_named_and_can_be_sent() {
        let name = PipelineName::new("a").unwrap();
        let slot_name = SlotName::owned_by(&name);
        let identity = PrimaryIdentity {
            system_identifier: "7".into(),
            timeline: 1,
            flushed_lsn: Lsn(0x1000),
            database: "shop".into(),
            version_number: 180_004,
        };
        let facts = Facts {
            pipeline: &name,
            identity: &identity,
            slot_name: &slot_name,
            slot: None,
            progress: None,
            initial_copy: false,
            holder: Holder::KafkaCluster,
            switch_point: None,
        };
        let adopt = Beginning::Adopt(Lsn(0x500));
        for (beginning, start, expected) in [
            (adopt, None, Err("start_lsn = \"0/500\"")),
            (adopt, Some(0x4ff), Err("cannot be sent again")),
            (adopt, Some(0x1001), Err("passed over")),
            (adopt, Some(0x500), Ok(adopt)),
            (adopt, Some(0x600), Ok(Beginning::Adopt(Lsn(0x600)))),
            (Beginning::Fresh, Some(0x600), Err("does not exist")),
            (Beginning::Fresh, None, Ok(Beginning::Fresh)),
            (Beginning::Resume(Lsn(0x700)), Some(0x600), Ok(Beginning::Resume(Lsn(0x700)))),
        ] {
            match (adoption(&facts, beginning, start.map(Lsn)), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }
}
