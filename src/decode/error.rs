//! What is wrong with a message. Names the message, the field and the place; never a row's values.

/// An error of decoding: the server's bytes are not what the protocol says, or a relation was never described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is empty.
    #[error("the server sent an empty pgoutput message")]
    Empty,
    /// A first byte that no protocol version knows.
    #[error("the server sent a pgoutput message '{byte}' (0x{value:02x}), which protocol 1 to 4 does not know", byte = char::from(*.0).escape_default(), value = .0)]
    UnknownMessage(u8),
    /// A field that ends beyond the message, or has a value it cannot have.
    #[error("the pgoutput message '{}' is broken at byte {offset}: {field}", char::from(*tag).escape_default())]
    Broken {
        /// Which message.
        tag: u8,
        /// Which field, and what is wrong.
        field: &'static str,
        /// Where.
        offset: usize,
    },
    /// A row of a relation that was not described in this session.
    #[error("the server sent a row of the relation {0} before describing it; the replication session is not usable")]
    UnknownRelation(u32),
}
