//! Backend messages as frames: a tag, an int32 length that counts itself, a body. Pure and total over any bytes; a length is
//! only believed once the bytes are there, and never beyond the limit.

use bytes::{BufMut, BytesMut};

use super::WireError;

/// Tag and length.
pub const HEADER_BYTES: usize = 5;

/// Longest message we accept. Postgres itself cannot build one beyond 1 GiB (`MaxAllocSize` in `src/include/utils/memutils.h`).
pub const LIMIT_BYTES: usize = (1 << 30) + 1024;

/// One whole message, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub tag: u8,
    /// What follows the length.
    pub body: &'a [u8],
}

/// Size of the whole message at the start of `bytes`, header included; `None` while the header is not there yet.
pub fn size_bytes(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(4..=LIMIT_BYTES).contains(&length) {
        return Err(WireError::Length { tag, length });
    }
    Ok(Some(length + 1))
}

/// The whole messages at the start of `bytes`: returns where the last one ends.
pub fn whole_messages_bytes(bytes: &[u8]) -> Result<usize, WireError> {
    let mut end = 0;
    while let Some(size) = size_bytes(&bytes[end..])? {
        if size > bytes.len() - end {
            break;
        }
        end += size;
    }
    Ok(end)
}

/// Begins a message behind what is there; its body follows. Returns where it begins, for [`end`].
#[inline]
pub fn begin(tag: u8, out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_u8(tag);
    out.put_u32(0);
    start
}

/// Ends the message that begins at `start`: its length is what has been appended since.
#[inline]
pub fn end(start: usize, out: &mut BytesMut) -> Result<(), WireError> {
    let length = out.len() - start - 1;
    let written = i32::try_from(length).map_err(|_| WireError::Length { tag: out[start], length })?;
    out[start + 1..start + HEADER_BYTES].copy_from_slice(&written.to_be_bytes());
    Ok(())
}

/// Walks the messages of a chunk that holds whole ones only; a torn one at the end is an error.
pub fn frames(chunk: &[u8]) -> Frames<'_> {
    Frames { rest: chunk }
}

/// See [`frames`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// What is not yet walked.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let size = match size_bytes(self.rest) {
            Ok(Some(size)) if size <= self.rest.len() => size,
            Ok(_) => {
                let error = WireError::Torn { available: self.rest.len() };
                self.rest = &[];
                return Some(Err(error));
            }
            Err(error) => {
                self.rest = &[];
                return Some(Err(error));
            }
        };
        let (message, rest) = self.rest.split_at(size);
        self.rest = rest;
        Some(Ok(Frame { tag: message[0], body: &message[HEADER_BYTES..] }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks the bytes and compares tags and body sizes; `Err` is part of the error's text.
    fn check(bytes: &[u8], expected: Result<&[(u8, usize)], &str>) {
        let walked: Result<Vec<_>, _> = frames(bytes).map(|f| f.map(|f| (f.tag, f.body.len()))).collect();
        match (walked, expected) {
            (Ok(walked), Ok(expected)) => assert_eq!(walked, expected),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (walked, expected) => panic!("{walked:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn frames_are_walked_to_the_last_byte() {
        check(b"", Ok(&[]));
        check(b"Z\0\0\0\x05I", Ok(&[(b'Z', 1)]));
        check(b"1\0\0\0\x04d\0\0\0\x06ab", Ok(&[(b'1', 0), (b'd', 2)]));
        check(b"d\0\0\0\x06a", Err("torn"));
        check(b"d\0\0", Err("torn"));
        check(b"d\0\0\0\x03", Err("length 3"));
        check(b"d\xff\xff\xff\xff", Err("length 4294967295"));
    }

    #[test]
    fn a_message_gets_its_length_when_its_body_is_there() {
        let mut out = BytesMut::from(&b"1\0\0\0\x04"[..]);
        for body in [&b""[..], b"ab"] {
            let start = begin(b'd', &mut out);
            out.put_slice(body);
            end(start, &mut out).unwrap();
        }
        check(&out, Ok(&[(b'1', 0), (b'd', 0), (b'd', 2)]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for frame in frames(&bytes) {
                let _ = frame;
            }
            if let Ok(end) = whole_messages_bytes(&bytes) {
                prop_assert!(end <= bytes.len());
                prop_assert!(frames(&bytes[..end]).all(|frame| frame.is_ok()));
            }
        }
    }
}
