//! Tables that the copy may not ANALYZE: the server only warns and skips them, and who reads the standby gets poor plans until
//! autovacuum has been there. Gathers nothing itself.

use postgres_protocol::escape::escape_identifier;

use crate::model::{QualifiedName, listed};
use crate::snapshot::MAY_ANALYZE;
use crate::wire::WireError;
use crate::wire::sql::SqlClient;

use super::finding::{Finding, Findings};
use super::named::NAMED_TABLES;

/// Names those of the tables that are to be copied, and that `role`, the session's own, may not ANALYZE.
pub(super) async fn examine(
    standby: &SqlClient,
    place: &str,
    role: &str,
    tables: &[QualifiedName],
    findings: &mut Findings,
) -> Result<(), WireError> {
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT pg_catalog.format('%I.%I', s.nspname, c.relname), pg_catalog.current_setting('server_version_num')::int4 >= 170000 \
         FROM {NAMED_TABLES} WHERE c.relkind IN ('r', 'p') AND NOT ({MAY_ANALYZE}) ORDER BY 1"
    );
    let rows = standby.query(&query, &[&schemas, &names]).await?;
    let Some(first) = rows.first() else { return Ok(()) };
    let list: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let message = format!(
        "the role \"{role}\" may not ANALYZE {} on the standby: once copied they have no statistics until autovacuum gathers them",
        listed(&list)
    );
    // The right of its own came with version 17.
    let finding = match first.get::<_, bool>(1) {
        true => {
            let sql = format!("GRANT MAINTAIN ON {} TO {}", list.join(", "), escape_identifier(role));
            Finding::warning(place, message, "grant it").with_sql([sql])
        }
        false => {
            let remedy = "let the role own them, or run ANALYZE as their owner once they are copied";
            Finding::warning(place, message, remedy)
        }
    };
    findings.push(finding);
    Ok(())
}
