//! OIDs of built-in types that statements speak of.

use crate::schema::ShapeColumn;

/// Types of which equal values are equal bytes: bool, int8, int2, int4, oid, date, timestamp, timestamptz, uuid.
pub(super) const EXACT_TYPES: &[u32] = &[16, 20, 21, 23, 26, 1082, 1114, 1184, 2950];
/// Texts: bytea, text, varchar, name; equal bytes where their collation says so.
const TEXT_TYPES: &[u32] = &[17, 19, 25, 1043];

/// Whether `=` of this column tells apart whatever its bytes tell apart: not with 1.0 and 1.00, 0 and -0, a char's blanks, citext.
pub(super) fn is_exact(column: &ShapeColumn) -> bool {
    let base = column.base_type_oid;
    column.is_enum
        || EXACT_TYPES.contains(&column.type_oid)
        || EXACT_TYPES.contains(&base)
        || (column.is_deterministic && TEXT_TYPES.contains(&base))
}

pub(super) const BOOL_ARRAY: u32 = 1000;
pub(super) const INT8: u32 = 20;
