//! A row's values, walked without copying. Validated once, so that walking it again cannot fail.

use super::DecodeError;
use super::reader::Reader;

/// One column's value as the server sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL; or a column outside the key in a key tuple.
    Null,
    /// A large value that the UPDATE did not touch; it is not sent.
    Unchanged,
    /// The type's text form.
    Text(&'a [u8]),
    /// The type's binary send form.
    Binary(&'a [u8]),
}

impl std::fmt::Debug for Value<'_> {
    /// Row values never reach a log.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => formatter.write_str("Null"),
            Value::Unchanged => formatter.write_str("Unchanged"),
            Value::Text(bytes) => write!(formatter, "Text({} bytes)", bytes.len()),
            Value::Binary(bytes) => write!(formatter, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// TupleData: the values of the published columns in the relation's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    values: &'a [u8],
}

impl<'a> Tuple<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let columns = reader.u16("the tuple's number of columns")?;
        let start = reader.at();
        for _ in 0..columns {
            match reader.u8("a column's kind")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = reader.u32("a value's length")?;
                    reader.bytes(length as usize, "a value is shorter than its length")?;
                }
                _ => return Err(reader.broken("a column's kind is none of n, u, t, b")),
            }
        }
        Ok(Self { columns, values: reader.slice_from(start) })
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether the table has no published column.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values as they were received, one behind the other.
    pub fn bytes(&self) -> &'a [u8] {
        self.values
    }

    /// The values in order.
    pub fn iter(&self) -> Values<'a> {
        Values { rest: self.values }
    }
}

/// See [`Tuple::iter`].
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        match kind {
            b't' | b'b' => {
                // Validated by `Tuple::read`.
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.rest = rest;
                Some(if kind == b't' { Value::Text(value) } else { Value::Binary(value) })
            }
            _ => {
                self.rest = rest;
                Some(if kind == b'n' { Value::Null } else { Value::Unchanged })
            }
        }
    }
}
