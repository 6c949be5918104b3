//! How many hints may be on their way to one target at a time. Pure: time is an argument.
//!
//! Decides by the target's answers alone. While they come about as fast as the fastest seen lately,
//! nothing queues there, and the window grows; when they take longer, or the target refuses as
//! overloaded, hints are in the way of its clients, and the window halves. Source: Brakmo and
//! Peterson, TCP Vegas (1995), for the signal; Jacobson (1988) for growth and decrease.

/// The window of one target.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    window: usize,
    /// Until the first decrease of a pass the window doubles.
    doubles: bool,
    best: BestLatency,
    /// Answers of this round: as many as the window, all to hints sent since the last change.
    round: Round,
}

#[derive(Clone, Copy, Debug, Default)]
struct Round {
    began_us: u64,
    answers: usize,
    total_us: u64,
}

impl Default for Pace {
    fn default() -> Self {
        let (best, round) = (BestLatency::default(), Round::default());
        Self { window: WINDOW_START, doubles: true, best, round }
    }
}

impl Pace {
    /// The most hints that may be under way.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// A pass begins: what the last one found out may have changed since, but not what is best.
    pub(super) fn begin(&mut self, now_us: u64) {
        self.window = self.window.min(WINDOW_START);
        self.doubles = true;
        self.round = Round { began_us: now_us, ..Round::default() };
    }

    /// The target has answered a hint.
    pub(super) fn answered(&mut self, sent_us: u64, answered_us: u64) {
        let took_us = answered_us.saturating_sub(sent_us);
        self.best.measured(took_us, answered_us);
        if sent_us < self.round.began_us {
            return;
        }
        self.round.answers += 1;
        self.round.total_us = self.round.total_us.saturating_add(took_us);
        if self.round.answers < self.window {
            return;
        }
        let answers = u64::try_from(self.round.answers).unwrap_or(u64::MAX);
        if self.round.total_us / answers > NEAR_FACTOR * self.best.us() + NEAR_US {
            self.halve(answered_us);
            return;
        }
        let more = if self.doubles { self.window } else { self.window.div_ceil(GROWTH_PART) };
        self.window = (self.window + more).min(WINDOW_MAX);
        self.round = Round { began_us: answered_us, ..Round::default() };
    }

    /// The target has too much to do, or has not answered. Of the hints that were under way together
    /// the first to say so counts.
    pub(super) fn overloaded(&mut self, sent_us: u64, now_us: u64) {
        if sent_us >= self.round.began_us {
            self.halve(now_us);
        }
    }

    fn halve(&mut self, now_us: u64) {
        self.window = (self.window / 2).max(1);
        self.doubles = false;
        self.round = Round { began_us: now_us, ..Round::default() };
    }
}

/// The shortest latency of the present period and of the one before it: a path that has become longer
/// is not measured for ever by what it was.
#[derive(Clone, Copy, Debug)]
struct BestLatency {
    present_us: u64,
    before_us: u64,
    since_us: u64,
}

impl Default for BestLatency {
    fn default() -> Self {
        Self { present_us: u64::MAX, before_us: u64::MAX, since_us: 0 }
    }
}

impl BestLatency {
    fn measured(&mut self, took_us: u64, now_us: u64) {
        if now_us.saturating_sub(self.since_us) >= BEST_PERIOD_US {
            (self.before_us, self.present_us, self.since_us) = (self.present_us, took_us, now_us);
        }
        self.present_us = self.present_us.min(took_us);
    }

    fn us(&self) -> u64 {
        // Far from overflow when multiplied.
        self.present_us.min(self.before_us).min(BEST_PERIOD_US)
    }
}

const WINDOW_START: usize = 8;
/// As many as one page holds: a group of this many costs the target one fsync.
pub(super) const WINDOW_MAX: usize = 256;
/// Without doubling, a round adds this part of the window.
const GROWTH_PART: usize = 8;
/// How many times the best latency is still near it, and what is added for the timer of a disk.
const NEAR_FACTOR: u64 = 2;
const NEAR_US: u64 = 3_000;
const BEST_PERIOD_US: u64 = 30_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays rounds of one window each against a target that takes so long for each hint of it.
    fn rounds(pace: &mut Pace, now_us: &mut u64, latencies_us: &[u64]) -> Vec<usize> {
        let round = |took_us: &u64| {
            let sent_us = *now_us;
            *now_us += took_us;
            for _ in 0..pace.window() {
                pace.answered(sent_us, *now_us);
            }
            *now_us += 1;
            pace.window()
        };
        latencies_us.iter().map(round).collect()
    }

    #[test]
    fn doubles_until_it_is_felt_then_grows_slowly() {
        let (mut pace, mut now_us) = (Pace::default(), 1);
        let windows = rounds(&mut pace, &mut now_us, &[1_000, 1_200, 1_100, 9_000, 1_000, 4_900]);
        assert_eq!(windows, [16, 32, 64, 32, 36, 41]);
        assert_eq!(rounds(&mut pace, &mut now_us, &[1_000; 40]).last(), Some(&WINDOW_MAX));
        assert_eq!(rounds(&mut pace, &mut now_us, &[90_000; 9]).last(), Some(&1));
        assert_eq!(rounds(&mut pace, &mut now_us, &[1_000; 3]), [2, 3, 4]);
        pace.begin(now_us);
        assert_eq!(rounds(&mut pace, &mut now_us, &[1_000; 2]), [8, 16], "a new pass");
    }

    #[test]
    fn one_slow_answer_of_many_is_no_rise() {
        let mut pace = Pace::default();
        for took_us in [1_000, 1_000, 1_000, 20_000, 1_000, 1_000, 1_000, 1_000] {
            pace.answered(50_000, 50_000 + took_us);
        }
        assert_eq!(pace.window(), 16);
    }

    #[test]
    fn what_was_under_way_together_halves_once() {
        let mut pace = Pace::default();
        pace.begin(100);
        for _ in 0..8 {
            pace.overloaded(100, 5_000);
        }
        assert_eq!(pace.window(), 4);
        for _ in 0..8 {
            pace.answered(4_000, 900_000);
        }
        assert_eq!(pace.window(), 4, "sent before the decrease: says nothing of the new window");
        pace.overloaded(6_000, 7_000);
        assert_eq!(pace.window(), 2);
    }

    #[test]
    fn a_path_that_has_become_longer_is_learnt() {
        let (mut pace, mut now_us) = (Pace::default(), 1);
        rounds(&mut pace, &mut now_us, &[1_000; 3]);
        assert_eq!(rounds(&mut pace, &mut now_us, &[80_000; 8]).last(), Some(&1));
        now_us += 2 * BEST_PERIOD_US;
        rounds(&mut pace, &mut now_us, &[80_000]);
        now_us += BEST_PERIOD_US;
        let windows = rounds(&mut pace, &mut now_us, &[80_000, 85_000]);
        assert!(windows[1] > windows[0], "{windows:?}");
    }
}
