//! Puts records together out of rows, in buffers that are used again, and hands them to the outlet. Knows one open transaction.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::KafkaSink;
use crate::config::kafka::{KafkaFormat, PlainFormat};
use crate::decode::Value;
use crate::model::{FeedReport, Lsn, QualifiedName};

use super::super::super::SinkError;
use super::context::ContextHeaders;
use super::form::Room;
use super::headers::Headers;
use super::json::push_integer;
use super::open_transaction::{Transaction, push_transaction};
use super::outbox::{OutboxMessage, OutboxPlan};
use super::plain::{self, PlainFacts};
use super::plan::Plan;
use super::row::{Notes, Row, push_header_key, push_key, push_names, push_open_row};
use super::source::SourceParts;
use super::{Header, Outlet, Placement, Record};

/// Room that a buffer may keep for the next record, bytes; a larger one was for a rare value.
const KEPT_BYTES: usize = 1 << 20;

/// Which headers speak of a key that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyChange {
    None,
    /// The record is under the old key and names the new one.
    NewKey,
    OldKey,
}

/// One event about a row.
pub(super) struct Event<V> {
    /// Debezium's letter.
    pub(super) op: u8,
    pub(super) lsn: Lsn,
    pub(super) before: Option<Row<V>>,
    pub(super) after: Option<Row<V>>,
    pub(super) change: KeyChange,
}

/// Buffers and state.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) settings: KafkaSink,
    pub(super) context: Option<ContextHeaders>,
    pub(super) counters: FeedReport,
    /// The open transaction's, or a snapshot row's.
    pub(super) source: SourceParts,
    pub(super) transaction: Option<Transaction>,
    pub(super) key: Vec<u8>,
    pub(super) other_key: Vec<u8>,
    pub(super) value: Vec<u8>,
    header_key: Vec<u8>,
    lossy: Vec<u8>,
    unchanged: Vec<u8>,
    pub(super) notes: Notes,
    pub(super) room: Room,
    outbox: OutboxMessage,
}

impl Writer {
    pub(super) fn new(settings: KafkaSink) -> Self {
        Self {
            context: settings.context_headers.then(|| ContextHeaders::new(&settings.topic_prefix)),
            settings,
            counters: FeedReport::default(),
            source: SourceParts::default(),
            transaction: None,
            key: Vec::new(),
            other_key: Vec::new(),
            value: Vec::new(),
            header_key: Vec::new(),
            lossy: Vec::new(),
            unchanged: Vec::new(),
            notes: Notes::default(),
            room: Room::default(),
            outbox: OutboxMessage::default(),
        }
    }

    /// Gives the memory back that a large record took.
    pub(super) fn trim(&mut self) {
        if self.value.capacity() > KEPT_BYTES || self.key.capacity() > KEPT_BYTES {
            for buffer in [&mut self.value, &mut self.key, &mut self.other_key, &mut self.header_key] {
                *buffer = Vec::new();
            }
            self.room = Room::default();
            self.outbox = OutboxMessage::default();
        }
    }

    fn plain(&self) -> Option<&PlainFormat> {
        match &self.settings.format {
            KafkaFormat::Debezium => None,
            KafkaFormat::Plain(plain) => Some(plain),
        }
    }

    pub(super) fn insert<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        op: u8,
        new: V,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let after = Some(Row { values: new, is_key_only: false });
        self.event(plan, Event { op, lsn, before: None, after, change: KeyChange::None }, outlet)
    }

    /// An update, or, where it moved the key, a delete, its tombstone, and a create; each may be skipped.
    pub(super) fn update<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        old: Option<Row<V>>,
        new: V,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let after = Row { values: new, is_key_only: false };
        if let Some(old) = old.as_ref().filter(|_| !plan.key.is_empty()) {
            let (notes, room) = (&mut self.notes, &mut self.room);
            notes.clear();
            push_key(plan, old, Some(&after.values), None, notes, room, &mut self.other_key);
            push_key(plan, &after, None, Some(old), notes, room, &mut self.key);
            if self.other_key != self.key {
                return self.key_change(plan, lsn, old.clone(), after, outlet);
            }
        }
        if self.settings.skipped_operations.update {
            return Ok(());
        }
        self.event(plan, Event { op: b'u', lsn, before: old, after: Some(after), change: KeyChange::None }, outlet)
    }

    fn key_change<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        old: Row<V>,
        new: Row<V>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let skipped = self.settings.skipped_operations;
        if !skipped.delete {
            self.leave_old_key(plan, lsn, &old, &new, outlet)?;
        }
        if skipped.create {
            return Ok(());
        }
        push_header_key(plan, &old, Some(&new.values), None, &mut self.room, &mut self.header_key);
        // The large values that did not change are taken from the old row, but it is no part of a create.
        self.event_with(
            plan,
            Event { op: b'c', lsn, before: None, after: Some(new), change: KeyChange::OldKey },
            Some(&old),
            None,
            outlet,
        )
    }

    fn leave_old_key<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        old: &Row<V>,
        new: &Row<V>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        push_header_key(plan, new, None, Some(old), &mut self.room, &mut self.header_key);
        self.delete_as(plan, lsn, old.clone(), Some(&new.values), KeyChange::NewKey, outlet)
    }

    pub(super) fn delete<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        old: Row<V>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        self.delete_as(plan, lsn, old, None, KeyChange::None, outlet)
    }

    fn delete_as<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        lsn: Lsn,
        old: Row<V>,
        new: Option<&V>,
        change: KeyChange,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        self.event_with(plan, Event { op: b'd', lsn, before: Some(old), after: None, change }, None, new, outlet)?;
        let is_envelope = self.plain().is_none();
        if self.settings.tombstones && is_envelope {
            // The key still stands in its buffer.
            let tombstone = Event::<V> { op: b'd', lsn, before: None, after: None, change };
            self.send(plan, &tombstone, false, now_nanos(), outlet)?;
        }
        Ok(())
    }

    fn event<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        event: Event<V>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let old = event.before.clone();
        self.event_with(plan, event, old.as_ref(), None, outlet)
    }

    /// `old`: the old row, where unchanged large values are found. `new`: the new row, where key columns outside the identity are
    /// found.
    fn event_with<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        event: Event<V>,
        old: Option<&Row<V>>,
        new: Option<&V>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        self.notes.clear();
        if let Some(row) = event.after.as_ref().or(event.before.as_ref()) {
            push_key(plan, row, new, old, &mut self.notes, &mut self.room, &mut self.key);
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.count(&plan.name, self.settings.transaction_topic);
        }
        let now = now_nanos();
        let has_value = match self.settings.format {
            KafkaFormat::Debezium => {
                self.push_envelope(plan, &event, old, now);
                true
            }
            KafkaFormat::Plain(_) => self.push_plain(plan, &event, old, now),
        };
        self.send(plan, &event, has_value, now, outlet)
    }

    fn push_envelope<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        event: &Event<V>,
        old: Option<&Row<V>>,
        now: i64,
    ) {
        let out = &mut self.value;
        out.clear();
        out.extend_from_slice(&plan.value_schema);
        for (label, row) in [(&b"{\"before\":"[..], &event.before), (b",\"after\":", &event.after)] {
            out.extend_from_slice(label);
            match row {
                None => out.extend_from_slice(b"null"),
                Some(row) => {
                    push_open_row(plan, row, old, &mut self.notes, &mut self.room, out);
                    out.push(b'}');
                }
            }
        }
        out.push(b',');
        self.source.push(&plan.source, event.lsn, out);
        push_transaction(self.transaction.as_ref(), self.settings.transaction_topic, out);
        push_tail(event.op, now, out);
        if !plan.value_schema.is_empty() {
            out.push(b'}');
        }
    }

    /// The row alone; false for a tombstone.
    fn push_plain<'v, V: Iterator<Item = Value<'v>> + Clone>(
        &mut self,
        plan: &Plan,
        event: &Event<V>,
        old: Option<&Row<V>>,
        now: i64,
    ) -> bool {
        let KafkaFormat::Plain(format) = &self.settings.format else { return false };
        let row = match (&event.after, &event.before) {
            (Some(row), _) => row,
            (None, Some(row)) if format.rewrite_deletes => row,
            _ => return false,
        };
        let out = &mut self.value;
        out.clear();
        push_open_row(plan, row, old, &mut self.notes, &mut self.room, out);
        let facts = PlainFacts {
            op: event.op,
            lsn: event.lsn,
            now_nanos: now,
            table: &plan.name,
            source: &self.source,
            transaction: self.transaction.as_ref(),
            settings: &self.settings,
        };
        plain::push_added(format, &facts, out);
        true
    }

    fn send<V>(
        &mut self,
        plan: &Plan,
        event: &Event<V>,
        has_value: bool,
        now: i64,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let mut headers = Headers::default();
        match event.change {
            KeyChange::None => {}
            KeyChange::NewKey => headers.push("__debezium.newkey", &self.header_key),
            KeyChange::OldKey => headers.push("__debezium.oldkey", &self.header_key),
        }
        if let Some(context) = &self.context {
            context.add(&mut headers);
        }
        if has_value && !self.notes.unchanged.is_empty() {
            push_names(plan, &self.notes.unchanged, &mut self.unchanged);
            headers.push("walrelay.unchanged", &self.unchanged);
        }
        if has_value && !self.notes.lossy.is_empty() {
            self.counters.lossy_values += self.notes.lossy.len() as u64;
            push_names(plan, &self.notes.lossy, &mut self.lossy);
            headers.push("walrelay.lossy", &self.lossy);
        }
        let plain_headers = matches!(self.settings.format, KafkaFormat::Plain(_))
            .then(|| plain::header_values(event.op, &self.source, self.transaction.as_ref()));
        if let Some(values) = &plain_headers {
            for (name, value) in plain::HEADER_NAMES.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
                headers.push(name, value.as_bytes());
            }
        }
        let record = Record {
            topic: &plan.topic,
            placement: Placement::ByKey,
            key: (!plan.key.is_empty()).then_some(&self.key),
            value: has_value.then_some(&self.value),
            headers: headers.as_slice(),
            timestamp_ms: now / 1_000_000,
            lsn: event.lsn,
            xid: self.source.xid_number,
        };
        count(&mut self.counters, &record);
        outlet.send(record)
    }

    /// One `t` event for a table, to every partition.
    pub(super) fn truncate(&mut self, plan: &Plan, lsn: Lsn, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        self.notes.clear();
        if let Some(transaction) = &mut self.transaction {
            transaction.count(&plan.name, self.settings.transaction_topic);
        }
        let event =
            Event::<std::iter::Empty<Value<'_>>> { op: b't', lsn, before: None, after: None, change: KeyChange::None };
        let now = now_nanos();
        self.push_envelope(plan, &event, None, now);
        let mut headers = Headers::default();
        if let Some(context) = &self.context {
            context.add(&mut headers);
        }
        let record = Record {
            topic: &plan.topic,
            placement: Placement::EveryPartition,
            key: None,
            value: Some(&self.value),
            headers: headers.as_slice(),
            timestamp_ms: now / 1_000_000,
            lsn,
            xid: self.source.xid_number,
        };
        count(&mut self.counters, &record);
        outlet.send(record)
    }

    /// The message that a row of the outbox holds.
    pub(super) fn outbox<'v>(
        &mut self,
        plan: &OutboxPlan,
        table: &QualifiedName,
        lsn: Lsn,
        values: impl Iterator<Item = Value<'v>> + Clone,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        plan.fill(values, &mut self.outbox)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.count(table, self.settings.transaction_topic);
        }
        let headers: Vec<Header<'_>> =
            plan.headers.iter().zip(&self.outbox.headers).map(|((_, name), value)| Header { name, value }).collect();
        let record = Record {
            topic: &self.outbox.topic,
            placement: Placement::ByKey,
            key: self.outbox.key.as_deref(),
            value: self.outbox.payload.as_deref(),
            headers: &headers,
            timestamp_ms: now_nanos() / 1_000_000,
            lsn,
            xid: self.source.xid_number,
        };
        count(&mut self.counters, &record);
        outlet.send(record)
    }
}

pub(super) fn count(counters: &mut FeedReport, record: &Record<'_>) {
    counters.records += 1;
    counters.bytes += (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)) as u64;
}

/// `,"op":"c","ts_ms":…,"ts_us":…,"ts_ns":…}`.
fn push_tail(op: u8, now_nanos: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"op\":\"");
    out.push(op);
    out.extend_from_slice(b"\",\"ts_ms\":");
    push_integer(now_nanos / 1_000_000, out);
    out.extend_from_slice(b",\"ts_us\":");
    push_integer(now_nanos / 1000, out);
    out.extend_from_slice(b",\"ts_ns\":");
    push_integer(now_nanos, out);
    out.push(b'}');
}

/// Nanoseconds since 1970 by this machine's clock.
pub(super) fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
