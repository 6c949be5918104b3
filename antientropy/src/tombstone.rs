//! When a tombstone or an expired record is needed no more. Rule: docs/protocol.md, F6.

use model::{Hlc, Record, RecordKind};

/// True if a record is logically gone at a replica whose floor is `floor`: every replica of its
/// partition has proven that it holds nothing older. A pure function of record and floor, the same
/// at every replica; no local clock takes part.
///
/// `clock_offset_max_ms` keeps a record whose expiry is near the floor until no clock of the
/// cluster can still call it live.
pub fn purgeable(record: &Record, floor: Hlc, clock_offset_max_ms: u64) -> bool {
    if record.version().hlc > floor {
        return false;
    }
    let expired = record.expiry_ms() != 0
        && record.expiry_ms().saturating_add(clock_offset_max_ms) <= floor.ms();
    record.kind() == RecordKind::Tombstone || expired
}

#[cfg(test)]
mod tests {
    use model::{Key, KeyspaceId, RequestId, StorageKey, Version};

    use super::*;

    fn record(stamped_ms: u64, expiry_ms: u64, value: Option<&[u8]>) -> Record {
        let key = Key::new("k");
        let storage_key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
        let version = Version { hlc: Hlc::from_ms(stamped_ms), request: RequestId(1) };
        Record::encode(&storage_key, version, expiry_ms, value)
    }

    #[test]
    fn only_what_the_floor_covers_goes() {
        let check = |record: Record, floor_ms, expected| {
            assert_eq!(purgeable(&record, Hlc::from_ms(floor_ms), 500), expected, "{record:?}");
        };
        check(record(1_000, 0, None), 999, false);
        check(record(1_000, 0, None), 1_000, true);
        check(record(1_000, 0, Some(b"v")), 9_000, false);
        check(record(1_000, 2_000, Some(b"v")), 2_499, false);
        check(record(1_000, 2_000, Some(b"v")), 2_500, true);
        check(record(3_000, 2_000, Some(b"v")), 2_900, false);
        check(record(1_000, u64::MAX, Some(b"v")), 9_000, false);
    }
}
