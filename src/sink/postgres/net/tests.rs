//! The net effect against a model that makes each change in turn: whatever the changes, the table ends alike.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decode::{Context, Message, decode};

/// A column as it is sent: a text, NULL, or left out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Text(String),
    Null,
    Unchanged,
}

type Row = Vec<Sent>;

/// A change of a table whose key is the first and the third column. `None` stands for a row that is picked by its number.
#[derive(Clone, Debug)]
enum Change {
    Insert { key: (u8, u8), value: u8 },
    Update { pick: usize, key: Option<(u8, u8)>, value: u8, is_large_sent: bool },
    Delete { pick: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let key = || (0u8..4, 0u8..3);
    prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, value)| Change::Insert { key, value }),
        4 => (any::<usize>(), prop::option::weighted(0.4, key()), any::<u8>(), any::<bool>())
            .prop_map(|(pick, key, value, is_large_sent)| Change::Update { pick, key, value, is_large_sent }),
        2 => any::<usize>().prop_map(|pick| Change::Delete { pick }),
    ]
}

fn row(key: (u8, u8), value: u8, large: Sent) -> Row {
    let value = if value.is_multiple_of(5) { Sent::Null } else { Sent::Text(value.to_string()) };
    vec![Sent::Text(format!("key {}", key.0)), value, Sent::Text(key.1.to_string()), large]
}

fn put_tuple(out: &mut Vec<u8>, kind: u8, row: &Row) {
    out.push(kind);
    out.extend((row.len() as u16).to_be_bytes());
    for value in row {
        match value {
            Sent::Text(text) => {
                out.push(b't');
                out.extend((text.len() as u32).to_be_bytes());
                out.extend(text.as_bytes());
            }
            Sent::Null => out.push(b'n'),
            Sent::Unchanged => out.push(b'u'),
        }
    }
}

fn key_tuple(row: &Row) -> Row {
    vec![row[0].clone(), Sent::Null, row[2].clone(), Sent::Null]
}

fn key_of(row: &Row) -> (String, String) {
    match (&row[0], &row[2]) {
        (Sent::Text(one), Sent::Text(other)) => (one.clone(), other.clone()),
        key => panic!("{key:?}"),
    }
}

fn sent(value: Value<'_>) -> Sent {
    match value {
        Value::Text(bytes) => Sent::Text(String::from_utf8(bytes.to_vec()).unwrap()),
        Value::Null => Sent::Null,
        Value::Unchanged => Sent::Unchanged,
        Value::Binary(_) => panic!("a binary value"),
    }
}

type Table = BTreeMap<(String, String), Row>;

/// Makes the changes that are possible in turn, and gives them as messages.
fn play(table: &mut Table, changes: &[Change]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for (at, change) in changes.iter().enumerate() {
        let picked = |pick: usize| table.values().nth(pick % table.len().max(1)).cloned();
        let mut message = Vec::new();
        match change {
            Change::Insert { key, value } => {
                let new = row(*key, *value, Sent::Text(format!("large {at}")));
                if table.contains_key(&key_of(&new)) {
                    continue;
                }
                message.extend(b"I\0\0\0\x01");
                put_tuple(&mut message, b'N', &new);
                table.insert(key_of(&new), new);
            }
            Change::Update { pick, key, value, is_large_sent } => {
                let Some(old) = picked(*pick) else { continue };
                let large = if *is_large_sent { Sent::Text(format!("large {at}")) } else { Sent::Unchanged };
                let mut new = row(key.unwrap_or((0, 0)), *value, large);
                if key.is_none() {
                    (new[0], new[2]) = (old[0].clone(), old[2].clone());
                }
                let is_moved = key_of(&old) != key_of(&new);
                if is_moved && table.contains_key(&key_of(&new)) {
                    continue;
                }
                message.extend(b"U\0\0\0\x01");
                if is_moved {
                    put_tuple(&mut message, b'K', &key_tuple(&old));
                }
                put_tuple(&mut message, b'N', &new);
                table.remove(&key_of(&old));
                if new[3] == Sent::Unchanged {
                    new[3] = old[3].clone();
                }
                table.insert(key_of(&new), new);
            }
            Change::Delete { pick } => {
                let Some(old) = picked(*pick) else { continue };
                message.extend(b"D\0\0\0\x01");
                put_tuple(&mut message, b'K', &key_tuple(&old));
                table.remove(&key_of(&old));
            }
        }
        messages.push(message);
    }
    messages
}

fn fold(messages: &[Vec<u8>]) -> Result<Net<'_>, Unprovable> {
    let mut net = Net::new(&[2, 0]);
    for message in messages {
        match decode(message, Context::default()).unwrap() {
            Message::Insert { new, .. } => net.insert(new)?,
            Message::Update { old, new, .. } => net.update(old.map(|old| old.tuple()), new)?,
            Message::Delete { old, .. } => net.delete(old.tuple())?,
            message => panic!("{message:?}"),
        }
    }
    Ok(net)
}

/// Writes the effect as the standby's statements do: deletes, then updates and moves, then inserts.
fn write(table: &mut Table, net: &Net<'_>) {
    let effect = net.effect();
    let old_key = |row: u32| {
        let mut key = net.old_key(row).map(sent);
        match (key.next(), key.next()) {
            (Some(Sent::Text(one)), Some(Sent::Text(other))) => (one, other),
            key => panic!("{key:?}"),
        }
    };
    let values = |row: u32| {
        let mut values = Vec::new();
        net.values(row, &mut values);
        values.into_iter().map(sent).collect::<Row>()
    };
    for row in &effect.deletes {
        assert!(table.remove(&old_key(*row)).is_some(), "a row to delete is not there");
    }
    let carried: Vec<Row> = effect
        .updates
        .iter()
        .chain(&effect.moves)
        .map(|row| {
            let old = table.remove(&old_key(*row)).expect("a row to update is not there");
            let merged =
                values(*row).into_iter().zip(old).map(|(new, old)| if new == Sent::Unchanged { old } else { new });
            merged.collect()
        })
        .collect();
    for row in carried.into_iter().chain(effect.inserts.iter().map(|row| values(*row))) {
        assert!(!row.contains(&Sent::Unchanged), "a row lacks a value");
        assert!(table.insert(key_of(&row), row).is_none(), "a row is in another's way");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_net_effect_ends_as_each_change_in_turn(
        before in prop::collection::vec(change(), 0..12),
        changes in prop::collection::vec(change(), 0..40),
    ) {
        let mut in_turn = Table::new();
        play(&mut in_turn, &before);
        let mut at_once = in_turn.clone();
        let messages = play(&mut in_turn, &changes);
        let net = fold(&messages).unwrap();
        write(&mut at_once, &net);
        prop_assert_eq!(in_turn, at_once);
    }
}

/// Folds changes and compares the number of deletes, updates, moves and inserts, or the refusal.
fn check(messages: &[(u8, Option<u8>, Option<u8>)], expected: Result<[usize; 4], &str>) {
    let messages: Vec<Vec<u8>> = messages
        .iter()
        .map(|(tag, old, new)| {
            let mut message = vec![*tag, 0, 0, 0, 1];
            let whole = |key: u8| row((key, 0), 1, Sent::Null);
            if let Some(old) = old {
                put_tuple(&mut message, b'K', &key_tuple(&whole(*old)));
            }
            if let Some(new) = new {
                put_tuple(&mut message, b'N', &whole(*new));
            }
            message
        })
        .collect();
    let folded = fold(&messages).map(|net| net.effect());
    let counts =
        folded.map(|effect| [effect.deletes.len(), effect.updates.len(), effect.moves.len(), effect.inserts.len()]);
    assert_eq!(counts.map_err(|error| error.0), expected);
}

#[test]
fn changes_of_one_key_come_to_one() {
    let (insert, update, delete) = ((b'I', None, Some(1)), (b'U', None, Some(1)), (b'D', Some(1), None));
    let (away, back) = ((b'U', Some(1), Some(2)), (b'U', Some(2), Some(1)));
    check(&[insert, update, update], Ok([0, 0, 0, 1]));
    check(&[update, update, update], Ok([0, 1, 0, 0]));
    check(&[insert, update, delete], Ok([0, 0, 0, 0]));
    check(&[update, delete], Ok([1, 0, 0, 0]));
    check(&[delete, insert, update], Ok([1, 0, 0, 1]));
    check(&[away], Ok([0, 0, 1, 0]));
    check(&[away, back], Ok([0, 1, 0, 0]));
    check(&[away, insert], Ok([0, 0, 1, 1]));
    check(&[insert, away], Ok([0, 0, 0, 1]));
    check(&[away, (b'D', Some(2), None)], Ok([1, 0, 0, 0]));
}

#[test]
fn changes_that_do_not_fit_each_other_are_refused() {
    let (insert, update, delete) = ((b'I', None, Some(1)), (b'U', None, Some(1)), (b'D', Some(1), None));
    check(&[insert, insert], Err("a row is inserted twice"));
    check(&[update, insert], Err("a row is inserted twice"));
    check(&[delete, update], Err("a row is updated after it was deleted"));
    check(&[delete, delete], Err("a row is deleted twice"));
    check(&[(b'I', None, Some(2)), (b'U', Some(1), Some(2))], Err("a row takes a key that another one has"));
}

/// Tag, old row, new row; a row is its key and its value.
type Named = (u8, Option<(u8, u8)>, Option<(u8, u8)>);

/// A table of a key and a value of which the primary names rows by both, as with REPLICA IDENTITY FULL.
fn check_named(changes: &[Named], expected: Result<[usize; 4], &str>) {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for (tag, old, new) in changes {
        let mut message = vec![*tag, 0, 0, 0, 1];
        for (kind, (key, value)) in old.map(|old| (b'O', old)).into_iter().chain(new.map(|new| (b'N', new))) {
            put_tuple(&mut message, kind, &vec![Sent::Text(key.to_string()), Sent::Text(value.to_string())]);
        }
        messages.push(message);
    }
    let mut net = Net::new(&[0]).named_by(vec![true, true]);
    let folded = messages.iter().try_for_each(|message| match decode(message, Context::default()).unwrap() {
        Message::Insert { new, .. } => net.insert(new),
        Message::Update { old, new, .. } => net.update(old.map(|old| old.tuple()), new),
        Message::Delete { old, .. } => net.delete(old.tuple()),
        message => panic!("{message:?}"),
    });
    let effect = net.effect();
    let counts = [effect.deletes.len(), effect.updates.len(), effect.moves.len(), effect.inserts.len()];
    assert_eq!(folded.map(|()| counts).map_err(|error| error.0), expected);
}

#[test]
fn another_row_that_has_the_key_for_a_moment_is_not_taken_for_the_first() {
    let refused = Err("two rows have one key for a moment");
    let update = |old, new| (b'U', Some(old), Some(new));
    // id = id + 1 under a deferrable key.
    check_named(&[update((1, 7), (2, 7)), update((2, 8), (3, 8))], refused);
    check_named(&[(b'I', None, Some((1, 9))), (b'D', Some((1, 7)), None)], refused);
    // One row all along.
    check_named(&[update((1, 7), (2, 7)), update((2, 7), (3, 7)), update((3, 7), (3, 8))], Ok([0, 0, 1, 0]));
    check_named(&[(b'I', None, Some((1, 9))), update((1, 9), (1, 8)), (b'D', Some((1, 8)), None)], Ok([0; 4]));
    // The other way round nobody is in the way.
    check_named(&[update((2, 8), (3, 8)), update((1, 7), (2, 7))], Ok([0, 0, 2, 0]));
}
