//! What becomes of deleted data: it goes once every replica has proven that nothing older is left, and it
//! never comes back.

use model::{ConsistencyLevel as L, Hlc, Mutant, Record, RequestId, Version};
use node::commit::HintClass;

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    script::{Script, ensure, works},
};
use crate::{
    shape::{Bounds, Shape},
    world::EndKind,
};

pub(super) fn all() -> Vec<Scenario> {
    let purging = Bounds { fence_lag_ms: 6_000, purge_interval_ms: 1_000, ..Bounds::default() };
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, bounds: purging, ..Shape::default() };
    // Nothing but a purge brings replicas together.
    let alone = Bounds { no_hints: true, exchange_interval_ms: 600_000, ..purging };
    let mut all = vec![
        steps(
            "a-tombstone-waits-for-all",
            "A key is deleted while a replica is away. The tombstone stays for as long as it is away, \
             and goes when it is back: by then the replica has it, and what it had held is gone.",
            &Shape { bounds: alone, ..three.clone() },
            |it| Box::pin(waits(it)),
            &[
                Shown { mutant: Mutant::PurgedWithoutAll, says: "a tombstone went too early" },
                Shown { mutant: Mutant::SignedBlindly, says: "what was deleted is left" },
            ],
        ),
        steps(
            "ce13-a-late-hint-meets-the-fence",
            "A hint of a put is handed over long after its key was deleted and the tombstone purged. No \
             replica takes it.",
            &three,
            |it| Box::pin(late_hint(it)),
            &[Shown { mutant: Mutant::FenceIgnored, says: "deleted data is back" }],
        ),
        steps(
            "f10-no-fence-passes-a-hint-of-any",
            "A write at ANY is acknowledged by a hint alone, and its keeper is away. Another key of the \
             partition is deleted. Its tombstone waits for the keeper, and the hint finds a replica that \
             takes it.",
            &Shape { datacenters: vec![4], partitions: 1, ..three.clone() },
            |it| Box::pin(hint_of_any(it)),
            &[Shown {
                mutant: Mutant::AnyHintsUnasked,
                says: "what was acknowledged at ANY never came",
            }],
        ),
        steps(
            "an-expired-value-goes",
            "A value has expired, on every clock and by a margin. Its bytes are given back.",
            &three,
            |it| Box::pin(expired(it)),
            &[Shown { mutant: Mutant::PurgesUnexpired, says: "went before its margin" }],
        ),
        steps(
            "ce17-filled-while-a-tombstone-waits",
            "A replica is filled from one that has missed a delete and one that has its tombstone. What \
             was deleted does not come back from the first when the tombstone is gone from the second.",
            &Shape { bounds: alone, ..three.clone() },
            |it| Box::pin(filled(it)),
            &[Shown { mutant: Mutant::SignedBlindly, says: "what was deleted is left" }],
        ),
        steps(
            "ce18-what-is-about-to-be-purged-is-put-back",
            "A node's disk is put back to a copy from before a delete, while the others' floors cover the \
             tombstone and their slow disks still hold it. It is not what they hold any more: what was deleted \
             goes with it, and does not come back.",
            &Shape { partitions: 1, ..three.clone() },
            |it| Box::pin(put_back_while_swept(it)),
            &[Shown { mutant: Mutant::FillMeetsUnswept, says: "deleted data is back" }],
        ),
        steps(
            "ce20-power-is-lost-after-a-purge",
            "A replica gets a tombstone with a round of purging. The moment it is gone everywhere all \
             nodes lose their power. What was deleted is gone afterwards.",
            &Shape { bounds: alone, ..three.clone() },
            |it| Box::pin(power_loss(it)),
            &[Shown { mutant: Mutant::SignedBlindly, says: "what was deleted is left" }],
        ),
    ];
    all.extend(of_clocks(&three, &alone));
    all
}

/// With clocks that are off.
fn of_clocks(three: &Shape, alone: &Bounds) -> Vec<Scenario> {
    vec![
        steps(
            "ce21-an-expired-value-is-not-pushed-back",
            "A value has expired. One replica's clock is slower than the others'. It goes all the same, \
             and nobody brings it back.",
            three,
            |it| Box::pin(slow_clock(it)),
            &[],
        ),
        steps(
            "ce22-a-round-from-the-future",
            "The clock of a node that opens rounds is an hour ahead. No fence rises by it: writes through \
             the others go on.",
            &Shape { bounds: *alone, ..three.clone() },
            |it| Box::pin(far_ahead(it)),
            &[Shown { mutant: Mutant::FenceAheadTaken, says: "takes no writes" }],
        ),
    ]
}

async fn waits(it: Script) -> Result<(), String> {
    // Not the first replica of the key, which begins.
    it.put_soon(1, "old", L::All).await?;
    it.end(0, EndKind::PowerLoss).await;
    it.until_missed(1).await?;
    let deleted = it.within(10, async || it.delete(1, "key", L::Quorum).await).await;
    works("delete", deleted)?;
    // Far longer than its fence lags.
    it.wait(20_000).await;
    let kept = (1..3).filter(|node| it.stored_version(*node).is_some()).count();
    ensure(kept == 2, "a tombstone went too early: a replica was away")?;
    it.start(0).await;
    until_gone(&it, 60).await?;
    until_absent(&it, [0, 1, 2]).await
}

async fn late_hint(it: Script) -> Result<(), String> {
    late_hint_of_a_purged_key(&it).await?;
    it.start(0).await;
    until_no_hint(&it).await?;
    // What it has brought back would spread.
    it.wait(10_000).await;
    let back = (0..3).any(|node| it.holds(node, b"late"));
    ensure(!back, "deleted data is back: a late hint was taken")
}

async fn hint_of_any(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let (replicas, others): (Vec<_>, Vec<_>) =
        (0..4).partition(|node| it.stored_version(*node).is_some());
    let [keeper] = others[..] else { return Err(format!("the key is at {replicas:?}")) };
    for node in &replicas {
        it.end(*node, EndKind::PowerLoss).await;
    }
    let put = it.within(10, async || it.put(keeper, "another", "by-hint", L::Any).await).await;
    works("put", put)?;
    it.end(keeper, EndKind::PowerLoss).await;
    for node in &replicas {
        it.start(*node).await;
    }
    let through = replicas[0];
    let deleted = it.within(20, async || it.delete(through, "key", L::All).await).await;
    works("delete", deleted)?;
    // Far longer than its fence lags.
    it.wait(20_000).await;
    it.start(keeper).await;
    it.within(20, async || {
        let found = it.get(through, "another", L::Quorum).await.ok().flatten();
        let is_there = found.as_deref() == Some(b"by-hint");
        ensure(is_there, format!("what was acknowledged at ANY never came: {found:?}"))
    })
    .await?;
    until_gone(&it, 60).await
}

async fn expired(it: Script) -> Result<(), String> {
    let put = it.within(10, async || it.put_for(0, "key", "short-lived", 2).await).await;
    works("put", put)?;
    it.wait(40_000).await;
    let held = (0..3).all(|node| it.holds(node, b"short-lived"));
    ensure(held, "an expired value went before its margin")?;
    until_gone(&it, 90).await
}

async fn filled(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    it.cut(1, stop(&["n1"], &["n2", "n3"])).await;
    it.until_missed(1).await?;
    let deleted = it.within(10, async || it.delete(1, "key", L::Quorum).await).await;
    works("delete", deleted)?;
    it.end(2, EndKind::PowerLoss).await;
    it.wipe(2).await;
    it.heal(1).await;
    it.start(2).await;
    until_gone(&it, 60).await?;
    it.wait(8_000).await;
    stays_gone(&it).await
}

async fn power_loss(it: Script) -> Result<(), String> {
    it.put_soon(1, "old", L::All).await?;
    it.end(0, EndKind::PowerLoss).await;
    it.until_missed(1).await?;
    let deleted = it.within(10, async || it.delete(1, "key", L::Quorum).await).await;
    works("delete", deleted)?;
    it.start(0).await;
    until_gone(&it, 60).await?;
    for node in 0..3 {
        it.end(node, EndKind::PowerLoss).await;
    }
    for node in 0..3 {
        it.start(node).await;
    }
    it.wait(8_000).await;
    stays_gone(&it).await
}

async fn slow_clock(it: Script) -> Result<(), String> {
    it.clock_jump(1, -100).await;
    let put = it.within(10, async || it.put_for(0, "key", "short-lived", 2).await).await;
    works("put", put)?;
    until_gone(&it, 90).await?;
    for _ in 0..80 {
        it.wait(100).await;
        let back = (0..3).any(|node| it.holds(node, b"short-lived"));
        ensure(!back, "an expired value is back")?;
    }
    Ok(())
}

async fn far_ahead(it: Script) -> Result<(), String> {
    // There is something to purge, and n3 begins.
    it.put_soon(0, "old", L::All).await?;
    let deleted = it.within(10, async || it.delete(0, "key", L::All).await).await;
    works("delete", deleted)?;
    it.clock_jump(2, 3_600_000).await;
    for _ in 0..10 {
        it.wait(1_000).await;
        for node in [0, 1] {
            it.put_soon(node, "new", L::Quorum).await?;
        }
    }
    it.clock_jump(2, -3_600_000).await;
    it.put_soon(2, "newer", L::All).await
}

/// Nobody holds a row for the key, and no read finds one.
async fn stays_gone(it: &Script) -> Result<(), String> {
    for node in 0..3 {
        let found = it.get_soon(node, "key", L::One).await?;
        let gone = found.is_none() && it.rows(node) == 0;
        ensure(gone, format!("deleted data is back at n{}: {found:?}", node + 1))?;
    }
    Ok(())
}

/// A key is deleted and purged everywhere. n1, which is down then, has kept a hint for n3 from before.
pub(super) async fn late_hint_of_a_purged_key(it: &Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let stored = it.stored_version(0).ok_or("n1 does not hold the key alone")?;
    let deleted = it.within(10, async || it.delete(0, "key", L::All).await).await;
    works("delete", deleted)?;
    until_gone(it, 60).await?;
    let (target, key) = it.ids(2).await?;
    it.end(0, EndKind::PowerLoss).await;
    let version = Version { hlc: Hlc(stored.hlc.0 + 1), request: RequestId(7) };
    let record = Record::encode(&key, version, 0, Some(b"late"));
    it.plant_hint(0, target, &key, record, HintClass::Ordinary)
}

/// Waits until n1 keeps no hint any more.
pub(super) async fn until_no_hint(it: &Script) -> Result<(), String> {
    it.within(30, async || {
        let (hints, _) = it.hints_and_marks(0);
        ensure(hints == 0, format!("{hints} hints are left that nobody will take"))
    })
    .await
}

async fn put_back_while_swept(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    // Nothing is purged while a replica is away.
    it.end(1, EndKind::Crash).await;
    it.until_missed(0).await?;
    // More than is removed in one go, and the key last.
    for number in 0..TOMBSTONES {
        works("delete", it.delete(0, &format!("other {number}"), L::Quorum).await)?;
    }
    it.take_image(2).await;
    works("delete", it.delete(0, "key", L::Quorum).await)?;
    // Old enough for one round to cover all of them.
    it.wait(8_000).await;
    it.start(1).await;
    it.within(20, async || {
        let known = it.delete(0, "another", L::All).await;
        ensure(known.is_ok(), "a replica does not come back")
    })
    .await?;
    it.slow_disk(0, SLOW_MS).await;
    it.slow_disk(1, SLOW_MS).await;
    it.until_sweeping(0).await?;
    it.roll_back(2).await;
    it.start(2).await;
    it.wait(20_000).await;
    until_absent(&it, [2, 0, 1]).await
}

/// Waits until nodes answer for the key, one after the other, each at ONE: it must not be there.
pub(super) async fn until_absent(it: &Script, nodes: [usize; 3]) -> Result<(), String> {
    for node in nodes {
        let found = it.get_soon(node, "key", L::One).await?;
        ensure(found.is_none(), format!("deleted data is back: {found:?}"))?;
    }
    Ok(())
}

/// Waits until no replica holds a row for the key.
pub(super) async fn until_gone(it: &Script, seconds: u64) -> Result<(), String> {
    it.within(seconds, async || {
        let held: Vec<_> =
            (0..3).filter_map(|node| Some((node + 1, it.stored_version(node)?))).collect();
        ensure(held.is_empty(), format!("what was deleted is left: {held:?}"))
    })
    .await
}

/// Removed in six goes, each of which waits for the disk: long enough for a replica to be filled meanwhile.
const TOMBSTONES: usize = 6_000;
const SLOW_MS: u64 = 1_500;
