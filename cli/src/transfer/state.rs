//! Where an interrupted transfer stopped: a small file beside the data, written so that a crash
//! leaves either the old one or the new one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::source::Position;
use crate::failure::Failure;

/// Raised when the meaning of a state changes: an older one is then refused.
const STATE_VERSION: u32 = 1;

/// What an import has done: every record before `position` was acknowledged, or stands in the
/// errors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportState {
    /// The keyspace written to.
    pub(crate) keyspace: String,
    /// The options that decide what a record means.
    pub(crate) options: String,
    /// The hash of the file's first bytes.
    pub(crate) file_head: String,
    /// The place after the last settled record.
    pub(crate) position: Position,
    /// What became of the records before it.
    pub(crate) counts: ImportCounts,
    /// Why some of them were not written, or perhaps not, by the names of the reasons.
    #[serde(default)]
    pub(crate) reasons: BTreeMap<String, RowsWithReason>,
    /// The errors file, if it is not the one beside the data.
    pub(crate) errors: Option<String>,
    /// The length of the errors file that belongs to this position.
    pub(crate) errors_bytes: u64,
}

/// What became of the records of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ImportCounts {
    /// Acknowledged at the level asked for.
    pub(crate) written: u64,
    /// Refused or failed; certainly not applied.
    pub(crate) not_applied: u64,
    /// Perhaps applied.
    pub(crate) unknown: u64,
    /// No rows.
    pub(crate) malformed: u64,
    /// Rows whose expiry has passed: nothing to write.
    pub(crate) expired: u64,
}

/// The rows of an import that one reason kept from being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowsWithReason {
    /// How many.
    pub(crate) rows: u64,
    /// The line of the first.
    pub(crate) line: u64,
    /// What happened to the first, with the numbers.
    pub(crate) message: String,
}

/// What an export has done: the rows before `page_token` are the first `file_bytes` of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportState {
    /// The keyspace read.
    pub(crate) keyspace: String,
    /// The options that decide what is read and how it is written.
    pub(crate) options: String,
    /// Base64 of the token that the scan goes on with.
    pub(crate) page_token: String,
    /// Bytes written.
    pub(crate) file_bytes: u64,
    /// Rows written.
    pub(crate) rows: u64,
}

/// The file that holds the state of one transfer.
#[derive(Clone, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    state_version: u32,
    #[serde(flatten)]
    state: T,
}

impl StateFile {
    /// The state file that belongs to a data file. `kind` is `import` or `export`.
    pub(crate) fn beside(data: &Path, kind: &str) -> Self {
        Self { path: appended(data, &format!(".{kind}-state.json")) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The state; `None` if there is none.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failure("read", &error)),
        };
        let damaged = |problem: String| {
            let path = self.path.display();
            Failure::new("STATE_DAMAGED", format!("{path} cannot be used: {problem}"))
                .advise("--restart to begin anew")
        };
        let envelope: Envelope<T> =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if envelope.state_version != STATE_VERSION {
            let (found, known) = (envelope.state_version, STATE_VERSION);
            return Err(damaged(format!("it has version {found}, this build knows {known}")));
        }
        Ok(Some(envelope.state))
    }

    /// Replaces the state.
    pub(crate) fn save<T: Serialize>(&self, state: &T) -> Result<(), Failure> {
        let envelope = Envelope { state_version: STATE_VERSION, state };
        let text = serde_json::to_vec(&envelope).expect("states have string keys only");
        let temporary = appended(&self.path, ".new");
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_data()
        });
        let replaced = written.and_then(|()| fs::rename(&temporary, &self.path));
        replaced.map_err(|error| self.failure("write", &error))
    }

    /// Removes the state, if there is any.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failure("remove", &error))
            }
            _ => Ok(()),
        }
    }

    fn failure(&self, verb: &str, error: &io::Error) -> Failure {
        Failure::file(format!("cannot {verb} {}", self.path.display()), error)
    }
}

/// A path with something added to its name.
pub(crate) fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ImportState {
        ImportState {
            keyspace: "shop".to_owned(),
            options: "csv".to_owned(),
            file_head: "00".to_owned(),
            position: Position { byte: 77, line: 3 },
            counts: ImportCounts { written: 2, unknown: 1, ..ImportCounts::default() },
            reasons: [(
                "KEY_TOO_LARGE".to_owned(),
                RowsWithReason { rows: 2, line: 7, message: "70000 bytes".to_owned() },
            )]
            .into(),
            errors: None,
            errors_bytes: 12,
        }
    }

    #[test]
    fn a_state_is_found_again_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::beside(&folder.path().join("data.csv"), "import");
        assert_eq!(file.load::<ImportState>().unwrap(), None);
        file.save(&ImportState { errors_bytes: 0, ..state() }).unwrap();
        file.save(&state()).unwrap();
        assert_eq!(file.load().unwrap(), Some(state()));
        assert!(file.path().ends_with("data.csv.import-state.json"));
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.load::<ImportState>().unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn damage_and_other_versions_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::beside(&folder.path().join("data.csv"), "import");
        file.save(&state()).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        for wrong in [
            "{".to_owned(),
            text.replace("\"state_version\":1", "\"state_version\":2"),
            text.replace("position", "place"),
        ] {
            fs::write(file.path(), wrong).unwrap();
            assert_eq!(file.load::<ImportState>().unwrap_err().reason(), "STATE_DAMAGED");
        }
    }
}
