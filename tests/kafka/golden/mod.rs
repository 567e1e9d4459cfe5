//! The events of a real Debezium, event by event: what the project was given, and what it captured itself.

mod captured;
mod compare;
mod replay;
