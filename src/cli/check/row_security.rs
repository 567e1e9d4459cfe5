//! Row-level security, the same question on both sides: a policy that applies to the relay's role would hide rows from the copy
//! or refuse rows of the stream, so the relay's sessions run with `row_security = off`, which fails on such a table.

use postgres_protocol::escape::escape_identifier;

use crate::model::QualifiedName;
use crate::wire::WireError;
use crate::wire::sql::SqlClient;

use super::finding::{Finding, Findings};
use super::named::NAMED_TABLES;

/// Names the tables whose policies apply to `role`, the session's own.
pub(super) async fn examine(
    client: &SqlClient,
    place: &str,
    role: &str,
    tables: &[QualifiedName],
    findings: &mut Findings,
) -> Result<(), WireError> {
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT pg_catalog.format('%I.%I', s.nspname, c.relname) FROM {NAMED_TABLES} \
         WHERE c.relkind IN ('r', 'p') AND pg_catalog.row_security_active(c.oid) ORDER BY 1"
    );
    let rows = client.query(&query, &[&schemas, &names]).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let message = format!("row-level security would apply to the role \"{role}\" on {}", list.join(", "));
    let sql = format!("ALTER ROLE {} BYPASSRLS", escape_identifier(role));
    findings.push(Finding::error(place, message, "let the role pass it by, or exclude the tables").with_sql([sql]));
    Ok(())
}
