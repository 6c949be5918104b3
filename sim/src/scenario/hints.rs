//! What becomes of a write that was kept for a replica that was away.

use model::{ConsistencyLevel as L, Mutant};
use node::{commit::CommitStage, storage::Space};

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    script::{Script, ensure, works},
};
use crate::{
    shape::Shape,
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, ..Shape::default() };
    let four = Shape { datacenters: vec![4], ..three.clone() };
    let alone = Shape { replicas: 1, ..three.clone() };
    vec![
        steps(
            "any-survives-power-loss",
            "A write at ANY is acknowledged by a hint alone, its only replica being away. Then the \
             coordinator loses its power. The hint is delivered all the same.",
            &alone,
            |it| Box::pin(any(it)),
            &[Shown {
                mutant: Mutant::HintsNotSynced,
                says: "what was acknowledged at ANY never came",
            }],
        ),
        steps(
            "a-hint-is-kept-until-applied",
            "The replica that a hint is for takes it and dies before it has written it. It gets the \
             hint again.",
            &alone,
            |it| Box::pin(again(it)),
            &[Shown {
                mutant: Mutant::HintForgottenWhenSent,
                says: "what was acknowledged at ANY never came",
            }],
        ),
        steps(
            "ce23-a-hint-follows-its-stamp",
            "A put is kept as a hint for a replica that is away; then its stamp proves dead, and it is \
             acknowledged with a later one. The replica gets that one, and never the dead one.",
            &four,
            |it| Box::pin(ce23(it)),
            &[Shown { mutant: Mutant::DeadHintKept, says: "a dead stamp was handed over" }],
        ),
    ]
}

async fn any(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    it.end(replica, EndKind::PowerLoss).await;
    it.put_soon(coordinator, "by-hint", L::Any).await?;
    it.end(coordinator, EndKind::PowerLoss).await;
    it.start(coordinator).await;
    it.start(replica).await;
    await_value(&it, replica, "by-hint").await
}

async fn again(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    it.end(replica, EndKind::PowerLoss).await;
    it.put_soon(coordinator, "by-hint", L::Any).await?;
    it.start(replica).await;
    // Whatever it is sent first, the hint or its own clock's ceiling, it does not write it.
    it.freeze(replica, CommitStage::Taken).await;
    it.wait(6_000).await;
    it.end(replica, EndKind::PowerLoss).await;
    it.start(replica).await;
    await_value(&it, replica, "by-hint").await
}

/// Which node is the only replica of the key, and another one.
async fn lone_replica(it: &Script) -> Result<(usize, usize), String> {
    works("put", it.put(0, "key", "old", L::One).await)?;
    for replica in 0..3 {
        let mut others = vec!["n1", "n2", "n3"];
        let alone = others.remove(replica);
        it.cut(9, stop(&[alone], &others)).await;
        let alone = it.get(replica, "key", L::One).await;
        it.heal(9).await;
        it.wait(3_000).await;
        if alone.is_ok() {
            return Ok((replica, (replica + 1) % 3));
        }
    }
    Err("no node holds the key".to_owned())
}

async fn await_value(it: &Script, node: usize, value: &str) -> Result<(), String> {
    it.within(20, async || {
        let found = it.get(node, "key", L::One).await.ok().flatten();
        let is_there = found.as_deref() == Some(value.as_bytes());
        ensure(is_there, format!("what was acknowledged at ANY never came: {found:?}"))
    })
    .await
}

async fn ce23(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let (mut holders, others): (Vec<_>, Vec<_>) =
        (0..4).partition(|node| it.stored_version(*node).is_some());
    let (Some(away), [coordinator]) = (holders.pop(), &others[..]) else {
        return Err("not three of four nodes hold the key".to_owned());
    };
    it.end(away, EndKind::PowerLoss).await;
    it.until_missed(*coordinator).await?;

    let name = |node: &usize| format!("n{}", node + 1);
    let (from, to) = (vec![name(coordinator)], holders.iter().map(name).collect());
    it.cut(1, Cut { kind: CutKind::Jam, from, to }).await;
    let first = it.put(*coordinator, "key", "first", L::Quorum);
    let second = async {
        // The first one has its stamp and its hint, and lies on its way to the others.
        it.until_stored(*coordinator, Space::Hints, b"first").await?;
        works("put", it.put(holders[0], "key", "second", L::Quorum).await)?;
        it.heal(1).await;
        Ok::<_, String>(())
    };
    let (first, second) = tokio::join!(first, second);
    second?;
    works("put", first)?;

    let acknowledged = it.stored_version(holders[0]);
    for holder in holders {
        it.end(holder, EndKind::PowerLoss).await;
    }
    it.start(away).await;
    it.until_stored(away, Space::Data, b"first").await?;
    let handed = it.stored_version(away);
    ensure(handed == acknowledged, format!("a dead stamp was handed over: {handed:?}"))
}
