//! Hybrid clocks that ran ahead with the wall clocks of most nodes, and stay ahead when these are right
//! again: whoever missed it comes along, and a restart does not wait for an hour.

use model::{ConsistencyLevel as L, Mutant};

use super::{
    Scenario, Shown,
    executions::steps,
    script::{Script, ensure, works},
};
use crate::{shape::Shape, world::EndKind};

pub(super) fn all() -> Vec<Scenario> {
    let three = Shape { disk_ms: 1, clock_offset_ms: 0, ..Shape::default() };
    vec![
        steps(
            "ce32-while-one-was-away",
            "All clocks but one's, whose node is down, jump an hour ahead and back. The node comes back \
             and takes part at once, though the others' stamps lie an hour ahead.",
            &three,
            |it| Box::pin(one_away(it)),
            &[Shown { mutant: Mutant::MajorityClockIgnored, says: "n3 takes no writes" }],
        ),
        steps(
            "ce32-and-a-rolling-restart",
            "All clocks jump an hour ahead and back. Then every node is restarted, one after another; \
             each serves again within seconds.",
            &three,
            |it| Box::pin(rolling_restart(it)),
            &[Shown { mutant: Mutant::CeilingAwaited, says: "n1 takes no writes" }],
        ),
    ]
}

const HOUR_MS: i64 = 3_600_000;

async fn one_away(it: Script) -> Result<(), String> {
    it.end(2, EndKind::Crash).await;
    jump_and_back(&it, 2).await?;
    it.start(2).await;
    it.put_soon(2, "after", L::Quorum).await?;
    let read = works("get", it.get(1, "key", L::All).await)?;
    ensure(read.as_deref() == Some(b"after"), format!("{read:?} was read"))
}

async fn rolling_restart(it: Script) -> Result<(), String> {
    jump_and_back(&it, 3).await?;
    for node in 0..3 {
        it.end(node, EndKind::Crash).await;
        it.wait(500).await;
        it.start(node).await;
        it.put_soon(node, &format!("after-{node}"), L::Quorum).await?;
        let read = works("get", it.get(node, "key", L::All).await)?;
        ensure(read == Some(format!("after-{node}").into()), format!("{read:?} was read"))?;
    }
    Ok(())
}

/// The clocks of the first nodes jump an hour ahead and back, with a write in each state.
async fn jump_and_back(it: &Script, nodes: usize) -> Result<(), String> {
    for jump in [HOUR_MS, -HOUR_MS] {
        for node in 0..nodes {
            it.clock_jump(node, jump).await;
        }
        it.put_soon(0, &format!("jumped by {jump}"), L::Quorum).await?;
    }
    Ok(())
}
