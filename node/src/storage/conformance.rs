//! What every engine does, run on each of them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Durability, RangeRequest, Space, Storage, TryGet, WriteBatch};

/// Runs the suite. `reopen` gives up the engine and opens the same storage again; what was synced is
/// still there.
pub(super) fn run<S: Storage>(mut storage: S, mut reopen: impl FnMut(S) -> S) {
    rows_are_found_by_key_and_space(&storage);
    storage = reopen(storage);
    ranges_have_order_ends_and_limits(&storage);
    ranges_follow_prefixes(&storage);
    batches_apply_in_order(&storage);
    ranges_can_be_deleted(&storage);
    storage = synced_writes_stay(storage, &mut reopen);
    for space in [Space::Data, Space::Trees] {
        storage = agrees_with_a_map(storage, space, &mut reopen);
    }
    storage.flush().unwrap();
    assert!(storage.statistics().data_rows > 0);
}

fn put(storage: &impl Storage, space: Space, rows: &[(&str, &str)]) {
    let mut batch = WriteBatch::new();
    for (key, value) in rows {
        batch.put(space, key.as_bytes(), [value.as_bytes()]);
    }
    storage.write(&batch, Durability::Synced).unwrap();
}

fn get(storage: &impl Storage, space: Space, key: &str) -> Option<String> {
    let value = storage.get(space, key.as_bytes()).unwrap();
    match storage.try_get(space, key.as_bytes()).unwrap() {
        TryGet::Hit(hit) => assert_eq!(Some(hit), value),
        TryGet::Absent => assert_eq!(None, value),
        TryGet::WouldBlock => {}
    }
    value.map(|it| String::from_utf8(it.to_vec()).unwrap())
}

fn clear(storage: &impl Storage) {
    let mut batch = WriteBatch::new();
    for space in [Space::Data, Space::Hints, Space::Trees, Space::Dues] {
        batch.delete_range(space, b"", &[0xff; 64]);
    }
    storage.write(&batch, Durability::Synced).unwrap();
}

fn rows_are_found_by_key_and_space(storage: &impl Storage) {
    put(storage, Space::Data, &[("k", "data"), ("", "empty key"), ("e", "")]);
    put(storage, Space::Hints, &[("k", "hint")]);
    put(storage, Space::Trees, &[("k", "tree")]);
    put(storage, Space::Dues, &[("k", "due")]);
    put(storage, Space::System, &[("k", "system")]);
    let found = Space::ALL.map(|it| get(storage, it, "k").unwrap());
    assert_eq!(found, ["data", "hint", "tree", "due", "system"]);
    assert_eq!(get(storage, Space::Data, "").unwrap(), "empty key");
    assert_eq!(get(storage, Space::Data, "e").unwrap(), "");
    assert_eq!(get(storage, Space::Hints, "e"), None);
    assert_eq!(get(storage, Space::Data, "kk"), None);

    let mut batch = WriteBatch::new();
    batch.delete(Space::Data, b"k");
    batch.delete(Space::Data, b"never there");
    storage.write(&batch, Durability::Synced).unwrap();
    let found = Space::ALL.map(|it| get(storage, it, "k").is_some());
    assert_eq!(found, [false, true, true, true, true]);
    clear(storage);
}

/// Pages through a range, and writes down keys with "|" between pages.
fn page(storage: &impl Storage, request: RangeRequest) -> String {
    let mut pages = Vec::new();
    let mut next = Some(request);
    while let Some(request) = next {
        let page = storage.range(&request).unwrap();
        let keys = page.rows.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap());
        pages.push(keys.collect::<String>());
        next = page.following(&request);
    }
    pages.join("|")
}

fn ranges_have_order_ends_and_limits(storage: &impl Storage) {
    put(storage, Space::Data, &[("d", "12"), ("a", "12"), ("e", "12"), ("c", "12"), ("b", "12")]);
    put(storage, Space::Hints, &[("x", "1"), ("B", "1")]);
    let check = |start: &'static str, end: Option<&'static str>, rows_max, bytes_max| {
        [false, true].map(|reverse| {
            let end = end.map(Bytes::from);
            let start = start.into();
            page(
                storage,
                RangeRequest { space: Space::Data, start, end, reverse, rows_max, bytes_max },
            )
        })
    };
    let all = usize::MAX;
    assert_eq!(check("", None, all, all), ["abcde", "edcba"]);
    assert_eq!(check("b", Some("d"), all, all), ["bc", "cb"]);
    assert_eq!(check("bb", Some("dd"), all, all), ["cd", "dc"]);
    assert_eq!(check("c", Some("c"), all, all), ["", ""]);
    assert_eq!(check("d", Some("b"), all, all), ["", ""]);
    assert_eq!(check("f", None, all, all), ["", ""]);
    assert_eq!(check("", None, 2, all), ["ab|cd|e", "ed|cb|a"]);
    assert_eq!(check("", None, 5, all), ["abcde", "edcba"], "no empty page at the end");
    assert_eq!(check("", None, all, 4), ["ab|cd|e", "ed|cb|a"], "3 bytes a row");
    assert_eq!(check("", None, all, 0), ["a|b|c|d|e", "e|d|c|b|a"], "one row always fits");
    clear(storage);
}

fn ranges_follow_prefixes(storage: &impl Storage) {
    put(storage, Space::Hints, &[("a", ""), ("ab", ""), ("ab\u{7f}", ""), ("abc", ""), ("ac", "")]);
    assert_eq!(page(storage, RangeRequest::prefix(Space::Hints, "ab")), "ababcab\u{7f}");
    assert_eq!(page(storage, RangeRequest::prefix(Space::Hints, "b")), "");

    let mut batch = WriteBatch::new();
    for key in [&[0xfe, 0xff][..], &[0xff], &[0xff, 0xff], &[0xff, 0xff, 1]] {
        batch.put(Space::Hints, key, []);
    }
    storage.write(&batch, Durability::Synced).unwrap();
    let count = |prefix: &'static [u8]| {
        storage.range(&RangeRequest::prefix(Space::Hints, prefix)).unwrap().rows.len()
    };
    assert_eq!([count(&[0xfe]), count(&[0xff]), count(&[0xff, 0xff])], [1, 3, 2]);
    clear(storage);
}

fn batches_apply_in_order(storage: &impl Storage) {
    put(storage, Space::Data, &[("a", "0"), ("b", "0")]);
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, b"a", [b"1"]);
    batch.put(Space::Data, b"a", [b"2"]);
    batch.delete(Space::Data, b"b");
    batch.put(Space::Data, b"b", [b"3"]);
    batch.put(Space::Data, b"c", [b"4"]);
    batch.delete(Space::Data, b"c");
    batch.put(Space::Data, b"d", [b"5"]);
    batch.delete_range(Space::Data, b"c", b"e");
    batch.put(Space::Data, b"dd", [b"6"]);
    storage.write(&batch, Durability::Synced).unwrap();
    let found =
        ["a", "b", "c", "d", "dd"].map(|it| get(storage, Space::Data, it).unwrap_or_default());
    assert_eq!(found, ["2", "3", "", "", "6"]);

    // Each key three times, and what comes last is not what sorts last.
    let mut batch = WriteBatch::new();
    for round in 0..3_u8 {
        for key in (0..40_u8).rev() {
            match (key + round) % 3 {
                0 => batch.delete(Space::Data, &[key % 5, key]),
                _ => batch.put(Space::Data, &[key % 5, key], [&[9 - round][..]]),
            }
        }
    }
    storage.write(&batch, Durability::Synced).unwrap();
    for key in 0..40_u8 {
        let expected = ((key + 2) % 3 > 0).then(|| vec![7]);
        let found = storage.get(Space::Data, &[key % 5, key]).unwrap();
        assert_eq!(found.map(Vec::from), expected, "key {key}");
    }
    clear(storage);
}

fn ranges_can_be_deleted(storage: &impl Storage) {
    for space in [Space::Data, Space::Hints, Space::Trees, Space::Dues] {
        put(storage, space, &[("a", ""), ("b", ""), ("bb", ""), ("c", "")]);
    }
    let mut batch = WriteBatch::new();
    batch.delete_range(Space::Data, b"b", b"c");
    batch.delete_range(Space::Hints, b"c", b"b");
    storage.write(&batch, Durability::Synced).unwrap();
    let pages = [Space::Data, Space::Hints].map(|it| page(storage, RangeRequest::prefix(it, "")));
    assert_eq!(pages, ["ac", "abbbc"]);
    clear(storage);
}

fn synced_writes_stay<S: Storage>(storage: S, reopen: &mut impl FnMut(S) -> S) -> S {
    let mut batch = WriteBatch::new();
    batch.put(Space::Data, b"buffered", [b"before"]);
    storage.write(&batch, Durability::Buffered).unwrap();
    assert_eq!(get(&storage, Space::Data, "buffered").unwrap(), "before", "visible at once");
    put(&storage, Space::Data, &[("synced", "v")]);
    let storage = reopen(storage);
    assert_eq!(get(&storage, Space::Data, "synced").unwrap(), "v");
    let buffered = get(&storage, Space::Data, "buffered").unwrap();
    assert_eq!(buffered, "before", "a synced write takes all earlier ones with it");
    clear(&storage);
    storage
}

fn agrees_with_a_map<S: Storage>(
    mut storage: S,
    space: Space,
    reopen: &mut impl FnMut(S) -> S,
) -> S {
    let mut model = BTreeMap::new();
    let mut state = 7_u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for round in 0..200 {
        let mut batch = WriteBatch::new();
        for _ in 0..random(20) {
            let key = format!("{:03}", random(300));
            if random(40) == 0 {
                let end = format!("{:03}", random(300));
                batch.delete_range(space, key.as_bytes(), end.as_bytes());
                model.retain(|it: &String, _| *it < key || *it >= end);
            } else if random(4) == 0 {
                batch.delete(space, key.as_bytes());
                model.remove(&key);
            } else {
                let value = "v".repeat(random(2_000) as usize);
                batch.put(space, key.as_bytes(), [value.as_bytes()]);
                model.insert(key, value);
            }
        }
        storage.write(&batch, Durability::Synced).unwrap();
        match round {
            60 => storage.flush().unwrap(),
            120 => storage = reopen(storage),
            _ => {}
        }
        let probe = format!("{:03}", random(300));
        assert_eq!(get(&storage, space, &probe), model.get(&probe).cloned(), "round {round}");
    }
    let rows = storage.range(&RangeRequest::prefix(space, "")).unwrap().rows;
    let rows: Vec<_> = rows.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let expected: Vec<_> =
        model.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())).collect();
    assert_eq!(rows, expected);
    storage
}
