use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use tempfile::TempDir;

use super::*;
use crate::storage::{
    Durability, Space, Storage, WriteBatch,
    memory::MemoryStorage,
    rocks::{RocksLimits, RocksShared, RocksStorage},
};

/// A node's data directory, with a database in it.
struct Data {
    folder: TempDir,
    snapshots: SnapshotFolder,
    storage: RocksStorage,
}

fn open(path: &Path) -> RocksStorage {
    let limits = RocksLimits { memtable_bytes: 1 << 20, ..RocksLimits::default() };
    RocksStorage::open(path, &RocksShared::new(limits).unwrap()).unwrap()
}

fn name(text: &str) -> SnapshotName {
    SnapshotName::new(text).unwrap()
}

fn key(row: u32) -> [u8; 4] {
    row.to_be_bytes()
}

impl Data {
    fn new(snapshots_max: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let storage = open(&folder.path().join("rocksdb"));
        let snapshots = SnapshotFolder::new(folder.path(), snapshots_max);
        Self { folder, snapshots, storage }
    }

    fn put(&self, row: u32) {
        let mut batch = WriteBatch::new();
        batch.put(Space::Data, &key(row), [&[7; 100][..]]);
        self.storage.write(&batch, Durability::Synced).unwrap();
    }

    fn create(&self, text: &str) -> Result<Manifest, SnapshotError> {
        let draft = self.snapshots.begin(&name(text), &self.storage)?;
        let entries = (0..draft.files().len()).map(|at| draft.digest(at));
        let manifest = draft.manifest(Origin::default(), entries.collect::<Result<_, _>>()?);
        self.snapshots.finish(&draft, &manifest)?;
        Ok(manifest)
    }

    /// What the verification finds, as "path: problem".
    fn verify(&self, text: &str) -> Vec<String> {
        let opened = self.snapshots.open(&name(text)).unwrap().unwrap();
        let compared = compare(&opened.manifest.files, &opened.found);
        let read = compared.unread.iter().map(|it| compare_digest(it, opened.digest(it)));
        let mut findings = compared.findings;
        findings.extend(read.flatten());
        findings.iter().map(|it| format!("{}: {}", it.path, it.problem)).collect()
    }

    fn path(&self, text: &str, inside: &str) -> PathBuf {
        self.folder.path().join("snapshots").join(text).join(inside)
    }

    fn listed(&self) -> Vec<String> {
        self.snapshots.list().unwrap().iter().map(|it| it.0.to_string()).collect()
    }

    /// Everything in the folder of snapshots, leftovers too.
    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("snapshots")).unwrap();
        let mut names: Vec<_> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Changes a file as a disk would, but in the snapshot alone: the database shares it.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_snapshot_made_under_writes_opens_and_has_the_rows() {
    let data = Data::new(4);
    let (written, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let before = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                data.put(written.load(Ordering::Acquire));
                written.fetch_add(1, Ordering::Release);
            }
        });
        while written.load(Ordering::Acquire) < 200 {
            std::thread::yield_now();
        }
        let before = written.load(Ordering::Acquire);
        let made = data.create("under-writes");
        stop.store(true, Ordering::Relaxed);
        made.unwrap();
        before
    });
    assert_eq!(data.verify("under-writes"), [""; 0]);
    data.put(u32::MAX);
    assert_eq!(data.verify("under-writes"), [""; 0], "later writes do not touch it");

    let copy = open(&data.path("under-writes", "rocksdb"));
    for row in 0..before {
        assert!(copy.get(Space::Data, &key(row)).unwrap().is_some(), "row {row} of {before}");
    }
    assert_eq!(copy.get(Space::Data, &key(u32::MAX)).unwrap(), None);
}

#[test]
fn every_damage_is_named() {
    let data = Data::new(8);
    (0..50).for_each(|row| data.put(row));
    let manifest = data.create("good").unwrap();
    assert!(manifest.files.len() >= 3, "{manifest:?}");
    assert!(manifest.files.iter().any(|it| it.path.ends_with(".sst")), "{manifest:?}");
    for entry in &manifest.files {
        let path = data.path("good", &entry.path);
        let whole = fs::read(&path).unwrap();
        if entry.bytes > 0 {
            let middle = whole.len() / 2;
            change(&path, |it| it[middle] ^= 1);
            let found = data.verify("good");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("{}: its digest is ", entry.path)), "{found:?}");
        }
        change(&path, |it| it.push(0));
        let (longer, was) = (entry.bytes + 1, entry.bytes);
        let problem = format!("{}: it has {longer} bytes, and had {was}", entry.path);
        assert_eq!(data.verify("good"), [problem]);
        fs::remove_file(&path).unwrap();
        let problem = format!("{}: the manifest lists it, and it is not there", entry.path);
        assert_eq!(data.verify("good"), [problem]);
        fs::write(&path, whole).unwrap();
        assert_eq!(data.verify("good"), [""; 0]);
    }
    for extra in ["note.txt", "rocksdb/000999.sst"] {
        fs::write(data.path("good", extra), "x").unwrap();
        assert_eq!(data.verify("good"), [format!("{extra}: the manifest does not list it")]);
        fs::remove_file(data.path("good", extra)).unwrap();
    }
    fs::create_dir(data.path("good", "rocksdb/more")).unwrap();
    assert_eq!(data.verify("good"), ["rocksdb/more: the manifest does not list it"]);
    fs::rename(data.path("good", ""), data.path("other", "")).unwrap();
    let other = data.snapshots.open(&name("other")).unwrap().map(|it| it.manifest);
    assert_eq!(other, Err(ManifestError::OtherName { found: "good".to_owned() }));
}

#[test]
fn a_damaged_manifest_is_told() {
    let data = Data::new(4);
    data.create("one").unwrap();
    let path = data.path("one", SnapshotFolder::MANIFEST);
    let opened = || data.snapshots.open(&name("one")).unwrap().map(|it| it.manifest);
    change(&path, |it| it[30] ^= 1);
    assert!(opened().is_err());
    change(&path, |it| it[30] ^= 1);
    opened().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(opened(), Err(ManifestError::Damaged { .. })));
    let listed = data.snapshots.list().unwrap();
    assert_eq!((listed.len(), listed[0].0.as_str(), listed[0].1.is_err()), (1, "one", true));
}

#[test]
fn a_crash_leaves_nothing_that_looks_whole() {
    let data = Data::new(2);
    data.put(1);
    // The process ends with the database copied, and before the manifest is written.
    let draft = data.snapshots.begin(&name("cut-off"), &data.storage).unwrap();
    draft.digest(0).unwrap();
    assert_eq!(data.entries(), [".creating-cut-off"]);
    assert_eq!(data.listed(), [""; 0]);
    let missing = |it: Result<(), SnapshotError>| matches!(it, Err(SnapshotError::NotFound { .. }));
    assert!(missing(data.snapshots.open(&name("cut-off")).map(drop)));
    // The next one, of whatever name, removes it; so does a start.
    data.create("cut-off").unwrap();
    assert_eq!(data.entries(), ["cut-off"]);
    drop(data.snapshots.begin(&name("again"), &data.storage).unwrap());
    assert_eq!(data.entries(), [".creating-again", "cut-off"]);
    SnapshotFolder::new(data.folder.path(), 2).sweep().unwrap();
    assert_eq!(data.entries(), ["cut-off"]);
    // In the middle of a deletion it is none any more.
    fs::rename(data.path("cut-off", ""), data.path(".deleting-cut-off", "")).unwrap();
    assert_eq!(data.listed(), [""; 0]);
    data.snapshots.sweep().unwrap();
    assert_eq!(data.entries(), [""; 0]);
}

#[test]
fn as_many_as_allowed_and_no_name_twice() {
    let data = Data::new(2);
    data.create("b").unwrap();
    assert!(matches!(data.create("b"), Err(SnapshotError::Exists { name }) if name == "b"));
    data.create("a").unwrap();
    let third = data.create("c");
    assert!(matches!(third, Err(SnapshotError::TooMany { limit: 2, actual: 2 })), "{third:?}");
    assert_eq!(data.entries(), ["a", "b"]);
    data.snapshots.delete(&name("b")).unwrap();
    assert!(matches!(data.snapshots.delete(&name("b")), Err(SnapshotError::NotFound { .. })));
    data.create("c").unwrap();
    assert_eq!(data.listed(), ["a", "c"]);

    let permit = data.snapshots.permit().unwrap();
    assert!(matches!(data.snapshots.permit(), Err(SnapshotError::Busy)));
    drop(permit);
    drop(data.snapshots.permit().unwrap());
}

#[test]
fn what_cannot_be_copied_leaves_nothing() {
    let data = Data::new(2);
    let failed = data.snapshots.begin(&name("a"), &MemoryStorage::new());
    assert!(matches!(failed.map(drop), Err(SnapshotError::Storage(_))));
    assert_eq!(data.entries(), [""; 0]);
}
