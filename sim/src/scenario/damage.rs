//! What a disk does wrong unnoticed is found, and healed by the other replicas.

use model::{ConsistencyLevel as L, Mutant};
use node::storage::Space;

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
    let bounds = Bounds { scrub_interval_ms: 2_000, ..Bounds::default() };
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, bounds, ..Shape::default() };
    // Nothing but healing brings replicas together.
    let alone = Bounds { no_hints: true, exchange_interval_ms: 600_000, ..bounds };
    vec![
        steps(
            "a-lost-write-is-found",
            "A disk has acknowledged a write, and never made it. Nobody reads the key; the replica finds \
             out by itself, and gets it back from the others.",
            &three,
            |it| Box::pin(lost(it)),
            &[Shown { mutant: Mutant::ScrubOff, says: "a lost write stays lost" }],
        ),
        steps(
            "a-misplaced-write-is-found",
            "A disk has made a write in the place of another one. Both keys are healed.",
            &three,
            |it| Box::pin(misplaced(it)),
            &[Shown { mutant: Mutant::ScrubOff, says: "one of two writes stays lost" }],
        ),
        steps(
            "a-damaged-record-is-healed-by-enough",
            "A write was acknowledged by two of three replicas; one of them is away, and the record of the \
             other is damaged. What the third holds does not take its place. When the first is back, the \
             record is healed.",
            &Shape { bounds: alone, ..three.clone() },
            |it| Box::pin(healed(it)),
            &[Shown { mutant: Mutant::HealsFromOne, says: "an acknowledged write is gone" }],
        ),
        steps(
            "a-damaged-record-keeps-one-replica-of-a-lost-disk",
            "A disk is lost, and of those that it is filled from one has a damaged record, which nobody can \
             heal meanwhile. What lies in other partitions counts again.",
            &Shape {
                bounds: Bounds { scrub_interval_ms: Bounds::default().scrub_interval_ms, ..alone },
                ..three
            },
            |it| Box::pin(filled_beside(it)),
            &[],
        ),
    ]
}

/// Those of the shape.
const PARTITIONS: usize = 8;

async fn filled_beside(it: Script) -> Result<(), String> {
    it.put_soon(0, "value", L::All).await?;
    it.end(0, EndKind::Crash).await;
    it.rot(0).await;
    it.start(0).await;
    // Elsewhere: nobody looks at the key.
    for number in 0..8 {
        let put =
            it.within(10, async || it.put(1, &format!("other {number}"), "value", L::All).await);
        works("put", put.await)?;
    }
    it.end(2, EndKind::Crash).await;
    it.wipe(2).await;
    it.start(2).await;
    it.until_filling(2).await?;
    it.within(20, async || match it.filled(2) {
        (_, filled) if filled + 1 >= PARTITIONS => Ok(()),
        counts => Err(format!("of {} replicas {} are filled", counts.0, counts.1)),
    })
    .await
}

async fn lost(it: Script) -> Result<(), String> {
    it.put_soon(0, "value", L::All).await?;
    it.lose(2, b"value").await;
    ensure(!it.holds(2, b"value"), "nothing was lost")?;
    let back = it.until_stored(2, Space::Data, b"value").await;
    ensure(back.is_ok(), "a lost write stays lost")?;
    let found = it.get_soon(2, "key", L::One).await?;
    ensure(found.as_deref() == Some(b"value"), format!("{found:?} was read"))
}

async fn misplaced(it: Script) -> Result<(), String> {
    it.put_soon(0, "value", L::All).await?;
    works("put", it.put(0, "other", "wrong", L::All).await)?;
    it.misplace(1, b"value", b"wrong").await;
    // Nobody but the scrub looks at it.
    for bytes in [&b"value"[..], b"wrong"] {
        let back = async || match is_sound(&it, 1, bytes) {
            true => Ok(()),
            false => Err(()),
        };
        let back = it.within(30, back).await;
        back.map_err(|()| "one of two writes stays lost".to_owned())?;
    }
    for (key, value) in [("key", "value"), ("other", "wrong")] {
        let found = it.get_soon(1, key, L::One).await?;
        ensure(found.as_deref() == Some(value.as_bytes()), format!("{found:?} was read"))?;
    }
    Ok(())
}

/// True if a node's disk holds these bytes under the key that they were written for.
fn is_sound(it: &Script, node: usize, bytes: &[u8]) -> bool {
    it.sound_values(node).iter().any(|it| it[..] == *bytes)
}

async fn healed(it: Script) -> Result<(), String> {
    it.put_soon(0, "old", L::All).await?;
    it.end(1, EndKind::Crash).await;
    it.until_missed(0).await?;
    it.put_soon(0, "new", L::Quorum).await?;
    // What its memory keeps is gone with it.
    it.end(0, EndKind::Crash).await;
    it.rot(0).await;
    it.end(2, EndKind::Crash).await;
    it.start(0).await;
    it.start(1).await;
    let deadline = 30_000 / PAUSE_MS;
    for _ in 0..deadline {
        for node in 0..2 {
            // An error until the other one is back.
            if let Ok(found) = it.get(node, "key", L::Quorum).await {
                let what = format!("an acknowledged write is gone: {found:?} was read");
                ensure(found.as_deref() == Some(b"new"), what)?;
            }
        }
        it.wait(PAUSE_MS).await;
    }
    it.start(2).await;
    let back =
        it.within(40, async || match it.sound_values(0).iter().any(|it| it[..] == *b"new") {
            true => Ok(()),
            false => Err(()),
        });
    back.await.map_err(|()| "a damaged record is not healed".to_owned())?;
    let found = it.get_soon(0, "key", L::One).await?;
    ensure(found.as_deref() == Some(b"new"), format!("{found:?} was read"))
}

const PAUSE_MS: u64 = 500;
