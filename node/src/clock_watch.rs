//! Decides whether a node's wall clock may be believed (rules C1 and C2).
//!
//! Pure: readings of this node's clocks and the peers' answers to pings come in, a [`ClockState`]
//! comes out. Peers are compared with this node's *monotonic* time, so that a jump of its wall clock
//! is an offset at once and spoils no measurement. Source: NTP's clock filter (RFC 5905, 10), and a
//! median in place of its selection: a minority of wrong clocks cannot move it past the right ones.

mod told;

use std::collections::{BTreeMap, VecDeque};

use model::{Mutant, NodeId, Timestamp};

pub(crate) use told::ToldClocks;

/// What a node makes of its own wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockState {
    /// There is nobody to compare with: no layout, or fewer than three nodes and none has answered.
    Alone,
    /// Too few nodes have been compared with since the start. Nothing is coordinated.
    Unverified,
    /// It agrees with the others.
    Good,
    /// Of two clocks that can be compared one is wrong, or of more no two agree, and nobody can tell
    /// which is right. Stamps go on.
    Disputed,
    /// It has jumped against monotonic time, and the others have not confirmed it yet. Nothing is
    /// coordinated.
    Jumped,
    /// It is far from the median of the others. Nothing is coordinated.
    Off,
    /// It may be right, but the stamps of the run before lie far ahead of it, and the other nodes
    /// have not come that far: they would refuse the next ones. Nothing is coordinated.
    Behind,
}

impl ClockState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Alone,
        Self::Unverified,
        Self::Good,
        Self::Disputed,
        Self::Jumped,
        Self::Off,
        Self::Behind,
    ];

    /// True if the node may stamp and coordinate.
    pub fn coordinates(self) -> bool {
        matches!(self, Self::Alone | Self::Good | Self::Disputed)
    }

    /// True if the next answers of peers may change it.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Unverified | Self::Jumped | Self::Behind)
    }
}

/// The two clocks of this node, read together.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The wall clock.
    pub wall: Timestamp,
    /// Monotonic time since the node started.
    pub elapsed_us: u64,
}

impl Reading {
    /// What the wall clock showed, or would have shown, when monotonic time began. It changes only
    /// when the wall clock is set, or slewed.
    pub fn origin_ms(self) -> i64 {
        origin_ms(self.wall, self.elapsed_us)
    }
}

fn origin_ms(wall: Timestamp, elapsed_us: u64) -> i64 {
    let signed = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    signed(wall.0).saturating_sub(signed(elapsed_us / 1_000))
}

/// Another node of the layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherNode {
    /// The node.
    pub node: NodeId,
    /// It is in this node's datacenter.
    pub local: bool,
}

/// One answer to a ping.
#[derive(Clone, Copy, Debug)]
struct Sample {
    sent_us: u64,
    received_us: u64,
    /// The peer's wall clock at the start of this node's monotonic time.
    origin_ms: i64,
}

impl Sample {
    fn round_trip_us(&self) -> u64 {
        self.received_us - self.sent_us
    }
}

/// What the clocks that can be compared say of this node's.
enum Comparison {
    /// There are none.
    Nobody,
    /// It is near the median, or near the only other one.
    Agrees,
    /// It is far from the only other one.
    Differs,
    /// It is far from the median, which lies so many milliseconds ahead.
    OffMedian(i64),
    /// Fewer than half of the clocks are anywhere near their median, which so proves nothing.
    Scattered,
}

/// Who agrees with this node's clock, itself counted.
struct Agreement {
    /// A majority of all nodes.
    of_all: bool,
    /// More than half of those that can be compared: what was found wrong is not lifted by a draw.
    in_reach: bool,
    /// Those that can be compared are a majority of all nodes, or of the own datacenter's.
    compared: bool,
    /// They are a majority of all nodes.
    heard_most: bool,
}

/// Watches one node's wall clock.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    offset_max_ms: u64,
    state: ClockState,
    believed_ms: i64,
    /// When a jump was seen: only pings sent since then can confirm it.
    jumped_us: u64,
    /// When the first answer came since the start.
    first_us: Option<u64>,
    /// True while the stamps of the run before are out of the others' reach.
    behind: bool,
    samples: BTreeMap<NodeId, VecDeque<Sample>>,
}

impl ClockWatch {
    /// A watch that has compared nothing yet.
    pub(crate) fn new(offset_max_ms: u64, now: Reading) -> Self {
        Self {
            offset_max_ms,
            state: ClockState::Alone,
            believed_ms: now.origin_ms(),
            jumped_us: 0,
            first_us: None,
            behind: false,
            samples: BTreeMap::new(),
        }
    }

    /// The state at the last look.
    pub(crate) fn state(&self) -> ClockState {
        if self.behind && self.state.coordinates() { ClockState::Behind } else { self.state }
    }

    /// Notes whether the stamps of the run before are out of the others' reach.
    pub(crate) fn set_behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// What the node takes for the wall clock's origin: its own, or where that is not to be believed
    /// the one before the jump, or the median of the others.
    pub(crate) fn believed_ms(&self) -> i64 {
        self.believed_ms
    }

    /// By how much a wall clock may move against monotonic time between two looks.
    pub(crate) fn jump_ms(&self) -> u64 {
        (self.offset_max_ms / 4).max(ROUNDING_MS)
    }

    /// How far from the others a wall clock may be.
    pub(crate) fn limit_ms(&self) -> u64 {
        (self.offset_max_ms / 2).max(ROUNDING_MS)
    }

    /// Takes an answer to a ping: `now` is when it came, `peer` what the peer's clock showed between
    /// the two. The error is at most half the round trip; one that took too long says nothing.
    pub(crate) fn measured(&mut self, node: NodeId, sent_us: u64, now: Reading, peer: Timestamp) {
        let Some(round_trip_us) = now.elapsed_us.checked_sub(sent_us) else { return };
        if round_trip_us > self.offset_max_ms.saturating_mul(1_000) {
            return;
        }
        let origin_ms = origin_ms(peer, sent_us + round_trip_us / 2);
        self.first_us.get_or_insert(now.elapsed_us);
        let samples = self.samples.entry(node).or_default();
        samples.truncate(SAMPLES_KEPT - 1);
        samples.push_front(Sample { sent_us, received_us: now.elapsed_us, origin_ms });
    }

    /// By how many milliseconds a node's wall clock is ahead of this node's, if that was measured of
    /// late.
    pub(crate) fn offset_ms(&self, node: NodeId, now: Reading) -> Option<i64> {
        Some(self.best(node, now, 0)?.origin_ms - now.origin_ms())
    }

    /// By how many milliseconds the median of the clocks of late is ahead of this node's; `None` if
    /// there are too few for one.
    pub(crate) fn median_ms(&self, now: Reading, others: &[OtherNode]) -> Option<i64> {
        let offsets: Vec<_> = others.iter().filter_map(|it| self.offset_ms(it.node, now)).collect();
        (offsets.len() >= 2).then(|| median(&offsets))
    }

    /// Judges the clock anew. `others` are the other nodes of the layout; none before there is one.
    pub(crate) fn look(&mut self, now: Reading, others: &[OtherNode]) -> ClockState {
        use ClockState::{Alone, Disputed, Good, Jumped, Off, Unverified};
        let own_ms = now.origin_ms();
        let jumped = own_ms.abs_diff(self.believed_ms) > self.jump_ms();
        if !others.is_empty() && jumped && self.state.coordinates() {
            (self.state, self.jumped_us) = (Jumped, now.elapsed_us);
        }
        let since_us = if self.state == Jumped { self.jumped_us } else { 0 };
        let (word, agreement) = self.compare(now, others, since_us);
        let enough = agreement.of_all || agreement.compared && self.heard_out(now);
        let (few, before) = (others.len() < 2, self.state);
        let silent = now.elapsed_us.saturating_sub(self.jumped_us) > FRESH_US;
        // Its clock is again where it was to be.
        let back = own_ms.abs_diff(self.believed_ms) <= self.limit_ms();
        self.state = match (self.state, &word) {
            _ if others.is_empty() => Alone,
            (Jumped, _) if !jumped => Good,
            (Jumped, Comparison::Nobody) if few && silent => Alone,
            (Alone | Unverified, Comparison::Nobody) if few => Alone,
            (Alone | Unverified, Comparison::Differs) if few => Disputed,
            (Alone | Unverified, Comparison::Agrees) if few || enough => Good,
            (Alone | Unverified, Comparison::OffMedian(_)) => Off,
            (Alone | Unverified, _) => Unverified,
            (Good | Disputed, Comparison::Agrees) => Good,
            (Good | Disputed, Comparison::Differs | Comparison::Scattered) => Disputed,
            (Good | Disputed, Comparison::OffMedian(_)) => Off,
            (Jumped | Off, Comparison::Agrees) if Mutant::JumpNeverConfirmed.is_on() => self.state,
            (Jumped, Comparison::Agrees) if enough && agreement.in_reach => Good,
            (Jumped, Comparison::OffMedian(_)) => Off,
            // Those who proved it wrong may be out of reach now: their silence proves nothing.
            (Off, Comparison::Agrees) if agreement.of_all => Good,
            (Off, Comparison::OffMedian(_)) => Off,
            (Off, _) if back => Good,
            (state, _) => state,
        };
        // A few that are wrong alike do not unsay what most have said.
        let newly = before != Off;
        self.believed_ms = match (self.state, word) {
            (Jumped, _) => self.believed_ms,
            (Off, Comparison::OffMedian(ahead_ms)) if newly || agreement.heard_most => {
                own_ms + ahead_ms
            }
            (Off, _) => self.believed_ms,
            _ => own_ms,
        };
        self.state
    }

    /// True when whoever can be reached has had its say, since a jump or the start. At a start links
    /// have to come up: an answer takes three round trips from there.
    fn heard_out(&self, now: Reading) -> bool {
        let offset_max_us = self.offset_max_ms * 1_000;
        let by_us = match self.state {
            ClockState::Jumped => self.jumped_us.saturating_add(offset_max_us),
            _ => self.first_us.unwrap_or(u64::MAX).saturating_add(3 * offset_max_us),
        };
        now.elapsed_us >= by_us
    }

    /// Compares with what was measured of late, by pings sent since a moment.
    fn compare(
        &self,
        now: Reading,
        others: &[OtherNode],
        since_us: u64,
    ) -> (Comparison, Agreement) {
        let (mut offsets, mut local) = (Vec::new(), 1);
        for it in others {
            if let Some(sample) = self.best(it.node, now, since_us) {
                offsets.push(sample.origin_ms - now.origin_ms());
                local += usize::from(it.local);
            }
        }
        let all_local = 1 + others.iter().filter(|it| it.local).count();
        let majority = |compared: usize, of: usize| 2 * compared > of;
        let near = |offset_ms: i64| offset_ms.unsigned_abs() <= self.limit_ms();
        let agreeing = 1 + offsets.iter().filter(|it| near(**it)).count();
        let heard_most = majority(offsets.len() + 1, others.len() + 1);
        let agreement = Agreement {
            of_all: majority(agreeing, others.len() + 1),
            in_reach: majority(agreeing, offsets.len() + 1),
            compared: heard_most || majority(local, all_local),
            heard_most,
        };
        let word = match offsets[..] {
            [] => Comparison::Nobody,
            [other] if near(other) => Comparison::Agrees,
            [_] => Comparison::Differs,
            _ => match median(&offsets) {
                ahead_ms if !self.supports(ahead_ms, &offsets) => Comparison::Scattered,
                ahead_ms if near(ahead_ms) => Comparison::Agrees,
                ahead_ms => Comparison::OffMedian(ahead_ms),
            },
        };
        (word, agreement)
    }

    /// True if half of the clocks, this node's among them, are near their median. Between clocks of
    /// which no two agree the median is only the one in the middle, as wrong as any.
    fn supports(&self, median_ms: i64, offsets: &[i64]) -> bool {
        let all = offsets.iter().chain(&[0]);
        let near = all.filter(|it| it.abs_diff(median_ms) <= self.offset_max_ms).count();
        2 * near > offsets.len()
    }

    /// The most exact of a node's latest samples: the one with the shortest round trip.
    fn best(&self, node: NodeId, now: Reading, since_us: u64) -> Option<&Sample> {
        let fresh = |it: &&Sample| {
            it.sent_us >= since_us && now.elapsed_us.saturating_sub(it.received_us) <= FRESH_US
        };
        self.samples.get(&node)?.iter().filter(fresh).min_by_key(|it| it.round_trip_us())
    }
}

/// The median of this node's clock and others, by how far they are ahead of it. Of two in the middle
/// the nearer: where half of the clocks agree with this one, they do not prove it wrong.
fn median(offsets: &[i64]) -> i64 {
    let mut all = [offsets, &[0]].concat();
    all.sort_unstable();
    let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
    if low.unsigned_abs() <= high.unsigned_abs() { low } else { high }
}

/// Pings of some seconds, or of the last second while pings are frequent.
const SAMPLES_KEPT: usize = 8;
/// A node that has not answered for so long cannot be reached.
const FRESH_US: u64 = 5_000_000;
/// Below this, an offset may be the rounding of two readings to milliseconds.
const ROUNDING_MS: u64 = 5;

#[cfg(test)]
mod tests;
