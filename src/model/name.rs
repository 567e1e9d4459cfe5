//! Names with rules: pipelines, slots, and schema-qualified relations. Quoting for SQL lives here so that no one forgets it.

use std::fmt;

use postgres_protocol::escape::escape_identifier;
use sha2::{Digest, Sha256};

/// Longest identifier and `application_name`, bytes (`NAMEDATALEN` - 1).
const IDENTIFIER_LIMIT_BYTES: usize = 63;

/// A name that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" cannot be a {kind} name: it must match [a-z0-9_]{{1,{limit}}}")]
pub struct NameError {
    kind: &'static str,
    value: String,
    limit: usize,
}

fn checked(kind: &'static str, value: &str, limit: usize) -> Result<String, NameError> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if value.is_empty() || value.len() > limit || !value.bytes().all(is_allowed) {
        return Err(NameError { kind, value: value.to_owned(), limit });
    }
    Ok(value.to_owned())
}

/// A pipeline's name, `[a-z0-9_]{1,54}`: the `application_name` the primary lists. With `walrelay_` before it, it still fits
/// into the 63 bytes of a slot name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipelineName(String);

impl PipelineName {
    /// Longest allowed name, bytes.
    pub const LIMIT_BYTES: usize = 54;

    /// Checks the rule.
    pub fn new(value: &str) -> Result<Self, NameError> {
        checked("pipeline", value, Self::LIMIT_BYTES).map(Self)
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `application_name` of a session that is not the stream: `walrelay NAME ROLE`, never equal to a pipeline's name. The
    /// server cuts what is longer than 63 bytes, and with it the role; so a long NAME is cut here, with a digest to stay unique.
    pub fn session_name(&self, role: &str) -> String {
        let whole = format!("walrelay {} {role}", self.0);
        let Some(surplus) = whole.len().checked_sub(IDENTIFIER_LIMIT_BYTES).filter(|surplus| *surplus > 0) else {
            return whole;
        };
        let digest: String =
            Sha256::digest(self.0.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let kept = self.0.len().saturating_sub(surplus + digest.len());
        format!("walrelay {}{digest} {role}", self.0.get(..kept).unwrap_or(""))
    }

    /// The name of everything this pipeline owns by default (slot, publication, origin): `walrelay_NAME`.
    pub fn owned_name(&self) -> String {
        format!("walrelay_{}", self.0)
    }
}

impl fmt::Display for PipelineName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A replication slot's name, `[a-z0-9_]{1,63}` (`ReplicationSlotValidateName` in `src/backend/replication/slot.c`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// Checks the rule.
    pub fn new(value: &str) -> Result<Self, NameError> {
        checked("slot", value, 63).map(Self)
    }

    /// `walrelay_NAME`, which obeys the slot's rule because the pipeline's name does.
    pub fn owned_by(pipeline: &PipelineName) -> Self {
        Self(pipeline.owned_name())
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A relation's schema and name, exactly as the catalog has them (not quoted).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    /// `pg_namespace.nspname`.
    pub schema: String,
    /// `pg_class.relname`.
    pub name: String,
}

impl QualifiedName {
    /// From the two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Schemas and names, each a list for a parameter.
    pub fn parts<'a>(tables: impl IntoIterator<Item = &'a QualifiedName>) -> (Vec<&'a str>, Vec<&'a str>) {
        tables.into_iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip()
    }

    /// `"schema"."name"`, quoted for SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", escape_identifier(&self.schema), escape_identifier(&self.name))
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outside_its_rule_is_refused_with_the_rule() {
        for value in ["", "Standby", "a-b", "ä", &"x".repeat(55)] {
            let error = PipelineName::new(value).unwrap_err().to_string();
            assert!(error.contains("[a-z0-9_]{1,54}"), "{error}");
        }
        assert!(PipelineName::new(&"x".repeat(54)).is_ok());
        assert!(SlotName::new(&PipelineName::new(&"x".repeat(54)).unwrap().owned_name()).is_ok());
    }

    #[test]
    fn a_session_name_keeps_its_role_and_fits() {
        let short = PipelineName::new("standby1").unwrap();
        assert_eq!(short.session_name("apply"), "walrelay standby1 apply");
        let [one, other] = ["a", "b"].map(|end| PipelineName::new(&format!("{}{end}", "x".repeat(53))).unwrap());
        for role in ["control", "apply", "flush", "copy"] {
            let name = one.session_name(role);
            assert!(name.len() == 63 && name.ends_with(&format!(" {role}")), "{name}");
            assert_ne!(name, other.session_name(role));
        }
    }

    #[test]
    fn a_qualified_name_is_quoted_for_sql() {
        let name = QualifiedName::new("Odd \"schema", "t");
        assert_eq!(name.sql(), "\"Odd \"\"schema\".\"t\"");
    }
}
