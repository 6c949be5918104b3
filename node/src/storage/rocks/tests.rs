use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::super::conformance;
use super::*;

fn shared() -> RocksShared {
    RocksShared::new(RocksLimits { memtable_bytes: 1 << 20, ..RocksLimits::default() }).unwrap()
}

fn open(path: &Path) -> Result<RocksStorage, OpenError> {
    RocksStorage::open(path, &shared())
}

fn put(storage: &RocksStorage, key: &str, value: &[u8], durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, key.as_bytes(), [value]);
    storage.write(&batch, durability).unwrap();
}

/// What a killed process leaves: the files as they are, while the database is open.
fn copy(from: &Path) -> TempDir {
    let to = TempDir::new().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// The files with an extension, by name.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|it| it.extension().is_some_and(|it| it == extension)).collect();
    files.sort();
    files
}

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn conforms() {
    let folder = TempDir::new().unwrap();
    conformance::run(open(folder.path()).unwrap(), |storage| {
        drop(storage);
        open(folder.path()).unwrap()
    });
}

#[test]
fn a_killed_process_has_lost_nothing_it_acknowledged() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    for round in 0..20 {
        put(&storage, &format!("{round:02}"), &[round; 100], Durability::Synced);
        if round == 10 {
            storage.flush().unwrap();
        }
        let killed = copy(folder.path());
        let reopened = open(killed.path()).unwrap();
        let rows = reopened.range(&RangeRequest::prefix(Space::Data, "")).unwrap().rows;
        assert_eq!(rows.len(), usize::from(round) + 1);
    }
}

#[test]
fn a_damaged_log_refuses_to_open_or_has_everything() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    let keys: Vec<String> = (0..100).map(|it| format!("{it:03}")).collect();
    for key in &keys {
        put(&storage, key, &[7; 100], Durability::Synced);
    }
    let mut refused = 0;
    for part in 1..10 {
        let damaged = copy(folder.path());
        let log = files(damaged.path(), "log").pop().unwrap();
        let length = usize::try_from(fs::metadata(&log).unwrap().len()).unwrap();
        flip_byte(&log, length / 10 * part);
        match open(damaged.path()) {
            Ok(storage) => {
                for key in &keys {
                    let found = storage.get(Space::Data, key.as_bytes()).unwrap();
                    assert!(found.is_some(), "part {part} has lost {key}");
                }
            }
            Err(OpenError::Storage(StorageError::Corruption { .. })) => refused += 1,
            Err(other) => panic!("part {part}: {other}"),
        }
    }
    assert_eq!(refused, 9, "every byte of the log is covered by a checksum");
}

#[test]
fn a_torn_tail_is_taken_for_what_it_is() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    put(&storage, "synced", b"v", Durability::Synced);
    put(&storage, "buffered", b"v", Durability::Buffered);
    let torn = copy(folder.path());
    let log = files(torn.path(), "log").pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    bytes.truncate(bytes.len() - 3);
    fs::write(&log, bytes).unwrap();
    let storage = open(torn.path()).unwrap();
    let found =
        ["synced", "buffered"].map(|it| storage.get(Space::Data, it.as_bytes()).unwrap().is_some());
    assert_eq!(found, [true, false]);
}

#[test]
fn a_damaged_data_file_is_an_error_for_its_keys() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    let keys: Vec<String> = (0..2_000).map(|it| format!("{it:05}")).collect();
    for key in &keys {
        put(&storage, key, key.repeat(10).as_bytes(), Durability::Buffered);
    }
    storage.flush().unwrap();
    let damaged = copy(folder.path());
    let file = files(damaged.path(), "sst")
        .into_iter()
        .max_by_key(|it| fs::metadata(it).unwrap().len())
        .unwrap();
    flip_byte(&file, 6_000);
    let storage = open(damaged.path()).unwrap();
    let (mut sound, mut corrupt) = (0, 0);
    for key in &keys {
        match storage.get(Space::Data, key.as_bytes()) {
            Ok(found) => {
                assert_eq!(found.unwrap(), key.repeat(10));
                sound += 1;
            }
            Err(StorageError::Corruption { .. }) => corrupt += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(corrupt > 0 && sound > corrupt, "{sound} sound, {corrupt} corrupt");
    let all = storage.range(&RangeRequest::prefix(Space::Data, ""));
    assert!(
        matches!(all, Err(StorageError::Corruption { .. })),
        "a scan does not end quietly there"
    );
}

#[test]
fn a_database_is_opened_once_and_only_in_its_own_format() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    let second = open(folder.path()).err().unwrap();
    assert!(second.to_string().contains("lock"), "{second}");

    let mut batch = WriteBatch::new();
    batch.put(Space::System, b"\0format", [&9_u32.to_be_bytes(), &1_u32.to_be_bytes()]);
    storage.write(&batch, Durability::Synced).unwrap();
    drop(storage);
    assert_eq!(open(folder.path()).err(), Some(OpenError::UnknownFormat { found: 9 }));
}

#[test]
fn a_checkpoint_opens_on_its_own() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    put(&storage, "before", b"v", Durability::Synced);
    let copy = folder.path().join("checkpoint");
    storage.checkpoint(&copy).unwrap();
    put(&storage, "after", b"v", Durability::Synced);
    assert!(storage.checkpoint(&copy).is_err(), "it exists");
    let checkpoint = open(&copy).unwrap();
    let found =
        ["before", "after"].map(|it| checkpoint.get(Space::Data, it.as_bytes()).unwrap().is_some());
    assert_eq!(found, [true, false]);
    put(&storage, "and on", b"v", Durability::Synced);
}

#[test]
fn cold_rows_would_block() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    put(&storage, "k", b"v", Durability::Synced);
    assert_eq!(storage.try_get(Space::Data, b"k"), Ok(TryGet::Hit("v".into())), "in the memtable");
    storage.flush().unwrap();
    drop(storage);
    let storage = open(folder.path()).unwrap();
    assert_eq!(storage.try_get(Space::Data, b"k"), Ok(TryGet::WouldBlock));
    assert_eq!(storage.get(Space::Data, b"k"), Ok(Some("v".into())));
    assert_eq!(storage.try_get(Space::Data, b"k"), Ok(TryGet::Hit("v".into())), "cached");
    assert_eq!(storage.try_get(Space::Data, b"other"), Ok(TryGet::Absent));
}

#[test]
fn logs_stay_small_beside_idle_families() {
    let folder = TempDir::new().unwrap();
    let storage = open(folder.path()).unwrap();
    let mut batch = WriteBatch::new();
    for i in 0..100_000_u32 {
        batch.put(Space::Data, &i.to_be_bytes(), [&[7; 100]]);
        if i % 1_000 == 0 {
            storage.write(&batch, Durability::Buffered).unwrap();
            batch.clear();
        }
    }
    let log_bytes = |folder: &Path| {
        files(folder, "log").iter().map(|it| fs::metadata(it).unwrap().len()).sum::<u64>()
    };
    // 2 MiB of logs are allowed, and one memtable is being flushed while another fills.
    assert!(log_bytes(folder.path()) < 5 << 20, "{} bytes", log_bytes(folder.path()));
    storage.flush().unwrap();
    assert_eq!(storage.statistics().data_rows, 99_001);
}

#[test]
fn a_full_disk_is_told_from_a_failed_one() {
    let full = |doing: &str| {
        let no_space = "No space left on device";
        let message =
            format!("IO error: {no_space}: While {doing}: /data/sync/000004.log: {no_space}");
        matches!(classify_write_error(message), StorageError::Full { .. })
    };
    assert!(full("appending to file"));
    assert!(full("open a file for appending"));
    assert!(!full("fdatasync"));
    assert!(!full("fsync a directory"));
    let failed =
        |message: &str| matches!(classify_write_error(message.into()), StorageError::Failed { .. });
    assert!(failed(
        "IO error: Input/output error: While appending to file: /d: Input/output error"
    ));
    assert!(failed("IO error: No space left on device"), "in doubt, unknown");
}
