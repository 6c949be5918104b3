//! What is not as a manifest says: files missing, extra or changed, each by name. Pure.

use std::collections::BTreeMap;

use super::manifest::FileEntry;

/// One file that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the snapshot's folder.
    pub path: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not there.
    #[error("the manifest lists it, and it is not there")]
    Missing,
    /// The manifest does not list it.
    #[error("the manifest does not list it")]
    Extra,
    /// It has another size.
    #[error("it has {actual} bytes, and had {expected}")]
    Size {
        /// Bytes when it was made.
        expected: u64,
        /// Bytes now.
        actual: u64,
    },
    /// It is no file any more: a folder, or a link.
    #[error("it is no plain file")]
    Kind,
    /// It has other contents.
    #[error("its digest is {actual}, and was {expected}")]
    Contents {
        /// The digest when it was made.
        expected: String,
        /// The digest now.
        actual: String,
    },
    /// It cannot be read.
    #[error("it cannot be read: {message}")]
    Unreadable {
        /// What the system said.
        message: String,
    },
    /// It is the manifest, and says nothing.
    #[error("{message}")]
    Manifest {
        /// Why.
        message: String,
    },
}

/// What names and sizes tell, and which files have yet to be read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Comparison {
    /// What was found so far, by path.
    pub findings: Vec<Finding>,
    /// Files of the right name and size: their digests decide.
    pub unread: Vec<FileEntry>,
}

/// Compares the files of a manifest with those found, each with its size; `None` for what is no plain
/// file.
pub fn compare(listed: &[FileEntry], found: &BTreeMap<String, Option<u64>>) -> Comparison {
    let mut it = Comparison::default();
    for entry in listed {
        let problem = match found.get(&entry.path) {
            None => Problem::Missing,
            Some(None) => Problem::Kind,
            Some(Some(bytes)) if *bytes == entry.bytes => {
                it.unread.push(entry.clone());
                continue;
            }
            Some(Some(actual)) => Problem::Size { expected: entry.bytes, actual: *actual },
        };
        it.findings.push(Finding { path: entry.path.clone(), problem });
    }
    let is_listed = |path: &str| listed.binary_search_by(|it| it.path.as_str().cmp(path)).is_ok();
    let extra = found.keys().filter(|path| !is_listed(path));
    it.findings.extend(extra.map(|path| Finding { path: path.clone(), problem: Problem::Extra }));
    it.findings.sort_by(|a, b| a.path.cmp(&b.path));
    it
}

/// Compares what was read of one file with its entry.
pub fn compare_digest(entry: &FileEntry, read: Result<String, String>) -> Option<Finding> {
    let problem = match read {
        Ok(actual) if actual == entry.digest => return None,
        Ok(actual) => Problem::Contents { expected: entry.digest.clone(), actual },
        Err(message) => Problem::Unreadable { message },
    };
    Some(Finding { path: entry.path.clone(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, bytes: u64) -> FileEntry {
        FileEntry { path: path.to_owned(), bytes, digest: "d".to_owned() }
    }

    /// The findings as "path: problem", and what is left to read.
    fn compared(listed: &[FileEntry], found: &[(&str, Option<u64>)]) -> (Vec<String>, Vec<String>) {
        let found = found.iter().map(|(path, bytes)| ((*path).to_owned(), *bytes)).collect();
        let it = compare(listed, &found);
        let findings = it.findings.iter().map(|it| format!("{}: {}", it.path, it.problem));
        (findings.collect(), it.unread.into_iter().map(|it| it.path).collect())
    }

    #[test]
    fn every_difference_has_a_name() {
        let listed = [entry("a", 1), entry("b", 2), entry("c", 3), entry("d", 4)];
        let whole = [("a", Some(1)), ("b", Some(2)), ("c", Some(3)), ("d", Some(4))];
        let all = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(compared(&listed, &whole), (vec![], all));

        let (findings, unread) =
            compared(&listed, &[("a", Some(1)), ("b", Some(7)), ("bb", Some(2)), ("c", None)]);
        assert_eq!(
            findings,
            [
                "b: it has 7 bytes, and had 2",
                "bb: the manifest does not list it",
                "c: it is no plain file",
                "d: the manifest lists it, and it is not there",
            ]
        );
        assert_eq!(unread, ["a"]);
        assert_eq!(compared(&[], &[("a", None)]).0, ["a: the manifest does not list it"]);
    }

    #[test]
    fn contents_decide_in_the_end() {
        let entry = entry("a", 1);
        assert_eq!(compare_digest(&entry, Ok("d".to_owned())), None);
        let problem = |read| compare_digest(&entry, read).unwrap().problem.to_string();
        assert_eq!(problem(Ok("e".to_owned())), "its digest is e, and was d");
        assert_eq!(problem(Err("EIO".to_owned())), "it cannot be read: EIO");
    }
}
