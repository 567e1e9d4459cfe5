//! `walrelay tail`: a stream that leaves nothing behind. A publication of its own, a temporary slot that ends with its
//! connection, changes to an output; everything read is confirmed once it is written.

use std::io::Write;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::ack::Ledger;
use crate::assemble::{Arrival, Assembler, Spool};
use crate::config::{ServerUrl, TableSet};
use crate::model::{MemoryBudget, PipelineName, SlotName};
use crate::sink::Batch;
use crate::sink::stdout::StdoutSink;
use crate::source::{
    SnapshotUse, SourceError, Stream, StreamOptions, create_publication, create_slot, drop_publication,
    publishable_tables,
};
use crate::wire::sql;
use crate::wire::{Connection, Session};

use super::PipelineError;
use super::monitor::primary_session;

/// Rows held in memory before a transaction is spooled.
const MEMORY_LIMIT_BYTES: u64 = 64 << 20;
/// Chunks read ahead.
const CHUNKS_LIMIT: usize = 8;

/// Streams the tables' changes to `output` until `stop`, or until the output says that it wants no more
/// (`ErrorKind::BrokenPipe`).
pub async fn tail(
    primary: &ServerUrl,
    tables: &TableSet,
    output: Box<dyn Write + Send>,
    stop: CancellationToken,
) -> Result<(), PipelineError> {
    let name = PipelineName::new(&format!("tail_{}", std::process::id()))
        .map_err(|error| PipelineError::Refused(error.to_string()))?;
    let connecting = || SourceError::wire("connecting to the primary");
    let sql = sql::connect(primary, &primary_session(&name, "tail")).await.map_err(connecting())?;
    let publication = name.owned_name();
    let wanted = publishable_tables(&sql, tables).await?;
    if wanted.is_empty() {
        return Err(PipelineError::Refused(
            "no table of the primary matches; patterns are schema.table, e.g. --tables 'public.*'".into(),
        ));
    }
    create_publication(&sql, &publication, &wanted).await?;
    let streamed = tokio::select! {
        () = stop.cancelled() => Ok(()),
        streamed = stream(primary, &name, &publication, output, &stop) => streamed,
    };
    drop_publication(&sql, &publication).await?;
    streamed
}

async fn stream(
    primary: &ServerUrl,
    name: &PipelineName,
    publication: &str,
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
        publication: publication.to_owned(),
        start: created.consistent_point,
        binary: false,
        messages: false,
        adaptive_receive: true,
    };
    let stream = Stream::start(connection, &options).await?;
    let mut ledger = Ledger::new(created.consistent_point);
    let (positions, positions_out) = watch::channel(ledger.positions());
    let (chunks_in, mut chunks) = mpsc::channel(CHUNKS_LIMIT);
    let mut source = tokio::spawn(stream.run(positions_out, chunks_in, stop.clone()));
    let folder =
        tempfile::tempdir().map_err(|error| PipelineError::Refused(format!("no temporary folder: {error}")))?;
    let mut assembler = Assembler::new(MemoryBudget::new(MEMORY_LIMIT_BYTES), Spool::open(folder.path(), name)?);
    let mut sink = StdoutSink::to(output);
    let mut arrivals = Vec::new();
    loop {
        let chunk = tokio::select! {
            ended = &mut source => return super::stream::ended_well(ended),
            chunk = chunks.recv() => chunk,
        };
        let Some(chunk) = chunk else { return super::stream::ended_well(source.await) };
        assembler.push(chunk, &mut arrivals)?;
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Transaction(transaction) => {
                    ledger.transaction(transaction.end_lsn);
                    let position = transaction.end_lsn;
                    let receipt = sink.apply(Batch { transactions: vec![transaction], position })?;
                    ledger.receipt(receipt.applied, receipt.durable);
                }
                Arrival::Keepalive { wal_end, .. } => {
                    ledger.keepalive(wal_end);
                    if let Some(idle) = ledger.idle_position() {
                        ledger.receipt(crate::model::Applied(idle), crate::model::Durable(idle));
                    }
                }
                Arrival::Message(_) => {}
            }
        }
        positions.send_replace(ledger.positions());
    }
}
