//! One put or delete. Rules: docs/protocol.md, P3 to P7, F12, H1, H2 and H4.
//!
//! Decides what is sent to which replica, when the write is acknowledged, whether its stamp may be
//! replaced, and who gets a hint. Never stamps by itself, never waits and never judges who is up.
//! Source: Dynamo, 4.5 and 4.6; Attiya, Bar-Noy and Dolev (1995) for the query round.

mod messages;

use std::sync::Arc;

use model::{
    DcIndex, Hlc, Mutant, Outcome, Record, Refusal, ReplicaIndex, ReplicaMask, ReplicaSet, Round,
    ScopeRequirement, Version, Vote, WriteAnswer, WriteTally,
};

use crate::WriteError;
pub use messages::{WriteEffect, WriteEvent, WriteReply, WriteRequest};

/// The state machine of one write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    request: WriteRequest,
    replicas: Arc<ReplicaSet>,
    local_dc: DcIndex,
    phase: Phase,
    /// Not known to be out of reach.
    alive: ReplicaMask,
    /// The mutation with the stamp in force; none before the first.
    record: Option<Record>,
    /// The stamp that died, if one did.
    dead: Option<Version>,
    tally: WriteTally,
    /// The highest clock among the versions answered.
    highest: Hlc,
    /// Those asked to pass the stamp in force on, and not given up.
    forwarders: ReplicaMask,
    /// Those with a hint of the stamp in force.
    hinted: ReplicaMask,
    hint_durable: bool,
    /// Those of them whose hint is known not to be kept.
    unkept: ReplicaMask,
    refusals: Vec<(ReplicaIndex, Refusal)>,
    replied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Awaits versions, to stamp above them; `stamp` is at hand.
    Query {
        stamp: Hlc,
        awaited: ReplicaMask,
        answered: ReplicaMask,
    },
    /// Awaits a stamp for the ordered round.
    Stamp,
    /// A stamp is out.
    Collect,
    Finished,
}

impl Write {
    /// Starts a write with a stamp that the caller's clock gave for it.
    ///
    /// Fails if too few replicas are alive; then nothing is sent, and no hint is kept (H4).
    pub fn start(
        request: WriteRequest,
        replicas: Arc<ReplicaSet>,
        alive: ReplicaMask,
        local_dc: DcIndex,
        stamp: Hlc,
        effects: &mut Vec<WriteEffect>,
    ) -> Result<Self, WriteError> {
        let mut it = Self::prepare(request, replicas, alive, local_dc);
        it.validate()?;
        if it.request.query_first && it.request.requirement.is_ordered() {
            let awaited = it.alive.and(it.request.requirement.mask());
            it.phase = Phase::Query { stamp, awaited, answered: ReplicaMask::EMPTY };
            effects.push(WriteEffect::Query { to: awaited });
        } else {
            it.execute(Round::First, stamp, effects);
        }
        Ok(it)
    }

    /// Takes one event. Late, repeated and stray ones change nothing.
    ///
    /// Panics if a stamp is not above the one that `NeedStamp` named.
    pub fn handle(&mut self, event: WriteEvent, effects: &mut Vec<WriteEffect>) {
        match event {
            WriteEvent::Answer { from, hlc, answer } => match self.phase {
                Phase::Query { .. } => self.query_refused(from, answer, effects),
                Phase::Collect if self.is_in_force(hlc) => self.answered(from, answer, effects),
                _ => {}
            },
            WriteEvent::Queried { from, newest } => self.queried(from, newest, effects),
            WriteEvent::Unreachable { replicas } => self.unreachable(replicas, effects),
            WriteEvent::DirectoryReplaced => self.count_anew(effects),
            WriteEvent::AskAgain { replicas } => self.ask_again(replicas, effects),
            WriteEvent::NotPassedOn { from } => {
                if self.phase == Phase::Collect {
                    self.relieve(from, effects);
                }
            }
            WriteEvent::HintStored { replica, hlc } => {
                if self.phase == Phase::Collect && hlc == self.version().hlc {
                    self.hint_durable |= self.hinted.contains(replica);
                    self.collect(effects);
                }
            }
            WriteEvent::HintNotKept { replica, hlc } => {
                if self.phase == Phase::Collect && hlc == self.version().hlc {
                    self.unkept.insert(replica);
                    self.collect(effects);
                }
            }
            WriteEvent::Stamped(stamp) => {
                if self.phase == Phase::Stamp {
                    assert!(stamp > self.highest, "stamp {stamp} is not above {}", self.highest);
                    let endless = Mutant::EndlessRestamp.is_on();
                    let round = if endless { Round::First } else { Round::Ordered };
                    self.execute(round, stamp, effects);
                }
            }
            WriteEvent::Deadline => self.deadline(effects),
        }
    }

    /// True for a write at ANY: a durable hint may acknowledge it.
    pub fn is_any(&self) -> bool {
        self.request.requirement.is_any()
    }

    /// True if nothing more is awaited: the operation's table entry can go.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    fn prepare(
        request: WriteRequest,
        replicas: Arc<ReplicaSet>,
        alive: ReplicaMask,
        local_dc: DcIndex,
    ) -> Self {
        Self {
            alive: alive.and(replicas.all()),
            request,
            replicas,
            local_dc,
            phase: Phase::Stamp,
            record: None,
            dead: None,
            tally: WriteTally::new(Round::First, ReplicaMask::EMPTY),
            highest: Hlc::ZERO,
            forwarders: ReplicaMask::EMPTY,
            hinted: ReplicaMask::EMPTY,
            hint_durable: false,
            unkept: ReplicaMask::EMPTY,
            refusals: Vec::new(),
            replied: false,
        }
    }

    fn validate(&self) -> Result<(), WriteError> {
        let requirement = &self.request.requirement;
        let lacks = |it: &&ScopeRequirement| it.count(self.alive) < it.required;
        match requirement.scopes().iter().find(lacks) {
            Some(it) if !requirement.is_any() => Err(WriteError::Unavailable {
                datacenter: it.datacenter,
                required: it.required,
                alive: it.count(self.alive),
            }),
            _ => Ok(()),
        }
    }

    /// Sends a stamp to every replica that is alive, once to each other datacenter, and hints the
    /// rest. What a dead stamp left as hints is replaced (P7).
    fn execute(&mut self, round: Round, stamp: Hlc, effects: &mut Vec<WriteEffect>) {
        let version = Version { hlc: stamp, request: self.request.request };
        let value = self.request.value.as_deref();
        let ttl_ms = self.request.ttl_ms.filter(|_| value.is_some());
        let expiry_ms = ttl_ms.map_or(0, |it| stamp.ms().saturating_add(it));
        let record = Record::encode(&self.request.key, version, expiry_ms, value);

        self.dead = self.record.replace(record.clone()).map(|it| it.version());
        self.phase = Phase::Collect;
        self.tally = WriteTally::new(round, self.alive);
        self.forwarders = ReplicaMask::EMPTY;
        for (datacenter, members) in self.replicas.datacenters() {
            let mut up = members.and(self.alive).iter();
            if *datacenter == self.local_dc {
                effects.extend(up.map(|to| send(to, ReplicaMask::EMPTY, &record)));
            } else if let Some(to) = up.next() {
                let pass_on = members.and(self.alive).without(ReplicaMask::only(to));
                if !pass_on.is_empty() {
                    self.forwarders.insert(to);
                }
                effects.push(send(to, pass_on, &record));
            }
        }
        self.unkept = ReplicaMask::EMPTY;
        let of_dead_stamp = std::mem::take(&mut self.hinted);
        let mut hints = of_dead_stamp.or(self.replicas.all().without(self.alive));
        if Mutant::DeadHintKept.is_on() {
            hints = hints.without(of_dead_stamp);
        }
        for to in hints.iter() {
            let replaces = self.dead.filter(|_| of_dead_stamp.contains(to));
            self.hinted.insert(to);
            effects.push(WriteEffect::Hint { to, record: record.clone(), replaces });
        }
        self.collect(effects);
    }

    fn queried(&mut self, from: ReplicaIndex, newest: Version, effects: &mut Vec<WriteEffect>) {
        if let Phase::Query { awaited, answered, .. } = &mut self.phase
            && awaited.contains(from)
        {
            awaited.remove(from);
            answered.insert(from);
            self.highest = self.highest.max(newest.hlc);
            self.collect_query(effects);
        }
    }

    fn query_refused(
        &mut self,
        from: ReplicaIndex,
        answer: WriteAnswer,
        effects: &mut Vec<WriteEffect>,
    ) {
        if let Phase::Query { awaited, .. } = &mut self.phase
            && let WriteAnswer::Refused(refusal) = answer
            && awaited.contains(from)
        {
            awaited.remove(from);
            self.refusals.push((from, refusal));
            self.collect_query(effects);
        }
    }

    fn answered(
        &mut self,
        from: ReplicaIndex,
        answer: WriteAnswer,
        effects: &mut Vec<WriteEffect>,
    ) {
        let vote = match answer {
            WriteAnswer::Applied | WriteAnswer::Held => Vote::Held,
            WriteAnswer::Superseded { never, .. } => Vote::Superseded { never },
            WriteAnswer::Refused(_) => Vote::Failed,
        };
        if !self.tally.record(from, vote) {
            return;
        }
        match answer {
            WriteAnswer::Superseded { .. } if Mutant::RestampAnywhere.is_on() => {}
            WriteAnswer::Superseded { newest, .. } => self.highest = self.highest.max(newest.hlc),
            WriteAnswer::Refused(refusal) => {
                self.refusals.push((from, refusal));
                if may_accept_later(refusal) {
                    self.hint(from, effects);
                }
                // It may have refused to pass the mutation on, too.
                self.relieve(from, effects);
            }
            WriteAnswer::Applied | WriteAnswer::Held => {}
        }
        self.collect(effects);
    }

    fn unreachable(&mut self, replicas: ReplicaMask, effects: &mut Vec<WriteEffect>) {
        let lost = self.alive.and(replicas);
        self.alive = self.alive.without(lost);
        match &mut self.phase {
            Phase::Query { awaited, .. } => {
                *awaited = awaited.without(lost);
                self.collect_query(effects);
            }
            Phase::Collect => {
                for it in lost.iter() {
                    if self.tally.record(it, Vote::Failed) {
                        self.hint(it, effects);
                    }
                }
                for it in lost.iter() {
                    self.relieve(it, effects);
                }
                self.collect(effects);
            }
            Phase::Stamp | Phase::Finished => {}
        }
    }

    /// F12: the votes so far count no more, and all are asked once more for the same stamp. That a stamp
    /// was found dead cannot be taken back once it is to be replaced, and a stamp that was asked for may
    /// come too late to be above what is answered now: such a write ends.
    fn count_anew(&mut self, effects: &mut Vec<WriteEffect>) {
        match &mut self.phase {
            _ if self.replied => {}
            Phase::Query { awaited, answered, .. } => {
                *answered = ReplicaMask::EMPTY;
                *awaited = self.alive.and(self.request.requirement.mask());
                self.refusals.clear();
                self.ask_again(self.alive, effects);
                self.collect_query(effects);
            }
            Phase::Collect if self.dead.is_none() => {
                self.tally = WriteTally::new(Round::Again, self.alive);
                self.forwarders = ReplicaMask::EMPTY;
                self.refusals.clear();
                // A vote of theirs may have been counted: then they have no hint.
                for it in self.replicas.all().without(self.alive).iter() {
                    self.hint(it, effects);
                }
                self.ask_again(self.alive, effects);
                self.collect(effects);
            }
            Phase::Stamp => {
                let failed = self.failed();
                self.finish(Err(failed), effects);
                self.phase = Phase::Finished;
            }
            Phase::Collect => {
                let failed = self.failed();
                self.finish(Err(failed), effects);
                self.collect(effects);
            }
            Phase::Finished => {}
        }
    }

    /// Asks those once more, directly, that have not answered.
    fn ask_again(&self, replicas: ReplicaMask, effects: &mut Vec<WriteEffect>) {
        if Mutant::NotAskedAgain.is_on() {
            return;
        }
        match (&self.phase, &self.record) {
            (Phase::Query { awaited, .. }, _) => {
                let to = awaited.and(replicas);
                if !to.is_empty() {
                    effects.push(WriteEffect::Query { to });
                }
            }
            (Phase::Collect, Some(record)) => {
                let silent = self.tally.awaited().and(replicas);
                effects.extend(silent.iter().map(|to| send(to, ReplicaMask::EMPTY, record)));
            }
            _ => {}
        }
    }

    /// Sends directly to those to whom a forwarder may not have passed the mutation on.
    fn relieve(&mut self, forwarder: ReplicaIndex, effects: &mut Vec<WriteEffect>) {
        if !self.forwarders.contains(forwarder) {
            return;
        }
        self.forwarders.remove(forwarder);
        let mut datacenters = self.replicas.datacenters().iter();
        let neighbours = datacenters.find(|it| it.1.contains(forwarder)).map(|it| it.1);
        let neighbours = neighbours.unwrap_or_default().without(ReplicaMask::only(forwarder));
        let silent = neighbours.and(self.tally.awaited());
        let record = self.record.as_ref().expect("a forwarder was sent a record");
        effects.extend(silent.iter().map(|to| send(to, ReplicaMask::EMPTY, record)));
    }

    fn hint(&mut self, to: ReplicaIndex, effects: &mut Vec<WriteEffect>) {
        if self.hinted.insert(to) {
            let record = self.record.clone().expect("hints follow a stamp");
            effects.push(WriteEffect::Hint { to, record, replaces: None });
        }
    }

    fn collect_query(&mut self, effects: &mut Vec<WriteEffect>) {
        let Phase::Query { stamp, awaited, answered } = self.phase else { return };
        let scopes = self.request.requirement.scopes();
        if scopes.iter().all(|it| it.count(answered) >= it.quorum) {
            if stamp > self.highest {
                self.execute(Round::Ordered, stamp, effects);
            } else {
                self.phase = Phase::Stamp;
                effects.push(WriteEffect::NeedStamp { above: self.highest });
            }
        } else if scopes.iter().any(|it| it.count(answered.or(awaited)) < it.quorum) {
            let failed = self.failed();
            self.finish(Err(failed), effects);
            self.phase = Phase::Finished;
        }
    }

    /// Judges the stamp in force, until the client has its answer; then waits for the silent.
    fn collect(&mut self, effects: &mut Vec<WriteEffect>) {
        let any = self.request.requirement.is_any();
        let hint_counts = any || Mutant::HintCountsAsAnswer.is_on();
        if !self.replied {
            match self.tally.outcome(&self.request.requirement) {
                _ if hint_counts && self.hint_durable => self.finish(Ok(self.reply()), effects),
                Outcome::Reached => self.finish(Ok(self.reply()), effects),
                Outcome::Dead if self.validate().is_ok() && !Mutant::DeadNotReplaced.is_on() => {
                    self.phase = Phase::Stamp;
                    self.highest = self.highest.max(self.version().hlc);
                    effects.push(WriteEffect::NeedStamp { above: self.highest });
                    return;
                }
                // A hint on its way to the disk may still be the one that ANY requires.
                Outcome::Lost if any && !self.hinted.without(self.unkept).is_empty() => {}
                // A second stamp that cannot be acknowledged would only add to what is unknown.
                Outcome::Dead | Outcome::Lost => {
                    let failed = self.failed();
                    self.finish(Err(failed), effects);
                }
                Outcome::Pending => {}
            }
        }
        if self.replied && self.tally.awaited().is_empty() {
            self.phase = Phase::Finished;
        }
    }

    fn deadline(&mut self, effects: &mut Vec<WriteEffect>) {
        if self.phase == Phase::Collect {
            for it in self.tally.awaited().iter() {
                self.hint(it, effects);
            }
        }
        if !self.replied {
            let (required, acked) = (self.request.requirement.required(), self.acked());
            let timeout = WriteError::Timeout { required, acked, versions: self.stamped() };
            self.finish(Err(timeout), effects);
        }
        self.phase = Phase::Finished;
    }

    fn finish(&mut self, reply: Result<WriteReply, WriteError>, effects: &mut Vec<WriteEffect>) {
        self.replied = true;
        effects.push(WriteEffect::Reply(reply));
    }

    fn reply(&self) -> WriteReply {
        WriteReply {
            version: self.version(),
            required: self.request.requirement.required(),
            answered: self.tally.answered(),
            applied: self.tally.held(),
            superseded_concurrent: !self.tally.superseded().is_empty(),
        }
    }

    fn failed(&mut self) -> WriteError {
        let refusals = std::mem::take(&mut self.refusals);
        let (required, acked) = (self.request.requirement.required(), self.acked());
        WriteError::Failed { required, acked, refusals, versions: self.stamped() }
    }

    fn acked(&self) -> u8 {
        let acked = self.tally.acked();
        self.request.requirement.scopes().iter().map(|it| it.count(acked)).sum()
    }

    /// True for the clock of the stamp in force: answers to a dead one count for nothing (P3).
    fn is_in_force(&self, hlc: Hlc) -> bool {
        hlc == self.version().hlc || Mutant::CountOverStamps.is_on()
    }

    fn version(&self) -> Version {
        self.record.as_ref().map_or(Version::ABSENT, Record::version)
    }

    fn stamped(&self) -> Vec<Version> {
        self.dead.into_iter().chain(self.record.as_ref().map(Record::version)).collect()
    }
}

fn send(to: ReplicaIndex, pass_on: ReplicaMask, record: &Record) -> WriteEffect {
    WriteEffect::Send { to, pass_on, record: record.clone() }
}

/// True for refusals that say nothing against the mutation itself.
fn may_accept_later(refusal: Refusal) -> bool {
    match refusal {
        Refusal::StaleLayout
        | Refusal::NotReady
        | Refusal::Failed
        | Refusal::DiskFull
        | Refusal::Overloaded => true,
        Refusal::BelowFence | Refusal::ClockAhead | Refusal::Corrupt => false,
    }
}
