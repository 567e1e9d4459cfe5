//! Tables that are about to come into a publication: whether the standby can take them is asked before anything is changed for them, and
//! then they stand in the plan. Copies nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{OnExistingRows, Pipeline, ServerUrl};
use crate::model::{PipelineName, QualifiedName};
use crate::source::{named_tables, published_tables};
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, names, server};
use super::store::TableState;
use super::{OWN_SCHEMA, members, published, renamed, session, standby, store};

/// Refuses, with everything that is missing or in the way, what the copy would refuse. Where a copy was made before, the tables are
/// written into its plan: the publication alone does not tell a partition that came with a new table from one of an old table.
pub async fn plan_coming(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if tables.is_empty() {
        return Ok(());
    }
    let (client, _) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    look_for_places(primary, &client, pipeline, tables).await?;
    write_plan(&client, &pipeline.name, tables).await
}

async fn look_for_places(
    primary: &SqlClient,
    client: &SqlClient,
    pipeline: &Pipeline,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    let mut columns = published::column_types(primary, tables).await?;
    columns.iter_mut().for_each(|columns| columns.retain(|column| !column.is_generated));
    let found = standby::fitting(client, tables.iter().zip(columns.iter().map(Vec::as_slice))).await?;
    if pipeline.on_existing_rows == OnExistingRows::Refuse {
        let found: Vec<_> = tables.iter().zip(&found).collect();
        let full = standby::non_empty(client, &found).await?;
        if !full.is_empty() {
            return Err(SnapshotError::NotEmpty(full));
        }
    }
    Ok(())
}

/// The same for tables that are published already: what is in their way stops the copy, which knows of them then.
pub async fn plan_published(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if tables.is_empty() {
        return Ok(());
    }
    let (client, _) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    write_plan(&client, &pipeline.name, tables).await
}

/// A session on the standby, whose record has followed renamed tables: a name that a copied table had may be another's now. And whether
/// there is such a record.
async fn by_the_names_of_now(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &PipelineName,
) -> Result<(SqlClient, bool), SnapshotError> {
    let mut client = session::standby_sql(url, pipeline).await?;
    let has_record = renamed::follow(primary, &mut client, pipeline).await?;
    Ok((client, has_record))
}

/// Durable when it returns: behind it the publication is changed on the other server, for good.
async fn write_plan(
    client: &SqlClient,
    pipeline: &PipelineName,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if store::load(client, pipeline).await?.tables.is_empty() {
        return Ok(());
    }
    make_durable(client).await?;
    let planned = store::plan_more(client, pipeline, tables).await;
    planned.map_err(|error| server(Side::Standby, "write the plan into walrelay.copy", error))
}

async fn make_durable(client: &SqlClient) -> Result<(), SnapshotError> {
    let durable = client.batch_execute("SET synchronous_commit = local").await;
    durable.map_err(|error| server(Side::Standby, "set synchronous_commit", error))
}

/// What becomes of tables that come into the set, or back into it, and are published already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returning {
    /// They are copied; a standby that has no place for them refuses the start.
    Copied,
    /// The same, but without a place they stay out until another start: the others go on.
    CopiedIfFit,
    /// They stay out until another start: while commits may wait for us, nothing is copied.
    Later,
    /// Nobody copies them: their changes are applied from now on, and what was left out stays missing.
    Uncopied,
}

/// What a publication holds.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// Its name.
    pub publication: &'a str,
    /// Tables of the set.
    pub wanted: &'a [QualifiedName],
    /// Others.
    pub others: &'a [QualifiedName],
    /// What it names one by one, with the OIDs.
    pub named: &'a BTreeMap<QualifiedName, u32>,
}

/// What the record said before, and what becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Tables that come into the set, and are to stay out.
    pub stay_out: Vec<QualifiedName>,
    /// Those that were copied, and not left out since.
    pub copied: Vec<QualifiedName>,
}

/// Notes which published tables are not of the set, before their changes are left out: one that comes into it lacks them, and is to be
/// copied. A start that is refused changes nothing.
pub async fn note_set(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    published: Published<'_>,
    returning: Returning,
) -> Result<Noted, SnapshotError> {
    // A new name may be what takes a table out of the set.
    let (mut client, has_record) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    let recorded = if has_record { store::load(&client, &pipeline.name).await?.tables } else { BTreeMap::new() };
    // Without a record nothing was copied, and all that is published is of one kind.
    if recorded.is_empty() {
        return Ok(Noted::default());
    }
    refuse_other_names(primary, published, &recorded).await?;
    let (mut coming, others) = coming_back(&recorded, published);
    match returning {
        Returning::Uncopied => coming.clear(),
        Returning::Later => {
            // They may have streamed from the first row on, so they go on.
            let new = come_with_others(primary, &client, &recorded, published, others).await?;
            if !new.is_empty() {
                let tables = names(&new);
                tracing::warn!(
                    tables,
                    "came with a parent or a schema that seems new to the publication: what they held before is not copied while this pipeline stands \
                     in synchronous_standby_names. To have it, take the pipeline out of there, empty them on the standby, and start again"
                );
            }
        }
        _ => coming.extend(come_with_others(primary, &client, &recorded, published, others).await?),
    }
    let (back, stay_out) = match returning {
        _ if coming.is_empty() => (Vec::new(), Vec::new()),
        Returning::Later => {
            let tables = names(&coming);
            tracing::warn!(
                tables,
                "come into the set, and are left out until a start while this pipeline does not stand in synchronous_standby_names"
            );
            (Vec::new(), coming)
        }
        _ => match look_for_places(primary, &client, pipeline, &coming).await {
            Err(error @ (SnapshotError::Unfit(_) | SnapshotError::NotEmpty(_)))
                if returning == Returning::CopiedIfFit =>
            {
                let tables = names(&coming);
                tracing::warn!(tables, %error, "come into the set, and are left out until the next start; the others go on");
                (Vec::new(), coming)
            }
            looked => (looked.map(|()| coming)?, Vec::new()),
        },
    };
    let left: Vec<_> = published.others.iter().chain(&stay_out).cloned().collect();
    let gone = unpublished(primary, &recorded, published).await?;
    if write_set(&client, &pipeline.name, &back, &left, &gone).await? > 0 {
        // It notes which tables these are: one may get a name of the set.
        renamed::follow(primary, &mut client, &pipeline.name).await?;
    }
    let is_copied = |(_, state): &(&QualifiedName, &TableState)| matches!(state, TableState::Done { .. });
    let copied = recorded.iter().filter(is_copied).map(|(name, _)| name.clone()).collect();
    Ok(Noted { stay_out, copied })
}

/// The record has followed names since the publication was listed: both must speak of the same tables.
async fn refuse_other_names(
    primary: &SqlClient,
    published: Published<'_>,
    recorded: &BTreeMap<QualifiedName, TableState>,
) -> Result<(), SnapshotError> {
    let now: BTreeSet<_> = published_tables(primary, published.publication).await?.into_iter().collect();
    let named = named_tables(primary, published.publication).await?;
    let listed: BTreeSet<_> = published.wanted.iter().chain(published.others).cloned().collect();
    // Others come and go as they like.
    let is_other = |table: &QualifiedName| {
        now.contains(table) != listed.contains(table) || named.get(table) != published.named.get(table)
    };
    if !recorded.keys().any(is_other) {
        return Ok(());
    }
    Err(SnapshotError::Disturbed("the publication's tables have changed while they were looked at".to_owned()))
}

/// Those of the wanted tables whose rows are to be copied: that were left out, and that somebody has added to the publication by name, made
/// again or not. And those that came otherwise, and are not recorded.
fn coming_back(
    recorded: &BTreeMap<QualifiedName, TableState>,
    published: Published<'_>,
) -> (Vec<QualifiedName>, Vec<QualifiedName>) {
    let (mut coming, mut others) = (Vec::new(), Vec::new());
    for table in published.wanted.iter().filter(|table| table.schema != OWN_SCHEMA) {
        match (recorded.get(table), published.named.get(table)) {
            (Some(TableState::Left), _) | (None, Some(_)) => coming.push(table.clone()),
            (Some(TableState::Done { relation_oid: Some(copied), .. }), Some(now)) if copied != now => {
                coming.push(table.clone());
            }
            (None, None) => others.push(table.clone()),
            (Some(_), _) => {}
        }
    }
    (coming, others)
}

/// Those of `others` that came with a parent or a schema which is new to the publication, and of which the standby holds nothing. The rest has
/// streamed from its first row on.
async fn come_with_others(
    primary: &SqlClient,
    client: &SqlClient,
    recorded: &BTreeMap<QualifiedName, TableState>,
    published: Published<'_>,
    others: Vec<QualifiedName>,
) -> Result<Vec<QualifiedName>, SnapshotError> {
    let copied = recorded.iter().filter(|(_, state)| **state != TableState::Left).map(|(name, _)| name.clone());
    let copied: Vec<QualifiedName> = copied.collect();
    let new = members::without_a_known_way(primary, published.publication, &copied, &others).await?;
    // What holds rows of a stream tells of its way as well as what was copied.
    let (empty, full) = standby::empty_and_full(client, &new).await?;
    members::without_a_known_way(primary, published.publication, &full, &empty).await
}

/// Copied tables that somebody has taken out of the publication: what is written to them is not in the stream.
async fn unpublished(
    primary: &SqlClient,
    recorded: &BTreeMap<QualifiedName, TableState>,
    published: Published<'_>,
) -> Result<Vec<QualifiedName>, SnapshotError> {
    let listed: BTreeSet<&QualifiedName> = published.wanted.iter().chain(published.others).collect();
    let is_missing = |(name, state): &(&QualifiedName, &TableState)| {
        matches!(state, TableState::Done { .. }) && !listed.contains(name)
    };
    let missing: Vec<QualifiedName> = recorded.iter().filter(is_missing).map(|(name, _)| name.clone()).collect();
    if missing.is_empty() {
        return Ok(missing);
    }
    members::unpublished(primary, &listed.into_iter().collect::<Vec<_>>(), &missing).await
}

/// Gives how many are newly left out.
async fn write_set(
    client: &SqlClient,
    pipeline: &PipelineName,
    back: &[QualifiedName],
    left: &[QualifiedName],
    unpublished: &[QualifiedName],
) -> Result<u64, SnapshotError> {
    let failed =
        |error: tokio_postgres::Error| server(Side::Standby, "note in walrelay.copy what is of the set", error);
    make_durable(client).await?;
    let (schemas, tables) = QualifiedName::parts(back);
    let update = "UPDATE walrelay.copy SET state = 'pending', snapshot_lsn = NULL, rows = 0, bytes = 0, has_left = false, \
                  updated_at = pg_catalog.now() WHERE pipeline = $1 AND has_left \
                  AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    client.execute(update, &[&pipeline.as_str(), &schemas, &tables]).await.map_err(failed)?;
    store::plan_more(client, pipeline, back).await.map_err(failed)?;
    let mut left = store::leave_out(client, pipeline, left).await.map_err(failed)?;
    left += store::leave_passed(client, pipeline, unpublished).await.map_err(failed)?;
    let back = back.len() as u64;
    if left + back > 0 {
        tracing::info!(left, back, "published tables have left the set, or come back into it with a new copy");
    }
    Ok(left)
}
