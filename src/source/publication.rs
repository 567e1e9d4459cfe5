//! The publication: made before the slot (a slot older than its publication cannot decode), kept in step with the table set.
//! One that somebody else owns is used as it is, never changed.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

use crate::config::TableSet;
use crate::model::QualifiedName;
use crate::wire::sql::SqlClient;

use super::SourceError;
use super::tables::{PublishableTable, leaves, partitioned_above, publishable_tables, published_tables};

/// `undefined_table` and `invalid_schema_name`: what was listed is there no more.
const GONE: &[&str] = &["42P01", "3F000"];
/// A table that is made and renamed all the time is not waited for.
const LISTINGS: u32 = 5;

/// The publication a pipeline reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its name.
    pub name: String,
    /// Whether it is ours to change and drop.
    pub is_managed: bool,
    /// The names under which changes arrive, those of the table set only.
    pub tables: Vec<QualifiedName>,
    /// The same of those that are not of the set.
    pub others: Vec<QualifiedName>,
    /// The tables that it names one by one, partitioned ones too, with their OIDs. The others come into it with a schema, a partitioned
    /// parent or the database.
    pub named: BTreeMap<QualifiedName, u32>,
    /// Whether it may hold tables that are not of the set, whatever names come up under them.
    pub has_strangers: bool,
    /// Whether somebody else may add tables to it.
    pub may_gain: bool,
}

/// What to do with tables that have come into the set of a managed publication since it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Additions {
    /// Publish them now; a role that may not is refused.
    Now,
    /// Publish them now; where the role may not, only warn: what already streams goes on.
    IfAllowed,
    /// Publish these of them now, whose copy is planned, and nothing that has come since. The transaction stays open for the caller to
    /// commit: until then what came into the tables meanwhile can be planned too, and a caller that is lost has published nothing.
    Planned(Vec<QualifiedName>),
    /// Only warn: there is a reason to wait for another start. Their rows must be copied under a new snapshot, which waits for every running
    /// transaction; while commits may wait for us as their synchronous standby, that would keep us from streaming for ever.
    Later,
}

impl Additions {
    /// Whether they leave a transaction open.
    pub fn is_open(&self) -> bool {
        matches!(self, Additions::Planned(tables) if !tables.is_empty())
    }
}

/// What `pg_publication` says.
struct Existing {
    publishes_all_tables: bool,
    omitted_operations: Vec<&'static str>,
    is_owned: bool,
    /// Tables named in it, roots of partitioned ones included.
    named: BTreeMap<QualifiedName, u32>,
}

/// Finds the publication or creates it (managed ones only), and adds tables that have come into the set since. A table may be gone, or
/// have another name, before its turn has come: then all are listed again.
pub async fn ensure_publication(
    sql: &SqlClient,
    name: &str,
    is_managed: bool,
    tables: &TableSet,
    additions: &Additions,
) -> Result<Publication, SourceError> {
    for _ in 1..LISTINGS {
        let ensured = ensure_once(sql, name, is_managed, tables, additions).await;
        if ensured.is_err() && additions.is_open() {
            // The error that counts is the first one.
            let _ = sql.batch_execute("ROLLBACK").await;
        }
        match ensured {
            Err(error) if error.code().is_some_and(|code| GONE.contains(&code)) => {
                tracing::info!(%error, "a table was gone before it was published; they are listed again");
            }
            ensured => return ensured,
        }
    }
    ensure_once(sql, name, is_managed, tables, additions).await
}

async fn ensure_once(
    sql: &SqlClient,
    name: &str,
    is_managed: bool,
    tables: &TableSet,
    additions: &Additions,
) -> Result<Publication, SourceError> {
    let wanted = if is_managed { publishable_tables(sql, tables).await? } else { Vec::new() };
    let (mut has_strangers, mut may_gain) = (!is_managed, !is_managed);
    match existing(sql, name).await? {
        None if is_managed => create_publication(sql, name, &wanted).await?,
        None => {
            return Err(SourceError::Refused(format!(
                "the publication \"{name}\" does not exist on the primary; create it (CREATE PUBLICATION {} FOR TABLE …), \
                 or leave out the key `publication` to have one managed",
                escape_identifier(name)
            )));
        }
        Some(existing) => {
            if !existing.omitted_operations.is_empty() {
                let reason = omission(name, &existing.omitted_operations);
                if is_managed {
                    return Err(SourceError::Refused(reason));
                }
                tracing::warn!(reason, "somebody else's publication is used as it is");
            }
            if is_managed && !existing.publishes_all_tables {
                let partitions = partitions_of_wanted(sql, tables).await?;
                let is_strange = |table: &&QualifiedName| !tables.contains(table) && !partitions.contains(table);
                let strangers: Vec<_> = existing.named.keys().filter(is_strange).collect();
                if wanted.is_empty() {
                    refuse_empty_set(name, &strangers)?;
                }
                has_strangers = !strangers.is_empty();
                may_gain = !is_all_ours(sql, &existing, &wanted).await?;
                add_missing(sql, name, &existing, &wanted, additions).await?;
            }
        }
    }
    let mut publication = Publication {
        name: name.to_owned(),
        is_managed,
        tables: Vec::new(),
        others: Vec::new(),
        named: BTreeMap::new(),
        has_strangers,
        may_gain,
    };
    list_again(sql, &mut publication, tables).await?;
    if publication.tables.is_empty() {
        tracing::warn!(
            publication = name,
            "the publication covers no table of the table set; nothing will be replicated"
        );
    }
    Ok(publication)
}

/// Lists its tables as they are now. A partition of a wanted table is wanted, whatever its own name is.
pub async fn list_again(sql: &SqlClient, publication: &mut Publication, tables: &TableSet) -> Result<(), SourceError> {
    let partitions = partitions_of_wanted(sql, tables).await?;
    let is_wanted = |table: &QualifiedName| tables.contains(table) || partitions.contains(table);
    let published = published_tables(sql, &publication.name).await?;
    (publication.tables, publication.others) = published.into_iter().partition(is_wanted);
    publication.has_strangers |= !publication.others.is_empty();
    publication.named = named_tables(sql, &publication.name).await?;
    Ok(())
}

async fn existing(sql: &SqlClient, name: &str) -> Result<Option<Existing>, SourceError> {
    let context = || SourceError::sql(format!("reading the publication \"{name}\""));
    let query = "SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, \
                        pg_catalog.pg_has_role(current_user, pubowner, 'USAGE') \
                 FROM pg_catalog.pg_publication WHERE pubname = $1";
    let Some(row) = sql.query_opt(query, &[&name]).await.map_err(context())? else { return Ok(None) };
    let operations = ["insert", "update", "delete", "truncate"].into_iter().enumerate();
    Ok(Some(Existing {
        publishes_all_tables: row.get(0),
        omitted_operations: operations
            .filter(|(index, _)| !row.get::<_, bool>(index + 1))
            .map(|(_, word)| word)
            .collect(),
        is_owned: row.get(5),
        named: named_tables(sql, name).await?,
    }))
}

/// The tables that the publication names one by one, partitioned ones too, with their OIDs. The others come into it with a schema, a partitioned
/// parent or the database. Reads catalogs only, so no lock on a table holds it up.
pub async fn named_tables(sql: &SqlClient, name: &str) -> Result<BTreeMap<QualifiedName, u32>, SourceError> {
    let query = "SELECT n.nspname::text, c.relname::text, c.oid FROM pg_catalog.pg_publication_rel pr \
                 JOIN pg_catalog.pg_publication p ON p.oid = pr.prpubid JOIN pg_catalog.pg_class c ON c.oid = pr.prrelid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";
    let named = sql.query(query, &[&name]).await;
    let named = named.map_err(SourceError::sql(format!("reading the publication \"{name}\"")))?;
    Ok(named
        .iter()
        .map(|row| (QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2)))
        .collect())
}

/// Whether nobody but the role, or a superuser, may add tables of the set.
async fn is_all_ours(sql: &SqlClient, existing: &Existing, wanted: &[PublishableTable]) -> Result<bool, SourceError> {
    if !existing.is_owned {
        return Ok(false);
    }
    let owned = owned_tables(sql).await?;
    Ok(wanted.iter().all(|table| owned.contains(&table.name)))
}

/// A set that fits nothing is a mistake, where its tables are published.
fn refuse_empty_set(name: &str, strangers: &[&QualifiedName]) -> Result<(), SourceError> {
    if strangers.is_empty() {
        return Ok(());
    }
    let names = strangers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(SourceError::EmptySet(format!(
        "no table of the primary is of the set (tables, exclude), and the publication \"{name}\" holds {names}: look for a misspelt pattern"
    )))
}

/// What a publication that leaves operations out means, and what mends it.
fn omission(name: &str, omitted: &[&str]) -> String {
    format!(
        "the publication \"{name}\" does not publish {}; a standby would miss them: {}",
        omitted.join(", "),
        all_operations_sql(name)
    )
}

/// Has a publication publish all four operations.
pub fn all_operations_sql(name: &str) -> String {
    format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", escape_identifier(name))
}

/// `ONLY`, so that an inheritance child is published only if it is in the set itself; on a partitioned table it has no effect.
fn table_list<'a>(tables: impl Iterator<Item = &'a PublishableTable>) -> String {
    tables.map(|table| format!("ONLY {}", table.name.sql())).collect::<Vec<_>>().join(", ")
}

/// Makes a publication of these tables, or says who must.
async fn create_publication(sql: &SqlClient, name: &str, wanted: &[PublishableTable]) -> Result<(), SourceError> {
    let command = create_publication_sql(name, wanted);
    tracing::info!(publication = name, tables = wanted.len(), "creating the publication");
    run_or_refuse(sql, &command, &format!("creating the publication \"{name}\"")).await
}

/// The statement that makes a managed publication; run by a superuser where the role may not.
pub fn create_publication_sql(name: &str, wanted: &[PublishableTable]) -> String {
    let tables = table_list(wanted.iter());
    let for_tables = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {tables}") };
    format!("CREATE PUBLICATION {}{for_tables}", escape_identifier(name))
}

/// Drops a publication; whether there was one. Only its owner may.
pub async fn drop_publication(sql: &SqlClient, name: &str) -> Result<bool, SourceError> {
    if existing(sql, name).await?.is_none() {
        return Ok(false);
    }
    let command = format!("DROP PUBLICATION IF EXISTS {}", escape_identifier(name));
    run_or_refuse(sql, &command, &format!("dropping the publication \"{name}\"")).await?;
    Ok(true)
}

/// The wanted tables that the publication names neither themselves nor through a partitioned table above them.
async fn missing_tables<'a>(
    sql: &SqlClient,
    name: &str,
    existing: &Existing,
    wanted: &'a [PublishableTable],
) -> Result<Vec<&'a PublishableTable>, SourceError> {
    let covered: BTreeSet<QualifiedName> = published_tables(sql, name).await?.into_iter().collect();
    let is_missing = |table: &&PublishableTable| {
        let is_named = existing.named.contains_key(&table.name) || covered.contains(&table.name);
        !is_named && !table.ancestors.iter().any(|ancestor| existing.named.contains_key(ancestor))
    };
    Ok(wanted.iter().filter(is_missing).collect())
}

fn add_command(name: &str, missing: &[&PublishableTable]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", escape_identifier(name), table_list(missing.iter().copied()))
}

/// The statement that would add what an existing publication does not cover of the wanted tables; `None` when it covers all.
pub async fn missing_tables_sql(
    sql: &SqlClient,
    name: &str,
    wanted: &[PublishableTable],
) -> Result<Option<String>, SourceError> {
    let Some(existing) = existing(sql, name).await? else { return Ok(Some(create_publication_sql(name, wanted))) };
    if existing.publishes_all_tables {
        return Ok(None);
    }
    let missing = missing_tables(sql, name, &existing, wanted).await?;
    Ok((!missing.is_empty()).then(|| add_command(name, &missing)))
}

/// Tables that have come into the set of a managed publication since, and that this role may add to it.
pub async fn joining_tables(sql: &SqlClient, name: &str, tables: &TableSet) -> Result<Vec<QualifiedName>, SourceError> {
    match existing(sql, name).await? {
        None => Ok(Vec::new()),
        existing => may_be_added(sql, name, existing, tables).await,
    }
}

/// What the publication lacks of the set and the role may add.
async fn may_be_added(
    sql: &SqlClient,
    name: &str,
    existing: Option<Existing>,
    tables: &TableSet,
) -> Result<Vec<QualifiedName>, SourceError> {
    if existing.as_ref().is_some_and(|existing| existing.publishes_all_tables || !existing.is_owned) {
        return Ok(Vec::new());
    }
    let wanted = publishable_tables(sql, tables).await?;
    let mut missing = match existing {
        None => wanted.iter().collect(),
        Some(existing) => missing_tables(sql, name, &existing, &wanted).await?,
    };
    if !missing.is_empty() {
        let owned = owned_tables(sql).await?;
        missing.retain(|table| owned.contains(&table.name));
    }
    Ok(missing.into_iter().map(|table| table.name.clone()).collect())
}

async fn owned_tables(sql: &SqlClient) -> Result<BTreeSet<QualifiedName>, SourceError> {
    let query = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND pg_catalog.pg_has_role(current_user, c.relowner, 'USAGE')";
    let rows = sql.query(query, &[]).await.map_err(SourceError::sql("listing the tables that the role owns"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Tables that come into a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coming {
    /// As the publication will name them.
    pub tables: Vec<QualifiedName>,
    /// The names under which their changes will arrive: those of partitions.
    pub leaves: Vec<QualifiedName>,
    /// Partitions whose changes arrive already: each was published before it was attached.
    pub streaming: Vec<QualifiedName>,
}

/// The tables that `ensure_publication` would bring into a managed publication: those that the role may add.
pub async fn coming_tables(sql: &SqlClient, name: &str, tables: &TableSet) -> Result<Coming, SourceError> {
    let tables = may_be_added(sql, name, existing(sql, name).await?, tables).await?;
    if tables.is_empty() {
        return Ok(Coming::default());
    }
    let published: BTreeSet<QualifiedName> = published_tables(sql, name).await?.into_iter().collect();
    let (streaming, leaves) = leaves(sql, &tables).await?.into_iter().partition(|leaf| published.contains(leaf));
    Ok(Coming { tables, leaves, streaming })
}

async fn add_missing(
    sql: &SqlClient,
    name: &str,
    existing: &Existing,
    wanted: &[PublishableTable],
    additions: &Additions,
) -> Result<(), SourceError> {
    let mut missing = missing_tables(sql, name, existing, wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    if *additions == Additions::Later {
        let names = missing.iter().map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            publication = name,
            tables = names,
            "new tables are not replicated yet: they wait for another start, while this pipeline does not stand in synchronous_standby_names"
        );
        return Ok(());
    }
    if *additions != Additions::Now {
        missing = allowed(sql, name, existing, missing).await?;
    }
    if let Additions::Planned(planned) = additions {
        missing.retain(|table| planned.contains(&table.name));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let command = add_command(name, &missing);
    let context = format!("adding {} tables to the publication \"{name}\"", missing.len());
    if !existing.is_owned {
        return Err(refused_for_rights(&context, "the role does not own it", &command));
    }
    tracing::info!(publication = name, tables = missing.len(), "adding tables to the publication");
    if additions.is_open() {
        sql.batch_execute("BEGIN").await.map_err(SourceError::sql(context.as_str()))?;
    }
    run_or_refuse(sql, &command, &context).await
}

/// Ends the transaction of `Additions::Planned`; where nothing was to be added there is none.
pub async fn commit_publication(sql: &SqlClient, name: &str) -> Result<(), SourceError> {
    let committed = sql.batch_execute("COMMIT").await;
    committed.map_err(SourceError::sql(format!("adding tables to the publication \"{name}\"")))
}

/// Those of them that the role may add; warns of the others.
async fn allowed<'a>(
    sql: &SqlClient,
    name: &str,
    existing: &Existing,
    missing: Vec<&'a PublishableTable>,
) -> Result<Vec<&'a PublishableTable>, SourceError> {
    let owned = if existing.is_owned { owned_tables(sql).await? } else { BTreeSet::new() };
    let (allowed, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|table| owned.contains(&table.name));
    if !others.is_empty() {
        let whose = if existing.is_owned { "they" } else { "the publication" };
        let reason =
            format!("the role does not own {whose}; let the owner of both run: {}", add_command(name, &others));
        tracing::warn!(publication = name, reason, "new tables are not replicated");
    }
    Ok(allowed)
}

async fn run_or_refuse(sql: &SqlClient, command: &str, context: &str) -> Result<(), SourceError> {
    match sql.batch_execute(command).await {
        Ok(()) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let message = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            Err(refused_for_rights(context, &message, command))
        }
        Err(error) => Err(SourceError::sql(context)(error)),
    }
}

fn refused_for_rights(context: &str, why: &str, command: &str) -> SourceError {
    SourceError::Refused(format!("{context}: {why}; let the owner of the tables (or a superuser) run: {command}"))
}

async fn partitions_of_wanted(sql: &SqlClient, tables: &TableSet) -> Result<BTreeSet<QualifiedName>, SourceError> {
    let above = partitioned_above(sql).await?;
    let is_wanted = |ancestors: &[QualifiedName]| ancestors.iter().any(|ancestor| tables.contains(ancestor));
    Ok(above.into_iter().filter(|(_, ancestors)| is_wanted(ancestors)).map(|(partition, _)| partition).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managed_publication_names_each_table_quoted() {
        let table = |name: &str| PublishableTable {
            name: QualifiedName::new("public", name),
            is_partitioned: false,
            ancestors: Vec::new(),
        };
        assert_eq!(
            create_publication_sql("walrelay_a", &[table("t"), table("Odd \"name")]),
            "CREATE PUBLICATION \"walrelay_a\" FOR TABLE ONLY \"public\".\"t\", ONLY \"public\".\"Odd \"\"name\""
        );
        assert_eq!(create_publication_sql("walrelay_a", &[]), "CREATE PUBLICATION \"walrelay_a\"");
    }
}
