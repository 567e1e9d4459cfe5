//! What is looked at on the standby beside the batches, on the session that holds the pipeline's lock, about once a second. Decides
//! nothing itself.

use crate::wire::Connection;

use super::super::SinkError;
use super::drift::Drift;
use super::reads::Reads;

/// What an apply session has looked at.
#[derive(Clone, Debug)]
pub struct Looks {
    pub(super) drift: Drift,
    /// Where pages may be prefetched.
    pub(super) reads: Option<Reads>,
}

impl Looks {
    /// Looks at what it is time for; so many row changes were applied so far.
    pub async fn look(&self, connection: &mut Connection, rows: u64) -> Result<(), SinkError> {
        self.drift.look(connection).await?;
        match &self.reads {
            Some(reads) => reads.look(connection, rows).await,
            None => Ok(()),
        }
    }
}
