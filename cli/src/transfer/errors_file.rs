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
#[derive(Debug)]
pub(crate) struct ErrorsFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
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
    /// The file at `path`, of which the first `keep_bytes` belong to what was settled before. What
    /// follows them is cut off: those records are tried again.
    pub(crate) fn open(path: PathBuf, keep_bytes: u64) -> Result<Self, Failure> {
        let mut it = Self { path, file: None, bytes: keep_bytes };
        if keep_bytes == 0 {
            let removed = std::fs::remove_file(&it.path);
            return match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(it.failure("replace", &error))
                }
                _ => Ok(it),
            };
        }
        let opened = OpenOptions::new().append(true).open(&it.path).and_then(|file| {
            file.set_len(keep_bytes)?;
            Ok(file)
        });
        it.file = Some(opened.map_err(|error| it.failure("open", &error))?);
        Ok(it)
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut file = ErrorsFile::open(path.clone(), 0).unwrap();
        assert!(!path.exists(), "no errors, no file");
        file.add(7, b"a,b", &error("FIRST")).unwrap();
        let settled = file.bytes();
        file.add(8, b"\xff", &error("SECOND")).unwrap();
        drop(file);

        let mut file = ErrorsFile::open(path.clone(), settled).unwrap();
        file.add(9, b"c", &error("THIRD")).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            r#"{"line":7,"reason":"FIRST","outcome":"unknown","message":"1 of 2","attempts":3,"record":"a,b","encoding":"text"}
{"line":9,"reason":"THIRD","outcome":"unknown","message":"1 of 2","attempts":3,"record":"c","encoding":"text"}
"#
        );
        ErrorsFile::open(path.clone(), 0).unwrap();
        assert!(!path.exists(), "a new import begins with none");
    }
}
