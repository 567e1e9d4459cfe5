//! The records of the progress topic: how far the pipeline has come, and which tables its initial copy has finished. Bytes in
//! and out; reads and writes no topic.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, PipelineName, Progress, QualifiedName, SlotName, Timestamp};

use super::parts::Inside;
use crate::sink::SinkError;

/// Version of the records: a daemon does not go on from one that another version wrote.
const VERSION: u32 = 1;
/// Version of a progress record inside a transaction: one that does not know of this would send the sent parts again.
const INSIDE_VERSION: u32 = 2;

/// The value under the transactional id.
#[derive(Debug, Serialize, Deserialize)]
struct ProgressValue<'a> {
    system_identifier: std::borrow::Cow<'a, str>,
    timeline: u32,
    database: std::borrow::Cow<'a, str>,
    slot: std::borrow::Cow<'a, str>,
    lsn: String,
    /// Microseconds since the Unix epoch.
    commit_time: Option<i64>,
    /// A transaction behind `lsn` that is sent in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inside: Option<InsideValue>,
    version: u32,
}

/// See [`Inside`].
#[derive(Debug, Serialize, Deserialize)]
struct InsideValue {
    lsn: String,
    rows: u64,
    at: String,
    parts: u64,
}

/// The value under `[transactional id, schema, table]`.
#[derive(Debug, Serialize, Deserialize)]
struct CopiedValue {
    schema: String,
    table: String,
    /// `null` while the table is planned and not finished.
    snapshot_lsn: Option<String>,
    /// Once only the snapshot decided.
    #[serde(default)]
    skip_until: Option<String>,
    rows: u64,
    /// `walrelay resync` asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    resync: bool,
    /// It is not of the set any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
    /// Older versions did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oid: Option<u32>,
    version: u32,
}

/// A table of the initial copy, or one that is to be sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopiedTable {
    /// Sent whole, as of here. `None`: planned, and not finished.
    pub snapshot_lsn: Option<Lsn>,
    /// Changes whose commit record starts below are left out of the stream: the first snapshot from which anything of the table was sent, or
    /// zero where changes were sent before. Not a later one: consumers may hold a row of the first that is not in the second, and must be
    /// told what became of it.
    pub skip_until: Lsn,
    /// Its rows.
    pub rows: u64,
    /// To be sent again. What was sent before still counts, until the new copy is whole.
    pub again: bool,
    /// Not of the set any more: its changes are left out, and if it comes back it is to be sent again.
    pub left: bool,
    /// `pg_class.oid` on the primary of the table that was sent, if it is known: another may have its name by now.
    pub oid: Option<u32>,
}

impl CopiedTable {
    /// Whether the initial copy has still to send it.
    pub fn is_unfinished(&self) -> bool {
        self.snapshot_lsn.is_none() && !self.again
    }

    /// Whether it was sent whole.
    pub fn is_finished(&self) -> bool {
        self.snapshot_lsn.is_some()
    }
}

/// Everything the topic says of one pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// The progress record.
    pub progress: Option<Progress>,
    /// How far inside the transaction behind it.
    pub inside: Option<Inside>,
    /// Tables of the initial copy, finished and planned.
    pub copied: HashMap<QualifiedName, CopiedTable>,
    /// A mere look that met an open transaction: what stands in it, or was aborted before, counts here too.
    pub is_undecided: bool,
}

impl Records {
    /// What the stream skips: changes that the finished tables hold already.
    pub fn skip_until(&self) -> HashMap<QualifiedName, Lsn> {
        let finished = self.copied.iter().filter(|(_, copied)| copied.is_finished());
        finished.map(|(table, copied)| (table.clone(), copied.skip_until)).collect()
    }

    /// Whether tables were sent whole.
    pub fn has_finished(&self) -> bool {
        self.copied.values().any(CopiedTable::is_finished)
    }

    /// Whether a copy may have been cut off, the initial one or one that was asked for.
    pub fn has_copy_under_way(&self) -> bool {
        self.copied.values().any(|copied| copied.again || copied.is_unfinished())
    }

    /// Whether the workers of a copy may have left transactions open. One that was killed in its last commit left the word that all is
    /// finished in the open transaction itself.
    pub fn may_have_left_copies(&self) -> bool {
        self.has_copy_under_way() || (self.is_undecided && !self.copied.is_empty())
    }

    /// Whether the copy was begun and has not come to its end.
    pub fn is_unfinished(&self) -> bool {
        self.copied.values().any(CopiedTable::is_unfinished)
    }
}

/// Appends the progress record's value.
pub(super) fn write_progress(progress: &Progress, inside: Option<Inside>, out: &mut Vec<u8>) -> Result<(), SinkError> {
    let value = ProgressValue {
        system_identifier: progress.system_identifier.as_str().into(),
        timeline: progress.timeline,
        database: progress.database.as_str().into(),
        slot: progress.slot.as_str().into(),
        lsn: progress.lsn.to_string(),
        commit_time: progress.commit_time.map(Timestamp::unix_micros),
        inside: inside.map(|inside| InsideValue {
            lsn: inside.lsn.to_string(),
            rows: inside.changes,
            at: inside.at.to_string(),
            parts: inside.parts,
        }),
        version: if inside.is_some() { INSIDE_VERSION } else { VERSION },
    };
    serde_json::to_writer(out, &value)
        .map_err(|error| SinkError::Refused(format!("the progress record cannot be written: {error}")))
}

/// Key of a table's record.
pub(super) fn copied_key(transactional_id: &str, table: &QualifiedName) -> Vec<u8> {
    serde_json::json!([transactional_id, table.schema, table.name]).to_string().into_bytes()
}

/// Value of a table's record.
pub(super) fn copied_value(table: &QualifiedName, copied: CopiedTable) -> Vec<u8> {
    let value = CopiedValue {
        schema: table.schema.clone(),
        table: table.name.clone(),
        snapshot_lsn: copied.snapshot_lsn.map(|lsn| lsn.to_string()),
        skip_until: Some(copied.skip_until.to_string()),
        rows: copied.rows,
        resync: copied.again,
        left: copied.left,
        oid: copied.oid,
        version: VERSION,
    };
    serde_json::to_vec(&value).unwrap_or_default()
}

/// Which record of which pipeline a key names.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Progress,
    Copied(QualifiedName),
    Foreign,
}

fn key_of(key: &[u8], transactional_id: &str) -> Key {
    if key == transactional_id.as_bytes() {
        return Key::Progress;
    }
    match serde_json::from_slice::<[String; 3]>(key) {
        Ok([id, schema, table]) if id == transactional_id => Key::Copied(QualifiedName::new(schema, table)),
        _ => Key::Foreign,
    }
}

/// Gathers the records of one pipeline while the topic is read from its beginning. Only the last of each key must be readable.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pipeline: &'a PipelineName,
    transactional_id: &'a str,
    /// Without fencing, a producer that was frozen may write an old record behind a newer one.
    keeps_furthest: bool,
    progress: Option<Vec<u8>>,
    copied: HashMap<QualifiedName, Vec<u8>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(pipeline: &'a PipelineName, transactional_id: &'a str, keeps_furthest: bool) -> Self {
        Self { pipeline, transactional_id, keeps_furthest, progress: None, copied: HashMap::new() }
    }

    /// Takes the next record; without a value the key is gone.
    pub(super) fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        match (key_of(key, self.transactional_id), value) {
            (Key::Foreign, _) => {}
            (Key::Progress, Some(value)) if self.is_overtaken(value) => {}
            (Key::Progress, value) => self.progress = value.map(<[u8]>::to_vec),
            (Key::Copied(table), None) => drop(self.copied.remove(&table)),
            (Key::Copied(table), Some(value)) => drop(self.copied.insert(table, value.to_vec())),
        }
    }

    /// What the topic says in the end.
    pub(super) fn finish(self) -> Result<Records, SinkError> {
        let (progress, inside) = match self.progress.as_deref() {
            Some(value) => self.read_progress(value).map(|(progress, inside)| (Some(progress), inside))?,
            None => (None, None),
        };
        let copied = self.copied.iter().map(|(table, value)| Ok((table.clone(), self.read_copied(value)?)));
        Ok(Records { progress, inside, copied: copied.collect::<Result<_, SinkError>>()?, is_undecided: false })
    }

    fn is_overtaken(&self, value: &[u8]) -> bool {
        let lsn = |value: &[u8]| self.read_progress(value).ok().map(|(progress, _)| progress.lsn);
        let Some(before) = self.progress.as_deref().filter(|_| self.keeps_furthest) else { return false };
        matches!((lsn(before), lsn(value)), (Some(before), Some(now)) if now < before)
    }

    fn unreadable(&self, what: &str) -> SinkError {
        SinkError::Refused(format!(
            "the progress record of \"{name}\" (key \"{}\" in the progress topic) has an unreadable {what}: something else wrote it. \
             Give the pipeline a transactional_id of its own, or start over with `walrelay drop {name} --yes`",
            self.transactional_id,
            name = self.pipeline
        ))
    }

    fn check_version(&self, version: u32, own: u32) -> Result<(), SinkError> {
        if version == own {
            return Ok(());
        }
        Err(SinkError::Refused(format!(
            "the progress record of \"{}\" has the version {version}, this walrelay writes {own}: use the walrelay that made it",
            self.pipeline
        )))
    }

    fn read_progress(&self, value: &[u8]) -> Result<(Progress, Option<Inside>), SinkError> {
        let read: ProgressValue<'_> = serde_json::from_slice(value).map_err(|_| self.unreadable("value"))?;
        self.check_version(read.version, if read.inside.is_some() { INSIDE_VERSION } else { VERSION })?;
        let position = |text: &str| text.parse::<Lsn>().map_err(|_| self.unreadable("inside"));
        let inside = read.inside.map(|inside| {
            let InsideValue { lsn, rows, at, parts } = inside;
            Ok::<_, SinkError>(Inside { lsn: position(&lsn)?, changes: rows, at: position(&at)?, parts })
        });
        let progress = Progress {
            system_identifier: read.system_identifier.into_owned(),
            timeline: read.timeline,
            database: read.database.into_owned(),
            slot: SlotName::new(&read.slot).map_err(|_| self.unreadable("slot"))?,
            lsn: read.lsn.parse().map_err(|_| self.unreadable("lsn"))?,
            commit_time: read.commit_time.map(|micros| Timestamp(micros.saturating_sub(Timestamp(0).unix_micros()))),
        };
        Ok((progress, inside.transpose()?))
    }

    fn read_copied(&self, value: &[u8]) -> Result<CopiedTable, SinkError> {
        let read: CopiedValue = serde_json::from_slice(value).map_err(|_| self.unreadable("value"))?;
        self.check_version(read.version, VERSION)?;
        let position = |text: Option<String>, what: &str| -> Result<Option<Lsn>, SinkError> {
            text.map(|text| text.parse()).transpose().map_err(|_| self.unreadable(what))
        };
        let snapshot_lsn = position(read.snapshot_lsn, "snapshot_lsn")?;
        let skip_until = position(read.skip_until, "skip_until")?.or(snapshot_lsn).unwrap_or(Lsn::ZERO);
        Ok(CopiedTable {
            snapshot_lsn,
            skip_until,
            rows: read.rows,
            again: read.resync,
            left: read.left,
            oid: read.oid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(lsn: u64) -> Progress {
        Progress {
            system_identifier: "7".into(),
            timeline: 3,
            database: "shop".into(),
            slot: SlotName::new("walrelay_a").unwrap(),
            lsn: Lsn(lsn),
            commit_time: Some(Timestamp(5)),
        }
    }

    fn value(progress: &Progress) -> Vec<u8> {
        let mut out = Vec::new();
        write_progress(progress, None, &mut out).unwrap();
        out
    }

    /// Reads these records as the topic holds them.
    fn read(keeps_furthest: bool, records: &[(&[u8], Option<&[u8]>)]) -> Result<Records, SinkError> {
        let pipeline = PipelineName::new("a").unwrap();
        let mut reading = Reading::new(&pipeline, "walrelay.shop.a", keeps_furthest);
        for (key, value) in records {
            reading.take(key, *value);
        }
        reading.finish()
    }

    const KEY: &[u8] = b"walrelay.shop.a";

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let value = value(&progress(0x1f));
        assert_eq!(
            String::from_utf8_lossy(&value),
            r#"{"system_identifier":"7","timeline":3,"database":"shop","slot":"walrelay_a","lsn":"0/1F","commit_time":946684800000005,"version":1}"#
        );
        assert_eq!(read(false, &[(KEY, Some(&value))]).unwrap().progress, Some(progress(0x1f)));
    }

    #[test]
    fn a_record_inside_a_transaction_says_how_far() {
        let inside = Inside { lsn: Lsn(0x2f), changes: 7, at: Lsn(0x2a), parts: 2 };
        let mut value = Vec::new();
        write_progress(&progress(0x1f), Some(inside), &mut value).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&value),
            r#"{"system_identifier":"7","timeline":3,"database":"shop","slot":"walrelay_a","lsn":"0/1F","commit_time":946684800000005,"inside":{"lsn":"0/2F","rows":7,"at":"0/2A","parts":2},"version":2}"#
        );
        let records = read(false, &[(KEY, Some(&value))]).unwrap();
        assert_eq!((records.progress, records.inside), (Some(progress(0x1f)), Some(inside)));
    }

    #[test]
    fn the_last_record_of_our_own_key_counts() {
        let (one, two) = (value(&progress(1)), value(&progress(2)));
        let other: (&[u8], Option<&[u8]>) = (b"walrelay.shop.b", Some(b"no json"));
        let lsn = |records: Records| records.progress.map(|progress| progress.lsn.0);
        assert_eq!(lsn(read(false, &[(KEY, Some(&one)), other, (KEY, Some(&two)), other]).unwrap()), Some(2));
        assert_eq!(lsn(read(false, &[(KEY, Some(&two)), (KEY, Some(&one))]).unwrap()), Some(1));
        assert_eq!(lsn(read(true, &[(KEY, Some(&two)), (KEY, Some(&one))]).unwrap()), Some(2));
        assert_eq!(lsn(read(true, &[(KEY, Some(&two)), (KEY, None), (KEY, Some(&one))]).unwrap()), Some(1));
        assert_eq!(lsn(read(false, &[(KEY, Some(&two)), (KEY, None)]).unwrap()), None);
        assert_eq!(lsn(read(false, &[(KEY, Some(b"no json")), (KEY, Some(&two))]).unwrap()), Some(2));
        assert_eq!(lsn(read(false, &[other]).unwrap()), None);
    }

    #[test]
    fn finished_tables_are_read_and_forgotten() {
        let table = QualifiedName::new("public", "o\"dd");
        let copied = CopiedTable { snapshot_lsn: Some(Lsn(9)), skip_until: Lsn(7), rows: 3, ..CopiedTable::default() };
        let (key, value) = (copied_key("walrelay.shop.a", &table), copied_value(&table, copied));
        let records = read(false, &[(&key, Some(&value))]).unwrap();
        assert_eq!(records.skip_until(), HashMap::from([(table.clone(), Lsn(7))]));
        assert!(!records.is_unfinished() && records.has_finished());
        let planned = copied_value(&table, CopiedTable::default());
        let records = read(false, &[(&key, Some(&planned))]).unwrap();
        assert!(records.is_unfinished() && !records.has_finished() && records.skip_until().is_empty());
        assert_eq!(read(false, &[(&key, Some(&value)), (&key, None)]).unwrap(), Records::default());
        // What is to be sent again still holds what was sent, and is no part of the initial copy.
        let left = CopiedTable { left: true, ..copied };
        let again = CopiedTable { again: true, oid: Some(16_385), ..copied };
        for copied in [again, left, CopiedTable { again: true, ..CopiedTable::default() }] {
            let records = read(false, &[(&key, Some(&copied_value(&table, copied)))]).unwrap();
            assert_eq!(records.copied[&table], copied);
            assert!(!records.is_unfinished());
            assert_eq!(records.skip_until().get(&table).copied(), copied.snapshot_lsn.map(|_| Lsn(7)));
        }
        // One that was written before `skip_until` was.
        let old = br#"{"schema":"public","table":"o\"dd","snapshot_lsn":"0/9","rows":3,"version":1}"#;
        assert_eq!(read(false, &[(&key, Some(old))]).unwrap().skip_until()[&table], Lsn(9));
    }

    #[test]
    fn a_finished_table_that_is_not_decided_may_have_left_its_worker() {
        let finished = CopiedTable { snapshot_lsn: Some(Lsn(9)), ..CopiedTable::default() };
        let again = CopiedTable { again: true, ..finished };
        for (copied, is_undecided, expected) in [
            (None, false, false),
            (None, true, false),
            (Some(finished), false, false),
            (Some(finished), true, true),
            (Some(again), false, true),
            (Some(CopiedTable::default()), false, true),
        ] {
            let copied = copied.into_iter().map(|copied| (QualifiedName::new("public", "t"), copied)).collect();
            let records = Records { copied, is_undecided, ..Records::default() };
            assert_eq!(records.may_have_left_copies(), expected, "{records:?}");
        }
    }

    #[test]
    fn a_record_that_is_not_ours_is_refused() {
        for (value, expected) in [
            (&b"{}"[..], "unreadable value"),
            (
                br#"{"system_identifier":"7","timeline":3,"database":"shop","slot":"s","lsn":"x","commit_time":null,"version":1}"#,
                "unreadable lsn",
            ),
            (
                br#"{"system_identifier":"7","timeline":3,"database":"shop","slot":"s","lsn":"0/1","commit_time":null,"version":2}"#,
                "version 2",
            ),
        ] {
            let error = read(false, &[(KEY, Some(value))]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
