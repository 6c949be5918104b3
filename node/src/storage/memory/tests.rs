use super::super::conformance;
use super::*;

#[test]
fn conforms() {
    conformance::run(MemoryStorage::new(), |storage| {
        storage.power_loss(|_| 0);
        storage.clone()
    });
    conformance::run(MemoryStorage::new(), |storage| {
        storage.process_crash(true);
        storage.clone()
    });
}

fn write(
    storage: &MemoryStorage,
    key: &'static str,
    durability: Durability,
) -> Result<(), StorageError> {
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, key.as_bytes(), [key.as_bytes()]);
    storage.write(&batch, durability)
}

fn keys(storage: &MemoryStorage) -> String {
    let rows = storage.range(&RangeRequest::prefix(Space::Data, "")).unwrap().rows;
    rows.iter().map(|it| String::from_utf8(it.0.to_vec()).unwrap()).collect()
}

fn fail_at(storage: &MemoryStorage, at: impl Fn(Access<'_>) -> Option<Fault> + Send + 'static) {
    storage.set_faults(Some(Box::new(at)));
}

#[test]
fn power_loss_takes_the_unsynced_tail_and_no_more() {
    for kept in 0..=3 {
        let storage = MemoryStorage::new();
        write(&storage, "a", Durability::Buffered).unwrap();
        write(&storage, "b", Durability::Synced).unwrap();
        for key in ["c", "d", "b"] {
            write(&storage, key, Durability::Buffered).unwrap();
        }
        let mut batch = WriteBatch::new();
        batch.delete_range(Space::Data, b"a", b"c");
        storage.write(&batch, Durability::Buffered).unwrap();
        assert_eq!((keys(&storage).as_str(), storage.unsynced()), ("cd", 4));
        storage.power_loss(|unsynced| kept.min(unsynced));
        assert_eq!(keys(&storage), ["ab", "abc", "abcd", "abcd"][kept]);
        assert_eq!(storage.unsynced(), 0);
    }
}

#[test]
fn a_failed_sync_ends_all_writes() {
    for kept in [0, 1] {
        let storage = MemoryStorage::new();
        write(&storage, "a", Durability::Synced).unwrap();
        fail_at(&storage, |it| (it == Access::Sync).then_some(Fault::Error));
        let error = write(&storage, "b", Durability::Synced).unwrap_err();
        assert!(matches!(error, StorageError::Failed { .. }));
        storage.set_faults(None);
        for durability in [Durability::Buffered, Durability::Synced] {
            assert_eq!(write(&storage, "c", durability), Err(error.clone()), "never again");
        }
        assert_eq!(storage.flush(), Err(error), "a sync is never repeated");
        assert_eq!(keys(&storage), "a", "what is not durable is not visible");
        storage.power_loss(|_| kept);
        assert_eq!(keys(&storage), ["a", "ab"][kept], "either may be found");
        write(&storage, "c", Durability::Synced).unwrap();
    }
}

#[test]
fn a_process_that_restarts_finds_what_failed_or_not() {
    let append: fn(Access<'_>) -> bool = |it| matches!(it, Access::Append(_));
    let sync: fn(Access<'_>) -> bool = |it| it == Access::Sync;
    for (fails, survives, found) in
        [(append, false, "a"), (append, true, "ab"), (sync, false, "a"), (sync, true, "ab")]
    {
        let storage = MemoryStorage::new();
        write(&storage, "a", Durability::Buffered).unwrap();
        fail_at(&storage, move |it| fails(it).then_some(Fault::Error));
        write(&storage, "b", Durability::Synced).unwrap_err();
        storage.set_faults(None);
        assert_eq!(keys(&storage), "a", "what failed is not visible");
        storage.process_crash(survives);
        assert_eq!((keys(&storage).as_str(), storage.unsynced()), (found, found.len()));
        storage.power_loss(|_| 0);
        assert_eq!(keys(&storage), "");
    }
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let storage = MemoryStorage::new();
    write(&storage, "aaaa", Durability::Synced).unwrap();
    storage.set_bytes_max(Some(10));
    assert!(matches!(write(&storage, "bb", Durability::Synced), Err(StorageError::Full { .. })));
    write(&storage, "c", Durability::Synced).unwrap();
    assert_eq!(keys(&storage), "aaaac");
    storage.set_bytes_max(None);
    write(&storage, "bb", Durability::Synced).unwrap();
    fail_at(&storage, |it| matches!(it, Access::Append(_)).then_some(Fault::Full));
    assert!(matches!(write(&storage, "d", Durability::Synced), Err(StorageError::Full { .. })));
    fail_at(&storage, |it| matches!(it, Access::Append(_)).then_some(Fault::Error));
    assert!(matches!(write(&storage, "d", Durability::Synced), Err(StorageError::Failed { .. })));
}

#[test]
fn reads_fail_and_rot_as_told() {
    let storage = MemoryStorage::new();
    write(&storage, "a", Durability::Synced).unwrap();
    fail_at(&storage, |it| match it {
        Access::TryGet(_, b"a") => Some(Fault::WouldBlock),
        Access::Get(_, b"b") => Some(Fault::Corrupt),
        Access::Range(_) => Some(Fault::Error),
        _ => None,
    });
    assert_eq!(storage.try_get(Space::Data, b"a"), Ok(TryGet::WouldBlock));
    assert_eq!(storage.get(Space::Data, b"a"), Ok(Some(Bytes::from("a"))));
    let damaged = storage.get(Space::Data, b"b");
    assert!(matches!(damaged, Err(StorageError::Corruption { .. })), "{damaged:?}");
    let failed = storage.range(&RangeRequest::prefix(Space::Data, ""));
    assert!(matches!(failed, Err(StorageError::Failed { .. })), "{failed:?}");
    storage.set_faults(None);

    assert!(storage.flip_bit(Space::Data, b"a", 1));
    assert_eq!(storage.get(Space::Data, b"a"), Ok(Some(Bytes::from("c"))));
    assert!(!storage.flip_bit(Space::Data, b"a", 8));
    assert!(storage.lose_row(Space::Data, b"a"));
    assert_eq!(storage.get(Space::Data, b"a"), Ok(None));
    assert!(!storage.lose_row(Space::Data, b"a"));
}
