//! Whether the standby's tables still are what the apply session saw them to be: somebody may add a column, an index, a trigger or a
//! rule there while rows stream. Looked at beside the batches on another session, in the catalogs alone: it takes no lock on a table
//! and delays no batch. Reads no rows, and changes nothing; the next batch looks a table up again that is not what it was.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::QualifiedName;
use crate::schema::fingerprint_query;
use crate::wire::Connection;

use super::super::SinkError;

/// Looking takes at most this part of the time while batches are applied, …
const SHARE: u32 = 100;
/// … and this while none is: then it only shortens how long the next batch may go by what was.
const IDLE_SHARE: u32 = 1000;

/// What was seen, shared between who applies and who looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Drift(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Whether some table is not what it was.
    is_drifted: AtomicBool,
    /// Whether a batch was written since the last look.
    is_used: AtomicBool,
}

/// By the relation's OID on the primary: the table and its fingerprint as it was looked up.
type Seen = HashMap<u32, (QualifiedName, String)>;

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    drifted: HashSet<u32>,
    last: Option<Look>,
}

/// When a look ended, and how long it took.
#[derive(Clone, Copy, Debug)]
struct Look {
    ended: Instant,
    took: Duration,
}

impl Drift {
    /// A table was looked up.
    pub(super) fn seen(&self, oid: u32, name: &QualifiedName, fingerprint: &str) {
        let mut state = self.state();
        state.drifted.remove(&oid);
        state.seen.insert(oid, (name.clone(), fingerprint.to_owned()));
    }

    /// A batch is written by what was seen.
    pub(super) fn used(&self) {
        self.0.is_used.store(true, Ordering::Relaxed);
    }

    /// Whether there is something to take.
    pub(super) fn is_drifted(&self) -> bool {
        self.0.is_drifted.load(Ordering::Relaxed)
    }

    /// The relations whose tables are not what they were. Each once.
    pub(super) fn take(&self) -> Vec<u32> {
        if !self.0.is_drifted.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        self.state().drifted.drain().collect()
    }

    /// Looks at the tables, if it is time.
    pub(super) async fn look(&self, connection: &mut Connection) -> Result<(), SinkError> {
        let began = Instant::now();
        let Some(asked) = self.ask(began) else { return Ok(()) };
        let results = connection.simple_query(&fingerprint_query(asked.values().map(|(name, _)| name))).await;
        let results = results.map_err(SinkError::wire("looking whether the standby's tables have changed"))?;
        let rows = results.iter().flat_map(|result| &result.rows);
        let found = rows.filter_map(|row| match &row[..] {
            [Some(schema), Some(name), Some(fingerprint)] => {
                Some((QualifiedName::new(text(schema), text(name)), text(fingerprint)))
            }
            _ => None,
        });
        self.found(began, &asked, &found.collect());
        Ok(())
    }

    /// What is to be asked about, if it is time and there is something to ask.
    fn ask(&self, now: Instant) -> Option<Seen> {
        let is_used = self.0.is_used.load(Ordering::Relaxed);
        let state = self.state();
        let share = if is_used { SHARE } else { IDLE_SHARE };
        let is_early = state.last.is_some_and(|last| now.duration_since(last.ended) < last.took * share);
        if is_early || state.seen.is_empty() {
            return None;
        }
        // A batch that is written from now on is a reason for the next look.
        self.0.is_used.store(false, Ordering::Relaxed);
        Some(state.seen.clone())
    }

    /// What the catalog says of them.
    fn found(&self, began: Instant, asked: &Seen, found: &HashMap<QualifiedName, String>) {
        let ended = Instant::now();
        let mut state = self.state();
        state.last = Some(Look { ended, took: ended.duration_since(began) });
        for (oid, entry) in asked {
            let (name, fingerprint) = entry;
            // One that was looked up meanwhile is as new as the answer, or newer.
            if found.get(name) != Some(fingerprint) && state.seen.get(oid) == Some(entry) {
                state.seen.remove(oid);
                state.drifted.insert(*oid);
                self.0.is_drifted.store(true, Ordering::Release);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> QualifiedName {
        QualifiedName::new("public", name)
    }

    #[test]
    fn what_is_not_as_it_was_seen_is_told_once() {
        let drift = Drift::default();
        assert!(drift.ask(Instant::now()).is_none(), "nothing was seen yet");
        for (oid, table) in [(1, "same"), (2, "other"), (3, "gone"), (4, "renewed")] {
            drift.seen(oid, &name(table), "a");
        }
        let asked = drift.ask(Instant::now()).unwrap();
        // Meanwhile one is looked up again, and one for the first time.
        drift.seen(4, &name("renewed"), "b");
        drift.seen(5, &name("new"), "a");
        let found = [("same", "a"), ("other", "b"), ("renewed", "c")];
        let found = found.into_iter().map(|(table, fingerprint)| (name(table), fingerprint.to_owned())).collect();
        drift.found(Instant::now(), &asked, &found);
        let mut told = drift.take();
        told.sort_unstable();
        assert_eq!(told, [2, 3]);
        assert!(drift.take().is_empty());
        // Until they are looked up again nobody asks for them.
        drift.state().last = None;
        let mut asked: Vec<u32> = drift.ask(Instant::now()).unwrap().into_keys().collect();
        asked.sort_unstable();
        assert_eq!(asked, [1, 4, 5]);
    }

    #[test]
    fn looking_takes_a_small_part_of_the_time() {
        let drift = Drift::default();
        drift.seen(1, &name("t"), "a");
        let (took, ended) = (Duration::from_millis(10), Instant::now());
        // Milliseconds since the last look, whether a batch was written meanwhile, and whether it is time.
        for (since, is_used, is_time) in
            [(999, true, false), (1001, true, true), (1001, false, false), (10_001, false, true)]
        {
            drift.state().last = Some(Look { ended, took });
            drift.0.is_used.store(is_used, Ordering::Relaxed);
            let now = ended + Duration::from_millis(since);
            assert_eq!(drift.ask(now).is_some(), is_time, "{since} {is_used}");
        }
    }
}
