//! The sessions that a stream has on the standby, by what they are called, the origins that tag their work, and how many of both
//! there are at most: the one list. Opens nothing.

use crate::config::{APPLY_CONNECTIONS_LIMIT, PREFETCH_CONNECTIONS_LIMIT, PostgresSink};
use crate::model::PipelineName;

/// What the session is called that owns a pipeline while it is at work, or that removes it.
pub const CONTROL_ROLE: &str = "control";

/// What the first session is called that applies.
pub(super) const APPLY_ROLE: &str = "apply";

/// What the session is called that flushes beside it.
pub(super) const FLUSH_ROLE: &str = "flush";

/// What the session is called that writes a transaction while it is open on the primary.
pub(super) const AHEAD_ROLE: &str = "ahead";

/// What the sessions are called that apply beside the first one.
pub(super) const BESIDE_ROLES: [&str; APPLY_CONNECTIONS_LIMIT - 1] =
    ["apply2", "apply3", "apply4", "apply5", "apply6", "apply7", "apply8"];

/// What the sessions are called that read pages ahead of those that apply.
pub(super) const PREFETCH_ROLES: [&str; PREFETCH_CONNECTIONS_LIMIT] =
    ["prefetch1", "prefetch2", "prefetch3", "prefetch4", "prefetch5", "prefetch6", "prefetch7", "prefetch8"];

/// The sessions that apply batches in their turn.
pub fn applying_roles() -> impl Iterator<Item = &'static str> {
    std::iter::once(APPLY_ROLE).chain(BESIDE_ROLES)
}

/// All sessions of a stream.
pub fn streaming_roles() -> impl Iterator<Item = &'static str> {
    applying_roles().chain([FLUSH_ROLE, AHEAD_ROLE]).chain(PREFETCH_ROLES)
}

/// How many of something are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Without so many nothing begins.
    pub least: usize,
    /// Never more at once.
    pub most: usize,
}

/// The sessions of a stream: without the others the first one does all.
pub fn sessions_needed(sink: &PostgresSink) -> Need {
    let others = [FLUSH_ROLE, AHEAD_ROLE].len() + sink.prefetch_connections;
    Need { least: [APPLY_ROLE].len(), most: sink.apply_connections + others }
}

/// The origins of a stream: only the one of what is written ahead is not missed.
pub fn origins_needed(sink: &PostgresSink) -> Need {
    Need { least: sink.apply_connections, most: sink.apply_connections + [AHEAD_ROLE].len() }
}

/// Every origin that a stream may have made.
pub fn origin_names(pipeline: &PipelineName) -> impl Iterator<Item = String> {
    let others = std::iter::once(AHEAD_ROLE).chain(BESIDE_ROLES).map(|role| origin_name(pipeline, role));
    std::iter::once(pipeline.owned_name()).chain(others)
}

/// The origin of a session of this role, other than the apply session's: an origin belongs to one session. The blank keeps it apart
/// from the origin of any pipeline.
pub(super) fn origin_name(pipeline: &PipelineName, role: &str) -> String {
    format!("{} {role}", pipeline.owned_name())
}
