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

/// Compares the column types of the publication's tables, by the names under which their changes arrive. Tables and columns that
/// the standby lacks say nothing.
pub async fn agreement(
    primary: &SqlClient,
    (standby, pipeline): (&ServerUrl, &PipelineName),
    publication: &str,
    tables: &[QualifiedName],
    version_number: u32,
) -> Result<Agreement, SnapshotError> {
    let published = published::tables(primary, publication, tables, version_number).await?;
    let standby = session::standby_sql(standby, pipeline).await?;
    let found = standby::read(&standby, &published).await?;
    let mut agreement = Agreement::default();
    for (published, found) in published.iter().zip(&found) {
        let Some((_, table)) = found else { continue };
        for column in &published.columns {
            let Some(theirs) = table.column_type(&column.name) else { continue };
            let ours = &column.column_type;
            if !agreement.types.note(ours, theirs) {
                agreement.differing.push(format!(
                    "{}, column \"{}\" ({} on the primary, {} on the standby)",
                    published.name,
                    column.name,
                    ours.name(),
                    theirs.name()
                ));
            }
        }
    }
    Ok(agreement)
}
