//! Fills this node's replicas from others after its database directory was lost, replaced or put back.
//! Rules: docs/protocol.md, F7.
//!
//! Until a partition was filled this replica of it answers no reads; it takes new writes as soon as it
//! knows from the sources below which stamps nothing may come any more.

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use model::{Hlc, KeyspaceId, Mutant, NodeId, PartitionIndex, Refusal, StorageId};
use proto::internal::{ExchangeAnswer, FillOpen, exchange_request::Step};

use super::{pace::Pace, purge::own_partitions, round::Round};
use crate::{
    clock_watch::ClockState,
    commit::{CommitItem, FloorChange},
    exchange::{refused, source_floor},
    io::io_loop::IoLoop,
    shared::{Shared, system_key},
    view::{KeyspaceView, View},
};
use sources::{Answers, Need, Source};

/// How far the filling has come, for who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FillStatus {
    /// When it began, in microseconds since the node started.
    pub(crate) began_us: u64,
    /// Replicas to be filled.
    pub(crate) partitions: u64,
    /// Those that were.
    pub(crate) filled: u64,
    /// Nodes that are missed: too few sources are left without them.
    pub(crate) missing: BTreeSet<NodeId>,
}

/// Where the filling of this node's replicas stands.
#[derive(Default)]
pub(crate) struct FillBoard(Mutex<Option<FillStatus>>);

impl FillBoard {
    /// How far it has come; `None` if there is nothing to fill.
    pub(crate) fn status(&self) -> Option<FillStatus> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<FillStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IoLoop {
    /// Fills this node's replicas whenever they have to be, for as long as the node lives.
    pub(in crate::io) async fn run_fill(self: Arc<Self>) {
        loop {
            let shared = &self.shared;
            // Registered before the look, so that nothing is missed in between.
            let sound = shared.witness.sound.notified();
            let generation = shared.floors.all().filling().filter(|_| !shared.floors.is_shut());
            let Some(generation) = generation else {
                tokio::select! {
                    biased;
                    () = sound => {}
                    () = tokio::time::sleep(LOOK_AGAIN) => self.shared.look_at_directory(),
                }
                continue;
            };
            let began_us = self.now_us();
            shared.fill.lock().get_or_insert_with(|| FillStatus { began_us, ..<_>::default() });
            // Fences rise by this node's clock: it has to be known to be right.
            if shared.await_clock(FILL_AGAIN).await.is_err() && !self.accepts_loss() {
                tokio::time::sleep(FILL_AGAIN).await;
                continue;
            }
            if self.fill_all(generation).await && self.end_fill(generation).await {
                *shared.fill.lock() = None;
                tracing::info!("all replicas of this node are filled");
                continue;
            }
            tokio::time::sleep(FILL_AGAIN).await;
        }
    }

    /// Fills whatever can be. True if nothing is left to fill, by metadata as new as anybody's in reach.
    async fn fill_all(&self, generation: u64) -> bool {
        let shared = &self.shared;
        let view = shared.view.load_full();
        let Some(metadata) = view.metadata() else { return false };
        let (mut status, mut newest) = (FillStatus::default(), view.sequence());
        for keyspace in metadata.keyspaces() {
            let Some(known) = view.keyspace_of_id(keyspace.id) else { continue };
            let mut missing = self.fill_keyspace(&view, known, generation).await;
            status.missing.append(&mut missing);
            let own: Vec<_> = own_partitions_of(&view, known).collect();
            let table = shared.floors.all();
            let counts = |it: &&PartitionIndex| table.counts(keyspace.id, **it);
            status.partitions += u64::try_from(own.len()).unwrap_or(u64::MAX);
            status.filled += u64::try_from(own.iter().filter(counts).count()).unwrap_or(u64::MAX);
        }
        for peer in self.lock().peers.iter() {
            let told = &peer.status.metadata_sequence;
            newest = newest.max(told.load(std::sync::atomic::Ordering::Relaxed));
        }
        // By the metadata that were filled by: others may have come meanwhile.
        let newest = newest.max(shared.view.load().sequence());
        let done = status.filled == status.partitions && newest == view.sequence();
        if let Some(noted) = shared.fill.lock().as_mut() {
            *noted = FillStatus { began_us: noted.began_us, ..status };
        }
        done
    }

    /// All of it counts from now on; what the directory before has promised about the metadata that
    /// follows this one is not known.
    async fn end_fill(&self, generation: u64) -> bool {
        let shared = &self.shared;
        let sequence = if shared.config.accept_loss { 0 } else { shared.view.load().sequence() };
        let value = Bytes::copy_from_slice(&sequence.to_be_bytes());
        let key = Bytes::from_static(system_key::FILLED_AT);
        if shared.make_durable(key, Some(value)).await.is_err() {
            return false;
        }
        let (done, ended) = tokio::sync::oneshot::channel();
        let item = CommitItem::Fill {
            generation: None,
            ends: Some(generation),
            identity: None,
            done: Box::new(|it| drop(done.send(it))),
        };
        shared.commits.push_system(item).is_ok() && matches!(ended.await, Ok(Ok(())))
    }

    /// Fills this node's replicas of a keyspace as far as there are sources; the nodes that are missed.
    async fn fill_keyspace(
        &self,
        view: &View,
        keyspace: &KeyspaceView,
        generation: u64,
    ) -> BTreeSet<NodeId> {
        let (shared, id) = (&self.shared, keyspace.keyspace.id);
        let table = shared.floors.all();
        let left: Vec<_> =
            own_partitions_of(view, keyspace).filter(|it| !table.counts(id, *it)).collect();
        if left.is_empty() {
            return BTreeSet::new();
        }
        let answers = self.ask_sources(view, keyspace, &left).await;
        let mut missing = BTreeSet::new();
        let mut sources: BTreeMap<PartitionIndex, (Need, Vec<Source>)> = BTreeMap::new();
        for partition in left {
            let set = keyspace.replica_set(partition);
            let Some(need) = Need::of(view, set, &answers, self.accepts_loss()) else {
                continue;
            };
            let found = answers.of(partition);
            match need.is_met(found.iter().map(|it| it.node)) {
                true => drop(sources.insert(partition, (need, found))),
                false => missing.extend(need.others().filter(|it| !answers.has(*it))),
            }
        }
        // It may have jumped since it was looked at.
        let clock_ms = match shared.trusted_wall() {
            Ok(wall) => shared.clock.read(wall).ms(),
            // Most of the others are lost: nobody is left to say whether it is right.
            Err(ClockState::Unverified) if self.accepts_loss() => {
                shared.clock.read(shared.believed_wall()).ms()
            }
            Err(_) => return missing,
        };
        let own_fence = Hlc::from_ms(clock_ms.saturating_add(shared.config.clock_offset_max_ms));
        for (partition, (_, sources)) in &sources {
            let highest = sources.iter().max_by_key(|it| it.floor);
            let (floor, round) = highest.map_or((Hlc::ZERO, 0), |it| (it.floor, it.round));
            let fence = sources.iter().map(|it| it.fence).fold(own_fence, Hlc::max);
            let change = FloorChange::Open { generation, fence, floor, round };
            self.queue(CommitItem::Floor { keyspace: id, partition: *partition, change });
        }
        if self.settled().await {
            self.fill_from((view, keyspace), sources, generation).await;
        }
        missing
    }

    /// Brings what the sources of partitions hold, and counts those in that are certain.
    async fn fill_from(
        &self,
        (view, known): (&View, &KeyspaceView),
        mut sources: BTreeMap<PartitionIndex, (Need, Vec<Source>)>,
        generation: u64,
    ) {
        let (mut pace, keyspace) = (Pace::default(), known.keyspace.id);
        let table = self.shared.floors.all();
        // One with a lower floor than was opened with has no say about what lies between: the one that had
        // it is away, and is waited for.
        sources.retain(|partition, (_, sources)| {
            let highest = sources.iter().map(|it| it.floor).max();
            highest.unwrap_or_default() >= table.of(keyspace, *partition).floor
        });
        // What only this replica holds and a purge may have covered goes first, by one source of the
        // highest floor: what another such source holds all the same comes back from there.
        let mut judges: BTreeMap<NodeId, Vec<(PartitionIndex, Hlc)>> = BTreeMap::new();
        let mut givers: BTreeMap<NodeId, Vec<(PartitionIndex, Hlc)>> = BTreeMap::new();
        for (partition, (_, sources)) in &sources {
            if let Some(judge) = sources.iter().max_by_key(|it| (it.floor, it.node)) {
                judges.entry(judge.node).or_default().push((*partition, judge.floor));
            }
            for it in sources {
                givers.entry(it.node).or_default().push((*partition, it.floor));
            }
        }
        let mut judged = BTreeSet::new();
        for (node, partitions) in judges {
            let done = Round::fill(self, node, keyspace, &partitions, true, &mut pace).await;
            judged.extend(done.unwrap_or_default());
        }
        let mut certain: BTreeMap<PartitionIndex, Vec<NodeId>> = BTreeMap::new();
        for (node, mut partitions) in givers {
            partitions.retain(|it| judged.contains(&it.0));
            let done = Round::fill(self, node, keyspace, &partitions, false, &mut pace).await;
            match done {
                Ok(done) => done.into_iter().for_each(|it| {
                    certain.entry(it).or_default().push(node);
                }),
                Err(end) => {
                    tracing::warn!(%node, ?end, "a source was lost while it filled replicas")
                }
            }
        }
        // A source that has purged further meanwhile may have left out what this replica still holds. One that
        // does not say so now does not count.
        let partitions: Vec<PartitionIndex> = sources.keys().copied().collect();
        let answers = self.ask_sources(view, known, &partitions).await;
        for (partition, (need, found)) in sources {
            let own = table.of(keyspace, partition).floor;
            let now = answers.of(partition);
            if now.iter().any(|it| it.floor > own) {
                continue;
            }
            let mut held = certain.remove(&partition).unwrap_or_default();
            held.retain(|node| now.iter().any(|it| it.node == *node));
            // Without any source there is nothing to be certain of: the operator has said so.
            if need.is_met(held.into_iter()) && (judged.contains(&partition) || found.is_empty()) {
                let change = FloorChange::Filled { generation };
                self.queue(CommitItem::Floor { keyspace, partition, change });
            }
        }
        // What was not written is filled again.
        self.settled().await;
    }

    /// True if fewer sources than a quorum needs are to do, and all that are there had time to be found.
    fn accepts_loss(&self) -> bool {
        let began_us = self.shared.fill.status().map_or(u64::MAX, |it| it.began_us);
        self.shared.config.accept_loss
            && self.now_us().saturating_sub(began_us) >= ACCEPT_LOSS_AFTER_US
    }

    async fn ask_sources(
        &self,
        view: &View,
        keyspace: &KeyspaceView,
        partitions: &[PartitionIndex],
    ) -> Answers {
        let mut answers = Answers::default();
        let Some((metadata, own)) = view.metadata().zip(view.own()) else { return answers };
        let layout = metadata.layout();
        let mut asked: BTreeMap<NodeId, Vec<PartitionIndex>> = BTreeMap::new();
        for partition in partitions {
            let replicas = keyspace.replica_set(*partition).nodes();
            for node in replicas.iter().filter(|it| **it != own) {
                asked.entry(layout.node(*node).id).or_default().push(*partition);
            }
        }
        let storage = self.shared.storage_id();
        let offset_ms = self.shared.config.clock_offset_max_ms;
        let latest_ms = self.shared.believed_wall().0.saturating_add(offset_ms);
        let storage_id = Bytes::copy_from_slice(&storage.to_bytes());
        for (node, partitions) in asked {
            let (Some(index), true) = (view.node_index(node), self.can_deliver(node)) else {
                continue;
            };
            let step = Step::FillOpen(FillOpen {
                keyspace: keyspace.keyspace.id.0,
                partitions: partitions.iter().map(|it| it.0.into()).collect(),
                storage_id: storage_id.clone(),
            });
            answers.ask(node);
            match self.exchange_step(index, step).await {
                Ok(answered) => answers.take(node, &answered.answer.floors),
                Err(end) => {
                    let seen = self.shared.seen_storage(node);
                    // One from the future tells nothing: its clock was wrong when it was made.
                    let lost_later = seen.is_some_and(|it| {
                        let is_later = it.storage > storage && it.storage.generation() <= latest_ms;
                        is_later || Mutant::FillOrderIgnored.is_on()
                    });
                    answers.refused(node, end, lost_later);
                }
            }
        }
        answers
    }

    /// Answers a node that is about to fill its replicas from this one.
    pub(super) async fn answer_fill(&self, from: NodeId, open: FillOpen) -> ExchangeAnswer {
        let shared = &self.shared;
        let (view, keyspace) = (shared.view.load_full(), KeyspaceId(open.keyspace));
        let own = own_partitions(&view, keyspace, &open.partitions);
        let (Some(partitions), Some(storage)) = (own, StorageId::from_slice(&open.storage_id))
        else {
            return refused(Refusal::Failed);
        };
        // For good, before anything is given: votes of the directory before count no more (F12).
        match shared.keep_storage(from, storage).await {
            Ok(true) => {}
            Ok(false) => return refused(Refusal::StaleLayout),
            Err(_) => return refused(Refusal::Failed),
        }
        let floors = shared.floors.all();
        let floors = partitions.iter().map(|it| source_floor(*it, floors.of(keyspace, *it)));
        ExchangeAnswer { floors: floors.collect(), ..ExchangeAnswer::default() }
    }
}

impl Shared {
    /// Up to which sequence of the metadata an earlier directory of this node may have taken part in
    /// decisions of which this one knows nothing (L5).
    pub(in crate::io) fn abstains_up_to(&self) -> Option<u64> {
        if self.storage_id().generation() == 0 {
            return None;
        }
        if self.is_filling() {
            return Some(u64::MAX);
        }
        let kept = self.world.storage.get(crate::storage::Space::System, system_key::FILLED_AT);
        let sequence = kept.ok().flatten().and_then(|it| it[..].try_into().ok());
        // Without a readable one nothing may be promised.
        Some(sequence.map_or(u64::MAX, |it| match u64::from_be_bytes(it) {
            0 => 0,
            sequence => sequence + 1,
        }))
    }
}

/// The partitions of a keyspace of which this node holds a replica.
fn own_partitions_of<'a>(
    view: &'a View,
    keyspace: &'a KeyspaceView,
) -> impl Iterator<Item = PartitionIndex> + 'a {
    let layout = view.metadata().map(|it| it.layout());
    let partitions = layout.into_iter().flat_map(|it| it.partition_indexes());
    let own = view.own();
    partitions
        .filter(move |it| own.is_some_and(|own| keyspace.replica_set(*it).replica(own).is_some()))
}

/// How soon a start looks again whether others have found its directory sound.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long sources are looked for before it is accepted that there are no more.
const ACCEPT_LOSS_AFTER_US: u64 = 10_000_000;
/// How soon replicas are tried again that could not be filled.
const FILL_AGAIN: Duration = Duration::from_secs(1);
