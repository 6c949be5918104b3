//! Executions step by step: raw calls to chosen nodes, and what happens to nodes and links between
//! them.

mod play;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use model::{ConsistencyLevel, Key, KeyspaceId, NodeId, OperationId, Record, StorageKey, Version};
use node::{
    commit::{
        CommitItem, CommitSettings, CommitStage, Committer, DIRTY_PREFIX, HintClass, PartitionFloor,
    },
    replica::decode_stored,
    storage::{RangeRequest, Space, memory::MemoryStorage},
};
use proto::{
    CallError, Reason,
    v1::{GetClusterStatusRequest, WaitHintsRequest, admin_service_client::AdminServiceClient},
};
use tonic::transport::Channel;

pub(super) use play::play;

use crate::{
    raw::{Found, RawNode},
    recorder::now,
    workload::Load,
    world::{Cut, EndKind, late::InHand},
};

/// A script while it plays: what it found wrong, if anything.
pub(super) type Playing = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// What a script does to the world.
#[derive(Clone)]
pub struct Script {
    load: Rc<Load>,
    orders: Rc<RefCell<VecDeque<Order>>>,
    disks: Rc<Vec<MemoryStorage>>,
    clock: Rc<Cell<u64>>,
}

enum Order {
    Cut(u64, Cut),
    Heal(u64),
    End(usize, EndKind),
    Start(usize),
    ClockJump(usize, i64),
    Freeze(usize, CommitStage),
    SlowDisk(usize, u64),
    FullDisk(usize, bool),
    Rot(usize),
    Wipe(usize),
    TakeImage(usize),
    RollBack(usize),
    CopyDisk(usize, usize),
    Lose(usize, &'static [u8]),
    Misplace(usize, &'static [u8], &'static [u8]),
    Late(usize, InHand),
}

impl Script {
    /// Tells a step to whoever reads the log.
    pub(super) fn say(&self, what: &str) {
        self.load.recorder.log.tell(now(), format_args!("step: {what}"));
    }

    /// Waits.
    pub(super) async fn wait(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Cuts links between two groups of hosts until healed by the same id.
    pub(super) async fn cut(&self, id: u64, cut: Cut) {
        self.order(Order::Cut(id, cut)).await;
    }

    /// Heals a cut.
    pub(super) async fn heal(&self, id: u64) {
        self.order(Order::Heal(id)).await;
    }

    /// Ends a node's process.
    pub(super) async fn end(&self, node: usize, kind: EndKind) {
        self.order(Order::End(node, kind)).await;
    }

    /// Starts a node's process.
    pub(super) async fn start(&self, node: usize) {
        self.order(Order::Start(node)).await;
    }

    /// The disk of a node that is down is replaced by an empty one.
    pub(super) async fn wipe(&self, node: usize) {
        self.order(Order::Wipe(node)).await;
    }

    /// A copy of a node's disk is taken.
    pub(super) async fn take_image(&self, node: usize) {
        self.order(Order::TakeImage(node)).await;
    }

    /// A node ends, and its disk is put back to its copy.
    pub(super) async fn roll_back(&self, node: usize) {
        self.order(Order::RollBack(node)).await;
    }

    /// The disk of a node that is down is replaced by a copy of another one's.
    pub(super) async fn copy_disk(&self, from: usize, to: usize) {
        self.order(Order::CopyDisk(from, to)).await;
    }

    /// A clock jumps.
    pub(super) async fn clock_jump(&self, node: usize, ms: i64) {
        self.order(Order::ClockJump(node, ms)).await;
    }

    /// The node's commit path stops at this stage of its next group, until the node is ended.
    pub(super) async fn freeze(&self, node: usize, stage: CommitStage) {
        self.order(Order::Freeze(node, stage)).await;
    }

    /// The node's disk takes so long for a group of commits at most, from now on.
    pub(super) async fn slow_disk(&self, node: usize, ms: u64) {
        self.order(Order::SlowDisk(node, ms)).await;
    }

    /// The node's disk has no room, or has some again.
    pub(super) async fn full_disk(&self, node: usize, full: bool) {
        self.order(Order::FullDisk(node, full)).await;
    }

    /// A bit flips in every row of a node's data.
    pub(super) async fn rot(&self, node: usize) {
        self.order(Order::Rot(node)).await;
    }

    /// The row of a node's data that holds these bytes is gone, as if it had not been written.
    pub(super) async fn lose(&self, node: usize, bytes: &'static [u8]) {
        self.order(Order::Lose(node, bytes)).await;
    }

    /// The row that holds these bytes is gone, and found in the place of the one that held those.
    pub(super) async fn misplace(&self, node: usize, bytes: &'static [u8], over: &'static [u8]) {
        self.order(Order::Misplace(node, bytes, over)).await;
    }

    /// What somebody has had in hand for long comes to a node.
    pub(super) async fn late(&self, node: usize, in_hand: InHand) {
        self.order(Order::Late(node, in_hand)).await;
    }

    /// Waits until a row of a node's disk holds these bytes, for ten seconds.
    pub(super) async fn until_stored(
        &self,
        node: usize,
        space: Space,
        bytes: &[u8],
    ) -> Result<(), String> {
        for _ in 0..10_000 {
            let rows = self.disks[node].peek(&RangeRequest::prefix(space, Vec::new())).rows;
            if rows.iter().any(|it| it.1.windows(bytes.len()).any(|it| it == bytes)) {
                return Ok(());
            }
            self.wait(1).await;
        }
        Err(format!("n{} never stored {bytes:?}", node + 1))
    }

    /// Waits until a node whose disk was lost has a floor again, for ten seconds.
    pub(super) async fn until_filling(&self, node: usize) -> Result<(), String> {
        for _ in 0..10_000 {
            if !self.floors(node).is_empty() {
                return Ok(());
            }
            self.wait(1).await;
        }
        Err(format!("n{} is not filled by anybody", node + 1))
    }

    /// How many replicas of a node whose disk was lost stand on its disk, and how many of them are filled.
    pub(super) fn filled(&self, node: usize) -> (usize, usize) {
        let floors = self.floors(node);
        (floors.len(), floors.iter().filter(|it| it.filled > 0).count())
    }

    fn floors(&self, node: usize) -> Vec<PartitionFloor> {
        let rows = self.disks[node].peek(&RangeRequest::prefix(Space::System, FLOOR_PREFIX)).rows;
        rows.iter().filter_map(|(key, value)| PartitionFloor::decode(key, value)).collect()
    }

    /// Waits until a node holds what its floors have given up, for it has not removed all of it yet: for a
    /// minute.
    pub(super) async fn until_sweeping(&self, node: usize) -> Result<(), String> {
        for _ in 0..60_000 {
            if self.floors(node).iter().any(|it| it.swept < it.floor) {
                return Ok(());
            }
            self.wait(1).await;
        }
        Err(format!("n{} purges nothing", node + 1))
    }

    /// How many hints a node's disk holds, and how many dirty marks.
    pub(super) fn hints_and_marks(&self, node: usize) -> (usize, usize) {
        let rows = |space, prefix: &'static [u8]| {
            self.disks[node].peek(&RangeRequest::prefix(space, prefix)).rows.len()
        };
        (rows(Space::Hints, b""), rows(Space::System, DIRTY_PREFIX))
    }

    /// The values of a node's sound rows.
    pub(super) fn sound_values(&self, node: usize) -> Vec<Bytes> {
        let page = self.disks[node].peek(&RangeRequest::prefix(Space::Data, Vec::new()));
        let sound = page.rows.into_iter().filter_map(|(row, value)| {
            let stored = decode_stored(&StorageKey::parse(row)?, value).ok()?;
            Some(stored.record.value())
        });
        sound.collect()
    }

    /// True if a row of a node's data holds these bytes.
    pub(super) fn holds(&self, node: usize, bytes: &[u8]) -> bool {
        let rows = self.disks[node].peek(&RangeRequest::prefix(Space::Data, Vec::new())).rows;
        rows.iter().any(|it| it.1.windows(bytes.len()).any(|it| it == bytes))
    }

    /// Puts a hint on the disk of a node that is down, as if it had kept it for `target`.
    pub(super) fn plant_hint(
        &self,
        node: usize,
        target: NodeId,
        key: &StorageKey,
        record: Record,
        class: HintClass,
    ) -> Result<(), String> {
        let disk = Arc::new(self.disks[node].clone());
        let mut committer = Committer::open(disk, CommitSettings::default())
            .map_err(|error| format!("the disk of n{}: {error}", node + 1))?;
        let mut group = vec![CommitItem::Hint {
            destination: (),
            operation: OperationId(0),
            slot: 0,
            target,
            key: key.clone(),
            record,
            class,
            replaces: None,
        }];
        committer.commit(&mut group, &mut Vec::new()).map_err(|error| error.to_string())
    }

    /// Waits at a node's barrier of hints for so long, and says whether it lets through.
    pub(super) async fn hints_delivered(&self, node: usize, wait_ms: u32) -> Result<bool, String> {
        let request = WaitHintsRequest { wait_ms: Some(wait_ms), ..WaitHintsRequest::default() };
        let told = self.admin(node).wait_hints(request).await;
        let told = told.map_err(|it| CallError::from(&it)).map(|it| it.into_inner().delivered);
        self.log(&format!("wait {wait_ms} ms for the hints of n{}", node + 1), &told);
        works("wait for hints", told)
    }

    /// The version of the one row of data that a node's disk holds.
    pub(super) fn stored_version(&self, node: usize) -> Option<Version> {
        let page = self.disks[node].peek(&RangeRequest::prefix(Space::Data, Vec::new()));
        let [(_, record)] = &page.rows[..] else { return None };
        Record::parse(record.clone()).ok().map(|it| it.version())
    }

    /// How many rows of data a node's disk holds.
    pub(super) fn rows(&self, node: usize) -> usize {
        self.disks[node].peek(&RangeRequest::prefix(Space::Data, Vec::new())).rows.len()
    }

    /// Waits until a node knows that a replica of `key` is away.
    pub(super) async fn until_missed(&self, node: usize) -> Result<(), String> {
        self.within(10, async || {
            let put = self.put(node, "key", "all", ConsistencyLevel::All).await;
            let is_known = refused_for(&put, Reason::NotEnoughReplicas);
            ensure(is_known, format!("n{} does not notice that a replica is away", node + 1))
        })
        .await
    }

    /// Tries something every tenth of a second until it works, for so many seconds. Else returns what
    /// went wrong last.
    pub(super) async fn within<T, E>(
        &self,
        seconds: u64,
        mut what: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 1..seconds * 10 {
            if let Ok(it) = what().await {
                return Ok(it);
            }
            self.wait(100).await;
        }
        what().await
    }

    /// Puts `key` through a node until it takes it, for ten seconds.
    pub(super) async fn put_soon(
        &self,
        node: usize,
        value: &str,
        level: ConsistencyLevel,
    ) -> Result<(), String> {
        let put = self.within(10, async || self.put(node, "key", value, level).await);
        works(&format!("n{} takes no writes: put", node + 1), put.await)
    }

    /// Gets through a node until it is answered, for ten seconds.
    pub(super) async fn get_soon(
        &self,
        node: usize,
        key: &str,
        level: ConsistencyLevel,
    ) -> Result<Option<Bytes>, String> {
        let found = self.within(10, async || self.get(node, key, level).await);
        works(&format!("n{} answers no reads: get", node + 1), found.await)
    }

    async fn order(&self, order: Order) {
        self.orders.borrow_mut().push_back(order);
        self.wait(3).await;
    }

    /// Puts through a node, with the clock that this client has seen.
    pub(super) async fn put(
        &self,
        node: usize,
        key: &str,
        value: &str,
        level: ConsistencyLevel,
    ) -> Result<(), CallError> {
        let told = RawNode(node).put(key, value, level, self.clock.get(), None).await;
        self.log(&format!("put {key}={value} at {level} through n{}", node + 1), &told);
        told.map(|clock| self.clock.set(self.clock.get().max(clock)))
    }

    /// Puts with a time to live.
    pub(super) async fn put_for(
        &self,
        node: usize,
        key: &str,
        value: &str,
        seconds: u64,
    ) -> Result<(), CallError> {
        let level = ConsistencyLevel::Quorum;
        let told = RawNode(node).put(key, value, level, 0, Some(seconds)).await;
        self.log(&format!("put {key}={value} for {seconds} s through n{}", node + 1), &told);
        told.map(|_| ())
    }

    /// Deletes through a node.
    pub(super) async fn delete(
        &self,
        node: usize,
        key: &str,
        level: ConsistencyLevel,
    ) -> Result<(), CallError> {
        let told = RawNode(node).delete(key, level).await;
        self.log(&format!("delete {key} at {level} through n{}", node + 1), &told);
        told
    }

    /// Gets through a node.
    pub(super) async fn get(&self, node: usize, key: &str, level: ConsistencyLevel) -> Found {
        let found = RawNode(node).get(key, level).await;
        self.log(&format!("get {key} at {level} through n{}", node + 1), &found);
        found
    }

    /// The sort keys of the rows of a partition key, read through a node in pages.
    pub(super) async fn scan(
        &self,
        node: usize,
        partition: &str,
        page_rows: u32,
        level: ConsistencyLevel,
    ) -> Result<Vec<Bytes>, CallError> {
        let found = RawNode(node).scan(partition, page_rows, level).await;
        self.log(&format!("scan {partition} at {level} through n{}", node + 1), &found);
        found
    }

    /// The id of a node, as it says itself, and the storage key of `key`.
    pub(super) async fn ids(&self, node: usize) -> Result<(NodeId, StorageKey), String> {
        let status = self.admin(node).get_cluster_status(GetClusterStatusRequest {}).await;
        let status = status.map_err(|error| error.to_string())?.into_inner();
        let own = usize::try_from(status.answered_by).map_err(|error| error.to_string())?;
        let id = status.nodes.get(own).and_then(|it| NodeId::from_slice(&it.node_id));
        let id = id.ok_or_else(|| format!("n{} does not know itself", node + 1))?;
        let keyspace = KeyspaceId(status.keyspaces.first().ok_or("there is no keyspace")?.id);
        let key = Key::new(&b"key"[..]);
        Ok((id, StorageKey::encode(keyspace, key.token(), &key)))
    }

    /// The administration of a node.
    pub(super) fn admin(&self, node: usize) -> AdminServiceClient<Channel> {
        RawNode(node).admin()
    }

    fn log<T: std::fmt::Debug>(&self, what: &str, result: &Result<T, CallError>) {
        match result {
            Ok(it) => self.say(&format!("{what}: {it:?}")),
            Err(error) => {
                self.say(&format!("{what}: {} ({})", error.reason.as_str(), error.outcome.as_str()))
            }
        }
    }
}

/// Fails the script unless something is as it should be.
pub(super) fn ensure(it: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if it { Ok(()) } else { Err(otherwise.into()) }
}

/// Fails the script unless a call worked.
pub(super) fn works<T>(what: &str, result: Result<T, CallError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {} ({})", error.message, error.reason.as_str()))
}

/// True if nothing was applied, for this reason.
pub(super) fn refused_for<T>(result: &Result<T, CallError>, reason: Reason) -> bool {
    result
        .as_ref()
        .is_err_and(|it| it.reason == reason && it.outcome == proto::CallOutcome::NotApplied)
}

/// The rows of floors.
const FLOOR_PREFIX: &[u8] = b"\0floor/";
