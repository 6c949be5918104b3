use super::super::conformance;
use super::super::memory::{Access, Fault, MemoryStorage};
use super::*;

#[test]
fn conforms() {
    // Too small for anything, with room for some rows, and with room for all.
    for bytes_max in [0, 1 << 10, 40 << 10, 8 << 20] {
        let disk = MemoryStorage::new();
        conformance::run(CachedStorage::new(disk.clone(), bytes_max), |storage| {
            drop(storage);
            disk.power_loss(|_| 0);
            CachedStorage::new(disk.clone(), bytes_max)
        });
    }
}

const KEY: &[u8] = b"k";

fn put(storage: &impl Storage, value: &[u8]) -> Result<(), StorageError> {
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, KEY, [value]);
    storage.write(&batch, Durability::Synced)
}

fn get(storage: &impl Storage) -> Option<Bytes> {
    let value = storage.get(Space::Data, KEY).unwrap();
    let inline = storage.try_get(Space::Data, KEY).unwrap();
    assert_eq!(inline, value.clone().map_or(TryGet::Absent, TryGet::Hit));
    value
}

#[test]
fn rows_written_and_rows_read_are_kept() {
    let disk = MemoryStorage::new();
    let storage = CachedStorage::new(disk.clone(), 1 << 20);
    put(&storage, b"written").unwrap();
    let blocks = |it: Access<'_>| matches!(it, Access::TryGet(..)).then_some(Fault::WouldBlock);
    disk.set_faults(Some(Box::new(blocks)));
    let kept = TryGet::Hit(Bytes::from_static(b"written"));
    assert_eq!(storage.try_get(Space::Data, KEY).unwrap(), kept);

    let storage = CachedStorage::new(disk, 1 << 20);
    assert_eq!(storage.try_get(Space::Data, KEY).unwrap(), TryGet::WouldBlock);
    assert_eq!(storage.get(Space::Data, KEY).unwrap().unwrap(), "written");
    assert_eq!(storage.try_get(Space::Data, KEY).unwrap(), kept);
}

#[test]
fn a_row_read_before_a_write_is_not_kept_after_it() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    let hash = xxh3_64(KEY);
    let old = Bytes::from_static(b"old");
    put(&storage.inner, &old).unwrap();
    let seen = storage.find(hash, KEY).unwrap_err();
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, KEY, [&b"new"[..]]);
    let hashes = storage.before_write(&batch);
    storage.keep(hash, KEY, &old, seen);
    let during = storage.find(hash, KEY).unwrap_err();
    storage.inner.write(&batch, Durability::Synced).unwrap();
    assert_eq!(get(&storage).unwrap(), "new", "what the engine shows is answered");
    storage.keep(hash, KEY, &old, during);
    assert_eq!(get(&storage).unwrap(), "new", "nothing is kept during a write");
    storage.after_write(&batch, hashes, true);
    assert!(storage.find(hash, KEY).is_ok());
    storage.keep(hash, KEY, &old, seen);
    storage.keep(hash, KEY, &old, during);
    assert_eq!(get(&storage).unwrap(), "new");
}

#[test]
fn an_old_row_is_not_answered_once_the_engine_shows_the_new_one() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    put(&storage, b"old").unwrap();
    let mut batch = WriteBatch::new();
    for value in [&b"first"[..], b"second"] {
        batch.put(Space::Data, KEY, [value]);
    }
    let hashes = storage.before_write(&batch);
    assert_eq!(get(&storage).unwrap(), "old");
    storage.inner.write(&batch, Durability::Synced).unwrap();
    assert_eq!(get(&storage).unwrap(), "second");
    let mut first = WriteBatch::new();
    first.put(Space::Data, KEY, [&b"first"[..]]);
    storage.after_write(&first, hashes[..1].to_vec(), true);
    assert_eq!(get(&storage).unwrap(), "second", "its door is shut until the last row is in");
    let mut second = WriteBatch::new();
    second.put(Space::Data, KEY, [&b"second"[..]]);
    storage.after_write(&second, hashes[1..].to_vec(), true);
    assert_eq!(get(&storage).unwrap(), "second");
    assert_eq!(storage.find(xxh3_64(KEY), KEY).unwrap(), "second");
}

#[test]
fn a_write_that_was_refused_leaves_what_was_there() {
    let disk = MemoryStorage::new();
    let storage = CachedStorage::new(disk.clone(), 1 << 20);
    put(&storage, b"old").unwrap();
    disk.set_faults(Some(Box::new(|it| matches!(it, Access::Append(_)).then_some(Fault::Full))));
    assert!(matches!(put(&storage, b"new"), Err(StorageError::Full { .. })));
    disk.set_faults(None);
    assert_eq!(get(&storage).unwrap(), "old");
    assert!(storage.find(xxh3_64(KEY), KEY).is_ok(), "kept again");
}

#[test]
fn memory_is_bounded_by_bytes() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    for number in 0..4_000_u32 {
        let mut batch = WriteBatch::new();
        batch.put(Space::Data, &number.to_be_bytes(), [&[7; 1_000][..]]);
        storage.write(&batch, Durability::Synced).unwrap();
    }
    let kept: u64 = storage.shards.iter().map(|it| lock(it).rows.weight()).sum();
    assert!((1 << 19..=1 << 20).contains(&kept), "{kept} bytes");
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    let hash = xxh3_64(KEY);
    lock(&storage.shards[usize::try_from(hash >> 58).unwrap()])
        .rows
        .insert(hash, Row::new(b"other", b"not this"));
    assert_eq!(get(&storage), None);
}

/// Another key behind the door of this one.
fn neighbour(key: &[u8]) -> Vec<u8> {
    let place = |key: &[u8]| xxh3_64(key) >> 52;
    let mut keys = (0..u32::MAX).map(|it| it.to_be_bytes().to_vec());
    keys.find(|it| place(it) == place(key)).unwrap()
}

#[test]
fn keys_that_share_a_door_wait_for_each_other() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    let other = neighbour(KEY);
    put(&storage, b"old").unwrap();
    let (mut both, mut first) = (WriteBatch::new(), WriteBatch::new());
    both.put(Space::Data, &other, [&b"x"[..]]);
    first.put(Space::Data, &other, [&b"x"[..]]);
    both.put(Space::Data, KEY, [&b"new"[..]]);
    let hashes = storage.before_write(&both);
    storage.inner.write(&both, Durability::Synced).unwrap();
    storage.after_write(&first, hashes[..1].to_vec(), true);
    assert_eq!(get(&storage).unwrap(), "new", "the row of before is not found");
    let mut second = WriteBatch::new();
    second.put(Space::Data, KEY, [&b"new"[..]]);
    storage.after_write(&second, hashes[1..].to_vec(), true);
    for (key, value) in [(KEY, "new"), (&other, "x")] {
        assert_eq!(storage.find(xxh3_64(key), key).unwrap(), value, "kept, and found again");
    }
}

#[test]
fn a_range_deleted_in_the_batch_takes_along_what_is_kept() {
    let storage = CachedStorage::new(MemoryStorage::new(), 1 << 20);
    put(&storage, b"old").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, KEY, [&b"new"[..]]);
    batch.delete_range(Space::Data, b"a", b"z");
    storage.write(&batch, Durability::Synced).unwrap();
    assert_eq!(get(&storage), None);
    put(&storage, b"again").unwrap();
    assert_eq!(storage.find(xxh3_64(KEY), KEY).unwrap(), "again", "its door is open");
}

#[test]
fn a_row_too_large_to_keep_takes_the_old_one_along() {
    let storage = CachedStorage::new(MemoryStorage::new(), 64 << 10);
    put(&storage, b"old").unwrap();
    assert!(storage.find(xxh3_64(KEY), KEY).is_ok());
    let large = vec![7; 32 << 10];
    put(&storage, &large).unwrap();
    assert_eq!(get(&storage).unwrap(), large);
    assert!(storage.find(xxh3_64(KEY), KEY).is_err(), "not kept");
}

#[test]
fn what_is_announced_stays_as_it_is() {
    let keys: Vec<Vec<u8>> = (0..1_000_u32).map(|it| it.to_be_bytes().to_vec()).collect();
    let announced: Vec<&[u8]> = keys.iter().map(|it| &it[..]).chain([KEY, KEY]).collect();
    for bytes_max in [0, 40 << 10, 8 << 20] {
        let storage = CachedStorage::new(MemoryStorage::new(), bytes_max);
        let mut batch = WriteBatch::new();
        keys.iter().step_by(2).for_each(|it| batch.put(Space::Data, it, [&it[..]]));
        storage.announce(&announced);
        storage.write(&batch, Durability::Synced).unwrap();
        let kept = storage.statistics();
        storage.announce(&announced);
        assert_eq!(storage.statistics(), kept);
        for (at, key) in keys.iter().enumerate() {
            let value = (at % 2 == 0).then(|| Bytes::copy_from_slice(key));
            assert_eq!(storage.get(Space::Data, key).unwrap(), value);
        }
    }
}
