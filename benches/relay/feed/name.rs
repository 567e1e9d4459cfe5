//! What the topics of a round are called, each contestant's by a prefix of its own. All prefixes have one length, so that all events have.

/// Of walrelay's topics in a round.
pub fn own_prefix(round: usize) -> String {
    format!("own{round:03}")
}

/// Of Debezium's.
pub fn peer_prefix(round: usize) -> String {
    format!("dbz{round:03}")
}

/// Of the bare producer's.
pub fn bare_prefix(round: usize) -> String {
    format!("raw{round:03}")
}

/// The topic of the table.
pub fn topic_of(prefix: &str) -> String {
    format!("{prefix}.public.wide")
}
