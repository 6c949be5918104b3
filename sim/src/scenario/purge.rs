//! What becomes of deleted data: it goes once every replica has proven that nothing older is left, and it
//! never comes back.

use model::{
    ConsistencyLevel as L, Hlc, Key, KeyspaceId, Mutant, NodeId, Record, RequestId, StorageKey,
    Version,
};
use node::commit::HintClass;
use proto::v1;

use super::{
    Scenario, Shown,
    executions::steps,
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
    vec![
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
            "an-expired-value-goes",
            "A value has expired, on every clock and by a margin. Its bytes are given back.",
            &three,
            |it| Box::pin(expired(it)),
            &[],
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
    for node in 0..3 {
        let found = it.get_soon(node, "key", L::One).await?;
        ensure(found.is_none(), format!("deleted data is back: {found:?}"))?;
    }
    Ok(())
}

async fn late_hint(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let stored = it.stored_version(0).ok_or("n1 does not hold the key alone")?;
    let deleted = it.within(10, async || it.delete(0, "key", L::All).await).await;
    works("delete", deleted)?;
    until_gone(&it, 60).await?;
    let status = it.admin(2).get_cluster_status(v1::GetClusterStatusRequest {}).await;
    let status = status.map_err(|error| error.to_string())?.into_inner();
    let own = usize::try_from(status.answered_by).map_err(|error| error.to_string())?;
    let target = status.nodes.get(own).and_then(|it| NodeId::from_slice(&it.node_id));
    let target = target.ok_or("n3 does not know itself")?;
    let keyspace = KeyspaceId(status.keyspaces.first().ok_or("there is no keyspace")?.id);

    it.end(0, EndKind::PowerLoss).await;
    let key = Key::new(&b"key"[..]);
    let key = StorageKey::encode(keyspace, key.token(), &key);
    let version = Version { hlc: Hlc(stored.hlc.0 + 1), request: RequestId(7) };
    let record = Record::encode(&key, version, 0, Some(b"late"));
    it.plant_hint(0, target, &key, record, HintClass::Ordinary)?;
    it.start(0).await;
    it.within(30, async || {
        let (hints, _) = it.hints_and_marks(0);
        ensure(hints == 0, format!("{hints} hints are left that nobody will take"))
    })
    .await?;
    // What it has brought back would spread.
    it.wait(10_000).await;
    let back = (0..3).any(|node| it.holds(node, b"late"));
    ensure(!back, "deleted data is back: a late hint was taken")
}

async fn expired(it: Script) -> Result<(), String> {
    let put = it.within(10, async || it.put_for(0, "key", "short-lived", 2).await).await;
    works("put", put)?;
    it.wait(40_000).await;
    let held = (0..3).all(|node| it.holds(node, b"short-lived"));
    ensure(held, "an expired value went before its margin")?;
    until_gone(&it, 90).await
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
