//! The statements that make a missing table on the standby, where that is simple. Pure text; `pg_dump --schema-only` knows more
//! (indexes, defaults, constraints).

use postgres_protocol::escape::escape_identifier;

use crate::schema::TableShape;

/// Schema and table with the columns and the key of the primary's, and what `role` needs on them. `None` for a partition, and where
/// the table has generated columns or types that are not built in.
pub(super) fn create_table_sql(shape: &TableShape, role: &str, rights: &[&str]) -> Option<Vec<String>> {
    // format_type names the schema of every type that is not in pg_catalog.
    let is_simple = |name: &str| !name.contains(['.', '"']);
    // A partition belongs under its partitioned table, with bounds that only pg_dump brings.
    let is_partition = !shape.ancestors.is_empty();
    // Nor does this say which of its keys are deferrable.
    if is_partition
        || !shape.deferrable_keys.is_empty()
        || shape.columns.iter().any(|column| column.is_generated || !is_simple(&column.type_name))
    {
        return None;
    }
    let name = shape.qualified_name();
    let mut lines: Vec<String> = shape
        .columns
        .iter()
        .map(|column| {
            let not_null = if column.is_not_null { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", escape_identifier(&column.name), column.type_name)
        })
        .collect();
    if !shape.key_columns.is_empty() {
        let key: Vec<String> = shape.key_columns.iter().map(|column| escape_identifier(column)).collect();
        lines.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    let (schema, role) = (escape_identifier(&name.schema), escape_identifier(role));
    Some(vec![
        format!("CREATE SCHEMA IF NOT EXISTS {schema}"),
        format!("CREATE TABLE {} ({})", name.sql(), lines.join(", ")),
        format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
        format!("GRANT {} ON {} TO {role}", rights.join(", "), name.sql()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::read_shapes;

    #[test]
    fn a_simple_table_is_written_out_and_another_is_left_to_pg_dump() {
        let shape = |type_name: &str| {
            let text = format!(
                r#"{{"schema":"public","name":"t","oid":1,"kind":"r","replica_identity":"d","columns":[
                {{"name":"Id","type_oid":23,"type_name":"{type_name}","is_not_null":true,"is_generated":false,"identity":"",
                 "has_default":false,"equality_schema":"pg_catalog"}}],"key_columns":["Id"],"partitions":[],"ancestors":[],
                 "has_replica_actions":false}}"#
            );
            read_shapes([text.as_str()]).unwrap().remove(0)
        };
        let sql = create_table_sql(&shape("numeric(10,2)"), "relay", &["SELECT", "INSERT"]).unwrap();
        assert_eq!(sql[1], "CREATE TABLE \"public\".\"t\" (\"Id\" numeric(10,2) NOT NULL, PRIMARY KEY (\"Id\"))");
        assert_eq!(sql[3], "GRANT SELECT, INSERT ON \"public\".\"t\" TO \"relay\"");
        assert_eq!(create_table_sql(&shape("public.mood"), "relay", &[]), None);
    }
}
