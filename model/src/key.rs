//! Keys, and their order on disk.
//!
//! A storage key is `keyspace (4) | token (8) | partition key, escaped | sort key`. Byte order is
//! then the order of keyspace, token, partition key and sort key: a partition is one contiguous
//! range, and so are the rows of a partition key.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{KeyspaceId, Limits, PartitionIndex, Token};

/// A row's name within its keyspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// Decides the token and so the replicas. 1 byte to 4 KiB.
    pub partition_key: Bytes,
    /// Orders the rows of a partition key. Up to 1 KiB; empty for a key without one.
    pub sort_key: Bytes,
}

/// Why a key is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A partition key has at least one byte.
    #[error("the partition key is empty")]
    Empty,
    /// The partition key is too long.
    #[error("the partition key has {actual} bytes; at most {limit} are allowed")]
    TooLarge {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes given.
        actual: usize,
    },
    /// The sort key is too long.
    #[error("the sort key has {actual} bytes; at most {limit} are allowed")]
    SortKeyTooLarge {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes given.
        actual: usize,
    },
}

impl Key {
    /// A key without a sort key.
    pub fn new(partition_key: impl Into<Bytes>) -> Self {
        Self { partition_key: partition_key.into(), sort_key: Bytes::new() }
    }

    /// A row of a partition key.
    pub fn with_sort_key(partition_key: impl Into<Bytes>, sort_key: impl Into<Bytes>) -> Self {
        Self { partition_key: partition_key.into(), sort_key: sort_key.into() }
    }

    /// Checks the lengths against the limits.
    pub fn validate(&self, limits: &Limits) -> Result<(), KeyError> {
        let (actual, limit) = (self.partition_key.len(), limits.partition_key_bytes_max);
        if actual == 0 {
            return Err(KeyError::Empty);
        }
        if actual > limit {
            return Err(KeyError::TooLarge { limit, actual });
        }
        let (actual, limit) = (self.sort_key.len(), limits.sort_key_bytes_max);
        if actual > limit {
            return Err(KeyError::SortKeyTooLarge { limit, actual });
        }
        Ok(())
    }

    /// The token of the partition key.
    pub fn token(&self) -> Token {
        Token::of(&self.partition_key)
    }
}

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const TERMINATOR: u8 = 0x01;
const HEAD_BYTES: usize = 4 + 8;

/// A key as it stands on disk and on the peer streams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageKey(Bytes);

impl StorageKey {
    /// Encodes a key. `token` is the key's own, passed in because the caller has it already.
    pub fn encode(keyspace: KeyspaceId, token: Token, key: &Key) -> Self {
        let mut bytes =
            Self::row_prefix_buffer(keyspace, token, &key.partition_key, key.sort_key.len());
        bytes.put_slice(&key.sort_key);
        Self(bytes.freeze())
    }

    /// The prefix that all rows of a partition key share, and nothing else does.
    pub fn row_prefix(keyspace: KeyspaceId, token: Token, partition_key: &[u8]) -> Bytes {
        Self::row_prefix_buffer(keyspace, token, partition_key, 0).freeze()
    }

    fn row_prefix_buffer(
        keyspace: KeyspaceId,
        token: Token,
        partition_key: &[u8],
        spare: usize,
    ) -> BytesMut {
        let zeros = partition_key.iter().filter(|it| **it == ESCAPE).count();
        let mut bytes =
            BytesMut::with_capacity(HEAD_BYTES + partition_key.len() + zeros + 2 + spare);
        bytes.put_u32(keyspace.0);
        bytes.put_u64(token.0);
        if zeros == 0 {
            bytes.put_slice(partition_key);
        } else {
            for byte in partition_key {
                bytes.put_u8(*byte);
                if *byte == ESCAPE {
                    bytes.put_u8(ESCAPED_ZERO);
                }
            }
        }
        bytes.put_slice(&[ESCAPE, TERMINATOR]);
        bytes
    }

    /// The keyspace and token that a storage key, or a bound of a range of them, begins with.
    pub fn first_token(bytes: &[u8]) -> Option<(KeyspaceId, Token)> {
        let (keyspace, rest) = bytes.split_first_chunk()?;
        let token = u64::from_be_bytes(*rest.first_chunk()?);
        Some((KeyspaceId(u32::from_be_bytes(*keyspace)), Token(token)))
    }

    /// The first possible storage key of a partition, and the first one after it. The end is `None`
    /// only for the last partition of the last keyspace id.
    pub fn partition_range(
        keyspace: KeyspaceId,
        partition: PartitionIndex,
        partitions: u32,
    ) -> (Bytes, Option<Bytes>) {
        let (first, last) = (partition.first_token(partitions), partition.last_token(partitions));
        Self::token_range(keyspace, first, last)
    }

    /// The first possible storage key of a range of tokens, and the first one after it. The end is
    /// `None` only for the last token of the last keyspace id.
    pub fn token_range(keyspace: KeyspaceId, first: Token, last: Token) -> (Bytes, Option<Bytes>) {
        let head = |keyspace: u32, token: Token| {
            let mut bytes = BytesMut::with_capacity(HEAD_BYTES);
            bytes.put_u32(keyspace);
            bytes.put_u64(token.0);
            bytes.freeze()
        };
        let end = match last.0.checked_add(1) {
            Some(token) => Some(head(keyspace.0, Token(token))),
            None => keyspace.0.checked_add(1).map(|it| head(it, Token(0))),
        };
        (head(keyspace.0, first), end)
    }

    /// The smallest byte string above every string with this prefix; `None` if there is none.
    pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
        let kept = prefix.iter().rposition(|it| *it != 0xff)?;
        let mut end = prefix[..=kept].to_vec();
        end[kept] += 1;
        Some(end.into())
    }

    /// Takes bytes from disk or from a peer; `None` unless they are a well-formed storage key whose
    /// token is that of its partition key.
    pub fn parse(bytes: Bytes) -> Option<Self> {
        let it = Self(bytes);
        let key = it.key()?;
        (key.token() == it.token()).then_some(it)
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The keyspace's id.
    pub fn keyspace(&self) -> KeyspaceId {
        KeyspaceId(u32::from_be_bytes(self.0[..4].try_into().expect("checked by parse or encode")))
    }

    /// The token.
    pub fn token(&self) -> Token {
        let bytes = self.0[4..HEAD_BYTES].try_into();
        Token(u64::from_be_bytes(bytes.expect("checked by parse or encode")))
    }

    /// Decodes the key; `None` if the bytes are no storage key, which `parse` has excluded. The sort
    /// key, and a partition key without zero bytes, share the storage key's memory.
    pub fn key(&self) -> Option<Key> {
        let body = self.0.get(HEAD_BYTES..)?;
        let mut unescaped: Option<Vec<u8>> = None;
        let mut at = 0;
        loop {
            let zero = at + body.get(at..)?.iter().position(|it| *it == ESCAPE)?;
            match *body.get(zero + 1)? {
                TERMINATOR => {
                    let partition_key = match unescaped {
                        None => self.0.slice(HEAD_BYTES..HEAD_BYTES + zero),
                        Some(mut bytes) => {
                            bytes.extend_from_slice(&body[at..zero]);
                            bytes.into()
                        }
                    };
                    let sort_key = self.0.slice(HEAD_BYTES + zero + 2..);
                    return (!partition_key.is_empty()).then_some(Key { partition_key, sort_key });
                }
                ESCAPED_ZERO => {
                    unescaped.get_or_insert_default().extend_from_slice(&body[at..=zero]);
                    at = zero + 2;
                }
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(key: &Key) -> StorageKey {
        StorageKey::encode(KeyspaceId(7), key.token(), key)
    }

    fn keys() -> impl Strategy<Value = Key> {
        let bytes = |min| {
            proptest::collection::vec(
                prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()],
                min..6,
            )
        };
        (bytes(1), bytes(0)).prop_map(|(a, b)| Key::with_sort_key(a, b))
    }

    proptest! {
        #[test]
        fn round_trips(key in keys()) {
            let encoded = StorageKey::parse(encode(&key).as_bytes().clone()).unwrap();
            prop_assert_eq!(encoded.keyspace(), KeyspaceId(7));
            prop_assert_eq!(encoded.key().unwrap(), key);
        }

        #[test]
        fn order_is_token_then_partition_key_then_sort_key(a in keys(), b in keys()) {
            let by_parts = (a.token(), &a).cmp(&(b.token(), &b));
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), by_parts);
        }

        #[test]
        fn parse_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = StorageKey::parse(bytes.into());
        }

        #[test]
        fn rows_of_a_partition_key_share_its_prefix_alone(a in keys(), b in keys()) {
            let prefix = StorageKey::row_prefix(KeyspaceId(7), a.token(), &a.partition_key);
            let shares = encode(&b).as_bytes().starts_with(&prefix);
            prop_assert_eq!(shares, a.partition_key == b.partition_key);
        }
    }

    #[test]
    fn golden() {
        let key = Key::with_sort_key(&b"a\0b"[..], &b"s"[..]);
        let expected =
            [&[0, 0, 0, 7][..], &key.token().0.to_be_bytes(), b"a\0\xffb\0\x01s"].concat();
        assert_eq!(encode(&key).as_bytes(), &expected);
    }

    #[test]
    fn prefix_end() {
        assert_eq!(StorageKey::prefix_end(b"ab").unwrap(), &b"ac"[..]);
        assert_eq!(StorageKey::prefix_end(b"a\xff").unwrap(), &b"b"[..]);
        assert_eq!(StorageKey::prefix_end(b"\xff\xff"), None);
    }
}
