//! What `walrelay drop` says of each thing it was to take away. Takes nothing away itself.

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Done, or nothing to do.
    Done(String),
    /// Left, with the reason and the remedy.
    Left(String),
}
