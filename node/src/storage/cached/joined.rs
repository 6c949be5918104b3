//! Key and value behind each other, with their count before them: one allocation for each row.
//!
//! `Bytes` made from a vector keeps its count in an allocation of its own, which comes with the first
//! clone. Whoever finds a row clones it, and in a cache that is larger than the processor's every
//! allocation that is touched is a wait for memory.

use bytes::Bytes;

/// So many bytes at most, of which some count.
struct Inline<const N: usize> {
    length: usize,
    bytes: [u8; N],
}

impl<const N: usize> Inline<N> {
    fn join(key: &[u8], value: &[u8]) -> Bytes {
        let length = key.len() + value.len();
        let mut bytes = [0; N];
        bytes[..key.len()].copy_from_slice(key);
        bytes[key.len()..length].copy_from_slice(value);
        Bytes::from_owner(Self { length, bytes })
    }
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Joins both. The sizes fill what allocators hand out, less 24 bytes for count, destructor and length;
/// what is longer is seldom worth a wait.
pub(super) fn joined(key: &[u8], value: &[u8]) -> Bytes {
    match key.len() + value.len() {
        0..=40 => Inline::<40>::join(key, value),
        41..=72 => Inline::<72>::join(key, value),
        73..=104 => Inline::<104>::join(key, value),
        105..=136 => Inline::<136>::join(key, value),
        137..=168 => Inline::<168>::join(key, value),
        169..=200 => Inline::<200>::join(key, value),
        201..=232 => Inline::<232>::join(key, value),
        233..=296 => Inline::<296>::join(key, value),
        297..=360 => Inline::<360>::join(key, value),
        361..=488 => Inline::<488>::join(key, value),
        _ => [key, value].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_key_and_value_of_whatever_length() {
        let bytes: Vec<u8> = (0..=255).cycle().take(600).collect();
        for length in 0..600 {
            let (key, value) = bytes[..length].split_at(length / 3);
            let joined = joined(key, value);
            assert_eq!(joined, bytes[..length]);
            assert_eq!(joined.slice(key.len()..), *value);
        }
    }
}
