//! `walrelay tail`: a stream that leaves nothing behind. A publication of its own, a temporary slot that ends with its
//! connection, changes to an output; everything read is confirmed once it is written.

use std::io::Write;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::ack::Ledger;
use crate::assemble::{Arrival, Assembler, Spool};
use crate::config::{ServerUrl, TableSet};
use crate::model::{MemoryBudget, PipelineName, SlotName, joined};
use crate::sink::stdout::StdoutSink;
use crate::sink::{Batch, Commit};
use crate::source::{PassingPublications, SnapshotUse, SourceError, Stream, StreamOptions, create_slot};
use crate::wire::sql;
use crate::wire::{Connection, Session};

use super::PipelineError;
use super::monitor::primary_session;

/// Rows held in memory before a transaction is spooled.
const MEMORY_LIMIT_BYTES: u64 = 64 << 20;
/// Somebody's lock on a table is not waited for any longer.
const LOCK_TIMEOUT: &str = "10s";

/// Streams the tables' changes to `output` until `stop`, or until the output says that it wants no more
/// (`ErrorKind::BrokenPipe`).
pub async fn tail(
    primary: &ServerUrl,
    tables: &TableSet,
    output: Box<dyn Write + Send>,
    stop: CancellationToken,
) -> Result<(), PipelineError> {
    // Not the process's id alone: in containers everybody has the same.
    let suffix = format!("{}_{:08x}", std::process::id(), rand::random::<u32>());
    let name =
        PipelineName::new(&format!("tail_{suffix}")).map_err(|error| PipelineError::Refused(error.to_string()))?;
    let session = primary_session(&name, "tail").with("lock_timeout", LOCK_TIMEOUT);
    let sql = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        sql = sql::connect(primary, &session) => sql.map_err(SourceError::wire("connecting to the primary"))?,
    };
    let publications = PassingPublications::create(&sql, &suffix, tables).await?;
    for table in &publications.inserts_only {
        tracing::warn!(%table, "without a replica identity: its UPDATEs and DELETEs are not shown, for the primary would refuse them");
    }
    let streamed = tokio::select! {
        () = stop.cancelled() => Ok(()),
        streamed = stream(primary, &name, &publications, output, &stop) => streamed,
    };
    let dropped = publications.drop(&sql).await;
    streamed?;
    Ok(dropped?)
}

async fn stream(
    primary: &ServerUrl,
    name: &PipelineName,
    publications: &PassingPublications,
    output: Box<dyn Write + Send>,
    stop: &CancellationToken,
) -> Result<(), PipelineError> {
    let session = Session::replication(format!("walrelay {name}"));
    let mut connection =
        Connection::connect(primary, &session).await.map_err(SourceError::wire("connecting to the primary"))?;
    let slot = SlotName::owned_by(name);
    let created = create_slot(&mut connection, &slot, SnapshotUse::Nothing, true).await?;
    let options = StreamOptions {
        slot,
        publications: publications.names.clone(),
        start: created.consistent_point,
        binary: false,
        messages: false,
        adaptive_receive: true,
    };
    let mut stream = Stream::start(connection, &options).await?;
    let mut ledger = Ledger::new(created.consistent_point);
    let folder =
        tempfile::tempdir().map_err(|error| PipelineError::Refused(format!("no temporary folder: {error}")))?;
    let mut assembler = Assembler::new(MemoryBudget::new(MEMORY_LIMIT_BYTES), Spool::open(folder.path(), name)?);
    let mut output = StdoutSink::to(output);
    let mut arrivals = Vec::new();
    loop {
        let chunk = tokio::select! {
            () = stop.cancelled() => {
                stream.finish().await;
                return Ok(());
            }
            chunk = stream.next(true) => chunk?,
        };
        assembler.push(chunk, &mut arrivals)?;
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Transaction(transaction) => {
                    ledger.transaction(transaction.end_lsn);
                    let position = transaction.end_lsn;
                    let commit = Commit::Durable;
                    let batch = Batch { transactions: vec![transaction], position, commit, ahead: None };
                    let mut printing = spawn_blocking(move || (output.apply(batch), output));
                    // A reader may rest for as long as it likes: the primary hears of us meanwhile.
                    let printed = tokio::select! {
                        printed = &mut printing => printed,
                        held = stream.next(false) => return Err(held.map_or_else(PipelineError::from, |_| PipelineError::Stopped)),
                        () = stop.cancelled() => {
                            stream.finish().await;
                            return Ok(());
                        }
                    };
                    let (receipt, unused) = joined(printed)
                        .map_err(|error| PipelineError::Refused(format!("the output broke down: {error}")))?;
                    output = unused;
                    let receipt = receipt?;
                    ledger.applied(receipt.applied);
                    receipt.durable.into_iter().for_each(|durable| ledger.durable(durable));
                }
                Arrival::Keepalive { wal_end, .. } => {
                    ledger.keepalive(wal_end);
                    if let Some(idle) = ledger.idle_position() {
                        ledger.applied(crate::model::Applied(idle));
                        ledger.durable(crate::model::Durable(idle));
                    }
                }
                Arrival::Message(_) => {}
            }
        }
        stream.confirm(ledger.positions()).await?;
    }
}
