//! What the captured events do not show: keys, masks, routes, the outbox, large values, truncates, lone messages.

use super::testing::{ID, Made, Session, encoder, facts, names, relation};
use super::*;
use crate::decode::{Context, decode};

#[test]
fn the_key_is_primary_key_else_identity_else_unique_index_else_none() {
    let unique = |columns: &[&str]| vec![IndexFacts { name: "u".to_owned(), columns: names(columns) }];
    type Change = Box<dyn FnOnce(&mut TableFacts)>;
    type Case = (&'static str, u8, [bool; 2], Change, Option<&'static str>);
    let cases: Vec<Case> = vec![
        ("", b'd', [true, true], Box::new(|facts| facts.primary_key = names(&["b", "a"])), Some(r#"{"b":2,"a":1}"#)),
        // The catalog has moved on: the message's columns win.
        ("", b'd', [true, false], Box::new(|facts| facts.primary_key = names(&["b"])), Some(r#"{"a":1}"#)),
        // A DEFERRABLE primary key is no replica identity.
        ("", b'd', [false, false], Box::new(|facts| facts.primary_key = names(&["b"])), Some(r#"{"b":2}"#)),
        (
            "",
            b'd',
            [false, false],
            Box::new(move |facts| (facts.primary_key, facts.unique_indexes) = (names(&["b", "a"]), unique(&["a"]))),
            Some(r#"{"b":2,"a":1}"#),
        ),
        ("", b'd', [false, false], Box::new(move |facts| facts.unique_indexes = unique(&["b"])), Some(r#"{"b":2}"#)),
        ("", b'd', [false, false], Box::new(move |facts| facts.unique_indexes = unique(&["gone"])), None),
        ("", b'f', [true, true], Box::new(|facts| facts.primary_key = names(&["a"])), Some(r#"{"a":1}"#)),
        ("", b'n', [false, false], Box::new(|facts| facts.primary_key = names(&["a"])), Some(r#"{"a":1}"#)),
        // Beside a primary key, the identity's index: only its old values come.
        ("", b'i', [false, true], Box::new(|facts| facts.primary_key = names(&["a"])), Some(r#"{"b":2}"#)),
        (
            "message_key = { \"public.*\" = [\"b\", \"a\"] }",
            b'd',
            [true, false],
            Box::new(|facts| facts.primary_key = names(&["a"])),
            Some(r#"{"b":2,"a":1}"#),
        ),
        // Another table of the same name.
        ("", b'f', [true, true], Box::new(|facts| (facts.oid, facts.primary_key) = (9, names(&["a"]))), None),
    ];
    for (lines, identity, [a, b], change, expected) in cases {
        let mut session = Session::new(lines, identity, &[Made("a", 23, a, false), Made("b", 23, b, false)], change);
        assert_eq!(session.insert("1,2")[0].key.as_deref(), expected, "{lines} {}", char::from(identity));
    }
}

#[test]
fn a_table_without_key_has_deletes_that_are_followed_by_nothing_at_all() {
    let mut session = Session::new("", b'f', &[Made("a", 25, true, true)], |_| {});
    let records = session.delete(b'O', "x");
    assert_eq!(
        (records.len(), records[0].key.as_ref(), records[0].json()["before"]["a"].as_str()),
        (2, None, Some("x"))
    );
    assert_eq!((records[1].key.as_ref(), records[1].value.as_ref()), (None, None));
}

#[test]
fn a_configured_key_does_not_change_with_the_primary_key_alone() {
    let lines = "message_key = { \"public.t\" = [\"b\"] }";
    let mut session =
        Session::new(lines, b'd', &[ID, Made("b", 25, false, true)], |facts| facts.primary_key = names(&["id"]));
    let records = session.update(Some((b'K', "1,~")), "2,x");
    assert_eq!((records.len(), records[0].json()["op"].as_str()), (1, Some("u")));
    assert_eq!(records[0].key.as_deref(), Some(r#"{"b":"x"}"#));
    assert_eq!(records[0].json()["before"], serde_json::json!({"id": 1, "b": null}));
}

#[test]
fn a_large_value_that_did_not_change_has_a_placeholder_of_its_type() {
    let columns = [ID, Made("t", 25, false, true), Made("b", 17, false, true), Made("n", 1700, false, true)];
    for (lines, expected) in [
        ("", r#"{"id":1,"t":"__debezium_unavailable_value","b":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==","n":null}"#),
        ("unavailable_value = \"?\"\nbinary = \"hex\"", r#"{"id":1,"t":"?","b":"?","n":null}"#),
        ("unavailable_value = \"?\"\nbinary = \"base64\"", r#"{"id":1,"t":"?","b":null,"n":null}"#),
    ] {
        let mut session = Session::new(lines, b'd', &columns, |facts| facts.primary_key = names(&["id"]));
        let record = session.update(None, "1,^,^,^").remove(0);
        assert_eq!(record.json()["after"].to_string(), expected);
        assert_eq!(record.header("walrelay.unchanged"), Some(r#"["t","b","n"]"#));
    }
    // The whole old row has it.
    let mut session = Session::new("", b'f', &[Made("id", 23, true, false), Made("t", 25, true, true)], |facts| {
        facts.primary_key = names(&["id"]);
    });
    let records = session.update(Some((b'O', "1,large")), "2,^");
    assert_eq!(records[2].json()["after"]["t"], "large");
    assert!(records.iter().all(|record| record.header("walrelay.unchanged").is_none()));
}

/// A key that is stored out of line comes as an old row beside the new one, which holds none of it.
#[test]
fn a_large_key_that_did_not_change_is_taken_from_the_old_row() {
    let columns = || [Made("k", 25, true, false), Made("n", 23, true, false), Made("v", 25, false, true)];
    let key = |facts: &mut TableFacts| facts.primary_key = names(&["k", "n"]);
    for (lines, row) in [("", "/after"), ("format = \"plain\"", "")] {
        let mut session = Session::new(lines, b'd', &columns(), key);
        let records = session.update(Some((b'K', "large,1,~")), "^,1,x");
        assert_eq!((records.len(), records[0].key.as_deref()), (1, Some(r#"{"k":"large","n":1}"#)), "{lines}");
        let expected = serde_json::json!({"k": "large", "n": 1, "v": "x"});
        assert_eq!(records[0].json().pointer(row), Some(&expected), "{lines}");
        assert_eq!(records[0].header("walrelay.unchanged"), None, "{lines}");
    }
    // Another part of the key changes; of what is outside it nothing came.
    let records = Session::new("", b'd', &columns(), key).update(Some((b'K', "large,1,~")), "^,2,^");
    let (old, new) = (Some(r#"{"k":"large","n":1}"#), Some(r#"{"k":"large","n":2}"#));
    let keys: Vec<Option<&str>> = records.iter().map(|record| record.key.as_deref()).collect();
    assert_eq!(keys, [old, old, new]);
    assert_eq!((records[0].header("__debezium.newkey"), records[2].header("__debezium.oldkey")), (new, old));
    assert_eq!(records[2].json()["after"]["k"], "large");
    assert_eq!(records[2].header("walrelay.unchanged"), Some(r#"["v"]"#));
}

#[test]
fn the_headers_of_a_changed_key_are_not_its_json() {
    let columns = [Made("k", 1700, true, false), Made("s", 25, true, false), Made("f", 701, true, false)];
    let mut session = Session::new("", b'd', &columns, |facts| facts.primary_key = names(&["k", "s", "f"]));
    let records = session.update(Some((b'K', "1,a,1")), "1.50,😀\",NaN");
    assert_eq!(records.len(), 3);
    let expected = Some(r#"{"k":{"scale":1,"value":"Dw=="},"s":"😀\"","f":NaN}"#);
    assert_eq!((records[0].header("__debezium.newkey"), records[1].header("__debezium.newkey")), (expected, expected));
    assert_eq!(records[1].value, None);
    let old = Some(r#"{"k":{"scale":0,"value":"AQ=="},"s":"a","f":1.0}"#);
    assert_eq!(records[2].header("__debezium.oldkey"), old);
    assert_eq!(records[2].key.as_deref(), Some(r#"{"k":{"scale":1,"value":"Dw=="},"s":"\uD83D\uDE00\"","f":"NaN"}"#));
}

#[test]
fn columns_are_left_out_of_rows_but_not_of_keys() {
    let key = |facts: &mut TableFacts| facts.primary_key = names(&["id"]);
    let columns = || [ID, Made("a", 25, false, true)];
    for (lines, expected) in [
        ("column_exclude = [\"public.t.id\"]", r#"{"a":"x"}"#),
        ("column_include = [\"public.t.a\"]", r#"{"a":"x"}"#),
        ("column_exclude = [\"public.t.*\"]", "{}"),
    ] {
        let record = Session::new(lines, b'd', &columns(), key).insert("1,x").remove(0);
        assert_eq!(
            (record.key.as_deref(), record.json()["after"].to_string().as_str()),
            (Some(r#"{"id":1}"#), expected)
        );
    }
    let mut session = Session::new("column_exclude = [\"public.t.a\"]", b'd', &columns(), key);
    assert_eq!(session.update(None, "1,y")[0].json()["op"], "u");
}

#[test]
fn masks_cover_texts_and_refuse_what_they_cannot_cover() {
    let columns = || [ID, Made("a", 25, false, true)];
    let mask = |with: &str| format!("[[pipeline.sink.mask]]\ncolumns = [\"public.t.a\"]\nwith = \"{with}\"");
    for (with, row, expected) in [
        ("fixed:***", "1,secret", Some("***")),
        ("truncate:3", "1,ééééé", Some("ééé")),
        ("truncate:9", "1,short", Some("short")),
        ("fixed:***", "1,~", None),
    ] {
        let record = Session::new(&mask(with), b'd', &columns(), |_| {}).insert(row).remove(0);
        assert_eq!(record.json()["after"]["a"].as_str(), expected, "{with}");
    }
    let record = Session::new(&mask("hash"), b'd', &columns(), |_| {}).insert("1,x").remove(0);
    let found = record.json()["after"]["a"].as_str().unwrap().to_owned();
    assert!(found.len() == 64 && found.starts_with("2d711642b726b044"), "{found}");
    let salt = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(salt.path(), "pepper\n").unwrap();
    let salted = format!("{}\nsalt_file = \"{}\"", mask("hash"), salt.path().display());
    let record = Session::new(&salted, b'd', &columns(), |_| {}).insert("1,x").remove(0);
    assert_eq!(record.json()["after"]["a"], "232069a0ae43819cace8baa9e99d3047580fdbce23ae5d10ab92ed528e96b01d");
    let mut session = Session::empty(&mask("hash").replace(".a\"", ".id\""));
    let error = session.describe("t", 1, b'd', &columns(), |_| {}).unwrap_err().to_string();
    assert!(error.contains("id of public.t") && error.contains("column_exclude"), "{error}");
}

#[test]
fn topics_are_those_of_routes_or_the_template_and_never_meet_by_accident() {
    let lines = "[[pipeline.sink.route]]\ntables = [\"public.order_*\"]\ntopic = \"{prefix}.orders\"";
    let encoder_of = encoder("shop", lines);
    for (table, topic) in [("order_1", "shop.orders"), ("order_2", "shop.orders"), ("t ö", "shop.public.t__")] {
        assert_eq!(encoder_of.topic_of(&QualifiedName::new("public", table)), topic);
    }
    let mut session = Session::empty(lines);
    for (oid, name) in [(1, "order_1"), (2, "order_2"), (3, "a-b"), (4, "a_b"), (5, "a$b")] {
        let result = session.describe(name, oid, b'd', &[ID], |_| {});
        match (name, result) {
            ("a$b", Err(error)) => assert!(error.to_string().contains("public.a_b and public.a$b"), "{error}"),
            (_, result) => result.unwrap(),
        }
    }
}

#[test]
fn a_row_of_the_outbox_is_the_message_it_holds() {
    let lines = "[pipeline.sink.outbox]\ntable = \"public.t\"\nheaders = [\"id\", \"kind:eventType\"]";
    let columns = [
        ID,
        Made("aggregatetype", 25, false, false),
        Made("aggregateid", 25, false, false),
        Made("kind", 25, false, false),
        Made("payload", 3802, false, true),
    ];
    let mut session = Session::new(lines, b'd', &columns, |_| {});
    let record = session.insert("1,order,42,created,{\"a\": 1}").remove(0);
    assert_eq!((record.topic.as_str(), record.key.as_deref()), ("outbox.event.order", Some("42")));
    assert_eq!(record.value.as_deref(), Some("{\"a\": 1}"));
    assert_eq!((record.header("id"), record.header("eventType")), (Some("1"), Some("created")));
    assert_eq!(session.insert("2,order,42,created,~")[0].value, None);
    assert!(session.delete(b'K', "1,~,~,~,~").is_empty());
    let point = SnapshotPoint { lsn: Lsn(1), time: Timestamp(0), xid: None };
    let facts = facts("t", 1, &columns);
    let names: Vec<&str> = columns.iter().map(|column| column.0).collect();
    let table = session.encoder.snapshot_table(facts, &names).unwrap();
    let values = ["3", "order", "42", "created", "{}"].map(|text| Value::Text(text.as_bytes()));
    session.encoder.snapshot_row(table, point, SnapshotMark::Inside, values.into_iter(), &mut session.keeper).unwrap();
    let record = session.keeper.0.last().unwrap();
    assert_eq!((record.topic.as_str(), record.value.as_deref()), ("outbox.event.order", Some("{}")));
    let mut session = Session::empty(lines);
    let error = session.describe("t", 1, b'd', &[ID], |_| {}).unwrap_err().to_string();
    assert!(error.contains("no column \"aggregatetype\""), "{error}");
}

#[test]
fn a_truncate_goes_to_every_partition_or_is_counted() {
    let truncate = b"T\0\0\0\x01\0\0\0\0\x01";
    let mut session = Session::new("skipped_operations = []", b'd', &[ID], |_| {});
    let record = session.change(truncate).remove(0);
    assert_eq!((record.placement, record.key.as_ref()), (Placement::EveryPartition, None));
    assert_eq!((record.json()["op"].as_str(), record.json()["after"].is_null()), (Some("t"), true));
    for lines in ["", "format = \"plain\"\nskipped_operations = []"] {
        let mut session = Session::new(lines, b'd', &[ID], |_| {});
        assert!(session.change(truncate).is_empty());
        assert_eq!(session.encoder.counters().skipped_truncates, 1);
    }
    let mut session = Session::new("transaction_topic = true", b'd', &[ID], |_| {});
    session.change(truncate);
    session.encoder.end(&mut session.keeper).unwrap();
    let end = session.keeper.0[0].json();
    assert_eq!((end["event_count"].as_u64(), end["data_collections"].to_string()), (Some(0), "[]".to_owned()));
}

#[test]
fn a_lone_message_is_a_unit_of_its_own() {
    let mut session = Session::new("transaction_topic = true\ncontext_headers = true", b'd', &[ID], |_| {});
    session.encoder.end(&mut session.keeper).unwrap();
    session.keeper.0.clear();
    let mut payload = b"M\0".to_vec();
    payload.extend(200u64.to_be_bytes());
    payload.extend(b"now\0\0\0\0\x02\0\xff");
    let Message::Logical(message) = decode(&payload, Context::default()).unwrap() else { panic!("no message") };
    session.encoder.outside_message(&message, &mut session.keeper).unwrap();
    let record = std::mem::take(&mut session.keeper.0).remove(0);
    let value = record.json();
    assert_eq!((record.topic.as_str(), record.key.as_deref()), ("shop.message", Some(r#"{"prefix":"now"}"#)));
    assert_eq!(value["message"], serde_json::json!({"prefix": "now", "content": "AP8="}));
    assert!(value["transaction"].is_null() && value["source"]["txId"].is_null() && record.headers.is_empty());
    assert_eq!(value["source"]["sequence"], r#"["108","200"]"#);
    session.begin(8, 300);
    assert_eq!(session.keeper.0.len(), 1);
    session.keeper.0.clear();
    assert_eq!(session.insert("1")[0].json()["source"]["sequence"], r#"["200","90"]"#);
}

#[test]
fn a_relation_that_says_something_new_needs_the_catalog_again() {
    let mut session = Session::new("", b'd', &[ID], |facts| facts.primary_key = names(&["id"]));
    session
        .describe("t", 1, b'd', &[ID, Made("b", 25, false, true)], |facts| facts.primary_key = names(&["id"]))
        .unwrap();
    assert_eq!(session.insert("1,x")[0].json()["after"], serde_json::json!({"id": 1, "b": "x"}));
}

/// A table may change between the beginning of a session and its first row. The catalog may also be ahead of the stream: whatever
/// it answers to the message itself is taken.
#[test]
fn what_was_told_beforehand_is_asked_for_again_where_the_relation_differs() {
    let columns = || [ID, Made("m", 20_001, false, true)];
    let whole = || {
        let mut whole = facts("t", 1, &columns());
        let mood = TypeFacts { oid: 20_000, kind: "e".to_owned(), ..whole.columns[1].base.clone() };
        whole.columns[1].base.element = Some(Box::new(mood));
        whole
    };
    let (array, text) = (serde_json::json!(["ok"]), serde_json::json!("{ok}"));
    let table = QualifiedName::new("public", "t");
    for (before, answer, expected) in [
        (Some(whole()), None, &array),
        (Some(facts("t", 1, &[ID])), Some(whole()), &array),
        (Some(facts("t", 1, &[ID, Made("m", 25, false, true)])), Some(whole()), &array),
        (Some(facts("t", 2, &columns())), Some(whole()), &array),
        (None, None, &text),
        (Some(facts("t", 1, &[ID])), Some(facts("t", 1, &[ID])), &text),
    ] {
        let mut session = Session::empty("");
        let case = format!("{before:?}");
        match before {
            Some(facts) => session.encoder.describe(facts),
            None => session.encoder.describe_missing(table.clone()),
        }
        let relation = relation("t", 1, b'd', &columns());
        if let Some(answer) = answer {
            assert_eq!(session.message(&relation).unwrap(), Step::NeedFacts(table.clone()), "{case}");
            session.encoder.describe(answer);
        }
        assert_eq!(session.message(&relation).unwrap(), Step::Done, "{case}");
        assert_eq!(&session.insert("1,{ok}")[0].json()["after"]["m"], expected, "{case}");
    }
}

#[test]
fn a_null_stays_null_unless_its_default_is_wanted() {
    let columns = || [ID, Made("a", 23, false, true), Made("b", 1184, false, true)];
    let change = |facts: &mut TableFacts| {
        facts.columns[1].default = Some("6".to_owned());
        facts.columns[2].default = Some("now()".to_owned());
    };
    for (lines, expected) in [
        ("", r#"{"id":1,"a":null,"b":null}"#),
        ("replace_null_with_default = true", r#"{"id":1,"a":6,"b":"1970-01-01T00:00:00.000000Z"}"#),
    ] {
        let record = Session::new(lines, b'd', &columns(), change).insert("1,~,~").remove(0);
        assert_eq!(record.json()["after"].to_string(), expected);
    }
}

#[test]
fn types_that_debezium_drops_are_texts_or_left_out() {
    for (lines, expected) in [("", r#"{"id":1,"a":"0/1"}"#), ("include_unknown_types = false", r#"{"id":1}"#)] {
        let record = Session::new(lines, b'd', &[ID, Made("a", 3220, false, true)], |_| {}).insert("1,0/1").remove(0);
        assert_eq!((record.json()["after"].to_string().as_str(), record.header("walrelay.lossy")), (expected, None));
    }
}

/// Its older events come after the catalog has moved on.
#[test]
fn a_column_that_was_renamed_or_dropped_since_is_still_of_its_type() {
    let columns = || [ID, Made("mood", 20_000, false, true), Made("other", 20_001, false, true)];
    let ahead = |facts: &mut TableFacts| {
        facts.columns[1].name = "renamed".to_owned();
        facts.columns[1].base.kind = "e".to_owned();
        facts.columns.truncate(2);
    };
    // Of the second no column is left that tells what its type is.
    for (lines, expected) in
        [("include_unknown_types = false", r#"{"id":1,"mood":"ok"}"#), ("", r#"{"id":1,"mood":"ok","other":"x"}"#)]
    {
        let record = Session::new(lines, b'd', &columns(), ahead).insert("1,ok,x").remove(0);
        assert_eq!(record.json()["after"].to_string(), expected, "{lines}");
    }
}

#[test]
fn the_memory_of_a_large_row_is_given_back() {
    let mut session = Session::new("", b'd', &[ID, Made("a", 25, false, true)], |_| {});
    session.insert(&format!("1,{}", "x".repeat(3 << 20)));
    assert!(session.encoder.writer.value.capacity() > 3 << 20);
    session.encoder.end(&mut session.keeper).unwrap();
    assert!(session.encoder.writer.value.capacity() <= 1 << 20);
}

#[test]
fn a_replayed_transaction_names_its_origin() {
    let mut session = Session::new("", b'd', &[ID], |_| {});
    let mark = TransactionMark {
        xid: 9,
        commit_lsn: Lsn(300),
        end_lsn: Lsn(308),
        commit_time: Timestamp(0),
        origin: Some("elsewhere"),
    };
    session.encoder.begin(mark, &mut session.keeper).unwrap();
    assert_eq!(session.insert("1")[0].json()["source"]["origin"], "elsewhere");
}

/// A unique index does not show in the Relation message.
#[test]
fn a_repeated_relation_needs_the_catalog_again() {
    let columns = || [Made("a", 23, true, false)];
    let mut session = Session::new("", b'f', &columns(), |_| {});
    assert_eq!(session.insert("1")[0].key, None);
    let index = IndexFacts { name: "u".to_owned(), columns: names(&["a"]) };
    session.describe("t", 1, b'f', &columns(), |facts| facts.unique_indexes = vec![index]).unwrap();
    assert_eq!(session.insert("1")[0].key.as_deref(), Some("{\"a\":1}"));
}

#[test]
fn a_plain_row_has_headers_for_what_the_envelope_said() {
    let lines = "format = \"plain\"\nadd_fields = [\"op\", \"source.ts_ms\", \"lsn\"]";
    let mut session = Session::new(lines, b'd', &[ID, Made("a", 25, false, true)], |_| {});
    let record = session.insert("1,x").remove(0);
    let expected = r#"{"id":1,"a":"x","__op":"c","__source_ts_ms":946684800000,"__lsn":90}"#;
    assert_eq!(record.value.as_deref(), Some(expected));
    for (name, value) in [("op", "c"), ("commit_lsn", "0/64"), ("seq", "1"), ("commit_time", "946684800000000")] {
        assert_eq!(record.header(&format!("walrelay.{name}")), Some(value));
    }
    let deleted = session.delete(b'K', "1,~");
    assert_eq!((deleted.len(), deleted[0].value.as_ref(), deleted[0].header("walrelay.op")), (1, None, Some("d")));
    let mut session = Session::new(
        "format = \"plain\"\ndelete_handling = \"rewrite\"",
        b'd',
        &[ID, Made("a", 25, false, true)],
        |_| {},
    );
    let deleted = session.delete(b'K', "1,~");
    assert_eq!((deleted.len(), deleted[0].value.as_deref()), (1, Some(r#"{"id":1,"a":null,"__deleted":"true"}"#)));
}
