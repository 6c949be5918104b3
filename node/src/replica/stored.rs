//! The form of a value in [`crate::storage::Space::Data`].
//!
//! ```text
//! offset 0      the record's bytes, as they came
//!        n      previous: the clock of the version that the record replaced here (8)
//!        n + 8  CRC32C (4) of the record's own checksum and of `previous`
//! ```
//! Integers are big-endian. The record's checksum cannot cover `previous`, which is this replica's
//! alone; but proofs are made from it, so it is no less protected than the value.

use bytes::Bytes;
use model::{Hlc, Mutant, Record, RecordError, StorageKey};

const PREVIOUS_BYTES: usize = 8;
const TRAILER_BYTES: usize = PREVIOUS_BYTES + 4;

/// What a replica holds for one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// The clock of the version that the record replaced here; zero if there was none. Never taken
    /// from a message: it is this replica's own testimony (rule P2).
    pub previous: Hlc,
}

impl Stored {
    /// What follows the record's bytes in the stored value.
    pub fn trailer(&self) -> [u8; TRAILER_BYTES] {
        let mut trailer = [0; TRAILER_BYTES];
        let previous = self.previous.0.to_be_bytes();
        trailer[..PREVIOUS_BYTES].copy_from_slice(&previous);
        trailer[PREVIOUS_BYTES..].copy_from_slice(&checksum(&self.record, previous).to_be_bytes());
        trailer
    }

    /// The stored value.
    pub fn encode(&self) -> Bytes {
        [&self.record.as_bytes()[..], &self.trailer()].concat().into()
    }
}

/// Reads a stored value and verifies all of it. An error here is an error for the key: damaged bytes
/// never count as an absent key (rule F9).
pub fn decode_stored(key: &StorageKey, mut bytes: Bytes) -> Result<Stored, RecordError> {
    let actual = bytes.len();
    let record_bytes =
        actual.checked_sub(TRAILER_BYTES).ok_or(RecordError::Truncated { actual })?;
    let trailer = bytes.split_off(record_bytes);
    let record = Record::check(key, bytes)?;
    let previous = trailer[..PREVIOUS_BYTES].try_into().expect("split above");
    let stored = u32::from_be_bytes(trailer[PREVIOUS_BYTES..].try_into().expect("split above"));
    let computed = checksum(&record, previous);
    if stored != computed && !Mutant::ChecksumIgnored.is_on() {
        return Err(RecordError::Checksum { stored, computed });
    }
    Ok(Stored { record, previous: Hlc(u64::from_be_bytes(previous)) })
}

fn checksum(record: &Record, previous: [u8; PREVIOUS_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record.crc().to_be_bytes()), &previous)
}

#[cfg(test)]
mod tests {
    use model::{Key, KeyspaceId, RequestId, Version};

    use super::*;

    fn key() -> StorageKey {
        let key = Key::new(&b"a"[..]);
        StorageKey::encode(KeyspaceId(7), key.token(), &key)
    }

    fn stored() -> Stored {
        let version = Version { hlc: Hlc(0x0102), request: RequestId(0xabcd) };
        Stored { record: Record::encode(&key(), version, 3, Some(b"hi")), previous: Hlc(0x99) }
    }

    #[test]
    fn golden() {
        let hex: String = stored().encode().iter().map(|it| format!("{it:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert_eq!(decode_stored(&key(), stored().encode()), Ok(stored()));
    }

    const GOLDEN: &str = "01000000000000000102000000000000abcd0000000000000003c30d0d8f6869\
                          000000000000009925cb32a3";

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = stored().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_stored(&key(), flipped.into()).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode_stored(&key(), bytes.slice(..length)).is_err(), "length {length}");
        }
    }
}
