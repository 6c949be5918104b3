//! Which key is next, and what its value is. Everything follows from a seed.

use bytes::Bytes;
use clap::ValueEnum;
use model::Key;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::zipfian::Zipfian;

/// How popular keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Popularity {
    /// All keys alike.
    Uniform,
    /// A few keys very, most hardly: Zipf's law.
    Zipfian,
}

/// The keys and values of a load.
#[derive(Clone, Debug)]
pub(crate) struct KeySpace {
    /// How many keys there are.
    pub(crate) keys: u64,
    /// Bytes of a key.
    pub(crate) key_bytes: usize,
    /// Bytes of a value.
    pub(crate) value_bytes: usize,
    /// How popular they are.
    pub(crate) popularity: Popularity,
    /// The exponent of Zipf's law.
    pub(crate) exponent: f64,
    /// Decides every choice.
    pub(crate) seed: u64,
}

/// Random bytes from which values are cut, beyond the length of one value.
const POOL_BYTES: usize = 64 << 10;

impl KeySpace {
    /// So many keys of sixteen bytes, all as popular.
    pub(crate) fn uniform(keys: u64, value_bytes: usize) -> Self {
        let (popularity, exponent) = (Popularity::Uniform, 0.99);
        Self { keys, key_bytes: 16, value_bytes, popularity, exponent, seed: 1 }
    }

    /// The key of an index.
    pub(crate) fn key(&self, index: u64) -> Key {
        let width = self.key_bytes.saturating_sub(1);
        Key::new(format!("k{index:0width$}"))
    }

    /// The shortest key that tells all keys apart.
    pub(crate) fn key_bytes_min(&self) -> usize {
        1 + self.keys.saturating_sub(1).to_string().len()
    }

    /// Random bytes from which all values are cut.
    pub(crate) fn pool(&self) -> Bytes {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut pool = vec![0; self.value_bytes + POOL_BYTES];
        random.fill(&mut pool[..]);
        pool.into()
    }
}

/// Chooses for one of the clients of a load.
pub(crate) struct Chooser {
    space: KeySpace,
    zipfian: Option<Zipfian>,
    random: StdRng,
    pool: Bytes,
}

impl Chooser {
    /// The choices of client number `client`.
    pub(crate) fn new(space: &KeySpace, pool: Bytes, client: u64) -> Self {
        let zipfian = match space.popularity {
            Popularity::Uniform => None,
            Popularity::Zipfian => Some(Zipfian::new(space.keys, space.exponent)),
        };
        let random = StdRng::seed_from_u64(space.seed.wrapping_add(client.wrapping_mul(SPREAD)));
        Self { space: space.clone(), zipfian, random, pool }
    }

    /// The next key.
    pub(crate) fn key(&mut self) -> Key {
        let index = self.index();
        self.space.key(index)
    }

    /// So many keys, all different.
    pub(crate) fn keys(&mut self, count: usize) -> Vec<Key> {
        let mut indexes = std::collections::BTreeSet::new();
        while indexes.len() < count {
            let index = self.index();
            // A popular key would be drawn over and over: its neighbours take its place.
            let free = (index..self.space.keys).chain(0..index).find(|it| !indexes.contains(it));
            let Some(free) = free else { break };
            indexes.insert(free);
        }
        indexes.into_iter().map(|index| self.space.key(index)).collect()
    }

    /// The next value.
    pub(crate) fn value(&mut self) -> Bytes {
        let start = self.random.random_range(0..=self.pool.len() - self.space.value_bytes);
        self.pool.slice(start..start + self.space.value_bytes)
    }

    /// True in this share of all draws.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.random.random::<f64>() < share
    }

    fn index(&mut self) -> u64 {
        match &self.zipfian {
            None => self.random.random_range(0..self.space.keys),
            Some(zipfian) => zipfian.rank(|| self.random.random()) - 1,
        }
    }
}

/// Keeps the seeds of clients apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn space(popularity: Popularity) -> KeySpace {
        KeySpace {
            keys: 1_000,
            key_bytes: 16,
            value_bytes: 100,
            popularity,
            exponent: 0.99,
            seed: 1,
        }
    }

    #[test]
    fn sizes_are_exact() {
        for popularity in [Popularity::Uniform, Popularity::Zipfian] {
            let space = space(popularity);
            let mut chooser = Chooser::new(&space, space.pool(), 0);
            for _ in 0..1_000 {
                assert_eq!(chooser.key().partition_key.len(), 16);
                assert_eq!(chooser.value().len(), 100);
            }
        }
        assert_eq!(space(Popularity::Uniform).key_bytes_min(), 4);
    }

    #[test]
    fn a_batch_names_no_key_twice() {
        let space = space(Popularity::Zipfian);
        let mut chooser = Chooser::new(&space, space.pool(), 0);
        for count in [1, 100, 1_000] {
            let keys = chooser.keys(count);
            assert_eq!(keys.len(), count);
            assert!(keys.windows(2).all(|it| it[0] != it[1]));
        }
        assert_eq!(chooser.keys(2_000).len(), 1_000, "there are no more");
    }

    #[test]
    fn clients_choose_differently_and_repeatably() {
        let space = space(Popularity::Uniform);
        let choose = |client| {
            let mut chooser = Chooser::new(&space, space.pool(), client);
            (0..20).map(|_| chooser.key()).collect::<Vec<_>>()
        };
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
    }
}
