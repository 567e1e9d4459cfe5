//! Who owns the replicated tables of a standby: what he hangs on them runs with the rights of the relay's role. Judges nobody whom
//! that role has to trust anyway.

use crate::model::{QualifiedName, listed};
use crate::sink::postgres::store::trusted_owner_sql;
use crate::wire::WireError;
use crate::wire::sql::SqlClient;

use super::finding::{Finding, Findings, Level};
use super::named::NAMED_TABLES;

/// Names the owners who have no rights over `role`, the session's own, and would get them.
pub(super) async fn examine(
    standby: &SqlClient,
    place: &str,
    role: &str,
    tables: &[QualifiedName],
    findings: &mut Findings,
) -> Result<(), WireError> {
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT owner.rolname::text, \
         pg_catalog.array_agg(pg_catalog.format('%I.%I', s.nspname, c.relname) ORDER BY s.nspname, c.relname) \
         FROM {NAMED_TABLES} JOIN pg_catalog.pg_roles owner ON owner.oid = c.relowner \
         WHERE c.relkind IN ('r', 'p') AND NOT {} GROUP BY 1 ORDER BY 1",
        trusted_owner_sql("c.relowner")
    );
    for row in standby.query(&query, &[&schemas, &names]).await? {
        let (owner, tables): (String, Vec<String>) = (row.get(0), row.get(1));
        let message = format!(
            "the role \"{owner}\" owns {} on the standby: constraints, index expressions, generated columns, domains and triggers for \
             replicas that it puts there run with the rights of \"{role}\"",
            listed(&tables)
        );
        let remedy = "let walrelay's role or a superuser own them, or trust that owner as much as walrelay's role";
        findings.push(Finding::new(Level::Info, place, message, remedy));
    }
    Ok(())
}
