//! Cuts the records of a file into batches. Never puts one row into a batch twice, nor into two
//! batches that are in flight together: the later record of the file has to win.

use std::{
    collections::{BTreeSet, VecDeque},
    io::Read,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use model::Key;

use crate::{
    commands::import::unreadable,
    failure::Failure,
    transfer::{
        columns::{Parsed, ParsedRow},
        source::{Record, Source},
    },
};

/// Bytes of keys and values of one batch; one row always fits.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Neighbouring records that are settled together.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    /// The records, in the order of the file.
    pub(super) records: Vec<Record>,
    bytes: usize,
    keys: BTreeSet<Key>,
}

impl Batch {
    /// The rows to write, each with the index of its record.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, &ParsedRow)> {
        self.records.iter().enumerate().filter_map(|(index, record)| match &record.parsed {
            Parsed::Row(row) => Some((index, row)),
            Parsed::Expired | Parsed::Bad(_) => None,
        })
    }

    /// Adds a record, or gives it back if it belongs into a later batch.
    fn add(&mut self, record: Record, rows_max: usize) -> Option<Record> {
        if self.records.len() >= rows_max {
            return Some(record);
        }
        if let Parsed::Row(row) = &record.parsed {
            let bytes = row.key.partition_key.len() + row.key.sort_key.len() + row.value.len();
            let full = !self.records.is_empty() && self.bytes + bytes > BATCH_BYTES_MAX;
            if full || self.keys.contains(&row.key) {
                return Some(record);
            }
            self.keys.insert(row.key.clone());
            self.bytes += bytes;
        }
        self.records.push(record);
        None
    }
}

/// Makes batches, and remembers the rows in flight.
pub(super) struct Batches {
    rows_max: usize,
    left_over: Option<Record>,
    waiting: Option<Batch>,
    in_flight: VecDeque<BTreeSet<Key>>,
    ended: bool,
}

impl Batches {
    /// Batches of at most `rows_max` records.
    pub(super) fn new(rows_max: usize) -> Self {
        let in_flight = VecDeque::new();
        Self { rows_max, left_over: None, waiting: None, in_flight, ended: false }
    }

    /// The next batch to send. `None` if there is none, or if the next one has a row that is still
    /// in flight: ask again when a batch has settled.
    pub(super) fn next<R: Read>(
        &mut self,
        source: &mut Source<R>,
        path: &Path,
    ) -> Result<Option<Batch>, Failure> {
        let batch = match self.waiting.take() {
            Some(batch) => batch,
            None => self.cut(source, path)?,
        };
        if batch.records.is_empty() {
            return Ok(None);
        }
        if self.in_flight.iter().any(|keys| !keys.is_disjoint(&batch.keys)) {
            self.waiting = Some(batch);
            return Ok(None);
        }
        self.in_flight.push_back(batch.keys.clone());
        Ok(Some(batch))
    }

    /// Notes that the oldest batch in flight has settled.
    pub(super) fn settled(&mut self) {
        self.in_flight.pop_front();
    }

    fn cut<R: Read>(&mut self, source: &mut Source<R>, path: &Path) -> Result<Batch, Failure> {
        let mut batch = Batch::default();
        let now_ms = now_ms();
        while !self.ended {
            let record = match self.left_over.take() {
                Some(record) => Some(record),
                None => source.next(now_ms).map_err(|error| unreadable(path, &error))?,
            };
            let Some(record) = record else {
                self.ended = true;
                break;
            };
            self.left_over = batch.add(record, self.rows_max);
            if self.left_over.is_some() {
                break;
            }
        }
        Ok(batch)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{Format, columns::tests::no_columns, source::CsvDialect};

    fn source(text: &str) -> Source<&[u8]> {
        let dialect = CsvDialect { delimiter: b',', heading: false, quotes: true };
        Source::open(Format::Csv, dialect, &no_columns(), text.as_bytes()).unwrap()
    }

    fn lines(batch: Option<Batch>) -> Vec<u64> {
        batch.map(|it| it.records.iter().map(|it| it.line).collect()).unwrap_or_default()
    }

    #[test]
    fn a_row_is_in_flight_once() {
        let mut source = source("a,1\nb,1\nbad\na,2\nc,1\nb,2\n");
        let mut batches = Batches::new(3);
        let path = Path::new("x");
        let mut next = |batches: &mut Batches| lines(batches.next(&mut source, path).unwrap());
        assert_eq!(next(&mut batches), [1, 2, 3], "full");
        assert_eq!(next(&mut batches), [0; 0], "a and b are in flight");
        batches.settled();
        assert_eq!(next(&mut batches), [4, 5, 6]);
        assert_eq!(next(&mut batches), [0; 0], "the end");
    }

    #[test]
    fn a_repeated_row_begins_the_next_batch() {
        let mut source = source("a,1\na,2\na,3\n");
        let mut batches = Batches::new(10);
        let path = Path::new("x");
        for line in 1..=3 {
            assert_eq!(lines(batches.next(&mut source, path).unwrap()), [line]);
            assert_eq!(lines(batches.next(&mut source, path).unwrap()), [0; 0]);
            batches.settled();
        }
    }

    #[test]
    fn bytes_bound_a_batch_but_one_row_always_fits() {
        let big = "x".repeat(BATCH_BYTES_MAX);
        let text = format!("a,{big}\nb,1\n");
        let mut source = source(&text);
        let mut batches = Batches::new(10);
        assert_eq!(lines(batches.next(&mut source, Path::new("x")).unwrap()), [1]);
        assert_eq!(lines(batches.next(&mut source, Path::new("x")).unwrap()), [2]);
    }
}
