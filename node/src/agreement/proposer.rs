//! One attempt after the other to have a metadata decided.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{FollowError, Metadata, MetadataHash, NodeId};

use super::{Accepted, Answer, Ask, Ballot, Refusal, Reply, Request, acceptors};

/// Proposes one metadata, and learns what is decided in its place if another was there first.
///
/// The deadline is the caller's. Giving up is safe at any time, and leaves the outcome unknown: what
/// was proposed may have been decided, or be decided by whoever proposes next.
#[derive(Debug)]
pub struct Proposer {
    parent: Option<Metadata>,
    own: Metadata,
    acceptors: Vec<NodeId>,
    required: usize,
    ballot: Ballot,
    /// The highest ballot heard of.
    highest: Ballot,
    phase: Phase,
    answers: BTreeMap<NodeId, Stand>,
}

#[derive(Debug)]
enum Phase {
    /// Before the start, and between an attempt that failed and the next.
    Idle,
    /// Asking for promises; the accepted value of the highest ballot so far, and who reported it.
    Preparing(Option<(NodeId, Ballot, Metadata)>),
    /// Asking to accept this.
    Accepting(Metadata),
    Done,
}

/// Where an acceptor stands in the present attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Agrees,
    /// Not in this attempt, but perhaps in the next.
    Later,
    Never(Refusal),
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this to these nodes. One of them may be the caller's own.
    Send {
        /// The acceptors.
        to: Vec<NodeId>,
        /// The message.
        request: Request,
    },
    /// Send this node the metadata that is the parent here: it is behind.
    Teach(NodeId),
    /// This attempt has failed. Call `retry` after a random pause, so that proposers that outbid each
    /// other get out of step.
    Pause,
    /// It is over.
    Done(Outcome),
}

/// How a decision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is the next metadata.
    Decided {
        /// The metadata.
        metadata: Metadata,
        /// True if it is what this proposer was made for.
        ours: bool,
    },
    /// The instance was decided, and others after it: the proposal has to be made anew, unless it
    /// turns out to be part of this.
    Overtaken {
        /// The newest metadata heard of.
        newest: Metadata,
    },
    /// A node of the first layout belongs to a cluster of other nodes (then `other` is that cluster's
    /// newest metadata), or has accepted a first metadata for other nodes, which might be decided. A
    /// proposer for it finishes it; nothing else that names the node can be decided before.
    Conflict {
        /// The node.
        node: NodeId,
        /// What it has accepted, or belongs to.
        other: Metadata,
    },
    /// Too many acceptors refuse for good. Nothing is known to be decided.
    Refused {
        /// One of them.
        node: NodeId,
        /// Why.
        reason: Refusal,
    },
}

/// How far the present attempt has come, for errors that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Acceptors that must agree.
    pub required: usize,
    /// Acceptors that agree.
    pub agreed: usize,
    /// Acceptors that have not answered.
    pub silent: Vec<NodeId>,
}

impl Proposer {
    /// Prepares to propose `own` as the successor of `parent`, or as a cluster's first metadata.
    ///
    /// `run` must be another one for every proposer that this node ever makes, restarts included.
    /// Fails if `own` is no successor of `parent`.
    pub fn new(
        parent: Option<Metadata>,
        own: Metadata,
        this: NodeId,
        run: u64,
    ) -> Result<Self, FollowError> {
        own.check_follows(parent.as_ref())?;
        let acceptors = match &parent {
            Some(parent) => acceptors(parent),
            None => nodes_of(&own),
        };
        let required = if parent.is_some() { acceptors.len() / 2 + 1 } else { acceptors.len() };
        let ballot = Ballot { round: 0, node: this, run };
        let (highest, phase, answers) = (ballot, Phase::Idle, BTreeMap::new());
        Ok(Self { parent, own, acceptors, required, ballot, highest, phase, answers })
    }

    /// Starts the first attempt, or another when `Step::Pause` was given or messages seem to be lost.
    /// Nothing once it is over.
    pub fn retry(&mut self) -> Vec<Step> {
        if matches!(self.phase, Phase::Done) {
            return Vec::new();
        }
        // A round of u64::MAX can only come from a broken peer; the attempt is then outbid for ever.
        self.ballot.round = self.highest.round.saturating_add(1);
        self.phase = Phase::Preparing(None);
        self.ask(Ask::Prepare)
    }

    /// Takes an acceptor's answer. Answers to earlier attempts, repeated ones and those of strangers
    /// change nothing, unless they tell of a decision.
    pub fn handle(&mut self, from: NodeId, reply: Reply) -> Vec<Step> {
        let over = matches!(self.phase, Phase::Done);
        if over || reply.instance != self.instance() || !self.acceptors.contains(&from) {
            return Vec::new();
        }
        match (reply.answer, reply.ballot == self.ballot) {
            (Answer::Decided(newest), _) => self.decided_elsewhere(from, &newest),
            (Answer::Outbid(ballot), current) => {
                self.highest = self.highest.max(ballot);
                if current { self.note(from, Stand::Later) } else { Vec::new() }
            }
            (_, false) => Vec::new(),
            (Answer::Behind { .. }, true) => {
                let mut steps = vec![Step::Teach(from)];
                steps.extend(self.note(from, Stand::Later));
                steps
            }
            (Answer::Refused(reason), true) => self.note(from, Stand::Never(reason)),
            (Answer::Promised(accepted), true) => self.promised(from, accepted),
            (Answer::Accepted, true) => match self.phase {
                Phase::Accepting(_) => self.note(from, Stand::Agrees),
                Phase::Idle | Phase::Preparing(_) | Phase::Done => Vec::new(),
            },
        }
    }

    /// Acceptors that have to agree.
    pub fn required(&self) -> usize {
        self.required
    }

    /// All acceptors.
    pub fn acceptors(&self) -> &[NodeId] {
        &self.acceptors
    }

    /// How far the present attempt has come.
    pub fn progress(&self) -> Progress {
        let silent = self.acceptors.iter().filter(|it| !self.answers.contains_key(it));
        let silent = silent.copied().collect();
        Progress { required: self.required, agreed: self.count(Stand::Agrees), silent }
    }

    /// The hash of the parent.
    pub fn instance(&self) -> MetadataHash {
        self.own.parent()
    }

    fn promised(&mut self, from: NodeId, accepted: Option<Accepted>) -> Vec<Step> {
        let Phase::Preparing(best) = &mut self.phase else { return Vec::new() };
        if let Some(Accepted { ballot, value }) = accepted {
            let valid = |it: &Metadata| it.check_follows(self.parent.as_ref()).is_ok();
            let Some(value) = Metadata::decode(&value).ok().filter(valid) else {
                return self.note(from, Stand::Never(Refusal::InvalidValue));
            };
            if best.as_ref().is_none_or(|best| best.1 < ballot) {
                *best = Some((from, ballot, value));
            }
        }
        self.note(from, Stand::Agrees)
    }

    fn note(&mut self, from: NodeId, stand: Stand) -> Vec<Step> {
        if matches!(self.phase, Phase::Idle) || self.answers.contains_key(&from) {
            return Vec::new();
        }
        self.answers.insert(from, stand);
        if self.count(Stand::Agrees) >= self.required {
            return self.agreed();
        }
        let spare = self.acceptors.len() - self.required;
        let refusals = self.answers.iter().filter_map(|(node, stand)| match stand {
            Stand::Never(reason) => Some((*node, *reason)),
            Stand::Agrees | Stand::Later => None,
        });
        let refusals: Vec<_> = refusals.collect();
        if let Some((node, reason)) = refusals.get(spare) {
            return self.finish(Outcome::Refused { node: *node, reason: *reason });
        }
        if refusals.len() + self.count(Stand::Later) > spare {
            self.phase = Phase::Idle;
            return vec![Step::Pause];
        }
        Vec::new()
    }

    /// Enough acceptors agree to what this phase asks.
    fn agreed(&mut self) -> Vec<Step> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Preparing(best) => {
                let value = match best {
                    None => self.own.clone(),
                    // All nodes of that other layout would have to be asked, and are not.
                    Some((node, _, other)) if self.parent.is_none() && !self.same_nodes(&other) => {
                        return self.finish(Outcome::Conflict { node, other });
                    }
                    Some((_, _, other)) => other,
                };
                let bytes = Bytes::from(value.encode());
                self.phase = Phase::Accepting(value);
                self.ask(Ask::Accept(bytes))
            }
            Phase::Accepting(metadata) => {
                let ours = metadata.hash() == self.own.hash();
                self.finish(Outcome::Decided { metadata, ours })
            }
            Phase::Idle | Phase::Done => unreachable!("answers are noted only while asking"),
        }
    }

    fn decided_elsewhere(&mut self, from: NodeId, newest: &[u8]) -> Vec<Step> {
        let of_cluster = |it: &Metadata| {
            self.parent.as_ref().is_none_or(|parent| it.cluster() == parent.cluster())
        };
        let Some(newest) = Metadata::decode(newest).ok().filter(of_cluster) else {
            return self.note(from, Stand::Never(Refusal::InvalidValue));
        };
        if self.parent.is_none() && !self.same_nodes(&newest) {
            return self.finish(Outcome::Conflict { node: from, other: newest });
        }
        if newest.sequence() > self.own.sequence() {
            return self.finish(Outcome::Overtaken { newest });
        }
        if newest.check_follows(self.parent.as_ref()).is_err() {
            let reason = Refusal::OtherParent { hash: newest.hash() };
            return self.note(from, Stand::Never(reason));
        }
        let ours = newest.hash() == self.own.hash();
        self.finish(Outcome::Decided { metadata: newest, ours })
    }

    fn ask(&mut self, ask: Ask) -> Vec<Step> {
        self.highest = self.highest.max(self.ballot);
        self.answers.clear();
        let (instance, sequence) = (self.instance(), self.own.sequence());
        let request = Request { instance, sequence, ballot: self.ballot, ask };
        vec![Step::Send { to: self.acceptors.clone(), request }]
    }

    fn finish(&mut self, outcome: Outcome) -> Vec<Step> {
        self.phase = Phase::Done;
        vec![Step::Done(outcome)]
    }

    fn count(&self, stand: Stand) -> usize {
        self.answers.values().filter(|it| **it == stand).count()
    }

    fn same_nodes(&self, other: &Metadata) -> bool {
        nodes_of(other) == self.acceptors
    }
}

fn nodes_of(metadata: &Metadata) -> Vec<NodeId> {
    metadata.layout().nodes().iter().map(|it| it.id).collect()
}
