//! Random choices from a printed seed.

use std::{env, process, time::SystemTime};

/// A source of random numbers: splitmix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(u64);

impl Random {
    /// Seeded from QUORATE_TEST_SEED or from the clock; prints the seed under the test's name.
    pub(crate) fn new(test: &str) -> Self {
        let seed = match env::var("QUORATE_TEST_SEED") {
            Ok(text) => text.parse().expect("QUORATE_TEST_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let nanos = now.expect("the clock is past 1970").subsec_nanos();
                u64::from(nanos) << 20 ^ u64::from(process::id())
            }
        };
        println!("{test}: QUORATE_TEST_SEED={seed}");
        Self(seed)
    }

    /// From a number that another source has drawn.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    /// A number below `bound`. Panics for 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("64 bits");
        usize::try_from(self.next() % bound).expect("below a usize")
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
