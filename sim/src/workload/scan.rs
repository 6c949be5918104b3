//! Scans of a client, and what their pages say of each key: of those found, and of those that were
//! passed over and so were absent.

use std::{cmp::Ordering, ops::Bound, time::Duration};

use bytes::Bytes;
use client::{Page, Row, ScanRange};
use model::{ConsistencyLevel, Key, Token};
use proto::Reason;
use rand::RngExt;

use super::{
    Session,
    calls::{failed, found},
};
use crate::{
    discipline::Discipline,
    history::Outcome,
    recorder::{KeyName, now},
};

/// A level of more than one replica.
fn level_of_quorums(level: ConsistencyLevel) -> ConsistencyLevel {
    match level {
        ConsistencyLevel::One | ConsistencyLevel::LocalOne => ConsistencyLevel::Quorum,
        level => level,
    }
}

/// Where a row stands among all rows: by token, partition key and sort key.
type Position = (Token, Bytes, Bytes);

/// What a scan was asked for.
#[derive(Clone, Debug)]
struct Asked {
    from: Position,
    to: Bound<Position>,
    prefix: Bytes,
    reverse: bool,
    /// 0 for none.
    limit: u64,
    page_rows: u32,
}

/// How far a scan has come.
struct Progress {
    asked: Asked,
    /// The row last delivered: what lies up to here is known.
    last: Option<Position>,
    delivered: u64,
}

/// What a page has told.
struct Told {
    /// The end of what is known now; `None` if that is the end of the range.
    up_to: Option<Position>,
    /// What the page must not hold.
    wrong: Vec<String>,
}

impl Session {
    /// Reads rows of one partition key, some or all, forward or back, or rows of whatever partition
    /// keys follow, in pages of one to three.
    pub(super) async fn scan(&mut self, discipline: Discipline) {
        if !self.reads(discipline) {
            return;
        }
        let level = self.read_level(discipline);
        let first = self.key_to_read(discipline);
        let (range, asked) = self.range(&first);
        // Rows that a disk loses are of keys whose every read asks a quorum: by such a scan too.
        let of_others = asked.to == Bound::Unbounded && self.load.shape.damages_disks();
        let level = if of_others { level_of_quorums(level) } else { level };
        // A key that is first heard of later cannot have had to be found.
        let known: Vec<KeyName> = self.load.recorder.keys();
        let known = known.into_iter().filter(|it| asked.holds(&it.key())).collect::<Vec<_>>();
        let called = now();
        let scan = self.keyspace.scan(range).consistency(level);
        let mut scan = scan.page_rows(asked.page_rows).limit(asked.limit);
        let mut progress = Progress { asked, last: None, delivered: 0 };
        loop {
            match scan.next_page().await {
                Ok(Some(page)) => self.take_page(&mut progress, &page, &known, level, called),
                Ok(None) => break,
                Err(error) => {
                    let nonsense = [
                        Reason::TokenMalformed,
                        Reason::TokenForeign,
                        Reason::RangeReversed,
                        Reason::InvalidField,
                        Reason::MalformedMessage,
                    ];
                    if nonsense.contains(&error.reason()) {
                        self.load.complain(format!("{:?} was refused: {error}", progress.asked));
                    }
                    let outcome = failed(&error);
                    self.load.recorder.scanned(self.who, &first, level, called, outcome);
                    break;
                }
            }
        }
    }

    /// Some rows of a key's partition key, or of its token and those behind it.
    fn range(&mut self, first: &KeyName) -> (ScanRange, Asked) {
        let random = &mut self.random;
        let (token, partition) = (first.key().token(), Bytes::from(first.partition()));
        let page_rows = random.random_range(1..=3);
        let limit = if random.random_ratio(1, 4) { random.random_range(1..=4) } else { 0 };
        let all = Asked {
            from: (token, Bytes::new(), Bytes::new()),
            to: Bound::Unbounded,
            prefix: Bytes::new(),
            reverse: false,
            limit,
            page_rows,
        };
        match random.random_range(0..12) {
            0 => {
                let to = Bound::Included((token, partition, Bytes::from_static(&[0xff])));
                (ScanRange::tokens(token..=token), Asked { to, ..all })
            }
            1 => {
                let limit = random.random_range(1..=12);
                let asked = Asked { limit, page_rows: random.random_range(1..=6), ..all };
                (ScanRange::tokens(token..=Token(u64::MAX)), asked)
            }
            _ => {
                let mut range = ScanRange::partition(partition.clone());
                let at = |row: u32| Bytes::from(row.to_string());
                let last = Bytes::from_static(&[0xff]);
                let mut asked = Asked {
                    from: (token, partition.clone(), Bytes::new()),
                    to: Bound::Included((token, partition.clone(), last)),
                    ..all
                };
                let start = random.random_range(0..KeyName::ROWS);
                if random.random_ratio(1, 3) {
                    range = range.start(at(start));
                    asked.from.2 = at(start);
                }
                if random.random_ratio(1, 3) {
                    let end = at(random.random_range(start..=KeyName::ROWS));
                    range = range.end(end.clone());
                    asked.to = Bound::Excluded((token, partition, end));
                }
                if random.random_ratio(1, 8) {
                    asked.prefix = at(random.random_range(0..KeyName::ROWS));
                    range = range.prefix(asked.prefix.clone());
                }
                if random.random() {
                    range = range.reverse();
                    asked.reverse = true;
                }
                (range.into(), asked)
            }
        }
    }

    /// Writes down what a page says of each key that it covers.
    fn take_page(
        &self,
        progress: &mut Progress,
        page: &Page,
        known: &[KeyName],
        level: ConsistencyLevel,
        called: Duration,
    ) {
        let before = progress.last.clone();
        let told = progress.take(&page.rows, page.next_page_token.is_empty());
        for what in told.wrong {
            self.load.complain(what);
        }
        let order = |a: &Position, b: &Position| progress.asked.order(a, b);
        let covered = |it: &Position| {
            before.as_ref().is_none_or(|before| order(it, before).is_gt())
                && told.up_to.as_ref().is_none_or(|up_to| order(it, up_to).is_le())
        };
        let row = |key: &Key| page.rows.iter().find(|it| it.key == *key);
        let absent = known.iter().filter(|it| row(&it.key()).is_none());
        for key in absent.filter(|it| covered(&position(&it.key()))) {
            let outcome = Outcome::Found { value: None, version: None };
            self.load.recorder.scanned(self.who, key, level, called, outcome);
        }
        for row in &page.rows {
            let Some(key) = self.load.recorder.named_key(&row.key) else {
                self.load.complain(format!("a scan found {:?}, which nobody wrote", row.key));
                continue;
            };
            let outcome = found(&self.load, &key, Some(&row.value), Some(row.version));
            self.load.recorder.scanned(self.who, &key, level, called, outcome);
        }
    }
}

impl Asked {
    fn holds(&self, key: &Key) -> bool {
        let position = position(key);
        let ends = match &self.to {
            Bound::Included(to) => position <= *to,
            Bound::Excluded(to) => position < *to,
            Bound::Unbounded => true,
        };
        position >= self.from && ends && key.sort_key.starts_with(&self.prefix)
    }

    /// The order in which rows are delivered.
    fn order(&self, one: &Position, other: &Position) -> Ordering {
        if self.reverse { other.cmp(one) } else { one.cmp(other) }
    }
}

impl Progress {
    /// Takes a page: the rows have to be of the range, each behind the one before, and not too many.
    fn take(&mut self, rows: &[Row], is_last: bool) -> Told {
        let mut wrong = Vec::new();
        for row in rows {
            let at = position(&row.key);
            if !self.asked.holds(&row.key) {
                wrong.push(format!("{:?} delivers {:?}", self.asked, row.key));
            }
            if let Some(last) = &self.last
                && self.asked.order(last, &at).is_ge()
            {
                wrong.push(format!("{:?} delivers {:?} after {last:?}", self.asked, row.key));
                continue;
            }
            self.last = Some(at);
        }
        self.delivered += rows.len() as u64;
        let limited = self.asked.limit > 0 && self.delivered >= self.asked.limit;
        if rows.len() > self.asked.page_rows as usize
            || (limited && self.delivered > self.asked.limit)
        {
            wrong.push(format!("{:?} delivers {} rows at once", self.asked, rows.len()));
        }
        // An empty page that is not the last covers nothing that it would tell.
        let up_to = if is_last && !limited { None } else { self.last.clone().or(self.begin()) };
        Told { up_to, wrong }
    }

    /// A place before all rows.
    fn begin(&self) -> Option<Position> {
        let end = (Token(u64::MAX), Bytes::from_static(&[0xff]), Bytes::from_static(&[0xff]));
        Some(if self.asked.reverse { end } else { (Token(0), Bytes::new(), Bytes::new()) })
    }
}

fn position(key: &Key) -> Position {
    (key.token(), key.partition_key.clone(), key.sort_key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sort: &str) -> Row {
        Row {
            key: Key::with_sort_key("p", sort.to_owned()),
            value: Bytes::new(),
            version: model::Version::ABSENT,
            expires_at_ms: None,
        }
    }

    fn progress(reverse: bool, limit: u64) -> Progress {
        let (token, of) = (Key::new("p").token(), Bytes::from("p"));
        let asked = Asked {
            from: (token, of.clone(), Bytes::from("1")),
            to: Bound::Excluded((token, of, Bytes::from("3"))),
            prefix: Bytes::new(),
            reverse,
            limit,
            page_rows: 2,
        };
        Progress { asked, last: None, delivered: 0 }
    }

    /// What is known after a page: the sort key up to which, `*` for all.
    fn take(progress: &mut Progress, rows: &[&str], is_last: bool) -> (String, usize) {
        let rows: Vec<_> = rows.iter().map(|it| row(it)).collect();
        let told = progress.take(&rows, is_last);
        let up_to = told.up_to.map(|it| String::from_utf8_lossy(&it.2).into_owned());
        (up_to.unwrap_or("*".to_owned()), told.wrong.len())
    }

    #[test]
    fn pages_tell_how_far_they_reach() {
        let mut it = progress(false, 0);
        assert_eq!(take(&mut it, &[], false), (String::new(), 0));
        assert_eq!(take(&mut it, &["1"], false), ("1".to_owned(), 0));
        assert_eq!(take(&mut it, &[], false), ("1".to_owned(), 0));
        assert_eq!(take(&mut it, &["2"], true), ("*".to_owned(), 0));
        assert_eq!(take(&mut progress(false, 1), &["1"], true), ("1".to_owned(), 0), "the limit");
        assert_eq!(take(&mut progress(false, 2), &["1"], true), ("*".to_owned(), 0));
        assert_eq!(take(&mut progress(true, 0), &["2", "1"], true), ("*".to_owned(), 0));
    }

    #[test]
    fn rows_that_do_not_belong_there_are_told() {
        assert_eq!(take(&mut progress(false, 0), &["3"], true).1, 1, "behind the end");
        assert_eq!(take(&mut progress(false, 0), &["0"], true).1, 1, "before the start");
        assert_eq!(take(&mut progress(false, 0), &["2", "1"], true).1, 1, "out of order");
        assert_eq!(take(&mut progress(true, 0), &["1", "2"], true).1, 1, "out of order");
        assert_eq!(take(&mut progress(false, 0), &["1", "1"], true).1, 1, "twice");
        assert_eq!(take(&mut progress(false, 1), &["1", "2"], true).1, 1, "beyond the limit");
        let mut it = progress(false, 0);
        assert_eq!(take(&mut it, &["1"], false).1, 0);
        assert_eq!(take(&mut it, &["1"], true).1, 1, "on the next page again");
        let mut narrow = progress(false, 0);
        narrow.asked.page_rows = 1;
        assert_eq!(take(&mut narrow, &["1", "2"], true).1, 1, "too many for a page");
        let mut prefixed = progress(false, 0);
        prefixed.asked.prefix = Bytes::from("2");
        assert_eq!(take(&mut prefixed, &["1"], true).1, 1, "another prefix");
    }
}
