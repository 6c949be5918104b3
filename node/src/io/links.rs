//! One long-lived link to every other node, from every loop: requests go up, answers come down.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use model::{ClusterId, NodeId, OperationId};
use proto::{
    CallError, Reason,
    internal::{Frame, Hello},
};
use rand::RngExt;
use tokio::{task::JoinSet, time::timeout};
use tonic::Status;

use super::{
    double::Refusals,
    gossip::{DIRECTORY_MAX, Gossip},
    io_loop::IoLoop,
    link::{Link, LinkEnd},
    serve::Caller,
    world::BoxedStream,
};
use crate::{
    counters::Counters,
    liveness::{Linked, Peer},
    membership::Member,
    operation::Token,
    outbox::{FrameStamp, Outbox},
    shared::{PROTOCOL, Shared},
};

/// Where the answers to mutations that were passed on go: the answer queues of the links that other
/// nodes' loops have opened to this node.
#[derive(Default)]
pub struct Origins(ArcSwap<BTreeMap<(NodeId, u32), Arc<Outbox>>>);

impl Origins {
    /// The queue for a coordinator's loop, by its index in the layout.
    pub fn get(&self, shared: &Shared, origin: u32, io_loop: u32) -> Option<Arc<Outbox>> {
        let index = usize::try_from(origin).ok()?;
        let node = shared.view.load().metadata()?.layout().nodes().get(index)?.id;
        self.0.load().get(&(node, io_loop)).cloned()
    }

    fn insert(&self, node: NodeId, io_loop: u32, outbox: &Arc<Outbox>) {
        self.0.rcu(|before| {
            let mut after = BTreeMap::clone(before);
            after.insert((node, io_loop), Arc::clone(outbox));
            after
        });
    }

    fn remove(&self, node: NodeId, io_loop: u32, outbox: &Arc<Outbox>) {
        self.0.rcu(|before| {
            let mut after = BTreeMap::clone(before);
            if after.get(&(node, io_loop)).is_some_and(|it| Arc::ptr_eq(it, outbox)) {
                after.remove(&(node, io_loop));
            }
            after
        });
    }
}

/// The loop that an operation belongs to, as mutations passed on name it.
pub(super) fn io_loop_of(operation: OperationId) -> u32 {
    u32::try_from(Token::of(operation).0.io_loop()).expect("sixteen at most")
}

/// What the links of a node share.
#[derive(Clone)]
pub(super) struct Links {
    /// The membership.
    pub gossip: Arc<Gossip>,
    /// Where answers to mutations passed on go.
    pub origins: Arc<Origins>,
    /// Whether the others let this node in.
    pub refusals: Arc<Refusals>,
}

/// Why there is no link to an address.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLink {
    /// Nobody takes the connection.
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    /// It has ended before both had said hello.
    #[error(transparent)]
    Ended(#[from] LinkEnd),
    /// The other one has not said hello in time.
    #[error("no hello in time")]
    Late,
    /// The other one does not let this node in.
    #[error("{}", .0.message)]
    Refused(CallError),
    /// This node does not take the other one.
    #[error("{}", .0.message)]
    NotTaken(#[from] CallError),
}

impl Links {
    /// Keeps this loop's links up for as long as the node lives: one to every node of the directory, in which
    /// all of the layout are; and tries the addresses to join, again and again. Returns early if one of its
    /// tasks has panicked: its node would count as linked, and never be reached.
    pub(super) async fn run(self, io: Arc<IoLoop>) {
        let mut tasks = JoinSet::new();
        if io.index == 0 {
            for address in io.shared.config.join.clone() {
                tasks.spawn(self.clone().run_join(Arc::clone(&io), address));
            }
            tasks.spawn(self.clone().run_rivals(Arc::clone(&io)));
        }
        let mut directory = self.gossip.directory();
        let mut linked = BTreeSet::new();
        loop {
            let known: Vec<NodeId> = directory.borrow_and_update().keys().copied().collect();
            for node in known {
                if node != io.shared.identity.node && linked.insert(node) {
                    tasks.spawn(self.clone().run_link(Arc::clone(&io), node));
                }
            }
            tokio::select! {
                biased;
                changed = directory.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(ended) = tasks.join_next() => match ended {
                    // It may have been met again since.
                    Ok(Some(forgotten)) => drop(linked.remove(&forgotten)),
                    Err(error) if error.is_panic() => return,
                    Ok(None) | Err(_) => {}
                },
            }
        }
    }

    /// Says hello at an address to join, again and again: the answer introduces the node there, and
    /// the link that follows introduces this one. Also heals a cluster whose nodes have all moved.
    async fn run_join(self, io: Arc<IoLoop>, address: String) -> Option<NodeId> {
        let (mut backoff, mut told) = (Backoff::default(), String::new());
        loop {
            // The link has said hello, which was all.
            let opened = self.open(&io, &address, JOIN_IO_LOOP).await;
            match opened.map(|(_, member, _)| member) {
                Ok(member) if member.node() == io.shared.identity.node => return None,
                Ok(member) => {
                    self.gossip.met(member);
                    tokio::time::sleep(JOIN_AGAIN).await;
                    (backoff, told) = (Backoff::default(), String::new());
                }
                Err(error) => {
                    // It is tried again and again, for as long as the node lives: a person is told while
                    // nobody has been met, and once for each reason.
                    let alone = self.gossip.directory().borrow().is_empty();
                    let reason = error.to_string();
                    if alone && told != reason {
                        tracing::warn!(address, reason, "cannot join yet");
                        told = reason;
                    } else {
                        tracing::debug!(address, reason, "an address to join does not answer");
                    }
                    self.not_let_in(&io, error);
                    backoff.wait(&io).await;
                }
            }
        }
    }

    /// Keeps the link to one node up, until the directory has forgotten it.
    async fn run_link(self, io: Arc<IoLoop>, node: NodeId) -> Option<NodeId> {
        let directory = self.gossip.directory();
        let mut backoff = Backoff::default();
        loop {
            let address = directory.borrow().get(&node).map(|it| it.peer_address.to_string());
            let Some(address) = address else { return Some(node) };
            match self.open(&io, &address, io.index).await {
                Ok((link, member, linked)) if member.node() == node => {
                    self.gossip.met(member);
                    let end = self.run_frames(&io, node, linked, link).await;
                    tracing::debug!(%node, %end, "link lost");
                    backoff = Backoff::default();
                }
                // Another node has taken the address; gossip tells where this one is now.
                Ok((_, member, _)) => self.gossip.met(member),
                Err(error) => {
                    tracing::debug!(%node, address, %error, "no link");
                    if error.is_doubt() {
                        io.shared.witness_doubts(node);
                    } else {
                        io.shared.witness_away(node);
                    }
                    self.not_let_in(&io, error);
                }
            }
            backoff.wait(&io).await;
        }
    }

    /// Opens a link and exchanges hellos.
    pub(super) async fn open(
        &self,
        io: &Arc<IoLoop>,
        address: &str,
        io_loop: usize,
    ) -> Result<(Link, Member, Linked), NoLink> {
        let shared = &io.shared;
        let opening = async {
            let stream = shared.world.network.connect(address.to_owned()).await?;
            let mut link = Link::new(stream);
            let mut hello = shared.hello(io_loop);
            shared.stamp_frame(&mut hello);
            link.say(&hello).await?;
            let mut first = link.hear().await?;
            if let Some(refused) = first.refused {
                return Err(NoLink::Refused(CallError::from(&Status::from(refused))));
            }
            let hello =
                first.hello.take().ok_or_else(|| not_a_peer("the first frame has no hello"))?;
            let member = judge_hello(shared, &hello)?;
            link.trust(frame_bytes_max(shared));
            shared.hear_hello(member.node(), &hello);
            shared.witness_agrees(member.node());
            self.gossip.outlived(&first);
            let mut software_version = hello.software_version;
            if software_version.len() > VERSION_BYTES_MAX {
                software_version.clear();
            }
            let (process, peer_address) = (hello.process, member.peer_address);
            let linked = Linked { process, peer_address, software_version };
            Ok((link, member, linked))
        };
        timeout(HELLO_TIMEOUT, opening).await.map_err(|_elapsed| NoLink::Late)?
    }

    /// Sends requests and takes the answers of one link until it breaks.
    async fn run_frames(
        &self,
        io: &Arc<IoLoop>,
        node: NodeId,
        linked: Linked,
        link: Link,
    ) -> LinkEnd {
        let (status, outbox) =
            (io.shared.status(node), Outbox::new(io.shared.config.peer_queue_bytes_max));
        self.refusals.over();
        status.link(linked);
        status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
        let peer = Arc::new(Peer { node, outbox, status });
        io.lock().peers.connected(Arc::clone(&peer), &io.shared.view.load());
        tracing::info!(%node, io_loop = io.index, "linked");
        io.greet(&peer);
        let take = |mut frame: Frame| {
            peer.status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
            if let Some(index) = io.shared.view.load().node_index(node) {
                io.peer_answers(index, &mut frame);
            }
            for control in frame.controls.drain(..) {
                io.control(node, &peer.outbox, control);
            }
        };
        let end = link.run(&peer.outbox, &*io.shared, take).await;
        peer.outbox.close();
        let was_current = io.lock().peers.disconnected(&peer, &io.shared.view.load());
        if was_current && let Some(index) = io.shared.view.load().node_index(node) {
            io.peer_lost(index);
        }
        end
    }
}

/// The largest frame: a queue's frame, and the item that filled it.
pub(super) fn frame_bytes_max(shared: &Shared) -> usize {
    let item = shared.config.limits.value_bytes_max.max(shared.config.limits.scan_bytes_max);
    let metadata = model::Metadata::BYTES_MAX;
    crate::outbox::FRAME_BYTES + (2 * item).max(metadata) + (64 << 10)
}

/// Checks a peer's hello. Different clusters refuse each other.
fn judge_hello(shared: &Arc<Shared>, hello: &Hello) -> Result<Member, CallError> {
    if hello.protocol != PROTOCOL {
        let message = format!("this node speaks protocol {PROTOCOL}, the peer {}", hello.protocol);
        return Err(CallError::new(Reason::VersionMismatch, message)
            .with("required", PROTOCOL)
            .with("actual", hello.protocol));
    }
    if hello.cluster_name != shared.config.cluster_name {
        let ours = &shared.config.cluster_name;
        let message =
            format!("this node is of cluster {ours:?}, the peer of {:?}", hello.cluster_name);
        return Err(CallError::new(Reason::ClusterMismatch, message));
    }
    let (ours, theirs) = (shared.cluster(), ClusterId::from_slice(&hello.cluster_id));
    let theirs = theirs.unwrap_or_default();
    if !ours.is_nil() && !theirs.is_nil() && ours != theirs {
        let message = format!("this node is of cluster {ours}, the peer of {theirs}");
        return Err(CallError::new(Reason::ClusterMismatch, message));
    }
    let member = member_of(hello).ok_or_else(|| {
        CallError::new(Reason::NotAPeer, "the hello names no node or no valid addresses")
    })?;
    shared.judge_process(&member, hello)?;
    if !shared.knows_or_has_room_for(member.node()) {
        let message = format!("this node knows of {DIRECTORY_MAX} nodes, and of no more");
        return Err(CallError::new(Reason::Overloaded, message).with("limit", DIRECTORY_MAX));
    }
    Ok(member)
}

fn member_of(hello: &Hello) -> Option<Member> {
    let node = NodeId::from_slice(&hello.node_id).filter(|it| !it.is_nil())?;
    let name = |name: &str| {
        let fits = !name.is_empty() && name.len() <= model::Layout::NAME_BYTES_MAX;
        fits.then(|| name.to_owned())
    };
    let description = model::NodeDescription {
        id: node,
        datacenter: name(&hello.datacenter)?,
        rack: name(&hello.rack)?,
        client_address: hello.client_address.parse().ok()?,
        peer_address: hello.peer_address.parse().ok()?,
        capacity: Some(hello.capacity)
            .filter(|it| (1..=model::Layout::CAPACITY_MAX).contains(it))?,
    };
    Some(Member::new(&description, hello.incarnation))
}

impl Links {
    /// Serves a connection that was accepted, until it breaks.
    pub(super) async fn serve(&self, io: &Arc<IoLoop>, stream: BoxedStream) {
        let (shared, mut link) = (&io.shared, Link::new(stream));
        let first = match timeout(HELLO_TIMEOUT, link.hear()).await {
            Ok(Ok(first)) => first,
            // Somebody looked whether anybody listens.
            Ok(Err(LinkEnd::Closed)) => return,
            Ok(Err(error)) => {
                Counters::count(&shared.counters.connections_refused);
                tracing::debug!(%error, "a connection of nodes is closed");
                return;
            }
            Err(_) => {
                Counters::count(&shared.counters.connections_idle);
                return link.refuse(not_a_peer("no hello in time")).await;
            }
        };
        let hello = first.hello.ok_or_else(|| not_a_peer("the first frame has no hello"));
        let judged = hello.and_then(|it| {
            self.met_double(shared, &it);
            Ok((judge_hello(shared, &it)?, it))
        });
        let (member, hello) = match judged {
            Ok(judged) => judged,
            Err(error) => {
                Counters::count(&shared.counters.connections_refused);
                tracing::debug!(%error, "a node is not let in");
                return link.refuse(error).await;
            }
        };
        let node = member.node();
        shared.hear_hello(node, &hello);
        let mut own = shared.hello(io.index);
        if node != shared.identity.node {
            // Said here too: a node that has moved as well is not found by any link of this one.
            self.gossip.say_later(&mut own, &member);
            self.gossip.met(member);
        }
        shared.stamp_frame(&mut own);
        let outbox = Outbox::new(shared.config.peer_queue_bytes_max);
        // Before the peer hears the hello: from then on others may pass on what it writes.
        self.origins.insert(node, hello.io_loop, &outbox);
        link.trust(frame_bytes_max(shared));
        let end = match link.say(&own).await {
            Ok(()) => self.serve_frames(io, node, link, &outbox).await,
            Err(end) => end,
        };
        tracing::debug!(%node, %end, "a peer's link has ended");
        outbox.close();
        self.origins.remove(node, hello.io_loop, &outbox);
    }

    /// Serves the requests of one link until it breaks.
    async fn serve_frames(
        &self,
        io: &Arc<IoLoop>,
        node: NodeId,
        link: Link,
        outbox: &Arc<Outbox>,
    ) -> LinkEnd {
        let status = io.shared.status(node);
        let mut caller = Caller { index: None, outbox: Arc::clone(outbox) };
        let mut has_agreed = false;
        let take = |mut frame: Frame| {
            status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
            // It has judged this node's hello, and goes on.
            if !std::mem::replace(&mut has_agreed, true) {
                io.shared.witness_agrees(node);
            }
            caller.index = io.shared.view.load().node_index(node);
            io.serve(&caller, &self.origins, &mut frame);
            for packet in frame.gossip.drain(..) {
                self.gossip.packet(packet);
            }
            // After the packets, whose sender is a member by then: it is told of the next incarnation first.
            self.gossip.outlived(&frame);
            for control in frame.controls.drain(..) {
                io.control(node, outbox, control);
            }
        };
        link.run(outbox, &*io.shared, take).await
    }
}

fn not_a_peer(text: &str) -> CallError {
    CallError::new(Reason::NotAPeer, text)
}

/// Waits between attempts: longer each time, up to a second, and never in step with others.
#[derive(Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub(super) async fn wait(&mut self, io: &IoLoop) {
        let ms = (BACKOFF_MS_MIN << self.attempts.min(6)).min(BACKOFF_MS_MAX);
        self.attempts += 1;
        let jitter = io.lock().random.random_range(0..=ms / 2);
        tokio::time::sleep(Duration::from_millis(ms / 2 + jitter)).await;
    }
}

/// The number by which a link that only introduces its node names its loop: no loop has it.
pub(super) const JOIN_IO_LOOP: usize = 1_000;
/// What a version has at most that is worth showing.
const VERSION_BYTES_MAX: usize = 64;
const BACKOFF_MS_MIN: u64 = 25;
const BACKOFF_MS_MAX: u64 = 1_000;
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
const JOIN_AGAIN: Duration = Duration::from_secs(10);
