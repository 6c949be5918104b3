//! One long-lived stream to every other node, from every loop: requests go up, answers come down.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use model::{ClusterId, NodeId, NodeIndex, OperationId};
use proto::{
    CallError, Reason,
    internal::{
        Frame, Hello, peer_service_client::PeerServiceClient, peer_service_server::PeerService,
    },
};
use rand::RngExt;
use tokio::{task::JoinSet, time::timeout};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Uri},
};

use super::{gossip::Gossip, io_loop::IoLoop, serve::Caller};
use crate::{
    liveness::Peer,
    membership::Member,
    operation::Token,
    outbox::{AnswerDrain, Drain, Outbox},
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
}

impl Links {
    /// Keeps this loop's links up for as long as the node lives: one to every node of the directory
    /// and of the layout, and until somebody is met, tries the addresses to join.
    pub(super) async fn run(self, io: Arc<IoLoop>) {
        let mut tasks = JoinSet::new();
        if io.index == 0 {
            for address in io.shared.config.join.clone() {
                tasks.spawn(self.clone().run_join(Arc::clone(&io), address));
            }
        }
        let mut directory = self.gossip.directory();
        let mut linked = BTreeMap::new();
        loop {
            let known: Vec<NodeId> = directory.borrow_and_update().keys().copied().collect();
            for node in known {
                if node != io.shared.identity.node && linked.insert(node, ()).is_none() {
                    tasks.spawn(self.clone().run_link(Arc::clone(&io), node));
                }
            }
            if directory.changed().await.is_err() {
                return;
            }
        }
    }

    /// Says hello at an address to join, again and again: the answer introduces the node there, and
    /// the link that follows introduces this one. Also heals a cluster whose nodes have all moved.
    async fn run_join(self, io: Arc<IoLoop>, address: String) {
        let mut backoff = Backoff::default();
        loop {
            let outbox = Outbox::new(0);
            let opened = self.open(&io, &address, Arc::clone(&outbox), JOIN_IO_LOOP).await;
            // The stream has said hello, which was all. It ends with what it sends.
            outbox.close();
            match opened.map(|(_, member)| member) {
                Ok(member) if member.node() == io.shared.identity.node => return,
                Ok(member) => {
                    self.gossip.met(member);
                    tokio::time::sleep(JOIN_AGAIN).await;
                    backoff = Backoff::default();
                }
                Err(status) => {
                    tracing::debug!(address, %status, "cannot join yet");
                    backoff.wait(&io).await;
                }
            }
        }
    }

    /// Keeps the link to one node up.
    async fn run_link(self, io: Arc<IoLoop>, node: NodeId) {
        let directory = self.gossip.directory();
        let mut backoff = Backoff::default();
        loop {
            let address = directory.borrow().get(&node).map(|it| it.peer_address.to_string());
            let Some(address) = address else { return };
            let outbox = Outbox::new(io.shared.config.peer_queue_bytes_max);
            match self.open(&io, &address, Arc::clone(&outbox), io.index).await {
                Ok((frames, member)) if member.node() == node => {
                    self.gossip.met(member);
                    let status = self.run_frames(&io, node, Arc::clone(&outbox), frames).await;
                    tracing::debug!(%node, %status, "link lost");
                    backoff = Backoff::default();
                }
                // Another node has taken the address; gossip tells where this one is now.
                Ok((_, member)) => self.gossip.met(member),
                Err(status) => {
                    tracing::debug!(%node, address, %status, "no link");
                    io.shared.witness_away(node);
                }
            }
            // Else the connection would wait for more to send, for ever.
            outbox.close();
            backoff.wait(&io).await;
        }
    }

    /// Opens a stream and exchanges hellos.
    async fn open(
        &self,
        io: &Arc<IoLoop>,
        address: &str,
        outbox: Arc<Outbox>,
        io_loop: usize,
    ) -> Result<(Streaming<Frame>, Member), Status> {
        let shared = &io.shared;
        let hello = shared.hello(io_loop);
        let drain = Drain::new(outbox, Arc::clone(shared), hello);
        let opening = async {
            let mut client = connect(shared, address).await?;
            let mut frames = client.link(Request::new(drain)).await?.into_inner();
            let first = frames.message().await?;
            let outlived = first.as_ref().map_or(0, |it| it.incarnation_heard);
            let hello = first.and_then(|it| it.hello);
            let hello = hello.ok_or_else(|| Status::failed_precondition("no hello"))?;
            let member = judge_hello(shared, &hello).map_err(Status::from)?;
            shared.hear_hello(member.node(), &hello);
            self.gossip.outlived(outlived);
            Ok((frames, member))
        };
        let late = |_| Status::deadline_exceeded("no hello in time");
        timeout(HELLO_TIMEOUT, opening).await.map_err(late)?
    }

    /// Takes the answers of one link until it breaks.
    async fn run_frames(
        &self,
        io: &Arc<IoLoop>,
        node: NodeId,
        outbox: Arc<Outbox>,
        mut frames: Streaming<Frame>,
    ) -> Status {
        let status = io.shared.status(node);
        status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
        let peer = Arc::new(Peer { node, outbox, status });
        io.lock().peers.connected(Arc::clone(&peer), &io.shared.view.load());
        tracing::info!(%node, io_loop = io.index, "linked");
        io.greet(&peer);
        let ended = loop {
            match frames.message().await {
                Ok(Some(mut frame)) => {
                    peer.status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
                    if let Some(index) = io.shared.view.load().node_index(node) {
                        io.peer_answers(index, &mut frame);
                    }
                    for control in frame.controls.drain(..) {
                        io.control(node, &peer.outbox, control);
                    }
                }
                Ok(None) => break Status::unavailable("closed by the peer"),
                Err(status) => break status,
            }
        };
        peer.outbox.close();
        let was_current = io.lock().peers.disconnected(&peer, &io.shared.view.load());
        if was_current && let Some(index) = io.shared.view.load().node_index(node) {
            io.peer_lost(index);
        }
        ended
    }
}

async fn connect(
    shared: &Arc<Shared>,
    address: &str,
) -> Result<PeerServiceClient<tonic::transport::Channel>, Status> {
    let invalid = |error| Status::invalid_argument(format!("{address}: {error}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(invalid)?;
    let endpoint = endpoint
        .connect_timeout(HELLO_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let network = Arc::clone(&shared.world.network);
    let connector = tower::service_fn(move |uri: Uri| {
        let network = Arc::clone(&network);
        async move {
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            network.connect(host).await.map(TokioIo::new)
        }
    });
    let failed = |error| Status::unavailable(format!("cannot connect: {error}"));
    let channel = endpoint.connect_with_connector(connector).await.map_err(failed)?;
    let limit = frame_bytes_max(shared);
    Ok(PeerServiceClient::new(channel)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit))
}

/// The largest frame: a queue's frame, and the item that filled it.
pub(super) fn frame_bytes_max(shared: &Shared) -> usize {
    let item = shared.config.limits.value_bytes_max.max(shared.config.limits.scan_bytes_max);
    let metadata = model::Metadata::BYTES_MAX;
    crate::outbox::FRAME_BYTES + (2 * item).max(metadata) + (64 << 10)
}

/// Checks a peer's hello. Different clusters refuse each other.
fn judge_hello(shared: &Shared, hello: &Hello) -> Result<Member, CallError> {
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
    shared.judge_storage(&member, hello)?;
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

/// The interface between nodes, on one loop.
pub(super) struct PeerApi {
    /// The loop that serves.
    pub io: Arc<IoLoop>,
    /// What the node's links share.
    pub links: Links,
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    type LinkStream = AnswerDrain<Shared>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut frames = request.into_inner();
        let not_a_peer = |text: &str| Status::from(CallError::new(Reason::NotAPeer, text));
        let late = |_| not_a_peer("no hello in time");
        let first = timeout(HELLO_TIMEOUT, frames.message()).await.map_err(late)??;
        let hello = first.and_then(|it| it.hello);
        let hello = hello.ok_or_else(|| not_a_peer("the first frame has no hello"))?;
        let shared = &self.io.shared;
        let member = judge_hello(shared, &hello).map_err(Status::from)?;
        let outbox = Outbox::new(shared.config.peer_queue_bytes_max);
        let node = member.node();
        shared.hear_hello(node, &hello);
        let mut first = shared.hello(self.io.index);
        if node != shared.identity.node {
            // Said here too: a node that has moved as well is not found by any link of this one.
            first.incarnation_heard = self.links.gossip.later_than(&member).unwrap_or(0);
            self.links.gossip.met(member);
        }
        self.links.origins.insert(node, hello.io_loop, &outbox);
        let answers = Drain::new(Arc::clone(&outbox), Arc::clone(shared), first);
        let (io, links) = (Arc::clone(&self.io), self.links.clone());
        tokio::spawn(async move {
            links.serve_frames(&io, node, &outbox, frames).await;
            outbox.close();
            links.origins.remove(node, hello.io_loop, &outbox);
        });
        Ok(Response::new(AnswerDrain(answers)))
    }
}

impl Links {
    /// Serves the requests of one link until it breaks.
    async fn serve_frames(
        &self,
        io: &Arc<IoLoop>,
        node: NodeId,
        outbox: &Arc<Outbox>,
        mut frames: Streaming<Frame>,
    ) {
        let status = io.shared.status(node);
        let mut caller = Caller { index: None, outbox: Arc::clone(outbox) };
        while let Ok(Some(mut frame)) = frames.message().await {
            status.last_heard_us.store(io.shared.elapsed_us(), Ordering::Relaxed);
            caller.index = index_of(io, node);
            io.serve(&caller, &self.origins, &mut frame);
            for packet in frame.gossip.drain(..) {
                self.gossip.packet(packet);
            }
            // After the packets, whose sender is a member by then: it is told of the next incarnation first.
            self.gossip.outlived(frame.incarnation_heard);
            for control in frame.controls.drain(..) {
                io.control(node, outbox, control);
            }
        }
    }
}

fn index_of(io: &IoLoop, node: NodeId) -> Option<NodeIndex> {
    io.shared.view.load().node_index(node)
}

/// Waits between attempts: longer each time, up to a second, and never in step with others.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    async fn wait(&mut self, io: &IoLoop) {
        let ms = (BACKOFF_MS_MIN << self.attempts.min(6)).min(BACKOFF_MS_MAX);
        self.attempts += 1;
        let jitter = io.lock().random.random_range(0..=ms / 2);
        tokio::time::sleep(Duration::from_millis(ms / 2 + jitter)).await;
    }
}

/// The number by which a link that only introduces its node names its loop: no loop has it.
const JOIN_IO_LOOP: usize = 1_000;
const BACKOFF_MS_MIN: u64 = 25;
const BACKOFF_MS_MAX: u64 = 1_000;
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
const JOIN_AGAIN: Duration = Duration::from_secs(10);
/// A peer that does not answer a ping for so long has lost its link.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// What a peer may send before this node has read it: several frames.
const WINDOW_BYTES: u32 = 4 << 20;
