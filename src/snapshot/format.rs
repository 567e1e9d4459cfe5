//! Which COPY format a table can take: binary only where the bytes certainly mean the same on both servers. Pure.

use crate::schema::binary::ColumnType;

/// `FORMAT` of a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The types' own send and receive functions.
    Binary,
    /// Through the types' text, which any target type that can read it takes.
    Text,
}

impl Format {
    /// The word in a COPY command.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Format::Binary => "binary",
            Format::Text => "text",
        }
    }
}

/// Binary if every pair of (primary's, standby's) column types allows it.
pub(super) fn choose<'a>(mut pairs: impl Iterator<Item = (&'a ColumnType, &'a ColumnType)>) -> Format {
    if pairs.all(|(ours, theirs)| ours.is_alike(theirs)) { Format::Binary } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::binary::tests::builtin;

    #[test]
    fn one_column_that_needs_text_makes_the_table_text() {
        let (number, reference, rights) = (builtin(23), builtin(2205), builtin(1033));
        for (other, expected) in [(&number, Format::Binary), (&reference, Format::Text), (&rights, Format::Text)] {
            assert_eq!(choose([(&number, &number), (other, other)].into_iter()), expected);
        }
        assert_eq!(choose(std::iter::empty()), Format::Binary);
    }
}
