//! The memory of one decision: what was promised and what was accepted.

use model::{Metadata, MetadataHash, NodeId, StorageId};

use super::{Accepted, Answer, Ask, Ballot, Refusal, Reply, Request, acceptors};

/// An acceptor's state in one instance: to be kept on disk under the instance's hash, until the
/// node's own metadata is past the instance and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptor {
    /// The database directory that holds the state. In another one it proves nothing.
    pub(super) storage: StorageId,
    pub(super) abstains: bool,
    pub(super) promised: Ballot,
    pub(super) accepted: Option<Accepted>,
}

impl Acceptor {
    /// The state of an instance of which this directory has heard nothing.
    pub fn new(storage: StorageId) -> Self {
        Self { storage, abstains: false, promised: Ballot::ZERO, accepted: None }
    }

    /// The state of an instance of which this directory may have forgotten something: one that was
    /// restored or rolled back while the instance was open. It takes no part in the decision.
    pub fn abstaining(storage: StorageId) -> Self {
        Self { abstains: true, ..Self::new(storage) }
    }

    /// What this acceptor has accepted.
    pub fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    /// Judges one request. `current` is the node's own metadata, `None` for a node that has joined
    /// no cluster.
    ///
    /// The returned state, if there is one, replaces this one, and must be durable before the reply
    /// is sent. Until then no other request of the instance may be judged. If it cannot be made
    /// durable, nothing is to be sent.
    pub fn handle(
        &self,
        this: NodeId,
        current: Option<&Metadata>,
        request: &Request,
    ) -> (Option<Self>, Reply) {
        let (next, answer) = match unable(this, current, request) {
            Some(answer) => (None, answer),
            None if self.abstains => (None, Answer::Refused(Refusal::Abstains)),
            None => self.judge(this, current, request),
        };
        let reply = Reply { instance: request.instance, ballot: request.ballot, answer };
        (next, reply)
    }

    fn judge(
        &self,
        this: NodeId,
        current: Option<&Metadata>,
        request: &Request,
    ) -> (Option<Self>, Answer) {
        let ballot = request.ballot;
        if ballot < self.promised {
            return (None, Answer::Outbid(self.promised));
        }
        let mut next = Self { promised: ballot, ..self.clone() };
        let answer = match &request.ask {
            Ask::Prepare => Answer::Promised(self.accepted.clone()),
            Ask::Accept(value) => {
                if let Err(refusal) = check_value(this, current, value) {
                    return (None, Answer::Refused(refusal));
                }
                next.accepted = Some(Accepted { ballot, value: value.clone() });
                Answer::Accepted
            }
        };
        ((next != *self).then_some(next), answer)
    }
}

/// The answer of a node that cannot judge a request, whatever it has promised.
fn unable(this: NodeId, current: Option<&Metadata>, request: &Request) -> Option<Answer> {
    let sequence = current.map_or(0, Metadata::sequence);
    if let Some(newest) = current.filter(|_| sequence >= request.sequence) {
        return Some(Answer::Decided(newest.encode().into()));
    }
    if sequence + 1 < request.sequence {
        return Some(Answer::Behind { sequence });
    }
    let hash = current.map_or(MetadataHash::NONE, Metadata::hash);
    if hash != request.instance {
        return Some(Answer::Refused(Refusal::OtherParent { hash }));
    }
    let takes_part = current.is_none_or(|it| acceptors(it).contains(&this));
    (!takes_part).then_some(Answer::Refused(Refusal::NotAnAcceptor))
}

fn check_value(this: NodeId, current: Option<&Metadata>, value: &[u8]) -> Result<(), Refusal> {
    let value = Metadata::decode(value).ok().ok_or(Refusal::InvalidValue)?;
    value.check_follows(current).ok().ok_or(Refusal::InvalidValue)?;
    if current.is_none() && value.layout().node_index(this).is_none() {
        return Err(Refusal::NotAnAcceptor);
    }
    Ok(())
}
