//! OIDs of built-in types that statements speak of.

/// Types of which equal values are equal bytes: bool, int8, int2, int4, oid, date, timestamp, timestamptz, uuid.
pub(super) const EXACT_TYPES: &[u32] = &[16, 20, 21, 23, 26, 1082, 1114, 1184, 2950];
pub(super) const BOOL_ARRAY: u32 = 1000;
pub(super) const INT8: u32 = 20;
