//! The mark of a Quorate database: which format its rows have, and how many lanes it was made for.

use super::{Durability, RangeRequest, Space, Storage, StorageError, WriteBatch};

/// The format of the rows that this build writes: keys, stored values, hints and bookkeeping.
pub const FORMAT_VERSION: u32 = 6;

/// The lanes (databases with a log and a commit thread of their own) that this build runs.
pub const LANES: u32 = 1;

const FORMAT_KEY: &[u8] = b"\0format";

/// Why a database is not one that this build can serve. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The database was written by a newer build, or by one that never was released.
    #[error("the database has format {found}; this build reads format {FORMAT_VERSION}")]
    UnknownFormat {
        /// The format found.
        found: u32,
    },
    /// The database is spread over another number of lanes.
    #[error("the database has {found} lanes; this build runs {LANES}")]
    LaneCount {
        /// The lanes found.
        found: u32,
    },
    /// The database has rows and no mark, or one that is none.
    #[error("the database carries no format mark: it is damaged, or not one of Quorate's")]
    NoMark,
    /// The mark could not be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Checks the mark of a database that was just opened, or sets it on an empty one.
pub fn check_format(storage: &(impl Storage + ?Sized)) -> Result<(), OpenError> {
    if let Some(mark) = storage.get(Space::System, FORMAT_KEY)? {
        let (format, lanes) = mark.split_at_checked(4).ok_or(OpenError::NoMark)?;
        let [format, lanes] = [format, lanes].map(|it| it.try_into().map(u32::from_be_bytes));
        let (Ok(format), Ok(lanes)) = (format, lanes) else { return Err(OpenError::NoMark) };
        return match (format, lanes) {
            (FORMAT_VERSION, LANES) => Ok(()),
            (FORMAT_VERSION, found) => Err(OpenError::LaneCount { found }),
            (found, _) => Err(OpenError::UnknownFormat { found }),
        };
    }
    for space in Space::ALL {
        let any = RangeRequest { rows_max: 1, ..RangeRequest::prefix(space, &b""[..]) };
        if !storage.range(&any)?.rows.is_empty() {
            return Err(OpenError::NoMark);
        }
    }
    let mut batch = WriteBatch::new();
    let mark = [FORMAT_VERSION.to_be_bytes(), LANES.to_be_bytes()];
    batch.put(Space::System, FORMAT_KEY, [&mark[0], &mark[1]]);
    Ok(storage.write(&batch, Durability::Synced)?)
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStorage;
    use super::*;

    fn check(rows: &[(&[u8], &[u8])]) -> Result<(), OpenError> {
        let storage = MemoryStorage::new();
        let mut batch = WriteBatch::new();
        for (key, value) in rows {
            batch.put(Space::System, key, [value]);
        }
        storage.write(&batch, Durability::Synced).unwrap();
        check_format(&storage)?;
        check_format(&storage)
    }

    #[test]
    fn marks_are_set_once_and_strangers_refused() {
        assert_eq!(check(&[]), Ok(()));
        let golden = (FORMAT_KEY, &[0, 0, 0, 6, 0, 0, 0, 1][..]);
        assert_eq!(check(&[golden]), Ok(()));
        let newer = (FORMAT_KEY, &[0, 0, 0, 7, 0, 0, 0, 1, 9][..]);
        assert_eq!(check(&[newer]), Err(OpenError::NoMark));
        let newer = (FORMAT_KEY, &[0, 0, 0, 7, 0, 0, 0, 1][..]);
        assert_eq!(check(&[newer]), Err(OpenError::UnknownFormat { found: 7 }));
        let older = (FORMAT_KEY, &[0, 0, 0, 1, 0, 0, 0, 1][..]);
        assert_eq!(check(&[older]), Err(OpenError::UnknownFormat { found: 1 }));
        let lanes = (FORMAT_KEY, &[0, 0, 0, 6, 0, 0, 0, 4][..]);
        assert_eq!(check(&[lanes]), Err(OpenError::LaneCount { found: 4 }));
        assert_eq!(check(&[(b"other", b"row")]), Err(OpenError::NoMark));
        assert_eq!(check(&[(FORMAT_KEY, b"x")]), Err(OpenError::NoMark));
    }
}
