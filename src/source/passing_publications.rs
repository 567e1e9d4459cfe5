//! The publications of somebody who only looks on (`walrelay tail`): never in the way of the primary's writers, gone with the
//! session that made them, and swept up by the next one if that session was killed.

use std::collections::BTreeSet;

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

use crate::config::TableSet;
use crate::model::QualifiedName;
use crate::wire::sql::SqlClient;

use super::SourceError;
use super::publication::create_publication_sql;
use super::tables::{PublishableTable, publishable_tables};

/// No managed publication begins like this: pipelines' names have no blanks.
const PREFIX: &str = "walrelay tail ";

/// Publications that exist for as long as the session they were made on.
#[derive(Debug)]
pub struct PassingPublications {
    /// Their names.
    pub names: Vec<String>,
    /// Tables of which only INSERT and TRUNCATE are published.
    pub inserts_only: Vec<QualifiedName>,
}

impl PassingPublications {
    /// Publishes the tables of the set under names that end with `suffix`. A table without replica identity is published
    /// without UPDATE and DELETE: with them, the primary would refuse those to its writers.
    pub async fn create(sql: &SqlClient, suffix: &str, tables: &TableSet) -> Result<Self, SourceError> {
        sweep(sql).await?;
        let wanted = publishable_tables(sql, tables).await?;
        if wanted.is_empty() {
            let text = "no table of the primary matches; patterns are schema.table, e.g. --tables 'public.*'";
            return Err(SourceError::Refused(text.to_owned()));
        }
        let lacking = without_identity(sql).await?;
        let (partial, whole): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|table| lacking.contains(&table.name));
        let mut made =
            Self { names: Vec::new(), inserts_only: partial.iter().map(|table| table.name.clone()).collect() };
        for (kind, tables, options) in [("", whole, ""), (" inserts", partial, " WITH (publish = 'insert, truncate')")]
        {
            if tables.is_empty() {
                continue;
            }
            let name = format!("{PREFIX}{suffix}{kind}");
            if let Err(error) = create(sql, &name, &tables, options).await {
                // What went wrong first is what counts.
                let _ = made.drop(sql).await;
                return Err(error);
            }
            made.names.push(name);
        }
        Ok(made)
    }

    /// Drops them.
    pub async fn drop(&self, sql: &SqlClient) -> Result<(), SourceError> {
        for name in &self.names {
            drop_one(sql, name).await?;
        }
        Ok(())
    }
}

async fn create(sql: &SqlClient, name: &str, tables: &[PublishableTable], options: &str) -> Result<(), SourceError> {
    lock(sql, name).await?;
    let command = format!("{}{options}", create_publication_sql(name, tables));
    match sql.batch_execute(&command).await {
        Ok(()) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let reason = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            Err(SourceError::Refused(format!(
                "a publication for the tables cannot be made: {reason}; the role must own the tables (--tables chooses them) and may \
                 create in the database (GRANT CREATE ON DATABASE), or be a superuser"
            )))
        }
        Err(error) => Err(SourceError::sql("creating a publication")(error)),
    }
}

/// The session's lock on a publication says that somebody still uses it.
async fn lock(sql: &SqlClient, name: &str) -> Result<bool, SourceError> {
    let query = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))";
    Ok(sql.query_one(query, &[&name]).await.map_err(SourceError::sql("locking the publication's name"))?.get(0))
}

/// Drops what a killed one left behind: a name that nobody locks.
async fn sweep(sql: &SqlClient) -> Result<(), SourceError> {
    let query = "SELECT pubname::text FROM pg_catalog.pg_publication \
                 WHERE pg_catalog.starts_with(pubname::text, $1) AND pg_catalog.pg_has_role(current_user, pubowner, 'USAGE')";
    let left = sql.query(query, &[&PREFIX]).await.map_err(SourceError::sql("looking for publications left behind"))?;
    for row in left {
        let name: String = row.get(0);
        if lock(sql, &name).await? {
            drop_one(sql, &name).await?;
        }
    }
    Ok(())
}

async fn drop_one(sql: &SqlClient, name: &str) -> Result<(), SourceError> {
    let command = format!("DROP PUBLICATION IF EXISTS {}", escape_identifier(name));
    sql.batch_execute(&command).await.map_err(SourceError::sql(format!("dropping the publication \"{name}\"")))
}

/// The tables, and the partitioned tables above them, whose UPDATEs and DELETEs cannot be published.
async fn without_identity(sql: &SqlClient) -> Result<BTreeSet<QualifiedName>, SourceError> {
    let query = "SELECT DISTINCT n.nspname::text, r.relname::text FROM pg_catalog.pg_class l \
                 CROSS JOIN LATERAL (SELECT l.oid UNION SELECT a.relid FROM pg_catalog.pg_partition_ancestors(l.oid) a) t(oid) \
                 JOIN pg_catalog.pg_class r ON r.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace \
                 WHERE l.relkind = 'r' AND l.oid >= 16384 AND l.relreplident <> 'f' AND NOT EXISTS ( \
                   SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = l.oid \
                     AND CASE l.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)";
    let rows = sql.query(query, &[]).await.map_err(SourceError::sql("reading the replica identities"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
