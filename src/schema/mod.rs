//! Table shapes read from a server's catalogs, and the SQL texts made from them. Never writes to a server.
