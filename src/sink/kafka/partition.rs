//! Which partition a record belongs to: Java's murmur2 over the key's bytes, as Kafka's own producer takes it, so that both
//! sides of a migration place a key alike.

/// Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;

/// The partition of a key among `count`; a record without a key goes to the first, where it stays if partitions are added.
pub fn partition_of(key: Option<&[u8]>, count: i32) -> i32 {
    let Some(key) = key else { return 0 };
    // `toPositive` of the Java client: the sign bit is cut off.
    (murmur2(key) & 0x7fff_ffff) as i32 % count.max(1)
}

/// 32 bits of MurmurHash2, as the Java client computes it.
pub fn murmur2(bytes: &[u8]) -> u32 {
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of `UtilsTest.testMurmur2` in Kafka's own sources.
    #[test]
    fn murmur2_is_that_of_the_java_client() {
        for (text, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, expected, "{text}");
        }
    }

    /// Keys and their partitions among six, by the Java client: `tests/data/kafka/KeyVectors.java`.
    #[test]
    fn keys_are_placed_as_the_java_client_does() {
        let vectors = include_str!("../../../tests/data/kafka/keys.jsonl");
        for line in vectors.lines() {
            let vector: serde_json::Value = serde_json::from_str(line).unwrap();
            for (key, partition) in [("key", "partition"), ("key_with_schema", "partition_with_schema")] {
                let found = partition_of(Some(vector[key].as_str().unwrap().as_bytes()), 6);
                assert_eq!(i64::from(found), vector[partition].as_i64().unwrap(), "{line}");
            }
        }
    }

    #[test]
    fn a_record_without_key_has_one_partition_of_its_topic() {
        assert_eq!(partition_of(None, 6), 0);
        assert!((0..6).contains(&partition_of(Some(b"21"), 6)));
        assert_eq!(partition_of(Some(b"x"), 0), 0);
    }
}
