//! What becomes of data when a node loses its disk, or the disk is put back to what it was.

use std::ops::Range;

use model::{ConsistencyLevel as L, Mutant};
use proto::Reason;

use super::{
    Scenario, Shown,
    executions::steps,
    purge::{late_hint_of_a_purged_key, until_absent, until_gone, until_no_hint},
    script::{Script, ensure, works},
};
use crate::{
    shape::{Bounds, Shape},
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    // Nothing but the filling brings replicas together.
    let alone = Bounds { no_hints: true, exchange_interval_ms: 600_000, ..Bounds::default() };
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, bounds: alone, ..Shape::default() };
    let purging = Bounds { fence_lag_ms: 6_000, purge_interval_ms: 1_000, ..Bounds::default() };
    let purges = Shape { bounds: purging, ..three.clone() };
    let two_datacenters = Shape { datacenters: vec![3, 3], partitions: 1, ..three.clone() };
    let four = Shape { datacenters: vec![4], partitions: 1, ..three.clone() };
    let mut all = vec![
        steps(
            "ce15-an-old-hint-meets-an-empty-disk",
            "A key was deleted and purged everywhere. A node loses its disk, and on the empty one meets a \
             hint from before the delete. It does not take it.",
            &purges,
            |it| Box::pin(old_hint(it)),
            &[Shown { mutant: Mutant::FenceIgnored, says: "deleted data is back" }],
        ),
        steps(
            "ce16-an-empty-disk-answers-no-reads",
            "One of the two nodes that have acknowledged a write loses its disk, and the other one is \
             away. Reads at QUORUM fail until it is back. Then the write is there.",
            &three,
            |it| Box::pin(empty_disk(it)),
            &[
                Shown { mutant: Mutant::ServesUnfilled, says: "an acknowledged write is lost" },
                Shown { mutant: Mutant::FilledFromOne, says: "an acknowledged write is lost" },
            ],
        ),
        steps(
            "cx5-a-vote-of-a-lost-disk",
            "A replica applies a put and answers, loses its disk, and is filled before another replica \
             gets the put. The two votes are no quorum: one of the disks is gone.",
            &four,
            |it| Box::pin(old_vote(it)),
            &[Shown { mutant: Mutant::OldVotesCount, says: "an acknowledged write is lost" }],
        ),
        steps(
            "cx5-votes-are-asked-for-again",
            "A node's put at EACH_QUORUM has its own vote and that of a neighbour, which loses its disk. What \
             else it waits for comes while it still has time. It asks itself once more, and the put is \
             acknowledged.",
            &two_datacenters,
            |it| Box::pin(asked_again(it)),
            &[Shown { mutant: Mutant::NotAskedAgain, says: "the put is not acknowledged" }],
        ),
        steps(
            "cx7-two-lost-disks-of-a-datacenter",
            "A node loses its disk and takes, before it is filled, a write at LOCAL_QUORUM with a \
             neighbour, which loses its own disk then. The first is filled from those that are left, \
             the second waits for it, and the write is there.",
            &two_datacenters,
            |it| Box::pin(two_disks(it)),
            &[Shown { mutant: Mutant::FillOrderIgnored, says: "an acknowledged write is lost" }],
        ),
    ];
    all.extend(of_copies(&three, &purges));
    all.extend(of_doubles(&four));
    all
}

/// Of disks that are copied, and started beside their nodes.
fn of_doubles(four: &Shape) -> Vec<Scenario> {
    vec![
        steps(
            "cx9-a-copied-directory-beside-its-node",
            "A copy of a node's disk is started elsewhere, while one of the others cannot reach the node \
             itself. A quorum with one of the two processes and one with the other need not meet: the copy \
             takes nothing, and ends.",
            four,
            |it| Box::pin(copied(it)),
            &[Shown { mutant: Mutant::DoubleLetIn, says: "an acknowledged write is lost" }],
        ),
        steps(
            "cx9-a-copy-from-before-takes-nobodys-place",
            "The same, with a copy from before a write. Whoever lets it in says that it is behind. It does not \
             take the node's place by that, for another member knows that the node is up.",
            four,
            |it| Box::pin(copied_before(it)),
            &[Shown { mutant: Mutant::DoubleLetIn, says: "the node itself has lost its place" }],
        ),
        steps(
            "cx10-two-processes-of-a-node-on-two-sides",
            "A network is cut, with a node on one side and a copy of it on the other: both are let in, and \
             both sides have a quorum. When the cut heals, one of the two ends, and the other one is filled: it \
             lacks what the first has acknowledged.",
            four,
            |it| Box::pin(two_sides(it)),
            &[Shown { mutant: Mutant::DoubleUnfilled, says: "an acknowledged write is lost" }],
        ),
    ]
}

/// Of disks that are put back to a copy.
fn of_copies(three: &Shape, purges: &Shape) -> Vec<Scenario> {
    vec![
        steps(
            "ce18-what-was-purged-is-put-back",
            "A node's disk is put back to a copy from before a delete whose tombstone is purged. What \
             was deleted does not come back from there.",
            purges,
            |it| Box::pin(put_back(it)),
            &[
                Shown { mutant: Mutant::FillKeepsExtras, says: "deleted data is back" },
                Shown { mutant: Mutant::RollbackUnseen, says: "deleted data is back" },
            ],
        ),
        steps(
            "cx6-a-disk-put-back-has-lost-a-write",
            "One of the two nodes that have acknowledged a write is put back to a copy from before it, \
             and the other one is away. Whoever was told how far that disk had come says so.",
            three,
            |it| Box::pin(lost_write(it)),
            &[Shown { mutant: Mutant::RollbackUnseen, says: "an acknowledged write is lost" }],
        ),
        steps(
            "cx8-others-are-heard-while-a-slow-disk-takes-an-id",
            "A node's disk is put back to a copy, and is slow. All that the others have to say comes while \
             the directory's new id is written. It counts, and the node comes back.",
            three,
            |it| Box::pin(new_id(it, false)),
            &[],
        ),
        steps(
            "cx8-and-there-is-no-room-for-the-id",
            "The same, and the disk is full when the id is to be written. The node waits for room, and \
             comes back.",
            three,
            |it| Box::pin(new_id(it, true)),
            &[],
        ),
    ]
}

async fn old_hint(it: Script) -> Result<(), String> {
    late_hint_of_a_purged_key(&it).await?;
    it.end(2, EndKind::PowerLoss).await;
    it.wipe(2).await;
    it.start(0).await;
    it.start(2).await;
    until_no_hint(&it).await?;
    it.wait(8_000).await;
    let found = it.get_soon(2, "key", L::One).await?;
    let back = (0..3).any(|node| it.holds(node, b"late"));
    ensure(!back && found.is_none(), "deleted data is back: an empty disk has taken an old hint")
}

async fn empty_disk(it: Script) -> Result<(), String> {
    it.end(0, EndKind::PowerLoss).await;
    it.until_missed(1).await?;
    it.put_soon(1, "kept", L::Quorum).await?;
    it.end(2, EndKind::PowerLoss).await;
    it.end(1, EndKind::PowerLoss).await;
    it.wipe(2).await;
    it.start(0).await;
    it.start(2).await;
    for _ in 0..10 {
        it.wait(1_000).await;
        for node in [0, 2] {
            let found = it.get(node, "key", L::Quorum).await;
            let absent = matches!(found, Ok(None));
            ensure(!absent, "an acknowledged write is lost with one of two disks")?;
        }
    }
    it.start(1).await;
    let found = it.get_soon(2, "key", L::Quorum).await?;
    ensure(found.as_deref() == Some(b"kept"), "an acknowledged write is lost with one of two disks")
}

async fn put_back(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    it.take_image(2).await;
    let deleted = it.within(10, async || it.delete(0, "key", L::All).await).await;
    works("delete", deleted)?;
    until_gone(&it, 60).await?;
    it.roll_back(2).await;
    it.start(2).await;
    it.wait(8_000).await;
    until_absent(&it, [2, 0, 1]).await?;
    until_gone(&it, 20).await
}

async fn new_id(it: Script, full: bool) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    it.take_image(2).await;
    it.put_soon(0, "newer", L::All).await?;
    // Nodes greet those that they have joined every ten seconds, and have just done so when this one starts.
    it.wait(8_000).await;
    it.roll_back(2).await;
    it.slow_disk(2, 1_500).await;
    it.start(2).await;
    it.full_disk(2, full).await;
    it.wait(4_000).await;
    it.full_disk(2, false).await;
    it.slow_disk(2, 1).await;
    let put = it.within(4, async || it.put(0, "key", "newest", L::All).await);
    works("n1 takes no writes: put", put.await)
}

async fn asked_again(it: Script) -> Result<(), String> {
    it.put_soon(0, "first", L::All).await?;
    let names = |nodes: Range<usize>| nodes.map(|it| format!("n{}", it + 1)).collect();
    let jam = |to| Cut { kind: CutKind::Jam, from: names(0..1), to: names(to) };
    it.cut(1, jam(1..2)).await;
    it.cut(2, jam(3..6)).await;
    let put = tokio::task::spawn_local({
        let it = it.clone();
        async move { it.put(0, "key", "kept", L::EachQuorum).await }
    });
    it.within(2, async || ensure(it.holds(2, b"kept"), "no replica has got the put")).await?;
    it.wait(100).await;
    lose_and_fill(&it, 2).await?;
    it.heal(1).await;
    it.heal(2).await;
    let put = put.await.map_err(|error| error.to_string())?;
    works("the put is not acknowledged", put)?;
    // All are filled then.
    it.get_soon(2, "key", L::All).await?;
    it.end(0, EndKind::PowerLoss).await;
    let found = it.get_soon(2, "key", L::LocalQuorum).await?;
    ensure(
        found.as_deref() == Some(b"kept"),
        "an acknowledged write is lost: it was asked for again",
    )
}

/// Takes a node's disk, and waits until an empty one is filled.
async fn lose_and_fill(it: &Script, node: usize) -> Result<(), String> {
    it.end(node, EndKind::Crash).await;
    it.wipe(node).await;
    it.start(node).await;
    it.within(3, async || {
        let found = it.get(node, "key", L::One).await;
        ensure(found.is_ok(), "a replica was not filled in time")
    })
    .await
}

async fn old_vote(it: Script) -> Result<(), String> {
    it.put_soon(0, "first", L::All).await?;
    let holds = |node: &usize| it.stored_version(*node).is_some();
    let replicas: Vec<usize> = (0..4).filter(holds).collect();
    let coordinator = (0..4).find(|node| !holds(node)).ok_or("all four hold the key")?;
    let [late, never, lost] = replicas[..] else { return Err("three do not hold it".to_owned()) };
    let name = |node: usize| vec![format!("n{}", node + 1)];
    let cut = |kind, to| Cut { kind, from: name(coordinator), to: name(to) };
    it.cut(1, cut(CutKind::Jam, late)).await;
    it.cut(2, cut(CutKind::Stop, never)).await;
    let put = tokio::task::spawn_local({
        let it = it.clone();
        async move { it.put(coordinator, "key", "kept", L::Quorum).await }
    });
    it.within(2, async || ensure(it.holds(lost, b"kept"), "no replica has got the put")).await?;
    it.wait(100).await;
    lose_and_fill(&it, lost).await?;
    it.heal(1).await;
    let put = put.await.map_err(|error| error.to_string())?;
    if put.is_err() {
        // Of unknown outcome, as it has to be.
        return Ok(());
    }
    it.end(late, EndKind::PowerLoss).await;
    it.heal(2).await;
    let found = it.get_soon(lost, "key", L::Quorum).await?;
    ensure(
        found.as_deref() == Some(b"kept"),
        "an acknowledged write is lost: a vote was of a disk that is gone",
    )
}

/// Two replicas of a key and the third, which is copied; and a node that holds nothing of it and has ended, for
/// the copy.
struct Cast {
    apart: usize,
    third: usize,
    copied: usize,
    copy: usize,
}

async fn cast(it: &Script) -> Result<Cast, String> {
    it.put_soon(0, "first", L::All).await?;
    let holds = |node: &usize| it.stored_version(*node).is_some();
    let replicas: Vec<usize> = (0..4).filter(holds).collect();
    let copy = (0..4).find(|node| !holds(node)).ok_or("all four hold the key")?;
    let [apart, copied, third] = replicas[..] else {
        return Err("three do not hold it".to_owned());
    };
    it.end(copy, EndKind::Crash).await;
    Ok(Cast { apart, third, copied, copy })
}

fn stopped(from: &[usize], to: &[usize]) -> Cut {
    let names = |nodes: &[usize]| nodes.iter().map(|it| format!("n{}", it + 1)).collect();
    Cut { kind: CutKind::Stop, from: names(from), to: names(to) }
}

async fn copied(it: Script) -> Result<(), String> {
    let Cast { apart, third, copied, copy } = cast(&it).await?;
    it.cut(1, stopped(&[apart], &[copied])).await;
    it.cut(2, stopped(&[copied], &[copy])).await;
    it.until_missed(apart).await?;
    // The copy is of a node that has nothing to write, so that its clock's ceiling is that of the other one.
    it.wait(3_000).await;
    // Where both are let in, the last to hear of the other one has the links: not always the copy.
    for start in 1..=STARTS {
        it.copy_disk(copied, copy).await;
        it.start(copy).await;
        let reached = it.within(5, async || it.put(apart, "key", "all", L::All).await).await;
        if reached.is_ok() {
            it.say("the copy has taken a write");
            break;
        }
        if start < STARTS {
            it.end(copy, EndKind::Crash).await;
        }
    }
    it.cut(3, stopped(&[apart], &[third])).await;
    if it.put(apart, "key", "kept", L::Quorum).await.is_ok() {
        it.end(apart, EndKind::PowerLoss).await;
        let found = it.get_soon(third, "key", L::Quorum).await?;
        let kept = found.as_deref() == Some(b"kept");
        ensure(kept, "an acknowledged write is lost between two processes of one node")?;
    }
    for id in 1..=3 {
        it.heal(id).await;
    }
    until_alone(&it, copied, copy).await
}

async fn copied_before(it: Script) -> Result<(), String> {
    let Cast { apart, copied, copy, .. } = cast(&it).await?;
    it.copy_disk(copied, copy).await;
    it.put_soon(copied, "newer", L::All).await?;
    // All have heard how far the node has come.
    it.wait(3_000).await;
    it.cut(1, stopped(&[apart], &[copied])).await;
    it.cut(2, stopped(&[copied], &[copy])).await;
    it.until_missed(apart).await?;
    it.start(copy).await;
    it.wait(8_000).await;
    it.heal(1).await;
    it.heal(2).await;
    until_alone(&it, copied, copy).await
}

async fn two_sides(it: Script) -> Result<(), String> {
    let Cast { apart, third, copied, copy } = cast(&it).await?;
    it.wait(3_000).await;
    it.copy_disk(copied, copy).await;
    it.cut(1, stopped(&[apart, copy], &[third, copied])).await;
    it.until_missed(apart).await?;
    it.start(copy).await;
    for (node, key) in [(apart, "there"), (third, "here")] {
        let put = it.within(20, async || it.put(node, key, "kept", L::Quorum).await).await;
        works("put", put)?;
    }
    it.heal(1).await;
    let left = it.within(20, async || one_left(&it, [copied, copy]).await).await?;
    // Of the side of the other one.
    let (key, ended, stays) =
        if left == copied { ("there", apart, third) } else { ("here", third, apart) };
    it.end(ended, EndKind::PowerLoss).await;
    for _ in 0..10 {
        it.wait(500).await;
        for node in [left, stays] {
            let found = it.get(node, key, L::Quorum).await;
            let old = found.is_ok_and(|it| it.as_deref() != Some(b"kept"));
            ensure(!old, "an acknowledged write is lost with a process that has ended")?;
        }
    }
    it.start(ended).await;
    let found = it.get_soon(left, key, L::Quorum).await?;
    let kept = found.as_deref() == Some(b"kept");
    ensure(kept, "an acknowledged write is lost with a process that has ended")
}

/// The one of two processes that is left.
async fn one_left(it: &Script, processes: [usize; 2]) -> Result<usize, String> {
    let mut left = Vec::new();
    for node in processes {
        let found = it.get(node, "key", L::One).await;
        // Else nobody is there to say anything.
        if !found.is_err_and(|it| it.reason == Reason::ConnectionLost) {
            left.push(node);
        }
    }
    let [left] = left[..] else { return Err("two processes of one node are up".to_owned()) };
    Ok(left)
}

/// Waits until the copy has ended, and the node itself takes writes.
async fn until_alone(it: &Script, copied: usize, copy: usize) -> Result<(), String> {
    let left = it.within(20, async || one_left(it, [copied, copy]).await).await?;
    ensure(left == copied, "the node itself has lost its place to its copy")?;
    let put = it.within(10, async || it.put(copied, "key", "last", L::All).await).await;
    works("put", put)?;
    ensure(it.holds(copied, b"last"), "the node itself has lost its place to its copy")
}

async fn lost_write(it: Script) -> Result<(), String> {
    it.put_soon(0, "first", L::All).await?;
    it.take_image(2).await;
    it.end(1, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    it.put_soon(0, "kept", L::Quorum).await?;
    // The other one hears how far the disk has come.
    it.wait(3_000).await;
    it.start(1).await;
    it.wait(3_000).await;
    it.roll_back(2).await;
    it.end(0, EndKind::PowerLoss).await;
    it.start(2).await;
    for _ in 0..10 {
        it.wait(1_000).await;
        for node in [1, 2] {
            let found = it.get(node, "key", L::Quorum).await;
            let old = found.is_ok_and(|it| it.as_deref() != Some(b"kept"));
            ensure(!old, "an acknowledged write is lost with a disk that was put back")?;
        }
    }
    it.start(0).await;
    let found = it.get_soon(2, "key", L::Quorum).await?;
    ensure(
        found.as_deref() == Some(b"kept"),
        "an acknowledged write is lost with a disk that was put back",
    )
}

async fn two_disks(it: Script) -> Result<(), String> {
    let name = |node: usize| format!("n{}", node + 1);
    let apart = |node: usize| {
        let to = (2..6).map(name).collect();
        Cut { kind: CutKind::Stop, from: vec![name(node)], to }
    };
    it.put_soon(0, "first", L::All).await?;
    it.end(0, EndKind::PowerLoss).await;
    it.wipe(0).await;
    it.start(0).await;
    // It has asked the others and takes writes. Before they have told all they know, they are gone.
    it.until_filling(0).await?;
    it.cut(1, apart(0)).await;
    it.cut(2, apart(1)).await;
    it.put_soon(1, "kept", L::LocalQuorum).await?;
    it.end(1, EndKind::PowerLoss).await;
    it.wipe(1).await;
    it.heal(2).await;
    it.start(1).await;
    it.wait(8_000).await;
    it.end(0, EndKind::Crash).await;
    for _ in 0..10 {
        let found = it.get(1, "key", L::LocalQuorum).await;
        ensure(found.is_err(), "an acknowledged write is lost with the second of two disks")?;
        it.wait(500).await;
    }
    it.heal(1).await;
    it.start(0).await;
    for node in [0, 1, 2] {
        let found = it.within(30, async || it.get(node, "key", L::LocalQuorum).await);
        let found = works("get", found.await)?;
        ensure(found.as_deref() == Some(b"kept"), "an acknowledged write is lost with two disks")?;
    }
    Ok(())
}

/// How often a copy is started, until it is the one that is heard of last.
const STARTS: usize = 6;
