//! The records that speak of transactions and messages: BEGIN and END, logical messages.

use crate::decode::Logical;
use crate::model::{Lsn, QualifiedName};

use super::super::super::SinkError;
use super::form::push_bytes;
use super::json::{push_integer, push_string};
use super::open_transaction::push_transaction;
use super::schema::MetadataSchemas;
use super::writer::{Writer, count, now_nanos};
use super::{Outlet, Placement, Record};

/// Messages are no table. Debezium names them by a Java class, with an address behind it that nobody can use; this is the class.
const PACKAGE: &str = "io.debezium.connector.postgresql";
const MESSAGES: &str = "LogicalDecodingMessageMonitor$LogicalDecodingMessageId";

impl Writer {
    /// BEGIN or END in `{prefix}.transaction`, if that is wanted.
    pub(super) fn frame(&mut self, is_end: bool, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let Some(transaction) = self.transaction.as_ref().filter(|_| self.settings.transaction_topic) else {
            return Ok(());
        };
        let schemas = MetadataSchemas::of(&self.settings);
        schemas.open_key(MetadataSchemas::transaction_key, &mut self.key);
        self.key.extend_from_slice(b"{\"id\":\"");
        self.key.extend_from_slice(transaction.id.as_bytes());
        self.key.extend_from_slice(b"\"}");
        schemas.close_key(&mut self.key);
        let out = &mut self.value;
        schemas.open_value(MetadataSchemas::transaction_value, out);
        out.extend_from_slice(if is_end {
            b"{\"status\":\"END\",\"id\":\""
        } else {
            b"{\"status\":\"BEGIN\",\"id\":\""
        });
        out.extend_from_slice(transaction.id.as_bytes());
        out.extend_from_slice(b"\",\"event_count\":");
        if is_end {
            push_integer(transaction.total, out);
            out.extend_from_slice(b",\"data_collections\":[");
            for (at, (name, events)) in transaction.collections.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"{\"data_collection\":" } else { b",{\"data_collection\":" });
                let _ = push_string(name.as_bytes(), out);
                out.extend_from_slice(b",\"event_count\":");
                push_integer(*events, out);
                out.push(b'}');
            }
            out.extend_from_slice(b"],\"ts_ms\":");
        } else {
            out.extend_from_slice(b"null,\"data_collections\":null,\"ts_ms\":");
        }
        push_integer(self.source.unix_micros.div_euclid(1000), out);
        out.push(b'}');
        schemas.close_value(out);
        let record = Record {
            topic: &self.settings.transaction_topic_name(),
            placement: Placement::ByKey,
            key: Some(&self.key),
            value: Some(&self.value),
            headers: &[],
            timestamp_ms: now_nanos() / 1_000_000,
            lsn: transaction.commit_lsn,
            xid: Some(transaction.xid),
        };
        count(&mut self.counters, &record);
        outlet.send(record)
    }

    /// An `m` event in `{prefix}.message`.
    pub(super) fn logical_message(
        &mut self,
        lsn: Lsn,
        message: &Logical<'_>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let topic = self.settings.message_topic_name();
        if let Some(transaction) = &mut self.transaction {
            transaction.count(&QualifiedName::new(PACKAGE, MESSAGES), self.settings.transaction_topic);
        }
        let schemas = MetadataSchemas::of(&self.settings);
        schemas.open_key(MetadataSchemas::message_key, &mut self.key);
        self.key.extend_from_slice(b"{\"prefix\":");
        let _ = push_string(message.prefix, &mut self.key);
        self.key.push(b'}');
        schemas.close_key(&mut self.key);
        let now = now_nanos();
        let out = &mut self.value;
        schemas.open_value(MetadataSchemas::message_value, out);
        out.extend_from_slice(b"{\"op\":\"m\",\"ts_ms\":");
        push_integer(now / 1_000_000, out);
        out.push(b',');
        self.source.push(b"\"schema\":\"\",\"table\":\"\",\"txId\":", lsn, out);
        push_transaction(self.transaction.as_ref(), self.settings.transaction_topic, out);
        out.extend_from_slice(b",\"message\":{\"prefix\":");
        let _ = push_string(message.prefix, out);
        out.extend_from_slice(b",\"content\":");
        push_bytes(self.settings.binary, message.content, out);
        out.extend_from_slice(b"}}");
        schemas.close_value(out);
        let record = Record {
            topic: &topic,
            placement: Placement::ByKey,
            key: Some(&self.key),
            value: Some(&self.value),
            headers: &[],
            timestamp_ms: now / 1_000_000,
            lsn,
            xid: self.source.xid_number,
        };
        count(&mut self.counters, &record);
        outlet.send(record)
    }
}
