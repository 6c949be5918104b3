//! Decides when enough replicas have answered. Rules: docs/protocol.md, P3, P4, P6, G1, G2.
//!
//! Pure arithmetic on sets of replicas: never waits, and never knows why a replica is silent. The
//! deadline is the coordinator's. Source: Dynamo, 4.5; the first round of ABD for dead stamps.

use crate::{Mutant, ReplicaIndex, ReplicaMask, Requirement, ScopeRequirement, Version};

/// Where a stamp stands. All but `Pending` are final for the coordinator that reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replicas still awaited decide.
    Pending,
    /// Acknowledged: enough replicas answered, and the stamp has its place in the order.
    Reached,
    /// The stamp was never readable at a quorum and never will be: it may be replaced, once.
    Dead,
    /// Whatever the awaited replicas answer, it is neither reached nor dead: the client need not
    /// wait for the deadline to hear that the outcome is unknown.
    Lost,
}

/// What one replica's answer means for one stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Applied or Held: the stamp is or was the newest there.
    Held,
    /// A newer version is there.
    Superseded {
        /// The replica proves that the stamp was never the newest there.
        never: bool,
    },
    /// No judgement, and none to come: refused, unreachable or down.
    Failed,
}

/// Which of a write's rounds a stamp belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Round {
    /// A stamp given without asking anyone.
    First,
    /// The same stamp, asked for once more because a replica's directory has been replaced (F12): as
    /// before, but nothing that is said now proves that nobody could have read it.
    Again,
    /// A stamp above every version that a quorum answered before: the second stamp, or the first
    /// after a version query. Superseded is as good as Applied here, and nothing follows.
    Ordered,
}

/// Counts the answers to one stamp of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteTally {
    round: Round,
    awaited: ReplicaMask,
    held: ReplicaMask,
    superseded: ReplicaMask,
    never: ReplicaMask,
}

impl WriteTally {
    /// A tally that awaits these replicas. Those outside have failed already.
    pub fn new(round: Round, awaited: ReplicaMask) -> Self {
        let none = ReplicaMask::EMPTY;
        Self { round, awaited, held: none, superseded: none, never: none }
    }

    /// Notes one answer; true if it was awaited. A repeated answer, or a stranger's, changes nothing.
    pub fn record(&mut self, from: ReplicaIndex, vote: Vote) -> bool {
        if !self.awaited.contains(from) {
            return false;
        }
        self.awaited.remove(from);
        match vote {
            Vote::Held => self.held.insert(from),
            Vote::Superseded { never } => {
                if never {
                    self.never.insert(from);
                }
                self.superseded.insert(from)
            }
            Vote::Failed => false,
        };
        true
    }

    /// Where the stamp stands by the requirement of its write.
    pub fn outcome(&self, requirement: &Requirement) -> Outcome {
        let may_hold = self.held.or(self.awaited);
        let may_never = self.never.or(self.awaited);
        if self.is_reached(requirement, self.held) {
            Outcome::Reached
        } else if self.is_dead(requirement, self.never) {
            Outcome::Dead
        } else if self.is_reached(requirement, may_hold) || self.is_dead(requirement, may_never) {
            Outcome::Pending
        } else {
            Outcome::Lost
        }
    }

    /// P3 and P6, for the replicas of `held`.
    fn is_reached(&self, requirement: &Requirement, held: ReplicaMask) -> bool {
        let answered = held.or(self.superseded);
        let every =
            |enough: &dyn Fn(&ScopeRequirement) -> bool| requirement.scopes().iter().all(enough);
        if self.round == Round::Ordered
            && every(&|it| it.count(answered) >= it.required.max(it.quorum))
        {
            return true;
        }
        if !requirement.is_ordered() {
            return every(&|it| it.count(held) >= it.required);
        }
        let newest_at_quorum = requirement.scopes().iter().any(|it| it.count(held) >= it.quorum);
        newest_at_quorum && every(&|it| it.count(answered) >= it.required)
    }

    /// P4 and P6: what more than N-Q replicas never held, and never will, no quorum can hold.
    fn is_dead(&self, requirement: &Requirement, never: ReplicaMask) -> bool {
        if Mutant::RestampOnSuperseded.is_on() {
            return self.round == Round::First && !self.superseded.is_empty();
        }
        let below_quorum = |it: &ScopeRequirement| it.count(never) > it.replicas() - it.quorum;
        self.round == Round::First && requirement.scopes().iter().all(below_quorum)
    }

    /// The replicas that answered Applied or Held.
    pub fn held(&self) -> ReplicaMask {
        self.held
    }

    /// The replicas that answered Superseded.
    pub fn superseded(&self) -> ReplicaMask {
        self.superseded
    }

    /// The replicas that have judged the stamp.
    pub fn answered(&self) -> ReplicaMask {
        self.held.or(self.superseded)
    }

    /// The replicas whose answers stand for an acknowledgement: where the stamp is ordered, all that
    /// judged it.
    pub fn acked(&self) -> ReplicaMask {
        match self.round {
            Round::First | Round::Again => self.held,
            Round::Ordered => self.answered(),
        }
    }

    /// The replicas that may still answer.
    pub fn awaited(&self) -> ReplicaMask {
        self.awaited
    }
}

/// Follows which replicas hold the newest version that a read has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ReadTally {
    answered: ReplicaMask,
    holding: ReplicaMask,
    newest: Version,
}

impl ReadTally {
    /// Notes a replica's answer; true if it is newer than all before. An absent key counts as
    /// `Version::ABSENT` (G2). A second answer of a replica changes nothing.
    pub fn record(&mut self, from: ReplicaIndex, version: Version) -> bool {
        if !self.answered.insert(from) {
            return false;
        }
        if version == self.newest {
            self.holding.insert(from);
        }
        self.adopt(from, version)
    }

    /// Turns to a newer version that a replica holds; true unless it is not newer.
    pub fn adopt(&mut self, from: ReplicaIndex, version: Version) -> bool {
        if !self.is_news(version) {
            return false;
        }
        self.answered.insert(from);
        self.holding = ReplicaMask::only(from);
        self.newest = version;
        true
    }

    /// True for a version newer than all that were met.
    pub fn is_news(&self, version: Version) -> bool {
        if Mutant::ReadTiesReversed.is_on() && version.hlc == self.newest.hlc {
            return version.request < self.newest.request;
        }
        version > self.newest
    }

    /// Notes that a replica has held exactly the newest version: it was written back there.
    pub fn hold(&mut self, from: ReplicaIndex) {
        self.answered.insert(from);
        self.holding.insert(from);
    }

    /// True once every scope has its required answers: only now may the newest be confirmed (G1).
    pub fn is_answered(&self, requirement: &Requirement) -> bool {
        requirement.scopes().iter().all(|it| it.count(self.answered) >= it.required)
    }

    /// True once a quorum of every scope has held exactly the newest version (G1, G2).
    pub fn is_confirmed(&self, requirement: &Requirement) -> bool {
        requirement.scopes().iter().all(|it| it.count(self.holding) >= it.quorum)
    }

    /// The newest version met.
    pub fn newest(&self) -> Version {
        self.newest
    }

    /// The replicas that answered.
    pub fn answered(&self) -> ReplicaMask {
        self.answered
    }

    /// The replicas known to have held exactly the newest version.
    pub fn holding(&self) -> ReplicaMask {
        self.holding
    }

    /// The replicas that answered an older version.
    pub fn stale(&self) -> ReplicaMask {
        self.answered.without(self.holding)
    }
}

#[cfg(test)]
mod tests;
