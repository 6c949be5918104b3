//! Hints: which stay, which go, and what is left in their place.

use super::*;
use crate::commit::{HintEnd, HintSum, hints::hint_key};

fn any(name: &str, at: &str) -> CommitItem<usize> {
    hint_of(HintClass::Any, name, at, None)
}

fn end(name: &str, at: &str, why: HintEnd) -> CommitItem<usize> {
    CommitItem::EndHint { target: TARGET, key: key(name), version: version(at), why }
}

#[test]
fn hints_keep_the_newest_version() {
    let mut replica = Replica::new();
    let items = vec![hint("a", "10a", None), hint("b", "10a", None), hint("a", "20a", None)];
    assert_eq!(replica.commit(items), "HintStored HintStored HintStored");
    assert_eq!(replica.commit(vec![hint("a", "15a", None)]), "HintStored");
    assert_eq!(replica.hints(), "a20 b10 +0");
    replica.commit(vec![drop_hint("a", "19a"), drop_hint("b", "11a"), drop_hint("c", "1a")]);
    assert_eq!(replica.hints(), "a20 +0", "a newer hint stays");
    replica.commit(vec![hint("d", "1a", None), drop_hint("d", "1a"), drop_hint("a", "20a")]);
    assert_eq!(replica.hints(), " +0");
    assert_eq!(replica.kept(), KeptHints::default());
    replica.restart();
    assert_eq!(replica.kept(), KeptHints::default());
}

#[test]
fn hints_past_the_bound_leave_a_mark() {
    let mut replica = Replica::new();
    let names = ["a", "b", "c", "d"];
    let stored = replica.commit(names.map(|it| hint(it, "10a", None)).into());
    assert_eq!(stored, "HintStored HintStored HintStored HintStored");
    assert_eq!(replica.commit(vec![hint("e", "10a", None)]), "HintMarkedDirty");
    assert_eq!(replica.commit(vec![hint("a", "20a", None)]), "HintStored", "in place of the older");
    replica.restart();
    assert_eq!(
        replica.commit(vec![hint("e", "11a", None)]),
        "HintMarkedDirty",
        "the bound outlives us"
    );
    assert_eq!(replica.hints(), "a20 b10 c10 d10 +1");
    assert_eq!(replica.kept().dirty_marks, 1, "the same part of the ring twice");

    let (mark, generation) = dirty_marks(&replica.storage, TARGET).unwrap()[0];
    assert_eq!(mark, DirtyMark::of(TARGET, &key("e")));
    assert!(dirty_marks(&replica.storage, NodeId(78)).unwrap().is_empty());
    replica.commit(vec![CommitItem::DropDirtyMark { mark, generation }, drop_hint("b", "10a")]);
    assert_eq!(replica.commit(vec![hint("e", "11a", None)]), "HintStored");
    assert_eq!(replica.hints(), "a20 c10 d10 e11 +0");
    assert_eq!(replica.kept().dirty_marks, 0);
}

#[test]
fn the_hint_of_a_dead_stamp_never_stays() {
    let mut replica = Replica::new();
    replica.commit(["a", "b", "c", "d"].map(|it| hint(it, "10a", None)).into());
    replica.commit(vec![hint("a", "30a", Some("10a"))]);
    assert_eq!(replica.hints(), "a30 b10 c10 d10 +0");
    // CE23: the next stamp's hint does not fit, and the dead one's goes all the same.
    replica.committer.settings.hint_bytes_per_target_max = 0;
    assert_eq!(replica.commit(vec![hint("b", "30a", Some("10a"))]), "HintMarkedDirty");
    assert_eq!(replica.commit(vec![hint("c", "30a", Some("9a"))]), "HintMarkedDirty");
    assert_eq!(replica.hints(), "a30 c10 d10 +2");
}

#[test]
fn hints_are_read_in_pages_and_damaged_ones_named() {
    let mut replica = Replica::new();
    replica.commit(["a", "b", "c", "d"].map(|it| hint(it, "10a", None)).into());
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = hints_for(&replica.storage, TARGET, after.as_ref(), 3).unwrap();
        names.extend(page.hints.iter().map(|it| it.key.clone()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut expected = ["a", "b", "c", "d"].map(key);
    expected.sort();
    assert_eq!(names, expected);
    assert!(hints_for(&replica.storage, NodeId(78), None, 9).unwrap().hints.is_empty());

    for name in ["a", "b"] {
        assert!(replica.storage.flip_bit(Space::Hints, &hint_key(TARGET, &key(name)), 400));
    }
    let page = hints_for(&replica.storage, TARGET, None, 9).unwrap();
    let damaged = expected.iter().filter(|it| [key("a"), key("b")].contains(it)).cloned();
    assert_eq!(page.damaged, Vec::from_iter(damaged));
    replica.commit(vec![drop_hint("a", "1a"), hint("b", "11a", None)]);
    assert_eq!(replica.hints(), "b11 c10 d10 +2", "what they said is left to the exchange");
    replica.commit(["b", "c", "d"].map(|it| drop_hint(it, "99a")).into());
    assert_eq!(replica.kept().hints(), 0);
}

#[test]
fn a_hint_with_a_damaged_key_is_in_nobodys_way() {
    let mut replica = Replica::new();
    replica.commit(["a", "b"].map(|it| hint(it, "10a", None)).into());
    let mut batch = WriteBatch::new();
    batch.put(Space::Hints, &[&TARGET.to_bytes()[..], &[0, 0]].concat(), [&b"x"[..]]);
    replica.storage.write(&batch, Durability::Synced).unwrap();
    assert_eq!(hints_for(&replica.storage, TARGET, None, 9).unwrap().hints.len(), 2);
}

#[test]
fn an_aged_hint_leaves_a_mark_in_the_same_batch() {
    let mut replica = Replica::new();
    replica.commit(vec![hint("a", "10a", None), hint("b", "20a", None)]);
    let oldest_ms = |replica: &Replica| replica.kept().oldest_ms();
    assert_eq!(oldest_ms(&replica), Some(10_000));
    replica.commit(vec![end("a", "9a", HintEnd::Aged), end("c", "9a", HintEnd::Aged)]);
    assert_eq!(replica.hints(), "a10 b20 +0", "a newer one than was found");
    replica.storage.set_bytes_max(Some(0));
    replica.commit(vec![end("a", "10a", HintEnd::Aged)]);
    assert_eq!(replica.hints(), "a10 b20 +0", "both or nothing");
    replica.storage.set_bytes_max(None);
    replica.commit(vec![end("a", "10a", HintEnd::Aged)]);
    assert_eq!(replica.hints(), "b20 +1");
    assert_eq!((oldest_ms(&replica), replica.kept().dirty_marks), (Some(20_000), 1));
    let (mark, _) = dirty_marks(&replica.storage, TARGET).unwrap()[0];
    assert_eq!(mark, DirtyMark::of(TARGET, &key("a")));
    let tried = replica.committer.counters().hints_aged.load(Ordering::Relaxed);
    assert_eq!(tried, 2, "counted as often as it was tried");
}

#[test]
fn a_hint_of_any_is_never_given_up() {
    let mut replica = Replica::new();
    replica.commit(vec![any("a", "10a"), hint("b", "10a", None)]);
    let ends = [HintEnd::Aged, HintEnd::Orphaned];
    let items = ["a", "b"].map(|name| ends.map(|why| end(name, "99a", why)));
    replica.commit(items.into_iter().flatten().collect());
    assert_eq!(replica.hints(), "a10 +1", "CE24");
    replica.commit(vec![drop_hint("a", "10a")]);
    assert_eq!(replica.hints(), " +1");
    assert_eq!(replica.kept().hints(), 0);
}

#[test]
fn a_hint_that_stands_for_any_stays_so() {
    let of = |replica: &Replica| (replica.kept().ordinary.hints, replica.kept().any.hints);
    let mut replica = Replica::new();
    replica.commit(vec![any("a", "10a"), hint("a", "20a", None)]);
    assert_eq!(
        (replica.hints().as_str(), of(&replica)),
        ("a20 +0", (0, 1)),
        "the newer is ordinary"
    );
    replica.commit(vec![hint("b", "20a", None)]);
    assert_eq!(of(&replica), (1, 1));
    assert_eq!(replica.commit(vec![any("b", "10a")]), "HintStored");
    assert_eq!((replica.hints().as_str(), of(&replica)), ("a20 b20 +0", (0, 2)), "the older is");
    replica.restart();
    assert_eq!(of(&replica), (0, 2));
    replica.commit(["a", "b"].map(|it| end(it, "99a", HintEnd::Aged)).into());
    assert_eq!(replica.hints(), "a20 b20 +0");
}

#[test]
fn any_has_a_bound_of_its_own() {
    let mut replica = Replica::new();
    let stored = replica.commit(vec![any("a", "10a"), any("b", "10a"), hint("c", "10a", None)]);
    assert_eq!(stored, "HintStored HintStored HintStored");
    assert_eq!(replica.commit(vec![any("d", "10a")]), "HintMarkedDirty", "it acknowledges nothing");
    assert_eq!(replica.commit(vec![any("c", "9a")]), "HintMarkedDirty", "nor by an ordinary one");
    assert_eq!(replica.commit(vec![any("a", "20a")]), "HintStored", "in place of the older");
    assert_eq!(replica.hints(), "a20 b10 c10 +2");
    assert_eq!(replica.commit(vec![hint("e", "10a", None)]), "HintStored", "bounds do not mix");
    assert_eq!(replica.committer.hint_totals().any_bytes(), replica.kept().any.bytes);
}

#[test]
fn a_target_that_left_takes_its_marks_along() {
    let mut replica = Replica::new();
    let stranger = NodeId(78);
    let marks =
        ["a", "b"].map(|it| CommitItem::MarkDirty { mark: DirtyMark::of(TARGET, &key(it)) });
    replica.commit(marks.into_iter().collect());
    replica.commit(vec![CommitItem::MarkDirty { mark: DirtyMark::of(stranger, &key("a")) }]);
    replica.commit(vec![hint("c", "10a", None), end("c", "10a", HintEnd::Orphaned)]);
    assert_eq!((replica.hints().as_str(), replica.kept().dirty_marks), (" +2", 2));
    assert_eq!(replica.committer.counters().hints_orphaned.load(Ordering::Relaxed), 1);
    replica.commit(vec![CommitItem::ForgetDirtyMarks { target: TARGET }]);
    assert_eq!((replica.hints().as_str(), replica.kept()), (" +0", KeptHints::default()));
    assert_eq!(replica.committer.hint_totals().of(stranger).dirty_marks, 1);
    assert_eq!(dirty_marks(&replica.storage, stranger).unwrap().len(), 1);
}

#[test]
fn the_ledger_agrees_with_the_rows_it_counts() {
    let mut replica = Replica::new();
    replica.commit(vec![hint("a", "10a", None), any("b", "20a"), hint("c", "30a", None)]);
    assert!(replica.storage.flip_bit(Space::Hints, &hint_key(TARGET, &key("a")), 400));
    replica.commit(vec![hint("a", "40a", None), hint("c", "31a", None), any("c", "5a")]);
    replica.restart();
    let rows = replica.storage.range(&RangeRequest::prefix(Space::Hints, "")).unwrap().rows;
    let bytes = rows.iter().map(|(key, value)| (key.len() + value.len() + 64) as u64).sum::<u64>();
    let KeptHints { ordinary, any, dirty_marks } = replica.kept();
    assert_eq!((ordinary.bytes + any.bytes, dirty_marks), (bytes, 1));
    assert_eq!(ordinary, HintSum { hints: 1, bytes: ordinary.bytes, oldest_ms: Some(40_000) });
    assert_eq!((any.hints, any.oldest_ms), (2, Some(20_000)));
}
