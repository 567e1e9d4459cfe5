//! Postgres' own scenarios for logical subscriptions (`src/test/subscription/t` of 18), those that hold for any client, as our
//! cases. Each test names the file it mirrors.

mod ddl;
mod publications;
mod rows;
mod streamed;
