//! Says which rows are about to be read.

use bytes::Bytes;

use super::Storage;

/// Announces the rows of the first of some items, as many as are read next, unless that is one. How many items
/// that were: who has read them announces the next.
pub fn announce_first<T>(
    storage: &impl Storage,
    items: &[T],
    key: impl Fn(&T) -> Option<&Bytes>,
) -> usize {
    let first = &items[..items.len().min(ANNOUNCED_MAX)];
    if first.len() > 1 {
        let mut keys: Vec<&[u8]> = Vec::with_capacity(first.len());
        keys.extend(first.iter().filter_map(key).map(|it| &it[..]));
        storage.announce(&keys);
    }
    first.len()
}

/// So many rows, with what leads to them, fit the nearer caches of a processor: of more, the first would be gone
/// again before they are read.
const ANNOUNCED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::super::{
        Durability, RangePage, RangeRequest, Space, StorageError, StorageStatistics, TryGet,
        WriteBatch,
    };
    use super::*;

    /// Knows nothing, and notes what is announced.
    #[derive(Default)]
    struct Noting(Mutex<Vec<Vec<u8>>>);

    impl Storage for Noting {
        fn try_get(&self, _: Space, _: &[u8]) -> Result<TryGet, StorageError> {
            Ok(TryGet::Absent)
        }

        fn get(&self, _: Space, _: &[u8]) -> Result<Option<Bytes>, StorageError> {
            Ok(None)
        }

        fn range(&self, _: &RangeRequest) -> Result<RangePage, StorageError> {
            Ok(RangePage::default())
        }

        fn write(&self, _: &WriteBatch, _: Durability) -> Result<(), StorageError> {
            Ok(())
        }

        fn checkpoint(&self, _: &Path) -> Result<(), StorageError> {
            Ok(())
        }

        fn flush(&self) -> Result<(), StorageError> {
            Ok(())
        }

        fn statistics(&self) -> StorageStatistics {
            StorageStatistics::default()
        }

        fn announce(&self, keys: &[&[u8]]) {
            self.0.lock().unwrap().extend(keys.iter().map(|it| it.to_vec()));
        }
    }

    #[test]
    fn every_row_is_announced_once_in_its_order_before_it_is_read() {
        for count in [0, 1, 2, 256, 257, 600_u16] {
            let storage = Arc::new(Noting::default());
            let items: Vec<Bytes> =
                (0..count).map(|it| Bytes::copy_from_slice(&it.to_be_bytes())).collect();
            let (mut left, mut steps) = (&items[..], 0);
            while !left.is_empty() {
                let announced = announce_first(&storage, left, |it| Some(it));
                assert!((1..=256).contains(&announced));
                let known = storage.0.lock().unwrap().clone();
                assert!(left.len() == 1 || known.ends_with(&keys(&left[..announced])));
                (left, steps) = (&left[announced..], steps + 1);
            }
            assert_eq!(steps, usize::from(count).div_ceil(256));
            // One that is alone has nothing to wait with.
            let alone = usize::from(items.len() % 256 == 1);
            let expected = keys(&items[..items.len() - alone]);
            assert_eq!(*storage.0.lock().unwrap(), expected);
        }
    }

    fn keys(items: &[Bytes]) -> Vec<Vec<u8>> {
        items.iter().map(|it| it.to_vec()).collect()
    }
}
