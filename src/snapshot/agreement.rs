//! Whether a stream may carry binary values: looks at the types of all published columns on both servers. Writes nothing.

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::schema::binary::BinaryTypes;
use crate::wire::sql::SqlClient;

use super::error::SnapshotError;
use super::{published, session, standby};

/// What both servers say of the types of a publication's columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Types that are alike.
    pub types: BinaryTypes,
    /// Columns whose values must be text, each with the types on both sides: one of them, and all do.
    pub differing: Vec<String>,
}

/// Compares the column types of the published tables, by the names under which their changes arrive. Tables and columns that the
/// standby lacks say nothing; columns that are not published count too.
pub async fn agreement(
    primary: &SqlClient,
    (standby, pipeline): (&ServerUrl, &PipelineName),
    tables: &[QualifiedName],
) -> Result<Agreement, SnapshotError> {
    let columns = published::column_types(primary, tables).await?;
    let standby = session::standby_sql(standby, pipeline).await?;
    let names: Vec<&QualifiedName> = tables.iter().collect();
    let found = standby::read(&standby, &names).await?;
    let mut agreement = Agreement::default();
    for ((name, columns), found) in tables.iter().zip(&columns).zip(&found) {
        let Some((_, table)) = found else { continue };
        for column in columns {
            let ours = &column.column_type;
            let Some(theirs) = table.column_type(&column.name) else { continue };
            if !agreement.types.note(ours, theirs) {
                agreement.differing.push(format!(
                    "{name}, column \"{}\" ({} on the primary, {} on the standby)",
                    column.name,
                    ours.name(),
                    theirs.name()
                ));
            }
        }
    }
    Ok(agreement)
}
