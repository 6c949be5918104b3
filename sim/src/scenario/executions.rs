//! The executions that forced rules of `docs/protocol.md`, as far as whole nodes can be led through
//! them; the races of put and get themselves are searched exhaustively by `protocol_check`.

use model::{ConsistencyLevel as L, Mutant};
use proto::{Reason, v1};

use super::{
    Plot, Scenario, Shown, names,
    script::{Playing, Script, ensure, refused_for, works},
};
use crate::{
    shape::{Bounds, Shape, datacenter_name},
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, ..Shape::default() };
    let pair = Shape { wan_ms: 5, disk_ms: 1, clock_offset_ms: 0, ..Shape::grid(2, 3) };
    let mut all = clocks(&three, &pair);
    all.extend(data(&three));
    all.extend(scans(&three));
    all
}

pub(super) fn steps(
    name: &'static str,
    story: &'static str,
    shape: &Shape,
    script: fn(Script) -> Playing,
    shows: &'static [Shown],
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
            &[Shown {
                mutant: Mutant::ExpiryByOwnClock,
                says: "a value that had expired was read again",
            }],
        ),
        steps(
            "ce11-client-moves-to-a-slow-clock",
            "A client writes in one datacenter and again in another one, whose clock is slow, while \
             the two do not hear each other. The second write wins.",
            pair,
            |it| Box::pin(ce11(it)),
            &[Shown {
                mutant: Mutant::ClientClockIgnored,
                says: "the client's second write was lost",
            }],
        ),
        steps(
            "ce30-a-clock-jumps-an-hour",
            "A node whose clock has jumped an hour ahead stamps nothing, at no level. What others \
             acknowledge later is not overwritten by it.",
            three,
            |it| Box::pin(ce30(it)),
            &[Shown {
                mutant: Mutant::OwnClockTrusted,
                says: "a clock an hour ahead stamped a write",
            }],
        ),
        steps(
            "ce32-all-clocks-jump",
            "All clocks jump an hour ahead together, and back. The cluster serves before and after.",
            three,
            |it| Box::pin(ce32(it)),
            &[Shown {
                mutant: Mutant::JumpNeverConfirmed,
                says: "ten seconds after a jump by 3600000 ms",
            }],
        ),
    ]
}

fn data(three: &Shape) -> Vec<Scenario> {
    vec![
        steps(
            "ce5-writes-without-overlap",
            "R + W > N is not enough: a keyspace that requires overlap refuses to write at ONE and \
             read at ALL, where a slow clock would lose an acknowledged write.",
            three,
            |it| Box::pin(ce5(it)),
            &[Shown {
                mutant: Mutant::OverlapWithoutWrites,
                says: "a keyspace that requires overlap lets ONE write and ALL read",
            }],
        ),
        steps(
            "ce10-power-loss-after-the-answer",
            "Every replica loses its power at the very moment the answer arrives. The write is there.",
            three,
            |it| Box::pin(ce10(it)),
            &[Shown { mutant: Mutant::AcknowledgedBeforeSync, says: "was lost: " }],
        ),
        steps(
            "rot-is-never-served",
            "Every record of one replica rots. Reads at ONE through it are answered by another \
             replica or refused; never absent, never wrong.",
            three,
            |it| Box::pin(rot(it)),
            &[
                Shown { mutant: Mutant::CorruptIsAbsent, says: "rot was served: None" },
                Shown { mutant: Mutant::ChecksumIgnored, says: "rot was served" },
            ],
        ),
    ]
}

fn scans(three: &Shape) -> Vec<Scenario> {
    // Nothing brings replicas together before they are read.
    let bounds = Bounds { exchange_interval_ms: 600_000, ..three.bounds };
    let three = &Shape { bounds, ..three.clone() };
    let four = Shape { datacenters: vec![4], replicas: 4, ..three.clone() };
    vec![
        steps(
            "ce33-short-reads",
            "Rows were deleted while one of four replicas was away. Short pages through that replica show \
             none of them.",
            &four,
            |it| Box::pin(ce33(it)),
            &[Shown { mutant: Mutant::ScanLiveRowsOnly, says: "deleted rows came back" }],
        ),
        steps(
            "s2-pages-end-at-different-rows",
            "A replica that missed the first rows answers a page with the ones behind them. A scan \
             through it shows every row all the same.",
            three,
            |it| Box::pin(s2(it)),
            &[Shown { mutant: Mutant::ScanBeyondCovered, says: "these rows came: " }],
        ),
    ]
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
        it.put_soon(round % 3, &value, L::All).await?;
        for node in 0..3 {
            it.end(node, EndKind::PowerLoss).await;
        }
        for node in 0..3 {
            it.start(node).await;
        }
        let read = it.get_soon(0, "key", L::Quorum).await?;
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
    let read = it.get_soon(1, "key", L::All).await?;
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
    let read = it.get_soon(0, "key", L::All).await?;
    ensure(read.as_deref() == Some(b"after"), format!("{read:?} was read"))
}

async fn ce32(it: Script) -> Result<(), String> {
    for jump in [3_600_000, -3_600_000] {
        for node in 0..3 {
            it.clock_jump(node, jump).await;
        }
        let written = it.put_soon(0, "value", L::Quorum).await;
        written.map_err(|error| format!("ten seconds after a jump by {jump} ms: {error}"))?;
    }
    Ok(())
}

async fn ce33(it: Script) -> Result<(), String> {
    for row in 1..=12 {
        works("put", it.put(0, &format!("rows/{row:02}"), "live", L::All).await)?;
    }
    // Its clients still reach it; the other nodes do not.
    it.cut(1, stop(&["n3"], &["n1", "n2", "n4"])).await;
    // Each page ends at a row that lives, so that it says how far it speaks even without the others.
    for row in (1..=9).filter(|row| row % 3 != 0) {
        works("delete", it.delete(1, &format!("rows/{row:02}"), L::Quorum).await)?;
    }
    // The hints for n3 lie at n2, which is away afterwards: only n1 can tell it of the deletions.
    it.cut(2, stop(&["n2", "n4"], &["n1", "n3"])).await;
    it.heal(1).await;
    // Two replicas of four meet the deletions' quorum of three and are none: at a quorum each differing
    // row would be confirmed, and what a page leaves out be found all the same.
    let rows = scan_soon(&it, 3, L::Two).await?;
    let expected = ["03", "06", "09", "10", "11", "12"];
    ensure(rows == expected, format!("deleted rows came back: {rows:?}"))
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
    let rows = scan_soon(&it, 2, L::Quorum).await?;
    ensure(rows == expected, format!("these rows came: {rows:?}"))
}

/// Scans `rows` through n3 until it is answered, for ten seconds.
async fn scan_soon(it: &Script, page_rows: u32, level: L) -> Result<Vec<bytes::Bytes>, String> {
    works("scan", it.within(10, async || it.scan(2, "rows", page_rows, level).await).await)
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
    let read = it.get_soon(1, "key", L::Quorum).await?;
    it.say(&format!("{answered} reads at ONE were answered"));
    ensure(read.as_deref() == Some(b"value"), format!("{read:?} was read at QUORUM"))
}
