//! Who the primary is, and where its timelines forked.

use crate::model::{Lsn, PrimaryIdentity};
use crate::wire::Connection;

use super::SourceError;

/// `IDENTIFY_SYSTEM` on a replication connection (`src/backend/replication/walsender.c`, `IdentifySystem`).
pub async fn identify(connection: &mut Connection) -> Result<PrimaryIdentity, SourceError> {
    let row = single_row(connection, "IDENTIFY_SYSTEM").await?;
    let field = |index: usize, name: &str| {
        row.get(index)
            .and_then(Clone::clone)
            .ok_or_else(|| SourceError::Protocol(format!("IDENTIFY_SYSTEM without a {name}")))
    };
    let unreadable =
        |name: &str, value: &str| SourceError::Protocol(format!("IDENTIFY_SYSTEM with the {name} \"{value}\""));
    let timeline = field(1, "timeline")?;
    let position = field(2, "position")?;
    Ok(PrimaryIdentity {
        system_identifier: field(0, "system identifier")?,
        timeline: timeline.parse().map_err(|_| unreadable("timeline", &timeline))?,
        flushed_lsn: position.parse().map_err(|_| unreadable("position", &position))?,
        database: field(3, "database: the connection is not to a database")?,
        version_number: connection.version_number(),
    })
}

/// What tells the server `found` from `known`, in the words of a message; `None` where a position of one means the same on the other.
pub fn identity_difference(known: &PrimaryIdentity, found: &PrimaryIdentity) -> Option<String> {
    if found.system_identifier != known.system_identifier {
        return Some(format!(
            "its system identifier is {}, not {} (another cluster)",
            found.system_identifier, known.system_identifier
        ));
    }
    // Positions of two timelines name the same WAL only up to where one left the other.
    (found.timeline != known.timeline)
        .then(|| format!("its timeline is {}, not {} (it was promoted)", found.timeline, known.timeline))
}

/// Where the server's history left `timeline`: WAL of that timeline beyond this position is not part of the server's past.
/// `None` when the server's current timeline did not come from it.
pub async fn timeline_switch_point(
    connection: &mut Connection,
    current_timeline: u32,
    timeline: u32,
) -> Result<Option<Lsn>, SourceError> {
    let row = single_row(connection, &format!("TIMELINE_HISTORY {current_timeline}")).await?;
    let content = row.into_iter().nth(1).flatten().unwrap_or_default();
    Ok(switch_point(&content, timeline))
}

/// Reads a history file: lines of `timeline <tab> switch point <tab> reason`, `#` for comments
/// (`src/backend/access/transam/timeline.c`, `readTimeLineHistory`).
fn switch_point(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let parent: u32 = words.next()?.parse().ok()?;
        let position: Lsn = words.next()?.parse().ok()?;
        (parent == timeline).then_some(position)
    })
}

async fn single_row(connection: &mut Connection, command: &str) -> Result<Vec<Option<String>>, SourceError> {
    let results = connection.simple_query(command).await.map_err(SourceError::wire(command))?;
    let row = results.into_iter().flat_map(|result| result.rows).next();
    let row = row.ok_or_else(|| SourceError::Protocol(format!("{command} with no row")))?;
    Ok(row.into_iter().map(|value| value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_where_a_timeline_was_left() {
        let history = "# a comment\n1\t0/3000158\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01\n";
        assert_eq!(switch_point(history, 1), Some(Lsn(0x0300_0158)));
        assert_eq!(switch_point(history, 2), Some(Lsn(0x0500_0000)));
        assert_eq!(switch_point(history, 3), None);
        assert_eq!(switch_point("", 1), None);
    }

    #[test]
    fn another_cluster_or_timeline_is_another_server_and_one_that_went_on_is_not() {
        let identity = |system_identifier: &str, timeline: u32, flushed: u64| PrimaryIdentity {
            system_identifier: system_identifier.to_owned(),
            timeline,
            flushed_lsn: Lsn(flushed),
            database: "shop".to_owned(),
            version_number: 180_000,
        };
        let known = identity("7001", 3, 100);
        for (found, expected) in [
            (identity("7001", 3, 100), None),
            (identity("7001", 3, 900), None),
            (identity("7002", 3, 100), Some("system identifier is 7002, not 7001")),
            (identity("7002", 4, 100), Some("system identifier is 7002, not 7001")),
            (identity("7001", 4, 100), Some("timeline is 4, not 3")),
            (identity("7001", 2, 100), Some("timeline is 2, not 3")),
        ] {
            let difference = identity_difference(&known, &found);
            match expected {
                Some(part) => assert!(difference.as_ref().is_some_and(|text| text.contains(part)), "{difference:?}"),
                None => assert_eq!(difference, None),
            }
        }
    }
}
