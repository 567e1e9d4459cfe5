//! A primary and a standby, each with a database `shop`.

use std::path::Path;

use walrelay::throwaway::{Options, Server, find_major};

use super::{Relay, eventually, value, values};

/// The versions of the core scenarios: `WALRELAY_TEST_VERSIONS="15 18"` narrows them.
pub fn major_versions() -> Vec<u32> {
    let text = std::env::var("WALRELAY_TEST_VERSIONS").unwrap_or_else(|_| "14 15 16 17 18".to_owned());
    text.split_whitespace().map(|major| major.parse().unwrap()).collect()
}

/// Of those the oldest and the newest: for what is long and the same to all.
pub fn oldest_and_newest() -> Vec<u32> {
    let mut versions = major_versions();
    if versions.len() > 2 {
        versions.drain(1..versions.len() - 1);
    }
    versions
}

/// A server of a major version with the given options.
pub async fn start_server(major: u32, options: Options) -> Server {
    let programs = find_major(major, Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    Server::start(&programs, options).await.unwrap()
}

/// A server with the usual options.
pub async fn server(major: u32) -> Server {
    start_server(major, Options::default()).await
}

/// Two servers with a database `shop` each.
pub struct Pair {
    pub primary: Server,
    pub standby: Server,
}

impl Pair {
    /// Both of one version.
    pub async fn start(major: u32) -> Self {
        Self::with(major, Options::default(), major, Options::default()).await
    }

    /// With options of their own.
    pub async fn with(primary: u32, primary_options: Options, standby: u32, standby_options: Options) -> Self {
        let pair = Self {
            primary: start_server(primary, primary_options).await,
            standby: start_server(standby, standby_options).await,
        };
        for server in [&pair.primary, &pair.standby] {
            values(server, "postgres", "CREATE DATABASE shop").await;
        }
        pair
    }

    /// The same statements on both.
    pub async fn on_both(&self, sql: &str) {
        self.on_primary(sql).await;
        self.on_standby(sql).await;
    }

    pub async fn on_primary(&self, sql: &str) -> super::Rows {
        values(&self.primary, "shop", sql).await
    }

    pub async fn on_standby(&self, sql: &str) -> super::Rows {
        values(&self.standby, "shop", sql).await
    }

    /// A configuration of one pipeline `standby1`; `lines` go into its table.
    pub fn config(&self, lines: &str) -> String {
        format!(
            "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"standby1\"\n{lines}\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
            self.primary.url("shop"),
            self.standby.url("shop")
        )
    }

    /// A relay with that configuration, streaming.
    pub async fn relay(&self, lines: &str) -> Relay {
        let relay = Relay::start(&self.config(lines)).await;
        relay.wait_state("streaming").await;
        relay
    }

    /// Waits until the standby of this name has applied everything committed on the primary up to now.
    pub async fn caught_up(&self, name: &str) {
        let target = value(&self.primary, "postgres", "SELECT pg_current_wal_insert_lsn()").await;
        let sql = format!("SELECT replay_lsn >= '{target}' FROM pg_stat_replication WHERE application_name = '{name}'");
        eventually(&format!("{name} has applied {target}"), || async {
            (value(&self.primary, "postgres", &sql).await == "t").then_some(())
        })
        .await;
    }

    /// Makes the primary wait for these standbys, e.g. `FIRST 1 (standby1)`; returns once `standby1` counts.
    pub async fn wait_for_standbys(&self, names: &str) {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        values(&self.primary, "postgres", &set).await;
        values(&self.primary, "postgres", "SELECT pg_reload_conf()").await;
        eventually("standby1 is synchronous", || async {
            let sql = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'standby1'";
            matches!(value(&self.primary, "postgres", sql).await.as_str(), "sync" | "quorum").then_some(())
        })
        .await;
    }

    /// Compares these tables row by row.
    pub async fn assert_equal(&self, tables: &[&str]) {
        for table in tables {
            let sql = format!("SELECT t::text FROM {table} t ORDER BY t::text COLLATE \"C\"");
            let (primary, standby) = (self.on_primary(&sql).await, self.on_standby(&sql).await);
            if primary != standby {
                let only = |one: &super::Rows, other: &super::Rows| {
                    one.iter()
                        .filter(|row| !other.contains(row))
                        .take(5)
                        .map(|row| format!("{row:?}"))
                        .collect::<Vec<_>>()
                        .join("\n")
                };
                panic!(
                    "{table} differs: {} rows on the primary, {} on the standby\nonly on the primary:\n{}\nonly on the standby:\n{}",
                    primary.len(),
                    standby.len(),
                    only(&primary, &standby),
                    only(&standby, &primary)
                );
            }
        }
    }

    /// Catches up, then compares.
    pub async fn equal_after_catching_up(&self, tables: &[&str]) {
        self.caught_up("standby1").await;
        self.assert_equal(tables).await;
    }
}
