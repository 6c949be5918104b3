//! Once everything is healed, replicas come to hold the same, and nothing moves any more.

use super::{LOOK_MS, Run};
use crate::inspect;

impl Run {
    /// Replicas agree without being asked (I10), and then nothing moves any more (I13).
    pub(super) fn replicas_converge(&mut self) {
        let within_ms = CONVERGE_MS + CONVERGE_ROUNDS * self.round_ms() + self.heal_ms();
        let agree = |it: &Self| {
            it.world.now_ms().is_multiple_of(LOOK_MS)
                && inspect::replicas_agree(&it.world).is_empty()
        };
        if !self.until(within_ms, agree) {
            for it in inspect::replicas_agree(&self.world) {
                let what = format!("{within_ms} ms after everything was healed {}", it.what);
                self.violate("convergence", what);
            }
            return;
        }
        let within_ms = MARKS_MS + 2 * self.round_ms();
        if !self.until(within_ms, |it| inspect::marks_left(&it.world).is_empty()) {
            for what in inspect::marks_left(&self.world) {
                self.violate("convergence", format!("{within_ms} ms after replicas agree {what}"));
            }
        }
        // A round that had begun before may end.
        self.steps(2 * self.round_ms());
        // What one replica has purged another one may offer that is about to, once.
        let mut more = 0;
        let looks = if self.world.shape.bounds.purges() { PURGES_PASSING } else { 1 };
        for _ in 0..looks {
            let moved = inspect::records_exchanged(&self.world);
            self.steps(2 * self.round_ms());
            more = inspect::records_exchanged(&self.world) - moved;
            if more == 0 {
                return;
            }
        }
        self.violate("convergence", format!("{more} records move between equal replicas"));
    }

    /// How long it takes to find what a disk has done wrong, and to heal it.
    pub(super) fn heal_ms(&self) -> u64 {
        let heal_ms = HEAL_MS + 3 * self.world.shape.bounds.scrub_interval_ms;
        if self.world.rotten.is_some() { heal_ms } else { 0 }
    }

    /// How long a round takes and the next one is waited for.
    fn round_ms(&self) -> u64 {
        let bounds = &self.world.shape.bounds;
        2 * bounds.exchange_interval_ms + bounds.exchange_settle_ms + self.world.shape.wan_ms * 20
    }
}

/// How long replicas may take to agree, behind that: so long and so many rounds.
const CONVERGE_MS: u64 = 10_000;
/// Twice a call's time before others are asked for a damaged record, and some tries.
const HEAL_MS: u64 = 25_000;
const CONVERGE_ROUNDS: u64 = 6;
/// Looks of which one has to find that nothing moves.
const PURGES_PASSING: usize = 3;
/// What has been marked dirty is asked for every five seconds.
const MARKS_MS: u64 = 12_000;
