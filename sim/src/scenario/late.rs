//! What comes late, from coordinators that slept or over links that held it back: after its fence, after
//! its round, after what replaced it is gone.

use model::{ConsistencyLevel as L, Hlc, Mutant, Record, RequestId, StorageKey, Version};
use proto::internal::MutationKind;

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    purge::until_gone,
    script::{Script, ensure, works},
};
use crate::{
    shape::{Bounds, Shape},
    world::late::InHand,
};

pub(super) fn all() -> Vec<Scenario> {
    // Nothing but a purge brings replicas together.
    let alone = Bounds {
        fence_lag_ms: 6_000,
        purge_interval_ms: 1_000,
        no_hints: true,
        exchange_interval_ms: 600_000,
        ..Bounds::default()
    };
    let three =
        Shape { disk_ms: 1, clock_offset_ms: 0, partitions: 1, bounds: alone, ..Shape::default() };
    vec![
        steps(
            "ce12-a-delete-comes-after-its-round",
            "A delete was stamped and is still on its way when all replicas vouch for what they hold below \
             that stamp. Then it comes, to two of three. None takes it: it would be purged at once there, \
             and the value would stay at the third.",
            &three,
            |it| Box::pin(after_its_round(it)),
            &[Shown { mutant: Mutant::FenceIgnored, says: "taken after its round" }],
        ),
        steps(
            "ce14-acknowledged-at-one-and-refused",
            "A write was acknowledged at ONE. It reaches the other replicas after their fences and is \
             refused there. It is not lost, and not stamped again: the round itself has brought it.",
            &three,
            |it| Box::pin(acknowledged_at_one(it)),
            &[Shown { mutant: Mutant::SignedBlindly, says: "the round has not brought" }],
        ),
        steps(
            "ce19-a-write-back-of-an-hour-ago",
            "A coordinator has read a value and sleeps for long, with the write-back in hand. The key is \
             deleted and the tombstone purged. Then the coordinator wakes: no replica takes what it sends.",
            &three,
            |it| Box::pin(write_back(it)),
            &[Shown { mutant: Mutant::SourceFloorIgnored, says: "deleted data is back" }],
        ),
    ]
}

/// A version right above another.
fn next(version: Version) -> Version {
    Version { hlc: Hlc(version.hlc.0 + 1), request: RequestId(7) }
}

async fn stored(it: &Script, node: usize) -> Result<(StorageKey, Version), String> {
    let version = it.stored_version(node);
    let version = version.ok_or_else(|| format!("n{} does not hold the key alone", node + 1))?;
    Ok((it.ids(node).await?.1, version))
}

/// Has all replicas vouch for what they hold: something else is deleted, and purged.
async fn round(it: &Script) -> Result<(), String> {
    let put = it.within(10, async || it.put(1, "other", "short", L::All).await).await;
    works("put", put)?;
    let deleted = it.within(10, async || it.delete(1, "other", L::All).await).await;
    works("delete", deleted)?;
    it.within(60, async || {
        let left = (0..3).any(|node| it.rows(node) > 1);
        ensure(!left, "the tombstone of another key does not go")
    })
    .await
}

async fn after_its_round(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let (key, version) = stored(&it, 0).await?;
    let delete = Record::encode(&key, next(version), 0, None);
    round(&it).await?;
    for node in 0..2 {
        let kind = MutationKind::Unspecified;
        it.late(node, InHand::of(key.clone(), delete.clone(), kind, Hlc::ZERO)).await;
    }
    it.wait(10_000).await;
    for node in 0..3 {
        let found = it.get_soon(node, "key", L::One).await?;
        let holds = found.as_deref() == Some(b"old") && it.holds(node, b"old");
        ensure(holds, format!("n{}: a delete was taken after its round", node + 1))?;
    }
    Ok(())
}

async fn acknowledged_at_one(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    it.cut(1, stop(&["n1"], &["n2", "n3"])).await;
    it.put_soon(0, "kept", L::One).await?;
    it.heal(1).await;
    let (key, version) = stored(&it, 0).await?;
    let put = Record::encode(&key, version, 0, Some(b"kept"));
    round(&it).await?;
    for node in 1..3 {
        ensure(it.holds(node, b"kept"), "the round has not brought an acknowledged write")?;
        let kind = MutationKind::Unspecified;
        it.late(node, InHand::of(key.clone(), put.clone(), kind, Hlc::ZERO)).await;
    }
    it.wait(3_000).await;
    for node in 0..3 {
        ensure(
            it.stored_version(node) == Some(version),
            "an acknowledged write was stamped again",
        )?;
    }
    Ok(())
}

async fn write_back(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let (key, version) = stored(&it, 0).await?;
    let read = Record::encode(&key, version, 0, Some(b"old"));
    let deleted = it.within(10, async || it.delete(0, "key", L::All).await).await;
    works("delete", deleted)?;
    until_gone(&it, 60).await?;
    for node in 0..3 {
        for kind in [MutationKind::WriteBack, MutationKind::Unspecified, MutationKind::Hint] {
            it.late(node, InHand::of(key.clone(), read.clone(), kind, Hlc::ZERO)).await;
        }
    }
    it.wait(8_000).await;
    for node in 0..3 {
        let found = it.get_soon(node, "key", L::One).await?;
        ensure(found.is_none() && !it.holds(node, b"old"), "deleted data is back: a late message")?;
    }
    Ok(())
}
