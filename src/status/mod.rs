//! What the daemon shows: `/healthz`, `/readyz`, `/status`, `/metrics`, and the service manager's words. Reads reports; steers nothing.

mod board;
mod http;
mod metrics;
mod report;
pub mod service;

pub use board::Board;
pub use http::serve;
pub use report::status_json;
