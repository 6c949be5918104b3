//! What a snapshot may be called. Pure.

use std::fmt;

/// A snapshot's name, which is a folder's too: 1 to 64 letters, digits, `-`, `_` and `.`, the last three
/// only inside. So no name is hidden, leads out of its folder, or looks like an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

/// Why a text is no name of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty, or too long.
    #[error("a snapshot's name has 1 to {limit} characters; this one has {actual}")]
    Length {
        /// The most bytes.
        limit: usize,
        /// How many it has.
        actual: usize,
    },
    /// It has other characters, or begins or ends with one that stands only inside.
    #[error("a snapshot's name has letters and digits, and - _ . between them")]
    Characters,
}

impl SnapshotName {
    /// The most bytes of a name.
    pub const BYTES_MAX: usize = 64;

    /// Checks a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            return Err(NameError::Length { limit: Self::BYTES_MAX, actual: text.len() });
        }
        let is_outer = |it: Option<&u8>| it.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let is_inner = |it: &u8| it.is_ascii_alphanumeric() || b"-_.".contains(it);
        if !is_outer(bytes.first()) || !is_outer(bytes.last()) || !bytes.iter().all(is_inner) {
            return Err(NameError::Characters);
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(SnapshotName::BYTES_MAX);
        for good in ["a", "7", "before-upgrade_2.1", "20261121-185631", "a..b", &long] {
            assert_eq!(SnapshotName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            ".", "..", "../x", "a/b", "/a", ".a", "a.", "-a", "a-", "_a", "a b", "a\0b", "a\nb",
            "a\\b", "ä", "a:b", "~",
        ] {
            assert_eq!(SnapshotName::new(bad), Err(NameError::Characters), "{bad:?}");
        }
        assert_eq!(SnapshotName::new(""), Err(NameError::Length { limit: 64, actual: 0 }));
        let longer = long + "x";
        assert_eq!(SnapshotName::new(&longer), Err(NameError::Length { limit: 64, actual: 65 }));
    }
}
