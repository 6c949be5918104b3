//! The digest of a file: what the crate `merkle_hash` makes of it, by BLAKE3.
//!
//! A major version of that crate may change its hashes, so each digest says which one made it.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use merkle_hash::{Algorithm, MerkleTree, blake3, bytes_to_hex};

/// What every digest of this build begins with: the crate with its major version, and the algorithm.
pub const DIGEST_PREFIX: &str = "merkle_hash-3/blake3:";

/// The crate reads a file whole. Larger ones go piece by piece through the hash that it uses, which
/// gives the same digest.
const WHOLE_FILE_BYTES_MAX: u64 = 16 << 20;

/// A piece of a larger file.
const PIECE_BYTES: usize = 1 << 20;

/// The digest of a file of so many bytes. Takes at most 16 MiB of memory, if the size is right.
pub fn digest_file(path: &Path, bytes: u64) -> io::Result<String> {
    match path.to_str() {
        Some(text) if bytes <= WHOLE_FILE_BYTES_MAX => {
            let tree = MerkleTree::builder(text).algorithm(Algorithm::Blake3).build();
            let tree = tree.map_err(|error| io::Error::other(error.to_string()))?;
            Ok(spell(&tree.root.item.hash))
        }
        _ => digest_in_pieces(path),
    }
}

/// The digest of these bytes, as if they were a file's.
pub fn digest_of(bytes: &[u8]) -> String {
    spell(&Algorithm::Blake3.compute_hash(bytes))
}

fn digest_in_pieces(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(spell(hasher.finalize().as_bytes())),
            count => drop(hasher.update(&piece[..count])),
        }
    }
}

fn spell(hash: &[u8]) -> String {
    DIGEST_PREFIX.to_owned() + &bytes_to_hex(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_digest_however_a_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [0, 1, 1_000, PIECE_BYTES, 3 * PIECE_BYTES + 17] {
            let bytes: Vec<u8> =
                (0..length).map(|it| u8::try_from(it * 31 % 251).unwrap()).collect();
            std::fs::write(&path, &bytes).unwrap();
            let whole = digest_file(&path, length as u64).unwrap();
            assert_eq!(whole, digest_file(&path, WHOLE_FILE_BYTES_MAX + 1).unwrap(), "{length}");
            assert_eq!(whole, digest_of(&bytes), "{length}");
        }
    }

    #[test]
    fn golden_digest() {
        let golden = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(digest_of(b""), format!("merkle_hash-3/blake3:{golden}"));
    }
}
