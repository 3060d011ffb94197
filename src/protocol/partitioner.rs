//! Which partition of its topic a record goes to, when the application names none.
//!
//! A record with a key: Kafka's murmur2 of the key's bytes, so that data keyed by a Kafka producer and by this
//! one meets in the same partition. An empty key is a key. A record without one: [`Sticky`] stays with a
//! partition until it has got about a batch of bytes (KIP-794), then draws another among those that can be
//! written to; batches fill, and load is even over time.
//!
//! Pure: randomness is a seed, who can be written to is asked by a closure.

/// Kafka's default for keys. `partitions` is at least 1.
pub(crate) fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has a partition");
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Murmur2 with Kafka's seed; Kafka shows the same 32 bits with a sign.
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MIX: u32 = 0x5bd1_e995;
    let length = u32::try_from(bytes.len() & 0xffff_ffff).expect("the upper bits were cut");
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = SEED ^ length;
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ hash >> 15
}

/// Where records of one topic that have no key go.
#[derive(Clone, Debug)]
pub(crate) struct Sticky {
    partition: Option<u32>,
    /// What the partition got since it was drawn.
    bytes: u64,
    bytes_max: u64,
    random: u64,
}

impl Sticky {
    /// Draws another partition after about `bytes_max` bytes (`batch.size`).
    pub(crate) fn new(bytes_max: u64, seed: u64) -> Self {
        Self { partition: None, bytes: 0, bytes_max, random: seed }
    }

    /// The partition for the next record, of `record_bytes`. `partitions` is at least 1 and may grow; one that
    /// is not available now is avoided as long as another is.
    pub(crate) fn choose(
        &mut self,
        record_bytes: u64,
        partitions: u32,
        is_available: impl Fn(u32) -> bool,
    ) -> u32 {
        assert!(partitions > 0, "a topic has a partition");
        let stays = self
            .partition
            .filter(|&held| self.bytes < self.bytes_max && held < partitions && is_available(held));
        let partition = stays.unwrap_or_else(|| {
            self.bytes = 0;
            self.draw(partitions, is_available)
        });
        self.partition = Some(partition);
        self.bytes = self.bytes.saturating_add(record_bytes);
        partition
    }

    /// Another partition than the last, if there is one to be had.
    fn draw(&mut self, partitions: u32, is_available: impl Fn(u32) -> bool) -> u32 {
        let last = self.partition;
        let others = || (0..partitions).filter(|&one| Some(one) != last && is_available(one));
        let count = others().count() as u64;
        if count > 0 {
            let drawn = usize::try_from(self.below(count)).expect("below a number of partitions");
            return others().nth(drawn).expect("it was counted just now");
        }
        match last.filter(|&last| last < partitions && is_available(last)) {
            Some(last) => last,
            // None can be written to; whichever is drawn has to wait.
            None => u32::try_from(self.below(partitions.into())).expect("below a u32"),
        }
    }

    /// Splitmix64, reduced without a bias that anybody could measure.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_they_do_in_kafka() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_and_is_not_negated() {
        assert_eq!(
            partition_of_key(b"21", 1 << 31),
            (-973_932_308_i32).cast_unsigned() & (u32::MAX >> 1)
        );
        assert_eq!(partition_of_key(b"21", 10), 0);
        assert_eq!(partition_of_key(b"foobar", 7), 1_357_151_166 % 7);
    }

    #[test]
    fn every_key_has_a_partition_and_keeps_it() {
        for partitions in [1, 2, 3, 7, 100, u32::MAX] {
            for length in 0..40 {
                let key = vec![0xfe; length];
                let partition = partition_of_key(&key, partitions);
                assert!(partition < partitions);
                assert_eq!(partition, partition_of_key(&key, partitions));
            }
        }
    }

    #[test]
    fn records_without_a_key_stay_together_until_a_batch_is_full() {
        let mut sticky = Sticky::new(1000, 1);
        let first = sticky.choose(400, 8, |_| true);
        assert_eq!(sticky.choose(400, 8, |_| true), first);
        assert_eq!(sticky.choose(400, 8, |_| true), first, "below the limit when it was chosen");
        assert_ne!(sticky.choose(400, 8, |_| true), first);
    }

    #[test]
    fn over_time_every_partition_gets_its_share() {
        let mut sticky = Sticky::new(1, 7);
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            counts[sticky.choose(1, 5, |_| true) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (1800..2200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_partition_that_cannot_be_written_to_is_left_at_once_and_avoided() {
        let mut sticky = Sticky::new(1 << 20, 3);
        let first = sticky.choose(1, 4, |_| true);
        let second = sticky.choose(1, 4, |one| one != first);
        assert_ne!(second, first);
        let only = (0..4).find(|&one| one != first && one != second).unwrap();
        let mut eager = Sticky::new(1, 3);
        for _ in 0..50 {
            assert_eq!(eager.choose(1, 4, |one| one == only), only);
        }
    }

    #[test]
    fn with_no_partition_to_be_had_one_is_named_all_the_same() {
        let mut sticky = Sticky::new(1, 5);
        assert!((0..100).all(|_| sticky.choose(1, 3, |_| false) < 3));
        assert_eq!(Sticky::new(1, 5).choose(1, 1, |_| true), 0);
    }

    #[test]
    fn the_same_seed_draws_the_same_partitions() {
        let drawn = |seed| {
            let mut sticky = Sticky::new(1, seed);
            (0..20).map(|_| sticky.choose(1, 16, |_| true)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(9), drawn(9));
        assert_ne!(drawn(9), drawn(10));
    }
}
