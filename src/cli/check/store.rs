//! The doctor at the relay's own schema and tables on a standby, which another role may have made. Makes nothing itself.

use postgres_protocol::escape::escape_identifier;

use crate::config::Pipeline;
use crate::sink::postgres::store::{foreign_objects_query, hand_over_sql};
use crate::snapshot::store as copy_record;
use crate::wire::WireError;
use crate::wire::sql::SqlClient;

use super::finding::{Finding, Findings};

/// Rights on them, whose they are, and a copy that was left unfinished. `role` is the session's own.
pub(super) async fn examine(
    standby: &SqlClient,
    pipeline: &Pipeline,
    role: &str,
    findings: &mut Findings,
) -> Result<(), WireError> {
    let place = pipeline.name.as_str();
    rights(standby, place, role, findings).await?;
    unfinished(standby, pipeline, findings).await?;
    for row in standby.query(&foreign_objects_query(), &[]).await? {
        let (object, owner): (String, String) = (row.get(0), row.get(1));
        let message = format!(
            "the {} belongs to the role \"{owner}\", and its triggers would run with the rights of \"{role}\"",
            object.to_lowercase()
        );
        let remedy = "look through its triggers, rules and defaults, then hand it over; where another pipeline's role made it, and you trust \
                      that role, grant it to this one instead (GRANT owner TO role); where no pipeline needs it, DROP SCHEMA walrelay CASCADE";
        findings.push(Finding::error(place, message, remedy).with_sql([hand_over_sql(&object, role)]));
    }
    Ok(())
}

/// Those of them that are there and can be read.
pub(super) async fn readable(standby: &SqlClient) -> Result<Vec<String>, WireError> {
    let query = "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'walrelay' AND c.relname IN ('progress', 'copy') \
                   AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')";
    Ok(standby.query(query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// A start that is to copy nothing refuses where a copy was begun.
async fn unfinished(standby: &SqlClient, pipeline: &Pipeline, findings: &mut Findings) -> Result<(), WireError> {
    // A right that is missing was found above.
    if pipeline.initial_copy || !readable(standby).await?.iter().any(|table| table == "copy") {
        return Ok(());
    }
    let name = &pipeline.name;
    match copy_record::load(standby, name).await {
        Ok(state) if state.is_unfinished() => {
            let message = format!(
                "initial_copy = false, but the copy of \"{name}\" was begun and is not finished (table walrelay.copy on the standby): rows \
                 are missing there"
            );
            let remedy = format!("set initial_copy = true to finish it, or start over: walrelay drop {name} --yes");
            findings.push(Finding::error(name.as_str(), message, remedy));
        }
        Ok(_) => {}
        Err(error) => findings.push(Finding::error(name.as_str(), error.to_string(), "")),
    }
    Ok(())
}

async fn rights(standby: &SqlClient, place: &str, role: &str, findings: &mut Findings) -> Result<(), WireError> {
    let query = "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = 'walrelay' AND c.relkind = 'r' AND c.relname IN ('progress', 'copy') AND EXISTS ( \
                 SELECT FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r WHERE NOT pg_catalog.has_table_privilege(c.oid, r))";
    for row in standby.query(query, &[]).await? {
        let table: String = row.get(0);
        let sql = format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON walrelay.{} TO {}",
            escape_identifier(&table),
            escape_identifier(role)
        );
        let message = format!("the table walrelay.{table} was made by another role, and \"{role}\" may not write it");
        findings.push(Finding::error(place, message, "grant it").with_sql([sql]));
    }
    // Only its owner may replace it.
    let query = "SELECT p.proname::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE n.nspname = 'walrelay' AND p.proname = 'guard_' || $1 AND NOT pg_catalog.pg_has_role(current_user, p.proowner, 'USAGE')";
    if let Some(row) = standby.query_opt(query, &[&place]).await? {
        let function: String = row.get(0);
        let role_sql = escape_identifier(role);
        let sql = format!("ALTER FUNCTION walrelay.{}() OWNER TO {role_sql}", escape_identifier(&function));
        let message = format!("the function walrelay.{function} belongs to another role than \"{role}\"");
        findings.push(Finding::error(place, message, "hand it over").with_sql([sql]));
    }
    Ok(())
}
