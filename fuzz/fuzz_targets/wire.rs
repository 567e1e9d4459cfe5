//! Any bytes as a server would send them: frames, replication messages, server errors. They may be refused, never panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walrelay::wire::frame::{frames, whole_messages_bytes};
use walrelay::wire::{ServerError, replication};

fuzz_target!(|bytes: &[u8]| {
    let _ = ServerError::parse(bytes).retry();
    let _ = replication::parse(bytes);
    if let Ok(end) = whole_messages_bytes(bytes) {
        assert!(end <= bytes.len());
        assert!(frames(&bytes[..end]).all(|frame| frame.is_ok()));
    }
    for frame in frames(bytes).flatten() {
        let _ = (replication::parse(frame.body), ServerError::parse(frame.body).to_string());
    }
});
