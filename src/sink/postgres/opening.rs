//! What an apply session is opened for. Plain data.

use std::collections::HashMap;

use crate::config::{ServerUrl, TableSet};
use crate::model::{Lsn, PipelineName, Prefetching, QualifiedName};
use crate::schema::binary::BinaryTypes;

/// Which relations of the stream are applied.
#[derive(Clone, Debug)]
pub enum TableFilter {
    /// Whatever the publication sends: it is ours.
    All,
    /// Somebody else's publication: only these tables, and those of the set.
    Only {
        /// The pipeline's patterns.
        set: TableSet,
        /// Published names that belong to it for another reason: partitions of a wanted table.
        names: Vec<QualifiedName>,
    },
}

impl TableFilter {
    /// Whether the relation's changes are applied.
    pub fn contains(&self, name: &QualifiedName) -> bool {
        match self {
            TableFilter::All => true,
            TableFilter::Only { set, names } => set.contains(name) || names.contains(name),
        }
    }
}

/// What a sink is opened for.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Which relations.
    pub filter: TableFilter,
    /// The primary to name in the guards' hint; `None` when the standby's tables are not read-only.
    pub guard_for: Option<ServerUrl>,
    /// Changes of a table in transactions whose commit record starts below this are already in its copy.
    pub skip_until: HashMap<QualifiedName, Lsn>,
    /// Most batches under way on the apply session.
    pub apply_depth: usize,
    /// Connections that apply.
    pub apply_connections: usize,
    /// Sessions that read pages ahead of those, …
    pub prefetch_connections: usize,
    /// … and where it is told whether they do.
    pub prefetching: Prefetching,
    /// The types of a stream of binary values; `None` for one of text.
    pub binary: Option<BinaryTypes>,
}
