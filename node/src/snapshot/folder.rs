//! The folder of a node's snapshots: makes, lists, opens and deletes them, and clears away what a crash
//! has left. Everything here blocks for as long as the disk does.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    SnapshotError,
    digest::digest_file,
    manifest::{FileEntry, Manifest, ManifestError, Origin},
    name::SnapshotName,
};
use crate::storage::Storage;

/// The snapshots of one node.
pub struct SnapshotFolder {
    path: PathBuf,
    snapshots_max: usize,
    /// One at a time is worked on: each reads a whole database.
    permits: Arc<Semaphore>,
}

/// A snapshot in the making: the database is copied, under a name that is no snapshot's.
pub struct Draft {
    name: SnapshotName,
    path: PathBuf,
    files: Vec<(String, u64)>,
}

/// A snapshot whose manifest has been read.
pub struct Opened {
    path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its files with their sizes, by path, but for the manifest; `None` for what is no plain file.
    pub found: BTreeMap<String, Option<u64>>,
}

/// A snapshot by its name, with its manifest, or why that says nothing.
pub type Listed = (SnapshotName, Result<Manifest, ManifestError>);

/// The folder of snapshots in the data directory.
const FOLDER: &str = "snapshots";
/// The database in a snapshot's folder. A folder inside it would be extra.
pub(super) const DATABASE: &str = "rocksdb";
/// No name begins so: what a crash leaves behind is known by it.
const CREATING: &str = ".creating-";
const DELETING: &str = ".deleting-";

/// Files of one snapshot. Far more than a database of several terabytes has.
const FILES_MAX: usize = 1 << 18;
/// A manifest of so many files, each line of it long.
const MANIFEST_BYTES_MAX: u64 = 128 << 20;

impl SnapshotFolder {
    /// The manifest in a snapshot's folder.
    pub const MANIFEST: &str = "manifest.json";

    /// Listed at once, and so the bound of a bound: more can only have been put there by hand.
    pub const LISTED_MAX: usize = 1_024;

    /// The snapshots in a data directory. Touches nothing.
    pub fn new(data: &Path, snapshots_max: usize) -> Self {
        Self { path: data.join(FOLDER), snapshots_max, permits: Arc::new(Semaphore::new(1)) }
    }

    /// The snapshots of some folder, to be read. Touches nothing.
    pub(super) fn at(folder: &Path) -> Self {
        Self { path: folder.to_owned(), snapshots_max: 0, permits: Arc::new(Semaphore::new(1)) }
    }

    /// How many snapshots there may be.
    pub fn snapshots_max(&self) -> usize {
        self.snapshots_max
    }

    /// The right to work on a snapshot; refused while somebody has it.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, SnapshotError> {
        Arc::clone(&self.permits).try_acquire_owned().or(Err(SnapshotError::Busy))
    }

    /// Removes what crashes have left of snapshots that were being made or deleted. Needs the permit, or
    /// a node that does not run yet.
    pub fn sweep(&self) -> Result<(), SnapshotError> {
        for name in self.entries()? {
            if name.starts_with(CREATING) || name.starts_with(DELETING) {
                let path = self.path.join(&name);
                tracing::info!(path = %path.display(), "a snapshot that is none is removed");
                fs::remove_dir_all(&path).map_err(file_error("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Copies the database, under a name that is no snapshot's. Needs the permit.
    pub fn begin(
        &self,
        name: &SnapshotName,
        storage: &dyn Storage,
    ) -> Result<Draft, SnapshotError> {
        fs::create_dir_all(&self.path).map_err(file_error("make", &self.path))?;
        if let Some(data) = self.path.parent() {
            sync_folder(data)?;
        }
        self.sweep()?;
        let present = self.names()?;
        if present.contains(name) {
            return Err(SnapshotError::Exists { name: name.to_string() });
        }
        let (limit, actual) = (self.snapshots_max, present.len());
        if actual >= limit {
            return Err(SnapshotError::TooMany { limit, actual });
        }
        let path = self.path.join(format!("{CREATING}{name}"));
        fs::create_dir(&path).map_err(file_error("make", &path))?;
        let copied = storage.checkpoint(&path.join(DATABASE)).map_err(SnapshotError::from);
        let files = copied.and_then(|()| {
            let found = files_in(&path)?.into_iter();
            Ok(found.map(|(name, bytes)| (name, bytes.unwrap_or_default())).collect())
        });
        let draft = Draft { name: name.clone(), path, files: Vec::new() };
        match files {
            Ok(files) => Ok(Draft { files, ..draft }),
            Err(error) => {
                draft.abandon();
                Err(error)
            }
        }
    }

    /// Writes the manifest, makes everything durable, and gives the snapshot its name.
    pub fn finish(&self, draft: &Draft, manifest: &Manifest) -> Result<(), SnapshotError> {
        let path = draft.path.join(Self::MANIFEST);
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(&manifest.encode())?;
            file.sync_all()
        });
        written.map_err(file_error("write", &path))?;
        sync_folder(&draft.path.join(DATABASE))?;
        sync_folder(&draft.path)?;
        let named = self.path.join(draft.name.as_str());
        fs::rename(&draft.path, &named).map_err(file_error("rename", &draft.path))?;
        sync_folder(&self.path)
    }

    /// All snapshots, by name.
    pub fn list(&self) -> Result<Vec<Listed>, SnapshotError> {
        let names = self.names()?.into_iter().take(Self::LISTED_MAX);
        names.map(|name| Ok((name.clone(), self.manifest(&name)?))).collect()
    }

    /// Looks at one snapshot: reads its manifest and lists its files.
    pub fn open(
        &self,
        name: &SnapshotName,
    ) -> Result<Result<Opened, ManifestError>, SnapshotError> {
        let path = self.existing(name)?;
        let manifest = match self.manifest(name)? {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Err(error)),
        };
        let mut found = files_in(&path)?;
        found.remove(Self::MANIFEST);
        Ok(Ok(Opened { path, manifest, found }))
    }

    /// Deletes one snapshot: first its name, then its files. Needs the permit.
    pub fn delete(&self, name: &SnapshotName) -> Result<(), SnapshotError> {
        let path = self.existing(name)?;
        self.sweep()?;
        let dying = self.path.join(format!("{DELETING}{name}"));
        fs::rename(&path, &dying).map_err(file_error("rename", &path))?;
        sync_folder(&self.path)?;
        fs::remove_dir_all(&dying).map_err(file_error("remove", &dying))
    }

    fn existing(&self, name: &SnapshotName) -> Result<PathBuf, SnapshotError> {
        let path = self.path.join(name.as_str());
        match fs::symlink_metadata(&path) {
            Ok(it) if it.is_dir() => Ok(path),
            Ok(_) => Err(SnapshotError::NotFound { name: name.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SnapshotError::NotFound { name: name.to_string() })
            }
            Err(source) => Err(SnapshotError::File { doing: "look at", path, source }),
        }
    }

    fn manifest(
        &self,
        name: &SnapshotName,
    ) -> Result<Result<Manifest, ManifestError>, SnapshotError> {
        let path = self.path.join(name.as_str()).join(Self::MANIFEST);
        let damaged = |what: String| Ok(Err(ManifestError::Damaged { what }));
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|it| {
            // One more than allowed tells a longer file.
            it.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)
        });
        match read {
            Ok(count) if count as u64 > MANIFEST_BYTES_MAX => {
                damaged(format!("it has more than {MANIFEST_BYTES_MAX} bytes"))
            }
            Ok(_) => Ok(Manifest::decode(&bytes, name)),
            Err(error) => damaged(error.to_string()),
        }
    }

    /// The names of the snapshots. Other folders, and those of a crash, are none.
    fn names(&self) -> Result<Vec<SnapshotName>, SnapshotError> {
        let entries = self.entries()?.into_iter();
        let names = entries.filter_map(|it| SnapshotName::new(&it).ok());
        Ok(names.filter(|it| self.existing(it).is_ok()).collect())
    }

    fn entries(&self) -> Result<Vec<String>, SnapshotError> {
        let failed =
            |source| SnapshotError::File { doing: "list", path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let name = |it: io::Result<fs::DirEntry>| Ok(it.map_err(failed)?.file_name());
        let names = entries.map(name).collect::<Result<Vec<_>, SnapshotError>>()?;
        let mut names: Vec<_> = names.into_iter().filter_map(|it| it.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

impl Draft {
    /// Its files with their sizes, by path.
    pub fn files(&self) -> &[(String, u64)] {
        &self.files
    }

    /// Makes one of its files durable, and reads it whole.
    pub fn digest(&self, at: usize) -> Result<FileEntry, SnapshotError> {
        let (name, bytes) = &self.files[at];
        let path = self.path.join(name);
        let synced = File::open(&path).and_then(|it| it.sync_all());
        synced.map_err(file_error("sync", &path))?;
        let digest = digest_file(&path, *bytes).map_err(file_error("read", &path))?;
        Ok(FileEntry { path: name.clone(), bytes: *bytes, digest })
    }

    /// The manifest of all its files.
    pub fn manifest(&self, origin: Origin, files: Vec<FileEntry>) -> Manifest {
        Manifest::new(&self.name, origin, files)
    }

    /// Removes it. What cannot be removed now is removed by the next sweep.
    pub fn abandon(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a draft cannot be removed");
        }
    }
}

impl Opened {
    /// The digest of one of its files, or why it cannot be read.
    pub fn digest(&self, entry: &FileEntry) -> Result<String, String> {
        digest_file(&self.path.join(&entry.path), entry.bytes).map_err(|it| it.to_string())
    }
}

/// What lies in a snapshot's folder and in its database's, by path; `None` for what is no plain file.
/// Other folders are named and not entered.
fn files_in(folder: &Path) -> Result<BTreeMap<String, Option<u64>>, SnapshotError> {
    let mut found = BTreeMap::new();
    let mut has_database = false;
    for (name, metadata) in entries_of(folder)? {
        match name == DATABASE && metadata.is_dir() {
            true => has_database = true,
            false => drop(found.insert(name, file_bytes(&metadata))),
        }
    }
    if has_database {
        for (name, metadata) in entries_of(&folder.join(DATABASE))? {
            found.insert(format!("{DATABASE}/{name}"), file_bytes(&metadata));
        }
    }
    Ok(found)
}

fn file_bytes(metadata: &fs::Metadata) -> Option<u64> {
    metadata.is_file().then_some(metadata.len())
}

fn entries_of(path: &Path) -> Result<Vec<(String, fs::Metadata)>, SnapshotError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(file_error("list", path))? {
        let entry = entry.map_err(file_error("list", path))?;
        // Of the entry itself: a link leads anywhere.
        let metadata = entry.metadata().map_err(file_error("look at", &entry.path()))?;
        if entries.len() == FILES_MAX {
            return Err(SnapshotError::TooManyFiles { path: path.to_owned(), limit: FILES_MAX });
        }
        entries.push((entry.file_name().to_string_lossy().into_owned(), metadata));
    }
    Ok(entries)
}

pub(super) fn sync_folder(path: &Path) -> Result<(), SnapshotError> {
    File::open(path).and_then(|it| it.sync_all()).map_err(file_error("sync", path))
}

pub(super) fn file_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File { doing, path: path.clone(), source }
}
