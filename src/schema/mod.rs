//! Table shapes read from a server's catalogs, and the SQL texts made from them. Never writes to a server.

pub mod binary;
mod catalog;
mod shape;

pub use catalog::{catalog_query, fingerprint_query, name_list, read_shapes};
pub use shape::{ColumnIdentity, ShapeColumn, ShapeError, TableShape};
