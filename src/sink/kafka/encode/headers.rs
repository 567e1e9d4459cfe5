//! The headers of one record, on the stack. Copies no value.

use super::Header;

/// Most headers that a record of ours can have.
const HEADERS: usize = 12;

/// Headers on the stack.
pub(super) struct Headers<'a> {
    all: [Header<'a>; HEADERS],
    length: usize,
}

impl Default for Headers<'_> {
    fn default() -> Self {
        Self { all: [Header { name: "", value: &[] }; HEADERS], length: 0 }
    }
}

impl<'a> Headers<'a> {
    pub(super) fn push(&mut self, name: &'a str, value: &'a [u8]) {
        if let Some(place) = self.all.get_mut(self.length) {
            *place = Header { name, value };
            self.length += 1;
        }
    }

    pub(super) fn as_slice(&self) -> &[Header<'a>] {
        self.all.get(..self.length).unwrap_or(&[])
    }
}
