//! Tables that are about to come into a publication: whether the standby can take them is asked before anything is changed for them, and
//! then they stand in the plan. Copies nothing.

use crate::config::{OnExistingRows, Pipeline, ServerUrl};
use crate::model::{PipelineName, QualifiedName};
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, server};
use super::{published, renamed, session, standby, store};

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

/// What becomes of copied tables that left the set and come back into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returning {
    /// They are copied anew; a standby that has no place for them refuses the start.
    Copied,
    /// The same, but without a place they stay out until another start: the others go on.
    CopiedIfFit,
    /// They stay out until another start: while commits may wait for us, nothing is copied.
    Later,
    /// Nobody copies them: their changes are applied from now on, and what was left out stays missing.
    Uncopied,
}

/// Notes which copied tables have left the set, before their changes are left out: one that comes back lacks them, and is to be copied anew.
/// Gives those that come back and are to stay out. A start that is refused changes nothing.
pub async fn note_set(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    (wanted, others): (&[QualifiedName], &[QualifiedName]),
    returning: Returning,
) -> Result<Vec<QualifiedName>, SnapshotError> {
    // A new name may be what takes a table out of the set.
    let (client, has_record) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    if !has_record {
        return Ok(Vec::new());
    }
    let come_back = match returning {
        Returning::Uncopied => Vec::new(),
        _ => have_left(&client, &pipeline.name, wanted).await?,
    };
    let (back, stay_out) = match returning {
        _ if come_back.is_empty() => (Vec::new(), Vec::new()),
        Returning::Later => {
            let tables = listed(&come_back);
            tracing::warn!(
                tables,
                "come back into the set, and are left out until a start while this pipeline does not stand in synchronous_standby_names"
            );
            (Vec::new(), come_back)
        }
        _ => match look_for_places(primary, &client, pipeline, &come_back).await {
            Err(error @ (SnapshotError::Unfit(_) | SnapshotError::NotEmpty(_)))
                if returning == Returning::CopiedIfFit =>
            {
                let tables = listed(&come_back);
                tracing::warn!(tables, %error, "come back into the set, and are left out until the next start; the others go on");
                (Vec::new(), come_back)
            }
            looked => (looked.map(|()| come_back)?, Vec::new()),
        },
    };
    write_set(&client, &pipeline.name, &back, others).await?;
    Ok(stay_out)
}

fn listed(tables: &[QualifiedName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn parts(tables: &[QualifiedName]) -> (Vec<&str>, Vec<&str>) {
    tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip()
}

async fn have_left(
    client: &SqlClient,
    pipeline: &PipelineName,
    wanted: &[QualifiedName],
) -> Result<Vec<QualifiedName>, SnapshotError> {
    let (schemas, tables) = parts(wanted);
    let query = "SELECT schema_name, table_name FROM walrelay.copy WHERE pipeline = $1 AND has_left \
                 AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[])) ORDER BY 1, 2";
    let rows = client.query(query, &[&pipeline.as_str(), &schemas, &tables]).await;
    let rows = rows.map_err(|error| server(Side::Standby, "read walrelay.copy", error))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Whatever a table's copy had come to when it left counts for nothing: its row tells only that it was of the set.
async fn write_set(
    client: &SqlClient,
    pipeline: &PipelineName,
    back: &[QualifiedName],
    left: &[QualifiedName],
) -> Result<(), SnapshotError> {
    let failed =
        |error: tokio_postgres::Error| server(Side::Standby, "note in walrelay.copy what is of the set", error);
    make_durable(client).await?;
    let (schemas, tables) = parts(back);
    let update = "UPDATE walrelay.copy SET state = 'pending', snapshot_lsn = NULL, rows = 0, bytes = 0, has_left = false, \
                  updated_at = pg_catalog.now() WHERE pipeline = $1 AND has_left \
                  AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    let back = client.execute(update, &[&pipeline.as_str(), &schemas, &tables]).await.map_err(failed)?;
    let (schemas, tables) = parts(left);
    let update = "UPDATE walrelay.copy SET state = 'done', snapshot_lsn = COALESCE(snapshot_lsn, '0/0'), has_left = true, \
                  updated_at = pg_catalog.now() WHERE pipeline = $1 AND NOT has_left \
                  AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    let left = client.execute(update, &[&pipeline.as_str(), &schemas, &tables]).await.map_err(failed)?;
    if left + back > 0 {
        tracing::info!(left, back, "copied tables have left the set, or come back into it with a new copy");
    }
    Ok(())
}
