//! Where in a streamed transaction's body each subtransaction first appears, and behind how many rows: what a rollback of it cuts off. Pure.
//!
//! A loop with an EXCEPTION clause makes one subtransaction a row, so ten million entries are nothing strange. They are kept
//! as differences in sealed blocks, about 4 bytes each: ids and offsets mostly grow in small steps.

/// Most subtransactions of one transaction that are remembered. Postgres' own apply worker ends there too: its array of
/// 16-byte `SubXactInfo` (`src/backend/replication/logical/worker.c`) doubles up to `MaxAllocSize`, 1 GiB.
pub(super) const LIMIT: usize = 1 << 26;

/// Entries of a sealed block.
const BLOCK_ENTRIES: usize = 128;
/// Ids lately seen, so that rows of a parent and its children in turn cost no search.
const RECENT_ENTRIES: usize = 64;

/// More than [`LIMIT`] subtransactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LimitReached;

/// One subtransaction's first appearance. `key` is its id counted from the top-level transaction's, so that it grows across
/// the wrap-around of ids: a subtransaction always gets its id after its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct First {
    key: u32,
    pub(super) offset: u64,
    /// In the body before it.
    pub(super) rows: u64,
}

/// `BLOCK_ENTRIES` entries, all but the first as differences.
#[derive(Debug)]
struct Block {
    first: First,
    smallest_key: u32,
    largest_key: u32,
    /// Largest key of this block and all before it: ascending from block to block, so that it can be searched.
    largest_key_so_far: u32,
    differences: Box<[u8]>,
}

/// The first appearances, in order of offset.
#[derive(Debug)]
pub(super) struct Subtransactions {
    top: u32,
    last: u32,
    sealed: Vec<Block>,
    differences_bytes: usize,
    tail: Vec<First>,
    recent: [u32; RECENT_ENTRIES],
}

impl Subtransactions {
    /// None yet, of the top-level transaction `top`.
    pub(super) fn new(top: u32) -> Self {
        Self { top, last: top, sealed: Vec::new(), differences_bytes: 0, tail: Vec::new(), recent: [0; RECENT_ENTRIES] }
    }

    /// A change of `xid` stands at `offset`, behind so many rows; neither ever goes back, but by a cut.
    #[inline]
    pub(super) fn note(&mut self, xid: u32, offset: u64, rows: u64) -> Result<(), LimitReached> {
        if xid == self.last { Ok(()) } else { self.note_other(xid, offset, rows) }
    }

    fn note_other(&mut self, xid: u32, offset: u64, rows: u64) -> Result<(), LimitReached> {
        let key = xid.wrapping_sub(self.top);
        let slot = key as usize % RECENT_ENTRIES;
        // Key 0 is the top-level transaction itself; an empty slot holds 0 too and means the same.
        if key != 0 && self.recent[slot] != key {
            if self.find(key).is_none() {
                if self.len() >= LIMIT {
                    return Err(LimitReached);
                }
                self.tail.push(First { key, offset, rows });
                self.seal_when_full();
            }
            self.recent[slot] = key;
        }
        self.last = xid;
        Ok(())
    }

    /// `xid` rolled back: where its first change stands, if it had any. It and all that appeared later are forgotten.
    pub(super) fn cut(&mut self, xid: u32) -> Option<First> {
        let cut = self.find(xid.wrapping_sub(self.top))?;
        let offset = cut.offset;
        while self.sealed.last().is_some_and(|block| block.first.offset >= offset) {
            self.tail.clear();
            self.unseal();
        }
        // The block that the cut goes through becomes the open one again.
        if self.tail.first().is_none_or(|first| first.offset >= offset) {
            self.tail.clear();
            self.unseal();
        }
        self.tail.retain(|first| first.offset < offset);
        self.seal_when_full();
        self.recent = [0; RECENT_ENTRIES];
        self.last = self.top;
        Some(cut)
    }

    /// Number of subtransactions remembered.
    pub(super) fn len(&self) -> usize {
        self.sealed.len() * BLOCK_ENTRIES + self.tail.len()
    }

    /// Memory held, bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        (self.differences_bytes + self.sealed.len() * size_of::<Block>() + self.tail.len() * size_of::<First>()) as u64
    }

    fn find(&self, key: u32) -> Option<First> {
        if let Some(first) = self.tail.iter().rev().find(|first| first.key == key) {
            return Some(*first);
        }
        let start = self.sealed.partition_point(|block| block.largest_key_so_far < key);
        let mut blocks =
            self.sealed[start..].iter().filter(|block| (block.smallest_key..=block.largest_key).contains(&key));
        blocks.find_map(|block| block.entries().find(|first| first.key == key))
    }

    fn seal_when_full(&mut self) {
        if self.tail.len() < BLOCK_ENTRIES {
            return;
        }
        let so_far = self.sealed.last().map_or(0, |block| block.largest_key_so_far);
        let block = Block::seal(&self.tail, so_far);
        self.tail.clear();
        self.differences_bytes += block.differences.len();
        self.sealed.push(block);
    }

    /// Makes the last sealed block the open one.
    fn unseal(&mut self) {
        if let Some(block) = self.sealed.pop() {
            self.differences_bytes -= block.differences.len();
            self.tail.extend(block.entries());
        }
    }
}

impl Block {
    fn seal(entries: &[First], largest_key_before: u32) -> Self {
        let first = entries[0];
        let mut differences = Vec::with_capacity(entries.len() * 4);
        for pair in entries.windows(2) {
            let step = i64::from(pair[1].key) - i64::from(pair[0].key);
            let rows = pair[1].rows - pair[0].rows;
            // Signs to the second lowest bit, so that small steps either way stay short; the lowest tells that it is not one row.
            let step = ((step << 1) ^ (step >> 63)) as u64;
            put_number((step << 1) | u64::from(rows != 1), &mut differences);
            put_number(pair[1].offset - pair[0].offset, &mut differences);
            if rows != 1 {
                put_number(rows, &mut differences);
            }
        }
        let keys = || entries.iter().map(|entry| entry.key);
        let largest_key = keys().max().unwrap_or(first.key);
        Self {
            first,
            smallest_key: keys().min().unwrap_or(first.key),
            largest_key,
            largest_key_so_far: largest_key.max(largest_key_before),
            differences: differences.into_boxed_slice(),
        }
    }

    fn entries(&self) -> impl Iterator<Item = First> + '_ {
        let mut rest = &self.differences[..];
        let mut entry = self.first;
        let following = std::iter::from_fn(move || {
            let step = take_number(&mut rest)?;
            let offset = take_number(&mut rest)?;
            let rows = if step & 1 == 1 { take_number(&mut rest)? } else { 1 };
            let step = step >> 1;
            let step = (step >> 1) as i64 ^ -((step & 1) as i64);
            let key = (i64::from(entry.key) + step) as u32;
            entry = First { key, offset: entry.offset + offset, rows: entry.rows + rows };
            Some(entry)
        });
        std::iter::once(self.first).chain(following)
    }
}

/// Seven bits a byte, lowest first; the highest bit tells that more follow.
fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Notes (`true`) or rolls back (`false`) each id, and compares with a plain list after each step.
    fn check(top: u32, steps: &[(bool, u32)]) {
        let mut subtransactions = Subtransactions::new(top);
        let mut reference: Vec<(u32, First)> = Vec::new();
        for (number, &(is_note, id)) in steps.iter().enumerate() {
            let number = number as u64;
            // No row, one or more between two of them.
            let (offset, rows, xid) = (number * 300, number * 3 / 4, top.wrapping_add(id));
            let position = reference.iter().position(|(other, _)| *other == xid);
            if is_note {
                subtransactions.note(xid, offset, rows).unwrap();
                if id != 0 && position.is_none() {
                    reference.push((xid, First { key: id, offset, rows }));
                }
            } else {
                assert_eq!(subtransactions.cut(xid), position.map(|position| reference[position].1));
                reference.truncate(position.unwrap_or(reference.len()));
            }
            assert_eq!(subtransactions.len(), reference.len());
        }
        for (xid, first) in reference {
            assert_eq!(subtransactions.find(xid.wrapping_sub(top)), Some(first));
        }
    }

    #[test]
    fn the_first_appearance_counts_and_a_rollback_forgets_all_later_ones() {
        check(
            100,
            &[(true, 0), (true, 1), (true, 0), (true, 1), (true, 2), (false, 1), (false, 2), (true, 2), (false, 2)],
        );
        // Across the wrap-around of ids, and a parent that appears after its child.
        check(u32::MAX - 1, &[(true, 1), (true, 4), (true, 3), (false, 4), (false, 3), (false, 1)]);
    }

    #[test]
    fn a_rollback_reaches_through_sealed_blocks() {
        for back in [1, 127, 128, 129, 300, 999] {
            let mut steps: Vec<(bool, u32)> = (1..=1000).map(|id| (true, id)).collect();
            steps.extend([(false, 1000 - back), (true, 2000), (true, 5), (false, 2000)]);
            check(7, &steps);
        }
    }

    #[test]
    fn ten_million_fit_into_a_few_bytes_each() {
        let mut subtransactions = Subtransactions::new(1);
        for id in 0..1_000_000u32 {
            subtransactions.note(2 + id, u64::from(id) * 150, id.into()).unwrap();
        }
        assert!(subtransactions.size_bytes() < 4_000_000, "{}", subtransactions.size_bytes());
        let cut = First { key: 500_001, offset: 500_000 * 150, rows: 500_000 };
        assert_eq!(subtransactions.cut(500_002), Some(cut));
        assert_eq!(subtransactions.len(), 500_000);
    }

    proptest! {
        #[test]
        fn any_order_gives_what_a_plain_list_gives(
            top in any::<u32>(),
            steps in prop::collection::vec((prop::bool::weighted(0.98), 0u32..400), 0..900),
        ) {
            check(top, &steps);
        }
    }
}
