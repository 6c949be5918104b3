//! Whether replicas hold the same, and what it took.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use model::{Hlc, Record, StorageKey};
use node::{
    commit::DIRTY_PREFIX,
    replica::decode_stored,
    storage::{RangeRequest, Space},
};

use crate::{checker::Violation, world::World};

/// After everything was read at ALL: the replicas of each key hold the same record, to the byte.
pub fn replicas_agree(world: &World) -> Vec<Violation> {
    let mut held: BTreeMap<StorageKey, Vec<(String, Option<Record>)>> = BTreeMap::new();
    for node in &world.nodes {
        let page = node.disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
        for (key, value) in page.rows {
            let Some(key) = StorageKey::parse(key) else { continue };
            let record = decode_stored(&key, value).ok().map(|it| it.record);
            if record.as_ref().is_some_and(|it| it.purgeable_at(highest_floor(world, &key))) {
                // It is gone, whether or not every replica has removed it yet.
                continue;
            }
            held.entry(key).or_default().push((node.name.clone(), record));
        }
    }
    let replicas = usize::from(world.shape.replicas_in_all());
    let bytes = |it: &Option<Record>| it.as_ref().map(|it| it.as_bytes().clone());
    let differ = held.into_iter().filter(|(_, holders)| {
        let first = bytes(&holders[0].1);
        holders.len() != replicas
            || first.is_none()
            || holders.iter().any(|it| bytes(&it.1) != first)
    });
    let violation = |(key, holders): (StorageKey, Vec<(String, Option<Record>)>)| {
        let name = format!("{:?}", key.key());
        let told = |(node, record): (String, Option<Record>)| match record {
            Some(it) => format!("{node}: {} (checksum {:08x})", it.version(), it.crc()),
            None => format!("{node}: damaged"),
        };
        let holders: Vec<_> = holders.into_iter().map(told).collect();
        let what = format!("of {replicas} replicas these hold it: {}", holders.join(", "));
        Violation::broken("replicas-agree", Some(&name), what)
    };
    differ.map(violation).collect()
}

/// The highest floor that any replica has for a key.
fn highest_floor(world: &World, key: &StorageKey) -> Hlc {
    let floors = world.nodes.iter().filter_map(|it| {
        let shared = &it.controls.node()?.shared;
        let partition = shared.trees.partition_of(key.token())?;
        Some(shared.floors.of(key.keyspace(), partition).floor)
    });
    floors.max().unwrap_or(Hlc::ZERO)
}

/// What nodes still mark dirty.
pub fn marks_left(world: &World) -> Vec<String> {
    let marks = world.nodes.iter().map(|it| {
        let marks = it.disk.peek(&RangeRequest::prefix(Space::System, DIRTY_PREFIX)).rows;
        (&it.name, marks.len())
    });
    let left = marks.filter(|it| it.1 > 0);
    let left = left.map(|(name, marks)| format!("{name} marks {marks} parts of the ring dirty"));
    let owed = world.nodes.iter().filter_map(|it| {
        let owed = &it.controls.node()?.shared.commit_counters.load().marks_owed;
        let owed = owed.load(Ordering::Relaxed);
        (owed > 0).then(|| format!("{} owes {owed} dirty marks", it.name))
    });
    left.chain(owed).collect()
}

/// The records that exchanges have moved since the nodes started.
pub fn records_exchanged(world: &World) -> u64 {
    let counters = world.nodes.iter().filter_map(|it| it.controls.node());
    let moved = |it: &node::io::Node| {
        let counters = &it.shared.counters;
        counters.exchange_records_sent.load(Ordering::Relaxed)
            + counters.exchange_records_taken.load(Ordering::Relaxed)
    };
    counters.map(|it| moved(&it)).sum()
}
