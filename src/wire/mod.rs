//! The PostgreSQL frontend/backend protocol, built on `postgres-protocol`: connections, TLS, authentication, frames. Knows no pgoutput.
