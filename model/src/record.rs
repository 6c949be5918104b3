//! The stored record: one encoding from the coordinator to disk, peers, hints and back.
//!
//! ```text
//! offset 0   format byte, 1
//!        1   kind: 0 value, 1 tombstone
//!        2   version: clock (8), request id (8)
//!       18   expiry: milliseconds since the epoch (8), 0 for never
//!       26   CRC32C (4) of the storage key and of everything else in the record
//!       30   the value
//! ```
//! Integers are big-endian. The checksum covers the key, so that a record found under another key
//! is recognised as misplaced.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Hlc, Mutant, RequestId, StorageKey, Version};

/// How long an expired record is kept at least, in milliseconds: more than any two clocks may differ, so
/// that none still calls it live when it is gone.
pub const EXPIRY_MARGIN_MS: u64 = 60_000;

const FORMAT: u8 = 1;
const CRC_AT: usize = 26;
const HEADER_BYTES: usize = 30;

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The key has a value.
    Value,
    /// The key was deleted.
    Tombstone,
}

/// Why bytes are not a sound record. Such a record is an error for its key, never an absent key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a header has.
    #[error("a record of {actual} bytes is shorter than its header of {HEADER_BYTES}")]
    Truncated {
        /// The bytes found.
        actual: usize,
    },
    /// A format that this build does not know.
    #[error("unknown record format {0}")]
    UnknownFormat(u8),
    /// A kind that this build does not know.
    #[error("unknown record kind {0}")]
    UnknownKind(u8),
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// What the record says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
}

/// An encoded record whose header is sound. `encode` and `check` also vouch for the checksum.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record(Bytes);

impl Record {
    /// The bytes of a record beyond its value.
    pub const OVERHEAD_BYTES: usize = HEADER_BYTES;

    /// Encodes a write of `key`; `None` as `value` is a delete. `expiry_ms` 0 means never.
    pub fn encode(
        key: &StorageKey,
        version: Version,
        expiry_ms: u64,
        value: Option<&[u8]>,
    ) -> Self {
        let body = value.unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
        bytes.put_u8(FORMAT);
        bytes.put_u8(u8::from(value.is_none()));
        bytes.put_u64(version.hlc.0);
        bytes.put_u64(version.request.0);
        bytes.put_u64(expiry_ms);
        let crc = crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), &bytes);
        bytes.put_u32(crc32c::crc32c_append(crc, body));
        bytes.put_slice(body);
        Self(bytes.freeze())
    }

    /// Reads bytes whose checksum was verified when they entered this process.
    pub fn parse(bytes: Bytes) -> Result<Self, RecordError> {
        if bytes.len() < HEADER_BYTES {
            return Err(RecordError::Truncated { actual: bytes.len() });
        }
        match (bytes[0], bytes[1]) {
            (FORMAT, 0 | 1) => Ok(Self(bytes)),
            (FORMAT, kind) => Err(RecordError::UnknownKind(kind)),
            (format, _) => Err(RecordError::UnknownFormat(format)),
        }
    }

    /// Reads bytes from disk or from the network: header and checksum.
    pub fn check(key: &StorageKey, bytes: Bytes) -> Result<Self, RecordError> {
        let it = Self::parse(bytes)?;
        let (stored, computed) = (it.crc(), it.computed_crc(key));
        if stored != computed && !Mutant::ChecksumIgnored.is_on() {
            return Err(RecordError::Checksum { stored, computed });
        }
        Ok(it)
    }

    fn computed_crc(&self, key: &StorageKey) -> u32 {
        let crc = crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), &self.0[..CRC_AT]);
        crc32c::crc32c_append(crc, &self.0[HEADER_BYTES..])
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("the header is complete"))
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Gives up the encoded bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Everything but the value, for which the checksum stands.
    pub fn header(&self) -> &[u8] {
        &self.0[..HEADER_BYTES]
    }

    /// What the record says of its key.
    pub fn kind(&self) -> RecordKind {
        if self.0[1] == 0 { RecordKind::Value } else { RecordKind::Tombstone }
    }

    /// The version.
    pub fn version(&self) -> Version {
        Version { hlc: Hlc(self.u64_at(2)), request: RequestId(self.u64_at(10)) }
    }

    /// When the record expires, in milliseconds since the epoch; 0 for never.
    pub fn expiry_ms(&self) -> u64 {
        self.u64_at(18)
    }

    /// True if the record has expired at a clock reading. A function of record and reading alone.
    pub fn expired_at(&self, now: Hlc) -> bool {
        self.expiry_ms() != 0 && self.expiry_ms() <= now.ms()
    }

    /// The floor at which the record may be purged, and from which on it is gone: `None` for a value that
    /// stays. A function of the record alone, the same at every replica (F6).
    pub fn due(&self) -> Option<Hlc> {
        let hlc = self.version().hlc;
        match (self.kind(), self.expiry_ms()) {
            (RecordKind::Tombstone, _) => Some(hlc),
            (RecordKind::Value, 0) => None,
            (RecordKind::Value, _) if Mutant::PurgesUnexpired.is_on() => Some(hlc),
            (RecordKind::Value, expiry_ms) => {
                Some(hlc.max(Hlc::from_ms(expiry_ms.saturating_add(EXPIRY_MARGIN_MS))))
            }
        }
    }

    /// True if the record is gone at a replica with this floor.
    pub fn purgeable_at(&self, floor: Hlc) -> bool {
        self.due().is_some_and(|due| due <= floor)
    }

    /// The checksum. It also serves as the digest that tells equal values from different ones.
    pub fn crc(&self) -> u32 {
        u32::from_be_bytes(self.0[CRC_AT..HEADER_BYTES].try_into().expect("the header is complete"))
    }

    /// The value, sharing the record's memory; empty for a tombstone.
    pub fn value(&self) -> Bytes {
        self.0.slice(HEADER_BYTES..)
    }

    /// The value if the key is present at a clock reading: neither deleted nor expired.
    pub fn live_value(&self, now: Hlc) -> Option<Bytes> {
        let live = self.kind() == RecordKind::Value && !self.expired_at(now);
        live.then(|| self.value())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Key, KeyspaceId};

    #[test]
    fn a_record_goes_when_the_floor_covers_all_of_it() {
        let check = |stamped_ms, expiry_ms, value: Option<&[u8]>, floor_ms, expected| {
            let version = Version { hlc: Hlc::from_ms(stamped_ms), request: RequestId(1) };
            let record = Record::encode(&storage_key("k"), version, expiry_ms, value);
            assert_eq!(record.purgeable_at(Hlc::from_ms(floor_ms)), expected, "{record:?}");
        };
        check(1_000, 0, None, 999, false);
        check(1_000, 0, None, 1_000, true);
        check(1_000, 0, Some(b"v"), u64::MAX, false);
        check(1_000, 2_000, Some(b"v"), 1_999 + EXPIRY_MARGIN_MS, false);
        check(1_000, 2_000, Some(b"v"), 2_000 + EXPIRY_MARGIN_MS, true);
        check(99_000, 2_000, Some(b"v"), 98_999, false);
        check(1_000, u64::MAX, Some(b"v"), 9_000_000, false);
    }

    fn storage_key(name: &str) -> StorageKey {
        let key = Key::new(name.as_bytes().to_vec());
        StorageKey::encode(KeyspaceId(7), key.token(), &key)
    }

    fn version(hlc: u64) -> Version {
        Version { hlc: Hlc(hlc), request: RequestId(0xabcd) }
    }

    proptest! {
        #[test]
        fn round_trips(hlc: u64, expiry: u64, value: Option<Vec<u8>>) {
            let key = storage_key("k");
            let bytes = Record::encode(&key, version(hlc), expiry, value.as_deref()).into_bytes();
            let it = Record::check(&key, bytes).unwrap();
            prop_assert_eq!(it.version(), version(hlc));
            prop_assert_eq!(it.expiry_ms(), expiry);
            prop_assert_eq!(it.kind() == RecordKind::Tombstone, value.is_none());
            prop_assert_eq!(it.value(), value.unwrap_or_default());
        }

        #[test]
        fn a_flipped_bit_is_found(at in 0usize..35, bit in 0u8..8) {
            let key = storage_key("k");
            let mut bytes = Record::encode(&key, version(9), 5, Some(b"value")).into_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::check(&key, bytes.into()).is_err());
        }
    }

    #[test]
    fn a_record_under_another_key_is_found() {
        let record = Record::encode(&storage_key("a"), version(9), 0, Some(b"value"));
        let found = Record::check(&storage_key("b"), record.into_bytes());
        assert!(matches!(found, Err(RecordError::Checksum { .. })));
    }

    #[test]
    fn expiry() {
        let at = |ms| {
            let record = Record::encode(&storage_key("a"), version(9), ms, Some(b"v"));
            record.live_value(Hlc::from_ms(100)).is_some()
        };
        assert_eq!([0, 99, 100, 101].map(at), [true, false, false, true]);
    }

    #[test]
    fn golden() {
        let record = Record::encode(&storage_key("a"), version(0x0102), 3, Some(b"hi"));
        let hex: String = record.as_bytes().iter().map(|it| format!("{it:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "01000000000000000102000000000000abcd0000000000000003c30d0d8f6869";
}
