//! Statements in a pipeline on one connection: Parse, Bind and Execute are written without waiting; answers are read while
//! writing and matched, in order, with what was expected. Knows nothing of rows or tables.

use std::collections::VecDeque;

use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use crate::wire::{Connection, OwnedMessage, ServerError, WireError};

/// Written in pieces of about this size, so that a transaction of any length passes in bounded memory.
const WRITE_BYTES: usize = 64 * 1024;

/// One parameter: its format and bytes, as received.
#[derive(Clone, Copy)]
pub(super) enum Parameter<'a> {
    Null,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// What an Execute is for; given back with its answer.
#[derive(Debug)]
pub(super) enum Expected<T> {
    /// The answer to a Parse: its statement's first Execute stands right behind it.
    Parsed,
    /// The answer to a Close.
    Closed,
    /// The answer to a Bind.
    Bound,
    /// The answer to an Execute.
    Executed(T),
}

/// What went wrong, with the purpose of the statement that failed, if it was one of ours.
#[derive(Debug)]
pub(super) struct Failure<T> {
    pub(super) purpose: Option<T>,
    pub(super) error: WireError,
}

impl<T> Failure<T> {
    fn lost(error: WireError) -> Self {
        Self { purpose: None, error }
    }
}

/// A connection with statements under way. `T` is what each Execute is for.
#[derive(Debug)]
pub(super) struct Pipelined<T> {
    connection: Connection,
    expected: VecDeque<Expected<T>>,
}

impl<T> Pipelined<T> {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, expected: VecDeque::new() }
    }

    /// The connection itself, for commands between statements; nothing may be under way.
    pub(super) fn idle_connection(&mut self) -> &mut Connection {
        debug_assert!(self.expected.is_empty(), "the connection was asked for with statements under way");
        &mut self.connection
    }

    /// Prepares a statement under `name`.
    pub(super) fn parse(&mut self, name: &str, sql: &str, types: &[u32]) -> Result<(), WireError> {
        frontend::parse(name, sql, types.iter().copied(), self.connection.outgoing())?;
        self.expected.push_back(Expected::Parsed);
        Ok(())
    }

    /// Forgets a prepared statement.
    pub(super) fn close(&mut self, name: &str) -> Result<(), WireError> {
        frontend::close(b'S', name, self.connection.outgoing())?;
        self.expected.push_back(Expected::Closed);
        Ok(())
    }

    /// Runs a prepared statement.
    pub(super) fn execute<'a>(
        &mut self,
        name: &str,
        parameters: impl Iterator<Item = Parameter<'a>> + Clone,
        purpose: T,
    ) -> Result<(), WireError> {
        let formats = parameters.clone().map(|parameter| i16::from(matches!(parameter, Parameter::Binary(_))));
        let write = |parameter: Parameter<'a>, out: &mut bytes::BytesMut| match parameter {
            Parameter::Null => Ok(IsNull::Yes),
            Parameter::Text(bytes) | Parameter::Binary(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        };
        let outgoing = self.connection.outgoing();
        frontend::bind("", name, formats, parameters, write, None::<i16>, outgoing).map_err(|error| match error {
            frontend::BindError::Serialization(error) => WireError::Io(std::io::Error::other(error.to_string())),
            frontend::BindError::Conversion(error) => WireError::Io(std::io::Error::other(error.to_string())),
        })?;
        frontend::execute("", 0, outgoing)?;
        self.expected.push_back(Expected::Bound);
        self.expected.push_back(Expected::Executed(purpose));
        Ok(())
    }

    /// Whether enough is gathered that it should go out.
    pub(super) fn is_full(&mut self) -> bool {
        self.connection.outgoing().len() >= WRITE_BYTES
    }

    /// Writes what is gathered and takes the answers that are there.
    pub(super) async fn write(&mut self, done: &mut impl FnMut(T, &str)) -> Result<(), Failure<T>> {
        self.connection.drain_outgoing(WRITE_BYTES / 2).await.map_err(Failure::lost)?;
        while let Some(message) = self.connection.try_next_message().map_err(Failure::lost)? {
            self.answer(&message, done)?;
        }
        Ok(())
    }

    /// Waits until everything sent so far is answered, without ending the transaction.
    pub(super) async fn settle(&mut self, done: &mut impl FnMut(T, &str)) -> Result<(), Failure<T>> {
        if self.expected.is_empty() {
            return Ok(());
        }
        frontend::flush(self.connection.outgoing());
        while !self.expected.is_empty() {
            self.next_answer(done).await?;
        }
        Ok(())
    }

    /// Sends Sync and waits for ReadyForQuery.
    pub(super) async fn sync(&mut self, done: &mut impl FnMut(T, &str)) -> Result<(), Failure<T>> {
        frontend::sync(self.connection.outgoing());
        while !self.next_answer(done).await? {}
        debug_assert!(self.expected.is_empty(), "ReadyForQuery with statements unanswered");
        Ok(())
    }

    async fn next_answer(&mut self, done: &mut impl FnMut(T, &str)) -> Result<bool, Failure<T>> {
        loop {
            if let Some(message) = self.connection.try_next_message().map_err(Failure::lost)? {
                return self.answer(&message, done);
            }
            self.connection.pump().await.map_err(Failure::lost)?;
        }
    }

    /// Matches one message with what is expected. Returns whether it is ReadyForQuery. An error ends the session: the caller
    /// throws the connection away, and the server rolls the transaction back.
    fn answer(&mut self, message: &OwnedMessage, done: &mut impl FnMut(T, &str)) -> Result<bool, Failure<T>> {
        match message.tag {
            b'1' | b'2' | b'3' => {
                self.expected.pop_front();
            }
            b'C' => {
                if let Some(Expected::Executed(purpose)) = self.expected.pop_front() {
                    let tag = message.body.strip_suffix(b"\0").unwrap_or(&message.body);
                    done(purpose, std::str::from_utf8(tag).unwrap_or(""));
                }
            }
            b'I' => {
                self.expected.pop_front();
            }
            b'E' => {
                let error = WireError::Server(Box::new(ServerError::parse(&message.body)));
                let purpose = self.expected.drain(..).find_map(|expected| match expected {
                    Expected::Executed(purpose) => Some(purpose),
                    Expected::Parsed | Expected::Closed | Expected::Bound => None,
                });
                return Err(Failure { purpose, error });
            }
            b'Z' => return Ok(true),
            b'D' | b'T' | b'n' | b'N' | b'S' | b'A' => {}
            tag => return Err(Failure::lost(WireError::Unexpected { tag, during: "applying" })),
        }
        Ok(false)
    }
}

/// Rows touched, from a command tag: `UPDATE 1`, `INSERT 0 1`.
pub(super) fn rows_of(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_tag_tells_the_rows() {
        for (tag, rows) in [("UPDATE 1", 1), ("INSERT 0 3", 3), ("DELETE 0", 0), ("BEGIN", 0), ("TRUNCATE TABLE", 0)] {
            assert_eq!(rows_of(tag), rows, "{tag}");
        }
    }
}
