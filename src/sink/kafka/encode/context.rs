//! Debezium's headers about where an event was made. The same for every record of a session.

use super::headers::Headers;

/// The four values.
#[derive(Clone, Debug)]
pub(super) struct ContextHeaders {
    logical_name: String,
    run_id: String,
}

impl ContextHeaders {
    /// A new run.
    pub(super) fn new(topic_prefix: &str) -> Self {
        let bytes = rand::random::<u128>();
        // The version and variant of a random UUID.
        let bytes = bytes & !(0xF << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bytes:032x}");
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or("").to_owned();
        let run_id = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-");
        Self { logical_name: topic_prefix.to_owned(), run_id }
    }

    /// In Debezium's order.
    pub(super) fn add<'a>(&'a self, headers: &mut Headers<'a>) {
        headers.push("__debezium.context.connectorLogicalName", self.logical_name.as_bytes());
        headers.push("__debezium.context.taskId", b"0");
        headers.push("__debezium.context.connectorName", b"postgresql");
        headers.push("__debezium.context.runId", self.run_id.as_bytes());
    }
}
