//! Puts a snapshot's database into a data directory that has none. Everything here blocks for as long as
//! the disk does.
//!
//! Every file is verified as it was copied. A mark beside the database says that it was restored, until
//! the directory has an id of its own: what it holds is older than what others have seen, and counts for
//! nothing before they have filled it (F7).

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    Finding, ManifestError, SnapshotError, SnapshotFolder, SnapshotName, compare, compare_digest,
    digest::digest_file,
    folder::{DATABASE, file_error, sync_folder},
    name::NameError,
};

/// Why a snapshot was not restored. The data directory has no database, as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder's name is that of no snapshot.
    #[error("{} is no snapshot: {source}", path.display())]
    Name {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: NameError,
    },
    /// It cannot be read, or the data directory not written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its manifest says nothing.
    #[error("the manifest of the snapshot cannot be used: {0}")]
    Manifest(#[from] ManifestError),
    /// It is not what its manifest says.
    #[error("the snapshot is damaged: {} of its files, the first {}: {}", findings.len(), first(findings), first_problem(findings))]
    Damaged {
        /// What is wrong, file by file.
        findings: Vec<Finding>,
    },
}

fn first(findings: &[Finding]) -> String {
    findings.first().map(|it| it.path.clone()).unwrap_or_default()
}

fn first_problem(findings: &[Finding]) -> String {
    findings.first().map(|it| it.problem.to_string()).unwrap_or_default()
}

/// The mark of a database that was restored.
const MARK: &str = "restored";
/// A database on its way.
const RESTORING: &str = ".restoring";

/// True if the data directory's database was restored, and has no id of its own yet.
pub fn is_restored(data: &Path) -> bool {
    data.join(MARK).exists()
}

/// The directory has an id of its own.
pub fn forget_restored(data: &Path) -> io::Result<()> {
    match fs::remove_file(data.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies a snapshot's database into a data directory, which is made if there is none. False if it has a
/// database already: nothing was done. `progress` is told the bytes copied, and all of them.
pub fn restore(
    snapshot: &Path,
    data: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<bool, RestoreError> {
    let target = data.join(DATABASE);
    if target.exists() {
        return Ok(false);
    }
    let text = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = SnapshotName::new(&text)
        .map_err(|source| RestoreError::Name { path: snapshot.to_owned(), source })?;
    let parent = snapshot.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = SnapshotFolder::at(parent.unwrap_or(Path::new(".")));
    let opened = folder.open(&name)??;
    let compared = compare(&opened.manifest.files, &opened.found);
    if !compared.findings.is_empty() {
        return Err(RestoreError::Damaged { findings: compared.findings });
    }
    fs::create_dir_all(data).map_err(file_error("make", data))?;
    let copy = data.join(RESTORING);
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(file_error("remove", &copy))?;
    }
    let inside = copy.join(DATABASE);
    fs::create_dir_all(&inside).map_err(file_error("make", &inside))?;
    let (mut copied, all) = (0, opened.manifest.bytes);
    let mut findings = Vec::new();
    for entry in &opened.manifest.files {
        let to = copy.join(&entry.path);
        fs::copy(snapshot.join(&entry.path), &to).map_err(file_error("copy", &to))?;
        let read = digest_file(&to, entry.bytes).map_err(|it| it.to_string());
        findings.extend(compare_digest(entry, read));
        File::open(&to).and_then(|it| it.sync_all()).map_err(file_error("sync", &to))?;
        copied += entry.bytes;
        progress(copied, all);
    }
    if !findings.is_empty() {
        fs::remove_dir_all(&copy).map_err(file_error("remove", &copy))?;
        return Err(RestoreError::Damaged { findings });
    }
    sync_folder(&inside)?;
    let mark = data.join(MARK);
    File::create(&mark).and_then(|it| it.sync_all()).map_err(file_error("write", &mark))?;
    sync_folder(data)?;
    fs::rename(&inside, &target).map_err(file_error("rename", &inside))?;
    fs::remove_dir_all(&copy).map_err(file_error("remove", &copy))?;
    sync_folder(data)?;
    Ok(true)
}
