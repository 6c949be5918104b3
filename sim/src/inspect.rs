//! Looks into a world from outside, where no client could: disks, clocks, queues, tasks, members.

mod replicas;
mod trees;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use model::{Hlc, MetadataHash, NodeId, Record, StorageKey, Version};
use node::{
    commit::QueueLimits,
    replica::decode_stored,
    storage::{Change, RangePage, RangeRequest, Space},
};
use xxhash_rust::xxh3::Xxh3;

pub use replicas::{marks_left, records_exchanged, replicas_agree};
pub use trees::trees_are_exact;

use crate::{
    checker::Violation,
    history::{Action, Operation, Outcome},
    shape::Shape,
    workload::decode,
    world::{EPOCH_MS, SimNode, World},
};

/// A hash of everything on all disks.
pub fn state_hash(world: &World) -> u64 {
    let mut hash = Xxh3::new();
    for node in &world.nodes {
        for space in Space::ALL {
            let page = node.disk.peek(&RangeRequest::prefix(space, Vec::new()));
            for (key, value) in page.rows {
                hash.update(&key);
                hash.update(&value);
            }
        }
    }
    hash.digest()
}

/// What a replica held last of a key.
#[derive(Clone, Copy)]
struct Newest {
    version: Version,
    /// When it may be purged (F6).
    due: Option<Hlc>,
    /// It was.
    purged: bool,
}

/// What must never go back, watched for the whole of a run.
#[derive(Default)]
pub struct Watch {
    versions: BTreeMap<(usize, Bytes), Newest>,
    ends: usize,
    disks_lost: Vec<u32>,
    /// Records that each node has removed because no source held them.
    discarded: Vec<u64>,
    metadata: BTreeMap<u64, (MetadataHash, String)>,
}

impl Watch {
    /// What was newest at a replica only rises: with every record that it writes, the records of one
    /// batch among themselves too, and through every end of a life, which takes no row with it
    /// (P2, G4).
    pub fn versions_rise(&mut self, world: &World) -> Vec<Violation> {
        let mut violations = Vec::new();
        self.disks_lost.resize(world.nodes.len(), 0);
        self.discarded.resize(world.nodes.len(), 0);
        for (index, node) in world.nodes.iter().enumerate() {
            // Another disk has held nothing yet.
            if std::mem::replace(&mut self.disks_lost[index], node.disks_lost) != node.disks_lost {
                self.versions.retain(|(of, _), _| *of != index);
                self.discarded[index] = 0;
            }
            // Nor has one more than it was damaged by.
            self.versions.retain(|place, _| !world.scarred.contains(place));
            let scarred =
                |key: &[u8]| world.scarred.contains(&(index, Bytes::copy_from_slice(key)));
            for batch in node.disk.take_batches() {
                for (space, change) in batch.changes() {
                    match (space, change) {
                        (Space::Data, Change::Put { key, .. } | Change::Delete { key })
                            if scarred(key) => {}
                        (Space::Data, Change::Put { key, value }) => {
                            let bytes = [key, value].map(Bytes::copy_from_slice);
                            violations.extend(self.holds(index, node, bytes));
                        }
                        (Space::Data, Change::Delete { key }) => {
                            violations.extend(self.purges(index, node, key));
                        }
                        _ => {}
                    }
                }
            }
        }
        if self.ends != world.ends.len() {
            self.ends = world.ends.len();
            for (index, node) in world.nodes.iter().enumerate() {
                let page = node.disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
                violations.extend(self.vanished(index, node, &page));
                let rows = page.rows.into_iter();
                let rows = rows.filter(|it| !world.scarred.contains(&(index, it.0.clone())));
                violations
                    .extend(rows.filter_map(|(key, value)| self.holds(index, node, [key, value])));
            }
        }
        violations
    }

    /// Only what a floor covers is ever removed (F6), but for what a replica is being filled without.
    fn purges(&mut self, index: usize, node: &SimNode, row: &[u8]) -> Option<Violation> {
        let place = (index, Bytes::copy_from_slice(row));
        let key = StorageKey::parse(place.1.clone())?;
        let Some(live) = node.controls.node() else {
            // Its process has ended since. What has a due clock may have been purged, and has to stay
            // gone; the rest went by the sources that fill the replica (F7), and may come back.
            match self.versions.get_mut(&place) {
                Some(held) if held.due.is_some() => held.purged = true,
                _ => drop(self.versions.remove(&place)),
            }
            return None;
        };
        let shared = &live.shared;
        let partition = shared.trees.partition_of(key.token())?;
        let held = self.versions.get_mut(&place)?;
        held.purged = true;
        let floor = shared.floors.of(key.keyspace(), partition).floor;
        let may_go = held.due.is_some_and(|due| due <= floor);
        let discarded = shared.commit_counters.load().records_discarded.load(Ordering::Relaxed);
        if !may_go && self.discarded[index] < discarded {
            // What it held counts no more: it goes by its sources (F7).
            self.discarded[index] += 1;
            self.versions.remove(&place);
            return None;
        }
        (!may_go).then(|| {
            let name = format!("{:?}", key.key());
            let what = format!(
                "{} removed {} at floor {floor}, which is due at {:?}",
                node.name, held.version, held.due
            );
            Violation::broken("purge", Some(&name), what)
        })
    }

    /// What a replica once held is there, be it damaged, unless it was purged.
    fn vanished(&self, index: usize, node: &SimNode, page: &RangePage) -> Option<Violation> {
        let rows: BTreeSet<&Bytes> = page.rows.iter().map(|it| &it.0).collect();
        let mine = self.versions.range((index, Bytes::new())..(index + 1, Bytes::new()));
        let mut gone = mine.filter(|((_, row), held)| !held.purged && !rows.contains(row));
        let ((_, row), Newest { version, .. }) = gone.next()?;
        let name = StorageKey::parse(row.clone()).map(|it| format!("{:?}", it.key()));
        let more = gone.count();
        let what = format!("{} held {version}, and the row is gone; so are {more} more", node.name);
        Some(Violation::broken("versions-rise", name.as_deref(), what))
    }

    fn holds(
        &mut self,
        index: usize,
        node: &SimNode,
        [row, value]: [Bytes; 2],
    ) -> Option<Violation> {
        let key = StorageKey::parse(row.clone())?;
        let record = decode_stored(&key, value).ok()?.record;
        let (version, due) = (record.version(), record.due());
        let newest = Newest { version, due, purged: false };
        let before = self.versions.insert((index, row), newest)?.version;
        (before > version).then(|| {
            let name = format!("{:?}", key.key());
            let what = format!("{} held {before}, and now {version}", node.name);
            Violation::broken("versions-rise", Some(&name), what)
        })
    }

    /// All nodes agree on each step of the metadata.
    pub fn metadata_agrees(&mut self, world: &World) -> Vec<Violation> {
        let mut violations = Vec::new();
        for it in &world.nodes {
            let Some(node) = it.controls.node() else { continue };
            let view = node.shared.view.load();
            let Some(metadata) = view.metadata() else { continue };
            let (sequence, hash) = (metadata.sequence(), metadata.hash());
            let first = self.metadata.entry(sequence).or_insert_with(|| (hash, it.name.clone()));
            if first.0 != hash {
                let what =
                    format!("{} and {} hold different metadata {sequence}", first.1, it.name);
                violations.push(Violation::broken("membership", None, what));
            }
        }
        violations
    }
}

/// Once no client has called for longer than a call may take: none is unanswered.
pub fn nothing_is_unanswered(world: &World) -> Vec<Violation> {
    let mut violations = Vec::new();
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let unanswered: usize = node.loops.iter().map(|it| it.lock().unanswered).sum();
        if unanswered > 0 {
            let what = format!("{}: {unanswered} calls are still unanswered", it.name);
            violations.push(Violation::broken("nothing-left", None, what));
        }
    }
    violations
}

/// No hybrid clock runs further ahead of true time than C1 to C5 let it.
///
/// One wall clock alone may be wrong by any time, and nobody believes it. What a second one shares
/// with it counts for the rest of the run: two that are wrong alike may confirm each other, and
/// hybrid clocks never go back. Above that a reading may lie `clock_offset_max` ahead, and a
/// restarted node's ceiling, made from such a reading, most of that again.
fn clocks_keep_near(world: &World) -> Vec<Violation> {
    let true_ms = EPOCH_MS + world.now_ms();
    let mut violations = Vec::new();
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let allowed_ms = 2 * node.shared.config.clock_offset_max_ms
            + u64::try_from(world.common_error_ms).unwrap_or(0);
        let highest_ms = node.shared.clock.highest().ms();
        if highest_ms > true_ms + allowed_ms {
            let ahead_ms = highest_ms - true_ms;
            let what = format!(
                "{}: its hybrid clock is {ahead_ms} ms ahead of true time, {allowed_ms} ms at most \
                 are explained (C1 to C5)",
                it.name
            );
            violations.push(Violation::broken("clock", None, what));
        }
    }
    violations
}

/// Everything that is watched now and then for the whole of a run.
pub fn watch(world: &World, watch: &mut Watch) -> Vec<Violation> {
    let mut seen = bounds(world);
    seen.extend(clocks_keep_near(world));
    seen.extend(watch.metadata_agrees(world));
    seen.extend(watch.versions_rise(world));
    seen
}

/// Looked at now and then: queues keep their bounds, deadlines ring, clocks keep their ceilings (C5).
pub fn bounds(world: &World) -> Vec<Violation> {
    let mut violations = Vec::new();
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let mut violated = |checker, what: String| {
            let what = format!("{}: {what}", it.name);
            violations.push(Violation::broken(checker, None, what));
        };
        let shared = &node.shared;
        let overdue = it.controls.overdue.swap(0, Ordering::Relaxed);
        if overdue > 0 {
            violated("deadline", format!("{overdue} clients were not told at their deadline"));
        }
        for io_loop in &node.loops {
            let state = io_loop.lock();
            let (unanswered, limit) = (state.unanswered, shared.config.operations_in_flight_max);
            if unanswered > limit {
                violated("bounded", format!("{unanswered} operations in flight, {limit} allowed"));
            }
            let (held, limit) = (state.operations.reads_and_writes(), limit * ANSWERED_FACTOR);
            if held > limit {
                violated("bounded", format!("{held} reads and writes held, {limit} allowed"));
            }
            let others = state.operations.len() - held;
            let limit = world.nodes.len() * (shared.config.scans_max + HINTS_AT_ONCE);
            if others > limit {
                violated("bounded", format!("{others} other requests held, {limit} allowed"));
            }
            for peer in state.peers.iter() {
                let (bytes, limit) = (peer.outbox.bytes(), shared.config.peer_queue_bytes_max);
                // The last message may pass it: a block at most, and the record that filled it.
                let message_max = (320 << 10) + shared.config.limits.value_bytes_max;
                if bytes > limit + message_max {
                    let what = format!("{bytes} bytes queued for a peer, {limit} allowed");
                    violated("bounded", what);
                }
            }
        }
        let (queued, limit) = (shared.commits.len(), QueueLimits::default().items_max);
        if queued > limit {
            violated("bounded", format!("{queued} items wait to be written, {limit} allowed"));
        }
        for (whose, bytes) in hint_bytes(it) {
            let (what, limit) = match whose {
                Some(target) => {
                    (format!("for {}", NodeId(target)), shared.config.hint_bytes_per_target_max)
                }
                None => ("of ANY".to_owned(), shared.config.any_hint_bytes_max),
            };
            if bytes > limit {
                violated("bounded", format!("{bytes} bytes of hints {what}, {limit} allowed"));
            }
        }
        let (highest, before) = (shared.clock.highest().0, it.ceiling_before);
        if highest < before {
            violated(
                "clock",
                format!("resumed at {highest}, below its durable ceiling {before} (C5)"),
            );
        }
    }
    violations
}

/// What never happens among nodes of one build: two records of one version that differ, leaves of trees
/// that are not what the data say, and messages that cannot be understood.
/// No disk of a sound world loses what trees have counted.
pub fn alarms(counters: &[(&'static str, u64)], disks_are_sound: bool) -> Vec<Violation> {
    let silent = ["conflicting_records", "peer_messages_malformed"];
    let of_disks = ["leaves_mended", "leaves_recounted", "records_healed"];
    let silent = |it: &str| silent.contains(&it) || disks_are_sound && of_disks.contains(&it);
    let rung = counters.iter().filter(|it| silent(it.0) && it.1 > 0);
    let told = rung.map(|(name, count)| format!("a node ended its life with {name} {count}"));
    told.map(|what| Violation::broken("alarm", None, what)).collect()
}

/// True if no node's replicas are being filled, or are to be.
pub fn nothing_is_filled(world: &World) -> bool {
    let live = world.nodes.iter().filter_map(|it| it.controls.node());
    live.map(|it| it.shared.floors.clone()).all(|it| !it.is_shut() && it.all().filling().is_none())
}

/// The bytes of the hints on a node's disk, for each target; those of ANY together, for nobody.
fn hint_bytes(node: &SimNode) -> BTreeMap<Option<u128>, u64> {
    let mut bytes = BTreeMap::new();
    for (row, value) in node.disk.peek(&RangeRequest::prefix(Space::Hints, Vec::new())).rows {
        let target = row[..NODE_BYTES].try_into().map(u128::from_be_bytes).unwrap_or_default();
        let whose = (value.first() == Some(&ORDINARY_CLASS)).then_some(target);
        *bytes.entry(whose).or_default() += (row.len() + value.len()) as u64;
    }
    bytes
}

/// Hints are handed over and forgotten once their targets are there again (H2).
pub fn hints_are_gone(world: &World) -> Result<(), String> {
    let mut left = Vec::new();
    for node in &world.nodes {
        let rows = node.disk.peek(&RangeRequest::prefix(Space::Hints, Vec::new())).rows;
        if let Some((row, _)) = rows.first() {
            let key =
                StorageKey::parse(row.slice(NODE_BYTES..)).map(|it| format!("{:?}", it.key()));
            left.push(format!("{} keeps {}, of {key:?} first", node.name, rows.len()));
        }
    }
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// Hints carry final stamps (H2): no node that has lived through everything, and whose disk works,
/// keeps a value under another version than the one it was acknowledged with a while ago.
pub fn hints_are_final(world: &World, history: &[Operation]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let now_us = u64::try_from(world.now().as_micros()).unwrap_or(u64::MAX);
    let mut acknowledged: Option<BTreeMap<u64, Version>> = None;
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let failed = &node.shared.commit_counters.load().groups_failed;
        let slow = it.controls.disk_ms.load(Ordering::Relaxed) > world.shape.disk_ms;
        if it.ceiling_before > 0 || failed.load(Ordering::Relaxed) > 0 || slow {
            continue;
        }
        for (row, value) in it.disk.peek(&RangeRequest::prefix(Space::Hints, Vec::new())).rows {
            let Some(key) = StorageKey::parse(row.slice(NODE_BYTES..)) else { continue };
            let Some(record) = value.get(CLASS_BYTES..).map(|it| value.slice_ref(it)) else {
                continue;
            };
            let Ok(record) = Record::check(&key, record) else { continue };
            let Some(written) = decode(&record.value()) else { continue };
            let until_us = now_us.saturating_sub(HINT_REPLACED_US);
            let acknowledged =
                acknowledged.get_or_insert_with(|| acknowledged_before(history, until_us));
            if let Some(version) = acknowledged.get(&written)
                && *version != record.version()
            {
                let what = format!(
                    "{} keeps a hint of value {written} at {}, which was acknowledged at {version} (H2)",
                    it.name,
                    record.version()
                );
                violations.push(Violation::broken(
                    "hints",
                    Some(&format!("{:?}", key.key())),
                    what,
                ));
            }
        }
    }
    violations
}

fn acknowledged_before(history: &[Operation], until_us: u64) -> BTreeMap<u64, Version> {
    // Of a put that was sent several times, each may have left hints of its own.
    let once = history.iter().filter(|it| it.tries == 1);
    let puts = once.filter(|it| it.returned_us.is_some_and(|it| it < until_us));
    let written = puts.filter_map(|it| match (&it.action, &it.outcome) {
        (Action::Put { value, .. }, Outcome::Written { version }) => Some((*value, *version)),
        _ => None,
    });
    written.collect()
}

/// How the nodes are, for the log.
pub fn gauges(world: &World) -> String {
    let gauges = world.nodes.iter().map(|it| {
        let Some(node) = it.controls.node() else { return format!("{} is down", it.name) };
        let operations: usize = node.loops.iter().map(|it| it.lock().operations.len()).sum();
        let connections = node.shared.connections.load(Ordering::Relaxed);
        let tasks = it.controls.tasks.load(Ordering::Relaxed);
        let name = &it.name;
        format!("{name}: {operations} operations, {connections} connections, {tasks} tasks")
    });
    gauges.collect::<Vec<_>>().join("; ")
}

/// At the end: every node calls every other up, and all hold the same metadata.
pub fn members_agree(world: &World) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut sequences = BTreeMap::new();
    for it in &world.nodes {
        let violated = |what: String| Violation::broken("membership", None, what);
        let Some(node) = it.controls.node() else {
            violations.push(violated(format!("{} does not run", it.name)));
            continue;
        };
        let shared = &node.shared;
        sequences
            .entry(shared.view.load().sequence())
            .or_insert_with(Vec::new)
            .push(it.name.clone());
        let now_us = shared.elapsed_us();
        let statuses = shared.statuses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let up = statuses.values().filter(|status| status.is_up(now_us)).count();
        if up + 1 < world.nodes.len() {
            violations.push(violated(format!("{} calls {} nodes up beside itself", it.name, up)));
        }
    }
    if sequences.len() > 1 {
        let what = format!("nodes hold different metadata: {sequences:?}");
        violations.push(Violation::broken("membership", None, what));
    }
    violations
}

/// At the end, the clients gone: nothing is in flight, and no node runs more tasks than its links
/// and services need.
pub fn nothing_is_left(world: &World, shape: &Shape) -> Vec<Violation> {
    let mut violations = Vec::new();
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let mut violated = |what: String| {
            let what = format!("{}: {what}", it.name);
            violations.push(Violation::broken("nothing-left", None, what));
        };
        let connections = node.shared.connections.load(Ordering::Relaxed);
        if connections > 0 {
            violated(format!("{connections} connections of clients are still open"));
        }
        let held: usize = node.shared.loop_metrics.iter().map(|it| it.call_bytes.held()).sum();
        if held > 0 {
            violated(format!("{held} bytes are held for calls"));
        }
        let tasks = it.controls.tasks.load(Ordering::Relaxed);
        let limit = TASKS_OF_A_NODE + TASKS_OF_A_LINK * shape.nodes().count();
        if tasks > limit {
            violated(format!("{tasks} tasks run, {limit} suffice"));
        }
    }
    violations
}

/// What precedes the key in a hint's row: whom it is for.
const NODE_BYTES: usize = 16;
/// What precedes the record: whether it is one of ANY.
const CLASS_BYTES: usize = 1;
const ORDINARY_CLASS: u8 = 0;
/// How long the disk may take to replace a hint after its write was acknowledged.
const HINT_REPLACED_US: u64 = 2_000_000;
/// Hints that a node has under way to another, at most.
const HINTS_AT_ONCE: usize = 256;
/// How many more operations than may be unanswered a node may hold, for the hints of slow replicas.
const ANSWERED_FACTOR: usize = 4;
const TASKS_OF_A_NODE: usize = 24;
const TASKS_OF_A_LINK: usize = 9;
