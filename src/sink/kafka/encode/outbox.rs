//! The outbox: a row becomes the message it holds, its topic, key, value and headers taken from columns. Interprets no payload.

use crate::config::KafkaSink;
use crate::config::kafka::Outbox;
use crate::decode::Value;
use crate::model::{QualifiedName, Relation};

use super::super::super::SinkError;
use super::column::{is_included, mask_over};
use super::form::decode_hex;
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
    /// Column and table of a payload of `bytea`, as an error names them.
    binary: Option<String>,
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
    /// Refuses a table that lacks a column, and a setting that would hide one.
    pub(super) fn new(relation: &Relation, outbox: &Outbox, settings: &KafkaSink) -> Result<OutboxPlan, SinkError> {
        let place = |name: &str| {
            let at = relation.columns.iter().position(|column| column.name == name).ok_or_else(|| {
                SinkError::Refused(format!(
                    "the outbox {} has no column \"{name}\", which [pipeline.sink.outbox] names",
                    relation.name
                ))
            })?;
            refuse_hidden(&relation.name, name, settings).map(|()| at)
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
        let is_binary = relation.columns.get(payload).is_some_and(|column| column.type_oid == BYTEA);
        let headers: Result<Vec<_>, SinkError> =
            outbox.headers.iter().map(|(column, header)| Ok((place(column)?, header.clone()))).collect();
        Ok(OutboxPlan {
            route,
            key: place(&outbox.key)?,
            binary: is_binary.then(|| format!("{} of {}", outbox.payload, relation.name)),
            payload,
            headers: headers?,
        })
    }

    /// The message of a row.
    pub(super) fn fill<'v>(
        &self,
        values: impl Iterator<Item = Value<'v>> + Clone,
        message: &mut OutboxMessage,
    ) -> Result<(), SinkError> {
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
        let payload = text(self.payload).map(|text| match &self.binary {
            Some(column) => unhexed(text, column),
            None => Ok(text.to_vec()),
        });
        message.payload = payload.transpose()?;
        message.headers = self.headers.iter().map(|(place, _)| text(*place).unwrap_or(b"").to_vec()).collect();
        Ok(())
    }
}

/// Whether the route could lead a row to this topic: what stands in it before the first column and behind the last tells.
pub fn may_route_to(outbox: &Outbox, topic: &str) -> bool {
    let Some((before, rest)) = outbox.route.split_once('{') else { return topic == sanitized(&outbox.route) };
    let behind = rest.rsplit_once('}').map_or("", |(_, behind)| behind);
    let rest = topic.strip_prefix(sanitized(before).as_str());
    rest.is_some_and(|rest| rest.ends_with(sanitized(behind).as_str()))
}

/// What a message is made of goes out as it stands. A setting that would hide it is refused, since nobody would notice.
fn refuse_hidden(table: &QualifiedName, column: &str, settings: &KafkaSink) -> Result<(), SinkError> {
    let (what, remedy) = if mask_over(table, column, settings).is_some() {
        ("a mask names", "take it off the mask")
    } else if !is_included(table, column, settings) {
        ("column_exclude or column_include leaves out", "let it in there")
    } else {
        return Ok(());
    };
    Err(SinkError::Refused(format!(
        "{what} the column {column} of {table}, which goes into the outbox's messages as it is: {remedy}, or name another column \
         in [pipeline.sink.outbox]"
    )))
}

/// The bytes behind `\xdeadbeef`; `column` is named where it is nothing of the kind, its value never.
fn unhexed(text: &[u8], column: &str) -> Result<Vec<u8>, SinkError> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    if text.strip_prefix(b"\\x").is_some_and(|digits| decode_hex(digits, &mut bytes)) {
        return Ok(bytes);
    }
    Err(SinkError::Refused(format!(
        "the column {column} holds the outbox's payload and did not come in the form of bytea_output = 'hex': no message can be \
         made of it; this is a fault of walrelay, please report it"
    )))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ID, Made, Session, insertion, settings};
    use super::*;

    const OUTBOX: &str =
        "[pipeline.sink.outbox]\ntable = \"public.t\"\nroute = \"{topic}\"\nheaders = [\"id\", \"kind:type\"]";

    /// An outbox with a payload of `bytea` and a column that no message has.
    fn columns() -> [Made; 6] {
        let text = |name| Made(name, 25, false, false);
        [ID, text("topic"), text("aggregateid"), text("kind"), Made("payload", BYTEA, false, true), text("note")]
    }

    #[test]
    fn a_route_leads_to_every_topic_that_fits_what_is_fixed_in_it() {
        for (route, topic, expected) in [
            ("outbox.event.{topic}", "outbox.event.order", true),
            ("outbox.event.{topic}", "outbox.event.", true),
            ("outbox.event.{topic}", "outbox.events", false),
            ("{topic}", "whatever", true),
            ("a.{topic}.{kind}.b", "a.1.2.b", true),
            ("a.{topic}.{kind}.b", "a.1.2.c", false),
            ("ab{topic}ba", "aba", false),
            ("an outbox {topic}", "an_outbox_x", true),
            ("fixed", "fixed", true),
            ("fixed", "fixed.more", false),
        ] {
            let lines = OUTBOX.replace("{topic}", route);
            let outbox = settings("shop", &lines).outbox.unwrap();
            assert_eq!(may_route_to(&outbox, topic), expected, "{route}: {topic}");
        }
    }

    #[test]
    fn what_would_hide_a_part_of_a_message_is_refused() {
        let mask = |column: &str| {
            format!("{OUTBOX}\n[[pipeline.sink.mask]]\ncolumns = [\"public.*.{column}\"]\nwith = \"fixed:***\"")
        };
        let listed = |key: &str, column: &str| format!("{key} = [\"public.t.{column}\"]\n{OUTBOX}");
        for (lines, refused) in [
            (OUTBOX.to_owned(), None),
            (mask("note"), None),
            (listed("column_exclude", "note"), None),
            (mask("payload"), Some(("a mask", "payload"))),
            (mask("aggregate*"), Some(("a mask", "aggregateid"))),
            (mask("topic"), Some(("a mask", "topic"))),
            (mask("kind"), Some(("a mask", "kind"))),
            (listed("column_exclude", "payload"), Some(("column_exclude", "payload"))),
            (listed("column_exclude", "id"), Some(("column_exclude", "id"))),
            (listed("column_include", "*"), None),
            (listed("column_include", "payload"), Some(("column_include", "topic"))),
        ] {
            let result = Session::empty(&lines).describe("t", 1, b'd', &columns(), |_| {});
            match (result, refused) {
                (Ok(()), None) => {}
                (Err(error), Some((what, column))) => {
                    let (error, column) = (error.to_string(), format!("the column {column} of public.t"));
                    let is_told = error.contains(what) && error.contains(&column);
                    assert!(is_told && error.contains("[pipeline.sink.outbox]"), "{lines}: {error}");
                }
                (result, _) => panic!("{lines}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_payload_of_bytes_is_taken_from_its_digits_and_never_guessed() {
        let mut session = Session::new(OUTBOX, b'd', &columns(), |_| {});
        let record = session.insert("1,out,42,made,\\x6f6B,x").remove(0);
        assert_eq!((record.topic.as_str(), record.value.as_deref()), ("out", Some("ok")));
        assert_eq!(session.insert("2,out,42,made,\\x,x")[0].value.as_deref(), Some(""));
        assert_eq!(session.insert("3,out,42,made,~,x")[0].value, None);
        for value in ["\\x6g", "\\x6f6", "6f6b", "s3cret", "", "\\\\x6f"] {
            let error = session.message(&insertion(&format!("4,out,42,made,{value},x"))).unwrap_err().to_string();
            assert!(error.contains("payload of public.t") && error.contains("bytea_output"), "{value}: {error}");
            assert!(value.is_empty() || !error.contains(value), "{error}");
        }
        assert!(session.keeper.0.is_empty());
    }
}
