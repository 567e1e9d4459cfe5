//! Whether what the standby calls durable survives a power cut: asked before anything is streamed, because the primary is told so.
//! Changes no setting.

use crate::config::PostgresSink;
use crate::model::PipelineName;
use crate::wire::Connection;

use super::PipelineError;
use super::ownership::first_value;

/// Refuses a server with `fsync = off`, unless the configuration says otherwise.
pub(super) async fn check_durability(
    connection: &mut Connection,
    sink: &PostgresSink,
    pipeline: &PipelineName,
) -> Result<(), PipelineError> {
    let sql = "SELECT pg_catalog.current_setting('fsync')";
    let fsync = first_value(connection, sql, "reading fsync on the standby").await?;
    if fsync.as_deref() != Some("off") || sink.allow_fsync_off {
        return Ok(());
    }
    Err(PipelineError::Refused(format!(
        "fsync is off on the standby of \"{pipeline}\": what it calls durable does not survive a power cut, and the primary would be told \
         that it does. Run there: ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf(). Or, where rows may be lost, set \
         allow_fsync_off = true in [pipeline.sink]"
    )))
}
