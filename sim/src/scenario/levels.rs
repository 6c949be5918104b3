//! Levels that are answered by nobody who counts for them.

use model::{ConsistencyLevel as L, Mutant};

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    names,
    script::{Script, ensure, works},
};
use crate::{
    shape::Shape,
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let quick = |shape| Shape { wan_ms: 4, disk_ms: 1, clock_offset_ms: 0, ..shape };
    vec![
        steps(
            "a-local-quorum-is-of-one-datacenter",
            "A node loses the other two of its datacenter and hears all three of another one. Nothing \
             is acknowledged at LOCAL_QUORUM through it, and all is once they are back.",
            &quick(Shape::grid(2, 3)),
            |it| Box::pin(local(it)),
            &[Shown { mutant: Mutant::LocalCountsRemote, says: "one of three local replicas" }],
        ),
        steps(
            "a-hint-is-no-replica",
            "One of three replicas is known to be away, and the link to another one jams right before a \
             put at QUORUM. It is not acknowledged for the hint that is kept for the first.",
            &quick(Shape::grid(1, 3)),
            |it| Box::pin(hinted(it)),
            &[Shown { mutant: Mutant::HintCountsAsAnswer, says: "one of three replicas" }],
        ),
    ]
}

async fn local(it: Script) -> Result<(), String> {
    it.cut(1, stop(&["n1"], &["n2", "n3"])).await;
    let put = it.put(0, "key", "early", L::LocalQuorum).await;
    ensure(put.is_err(), "acknowledged at LOCAL_QUORUM by one of three local replicas")?;
    works("a put at ONE", it.put(0, "key", "one", L::LocalOne).await)?;
    it.heal(1).await;
    it.put_soon(0, "late", L::LocalQuorum).await
}

async fn hinted(it: Script) -> Result<(), String> {
    it.end(2, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    let (from, to) = (names(&["n1"]), names(&["n2"]));
    it.cut(1, Cut { kind: CutKind::Jam, from, to }).await;
    let put = it.put(0, "key", "early", L::Quorum).await;
    ensure(put.is_err(), "acknowledged at QUORUM by one of three replicas")?;
    it.heal(1).await;
    it.start(2).await;
    it.put_soon(0, "late", L::Quorum).await
}
