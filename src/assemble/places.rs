//! Where the descriptions (relations, types) stand in a streamed transaction's body: what a rollback must not take back, and all that it has
//! to read. Pure. Few as a rule: the primary describes a table once in a transaction, and again only after a change of it.

use std::ops::Range;

/// In order; those that stand side by side are one.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: Vec<Range<u64>>,
}

impl Places {
    /// One stands here, behind all others.
    pub(super) fn note(&mut self, place: Range<u64>) {
        match self.places.last_mut() {
            Some(last) if last.end == place.start => last.end = place.end,
            _ => self.places.push(place),
        }
    }

    /// The body ends at `offset` now, where something else than a description began, and those that stood behind it move up to its end.
    /// Gives where they stood.
    pub(super) fn cut(&mut self, offset: u64) -> Vec<Range<u64>> {
        let moved = self.places.split_off(self.places.partition_point(|place| place.start < offset));
        let moved_bytes: u64 = moved.iter().map(|place| place.end - place.start).sum();
        if moved_bytes > 0 {
            self.note(offset..offset + moved_bytes);
        }
        moved
    }

    /// Memory held, bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        (self.places.len() * size_of::<Range<u64>>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(places: &[Range<u64>]) -> Vec<(u64, u64)> {
        places.iter().map(|place| (place.start, place.end)).collect()
    }

    #[test]
    fn what_stood_behind_a_cut_moves_up_and_neighbours_are_one() {
        let mut places = Places::default();
        assert!(places.cut(0).is_empty());
        for place in [10..20, 20..30, 50..60, 80..85] {
            places.note(place);
        }
        assert_eq!(pairs(&places.places), [(10, 30), (50, 60), (80, 85)]);
        // Each cut, what it moves, and what stands then; the third moves it behind another, which becomes one with it.
        for (offset, moved, left) in [
            (85, vec![], vec![(10, 30), (50, 60), (80, 85)]),
            (70, vec![(80, 85)], vec![(10, 30), (50, 60), (70, 75)]),
            (30, vec![(50, 60), (70, 75)], vec![(10, 45)]),
            (0, vec![(10, 45)], vec![(0, 35)]),
        ] {
            assert_eq!(pairs(&places.cut(offset)), moved);
            assert_eq!(pairs(&places.places), left);
            assert_eq!(places.size_bytes(), left.len() as u64 * 16);
        }
    }
}
