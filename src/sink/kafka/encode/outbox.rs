//! The outbox: a row becomes the message it holds, its topic, key, value and headers taken from columns. Interprets no payload.

use crate::config::kafka::Outbox;
use crate::decode::Value;
use crate::model::Relation;

use super::super::super::SinkError;
use super::topic::sanitized;

/// Type OID of `bytea`, whose text form is no payload.
const BYTEA: u32 = 17;

/// Where the parts of the message stand.
#[derive(Clone, Debug)]
pub(super) struct OutboxPlan {
    /// Text before a column's value, and the column; the rest.
    route: Vec<(String, Option<usize>)>,
    key: usize,
    payload: usize,
    is_payload_binary: bool,
    pub(super) headers: Vec<(usize, String)>,
}

/// A message's parts, in buffers that are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct OutboxMessage {
    pub(super) topic: String,
    pub(super) key: Option<Vec<u8>>,
    pub(super) payload: Option<Vec<u8>>,
    pub(super) headers: Vec<Vec<u8>>,
}

impl OutboxPlan {
    /// Refuses a table that lacks a column.
    pub(super) fn new(relation: &Relation, outbox: &Outbox) -> Result<OutboxPlan, SinkError> {
        let place = |name: &str| {
            relation.columns.iter().position(|column| column.name == name).ok_or_else(|| {
                SinkError::Refused(format!(
                    "the outbox {} has no column \"{name}\", which [pipeline.sink.outbox] names",
                    relation.name
                ))
            })
        };
        let mut route = Vec::new();
        let mut rest = outbox.route.as_str();
        while let Some((before, behind)) = rest.split_once('{') {
            let (column, more) = behind.split_once('}').unwrap_or((behind, ""));
            route.push((before.to_owned(), Some(place(column)?)));
            rest = more;
        }
        route.push((rest.to_owned(), None));
        let payload = place(&outbox.payload)?;
        let headers: Result<Vec<_>, SinkError> =
            outbox.headers.iter().map(|(column, header)| Ok((place(column)?, header.clone()))).collect();
        Ok(OutboxPlan {
            route,
            key: place(&outbox.key)?,
            is_payload_binary: relation.columns.get(payload).is_some_and(|column| column.type_oid == BYTEA),
            payload,
            headers: headers?,
        })
    }

    /// The message of a row.
    pub(super) fn fill<'v>(&self, values: impl Iterator<Item = Value<'v>> + Clone, message: &mut OutboxMessage) {
        let text = |place: usize| match values.clone().nth(place) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let mut topic = String::new();
        for (before, column) in &self.route {
            topic.push_str(before);
            if let Some(text) = column.and_then(text) {
                topic.push_str(&String::from_utf8_lossy(text));
            }
        }
        message.topic = sanitized(&topic);
        message.key = text(self.key).map(<[u8]>::to_vec);
        message.payload =
            text(self.payload).map(|text| if self.is_payload_binary { unhexed(text) } else { text.to_vec() });
        message.headers = self.headers.iter().map(|(place, _)| text(*place).unwrap_or(b"").to_vec()).collect();
    }
}

fn unhexed(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    let (pairs, _) = text.strip_prefix(b"\\x").unwrap_or(text).as_chunks::<2>();
    pairs.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
}
