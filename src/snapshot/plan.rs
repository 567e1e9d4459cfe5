//! What is to be copied: published tables, their columns, and how a large one is cut into pieces. Pure data; asks no server.

use crate::model::QualifiedName;
use crate::schema::binary::ColumnType;

/// A page range is never smaller than this, pages (512 MiB of the default 8 KiB). Several sessions that fill one table cost
/// more than one does, measured with a primary key and a processor for each server: 1.3 times the time for 1 M rows. It pays
/// where processors are idle and the table would otherwise keep one of them busy for long.
pub const SMALLEST_RANGE_PAGES: u64 = 65_536;
/// Pieces of one table for each worker: enough that the last ones end together, few enough that a piece stays large.
const PIECES_PER_WORKER: u64 = 8;

/// How the primary stores a table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// An ordinary heap: rows have a page, and a page range can be scanned alone.
    Heap,
    /// An ordinary table with another access method: `ctid` may mean anything there.
    OtherMethod,
    /// A partitioned root, published as itself (`publish_via_partition_root`).
    Partitioned,
}

/// One published column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishedColumn {
    /// `attname`.
    pub(super) name: String,
    /// Its type on the primary.
    pub(super) column_type: ColumnType,
    /// Stored generated columns are published from 18 on if asked for; plain COPY refuses them.
    pub(super) is_generated: bool,
}

/// One table of the publication as the primary has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishedTable {
    /// `pg_class.oid` on the primary.
    pub(super) oid: u32,
    /// Schema and name, the same on both sides.
    pub(super) name: QualifiedName,
    /// Heap, other, or partitioned root.
    pub(super) storage: Storage,
    /// The published columns, in catalog order; may be empty.
    pub(super) columns: Vec<PublishedColumn>,
    /// The publication's row filter as SQL.
    pub(super) filter: Option<String>,
    /// Size of the main fork, pages; all leaves together for a partitioned root.
    pub(super) pages: u64,
    /// The planner's estimate, or one made from the size.
    pub(super) rows_estimated: u64,
}

/// Pages from `first` up to, not including, `end`; open-ended without one, since pages may have been added since they were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRange {
    pub(super) first: u64,
    pub(super) end: Option<u64>,
}

/// Cuts each table into pieces: `result[i]` holds the ranges of `tables[i]`, or one `None` for the table as a whole.
///
/// Only a heap that would keep one worker busy after the others have ended is cut, because whole tables keep their rows
/// in order and need no mark for half-filled ones. `must_be_whole(i)` forbids it.
pub(super) fn pieces(
    tables: &[PublishedTable],
    workers: usize,
    smallest_range_pages: u64,
    must_be_whole: impl Fn(usize) -> bool,
) -> Vec<Vec<Option<PageRange>>> {
    let workers = workers.max(1) as u64;
    let total_pages: u64 = tables.iter().map(|table| table.pages).sum();
    let fair_share_pages = total_pages / workers;
    let cut = |(index, table): (usize, &PublishedTable)| {
        let is_large = table.pages > fair_share_pages + fair_share_pages / 4;
        if workers == 1 || !is_large || table.storage != Storage::Heap || must_be_whole(index) {
            return vec![None];
        }
        let wanted_pages = (fair_share_pages / 4).max(smallest_range_pages.max(1));
        ranges(table.pages, (table.pages / wanted_pages).min(workers * PIECES_PER_WORKER))
    };
    tables.iter().enumerate().map(cut).collect()
}

/// `count` ranges of about the same size that together hold every page from 0 on.
fn ranges(pages: u64, count: u64) -> Vec<Option<PageRange>> {
    if count < 2 {
        return vec![None];
    }
    let boundary = |index: u64| pages / count * index + pages % count * index / count;
    (0..count)
        .map(|index| {
            let end = (index + 1 < count).then(|| boundary(index + 1));
            Some(PageRange { first: boundary(index), end })
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn table(name: &str, pages: u64) -> PublishedTable {
        PublishedTable {
            oid: 16384,
            name: QualifiedName::new("public", name),
            storage: Storage::Heap,
            columns: Vec::new(),
            filter: None,
            pages,
            rows_estimated: 0,
        }
    }

    fn piece_counts(pages: &[u64], workers: usize) -> Vec<usize> {
        let tables: Vec<_> = pages.iter().map(|pages| table("t", *pages)).collect();
        pieces(&tables, workers, 4096, |_| false).iter().map(Vec::len).collect()
    }

    #[test]
    fn only_a_table_that_would_end_last_is_cut() {
        for (pages, workers, expected) in [
            (&[27_000][..], 4, &[6][..]),
            (&[27_000], 1, &[1]),
            (&[5_000], 4, &[1]),
            (&[8_192], 4, &[2]),
            (&[0], 4, &[1]),
            (&[27_000; 4], 4, &[1; 4]),
            (&[27_000; 5], 4, &[1; 5]),
            (&[100_000, 10, 10], 4, &[15, 1, 1]),
            (&[134_217_728], 4, &[16]),
            (&[u64::MAX / 4], 64, &[256]),
            (&[], 4, &[]),
        ] {
            assert_eq!(piece_counts(pages, workers), expected, "{pages:?} with {workers} workers");
        }
    }

    #[test]
    fn a_table_that_has_no_pages_of_its_own_or_holds_rows_of_others_stays_whole() {
        for storage in [Storage::OtherMethod, Storage::Partitioned] {
            let tables = [PublishedTable { storage, ..table("t", 100_000) }];
            assert_eq!(pieces(&tables, 4, 4096, |_| false), [[None]]);
        }
        assert_eq!(pieces(&[table("t", 100_000)], 4, 4096, |_| true), [[None]]);
    }

    #[test]
    fn ranges_hold_every_page_once_and_the_last_is_open() {
        for (pages, count) in [(8192, 2), (100_001, 7), (27_000, 6), (u64::MAX, 32)] {
            let ranges: Vec<PageRange> = ranges(pages, count).into_iter().flatten().collect();
            assert_eq!(ranges.len() as u64, count);
            assert_eq!(ranges[0].first, 0);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].end, Some(pair[1].first));
                assert!(pair[0].first < pair[1].first);
            }
            assert_eq!(ranges.last().unwrap().end, None);
        }
    }
}
