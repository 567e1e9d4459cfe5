//! What a pipeline is doing, and whether a fault may pass by itself.

/// The states a person and `/status` see.
///
/// ```text
/// starting ─▶ copying ─▶ catching_up ─▶ streaming
///    │ ▲          │            │            │
///    ▼ └──────────┴────────────┴────────────┘   a transient fault: waiting, then starting again
/// waiting                                       also: a hot spare, a lock, a server that is away
///    any state ─▶ failed                        refused for safety, or an error no retry can mend
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Connecting, checking, creating publication and slot.
    Starting,
    /// The initial copy runs.
    Copying,
    /// Streams, but behind the primary.
    CatchingUp,
    /// Streams and is current.
    Streaming,
    /// Waits for something outside that is named in `last_error` or the log.
    Waiting,
    /// Stopped; needs a person. Nothing is acknowledged.
    Failed,
}

impl State {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Copying => "copying",
            State::CatchingUp => "catching_up",
            State::Streaming => "streaming",
            State::Waiting => "waiting",
            State::Failed => "failed",
        }
    }
}

/// Whether the same operation may succeed later without anyone changing anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// A connection lost, a server starting, a slot still active: back off and try again.
    Later,
    /// A refusal or a divergence: stop and say what to do.
    Never,
}
