//! A published table as the primary describes it in a Relation message.

use super::QualifiedName;

/// `pg_class.relreplident`: which columns of the old row an UPDATE or DELETE carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`: nothing; the primary refuses published UPDATEs and DELETEs.
    Nothing,
    /// `f`: the whole row.
    Full,
    /// `i`: the columns of one unique index.
    Index,
}

/// One published column, in the order of the Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// `attname`.
    pub name: String,
    /// `atttypid` on the primary; below 10000 it means the same on every server.
    pub type_oid: u32,
    /// `atttypmod`, -1 when there is none.
    pub type_modifier: i32,
    /// Whether the column is part of the replica identity.
    pub is_key: bool,
}

/// One published table. The OID is the primary's and means something only within one replication session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid` on the primary.
    pub oid: u32,
    /// Schema (`pg_catalog` written out) and name.
    pub name: QualifiedName,
    /// Which old columns arrive.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in wire order.
    pub columns: Vec<Column>,
}
