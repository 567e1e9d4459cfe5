//! The relations described in one replication session. Lives as long as the session; nothing in it survives a reconnect.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::Relation;

use super::{DecodeError, RelationBody};

/// Relation OID on the primary → its newest description.
#[derive(Clone, Debug, Default)]
pub struct Relations {
    by_oid: HashMap<u32, Arc<Relation>>,
}

impl Relations {
    /// Notes a Relation message. Returns the new description, or `None` when it says nothing new: the server repeats itself
    /// after any catalog invalidation.
    pub fn note(&mut self, body: &RelationBody<'_>) -> Option<Arc<Relation>> {
        let relation = body.to_relation();
        if self.by_oid.get(&relation.oid).is_some_and(|known| **known == relation) {
            return None;
        }
        let relation = Arc::new(relation);
        self.by_oid.insert(relation.oid, Arc::clone(&relation));
        Some(relation)
    }

    /// Goes back to an earlier description.
    pub fn put_back(&mut self, relation: Arc<Relation>) {
        self.by_oid.insert(relation.oid, relation);
    }

    /// Goes back to knowing nothing of a relation.
    pub fn forget(&mut self, oid: u32) {
        self.by_oid.remove(&oid);
    }

    /// Every description, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.by_oid.values()
    }

    /// The description of a row's relation.
    pub fn get(&self, oid: u32) -> Result<&Arc<Relation>, DecodeError> {
        self.by_oid.get(&oid).ok_or(DecodeError::UnknownRelation(oid))
    }
}
