//! Checks that a history of one key is linearizable: Wing and Gong (1993) with Lowe's memory of the
//! states seen.

use std::collections::BTreeSet;

/// What an operation did to the key, as far as its client can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wrote a value; 0 for a delete.
    Write(u64),
    /// Read a value; 0 for an absent key.
    Read(u64),
}

/// One operation. The times are those of a common clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    pub(crate) called: u64,
    /// `None` for a write of unknown outcome: it may take effect at any time, or never.
    pub(crate) returned: Option<u64>,
}

/// True if the operations can be put in one order that keeps real time, and in which every read
/// returns what was written last.
pub(crate) fn is_linearizable(operations: &[Operation]) -> bool {
    assert!(operations.len() < 32, "{} operations", operations.len());
    search(operations, 0, 0, &mut BTreeSet::new())
}

/// Goes on from a set of operations done, a bit each, that left `value`.
fn search(
    operations: &[Operation],
    done: u32,
    value: u64,
    seen: &mut BTreeSet<(u32, u64)>,
) -> bool {
    let left = || operations.iter().enumerate().filter(|it| done & (1 << it.0) == 0);
    let Some(earliest_return) = left().filter_map(|it| it.1.returned).min() else {
        return true;
    };
    if !seen.insert((done, value)) {
        return false;
    }
    left().filter(|it| it.1.called <= earliest_return).any(|(at, it)| match it.action {
        Action::Write(written) => search(operations, done | 1 << at, written, seen),
        Action::Read(read) => read == value && search(operations, done | 1 << at, value, seen),
    })
}

#[test]
fn judges_histories() {
    use Action::{Read, Write};
    let check = |history: &[(Action, u64, Option<u64>)]| {
        let operation = |it: &(Action, u64, Option<u64>)| Operation {
            action: it.0,
            called: it.1,
            returned: it.2,
        };
        is_linearizable(&history.iter().map(operation).collect::<Vec<_>>())
    };
    assert!(check(&[(Write(1), 1, Some(2)), (Read(1), 3, Some(4))]));
    assert!(!check(&[(Write(1), 1, Some(2)), (Read(0), 3, Some(4))]));
    assert!(check(&[(Write(1), 1, Some(4)), (Read(0), 2, Some(3))]));
    assert!(check(&[(Write(1), 1, None), (Read(0), 2, Some(3)), (Read(1), 4, Some(5))]));
    assert!(!check(&[(Write(1), 1, None), (Read(1), 2, Some(3)), (Read(0), 4, Some(5))]));
    // CE1: one write is read, overwritten, and read again.
    let races = [(Write(1), 1, None), (Write(2), 3, Some(4))];
    let reads = [(Read(1), 2, Some(2)), (Read(2), 5, Some(6)), (Read(1), 7, Some(8))];
    assert!(check(&[&races[..], &reads[..2]].concat()));
    assert!(!check(&[&races[..], &reads[..]].concat()));
}
