//! Agrees on the next metadata: single-decree Paxos, one instance for each parent (rule L5).
//!
//! Pure: says what to make durable, whom to send what, and what was decided. It never waits, sends
//! or writes, and nothing on the data path waits for it. A decided metadata spreads by itself, as
//! part of what nodes tell each other; here is only decided which one it is.
//!
//! The acceptors of an instance follow from the parent, and a majority of them decides. A cluster's
//! first metadata has no parent: its acceptors are all nodes of the layout that it proposes, and all
//! of them must accept. Two proposals that share a node then meet there, as two majorities would.
//!
//! Source: Lamport, "Paxos Made Simple" (2001); the flexible quorums of the first decision after
//! Howard et al., "Flexible Paxos" (2016).

use std::fmt;

use bytes::Bytes;
use model::{Metadata, MetadataHash, NodeDescription, NodeId};

mod acceptor;
mod encoding;
mod proposer;

pub use acceptor::Acceptor;
pub use proposer::{Outcome, Progress, Proposer, Step};

/// The most acceptors of an instance: enough to lose a datacenter of three, few enough to wait for.
pub const ACCEPTORS_MAX: usize = 9;

/// Orders attempts to decide. No two attempts have the same ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot {
    /// Raised with every attempt. Zero only in `Ballot::ZERO`.
    pub round: u64,
    /// The proposer's node.
    pub node: NodeId,
    /// Tells the proposers of one node apart, also those before a restart.
    pub run: u64,
}

impl Ballot {
    /// Below every attempt.
    pub const ZERO: Self = Self { round: 0, node: NodeId(0), run: 0 };
}

/// A proposer's message to an acceptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The hash of the parent; `MetadataHash::NONE` for a cluster's first metadata.
    pub instance: MetadataHash,
    /// The sequence of the metadata to decide.
    pub sequence: u64,
    /// The attempt.
    pub ballot: Ballot,
    /// What is asked.
    pub ask: Ask,
}

/// What a proposer asks of an acceptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To promise to accept nothing of lower ballots, and to say what it has accepted.
    Prepare,
    /// To accept an encoded metadata.
    Accept(Bytes),
}

/// An acceptor's answer. To be sent only when what it reports is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The instance of the request.
    pub instance: MetadataHash,
    /// The attempt of the request.
    pub ballot: Ballot,
    /// The answer.
    pub answer: Answer,
}

/// What an acceptor answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It promises, and has accepted this before.
    Promised(Option<Accepted>),
    /// It has accepted.
    Accepted,
    /// It has promised a higher ballot.
    Outbid(Ballot),
    /// Its metadata is already past the instance: encoded, the newest it knows.
    Decided(Bytes),
    /// Its metadata is older than the parent: it can judge once it has been told.
    Behind {
        /// The sequence it is at; 0 for none.
        sequence: u64,
    },
    /// It will not take part in this, and asking again changes nothing.
    Refused(Refusal),
}

/// A value with the ballot at which it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The attempt that it was accepted in.
    pub ballot: Ballot,
    /// An encoded metadata.
    pub value: Bytes,
}

/// Why an acceptor takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its metadata has the parent's sequence and is another: the cluster has forked.
    #[error("its metadata of the same sequence is {hash}: the cluster has forked")]
    OtherParent {
        /// The hash of its metadata.
        hash: MetadataHash,
    },
    /// It is no acceptor of the instance, or no node of the proposed first layout.
    #[error("it is no acceptor of this decision")]
    NotAnAcceptor,
    /// The value is no metadata that could follow the parent.
    #[error("the proposed metadata is invalid")]
    InvalidValue,
    /// Its disk may have lost what it once promised.
    #[error("its disk was restored, and may have lost what it promised")]
    Abstains,
}

/// The acceptors of the decision that follows `parent`, in order of their ids: at most
/// `ACCEPTORS_MAX` nodes of its layout, taken from datacenters in turn and spread over their racks.
pub fn acceptors(parent: &Metadata) -> Vec<NodeId> {
    let nodes = parent.layout().nodes();
    let mut chosen: Vec<&NodeDescription> = Vec::new();
    while chosen.len() < nodes.len().min(ACCEPTORS_MAX) {
        let of_datacenter = |name: &str| chosen.iter().filter(|it| it.datacenter == name).count();
        let of_rack = |it: &NodeDescription| {
            let same = |other: &&&NodeDescription| {
                other.datacenter == it.datacenter && other.rack == it.rack
            };
            chosen.iter().filter(same).count()
        };
        let left = nodes.iter().filter(|it| chosen.iter().all(|other| other.id != it.id));
        let best = left
            .min_by_key(|it| (of_datacenter(&it.datacenter), &it.datacenter, of_rack(it), it.id));
        chosen.push(best.expect("fewer are chosen than there are"));
    }
    let mut ids: Vec<_> = chosen.into_iter().map(|it| it.id).collect();
    ids.sort();
    ids
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.round, self.node, self.run)
    }
}

#[cfg(test)]
mod tests;
