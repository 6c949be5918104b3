//! A list of changes that an engine applies whole or not at all.

use super::Space;

/// Changes in the order they take effect. Keys and values are copied into one buffer, which
/// [`WriteBatch::clear`] keeps: a batch that is used again allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    bytes: Vec<u8>,
    changes: Vec<Entry>,
}

/// One change, as an engine reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Sets a key.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Removes every key of a range.
    DeleteRange {
        /// The first key, inclusive.
        start: &'a [u8],
        /// The end, exclusive.
        end: &'a [u8],
    },
}

/// A change's two byte strings end at `first_end` and `second_end`, and begin where the strings
/// before them end.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    space: Space,
    first_end: usize,
    second_end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Delete,
    DeleteRange,
}

/// What an emptied batch keeps at most: a rare large group must not hold its memory for ever.
const KEPT_BYTES_MAX: usize = 1 << 20;
const KEPT_CHANGES_MAX: usize = 16 << 10;

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key to the concatenation of some parts.
    pub fn put<const N: usize>(&mut self, space: Space, key: &[u8], value: [&[u8]; N]) {
        self.push(Kind::Put, space, key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, space: Space, key: &[u8]) {
        self.push(Kind::Delete, space, key, []);
    }

    /// Removes every key from `start`, inclusive, to `end`, exclusive.
    pub fn delete_range(&mut self, space: Space, start: &[u8], end: &[u8]) {
        self.push(Kind::DeleteRange, space, start, [end]);
    }

    fn push<const N: usize>(&mut self, kind: Kind, space: Space, first: &[u8], second: [&[u8]; N]) {
        self.bytes.extend_from_slice(first);
        let first_end = self.bytes.len();
        for part in second {
            self.bytes.extend_from_slice(part);
        }
        self.changes.push(Entry { kind, space, first_end, second_end: self.bytes.len() });
    }

    /// The changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = (Space, Change<'_>)> {
        let mut at = 0;
        self.changes.iter().map(move |it| {
            let (first, second) =
                (&self.bytes[at..it.first_end], &self.bytes[it.first_end..it.second_end]);
            at = it.second_end;
            let change = match it.kind {
                Kind::Put => Change::Put { key: first, value: second },
                Kind::Delete => Change::Delete { key: first },
                Kind::DeleteRange => Change::DeleteRange { start: first, end: second },
            };
            (it.space, change)
        })
    }

    /// The number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// True without changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all changes and keeps the memory, within reason.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.changes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.changes.shrink_to(KEPT_CHANGES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_its_changes_and_its_memory() {
        let mut batch = WriteBatch::new();
        for _ in 0..2 {
            batch.put(Space::Data, b"a", [b"1", b"23"]);
            batch.delete(Space::Hints, b"bb");
            batch.put(Space::System, b"", [b""]);
            batch.delete_range(Space::Data, b"c", b"d");
            let expected = [
                (Space::Data, Change::Put { key: b"a", value: b"123" }),
                (Space::Hints, Change::Delete { key: b"bb" }),
                (Space::System, Change::Put { key: b"", value: b"" }),
                (Space::Data, Change::DeleteRange { start: b"c", end: b"d" }),
            ];
            assert_eq!(batch.changes().collect::<Vec<_>>(), expected);
            assert_eq!((batch.len(), batch.bytes()), (4, 8));
            batch.clear();
            assert!(batch.is_empty());
        }
        batch.put(Space::Data, b"a", [&vec![0; 4 * KEPT_BYTES_MAX]]);
        batch.clear();
        assert!(batch.bytes.capacity() <= KEPT_BYTES_MAX);
    }
}
