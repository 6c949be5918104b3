//! What nodes tell each other of their database directories, and what a node does when the others have
//! seen more of its own than it holds (F12, F13).

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::{BufMut, Bytes, BytesMut};
use model::{Hlc, Mutant, NodeId, StorageId};
use proto::internal::{Hello, Ping, SeenStorage};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    commit::CommitItem,
    counters::Counters,
    shared::{Identity, Shared, StopReason, system_key},
    storage::StorageError,
    witness::{Inquiry, News, OwnState, Seen, Witness, judge_own},
};

/// A node's part in telling one directory from another.
pub struct WitnessBoard {
    board: Mutex<Board>,
    /// See [`Witness::storage_ids_hash`].
    storage_ids_hash: AtomicU64,
    /// There is more to keep than was kept.
    unkept: AtomicBool,
    /// Wakes who fills this node's replicas, if that is to be done.
    pub(super) sound: Notify,
    /// The node has taken and answered requests since its start.
    has_opened: AtomicBool,
}

struct Board {
    own: StorageId,
    /// The directory's id was minted in this life, to replace another.
    minted: bool,
    /// It is getting another id.
    minting: bool,
    /// The latest of it that others have seen, while that is not found to be in order.
    unjudged: Option<Seen>,
    /// The process of this node that has given way to this one last.
    outlasted: Option<u64>,
    witness: Witness,
    inquiry: Inquiry,
}

impl WitnessBoard {
    /// What a node starts with; `members` are the nodes of its layout.
    pub fn new(
        identity: &Identity,
        mut witness: Witness,
        members: impl Iterator<Item = NodeId>,
    ) -> Self {
        let own = Seen { storage: identity.storage, ceiling: identity.clock_ceiling };
        witness.learn(identity.node, own);
        let storage_ids_hash = AtomicU64::new(witness.storage_ids_hash(members));
        let board = Board {
            own: identity.storage,
            minted: identity.minted,
            minting: false,
            unjudged: None,
            outlasted: None,
            witness,
            inquiry: Inquiry::default(),
        };
        let (board, unkept) = (Mutex::new(board), AtomicBool::new(false));
        let has_opened = AtomicBool::new(false);
        Self { board, storage_ids_hash, unkept, sound: Notify::new(), has_opened }
    }

    /// A hash over the directories that have replaced others, as far as this node knows (F12).
    pub fn storage_ids_hash(&self) -> u64 {
        self.storage_ids_hash.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// This node's database directory.
    pub fn storage_id(&self) -> StorageId {
        self.witness.lock().own
    }

    /// What this node has seen of another one's directory.
    pub fn seen_storage(&self, node: NodeId) -> Option<Seen> {
        self.witness.lock().witness.of(node)
    }

    /// What this node has seen of all directories.
    pub(crate) fn seen_storages(&self) -> Vec<SeenStorage> {
        let to_wire = |(node, seen): (NodeId, Seen)| SeenStorage {
            node_id: Bytes::copy_from_slice(&node.to_bytes()),
            storage_id: Bytes::copy_from_slice(&seen.storage.to_bytes()),
            clock_ceiling: seen.ceiling.0,
        };
        self.witness.lock().witness.iter().map(to_wire).collect()
    }

    /// Takes what a node's hello says of its own directory and of others.
    pub(super) fn hear_hello(self: &Arc<Self>, from: NodeId, hello: &Hello) {
        if from == self.identity.node {
            return;
        }
        if let Some(storage) = StorageId::from_slice(&hello.storage_id) {
            self.hear(from, Seen { storage, ceiling: Hlc(hello.clock_ceiling) });
        }
        self.hear_storages(&hello.seen);
        self.look_at_directory();
    }

    /// A node has let this one in, after its hello was heard: it has nothing against it.
    pub(super) fn witness_agrees(self: &Arc<Self>, node: NodeId) {
        if !self.is_stranger(node) {
            self.witness.lock().inquiry.agreed(node, self.elapsed_us());
        }
        self.look_at_directory();
    }

    /// Takes what a ping says of its sender's directory.
    pub(super) fn hear_ping(self: &Arc<Self>, from: NodeId, ping: &Ping) {
        if let Some(storage) = StorageId::from_slice(&ping.storage_id) {
            self.hear(from, Seen { storage, ceiling: Hlc(ping.clock_ceiling) });
        }
    }

    /// Takes what another node has seen.
    pub(super) fn hear_storages(self: &Arc<Self>, seen: &[SeenStorage]) {
        for it in seen.iter().take(Witness::NODES_MAX) {
            let ids = (NodeId::from_slice(&it.node_id), StorageId::from_slice(&it.storage_id));
            let (Some(node), Some(storage)) = ids else {
                Counters::count(&self.counters.peer_messages_malformed);
                return;
            };
            let seen = Seen { storage, ceiling: Hlc(it.clock_ceiling) };
            if node == self.identity.node {
                self.judge_own_directory(seen);
            } else {
                self.hear(node, seen);
            }
        }
    }

    /// A node cannot be reached: its word is not waited for.
    pub(super) fn witness_away(self: &Arc<Self>, node: NodeId) {
        self.witness.lock().inquiry.away(node);
        self.look_at_directory();
    }

    /// A node refuses this process, because it has a link to another one of this node (F14): this one takes and
    /// answers nothing while that is so.
    pub(super) fn witness_doubts(&self, node: NodeId) {
        if self.is_stranger(node) {
            return;
        }
        let mut board = self.witness.lock();
        if board.inquiry.doubted(node) {
            self.floors.set_shut(true);
            drop(board);
            tracing::warn!(%node, "another process of this node is up, by what a member says: nothing is taken or answered");
        }
    }

    /// True if this node has taken and answered requests since its start.
    pub(crate) fn has_opened(&self) -> bool {
        self.witness.has_opened.load(Ordering::Acquire)
    }

    /// What another process of this node has acknowledged is not in this directory.
    pub(super) fn doubt_directory(self: &Arc<Self>, process: u64) {
        let mut board = self.witness.lock();
        if board.outlasted.replace(process) == Some(process) {
            return;
        }
        board.unjudged = Some(Seen { storage: board.own, ceiling: Hlc(u64::MAX) });
        self.judge(board);
    }

    fn hear(self: &Arc<Self>, node: NodeId, seen: Seen) {
        if self.is_stranger(node) {
            return;
        }
        let mut board = self.witness.lock();
        let news = board.witness.learn(node, seen);
        self.witness.unkept.fetch_or(news != News::None, Ordering::Relaxed);
        if news == News::Replaced || news == News::Met && seen.storage.generation() > 0 {
            self.storages_changed(&board);
            drop(board);
            tracing::warn!(%node, storage = %seen.storage, "a node has another database directory");
        }
    }

    /// Strangers are none of the layout's, and may say anything.
    fn is_stranger(&self, node: NodeId) -> bool {
        let view = self.view.load();
        view.metadata().is_some() && view.node_index(node).is_none()
    }

    /// To be called with new metadata: other nodes may be members now.
    pub(crate) fn follow_members(&self) {
        let mut board = self.witness.lock();
        let members = self.members();
        let made = board.witness.make_room(&members);
        self.witness.unkept.fetch_or(made, Ordering::Relaxed);
        let hash = board.witness.storage_ids_hash(members);
        if self.witness.storage_ids_hash() != hash {
            self.storages_changed(&board);
        }
    }

    fn members(&self) -> Vec<NodeId> {
        let view = self.view.load();
        let nodes = view.metadata().map(|it| it.layout().nodes()).unwrap_or_default();
        nodes.iter().map(|it| it.id).collect()
    }

    /// Votes of the directory before, and rounds of purging in which it takes part, count no more.
    fn storages_changed(&self, board: &Board) {
        let hash = board.witness.storage_ids_hash(self.members());
        self.witness.storage_ids_hash.store(hash, Ordering::Release);
        self.exchange.forget_rounds();
        // Greets everyone, and with that tells them.
        self.metadata_changed.notify_waiters();
        self.done.iter().for_each(crate::shared::DoneQueue::wake);
    }

    /// Others have seen this node's directory: is it still the one that they have seen?
    fn judge_own_directory(self: &Arc<Self>, seen: Seen) {
        let mut board = self.witness.lock();
        let age = |it: Seen| (it.storage, it.ceiling);
        if board.unjudged.is_none_or(|it| age(it) < age(seen)) {
            board.unjudged = Some(seen);
        }
        self.judge(board);
    }

    /// Judges what others have seen of this node's directory, unless it is getting another id: then once it
    /// has.
    fn judge(self: &Arc<Self>, mut board: MutexGuard<'_, Board>) {
        let Some(seen) = board.unjudged.filter(|_| !board.minting) else { return };
        let own = Seen { storage: board.own, ceiling: self.clock.ceiling() };
        let state = judge_own(own, seen);
        if state == OwnState::Sound || Mutant::RollbackUnseen.is_on() {
            board.unjudged = None;
            return;
        }
        self.floors.set_shut(true);
        // Until it has another id: this one's ceiling may still rise, by a write that was under way.
        board.unjudged = Some(Seen { ceiling: Hlc(u64::MAX), ..seen });
        if state == OwnState::Superseded && !board.minted {
            return self.stop_for(StopReason::Superseded { storage: seen.storage });
        }
        // A copy must not take the place of a node that is up, of which only some know (F14).
        if !self.inquiry_is_over(&board) {
            return;
        }
        board.minting = true;
        drop(board);
        tracing::error!(
            ?state,
            own_ceiling = %own.ceiling,
            seen_ceiling = %seen.ceiling,
            "this directory is not what others have seen: it is filled anew before it counts"
        );
        let later = seen.storage.generation().max(own.storage.generation()).saturating_add(1);
        self.mint_storage(later.max(self.wall().0));
    }

    /// Gives the directory a new id, and leaves it to be filled by others: one durable step.
    fn mint_storage(self: &Arc<Self>, generation: u64) {
        let random = xxh3_64(&(self.world.seed ^ self.elapsed_us()).to_be_bytes());
        let storage = StorageId::mint(generation, random);
        let starts = self.identity.incarnation >> 20;
        let identity = encode_identity(self.identity.node, storage, starts);
        let shared = Arc::downgrade(self);
        let done = move |result: Result<(), StorageError>| {
            let Some(shared) = shared.upgrade() else { return };
            let mut board = shared.witness.lock();
            board.minting = false;
            if result.is_err() {
                // The disk is full, and it is tried again, or the node stops by itself.
                return;
            }
            (board.own, board.minted) = (storage, true);
            let ceiling = shared.clock.ceiling();
            board.witness.learn(shared.identity.node, Seen { storage, ceiling });
            shared.storages_changed(&board);
            shared.judge(board);
            shared.look_at_directory();
        };
        let (generation, identity, done) = (Some(generation), Some(identity), Box::new(done) as _);
        // A closed queue is a node that ends.
        let item = CommitItem::Fill { generation, ends: None, identity, done };
        let _ = self.commits.push_system(item);
    }

    /// Takes and answers requests once the others have found nothing wrong with the directory (F13).
    pub(super) fn look_at_directory(self: &Arc<Self>) {
        if !self.floors.is_shut() {
            return;
        }
        if self.members().is_empty() {
            return;
        }
        let mut board = self.witness.lock();
        let over = self.inquiry_is_over(&board);
        if over && board.unjudged.is_some() && !board.minting {
            self.judge(board);
            board = self.witness.lock();
        }
        // What nobody has found to be in order stays shut, and so does a node that stops for it.
        let in_doubt = board.minting || board.unjudged.is_some() || self.failure().is_some();
        if !in_doubt && (over || Mutant::RollbackUnseen.is_on()) {
            // From now on a later directory is somebody else's.
            board.minted = false;
            self.witness.has_opened.store(true, Ordering::Release);
            self.floors.set_shut(false);
            drop(board);
            tracing::info!(filling = self.is_filling(), "the directory is what others have seen");
            self.witness.sound.notify_waiters();
            self.wake_stampers();
        }
    }

    fn inquiry_is_over(&self, board: &Board) -> bool {
        let mut others = self.members();
        others.retain(|it| *it != self.identity.node);
        board.inquiry.is_over(&others, self.elapsed_us(), PATIENCE_US)
    }

    /// True while this node's directory is not known to be sound, or replicas in it are being filled.
    pub(crate) fn is_filling(&self) -> bool {
        self.floors.is_shut() || self.floors.all().filling().is_some()
    }

    /// Keeps what was seen, judges again what could not be mended, and shows that this node writes, by a higher
    /// ceiling. To be called about once a second.
    pub(super) fn tend_witness(self: &Arc<Self>) {
        self.judge(self.witness.lock());
        self.look_at_directory();
        if self.witness.unkept.swap(false, Ordering::Relaxed) {
            let shared = Arc::downgrade(self);
            self.store_witness(&self.witness.lock(), move |result| {
                // A full disk: again in a second. Any other failure stops the node by itself.
                if let (Some(shared), Err(_)) = (shared.upgrade(), result) {
                    shared.witness.unkept.store(true, Ordering::Relaxed);
                }
            });
        }
        self.show_ceiling();
    }

    /// Makes a directory's id durable here before anything depends on it (F12). False if it is not the
    /// latest of the node's.
    pub(super) async fn keep_storage(
        self: &Arc<Self>,
        node: NodeId,
        storage: StorageId,
    ) -> Result<bool, StorageError> {
        self.hear(node, Seen { storage, ceiling: Hlc::ZERO });
        let (done, kept) = tokio::sync::oneshot::channel();
        {
            let board = self.witness.lock();
            let latest = board.witness.of(node).is_some_and(|it| it.storage == storage);
            if !latest {
                return Ok(false);
            }
            self.store_witness(&board, |it| drop(done.send(it)));
        }
        let dropped = |_| StorageError::Failed { message: "the commit path has ended".to_owned() };
        kept.await.map_err(dropped)??;
        Ok(true)
    }

    /// Makes what was seen durable. Under the board's lock, so that what is older cannot come after what
    /// is newer.
    fn store_witness(
        &self,
        board: &Board,
        done: impl FnOnce(Result<(), StorageError>) + Send + 'static,
    ) {
        self.store_system(system_key::WITNESS, Some(board.witness.encode()), done);
    }
}

/// Who a node is, as it is kept.
pub(super) fn encode_identity(node: NodeId, storage: StorageId, starts: u64) -> Bytes {
    let mut value = BytesMut::with_capacity(40);
    value.put_u128(node.0);
    value.put_u128(storage.0);
    value.put_u64(starts);
    value.freeze()
}

/// How long a start waits for members that neither answer nor refuse, once one has answered.
const PATIENCE_US: u64 = 1_000_000;
