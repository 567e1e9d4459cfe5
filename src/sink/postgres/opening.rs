//! What an apply session is opened for. Plain data.

use crate::config::{ServerUrl, TableSet};
use crate::model::{Copied, PipelineName, Prefetching, QualifiedName};
use crate::schema::binary::BinaryTypes;

/// Whether a relation's changes are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// They are.
    Yes,
    /// They are left out.
    No,
    /// It came into the publication since its tables were listed: they are to be listed again.
    Unknown,
}

/// Which relations of the stream are applied.
#[derive(Clone, Debug)]
pub enum TableFilter {
    /// Whatever the publication sends.
    All,
    /// By what the publication held when the stream began.
    Listed {
        /// The pipeline's patterns.
        set: TableSet,
        /// Published names that belong to it, partitions of a wanted table too.
        names: Vec<QualifiedName>,
        /// Published names that do not.
        others: Vec<QualifiedName>,
        /// What a name is that is none of these. Where the publication holds nothing but tables of the set, one of the set is ours whenever
        /// it comes; where it may hold others, one may be such a table under a new name.
        newcomers: Wanted,
    },
}

impl TableFilter {
    /// What becomes of the relation's changes.
    pub fn wants(&self, name: &QualifiedName) -> Wanted {
        match self {
            TableFilter::All => Wanted::Yes,
            TableFilter::Listed { names, .. } if names.contains(name) => Wanted::Yes,
            TableFilter::Listed { others, .. } if others.contains(name) => Wanted::No,
            TableFilter::Listed { set, newcomers, .. } if set.contains(name) && *newcomers == Wanted::No => Wanted::Yes,
            TableFilter::Listed { newcomers, .. } => *newcomers,
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
    /// Which tables were copied: changes in transactions whose commit record starts below a copy's position are already in it.
    pub copied: Copied,
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
