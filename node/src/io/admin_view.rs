//! What the administration interface shows: nodes, figures, layouts and keyspaces as messages.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use model::{Keyspace, Metadata, NodeDescription, NodeIndex, Record, StorageKey};
use proto::{CallError, Reason, internal::QueryAnswer, v1};

use super::admin::AdminApi;
use crate::{clock_watch::ClockState, metrics::gauges, shared::Shared, view::View, wheel::TICK_US};

impl AdminApi {
    /// The layout's nodes in its order, then the others known.
    pub(super) fn node_infos(&self, view: &View) -> Vec<v1::NodeInfo> {
        let shared = &self.io.shared;
        let own = super::gossip::own_member(shared);
        // The layout says where each node was when it was made; this node knows where it is now.
        let mut directory = shared.directory.borrow().clone();
        directory.insert(own.node(), own);
        let mut infos: Vec<v1::NodeInfo> = Vec::new();
        if let Some(metadata) = view.metadata() {
            let layout = metadata.layout();
            for (at, node) in layout.nodes().iter().enumerate() {
                let present = directory.get(&node.id).map(|it| it.description());
                let index = NodeIndex(u16::try_from(at).expect("few nodes"));
                infos.push(v1::NodeInfo {
                    in_layout: true,
                    partitions: layout.partitions_of(index),
                    ..node_info(present.as_ref().unwrap_or(node))
                });
            }
        }
        for member in directory.values() {
            let info = node_info(&member.description());
            if infos.iter().all(|it| it.node_id != info.node_id) {
                infos.push(info);
            }
        }
        let state = self.io.lock();
        let now_us = shared.elapsed_us();
        for info in &mut infos {
            let node = proto::node_id(&info.node_id);
            if node == shared.identity.node {
                info.up = true;
                info.clock_offset_ms = Some(0);
                info.software_version = env!("CARGO_PKG_VERSION").to_owned();
                info.storage_id = Bytes::copy_from_slice(&shared.storage_id().to_bytes());
                continue;
            }
            let status = shared.status(node);
            let heard_us = status.last_heard_us.load(Ordering::Relaxed);
            info.up = state.peers.by_node(node).is_some() && status.is_up(now_us);
            info.last_heard_ms = now_us.saturating_sub(heard_us).max(1_000) / 1_000;
            info.clock_offset_ms = shared.clock_offset_ms(node);
            // Of one that is down, what it was like when it was heard last.
            info.software_version =
                status.linked().map(|it| it.software_version).unwrap_or_default();
            let seen = shared.seen_storage(node).map(|it| it.storage.to_bytes());
            info.storage_id = seen.map(|it| Bytes::copy_from_slice(&it)).unwrap_or_default();
        }
        infos
    }

    /// The nodes that a layout can name now: this one, and those whose links are up.
    pub(super) fn members(&self) -> Vec<NodeDescription> {
        let shared = &self.io.shared;
        let mut members = vec![super::gossip::own_member(shared).description()];
        let directory = shared.directory.borrow().clone();
        let state = self.io.lock();
        let now_us = shared.elapsed_us();
        for peer in state.peers.iter() {
            if peer.status.is_up(now_us)
                && let Some(member) = directory.get(&peer.node)
            {
                members.push(member.description());
            }
        }
        members
    }

    pub(super) fn counters(&self) -> BTreeMap<String, u64> {
        let shared = &self.io.shared;
        let mut figures = shared.counters.figures();
        figures.extend(shared.commit_counters.load().figures());
        let mut counters: BTreeMap<_, _> =
            figures.into_iter().map(|it| (it.name.to_owned(), it.value)).collect();
        let gauges = gauges(shared).into_iter();
        counters.extend(gauges.filter_map(|it| Some((it.name.to_owned(), it.whole()?))));
        // An alarm rings up to a tick late.
        let overdue = u64::try_from(self.io.overdue(TICK_US)).unwrap_or(u64::MAX);
        counters.insert("operations_overdue".to_owned(), overdue);
        counters
    }
}

/// A node's word on its own clock, as a message.
pub(super) fn clock_state(state: ClockState) -> v1::ClockState {
    match state {
        ClockState::Alone => v1::ClockState::Alone,
        ClockState::Unverified => v1::ClockState::Unverified,
        ClockState::Good => v1::ClockState::Good,
        ClockState::Disputed => v1::ClockState::Disputed,
        ClockState::Jumped => v1::ClockState::Jumped,
        ClockState::Off => v1::ClockState::Off,
        ClockState::Behind => v1::ClockState::Behind,
    }
}

pub(super) fn cluster_id(shared: &Shared) -> Bytes {
    let cluster = shared.cluster();
    if cluster.is_nil() { Bytes::new() } else { Bytes::copy_from_slice(&cluster.to_bytes()) }
}

pub(super) fn node_info(node: &NodeDescription) -> v1::NodeInfo {
    v1::NodeInfo {
        node_id: Bytes::copy_from_slice(&node.id.to_bytes()),
        datacenter: node.datacenter.clone(),
        rack: node.rack.clone(),
        client_address: node.client_address.to_string(),
        peer_address: node.peer_address.to_string(),
        capacity: node.capacity,
        ..v1::NodeInfo::default()
    }
}

pub(super) fn assignments(layout: &model::Layout) -> Vec<v1::Assignment> {
    let datacenters = layout.datacenters().iter().enumerate();
    let assignment = |(at, name): (usize, &String)| {
        let dc = model::DcIndex(u8::try_from(at).expect("few datacenters"));
        let lists: Vec<_> = layout.partition_indexes().map(|it| layout.list(dc, it)).collect();
        let list_length = lists.first().map_or(0, |it| it.len());
        v1::Assignment {
            datacenter: name.clone(),
            nodes: lists.into_iter().flatten().map(|it| it.0.into()).collect(),
            list_length: u32::try_from(list_length).expect("short lists"),
        }
    };
    datacenters.map(assignment).collect()
}

pub(super) fn keyspaces(view: &View) -> Vec<v1::Keyspace> {
    let keyspaces = view.metadata().map(|it| it.keyspaces()).unwrap_or_default();
    keyspaces.iter().map(keyspace_message).collect()
}

fn keyspace_message(it: &Keyspace) -> v1::Keyspace {
    let replicas = it.replicas.iter().map(|(datacenter, replicas)| v1::DatacenterReplicas {
        datacenter: datacenter.clone(),
        replicas: u32::from(*replicas),
    });
    v1::Keyspace {
        name: it.name.clone(),
        replicas: replicas.collect(),
        read_consistency: Some(it.read_level.into()),
        write_consistency: Some(it.write_level.into()),
        default_ttl_seconds: it.default_ttl_seconds.unwrap_or_default(),
        require_overlap: it.require_overlap,
        allow_any: it.allow_any,
        id: it.id.0,
    }
}

pub(super) fn created(metadata: &Metadata, name: &str) -> Result<v1::Keyspace, CallError> {
    metadata.keyspace(name).map(keyspace_message).ok_or_else(|| {
        let message = format!("keyspace {name:?} was dropped by someone else meanwhile");
        CallError::new(Reason::KeyspaceNotFound, message)
    })
}

pub(super) fn replica_state(
    view: &View,
    node: NodeIndex,
    key: &StorageKey,
    answer: Option<QueryAnswer>,
    now_ms: u64,
) -> v1::ReplicaState {
    let description = view.metadata().map(|it| it.layout().node(node));
    let mut state = v1::ReplicaState {
        node: node.0.into(),
        datacenter: description.map(|it| it.datacenter.clone()).unwrap_or_default(),
        address: description.map(|it| it.client_address.to_string()).unwrap_or_default(),
        answered: answer.is_some(),
        ..v1::ReplicaState::default()
    };
    let Some(answer) = answer else { return state };
    if let Some(refusal) = proto::refusal(answer.refusal) {
        state.refusal = format!("{refusal:?}").to_uppercase();
        return state;
    }
    if answer.record.is_empty() {
        return state;
    }
    match Record::check(key, answer.record) {
        Ok(record) => {
            state.holds_record = true;
            state.version = Some(record.version().into());
            state.tombstone = record.kind() == model::RecordKind::Tombstone;
            state.expires_at_ms = record.expiry_ms();
            state.digest = record.crc();
            state.value_bytes = u64::try_from(record.value().len()).unwrap_or(u64::MAX);
            state.age_ms = now_ms.saturating_sub(record.version().hlc.ms());
        }
        Err(_) => state.refusal = "CORRUPT".to_owned(),
    }
    state
}
