//! Whether the Kafka client still makes headway while the brokers answer others. One was seen that had dropped its broker for good: librdkafka
//! 2.12 takes one down that a metadata answer leaves out, as that of a starting broker may, and where anything still holds on to it no
//! new connection is ever made ("Decommissioning this broker"). Pure: the looks are passed in.

/// So many looks in vain, one after the other, and the client is given up.
const LOOKS: u32 = 6;

/// What the looks have seen.
#[derive(Debug, Default)]
pub(super) struct Headway {
    /// Records that the client had not delivered at the last one.
    left: Option<i32>,
    in_vain: u32,
}

impl Headway {
    /// A look: so many records are left, and the brokers answer others, or not. Whether the client is given up.
    pub(super) fn is_lost(&mut self, left: i32, brokers_answer: bool) -> bool {
        self.in_vain = if brokers_answer && self.left == Some(left) { self.in_vain + 1 } else { 0 };
        self.left = Some(left);
        self.in_vain >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_given_up_where_nothing_moves_although_the_brokers_answer() {
        // Looks (records left, whether the brokers answer), and whether the last of them gives the client up.
        let still = |count| vec![(5, true); count];
        let cases = [
            (still(6), false),
            (still(7), true),
            ([still(6), vec![(4, true)]].concat(), false),
            ([still(6), vec![(5, false)]].concat(), false),
            ([still(6), vec![(5, false)], still(5)].concat(), false),
            ([still(6), vec![(5, false)], still(6)].concat(), true),
            (vec![(0, true); 7], true),
        ];
        for (looks, expected) in cases {
            let mut headway = Headway::default();
            let last = looks.iter().map(|(left, answer)| headway.is_lost(*left, *answer)).last();
            assert_eq!(last, Some(expected), "{looks:?}");
        }
    }
}
