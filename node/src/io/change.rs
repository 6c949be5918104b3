//! Changes of the metadata: proposes them, takes part in others' proposals, keeps promises on disk.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use model::{Change, ChangeError, Metadata, Mutant, NodeId};
use proto::{CallError, CallOutcome, Reason, internal::control::Control as Kind};
use rand::RngExt;
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout_at},
};

use super::{call::timeout_of, control::send, io_loop::IoLoop};
use crate::{
    agreement::{Acceptor, Outcome, Proposer, Refusal, Reply, Request, Step},
    counters::Counters,
    shared::{Shared, system_key},
    storage::{Space, StorageError},
};

/// A node's part in agreeing on metadata.
#[derive(Default)]
pub struct Changes {
    /// One metadata is adopted at a time.
    pub adopting: Mutex<()>,
    /// One request is judged at a time: its promise must be durable before the next is.
    accepting: Mutex<()>,
    /// One change is proposed at a time by this node.
    proposing: Mutex<u64>,
    replies: std::sync::Mutex<Option<mpsc::Sender<(NodeId, Reply)>>>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The change makes no sense. Nothing was proposed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Too few nodes can be reached. Nothing was proposed.
    #[error("{required} nodes have to agree, and {reachable} can be reached: not {}", list(.missing))]
    TooFew {
        /// Nodes that must agree.
        required: usize,
        /// Nodes that can be reached, with this one.
        reachable: usize,
        /// The others.
        missing: Vec<NodeId>,
    },
    /// Another change that was asked for here took all the time. Nothing was proposed.
    #[error("another change took all the time of this one's deadline")]
    NoTurn,
    /// Too few nodes took part in time. The change may have been made, or may still be.
    #[error("{agreed} of {required} nodes agreed in time; silent: {}", list(.silent))]
    Undecided {
        /// Nodes that must agree.
        required: usize,
        /// Nodes that agreed.
        agreed: usize,
        /// Nodes that did not answer.
        silent: Vec<NodeId>,
    },
    /// Others were decided meanwhile. The change may be a part of them.
    #[error("other changes were decided meanwhile, and this one may be a part of them")]
    Overtaken,
    /// Nodes refuse for good. Nothing is known to be changed.
    #[error("node {node} refuses: {reason}")]
    Refused {
        /// One of them.
        node: NodeId,
        /// Why.
        reason: Refusal,
    },
    /// A first layout of other nodes may have been decided already.
    #[error("node {node} has accepted another first layout, of cluster {cluster}")]
    Conflict {
        /// The node that has.
        node: NodeId,
        /// The cluster that the other layout makes.
        cluster: model::ClusterId,
    },
    /// The decision is made, and this node's disk cannot keep it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Changes {
    /// Takes a reply for the proposal under way, if there is one.
    pub fn replied(&self, from: NodeId, bytes: Bytes) {
        let Ok(reply) = Reply::decode(&bytes) else {
            tracing::warn!(%from, "an agreement reply makes no sense");
            return;
        };
        let replies = self.replies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(replies) = replies.as_ref() {
            // A full queue drops it; the proposer asks again.
            let _ = replies.try_send((from, reply));
        }
    }

    /// Judges a proposer's request; the answer is durable. `None`: no answer can be given.
    pub async fn accept(&self, shared: &Arc<Shared>, from: NodeId, bytes: Bytes) -> Option<Bytes> {
        let Ok(request) = Request::decode(&bytes) else {
            Counters::count(&shared.counters.peer_messages_malformed);
            tracing::warn!(%from, "an agreement request makes no sense");
            return None;
        };
        if shared.floors.is_shut() && shared.view.load().metadata().is_some() {
            // The directory may be one from before, with promises forgotten: the proposer asks again (F13).
            return None;
        }
        let reply = self.judge(shared, &request).await?;
        Some(reply.encode().into())
    }

    async fn judge(&self, shared: &Arc<Shared>, request: &Request) -> Option<Reply> {
        let _turn = self.accepting.lock().await;
        let mut key = [system_key::AGREEMENT, &request.instance.0.to_be_bytes()].concat();
        if Mutant::PromiseForgotten.is_on() {
            key.extend(shared.identity.incarnation.to_be_bytes());
        }
        let key = Bytes::from(key);
        let read_key = key.clone();
        let read = Arc::clone(shared).blocking(move |shared| {
            let stored = shared.world.storage.get(Space::System, &read_key);
            stored.map_err(|error| {
                tracing::error!(%error, "what this node promised cannot be read");
                model::Refusal::Failed
            })
        });
        let storage = shared.storage_id();
        let stored = read.await.ok()?;
        let abstains = Arc::clone(shared).blocking(|it| Ok(it.abstains_up_to())).await.ok()?;
        let acceptor = match stored {
            _ if abstains.is_some_and(|it| request.sequence <= it) => Acceptor::abstaining(storage),
            Some(stored) => match Acceptor::decode(&stored, storage) {
                Ok(acceptor) => acceptor,
                Err(error) => {
                    tracing::error!(%error, "what this node promised cannot be read: it abstains");
                    Acceptor::abstaining(storage)
                }
            },
            None => Acceptor::new(storage),
        };
        let view = shared.view.load_full();
        let current = view.metadata().map(AsRef::as_ref);
        let (next, reply) = acceptor.handle(shared.identity.node, current, request);
        if let Some(next) = next {
            shared.make_durable(key, Some(next.encode().into())).await.ok()?;
        }
        Some(reply)
    }
}

impl IoLoop {
    /// Has a change of the metadata decided, adopts it, and returns the metadata with it.
    /// `make` builds the successor of the metadata in force; it is called anew for each attempt.
    pub async fn propose(
        &self,
        deadline: Instant,
        make: impl Fn(Option<&Metadata>) -> Result<Metadata, ChangeError>,
    ) -> Result<Arc<Metadata>, ProposeError> {
        let shared = &self.shared;
        let turn = timeout_at(deadline, shared.changes.proposing.lock()).await;
        let mut run = turn.map_err(|_elapsed| ProposeError::NoTurn)?;
        let (mut is_first, mut overtaken) = (true, false);
        loop {
            *run += 1;
            // The low bits of an incarnation are free at a start.
            let number = shared.identity.incarnation | *run & 0xf_ffff;
            let view = shared.view.load_full();
            let parent = view.metadata().map(|it| Metadata::clone(it));
            let own = match make(parent.as_ref()) {
                // Because of what was proposed here, maybe.
                Err(_) if overtaken => return Err(ProposeError::Overtaken),
                made => made?,
            };
            let hash = own.hash();
            let proposer = Proposer::new(parent, own, shared.identity.node, number)
                .expect("a successor follows its parent");
            self.await_enough(&proposer, deadline, std::mem::take(&mut is_first)).await?;
            let (metadata, whose) = self.decide(proposer, deadline).await?;
            // Another one was decided on top of it.
            let ours = whose == Whose::Own || metadata.parent() == hash;
            overtaken |= whose == Whose::Overtaken;
            shared.adopt_durably(metadata).await?;
            if ours {
                let view = shared.view.load_full();
                let metadata = view.metadata().expect("metadata was just adopted");
                self.await_spread(metadata.sequence(), deadline).await;
                return Ok(Arc::clone(metadata));
            }
        }
    }

    /// Waits until as many nodes can be reached as have to agree: a moment, for those that have just started.
    async fn await_enough(
        &self,
        proposer: &Proposer,
        deadline: Instant,
        is_first: bool,
    ) -> Result<(), ProposeError> {
        let until = deadline.min(Instant::now() + REACH_TIMEOUT);
        loop {
            let (now_us, own) = (self.shared.elapsed_us(), self.shared.identity.node);
            let is_reachable = |node: &NodeId| {
                let status = self.shared.status_if_known(*node);
                *node == own || status.is_some_and(|it| it.is_reachable(now_us))
            };
            let acceptors = proposer.acceptors().iter().copied();
            let (up, missing): (Vec<_>, Vec<_>) = acceptors.partition(is_reachable);
            let (required, reachable) = (proposer.required(), up.len());
            if reachable >= required {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(match is_first {
                    true => ProposeError::TooFew { required, reachable, missing },
                    // What was proposed before may be part of what was decided since.
                    false => ProposeError::Undecided { required, agreed: 0, silent: missing },
                });
            }
            sleep(REACH_POLL).await;
        }
    }

    /// Waits until the nodes that are up know a metadata, so that whoever asked for the change finds
    /// it at any of them; not for long, and nothing depends on it.
    async fn await_spread(&self, sequence: u64, deadline: Instant) {
        let until = deadline.min(Instant::now() + SPREAD_TIMEOUT);
        let behind = || {
            let now_us = self.shared.elapsed_us();
            let state = self.lock();
            let mut up = state.peers.iter().filter(|it| it.status.is_up(now_us));
            up.any(|it| it.status.metadata_sequence.load(Ordering::Relaxed) < sequence)
        };
        while behind() && Instant::now() < until {
            sleep(SPREAD_POLL).await;
        }
    }

    /// Runs one proposer to its end; whose proposal was decided.
    async fn decide(
        &self,
        mut proposer: Proposer,
        deadline: Instant,
    ) -> Result<(Metadata, Whose), ProposeError> {
        let (sender, mut replies) = mpsc::channel(256);
        let changes = &self.shared.changes;
        let slot = || changes.replies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *slot() = Some(sender);
        let mut steps = proposer.retry();
        let result = loop {
            let mut pause = false;
            let mut outcome = None;
            for step in std::mem::take(&mut steps) {
                match step {
                    Step::Send { to, request } => self.send_request(&to, &request),
                    Step::Teach(node) => self.teach(node),
                    Step::Pause => pause = true,
                    Step::Done(it) => outcome = Some(it),
                }
            }
            if let Some(outcome) = outcome {
                break ended(outcome);
            }
            if pause && Instant::now() < deadline {
                let ms = self.lock().random.random_range(20..200);
                sleep(Duration::from_millis(ms)).await;
                steps = proposer.retry();
                continue;
            }
            let again = (Instant::now() + ASK_AGAIN).min(deadline);
            match timeout_at(again, replies.recv()).await {
                Ok(Some((from, reply))) => steps = proposer.handle(from, reply),
                Ok(None) => unreachable!("this function holds a sender"),
                Err(_) if Instant::now() >= deadline => {
                    let progress = proposer.progress();
                    break Err(ProposeError::Undecided {
                        required: progress.required,
                        agreed: progress.agreed,
                        silent: progress.silent,
                    });
                }
                Err(_) => steps = proposer.retry(),
            }
        };
        *slot() = None;
        result
    }

    fn send_request(&self, to: &[NodeId], request: &Request) {
        let bytes = Bytes::from(request.encode());
        let shared = &self.shared;
        for node in to {
            if *node == shared.identity.node {
                let (shared, bytes, node) = (Arc::clone(shared), bytes.clone(), *node);
                tokio::spawn(async move {
                    if let Some(reply) = shared.changes.accept(&shared, node, bytes).await {
                        shared.changes.replied(node, reply);
                    }
                });
            } else if let Some(peer) = self.lock().peers.by_node(*node) {
                send(&peer.outbox, Kind::AgreementRequest(bytes.clone()));
            }
        }
    }

    fn teach(&self, node: NodeId) {
        let view = self.shared.view.load();
        if let (Some(peer), Some(metadata)) = (self.lock().peers.by_node(node), view.metadata()) {
            send(&peer.outbox, Kind::Metadata(metadata.encode().into()));
        }
    }
}

/// Whose proposal has become the metadata in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Own,
    Another,
    /// Later ones were decided. What was proposed may be a part of them.
    Overtaken,
}

fn ended(outcome: Outcome) -> Result<(Metadata, Whose), ProposeError> {
    match outcome {
        Outcome::Decided { metadata, ours: true } => Ok((metadata, Whose::Own)),
        Outcome::Decided { metadata, ours: false } => Ok((metadata, Whose::Another)),
        Outcome::Overtaken { newest } => Ok((newest, Whose::Overtaken)),
        Outcome::Conflict { node, other } => {
            Err(ProposeError::Conflict { node, cluster: other.cluster() })
        }
        Outcome::Refused { node, reason } => Err(ProposeError::Refused { node, reason }),
    }
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

impl From<ProposeError> for CallError {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        match error {
            ProposeError::Change(change) => change_error(&change),
            ProposeError::NoTurn => Self::new(Reason::DeadlinePassed, message),
            ProposeError::TooFew { required, reachable, .. } => {
                let error = Self::new(Reason::AgreementFailed, message)
                    .with("required", required)
                    .with("alive", reachable);
                Self { outcome: CallOutcome::NotApplied, ..error }
            }
            ProposeError::Undecided { required, agreed, .. } => {
                Self::new(Reason::AgreementFailed, message)
                    .with("required", required)
                    .with("received", agreed)
            }
            // Of a failed disk here, too: it is decided, and others keep it.
            ProposeError::Refused { .. }
            | ProposeError::Conflict { .. }
            | ProposeError::Overtaken
            | ProposeError::Storage(_) => Self::new(Reason::AgreementFailed, message),
        }
    }
}

fn change_error(error: &ChangeError) -> CallError {
    let reason = match error {
        ChangeError::Exists { .. } => Reason::KeyspaceExists,
        ChangeError::NotFound { .. } => Reason::KeyspaceNotFound,
        ChangeError::LayoutVersion { .. } => Reason::PlanChanged,
        ChangeError::Partitions { .. } | ChangeError::LayoutTooSmall { .. } => {
            Reason::LayoutInvalid
        }
        _ => Reason::KeyspaceInvalid,
    };
    CallError::new(reason, error.to_string()).at_field("keyspace")
}

/// The successor of the metadata in force by one change.
pub(super) fn successor(
    before: Option<&Metadata>,
    change: Change,
    limits: &model::Limits,
) -> Result<Metadata, ChangeError> {
    let missing = || ChangeError::NotFound { name: "layout".to_owned() };
    before.ok_or_else(missing)?.successor(change, limits)
}

/// When a change has to be decided of which a call with these headers asks: early enough for the answer.
pub(super) fn change_deadline(headers: &HeaderMap) -> Instant {
    let asked = timeout_of(headers).unwrap_or(PROPOSE_TIMEOUT).min(PROPOSE_TIMEOUT);
    Instant::now() + asked - ANSWER_TIME.min(asked / 2)
}

/// How long a change may take to be decided.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// What an answer may take on its way.
const ANSWER_TIME: Duration = Duration::from_millis(250);
/// How long nodes are waited for that cannot be reached.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);
const REACH_POLL: Duration = Duration::from_millis(20);
/// How long a change may take to be known everywhere before it is answered all the same.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(2);
const SPREAD_POLL: Duration = Duration::from_millis(5);
/// When messages are taken for lost.
const ASK_AGAIN: Duration = Duration::from_millis(800);
