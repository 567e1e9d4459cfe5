//! The doctor counts: the sessions and replication origins that all pipelines into one standby need, against what its server has
//! room for beside those of others. Changes nothing.

use postgres_protocol::escape::escape_identifier;

use crate::config::{Config, Pipeline, PostgresSink, Sink};
use crate::pipeline::standby_roles;
use crate::sink::postgres::{Need, origin_names, origins_needed, sessions_needed};
use crate::wire::WireError;
use crate::wire::sql::SqlClient;

use super::finding::{Finding, Findings, Level};

/// Where it is raised, it is raised at least to this.
const ORIGINS_DEFAULT: i64 = 10;

/// What is counted, and by which limit. In the order of the columns of `QUERY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit {
    Server,
    Role(String),
    Database(String),
    Origins(&'static str),
}

/// A limit of a standby, as a pipeline's role meets it.
#[derive(Clone, Debug)]
struct Bound {
    /// Which server, by the microsecond of its start: two urls may lead to one.
    server: String,
    limit: Limit,
    /// As it is set, …
    setting: i64,
    /// … and what of it is kept for roles with more rights.
    reserved: i64,
    /// Taken by others.
    others: i64,
}

/// A bound and who needs what of it.
#[derive(Debug)]
struct Shared {
    bound: Bound,
    pipelines: Vec<String>,
    need: Need,
}

/// All bounds of all standbys.
#[derive(Debug, Default)]
pub(super) struct Room {
    all: Vec<Shared>,
}

/// A role without the right to read what others do sees their names all the same.
const QUERY: &str = "WITH session AS (SELECT usename = current_user AS is_of_role, datname = pg_catalog.current_database() AS is_of_database \
        FROM pg_catalog.pg_stat_activity WHERE pid <> pg_catalog.pg_backend_pid() AND usesysid IS NOT NULL AND datid IS NOT NULL \
        AND COALESCE(backend_type, 'client backend') = 'client backend' AND application_name <> ALL ($1)) \
    SELECT pg_catalog.pg_postmaster_start_time()::text, \
        r.rolname::text, d.datname::text, \
        current_setting('server_version_num')::int4, \
        current_setting('max_connections')::int8, \
        CASE WHEN r.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int8 + CASE WHEN EXISTS \
            (SELECT FROM pg_catalog.pg_roles u WHERE u.rolname = 'pg_use_reserved_connections' AND pg_catalog.pg_has_role(u.oid, 'USAGE')) \
            THEN 0 ELSE COALESCE(current_setting('reserved_connections', true)::int8, 0) END END, \
        (SELECT count(*) FROM session), \
        CASE WHEN r.rolsuper OR r.rolconnlimit < 0 THEN NULL ELSE r.rolconnlimit::int8 END, \
        (SELECT count(*) FROM session WHERE is_of_role), \
        CASE WHEN r.rolsuper OR d.datconnlimit < 0 THEN NULL ELSE d.datconnlimit::int8 END, \
        (SELECT count(*) FROM session WHERE is_of_database), \
        current_setting(CASE WHEN current_setting('server_version_num')::int4 < 180000 THEN 'max_replication_slots' \
            ELSE 'max_active_replication_origins' END)::int8, \
        (SELECT count(*) FROM pg_catalog.pg_replication_origin WHERE roname <> ALL ($2)) \
    FROM pg_catalog.pg_roles r, pg_catalog.pg_database d WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()";

impl Room {
    /// Reads the limits that a pipeline meets, and adds what it needs. So many tables are to be copied, or more.
    pub(super) async fn look(
        &mut self,
        standby: &SqlClient,
        config: &Config,
        (pipeline, sink): (&Pipeline, &PostgresSink),
        to_copy: usize,
    ) -> Result<(), WireError> {
        let ours = config.pipelines.iter().filter(|pipeline| matches!(pipeline.sink, Sink::Postgres(_)));
        let sessions: Vec<String> =
            ours.clone().flat_map(|one| standby_roles().map(|role| one.name.session_name(role))).collect();
        let origins: Vec<String> = ours.flat_map(|one| origin_names(&one.name)).collect();
        let row = standby.query_one(QUERY, &[&sessions, &origins]).await?;
        let (server, role, database): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let origins_limit = match row.get::<_, i32>(3) {
            ..180_000 => "max_replication_slots",
            _ => "max_active_replication_origins",
        };
        let limits = [
            (Limit::Server, row.get(4), row.get(5), row.get(6)),
            (Limit::Role(role), row.get(7), 0, row.get(8)),
            (Limit::Database(database), row.get(9), 0, row.get(10)),
            (Limit::Origins(origins_limit), row.get(11), 0, row.get(12)),
        ];
        for (limit, setting, reserved, others) in limits {
            let Some(setting) = setting else { continue };
            let need = match limit {
                Limit::Origins(_) => origins_needed(sink),
                _ => sessions_of(pipeline, sink, to_copy),
            };
            self.add(Bound { server: server.clone(), limit, setting, reserved, others }, pipeline.name.as_str(), need);
        }
        Ok(())
    }

    fn add(&mut self, bound: Bound, pipeline: &str, need: Need) {
        let is_same = |shared: &&mut Shared| shared.bound.server == bound.server && shared.bound.limit == bound.limit;
        match self.all.iter_mut().find(is_same) {
            Some(shared) => {
                shared.pipelines.push(pipeline.to_owned());
                shared.need.least += need.least;
                shared.need.most += need.most;
                shared.bound.reserved = shared.bound.reserved.max(bound.reserved);
            }
            None => self.all.push(Shared { bound, pipelines: vec![pipeline.to_owned()], need }),
        }
    }

    /// Says where there is too little.
    pub(super) fn judge(&self, findings: &mut Findings) {
        self.all.iter().filter_map(Shared::finding).for_each(|finding| findings.push(finding));
    }
}

/// The sessions of a pipeline: the owner's, the copy's (one and its workers), the stream's. The workers gather statistics while the
/// stream begins.
fn sessions_of(pipeline: &Pipeline, sink: &PostgresSink, to_copy: usize) -> Need {
    let stream = sessions_needed(sink);
    let copy = match pipeline.initial_copy {
        true => Need { least: 1 + to_copy.min(pipeline.copy_workers), most: 1 + pipeline.copy_workers },
        false => Need::default(),
    };
    Need { least: 1 + stream.least.max(copy.least), most: 1 + stream.most + copy.most }
}

impl Shared {
    fn finding(&self) -> Option<Finding> {
        let Self { bound, pipelines, need } = self;
        let (least, most) = (need.least as i64, need.most as i64);
        let left = bound.setting - bound.reserved - bound.others;
        if left >= most {
            return None;
        }
        let level = if left < least { Level::Error } else { Level::Warning };
        let (who, verb) = match &pipelines[..] {
            [_] => ("the pipeline needs".to_owned(), "it begins with"),
            several => (format!("the pipelines {} need", several.join(", ")), "they begin with"),
        };
        let (what, remedy, sql) = bound.limit.words(bound.reserved + bound.others + most);
        let kept = if bound.reserved > 0 {
            format!(", {} are reserved for roles with more rights", bound.reserved)
        } else {
            String::new()
        };
        let thing = if matches!(bound.limit, Limit::Origins(_)) { "replication origins" } else { "sessions" };
        let message = format!(
            "{what} is {}{kept}, and others hold {}: {} {thing} are left; {who} up to {most}, and {verb} {least}",
            bound.setting,
            bound.others,
            left.max(0)
        );
        Some(Finding::new(level, pipelines.first()?, message, remedy).with_sql([sql]))
    }
}

impl Limit {
    /// What it is called, and what raises it to `wanted`.
    fn words(&self, wanted: i64) -> (String, &'static str, String) {
        const FEWER: &str = "raise it, or set a lower apply_connections, prefetch_connections or copy_workers";
        match self {
            Limit::Server => (
                "max_connections".to_owned(),
                "raise it and restart the server, end sessions that nobody needs, or set a lower apply_connections, prefetch_connections or copy_workers",
                format!("ALTER SYSTEM SET max_connections = {wanted}"),
            ),
            Limit::Role(role) => (
                format!("the connection limit of the role \"{role}\""),
                FEWER,
                format!("ALTER ROLE {} CONNECTION LIMIT {wanted}", escape_identifier(role)),
            ),
            Limit::Database(database) => (
                format!("the connection limit of the database \"{database}\""),
                FEWER,
                format!("ALTER DATABASE {} CONNECTION LIMIT {wanted}", escape_identifier(database)),
            ),
            Limit::Origins(setting) => (
                (*setting).to_owned(),
                "raise it and restart the server, or set a lower apply_connections",
                format!("ALTER SYSTEM SET {setting} = {}", wanted.max(ORIGINS_DEFAULT)),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(server: &str, limit: Limit, setting: i64, reserved: i64, others: i64) -> Bound {
        Bound { server: server.to_owned(), limit, setting, reserved, others }
    }

    /// What is said of two pipelines that need 2 to 5 each.
    fn check(first: Bound, second: Bound, expected: &[(Level, &[&str], &str)]) {
        let mut room = Room::default();
        for (name, bound) in [("a", first), ("b", second)] {
            room.add(bound, name, Need { least: 2, most: 5 });
        }
        let found: Vec<Finding> = room.all.iter().filter_map(Shared::finding).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, (level, parts, sql)) in found.iter().zip(expected) {
            assert!(found.level == *level && parts.iter().all(|part| found.message.contains(part)), "{found:?}");
            assert_eq!(found.sql, [*sql]);
        }
    }

    #[test]
    fn what_pipelines_need_of_one_server_is_added_up() {
        let server = |name, setting| bound(name, Limit::Server, setting, 3, 80);
        check(server("x", 93), server("x", 93), &[]);
        let few =
            ["max_connections is 92", "3 are reserved", "others hold 80", "9 sessions are left", "a, b need up to 10"];
        check(server("x", 92), server("x", 92), &[(Level::Warning, &few, "ALTER SYSTEM SET max_connections = 93")]);
        let none = ["3 sessions are left", "they begin with 4"];
        check(server("x", 86), server("x", 86), &[(Level::Error, &none, "ALTER SYSTEM SET max_connections = 93")]);
        check(server("x", 89), server("y", 89), &[]);
    }

    #[test]
    fn each_limit_is_raised_where_it_stands() {
        let role = |name: &str| bound("x", Limit::Role(name.to_owned()), 6, 0, 0);
        check(role("r"), role("s"), &[]);
        let few = ["connection limit of the role \"r\" is 6", "others hold 0"];
        check(role("r"), role("r"), &[(Level::Warning, &few, "ALTER ROLE \"r\" CONNECTION LIMIT 10")]);
        let database = || bound("x", Limit::Database("d".to_owned()), 12, 0, 9);
        let sql = "ALTER DATABASE \"d\" CONNECTION LIMIT 19";
        check(database(), database(), &[(Level::Error, &["3 sessions are left"], sql)]);
        let origins = || bound("x", Limit::Origins("max_replication_slots"), 0, 0, 1);
        let none = ["max_replication_slots is 0", "0 replication origins are left"];
        check(origins(), origins(), &[(Level::Error, &none, "ALTER SYSTEM SET max_replication_slots = 11")]);
    }
}
