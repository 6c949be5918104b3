//! Dirty marks: what takes the place of a hint that is not kept (rule H3).

use bytes::{BufMut, Bytes, BytesMut};
use model::{KeyspaceId, NodeId, StorageKey, Token};

use super::hints::malformed;
use crate::storage::{RangeRequest, Space, Storage, StorageError};

/// What the keys of dirty marks begin with, in the system's space.
pub const DIRTY_PREFIX: &[u8] = b"\0dirty/";
const TARGET_BYTES: usize = 16;

/// A durable note that a target may lack writes in one part of the ring: compare this first. The
/// part is 1/65,536 of the ring, so it lies within one partition of any cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirtyMark {
    /// Who may lack writes.
    pub target: NodeId,
    /// In which keyspace.
    pub keyspace: KeyspaceId,
    /// The highest 16 bits of the tokens.
    pub token_prefix: u16,
}

impl DirtyMark {
    /// The mark that covers a key.
    pub fn of(target: NodeId, key: &StorageKey) -> Self {
        let [high, low, ..] = key.token().0.to_be_bytes();
        Self { target, keyspace: key.keyspace(), token_prefix: u16::from_be_bytes([high, low]) }
    }

    /// The first token covered.
    pub fn first_token(self) -> Token {
        Token(u64::from(self.token_prefix) << 48)
    }

    pub(super) fn system_key(self) -> Bytes {
        let mut key = BytesMut::from(&marks_of(self.target)[..]);
        key.put_u32(self.keyspace.0);
        key.put_u16(self.token_prefix);
        key.freeze()
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let body = key.strip_prefix(DIRTY_PREFIX)?;
        let (target, rest) = body.split_at_checked(TARGET_BYTES)?;
        let (keyspace, token_prefix) = rest.split_at_checked(4)?;
        Some(Self {
            target: NodeId::from_slice(target)?,
            keyspace: KeyspaceId(u32::from_be_bytes(keyspace.try_into().ok()?)),
            token_prefix: u16::from_be_bytes(token_prefix.try_into().ok()?),
        })
    }
}

/// The dirty marks of a target, in ring order per keyspace, each with its generation.
pub fn dirty_marks(
    storage: &impl Storage,
    target: NodeId,
) -> Result<Vec<(DirtyMark, u64)>, StorageError> {
    let rows = storage.range(&RangeRequest::prefix(Space::System, marks_of(target)))?.rows;
    let mark = |key: &[u8], value: &[u8]| Some((DirtyMark::parse(key)?, generation_of(value)));
    rows.iter().map(|(key, value)| mark(key, value).ok_or_else(|| malformed(key))).collect()
}

/// How often a mark has been set since it was last gone: its row's value. A mark that was set again
/// covers more than it did.
pub(super) fn generation_of(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}

/// What the keys of a target's marks begin with.
pub(super) fn marks_of(target: NodeId) -> Bytes {
    [DIRTY_PREFIX, &target.to_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use model::Key;

    use super::*;

    #[test]
    fn dirty_marks_round_trip_and_are_frozen() {
        let key = Key::new(&b"a"[..]);
        let key = StorageKey::encode(KeyspaceId(7), key.token(), &key);
        let mark = DirtyMark::of(NodeId(3), &key);
        assert_eq!(mark.first_token().0 >> 48, key.token().0 >> 48);
        let expected =
            [b"\0dirty/", &[0; 15][..], &[3, 0, 0, 0, 7], &key.as_bytes()[4..6]].concat();
        assert_eq!(mark.system_key(), expected);
        assert_eq!(DirtyMark::parse(&expected), Some(mark));
        assert_eq!(DirtyMark::parse(&expected[..expected.len() - 1]), None);
    }
}
