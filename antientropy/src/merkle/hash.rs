//! Hashes of records, and of sets of them.

use std::{
    fmt,
    hash::Hasher,
    ops::{BitXor, BitXorAssign},
};

use model::{Record, StorageKey};
use siphasher::sip128::{Hasher128, SipHasher13};

/// The format of the hashes, written with every leaf: trees of different formats cannot be compared.
pub const HASH_FORMAT: u8 = 2;

/// The XOR of the hashes of a set of records; zero for none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeHash([u64; 2]);

impl TreeHash {
    /// The hash of no records.
    pub const ZERO: Self = Self([0, 0]);

    /// As it is written and sent.
    pub fn to_bytes(self) -> [u8; 16] {
        let [high, low] = self.0.map(u128::from);
        (high << 64 | low).to_be_bytes()
    }

    /// From what was written or sent.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        Self([u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(rest)])
    }
}

impl BitXor for TreeHash {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self([self.0[0] ^ other.0[0], self.0[1] ^ other.0[1]])
    }
}

impl BitXorAssign for TreeHash {
    fn bitxor_assign(&mut self, other: Self) {
        *self = *self ^ other;
    }
}

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0[0], self.0[1])
    }
}

impl fmt::Debug for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes records with a key that no client knows: XOR is linear, and with known hashes some hundred
/// records could be made up that cancel each other out (rule M1).
#[derive(Clone, Copy)]
pub struct RecordHasher {
    cluster_key: [u8; 16],
}

impl RecordHasher {
    /// With the key that was made with the cluster.
    pub fn new(cluster_key: [u8; 16]) -> Self {
        Self { cluster_key }
    }

    /// SipHash-1-3 with 128 bits (Aumasson and Bernstein 2012) of the format, the record's header, whose
    /// checksum stands for the value, and the key. Nothing that only one replica knows takes part. The
    /// variant with the fewer rounds will do: who makes up records never sees a hash.
    pub fn hash(&self, key: &StorageKey, record: &Record) -> TreeHash {
        let mut hasher = SipHasher13::new_with_key(&self.cluster_key);
        hasher.write(&[HASH_FORMAT]);
        hasher.write(record.header());
        hasher.write(key.as_bytes());
        let hash = hasher.finish128();
        TreeHash([hash.h1, hash.h2])
    }
}
