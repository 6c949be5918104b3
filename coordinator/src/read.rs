//! One get. Rules: docs/protocol.md, G1 to G3, F12; speculative reads of section 7.
//!
//! Decides whom to ask, when the answers suffice, what is written back before the client is
//! answered, and what is repaired behind. Never waits, and never knows what slow means.
//! Source: Attiya, Bar-Noy and Dolev (1995): a reader makes sure of what it returns.

mod floors;
mod messages;

use std::sync::Arc;

use model::{
    Hlc, Mutant, ReadTally, Record, Refusal, ReplicaIndex, ReplicaMask, ReplicaSet, Requirement,
    ScopeRequirement, Version, WriteAnswer,
};

use crate::{ReadError, order::Order};
use floors::{FloorVerdict, Floors};
pub use messages::{ReadEffect, ReadEvent, ReadReply, ReadRequest};

/// The state machine of one read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    requirement: Requirement,
    read_at: Hlc,
    phase: Phase,
    order: Order,
    /// Neither unreachable nor known to refuse.
    usable: ReplicaMask,
    /// Those that were sent this round's query.
    asked: ReplicaMask,
    /// Those of them that may still answer.
    awaited: ReplicaMask,
    tally: ReadTally,
    /// The record of the tally's newest version.
    newest: Option<Record>,
    /// The highest clock answered.
    clock: Hlc,
    /// What is known of the floors of those that answered.
    floors: Floors,
    /// Those that may still answer a write-back of the newest.
    writing: ReplicaMask,
    /// Those to which the newest was written.
    repaired: ReplicaMask,
    /// A newer record, answered when the newest was already being confirmed: only for repair (G1).
    late: Option<(ReplicaIndex, Record)>,
    refusals: Vec<(ReplicaIndex, Refusal)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Collects the required answers.
    Query,
    /// Has them, and makes sure that a quorum has held the newest.
    Confirm,
    /// The client has its answer; what was asked besides may still tell who is stale.
    Replied,
    Finished,
}

impl Read {
    /// Starts a read of the required replicas, the first of `preferred` that are alive: all
    /// replicas should be named there, fastest first, those of the own datacenter before others.
    ///
    /// Fails if too few are alive; then nothing is sent.
    pub fn start(
        request: ReadRequest,
        replicas: Arc<ReplicaSet>,
        alive: ReplicaMask,
        preferred: &[ReplicaIndex],
        effects: &mut Vec<ReadEffect>,
    ) -> Result<Self, ReadError> {
        let mut it = Self::prepare(request, &replicas, alive, preferred);
        it.validate()?;
        it.execute(0, effects);
        Ok(it)
    }

    /// Takes one event. Late, repeated and stray ones change nothing but what is repaired.
    pub fn handle(&mut self, event: ReadEvent, effects: &mut Vec<ReadEffect>) {
        match event {
            ReadEvent::Answer { from, read_at, record, clock, floor } => {
                if read_at == self.read_at && self.awaited.contains(from) {
                    self.awaited.remove(from);
                    self.clock = self.clock.max(clock);
                    self.answered_at(from, record, floor, effects);
                }
            }
            ReadEvent::WroteBack { from, version, answer, newest } => {
                let current = self.phase == Phase::Confirm && version == self.tally.newest();
                if current && self.writing.contains(from) {
                    self.writing.remove(from);
                    self.wrote_back(from, answer, newest, effects);
                }
            }
            ReadEvent::Refused { from, refusal } => {
                if self.awaited.contains(from) && Mutant::RefusalCountsAsAnswer.is_on() {
                    self.awaited.remove(from);
                    self.answered(from, None, effects);
                } else if self.awaited.or(self.writing).contains(from) {
                    self.refusals.push((from, refusal));
                    self.give_up(ReplicaMask::only(from), effects);
                }
            }
            ReadEvent::Unreachable { replicas } => self.give_up(replicas, effects),
            ReadEvent::DirectoryReplaced => self.read_again_by_directories(effects),
            ReadEvent::AskAgain { replicas } => self.ask_again(replicas, effects),
            ReadEvent::Slow => self.continue_with(1, effects),
            ReadEvent::Deadline => {
                if matches!(self.phase, Phase::Query | Phase::Confirm) {
                    let (required, answered) = self.numbers();
                    effects.push(ReadEffect::Reply(Err(ReadError::Timeout { required, answered })));
                }
                self.phase = Phase::Finished;
            }
        }
    }

    /// True if nothing more is awaited: the operation's table entry can go.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    fn prepare(
        request: ReadRequest,
        replicas: &ReplicaSet,
        alive: ReplicaMask,
        preferred: &[ReplicaIndex],
    ) -> Self {
        Self {
            requirement: request.requirement,
            read_at: request.read_at,
            phase: Phase::Query,
            order: Order::new(preferred, replicas.all()),
            usable: alive.and(replicas.all()),
            asked: ReplicaMask::EMPTY,
            awaited: ReplicaMask::EMPTY,
            tally: ReadTally::default(),
            newest: None,
            clock: Hlc::ZERO,
            floors: Floors::default(),
            writing: ReplicaMask::EMPTY,
            repaired: ReplicaMask::EMPTY,
            late: None,
            refusals: Vec::new(),
        }
    }

    fn validate(&self) -> Result<(), ReadError> {
        let lacks = |it: &&ScopeRequirement| it.count(self.usable) < it.required;
        self.requirement.scopes().iter().find(lacks).map_or(Ok(()), |it| {
            let (required, alive) = (it.required, it.count(self.usable));
            Err(ReadError::Unavailable { datacenter: it.datacenter, required, alive })
        })
    }

    /// Asks as many as the scopes still miss, and `more` of each scope beyond them.
    fn execute(&mut self, more: u8, effects: &mut Vec<ReadEffect>) {
        let mut to = ReplicaMask::EMPTY;
        for scope in self.requirement.scopes() {
            let answered = scope.count(self.tally.answered());
            if answered >= scope.required {
                continue;
            }
            let coming = answered + scope.count(self.awaited);
            let missing = scope.required.saturating_sub(coming);
            let left = scope.mask.and(self.usable).without(self.asked);
            if scope.count(left) < missing {
                return self.fail(effects);
            }
            to = to.or(self.order.pick(left, missing + more));
        }
        if !to.is_empty() {
            self.asked = self.asked.or(to);
            self.awaited = self.awaited.or(to);
            effects.push(ReadEffect::Query { to, read_at: self.read_at });
        }
    }

    /// Takes an answer by the floor of its replica (F8).
    fn answered_at(
        &mut self,
        from: ReplicaIndex,
        record: Option<Record>,
        floor: Hlc,
        effects: &mut Vec<ReadEffect>,
    ) {
        match self.floors.judge(self.phase == Phase::Query, floor) {
            FloorVerdict::Same => self.answered(from, record, effects),
            // Behind the answer it decides nothing, and nothing is repaired by it.
            FloorVerdict::Stray => self.close_if_replied(),
            FloorVerdict::Apart => self.read_again_by_floors(effects),
            FloorVerdict::Weighed => {
                self.floors.add(from, record, floor);
                let weighed = self.floors.weigh();
                (self.tally, self.newest) = (weighed.tally, weighed.newest);
                let new = weighed.ignored.and(self.usable);
                self.refusals.extend(new.iter().map(|it| (it, Refusal::NotReady)));
                self.usable = self.usable.without(new);
                self.collect(effects);
                if !new.is_empty() {
                    self.continue_with(0, effects);
                }
            }
        }
    }

    fn answered(
        &mut self,
        from: ReplicaIndex,
        record: Option<Record>,
        effects: &mut Vec<ReadEffect>,
    ) {
        let version = record.as_ref().map_or(Version::ABSENT, Record::version);
        match self.phase {
            Phase::Query => {
                if self.tally.record(from, version) {
                    self.newest = record;
                }
                self.collect(effects);
            }
            Phase::Confirm if self.tally.is_news(version) => {
                if self.late.as_ref().is_none_or(|it| version > it.1.version()) {
                    self.late = record.map(|it| (from, it));
                }
            }
            Phase::Confirm => {
                self.tally.record(from, version);
                self.collect(effects);
            }
            Phase::Replied => {
                self.repair_late(from, record, effects);
                self.close();
            }
            Phase::Finished => {}
        }
    }

    /// Goes on as soon as the answers allow it: to the confirmation, or to the reply.
    fn collect(&mut self, effects: &mut Vec<ReadEffect>) {
        if !self.tally.is_answered(&self.requirement) && !Mutant::WriteBackFirstAnswer.is_on() {
            return;
        }
        let unconfirmed =
            self.requirement.is_ordered() && !self.tally.is_confirmed(&self.requirement);
        if unconfirmed && !Mutant::NoConfirmation.is_on() {
            if self.phase == Phase::Query {
                self.phase = Phase::Confirm;
                self.write_back(0, effects);
            }
            return;
        }
        let expires = |it: &Record| !it.expired_at(self.read_at) && it.expired_at(self.clock);
        if self.newest.as_ref().is_some_and(expires) {
            self.read_again(effects);
        } else {
            self.finish(effects);
        }
    }

    /// Writes the newest to as many as the scopes still miss for a quorum, and `more` of each scope
    /// beyond them: first to those known to be stale, then to those not asked.
    fn write_back(&mut self, more: u8, effects: &mut Vec<ReadEffect>) {
        let mut to = ReplicaMask::EMPTY;
        for scope in self.requirement.scopes() {
            let holding = scope.count(self.tally.holding());
            if holding >= scope.quorum {
                continue;
            }
            let missing = scope.quorum.saturating_sub(holding + scope.count(self.writing));
            let done = self.tally.holding().or(self.writing);
            let left = scope.mask.and(self.usable).without(done);
            if scope.count(left) < missing {
                return self.fail(effects);
            }
            let stale = self.order.pick(left.and(self.tally.stale()), missing + more);
            let others = missing + more - scope.count(stale);
            to = to.or(stale).or(self.order.pick(left.without(self.tally.stale()), others));
        }
        if let Some(record) = self.newest.clone().filter(|_| !to.is_empty()) {
            self.writing = self.writing.or(to);
            self.repaired = self.repaired.or(to);
            let floor = self.floors.of_newest();
            effects.push(ReadEffect::WriteBack { to, record, floor });
        }
    }

    fn wrote_back(
        &mut self,
        from: ReplicaIndex,
        answer: WriteAnswer,
        newest: Option<Record>,
        effects: &mut Vec<ReadEffect>,
    ) {
        match (answer, newest) {
            (WriteAnswer::Superseded { .. }, _) if Mutant::SupersededConfirms.is_on() => {
                self.tally.hold(from);
                self.collect(effects);
            }
            (WriteAnswer::Applied | WriteAnswer::Held, _) => {
                self.tally.hold(from);
                self.collect(effects);
            }
            // No confirmation (CE2): what is newer there is the newest now, and to be confirmed.
            (WriteAnswer::Superseded { .. }, Some(record))
                if self.tally.adopt(from, record.version()) =>
            {
                self.newest = Some(record);
                self.floors.adopt();
                self.writing = ReplicaMask::EMPTY;
                self.repaired = ReplicaMask::EMPTY;
                self.collect(effects);
                self.continue_with(0, effects);
            }
            (WriteAnswer::Refused(refusal), _) => {
                self.refusals.push((from, refusal));
                self.give_up(ReplicaMask::only(from), effects);
            }
            (WriteAnswer::Superseded { .. }, _) => self.give_up(ReplicaMask::only(from), effects),
        }
    }

    /// G3: some replica has seen a clock at which the record has expired. So that no later read
    /// goes back behind it, this one carries that clock to a quorum and judges by it.
    fn read_again(&mut self, effects: &mut Vec<ReadEffect>) {
        self.read_at = self.clock;
        self.floors.restart();
        self.start_over(0, effects);
    }

    /// F8: replicas with different floors have answered. Their records are weighed against each other,
    /// and for that all of them are asked once more: it happens for moments, while a floor spreads.
    fn read_again_by_floors(&mut self, effects: &mut Vec<ReadEffect>) {
        self.floors.begin_weighing();
        self.start_over(0, effects);
    }

    /// F12: what a replica has answered or confirmed may be gone with its directory.
    fn read_again_by_directories(&mut self, effects: &mut Vec<ReadEffect>) {
        match self.phase {
            Phase::Query | Phase::Confirm => {
                self.floors.restart();
                // One more than needed: whoever is slow has been waited for already.
                self.start_over(1, effects);
            }
            Phase::Replied | Phase::Finished => self.phase = Phase::Finished,
        }
    }

    /// Asks those once more that have not answered.
    fn ask_again(&self, replicas: ReplicaMask, effects: &mut Vec<ReadEffect>) {
        let to = self.awaited.and(replicas);
        if !to.is_empty() {
            effects.push(ReadEffect::Query { to, read_at: self.read_at });
        }
        let to = self.writing.and(replicas);
        if let Some(record) = self.newest.clone().filter(|_| !to.is_empty()) {
            let floor = self.floors.of_newest();
            effects.push(ReadEffect::WriteBack { to, record, floor });
        }
    }

    fn start_over(&mut self, more: u8, effects: &mut Vec<ReadEffect>) {
        self.phase = Phase::Query;
        self.asked = ReplicaMask::EMPTY;
        self.awaited = ReplicaMask::EMPTY;
        self.tally = ReadTally::default();
        self.newest = None;
        self.writing = ReplicaMask::EMPTY;
        self.repaired = ReplicaMask::EMPTY;
        self.late = None;
        self.execute(more, effects);
    }

    fn give_up(&mut self, replicas: ReplicaMask, effects: &mut Vec<ReadEffect>) {
        self.usable = self.usable.without(replicas);
        self.awaited = self.awaited.without(replicas);
        self.writing = self.writing.without(replicas);
        self.continue_with(0, effects);
    }

    fn continue_with(&mut self, more: u8, effects: &mut Vec<ReadEffect>) {
        match self.phase {
            Phase::Query => self.execute(more, effects),
            Phase::Confirm => self.write_back(more, effects),
            Phase::Replied => self.close(),
            Phase::Finished => {}
        }
    }

    /// Answers the client, then repairs those that answered an older version.
    fn finish(&mut self, effects: &mut Vec<ReadEffect>) {
        let stale = self.tally.stale().and(self.usable).without(self.repaired);
        self.repaired = self.repaired.or(stale);
        self.phase = Phase::Replied;
        effects.push(ReadEffect::Reply(Ok(ReadReply {
            value: self.newest.as_ref().and_then(|it| it.live_value(self.read_at)),
            record: self.newest.clone(),
            version: self.tally.newest(),
            required: self.requirement.required(),
            answered: self.tally.answered(),
            repaired: self.repaired,
        })));
        if let Some(record) = self.newest.clone().filter(|_| !stale.is_empty()) {
            let floor = self.floors.of_newest();
            effects.push(ReadEffect::Repair { to: stale, record, floor });
        }
        if let Some((from, record)) = self.late.take() {
            self.repair_late(from, Some(record), effects);
        }
        self.close();
    }

    /// Repairs whom an answer behind the reply shows to be stale: its sender, or all others.
    fn repair_late(
        &mut self,
        from: ReplicaIndex,
        record: Option<Record>,
        effects: &mut Vec<ReadEffect>,
    ) {
        let version = record.as_ref().map_or(Version::ABSENT, Record::version);
        let sender = ReplicaMask::only(from);
        let to = if version == self.tally.newest() {
            ReplicaMask::EMPTY
        } else if version < self.tally.newest() {
            sender.without(self.repaired)
        } else {
            let others = self.tally.answered().without(sender);
            self.tally.adopt(from, version);
            self.newest = record;
            self.repaired = ReplicaMask::EMPTY;
            others
        };
        let to = to.and(self.usable);
        if let Some(record) = self.newest.clone().filter(|_| !to.is_empty()) {
            let floor = self.floors.of_newest();
            effects.push(ReadEffect::Repair { to, record, floor });
        }
    }

    fn close_if_replied(&mut self) {
        if self.phase == Phase::Replied {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.awaited.is_empty() {
            self.phase = Phase::Finished;
        }
    }

    fn fail(&mut self, effects: &mut Vec<ReadEffect>) {
        let (required, answered) = self.numbers();
        self.phase = Phase::Finished;
        let refusals = std::mem::take(&mut self.refusals);
        let mut corrupt = ReplicaMask::EMPTY;
        for (from, _) in refusals.iter().filter(|it| it.1 == Refusal::Corrupt) {
            corrupt.insert(*from);
        }
        effects.push(ReadEffect::Reply(Err(match corrupt.is_empty() {
            true => ReadError::Failed { required, answered, refusals },
            false => ReadError::Corrupt { required, answered, corrupt },
        })));
    }

    /// Required and answered, for errors.
    fn numbers(&self) -> (u8, u8) {
        let confirming = self.phase == Phase::Confirm;
        let of = if confirming { self.tally.holding() } else { self.tally.answered() };
        (self.requirement.required(), self.requirement.scopes().iter().map(|it| it.count(of)).sum())
    }
}
