//! Table patterns, `schema.table` with `*` for any run of characters. Pure matching; knows no catalog.

use std::fmt;

use crate::model::QualifiedName;

/// A pattern that breaks the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a table pattern: it must be schema.table, where * stands for any characters, e.g. public.* or sales.order_*"
)]
pub struct PatternError(pub String);

/// One `schema.table` pattern. A name in it is matched exactly as the catalog has it: case counts, nothing is quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: String,
    table: String,
}

impl TablePattern {
    /// Splits at the first dot; both sides must be there.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                Ok(Self { schema: schema.to_owned(), table: table.to_owned() })
            }
            _ => Err(PatternError(text.to_owned())),
        }
    }

    /// Whether the table's name matches.
    pub fn matches(&self, name: &QualifiedName) -> bool {
        glob_matches(&self.schema, &name.schema) && glob_matches(&self.table, &name.name)
    }

    /// The table itself, if the pattern has no `*`.
    pub fn exact(&self) -> Option<QualifiedName> {
        let is_exact = !self.schema.contains('*') && !self.table.contains('*');
        is_exact.then(|| QualifiedName::new(self.schema.clone(), self.table.clone()))
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.table)
    }
}

/// `*` matches any run of characters; everything else matches itself.
pub(super) fn glob_matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or("");
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

/// `tables` minus `exclude`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSet {
    /// At least one; the default is `*.*`.
    pub include: Vec<TablePattern>,
    /// May be empty.
    pub exclude: Vec<TablePattern>,
}

impl TableSet {
    /// Whether the table belongs to the set.
    pub fn contains(&self, name: &QualifiedName) -> bool {
        self.include.iter().any(|pattern| pattern.matches(name)) && !self.excludes(name)
    }

    /// Whether a pattern leaves it out.
    pub fn excludes(&self, name: &QualifiedName) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_run_of_characters() {
        for (pattern, name, expected) in [
            ("public.*", "public.orders", true),
            ("public.*", "sales.orders", false),
            ("*.orders", "sales.orders", true),
            ("public.order_*_x", "public.order_1_2_x", true),
            ("public.order_*_x", "public.order_x", false),
            ("public.a*a", "public.a", false),
            ("public.a*a", "public.aa", true),
            ("public.*a*b*", "public.xaxbx", true),
            ("public.*a*b*", "public.xbxax", false),
            ("public.Orders", "public.orders", false),
            ("public.odd.name", "public.odd.name", true),
        ] {
            let (schema, table) = name.split_once('.').unwrap();
            let matches = TablePattern::new(pattern).unwrap().matches(&QualifiedName::new(schema, table));
            assert_eq!(matches, expected, "{pattern} against {name}");
        }
    }

    #[test]
    fn a_pattern_without_both_sides_is_refused() {
        for text in ["", "orders", ".orders", "public."] {
            assert!(TablePattern::new(text).is_err(), "{text}");
        }
    }
}
