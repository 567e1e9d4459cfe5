//! Asks the primary's catalog for what the encoder wants to know of a table. Changes nothing there.

use tokio::runtime::Handle;

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Session, WireError};

use crate::sink::SinkError;
use crate::sink::kafka::encode::{Encoder, TableFacts, catalog_query, catalog_query_of, read_facts};

/// A lock on a table is not waited for any longer: a commit that waits for us may hold it. The attempt then ends, and says so.
const LOCK_TIMEOUT: &str = "10s";

/// A session that is opened when it is needed.
pub(super) struct Catalog {
    runtime: Handle,
    primary: ServerUrl,
    session: Session,
    client: Option<SqlClient>,
}

impl Catalog {
    pub(super) fn new(runtime: Handle, primary: ServerUrl, pipeline: &PipelineName) -> Self {
        // Without a path every name is written out; our own questions must never wait for ourselves.
        let session = Session::new(pipeline.session_name("catalog"))
            .with("search_path", "")
            .with("synchronous_commit", "local")
            .with("statement_timeout", "0")
            .with("lock_timeout", LOCK_TIMEOUT)
            .with("idle_session_timeout", "0");
        Self { runtime, primary, session, client: None }
    }

    /// Tells the encoder all about these tables; one that is gone is told as missing.
    pub(super) fn describe(&mut self, tables: &[QualifiedName], encoder: &mut Encoder) -> Result<(), SinkError> {
        if tables.is_empty() {
            return Ok(());
        }
        let mut facts = self.facts(tables)?;
        for table in tables {
            match facts.iter().position(|facts| facts.schema == table.schema && facts.name == table.name) {
                Some(index) => encoder.describe(facts.swap_remove(index)),
                None => encoder.describe_missing(table.clone()),
            }
        }
        Ok(())
    }

    /// Tells the encoder about the table of a Relation message, which may have another name by now, while another has this one. One that is
    /// gone is looked for by its name.
    pub(super) fn describe_relation(
        &mut self,
        oid: u32,
        table: QualifiedName,
        encoder: &mut Encoder,
    ) -> Result<(), SinkError> {
        match self.answers(&catalog_query_of(oid))?.pop() {
            Some(facts) => encoder.describe(TableFacts { schema: table.schema, name: table.name, ..facts }),
            None => self.describe(&[table], encoder)?,
        }
        Ok(())
    }

    /// What the catalog says now.
    pub(super) fn facts(&mut self, tables: &[QualifiedName]) -> Result<Vec<TableFacts>, SinkError> {
        self.answers(&catalog_query(tables))
    }

    fn answers(&mut self, query: &str) -> Result<Vec<TableFacts>, SinkError> {
        let runtime = self.runtime.clone();
        let rows = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => runtime.block_on(ask(client, query)),
            None => runtime.block_on(async {
                let client = sql::connect(&self.primary, &self.session).await?;
                ask(client, query).await
            }),
        };
        let (client, texts) = rows.map_err(SinkError::wire("reading the primary's catalog"))?;
        self.client = Some(client);
        Ok(read_facts(texts.iter().map(String::as_str))?)
    }
}

async fn ask(client: SqlClient, query: &str) -> Result<(SqlClient, Vec<String>), WireError> {
    let rows = client.query(query, &[]).await?;
    let texts = rows.iter().map(|row| row.get(0)).collect();
    Ok((client, texts))
}
