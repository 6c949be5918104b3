//! The gauges of a node: figures of its state, read when they are asked for.

use std::{collections::BTreeMap, fmt, sync::atomic::Ordering};

use model::{KeyspaceId, NodeId};
use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder},
    metrics::MetricType,
};

use crate::{
    clock_watch::ClockState,
    commit::{HintSum, KeptHints},
    exchange::PurgeBlock,
    membership::Member,
    shared::Shared,
};

/// A gauge: one series, or one for each set of labels.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// As status and metrics show it.
    pub name: &'static str,
    help: &'static str,
    series: Vec<(Labels, GaugeValue)>,
}

type Labels = Vec<(&'static str, String)>;

/// What a gauge shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum GaugeValue {
    /// A number of things, or whole units.
    Whole(u64),
    /// Anything else.
    Decimal(f64),
}

impl GaugeValue {
    fn encode(self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => encoder.encode_gauge(&value),
            Self::Decimal(value) => encoder.encode_gauge(&value),
        }
    }
}

impl From<u64> for GaugeValue {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for GaugeValue {
    fn from(value: f64) -> Self {
        Self::Decimal(value)
    }
}

impl From<bool> for GaugeValue {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl Gauge {
    /// Of one series, which status shows too.
    fn plain(name: &'static str, help: &'static str, value: impl Into<GaugeValue>) -> Self {
        Self { name, help, series: vec![(Labels::new(), value.into())] }
    }

    /// Of one series for each set of labels.
    fn labelled<V: Into<GaugeValue>>(
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (Labels, V)>,
    ) -> Self {
        Self { name, help, series: series.map(|(labels, it)| (labels, it.into())).collect() }
    }

    /// Its value, if it is one whole number for the node.
    pub(crate) fn whole(&self) -> Option<u64> {
        match self.series[..] {
            [(ref labels, GaugeValue::Whole(value))] if labels.is_empty() => Some(value),
            _ => None,
        }
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.series.is_empty() {
            return Ok(());
        }
        let mut family =
            encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?;
        for (labels, value) in &self.series {
            if labels.is_empty() {
                value.encode(&mut family)?;
            } else {
                value.encode(&mut family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

/// Every gauge of a node. To add one is to add a line here, or to one of the parts.
pub(crate) fn gauges(shared: &Shared) -> Vec<Gauge> {
    let mut gauges = traffic(shared);
    gauges.extend(trees(shared));
    gauges.extend(scrub(shared));
    gauges.extend(storage(shared));
    gauges.extend(others(shared));
    gauges.extend(convergence(shared));
    gauges.extend(purges(shared));
    gauges.extend(clock(shared));
    gauges
}

fn traffic(shared: &Shared) -> Vec<Gauge> {
    let loops = shared.loop_metrics.iter();
    let in_flight = loops.map(|it| it.operations_in_flight.load(Ordering::Relaxed)).sum();
    let held = shared.loop_metrics.iter().map(|it| it.call_bytes.held()).sum();
    let scans = shared.config.scans_max.saturating_sub(shared.scans.available_permits());
    let connections = shared.connections.load(Ordering::Relaxed);
    vec![
        Gauge::plain("operations_in_flight", "Operations in flight.", whole(in_flight)),
        Gauge::plain(
            "call_bytes",
            "Bytes that calls hold, and answers that clients have yet to take.",
            whole(held),
        ),
        Gauge::plain("connections", "Client connections open.", connections),
        Gauge::plain("scans_reading", "Scans that read a page.", whole(scans)),
    ]
}

fn trees(shared: &Shared) -> Vec<Gauge> {
    let trees = shared.trees.statistics();
    let unfilled = shared.fill.status().map_or(0, |it| it.partitions - it.filled);
    vec![
        Gauge::plain(
            "partitions_unfilled",
            "Replicas of this node that answer no reads before others have filled them.",
            unfilled,
        ),
        Gauge::plain("tree_records", "Records in Merkle trees.", trees.records),
        Gauge::plain("tree_leaves", "Leaves of Merkle trees.", trees.leaves),
        Gauge::plain("tree_memory_bytes", "Memory of Merkle trees.", trees.memory_bytes),
    ]
}

/// How far trees are known to be those of the data.
fn scrub(shared: &Shared) -> Vec<Gauge> {
    let state = shared.scrub.state();
    let wall_ms = shared.wall().0;
    let ended = Some(state.ended_ms).filter(|it| *it > 0);
    let age = ended.map(|it| (Labels::new(), wall_ms.saturating_sub(it) / 1_000));
    let last = state.last.unwrap_or_default();
    vec![
        Gauge::labelled(
            "scrub_age_seconds",
            "Since the last pass of the scrub over all data ended, if one has.",
            age.into_iter(),
        ),
        Gauge::plain(
            "scrub_partitions",
            "Partitions that the pass of the scrub under way has compared so far.",
            state.running.unwrap_or_default().partitions,
        ),
        Gauge::plain(
            "scrub_mismatches",
            "Leaves that were not what the data say, in the last pass of the scrub.",
            last.mismatches,
        ),
        Gauge::plain(
            "scrub_leaves_unreadable",
            "Leaves whose data storage could not read, in the last pass of the scrub. Alarm.",
            last.leaves_unreadable,
        ),
        Gauge::plain(
            "records_damaged",
            "Records that are known to be damaged, and not healed yet. Alarm.",
            shared.damage.count(),
        ),
        Gauge::plain(
            "rows_unreadable",
            "Rows of which not even the key can be read, in the last pass of the scrub. Alarm.",
            shared.damage.unreadable(),
        ),
    ]
}

fn storage(shared: &Shared) -> Vec<Gauge> {
    let storage = shared.world.storage.statistics();
    vec![
        Gauge::plain(
            "storage_data_rows",
            "Rows of data, tombstones among them; the engine's estimate.",
            storage.data_rows,
        ),
        Gauge::plain("storage_hint_rows", "Rows of hints; an estimate.", storage.hint_rows),
        Gauge::plain("storage_file_bytes", "Bytes of data files.", storage.file_bytes),
        Gauge::plain(
            "storage_memory_bytes",
            "Bytes of writes not yet moved to data files.",
            storage.memory_bytes,
        ),
        Gauge::plain("row_cache_bytes", "Bytes of rows cached.", storage.row_cache_bytes),
    ]
}

/// What is known of the other nodes, and kept for them.
fn others(shared: &Shared) -> Vec<Gauge> {
    let directory = shared.directory.borrow().clone();
    let others: Vec<_> =
        directory.values().filter(|it| it.node() != shared.identity.node).collect();
    let now_us = shared.elapsed_us();
    let is_up = |it: &Member| shared.status(it.node()).is_reachable(now_us);
    let up = others.iter().filter(|it| is_up(it)).count();
    let peers = others.iter().map(|it| (place(it), is_up(it)));

    let totals = shared.hint_totals.load().all();
    // Known nodes for which nothing is kept show zero: an alert needs a series that ends there.
    let known = others.iter().map(|it| (it.node(), KeptHints::default()));
    let mut targets: BTreeMap<_, _> = known.collect();
    targets.extend(totals);
    let wall_ms = shared.wall().0;
    let named = |node: &NodeId| match directory.get(node) {
        Some(member) => place(member),
        None => vec![("node", node.to_string())],
    };
    let classes = |value: fn(&HintSum, u64) -> u64| {
        let named = &named;
        targets.iter().flat_map(move |(node, it)| {
            let of = move |class: &str, sum: &HintSum| {
                let mut labels = named(node);
                labels.push(("class", class.to_owned()));
                (labels, value(sum, wall_ms))
            };
            [of("ordinary", &it.ordinary), of("any", &it.any)]
        })
    };
    vec![
        Gauge::plain("peers_up", "Other nodes that are up, as this one sees it.", whole(up)),
        Gauge::plain("peers_down", "Other nodes that are down.", whole(others.len() - up)),
        Gauge::labelled("peer_up", "1 if the node is up, as this one sees it.", peers),
        Gauge::labelled(
            "hints_waiting",
            "Hints kept for a node, to be delivered when it is back.",
            classes(|it, _| it.hints),
        ),
        Gauge::labelled("hints_waiting_bytes", "Their bytes.", classes(|it, _| it.bytes)),
        Gauge::labelled(
            "hints_waiting_oldest_seconds",
            "The age of the oldest of them, up to ten seconds too much; 0 if there is none.",
            classes(|it, now_ms| {
                it.oldest_ms.map_or(0, |oldest_ms| now_ms.saturating_sub(oldest_ms) / 1_000)
            }),
        ),
        Gauge::labelled(
            "dirty_marks",
            "Parts of the ring that a node must be compared for, as no hints are kept for them.",
            targets.iter().map(|(node, it)| (named(node), it.dirty_marks)),
        ),
    ]
}

/// What a keyspace's partitions come to, each counted once for every other node that holds it too.
#[derive(Default)]
struct Convergence {
    partitions: u64,
    same: u64,
    oldest_us: u64,
    records_moved: u64,
    bytes_moved: u64,
    overwritten: u64,
    kept: KeptHints,
}

/// How far this node's replicas are known to agree with the others', by keyspace: a series for each
/// pair of nodes would be too many.
fn convergence(shared: &Shared) -> Vec<Gauge> {
    let (keyspaces, wall_ms) = (by_keyspace(shared), shared.wall().0);
    let series = |value: fn(&Convergence) -> u64| {
        keyspaces.iter().map(move |(name, it)| (of_keyspace(name), value(it)))
    };
    // A share of nothing is none.
    let shared_with_others = |value: fn(&Convergence) -> u64| {
        let shared = keyspaces.iter().filter(|it| it.1.partitions > 0);
        shared.map(move |(name, it)| (of_keyspace(name), value(it)))
    };
    let oldest = |it: &Convergence| {
        it.kept.oldest_ms().map_or(0, |oldest_ms| wall_ms.saturating_sub(oldest_ms) / 1_000)
    };
    let oldest = keyspaces.iter().map(|(name, it)| (of_keyspace(name), oldest(it)));
    vec![
        Gauge::labelled(
            "convergence_partitions",
            "Partitions held here, each counted once for every other node that holds it too.",
            shared_with_others(|it| it.partitions),
        ),
        Gauge::labelled(
            "convergence_partitions_same",
            "Those that were the same there when they were last compared.",
            shared_with_others(|it| it.same),
        ),
        Gauge::labelled(
            "convergence_oldest_seconds",
            "Since the one of them that waits longest was found the same, or since the start.",
            shared_with_others(|it| it.oldest_us / 1_000_000),
        ),
        Gauge::labelled(
            "convergence_records_moved",
            "Records that rounds begun here have moved since the start, both ways.",
            series(|it| it.records_moved),
        ),
        Gauge::labelled("convergence_bytes_moved", "Their bytes.", series(|it| it.bytes_moved)),
        Gauge::labelled(
            "convergence_overwritten_concurrent",
            "Acknowledged writes since the start that a replica already held a newer version of.",
            series(|it| it.overwritten),
        ),
        Gauge::labelled(
            "convergence_hints",
            "Hints kept here, for all nodes together.",
            series(|it| it.kept.both().hints),
        ),
        Gauge::labelled(
            "convergence_hint_bytes",
            "Their bytes.",
            series(|it| it.kept.both().bytes),
        ),
        Gauge::labelled(
            "convergence_oldest_hint_seconds",
            "The age of the oldest of them, up to ten seconds too much; 0 if there is none.",
            oldest,
        ),
        Gauge::labelled(
            "convergence_dirty_marks",
            "Parts of the ring that nodes must be compared for, as no hints are kept for them.",
            series(|it| it.kept.dirty_marks),
        ),
    ]
}

/// What is known of each keyspace, and kept: a node keeps hints, and acknowledges writes, of keyspaces of
/// which it holds no replica. Those with nothing show zero: an alert needs a series that ends there.
fn by_keyspace(shared: &Shared) -> BTreeMap<String, Convergence> {
    let (view, now_us) = (shared.view.load(), shared.elapsed_us());
    let kept = shared.hint_totals.load().by_keyspace();
    let known = view.metadata().map(|it| it.keyspaces()).unwrap_or_default();
    let mut keyspaces: BTreeMap<KeyspaceId, (String, Convergence)> = BTreeMap::new();
    for it in known {
        let kept = kept.get(&it.id).copied().unwrap_or_default();
        let overwritten = shared.exchange.overwritten(it.id);
        let sum = Convergence { kept, overwritten, ..Convergence::default() };
        keyspaces.insert(it.id, (it.name.clone(), sum));
    }
    for ((id, _), pair) in shared.exchange.figures() {
        let Some((_, sum)) = keyspaces.get_mut(&id) else { continue };
        sum.partitions += pair.partitions;
        sum.same += pair.same;
        sum.oldest_us = sum.oldest_us.max(now_us.saturating_sub(pair.oldest_us));
        sum.records_moved += pair.records_moved;
        sum.bytes_moved += pair.bytes_moved;
    }
    keyspaces.into_values().collect()
}

/// What keeps tombstones and expired records of keyspaces that this node would purge.
fn purges(shared: &Shared) -> Vec<Gauge> {
    let (view, now_us) = (shared.view.load(), shared.elapsed_us());
    let directory = shared.directory.borrow().clone();
    let noted = shared.exchange.purges();
    let named = noted
        .iter()
        .filter_map(|(id, it)| Some((view.keyspace_of_id(*id)?.keyspace.name.clone(), it.0, it.1)));
    let named: Vec<_> = named.collect();
    let blocked = named.iter().map(|(name, block, since_us)| {
        let blocked_us = match block {
            PurgeBlock::Nothing => 0,
            _ => now_us.saturating_sub(*since_us),
        };
        (of_keyspace(name), blocked_us / 1_000_000)
    });
    let waits = named.iter().filter_map(|(name, block, _)| {
        let node = block.waits_for()?;
        let mut labels = of_keyspace(name);
        labels.extend(match directory.get(&node) {
            Some(member) => place(member),
            None => vec![("node", node.to_string())],
        });
        Some((labels, 1_u64))
    });
    vec![
        Gauge::labelled(
            "purge_blocked_seconds",
            "How long something has kept tombstones that this node would purge; 0 if nothing does.",
            blocked,
        ),
        Gauge::labelled("purge_waits_for", "1 for the node that is waited for.", waits),
    ]
}

fn of_keyspace(name: &str) -> Labels {
    vec![("keyspace", name.to_owned())]
}

fn clock(shared: &Shared) -> Vec<Gauge> {
    let state = shared.clock_gate.state();
    let states = ClockState::ALL.iter().map(|it| {
        let name = format!("{it:?}").to_lowercase();
        (vec![("state", name)], *it == state)
    });
    let (median_ms, _) = shared.clock_median_ms();
    let ahead = median_ms.map(|it| (Labels::new(), (-it) as f64 / 1e3));
    vec![
        Gauge::labelled("clock_state", "1 at the state that the wall clock is in.", states),
        Gauge::plain(
            "clock_coordinates",
            "1 if this node's wall clock is good enough to coordinate by.",
            state.coordinates(),
        ),
        Gauge::labelled(
            "clock_ahead_seconds",
            "How far this node's wall clock is ahead of the median of the nodes, if that is known.",
            ahead.into_iter(),
        ),
    ]
}

fn place(member: &Member) -> Labels {
    let it = member.description();
    vec![
        ("node", it.id.to_string()),
        ("address", it.client_address.to_string()),
        ("datacenter", it.datacenter),
    ]
}

fn whole(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
