//! The executions that forced rules of `docs/protocol.md`, as far as whole nodes can be led through
//! them; the races of put and get themselves are searched exhaustively by `protocol_check`.

use model::{ConsistencyLevel as L, Mutant};
use node::commit::CommitStage;
use proto::{Reason, v1};

use super::{
    Plot, Scenario,
    script::{Playing, Script, ensure, refused_for, works},
};
use crate::{
    shape::{Shape, datacenter_name},
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, ..Shape::default() };
    let pair = Shape { wan_ms: 5, disk_ms: 1, clock_offset_ms: 0, ..Shape::grid(2, 3) };
    let mut all = clocks(&three, &pair);
    all.extend(data(&three));
    all
}

pub(super) fn steps(
    name: &'static str,
    story: &'static str,
    shape: &Shape,
    script: fn(Script) -> Playing,
    shows: &'static [Mutant],
) -> Scenario {
    Scenario { name, story, plot: Plot::Steps { shape: shape.clone(), script }, shows }
}

fn clocks(three: &Shape, pair: &Shape) -> Vec<Scenario> {
    vec![
        steps(
            "ce9-expiry-goes-on",
            "A value expires by the clock of one coordinator. Another one, whose clock is slow, does \
             not show it again.",
            three,
            |it| Box::pin(ce9(it)),
            &[Mutant::ExpiryByOwnClock],
        ),
        steps(
            "ce11-client-moves-to-a-slow-clock",
            "A client writes in one datacenter and again in another one, whose clock is slow, while \
             the two do not hear each other. The second write wins.",
            pair,
            |it| Box::pin(ce11(it)),
            &[Mutant::ClientClockIgnored],
        ),
        steps(
            "ce30-a-clock-jumps-an-hour",
            "A node whose clock has jumped an hour ahead stamps nothing, at no level. What others \
             acknowledge later is not overwritten by it.",
            three,
            |it| Box::pin(ce30(it)),
            &[Mutant::OwnClockTrusted],
        ),
        steps(
            "ce32-all-clocks-jump",
            "All clocks jump an hour ahead together, and back. The cluster serves before and after.",
            three,
            |it| Box::pin(ce32(it)),
            &[],
        ),
    ]
}

fn data(three: &Shape) -> Vec<Scenario> {
    let alone = Shape { replicas: 1, ..three.clone() };
    vec![
        steps(
            "ce5-writes-without-overlap",
            "R + W > N is not enough: a keyspace that requires overlap refuses to write at ONE and \
             read at ALL, where a slow clock would lose an acknowledged write.",
            three,
            |it| Box::pin(ce5(it)),
            &[Mutant::OverlapWithoutWrites],
        ),
        steps(
            "ce10-power-loss-after-the-answer",
            "Every replica loses its power at the very moment the answer arrives. The write is there.",
            three,
            |it| Box::pin(ce10(it)),
            &[Mutant::AcknowledgedBeforeSync],
        ),
        steps(
            "ce33-short-reads",
            "Rows were deleted while one replica was away. A short page through that replica shows \
             none of them.",
            three,
            |it| Box::pin(ce33(it)),
            &[Mutant::ScanLiveRowsOnly],
        ),
        steps(
            "s2-pages-end-at-different-rows",
            "A replica that missed the first rows answers a page with the ones behind them. A scan \
             through it shows every row all the same.",
            three,
            |it| Box::pin(s2(it)),
            &[Mutant::ScanBeyondCovered],
        ),
        steps(
            "any-survives-power-loss",
            "A write at ANY is acknowledged by a hint alone, its only replica being away. Then the \
             coordinator loses its power. The hint is delivered all the same.",
            &alone,
            |it| Box::pin(any(it)),
            &[Mutant::HintsNotSynced],
        ),
        steps(
            "a-hint-is-kept-until-applied",
            "The replica that a hint is for takes it and dies before it has written it. It gets the \
             hint again.",
            &alone,
            |it| Box::pin(hint_again(it)),
            &[Mutant::HintForgottenWhenSent],
        ),
        steps(
            "rot-is-never-served",
            "Every record of one replica rots. Reads at ONE through it are answered by another \
             replica or refused; never absent, never wrong.",
            three,
            |it| Box::pin(rot(it)),
            &[Mutant::CorruptIsAbsent, Mutant::ChecksumIgnored],
        ),
    ]
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn stop(from: &[&str], to: &[&str]) -> Cut {
    Cut { kind: CutKind::Stop, from: names(from), to: names(to) }
}

async fn ce5(it: Script) -> Result<(), String> {
    let replicas = vec![v1::DatacenterReplicas { datacenter: datacenter_name(0), replicas: 3 }];
    let keyspace = v1::Keyspace {
        name: "overlapping".to_owned(),
        replicas,
        write_consistency: Some(L::One.into()),
        read_consistency: Some(L::All.into()),
        require_overlap: true,
        ..v1::Keyspace::default()
    };
    let request =
        v1::CreateKeyspaceRequest { keyspace: Some(keyspace), accept_weak_defaults: false };
    let created = it.admin(0).create_keyspace(request).await;
    ensure(created.is_err(), "a keyspace that requires overlap lets ONE write and ALL read")
}

async fn ce9(it: Script) -> Result<(), String> {
    it.clock_jump(0, 110).await;
    it.clock_jump(2, -110).await;
    works("put", it.put_for(1, "key", "short-lived", 2).await)?;
    let mut gone = false;
    for _ in 0..400 {
        let through_fast = works("get", it.get(0, "key", L::Quorum).await)?;
        gone |= through_fast.is_none();
        let through_slow = works("get", it.get(2, "key", L::Quorum).await)?;
        ensure(!gone || through_slow.is_none(), "a value that had expired was read again")?;
        if gone {
            return Ok(());
        }
        it.wait(5).await;
    }
    Err("the value never expired".to_owned())
}

async fn ce10(it: Script) -> Result<(), String> {
    for round in 0..8 {
        let value = round.to_string();
        put_until_taken(&it, round % 3, &value).await?;
        for node in 0..3 {
            it.end(node, EndKind::PowerLoss).await;
        }
        for node in 0..3 {
            it.start(node).await;
        }
        let read = read_until_served(&it, 0, "key", L::Quorum).await?;
        ensure(read.as_deref() == Some(value.as_bytes()), format!("{value} was lost: {read:?}"))?;
    }
    Ok(())
}

async fn ce11(it: Script) -> Result<(), String> {
    for node in 3..6 {
        it.clock_jump(node, -110).await;
    }
    for node in 0..3 {
        it.clock_jump(node, 110).await;
    }
    it.wait(1_500).await;
    it.cut(1, stop(&["n1", "n2", "n3"], &["n4", "n5", "n6"])).await;
    works("put", it.put(0, "key", "first", L::LocalQuorum).await)?;
    works("put", it.put(3, "key", "second", L::LocalQuorum).await)?;
    it.heal(1).await;
    let read = read_until_served(&it, 1, "key", L::All).await?;
    ensure(
        read.as_deref() == Some(b"second"),
        format!("the client's second write was lost: {read:?}"),
    )
}

async fn ce30(it: Script) -> Result<(), String> {
    works("put", it.put(1, "key", "before", L::Quorum).await)?;
    it.clock_jump(0, 3_600_000).await;
    for level in [L::One, L::Quorum] {
        let poison = it.put(0, "key", "poison", level).await;
        let refused = refused_for(&poison, Reason::ClockSkew);
        ensure(refused, format!("a clock an hour ahead stamped a write: {poison:?}"))?;
    }
    works("put", it.put(1, "key", "after", L::Quorum).await)?;
    let read = works("get", it.get(2, "key", L::Quorum).await)?;
    ensure(read.as_deref() == Some(b"after"), format!("{read:?} was read"))?;
    it.clock_jump(0, -3_600_000).await;
    let read = read_until_served(&it, 0, "key", L::All).await?;
    ensure(read.as_deref() == Some(b"after"), format!("{read:?} was read"))
}

async fn ce32(it: Script) -> Result<(), String> {
    for jump in [3_600_000, -3_600_000] {
        for node in 0..3 {
            it.clock_jump(node, jump).await;
        }
        let mut written = Err("never".to_owned());
        for _ in 0..100 {
            written = works("put", it.put(0, "key", "value", L::Quorum).await);
            if written.is_ok() {
                break;
            }
            it.wait(100).await;
        }
        written.map_err(|error| format!("ten seconds after a jump by {jump} ms: {error}"))?;
    }
    Ok(())
}

async fn ce33(it: Script) -> Result<(), String> {
    for row in 1..=12 {
        works("put", it.put(0, &format!("rows/{row:02}"), "live", L::All).await)?;
    }
    // Its clients still reach it; the other nodes do not.
    it.cut(1, stop(&["n3"], &["n1", "n2"])).await;
    for row in 1..=9 {
        works("delete", it.delete(0, &format!("rows/{row:02}"), L::Quorum).await)?;
    }
    // n2 is the one that is away now: only n1 knows of the deletions.
    it.cut(2, stop(&["n2"], &["n1", "n3"])).await;
    it.heal(1).await;
    for _ in 0..60 {
        let scanned = it.scan(2, "rows", 3, 3, L::Quorum).await;
        if let Ok(rows) = scanned {
            let first = rows.first().cloned().unwrap_or_default();
            return ensure(first == "10", format!("deleted rows came back: {rows:?}"));
        }
        it.wait(100).await;
    }
    Err("the scan was never answered".to_owned())
}

async fn s2(it: Script) -> Result<(), String> {
    for row in 7..=12 {
        works("put", it.put(0, &format!("rows/{row:02}"), "old", L::All).await)?;
    }
    it.cut(1, stop(&["n3"], &["n1", "n2"])).await;
    // The hints for n3 lie at n2, which is away afterwards: only n1 can tell it.
    for row in 1..=6 {
        works("put", it.put(1, &format!("rows/{row:02}"), "new", L::Quorum).await)?;
    }
    it.cut(2, stop(&["n2"], &["n1", "n3"])).await;
    it.heal(1).await;
    let expected: Vec<_> = (1..=12).map(|row| format!("{row:02}")).collect();
    for _ in 0..60 {
        if let Ok(rows) = it.scan(2, "rows", 2, 0, L::Quorum).await {
            return ensure(rows == expected, format!("these rows came: {rows:?}"));
        }
        it.wait(100).await;
    }
    Err("the scan was never answered".to_owned())
}

async fn any(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    it.end(replica, EndKind::PowerLoss).await;
    write_at_any(&it, coordinator).await?;
    it.end(coordinator, EndKind::PowerLoss).await;
    it.start(coordinator).await;
    it.start(replica).await;
    await_value(&it, replica, "by-hint").await
}

async fn hint_again(it: Script) -> Result<(), String> {
    let (replica, coordinator) = lone_replica(&it).await?;
    it.end(replica, EndKind::PowerLoss).await;
    write_at_any(&it, coordinator).await?;
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
        let others = (0..3).filter(|node| *node != replica).map(|node| format!("n{}", node + 1));
        let cut = Cut {
            kind: CutKind::Stop,
            from: vec![format!("n{}", replica + 1)],
            to: others.collect(),
        };
        it.cut(9, cut).await;
        let alone = it.get(replica, "key", L::One).await;
        it.heal(9).await;
        it.wait(3_000).await;
        if alone.is_ok() {
            return Ok((replica, (replica + 1) % 3));
        }
    }
    Err("no node holds the key".to_owned())
}

async fn write_at_any(it: &Script, coordinator: usize) -> Result<(), String> {
    for _ in 0..100 {
        if it.put(coordinator, "key", "by-hint", L::Any).await.is_ok() {
            return Ok(());
        }
        it.wait(100).await;
    }
    Err("ANY was never acknowledged".to_owned())
}

async fn await_value(it: &Script, node: usize, value: &str) -> Result<(), String> {
    let mut last = None;
    for _ in 0..200 {
        last = it.get(node, "key", L::One).await.ok().flatten();
        if last.as_deref() == Some(value.as_bytes()) {
            return Ok(());
        }
        it.wait(100).await;
    }
    Err(format!("what was acknowledged at ANY never came: {last:?}"))
}

async fn rot(it: Script) -> Result<(), String> {
    works("put", it.put(0, "key", "value", L::All).await)?;
    it.end(0, EndKind::Crash).await;
    it.rot(0).await;
    it.start(0).await;
    let mut answered = 0;
    for _ in 0..60 {
        if let Ok(found) = it.get(0, "key", L::One).await {
            answered += 1;
            ensure(found.as_deref() == Some(b"value"), format!("rot was served: {found:?}"))?;
        }
        it.wait(50).await;
    }
    let read = read_until_served(&it, 1, "key", L::Quorum).await?;
    it.say(&format!("{answered} reads at ONE were answered"));
    ensure(read.as_deref() == Some(b"value"), format!("{read:?} was read at QUORUM"))
}

async fn put_until_taken(it: &Script, node: usize, value: &str) -> Result<(), String> {
    let mut last = Ok(());
    for _ in 0..200 {
        last = works("put", it.put(node, "key", value, L::All).await);
        if last.is_ok() {
            break;
        }
        it.wait(100).await;
    }
    last
}

async fn read_until_served(
    it: &Script,
    node: usize,
    key: &str,
    level: L,
) -> Result<Option<bytes::Bytes>, String> {
    let mut last = None;
    for _ in 0..200 {
        match it.get(node, key, level).await {
            Ok(found) => return Ok(found),
            Err(error) => last = Some(error),
        }
        it.wait(100).await;
    }
    Err(format!("never served: {last:?}"))
}
