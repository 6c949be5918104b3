use std::collections::BTreeMap;

use model::{
    ConsistencyLevel, DcIndex, Key, KeyspaceId, NodeIndex, ReplicaSet, RequestId, StorageKey,
};
use proptest::{collection::btree_map, prelude::*};

use super::*;

const ALL_ROWS: PageLimits = PageLimits { rows_max: usize::MAX, bytes_max: usize::MAX };

fn requirement(level: ConsistencyLevel) -> Requirement {
    let replicas = ReplicaSet::new([(DcIndex(0), [0, 1, 2].map(NodeIndex).to_vec())]);
    Requirement::for_read(level, &replicas, DcIndex(0)).unwrap()
}

fn record(ms: u64, expiry_ms: u64, value: Option<&[u8]>) -> Record {
    let key = Key::new(&b"key"[..]);
    let key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
    let version = Version { hlc: Hlc::from_ms(ms), request: RequestId(1) };
    Record::encode(&key, version, expiry_ms, value)
}

/// A page as "A clock: row row .. end". A row is `key@ms`, with `x` before a tombstone's key and
/// `!ms` for an expiry; the end is `.` for the range's, or the key covered up to.
fn page(text: &str) -> ReplicaPage {
    let (head, body) = text.split_once(": ").unwrap();
    let (from, clock) = head.split_once(' ').unwrap();
    let mut words: Vec<_> = body.split_whitespace().collect();
    let end = words.pop().unwrap();
    let row = |word: &str| {
        let (key, rest) = word.split_once('@').unwrap();
        let (ms, expiry) = rest.split_once('!').unwrap_or((rest, "0"));
        let value = (!key.starts_with('x')).then_some(&b"value"[..]);
        let key = Bytes::copy_from_slice(key.trim_start_matches('x').as_bytes());
        (key, record(ms.parse().unwrap(), expiry.parse().unwrap(), value))
    };
    ReplicaPage {
        from: ReplicaIndex(from.as_bytes()[0] - b'A'),
        rows: words.into_iter().map(row).collect(),
        covered_to: if end == "." {
            Covered::End
        } else {
            Covered::To(end.as_bytes().to_vec().into())
        },
        clock: Hlc::from_ms(clock.parse().unwrap()),
        floor: Hlc::ZERO,
    }
}

/// Merges at clock 100. Unsettled rows have a `?`, stale replicas follow a `<`.
fn check(level: ConsistencyLevel, direction: Direction, pages: &[&str], expected: &str) {
    let pages: Vec<_> = pages.iter().map(|it| page(it)).collect();
    let merged = merge_pages(&requirement(level), direction, Hlc::from_ms(100), ALL_ROWS, pages);
    let mut told = Vec::new();
    for row in &merged.rows {
        let key = String::from_utf8_lossy(&row.key);
        let stale: String = row.stale.iter().map(|it| char::from(b'A' + it.0)).collect();
        let settled = if row.settled { "" } else { "?" };
        let stale = if stale.is_empty() { stale } else { format!("<{stale}") };
        told.push(format!("{key}@{}{settled}{stale}", row.newest.version().hlc.ms()));
    }
    told.push(match merged.covered_to {
        Covered::End => ".".to_owned(),
        Covered::To(key) => String::from_utf8_lossy(&key).into_owned(),
    });
    assert_eq!(told.join(" "), expected, "{level}, {direction:?}");
}

#[test]
fn pages_are_merged_up_to_their_common_end() {
    use ConsistencyLevel::{All, One, Quorum};
    use Direction::{Forward, Reverse};
    check(Quorum, Forward, &["A 0: a@1 b@2 .", "B 0: a@1 b@2 ."], "a@1 b@2 .");
    check(Quorum, Forward, &["A 0: .", "C 0: ."], ".");
    check(Quorum, Forward, &["A 0: a@1 .", "B 0: a@2 ."], "a@2?<A .");
    check(Quorum, Forward, &["A 0: .", "B 0: a@2 ."], "a@2?<A .");
    // CE33: B has deleted what A still has, and its page ends later than A's; or earlier.
    let a = "A 0: a@1 b@1 c@1 c";
    check(Quorum, Forward, &[a, "B 0: xa@5 xb@5 xc@5 d@1 e@1 e"], "a@5?<A b@5?<A c@5?<A c");
    check(Quorum, Forward, &[a, "B 0: xa@5 xb@5 b"], "a@5?<A b@5?<A b");
    // A page without rows may still cover some of the range.
    check(Quorum, Forward, &[a, "B 0: b"], "a@1?<B b@1?<B b");
    // In reverse, the nearest end is the greatest key.
    check(Quorum, Reverse, &["A 0: c@1 b@1 b", "B 0: c@1 b@1 a@1 ."], "c@1 b@1 b");
    // Rows that a page does not vouch for are left out.
    check(Quorum, Forward, &["A 0: a@1 z@1 a", "B 0: a@1 z@1 ."], "a@1 a");
    // A quorum that agrees is enough, whatever the third says.
    check(All, Forward, &["A 0: a@1 .", "B 0: a@2 .", "C 0: a@2 ."], "a@2<A .");
    check(All, Forward, &["A 0: a@3 .", "B 0: a@2 .", "C 0: a@2 ."], "a@3?<BC .");
    // Below the quorum nothing is confirmed.
    check(One, Forward, &["A 0: a@1 .", "B 0: ."], "a@1<B .");
}

#[test]
fn an_expiry_that_some_replica_has_seen_is_confirmed_first() {
    use ConsistencyLevel::Quorum;
    let check = |pages: &[&str], expected| check(Quorum, Direction::Forward, pages, expected);
    check(&["A 100: a@1!100 .", "B 120: a@1!100 ."], "a@1 .");
    check(&["A 100: a@1!110 .", "B 109: a@1!110 ."], "a@1 .");
    check(&["A 100: a@1!110 .", "B 110: a@1!110 ."], "a@1? .");
}

#[test]
#[should_panic(expected = "two pages of ReplicaIndex(0)")]
fn a_replica_has_one_page() {
    check(ConsistencyLevel::Quorum, Direction::Forward, &["A 0: .", "A 0: ."], "");
}

#[test]
#[should_panic(expected = "for Requirement")]
fn the_required_pages_are_needed() {
    check(ConsistencyLevel::Quorum, Direction::Forward, &["A 0: ."], "");
}

type Rows = BTreeMap<u8, u64>;

/// The page of a replica behind a key: at most `rows_max` rows.
fn page_of(
    from: u8,
    rows: &Rows,
    direction: Direction,
    behind: Option<u8>,
    rows_max: usize,
) -> ReplicaPage {
    let is_behind = |it: &(&u8, &u64)| {
        behind.is_none_or(|last| direction.compare(&[*it.0], &[last]) == Ordering::Greater)
    };
    let mut rows: Vec<_> = rows.iter().filter(is_behind).map(|it| (*it.0, *it.1)).collect();
    if direction == Direction::Reverse {
        rows.reverse();
    }
    let is_cut = rows.len() > rows_max;
    rows.truncate(rows_max);
    let covered_to = match rows.last().filter(|_| is_cut) {
        Some((last, _)) => Covered::To(vec![*last].into()),
        None => Covered::End,
    };
    let row = |(key, ms): (u8, u64)| (Bytes::from(vec![key]), record(ms, 0, Some(b"value")));
    ReplicaPage {
        from: ReplicaIndex(from),
        rows: rows.into_iter().map(row).collect(),
        covered_to,
        clock: Hlc::ZERO,
        floor: Hlc::ZERO,
    }
}

proptest! {
    /// Page by page, a scan meets each key once, in order, with its newest version, within its limits.
    #[test]
    fn pages_make_up_the_range(
        replicas in proptest::collection::vec(btree_map(0u8..20, 1u64..4, 0..12), 2..=3),
        rows_max in proptest::collection::vec(1usize..6, 3),
        limits in (1usize..6, prop_oneof![Just(usize::MAX), 1usize..200]),
        reverse: bool,
    ) {
        let direction = if reverse { Direction::Reverse } else { Direction::Forward };
        let requirement = requirement(ConsistencyLevel::Quorum);
        let mut expected: BTreeMap<u8, (u64, bool)> = BTreeMap::new();
        for key in replicas.iter().flat_map(|it| it.keys()) {
            let versions: Vec<_> = replicas.iter().map(|it| it.get(key).copied().unwrap_or(0)).collect();
            let newest = *versions.iter().max().unwrap();
            let settled = versions.iter().filter(|it| **it == newest).count() >= 2;
            expected.insert(*key, (newest, settled));
        }
        let mut expected: Vec<_> = expected.into_iter().map(|(key, it)| (key, it.0, it.1)).collect();
        if reverse {
            expected.reverse();
        }

        let (mut actual, mut behind) = (Vec::new(), None);
        let limits = PageLimits { rows_max: limits.0, bytes_max: limits.1 };
        loop {
            let parts = (0..).zip(replicas.iter().zip(&rows_max));
            let pages = parts.map(|(from, (rows, n))| page_of(from, rows, direction, behind, *n));
            let merged = merge_pages(&requirement, direction, Hlc::ZERO, limits, pages.collect());
            let bytes = |it: &MergedRow| it.key.len() + it.newest.as_bytes().len();
            let within = merged.rows.iter().map(bytes).sum::<usize>() <= limits.bytes_max;
            prop_assert!(merged.rows.len() <= limits.rows_max);
            prop_assert!(within || merged.rows.len() == 1);
            let row = |it: &MergedRow| (it.key[0], it.newest.version().hlc.ms(), it.settled);
            actual.extend(merged.rows.iter().map(row));
            match merged.covered_to {
                Covered::End => break,
                Covered::To(key) => behind = Some(key[0]),
            }
        }
        prop_assert_eq!(actual, expected);
    }
}
