//! What a snapshot says of itself: a JSON file of one fixed form. Pure.
//!
//! A manifest is whole only if encoding what was read gives the very bytes that were read, and if its
//! own digest is right: any changed byte is found, even one that leaves valid JSON behind.

use model::Hlc;
use serde::{Deserialize, Serialize};

use super::{
    digest::{DIGEST_PREFIX, digest_of},
    name::SnapshotName,
};

/// The format of the manifests that this build writes and reads.
pub const FORMAT: u32 = 1;

/// A manifest. The order of its fields is that of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// That of the encoding with this field empty.
    digest: String,
    /// The snapshot's name.
    pub name: String,
    /// Of what, and when.
    pub origin: Origin,
    /// Bytes of all files.
    pub bytes: u64,
    /// Every file but the manifest itself, by path.
    pub files: Vec<FileEntry>,
}

/// What was copied, and when.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Milliseconds since the Unix epoch, by the node's wall clock.
    pub created_at_ms: u64,
    /// The version of the software that made it.
    pub software_version: String,
    /// The format of the database's rows.
    pub database_format: u32,
    /// The cluster; empty before the first layout.
    pub cluster_id: String,
    /// The node.
    pub node_id: String,
    /// The storage that was copied.
    pub storage_id: String,
    /// The node's datacenter.
    pub datacenter: String,
    /// The node's rack.
    pub rack: String,
    /// The metadata in it are these, or newer ones.
    pub metadata_sequence: u64,
    /// The hash of their layout, as sixteen hexadecimal digits; zero before the first.
    pub layout_hash: String,
    /// Their keyspaces.
    pub keyspaces: Vec<KeyspaceEntry>,
    /// No record in it has a newer stamp: `milliseconds.counter`.
    pub highest_clock: String,
}

/// One keyspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyspaceEntry {
    /// Its name.
    pub name: String,
    /// The id of this life of its name: rows carry it.
    pub id: u32,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// From the snapshot's folder, with slashes.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest; see [`DIGEST_PREFIX`].
    pub digest: String,
}

/// Why a file is no manifest of this build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is damaged.
    #[error("the manifest is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// It was written by another version.
    #[error("the manifest has format {found}; this build reads format {FORMAT}")]
    UnknownFormat {
        /// The format found.
        found: u32,
    },
    /// Its digests are made in another way.
    #[error("the digest {found} is none of this build's, which begin with {DIGEST_PREFIX}")]
    UnknownDigest {
        /// A digest found.
        found: String,
    },
    /// It was renamed by hand, or copied from elsewhere.
    #[error("the manifest is that of snapshot {found:?}")]
    OtherName {
        /// The name that it says.
        found: String,
    },
}

impl Origin {
    /// The clock above which no record lies; zero if it is spelled wrong.
    pub fn clock(&self) -> Hlc {
        let parts = self.highest_clock.split_once('.');
        let parsed = parts.and_then(|(ms, counter)| {
            Some((ms.parse::<u64>().ok()?, counter.parse::<u16>().ok()?))
        });
        parsed.map_or(Hlc::ZERO, |(ms, counter)| Hlc(Hlc::from_ms(ms).0 | u64::from(counter)))
    }

    /// The hash of the layout; zero if it is spelled wrong.
    pub fn layout_hash(&self) -> u64 {
        u64::from_str_radix(&self.layout_hash, 16).unwrap_or_default()
    }
}

impl Manifest {
    /// The manifest of these files.
    pub fn new(name: &SnapshotName, origin: Origin, mut files: Vec<FileEntry>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let bytes = files.iter().map(|it| it.bytes).sum();
        let name = name.as_str().to_owned();
        let mut it = Self { format: FORMAT, digest: String::new(), name, origin, bytes, files };
        it.digest = digest_of(&it.encode());
        it
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers serialize");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the manifest of the snapshot of this name.
    pub fn decode(bytes: &[u8], name: &SnapshotName) -> Result<Self, ManifestError> {
        /// What every format begins with.
        #[derive(Deserialize)]
        struct Any {
            format: u32,
        }
        let damaged = |what: String| ManifestError::Damaged { what };
        let any: Any = serde_json::from_slice(bytes).map_err(|it| damaged(it.to_string()))?;
        if any.format != FORMAT {
            return Err(ManifestError::UnknownFormat { found: any.format });
        }
        let it: Self = serde_json::from_slice(bytes).map_err(|it| damaged(it.to_string()))?;
        let digests = it.files.iter().map(|it| &it.digest).chain([&it.digest]);
        if let Some(found) = digests.into_iter().find(|it| !it.starts_with(DIGEST_PREFIX)) {
            return Err(ManifestError::UnknownDigest { found: found.clone() });
        }
        let own = digest_of(&Self { digest: String::new(), ..it.clone() }.encode());
        if own != it.digest || it.encode() != bytes {
            return Err(damaged("its own digest is another".to_owned()));
        }
        if it.name != name.as_str() {
            return Err(ManifestError::OtherName { found: it.name });
        }
        Ok(it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SnapshotName {
        SnapshotName::new("before").unwrap()
    }

    fn sample() -> Manifest {
        let file =
            |path: &str| FileEntry { path: path.to_owned(), bytes: 3, digest: digest_of(b"abc") };
        let origin = Origin {
            created_at_ms: 1_763_750_000_000,
            software_version: "0.1.0".to_owned(),
            database_format: 1,
            cluster_id: "00000000-0000-0000-0000-000000000001".to_owned(),
            node_id: "00000000-0000-0000-0000-000000000002".to_owned(),
            storage_id: "00000000-0000-0000-0000-000000000003".to_owned(),
            datacenter: "fra".to_owned(),
            rack: "a".to_owned(),
            metadata_sequence: 4,
            layout_hash: "00000000000000ff".to_owned(),
            keyspaces: vec![KeyspaceEntry { name: "shop".to_owned(), id: 7 }],
            highest_clock: Hlc(Hlc::from_ms(1_763_750_000_000).0 | 5).to_string(),
        };
        Manifest::new(&name(), origin, vec![file("rocksdb/b"), file("rocksdb/a")])
    }

    #[test]
    fn golden_manifest() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let golden = include_str!("golden_manifest.json");
        assert_eq!(text, golden, "the format of files on disk has changed");
        let read = Manifest::decode(golden.as_bytes(), &name()).unwrap();
        assert_eq!(read, sample());
        assert_eq!(read.bytes, 6);
        assert_eq!(read.origin.clock(), Hlc(Hlc::from_ms(1_763_750_000_000).0 | 5));
        assert_eq!(read.origin.layout_hash(), 255);
    }

    #[test]
    fn every_changed_byte_is_found() {
        let whole = sample().encode();
        for at in 0..whole.len() {
            for flip in [0x01, 0x10, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                assert!(Manifest::decode(&bytes, &name()).is_err(), "byte {at} by {flip:#x}");
            }
            assert!(Manifest::decode(&whole[..at], &name()).is_err(), "cut at {at}");
        }
        let more = [&whole[..], b"\n"].concat();
        assert!(Manifest::decode(&more, &name()).is_err());
    }

    #[test]
    fn others_are_told_apart() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let decode = |text: &str| Manifest::decode(text.as_bytes(), &name()).unwrap_err();
        let newer = text.replacen("\"format\": 1", "\"format\": 2", 1);
        assert_eq!(decode(&newer), ManifestError::UnknownFormat { found: 2 });
        let newer = text.replacen("merkle_hash-3/", "merkle_hash-4/", 1);
        assert!(matches!(decode(&newer), ManifestError::UnknownDigest { .. }));
        let other = SnapshotName::new("after").unwrap();
        let error = Manifest::decode(text.as_bytes(), &other).unwrap_err();
        assert_eq!(error, ManifestError::OtherName { found: "before".to_owned() });
    }
}
