//! Positions on the ring. Source: Dynamo (DeCandia et al. 2007), 4.2 and 6.2, strategy 3.

use std::fmt;

/// Fixed for ever: tokens are part of every key on disk.
const TOKEN_SEED: u64 = 0x5155_4f52_4154_4531;

/// The position of a partition key on the ring: 64 bits, evenly spread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Token(pub u64);

impl Token {
    /// The token of a partition key: xxh3-64 with a fixed seed.
    pub fn of(partition_key: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(partition_key, TOKEN_SEED))
    }

    /// The partition that holds this token, of `partitions` equal ranges.
    ///
    /// Panics unless `partitions` is a power of two of at most 65,536.
    pub fn partition(self, partitions: u32) -> PartitionIndex {
        assert!(partitions.is_power_of_two() && partitions <= 1 << 16, "{partitions} partitions");
        let bits = partitions.trailing_zeros();
        let index = if bits == 0 { 0 } else { self.0 >> (64 - bits) };
        PartitionIndex(u16::try_from(index).expect("at most 16 bits remain"))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the ring's equal token ranges: the unit of placement and of streaming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PartitionIndex(pub u16);

impl PartitionIndex {
    /// As an index into slices.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The first token of this partition, of `partitions` equal ranges.
    pub fn first_token(self, partitions: u32) -> Token {
        let bits = partitions.trailing_zeros();
        Token(if bits == 0 { 0 } else { u64::from(self.0) << (64 - bits) })
    }

    /// The last token of this partition, inclusive.
    pub fn last_token(self, partitions: u32) -> Token {
        let width = u64::MAX >> partitions.trailing_zeros();
        Token(self.first_token(partitions).0 | width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_frozen() {
        let golden = ["", "a", "user:42", "Quorate"].map(|it| Token::of(it.as_bytes()).to_string());
        assert_eq!(golden, GOLDEN);
    }

    const GOLDEN: [&str; 4] =
        ["5dada4af137ce7d9", "6446884e7459685e", "ace6fa8854cc261a", "aedde5273e1fc289"];

    #[test]
    fn partitions_tile_the_ring() {
        for partitions in [1, 2, 256, 65_536] {
            let mut next = 0u64;
            for index in 0..partitions {
                let it = PartitionIndex(u16::try_from(index).unwrap());
                assert_eq!(it.first_token(partitions).0, next);
                assert_eq!(it.first_token(partitions).partition(partitions), it);
                assert_eq!(it.last_token(partitions).partition(partitions), it);
                next = it.last_token(partitions).0.wrapping_add(1);
            }
            assert_eq!(next, 0, "the last range ends at the last token");
        }
    }
}
