//! Key and value behind each other, with their count before them: one allocation for each row.
//!
//! `Bytes` made from a vector keeps its count in an allocation of its own, which comes with the first
//! clone. Whoever finds a row clones it, and in a cache that is larger than the processor's every
//! allocation that is touched is a wait for memory.

use bytes::Bytes;

/// So many bytes at most, of which some count.
struct Inline<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Inline<N> {
    fn join(key: &[u8], value: &[u8]) -> Bytes {
        let length = key.len() + value.len();
        let mut bytes = [0; N];
        bytes[..key.len()].copy_from_slice(key);
        bytes[key.len()..length].copy_from_slice(value);
        let length = u16::try_from(length).expect("no longer than the longest of these");
        Bytes::from_owner(Self { length, bytes })
    }
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Joins both. The sizes fill what allocators hand out, less 10 bytes for count and length. Longer rows have
/// their count apart: it is a small part of what finding them costs.
pub(super) fn joined(key: &[u8], value: &[u8]) -> Bytes {
    match key.len() + value.len() {
        0..=54 => Inline::<54>::join(key, value),
        55..=70 => Inline::<70>::join(key, value),
        71..=86 => Inline::<86>::join(key, value),
        87..=118 => Inline::<118>::join(key, value),
        119..=150 => Inline::<150>::join(key, value),
        151..=182 => Inline::<182>::join(key, value),
        183..=214 => Inline::<214>::join(key, value),
        215..=246 => Inline::<246>::join(key, value),
        247..=310 => Inline::<310>::join(key, value),
        311..=374 => Inline::<374>::join(key, value),
        375..=438 => Inline::<438>::join(key, value),
        439..=502 => Inline::<502>::join(key, value),
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
