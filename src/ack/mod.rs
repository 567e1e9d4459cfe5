//! The only maker of a flush position: a pure ledger of what was received, applied and made durable. Sends nothing itself.
