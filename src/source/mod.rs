//! The replication connection to the primary: publication, slot, the stream and the status messages. Never interprets a row.
