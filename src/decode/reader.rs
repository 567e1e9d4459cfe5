//! Reads big-endian fields off a message, bounded by its end.

use memchr::memchr;

use super::DecodeError;

/// A cursor over one message; remembers the message's tag for errors.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    tag: u8,
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts behind the tag.
    pub(super) fn new(tag: u8, message: &'a [u8]) -> Self {
        Self { tag, message, at: 1 }
    }

    /// Starts at the first byte: for a part of a message.
    pub(super) fn of_part(tag: u8, part: &'a [u8]) -> Self {
        Self { tag, message: part, at: 0 }
    }

    pub(super) fn broken(&self, field: &'static str) -> DecodeError {
        DecodeError::Broken { tag: self.tag, field, offset: self.at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.message.len());
        let end = end.ok_or_else(|| self.broken(field))?;
        let bytes = &self.message[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.message.get(self.at..).and_then(<[u8]>::first_chunk::<N>);
        let bytes = *bytes.ok_or_else(|| self.broken(field))?;
        self.at += N;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// A NUL-terminated string; the server sends it in the client encoding, which is always UTF-8 here, unless its own
    /// encoding is SQL_ASCII.
    pub(super) fn string(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let rest = self.message.get(self.at..).unwrap_or(&[]);
        let length = memchr(0, rest).ok_or_else(|| self.broken(field))?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    /// A NUL-terminated name, in UTF-8: a server whose own encoding is SQL_ASCII converts nothing, and a name with other
    /// bytes would silently become another name.
    pub(super) fn name(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let start = self.at;
        let bytes = self.string(field)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Broken { tag: self.tag, field, offset: start })
    }

    pub(super) fn slice_from(&self, start: usize) -> &'a [u8] {
        self.message.get(start..self.at).unwrap_or(&[])
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.at == self.message.len() { Ok(()) } else { Err(self.broken("bytes follow the last field")) }
    }
}
