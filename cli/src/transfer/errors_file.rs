//! The records of an import that were not written, or perhaps were: one JSON object per line, with
//! the line in the data, the reason, the outcome, and the record itself.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{encoding::Encoding, failure::Failure};

/// Why a record is not counted as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordError {
    /// A stable name.
    pub(crate) reason: String,
    /// `not_applied` or `unknown`.
    pub(crate) outcome: &'static str,
    /// What happened, with the numbers.
    pub(crate) message: String,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

/// The file. It is made with its first line.
///
/// Invariant: before [`ErrorsFile::begin`] nothing is touched, and what was there before an import is
/// removed only where its caller said so.
#[derive(Debug)]
pub(crate) struct ErrorsFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

/// What may be done with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// It is somebody's: refuse it.
    Keep,
    /// It is not needed any more.
    Replace,
    /// It is this import's own, and so many of its first bytes belong to what was settled. The rest
    /// is cut off: those records are tried again.
    GoOn(u64),
}

#[derive(Serialize)]
struct Line<'a> {
    line: u64,
    reason: &'a str,
    outcome: &'a str,
    message: &'a str,
    attempts: u32,
    record: String,
    encoding: Encoding,
}

impl ErrorsFile {
    /// The file at `path`, or why it cannot be that. `others` are files that the import needs.
    pub(crate) fn examine(
        path: PathBuf,
        earlier: Earlier,
        others: &[&Path],
    ) -> Result<Self, Failure> {
        let it = Self { path, file: None, bytes: 0 };
        if let Some(other) = others.iter().find(|other| are_same(&it.path, other)) {
            let (path, other) = (it.path.display(), other.display());
            return Err(Failure::usage(format!("the errors cannot go to {path}: it is {other}"))
                .advise("--errors FILE with another name"));
        }
        let found = match std::fs::metadata(&it.path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(it.failure("look at", &error)),
        };
        if found.as_ref().is_some_and(|it| !it.is_file()) {
            let path = it.path.display();
            return Err(Failure::usage(format!("the errors cannot go to {path}: it is no file")));
        }
        let length = found.map_or(0, |it| it.len());
        match earlier {
            Earlier::Keep if length > 0 => {
                let problem = format!("{} is there already", it.path.display());
                Err(Failure::new("ERRORS_FILE_EXISTS", problem)
                    .advise("--errors FILE with another name")
                    .advise("--restart to replace it"))
            }
            Earlier::GoOn(settled) if length < settled => {
                let path = it.path.display();
                let problem = format!("{path} has {length} of its {settled} bytes");
                Err(Failure::new("CANNOT_RESUME", problem).advise("--restart to begin anew"))
            }
            Earlier::GoOn(settled) => Ok(Self { bytes: settled, ..it }),
            Earlier::Keep | Earlier::Replace => Ok(it),
        }
    }

    /// Removes what does not belong to this import, or to what it has settled.
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        if self.bytes == 0 {
            let removed = std::fs::remove_file(&self.path);
            return match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failure("replace", &error))
                }
                _ => Ok(()),
            };
        }
        let opened = OpenOptions::new().append(true).open(&self.path).and_then(|file| {
            file.set_len(self.bytes)?;
            Ok(file)
        });
        self.file = Some(opened.map_err(|error| self.failure("open", &error))?);
        Ok(())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one record.
    pub(crate) fn add(
        &mut self,
        line: u64,
        record: &[u8],
        error: &RecordError,
    ) -> Result<(), Failure> {
        let encoding = Encoding::Text.fitting(&[record]);
        let mut text = serde_json::to_vec(&Line {
            line,
            reason: &error.reason,
            outcome: error.outcome,
            message: &error.message,
            attempts: error.attempts,
            record: encoding.write(record),
            encoding,
        })
        .expect("a line has string keys only");
        text.push(b'\n');
        if self.file.is_none() {
            let created = OpenOptions::new().create(true).append(true).open(&self.path);
            self.file = Some(created.map_err(|error| self.failure("create", &error))?);
        }
        let file = self.file.as_mut().expect("it was just opened");
        file.write_all(&text).map_err(|error| self.failure("write", &error))?;
        self.bytes += u64::try_from(text.len()).expect("a line is short");
        Ok(())
    }

    /// Makes what was added durable: a position that is written down must not outlive its errors.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        match &self.file {
            Some(file) => file.sync_data().map_err(|error| self.failure("write", &error)),
            None => Ok(()),
        }
    }

    fn failure(&self, verb: &str, error: &io::Error) -> Failure {
        Failure::file(format!("cannot {verb} {}", self.path.display()), error)
    }
}

/// True if both are one file, by whatever names. One that is not there is known by its name only.
fn are_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => std::path::absolute(one).ok() == std::path::absolute(other).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn examine(path: &Path, earlier: Earlier) -> Result<ErrorsFile, Failure> {
        ErrorsFile::examine(path.to_owned(), earlier, &[])
    }

    fn error(reason: &str) -> RecordError {
        RecordError {
            reason: reason.to_owned(),
            outcome: "unknown",
            message: "1 of 2".to_owned(),
            attempts: 3,
        }
    }

    #[test]
    fn what_was_not_settled_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("errors.ndjson");
        let mut file = examine(&path, Earlier::Keep).unwrap();
        file.begin().unwrap();
        assert!(!path.exists(), "no errors, no file");
        file.add(7, b"a,b", &error("FIRST")).unwrap();
        let settled = file.bytes();
        file.add(8, b"\xff", &error("SECOND")).unwrap();
        drop(file);

        let mut file = examine(&path, Earlier::GoOn(settled)).unwrap();
        file.begin().unwrap();
        file.add(9, b"c", &error("THIRD")).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"line":7,"reason":"FIRST","outcome":"unknown","message":"1 of 2","attempts":3,"record":"a,b","encoding":"text"}
{"line":9,"reason":"THIRD","outcome":"unknown","message":"1 of 2","attempts":3,"record":"c","encoding":"text"}
"#
        );
        examine(&path, Earlier::Replace).unwrap().begin().unwrap();
        assert!(!path.exists(), "a new import begins with none");
    }

    #[test]
    fn what_is_there_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("errors.ndjson");
        fs::write(&path, "").unwrap();
        examine(&path, Earlier::Keep).expect("an empty file is nobody's loss");
        fs::write(&path, "earlier\n").unwrap();
        assert_eq!(examine(&path, Earlier::Keep).unwrap_err().reason(), "ERRORS_FILE_EXISTS");
        let short = examine(&path, Earlier::GoOn(9)).unwrap_err();
        assert_eq!(short.reason(), "CANNOT_RESUME", "its beginning is not what was settled");
        examine(&path, Earlier::Replace).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "earlier\n", "nothing has begun");
        assert_eq!(examine(folder.path(), Earlier::Replace).unwrap_err().reason(), "USAGE");
    }

    #[test]
    fn the_data_are_no_errors_file() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data.csv");
        let link = folder.path().join("link.csv");
        let state = folder.path().join("data.csv.import-state.json");
        fs::write(&data, "key,value\n").unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let detour = folder.path().join(".").join("data.csv");
        for path in [&data, &link, &detour, &state] {
            for earlier in [Earlier::Keep, Earlier::Replace, Earlier::GoOn(0)] {
                let refused = ErrorsFile::examine(path.clone(), earlier, &[&data, &state]);
                assert_eq!(refused.unwrap_err().reason(), "USAGE", "{}", path.display());
            }
        }
    }
}
