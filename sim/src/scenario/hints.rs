//! What becomes of a write that was kept for a replica that was away.

use model::{
    ConsistencyLevel as L, Hlc, Key, KeyspaceId, Mutant, NodeId, Record, RequestId, StorageKey,
    Version,
};
use node::{
    commit::{CommitStage, HintClass},
    storage::Space,
};
use proto::v1;

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    script::{Script, ensure, works},
};
use crate::{
    shape::{Bounds, Shape},
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, ..Shape::default() };
    let four = Shape { datacenters: vec![4], ..three.clone() };
    let alone = Shape { replicas: 1, ..three.clone() };
    let mut all = vec![
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
    ];
    all.extend(given_up(&three, &alone));
    all.extend(marked(&three));
    all
}

/// Hints that cannot be delivered in time, or at all, and who waits for the others.
fn given_up(three: &Shape, alone: &Shape) -> Vec<Scenario> {
    let aging = Bounds { hint_age_ms: 5_000, ..Bounds::default() };
    vec![
        steps(
            "ce24-any-outlives-the-bound",
            "A write at ANY is acknowledged by a hint alone, and its replica stays away for longer than \
             hints are kept. It gets the write when it is back.",
            &Shape { bounds: aging, ..alone.clone() },
            |it| Box::pin(ce24(it)),
            &[Shown {
                mutant: Mutant::AnyHintsGivenUp,
                says: "what was acknowledged at ANY never came",
            }],
        ),
        steps(
            "ce25-a-hint-is-kept-until-durable",
            "The replica that a hint is for answers it, the hint is dropped, and the replica loses its \
             power. It has the write.",
            alone,
            |it| Box::pin(ce25(it)),
            &[Shown {
                mutant: Mutant::AcknowledgedBeforeSync,
                says: "what was acknowledged at ANY never came",
            }],
        ),
        steps(
            "ce26-a-hint-for-nobody",
            "A node keeps hints for one that no layout names. The hint of a put goes, and that of a \
             write at ANY goes to a replica that there is.",
            three,
            |it| Box::pin(ce26(it)),
            &[Shown { mutant: Mutant::OrphansKept, says: "for a node that is none are left" }],
        ),
        steps(
            "a-barrier-waits-for-what-was-there",
            "A replica that has been away and is away again is owed hints. A barrier behind them lets \
             nobody through before it has them on its disk.",
            three,
            |it| Box::pin(barrier(it)),
            &[Shown { mutant: Mutant::BarrierPassedEarly, says: "before a hint was delivered" }],
        ),
    ]
}

/// What takes the place of hints that are not kept.
fn marked(three: &Shape) -> Vec<Scenario> {
    let aging = Bounds { hint_age_ms: 5_000, ..Bounds::default() };
    let full = Bounds { commit_queue_items: 4, ..Bounds::default() };
    let no_hints = Bounds { no_hints: true, ..Bounds::default() };
    vec![
        steps(
            "an-aged-hint-leaves-a-mark",
            "A replica is away for longer than hints are kept. What it has missed is marked dirty at \
             the moment the hint is gone.",
            &Shape { bounds: aging, ..three.clone() },
            |it| Box::pin(aged(it)),
            &[Shown {
                mutant: Mutant::AgedHintsUnmarked,
                says: "a hint is gone, and nothing is dirty",
            }],
        ),
        steps(
            "a-refused-hint-leaves-a-mark",
            "A replica is away, and the disk of a node is so slow that its queue takes no more hints for it. \
             What the replica has missed is marked dirty once the queue takes something again, and the \
             marks go when it is back and has been compared.",
            &Shape { bounds: full, ..three.clone() },
            |it| Box::pin(refused(it)),
            &[Shown {
                mutant: Mutant::RefusedHintsUnmarked,
                says: "hints were refused, and nothing is dirty",
            }],
        ),
        steps(
            "no-hints-but-marks",
            "No hints are kept for the nodes of a datacenter. What one of them misses is marked dirty.",
            &Shape { bounds: no_hints, ..three.clone() },
            |it| Box::pin(switched_off(it)),
            &[],
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

/// Longer than hints are kept, and than ages are rounded by.
const TOO_LONG_MS: u64 = 20_000;

async fn ce24(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    it.end(replica, EndKind::PowerLoss).await;
    it.put_soon(coordinator, "by-hint", L::Any).await?;
    it.wait(TOO_LONG_MS).await;
    it.start(replica).await;
    await_value(&it, replica, "by-hint").await
}

async fn aged(it: Script) -> Result<(), String> {
    it.end(2, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    it.put_soon(0, "missed", L::Quorum).await?;
    it.until_stored(0, Space::Hints, b"missed").await?;
    for _ in 0..TOO_LONG_MS {
        match it.hints_and_marks(0) {
            (0, 0) => return Err("a hint is gone, and nothing is dirty".to_owned()),
            (0, _) => return Ok(()),
            _ => it.wait(1).await,
        }
    }
    Err("a hint is kept for longer than it may be".to_owned())
}

async fn refused(it: Script) -> Result<(), String> {
    it.end(2, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    it.slow_disk(0, 400).await;
    let puts: Vec<_> = (0..30)
        .map(|number| {
            let it = it.clone();
            let put = async move { it.put(0, &format!("key {number}"), "missed", L::Quorum).await };
            tokio::task::spawn_local(put)
        })
        .collect();
    for put in puts {
        // Refused, acknowledged or unknown: it does not matter here.
        let _ = put.await.map_err(|error| error.to_string())?;
    }
    it.slow_disk(0, 1).await;
    it.within(5, async || {
        ensure(it.hints_and_marks(0).1 > 0, "hints were refused, and nothing is dirty")
    })
    .await?;
    it.start(2).await;
    // Its own, too: it has refused what it coordinated. A queue of four takes two of them a second.
    it.within(90, async || {
        let left = it.hints_and_marks(0);
        ensure(left == (0, 0), format!("hints and marks are left when all is compared: {left:?}"))
    })
    .await
}

async fn ce25(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    // Whatever else the replica has just written for itself makes its data durable, too.
    for value in ["first", "second", "third"] {
        it.end(replica, EndKind::PowerLoss).await;
        it.put_soon(coordinator, value, L::Any).await?;
        it.start(replica).await;
        for _ in 0..20_000 {
            if it.hints_and_marks(coordinator) == (0, 0) {
                break;
            }
            it.wait(1).await;
        }
        it.end(replica, EndKind::PowerLoss).await;
        it.start(replica).await;
        await_value(&it, replica, value).await?;
    }
    Ok(())
}

async fn ce26(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    let stored = it.stored_version(0).ok_or("n1 does not hold the key alone")?;
    let listed = it.admin(1).list_keyspaces(v1::ListKeyspacesRequest {}).await;
    let listed = listed.map_err(|error| error.to_string())?.into_inner();
    let keyspace = KeyspaceId(listed.keyspaces.first().ok_or("there is no keyspace")?.id);
    it.end(0, EndKind::PowerLoss).await;
    for (name, value, class) in
        [("key", "kept for any", HintClass::Any), ("other", "kept for put", HintClass::Ordinary)]
    {
        let key = Key::new(name.as_bytes());
        let key = StorageKey::encode(keyspace, key.token(), &key);
        let version = Version { hlc: Hlc(stored.hlc.0 + 1), request: RequestId(7) };
        let record = Record::encode(&key, version, 0, Some(value.as_bytes()));
        it.plant_hint(0, NodeId(7), &key, record, class)?;
    }
    it.start(0).await;
    it.within(20, async || {
        let left = it.hints_and_marks(0);
        ensure(left == (0, 0), format!("hints for a node that is none are left: {left:?}"))
    })
    .await?;
    let holds = |value: &[u8]| (0..3).any(|node| it.holds(node, value));
    ensure(holds(b"kept for any"), "a write at ANY went with its target")?;
    ensure(!holds(b"kept for put"), "a hint went to a node that it is not for")
}

async fn barrier(it: Script) -> Result<(), String> {
    for value in ["first", "second"] {
        it.end(2, EndKind::PowerLoss).await;
        it.until_missed(0).await?;
        it.put_soon(0, value, L::Quorum).await?;
        let early = it.hints_delivered(0, 1_000).await?;
        ensure(!early, format!("a barrier let through before a hint was delivered: {value}"))?;
        it.start(2).await;
        let mut delivered = false;
        for _ in 0..20 {
            delivered = it.hints_delivered(0, 1_000).await?;
            if delivered {
                break;
            }
        }
        ensure(delivered, "a barrier let nobody through for twenty seconds")?;
        let held = it.holds(2, value.as_bytes());
        ensure(held, format!("a barrier let through before a hint was delivered: {value}"))?;
    }
    Ok(())
}

async fn switched_off(it: Script) -> Result<(), String> {
    it.end(2, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    it.put_soon(0, "missed", L::Quorum).await?;
    it.within(5, async || {
        let (hints, marks) = it.hints_and_marks(0);
        ensure(hints == 0, format!("{hints} hints are kept"))?;
        ensure(marks > 0, "nothing is marked dirty".to_owned())
    })
    .await
}
