//! The rare messages between nodes: metadata, its agreement, and pings.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use model::{Hlc, Metadata, NodeId};
use prost::Message;
use proto::internal::{Control, Ping, SeenStorages, control::Control as Kind};

use super::io_loop::IoLoop;
use crate::{
    counters::Counters,
    liveness::Peer,
    outbox::Outbox,
    shared::{Shared, system_key},
    storage::StorageError,
};

impl IoLoop {
    /// Takes one control message; answers go to `outbox`.
    pub fn control(&self, from: NodeId, outbox: &Arc<Outbox>, control: Control) {
        let shared = &self.shared;
        match control.control {
            Some(Kind::MetadataSequence(theirs)) => {
                let ours = shared.view.load().sequence();
                shared.status(from).metadata_sequence.fetch_max(theirs, Ordering::Relaxed);
                if theirs > ours {
                    send(outbox, Kind::MetadataRequest(true));
                } else if theirs < ours {
                    send(outbox, Kind::MetadataSequence(ours));
                }
            }
            Some(Kind::MetadataRequest(_)) => {
                if let Some(metadata) = shared.view.load().metadata() {
                    send(outbox, Kind::Metadata(metadata.encode().into()));
                }
            }
            Some(Kind::Metadata(bytes)) => self.take_metadata(from, &bytes),
            Some(Kind::AgreementRequest(bytes)) => {
                let (shared, outbox) = (Arc::clone(shared), Arc::clone(outbox));
                tokio::spawn(async move {
                    if let Some(reply) = shared.changes.accept(&shared, from, bytes).await {
                        send(&outbox, Kind::AgreementReply(reply));
                    }
                });
            }
            Some(Kind::AgreementReply(bytes)) => shared.changes.replied(from, bytes),
            Some(Kind::Ping(ping)) => {
                shared.take_ping(from, &ping);
                send(outbox, Kind::Pong(shared.ping(ping.sent_us)));
            }
            Some(Kind::Pong(pong)) => {
                shared.take_ping(from, &pong);
                let round_trip_us = shared.elapsed_us().saturating_sub(pong.sent_us);
                shared.status(from).measured(round_trip_us);
                shared.clock_measured(from, &pong);
            }
            Some(Kind::Storages(storages)) => shared.hear_storages(&storages.seen),
            None => Counters::count(&shared.counters.peer_messages_malformed),
        }
    }

    fn take_metadata(&self, from: NodeId, bytes: &[u8]) {
        match Metadata::decode(bytes) {
            Ok(metadata) => {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    if let Err(error) = shared.adopt_durably(metadata).await {
                        tracing::error!(%error, "metadata not adopted");
                    }
                });
            }
            Err(error) => {
                Counters::count(&self.shared.counters.peer_messages_malformed);
                tracing::warn!(%from, %error, "a peer's metadata makes no sense");
            }
        }
    }

    /// What a link that has come up says first.
    pub fn greet(&self, peer: &Peer) {
        let shared = &self.shared;
        send(&peer.outbox, Kind::MetadataSequence(shared.view.load().sequence()));
        send(&peer.outbox, Kind::Ping(shared.ping(shared.elapsed_us())));
        let hash = shared.witness.storage_ids_hash();
        if peer.status.storages_told.load(Ordering::Relaxed) != hash {
            let storages = SeenStorages { seen: shared.seen_storages() };
            if send(&peer.outbox, Kind::Storages(storages)) {
                peer.status.storages_told.store(hash, Ordering::Relaxed);
            }
        }
    }

    /// Says the same to every peer, and how it is with this node by now.
    pub fn greet_all(&self) {
        let peers: Vec<_> = {
            let mut state = self.lock();
            state.peers.follow(&self.shared.view.load());
            state.peers.iter().cloned().collect()
        };
        for peer in peers {
            self.greet(&peer);
        }
    }

    /// Pings every peer each second, for as long as the node lives: keeps latencies and clock offsets
    /// fresh, and tells who has missed a change of metadata. More often while the node coordinates
    /// nothing because of its clock. And marks dirty what it owes a mark.
    pub async fn run_pings(self: Arc<Self>) {
        loop {
            // Registered before the look, which may itself ask for pings.
            let asked = self.shared.clock_gate.ask.notified();
            if self.index == 0 {
                self.shared.tend_witness();
            }
            let coordinates = self.shared.look_at_clock().coordinates();
            let interval = if coordinates { PING_INTERVAL } else { PING_INTERVAL_SUSPENDED };
            tokio::select! {
                biased;
                () = asked => {}
                () = self.shared.metadata_changed.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
            self.greet_all();
            self.mark_again();
        }
    }
}

/// How often peers are pinged.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_INTERVAL_SUSPENDED: Duration = Duration::from_millis(200);

/// Queues a control message. False if the queue was full, and it was dropped: all of them are repeated
/// or awaited with a deadline.
pub(super) fn send(outbox: &Outbox, kind: Kind) -> bool {
    let payload = match &kind {
        Kind::Metadata(bytes) | Kind::AgreementRequest(bytes) | Kind::AgreementReply(bytes) => {
            bytes.len()
        }
        Kind::Storages(storages) => storages.encoded_len(),
        _ => 0,
    };
    let control = Control { control: Some(kind) };
    outbox.push(payload + 48, |frame| frame.controls.push(control)).is_ok()
}

impl Shared {
    fn take_ping(self: &Arc<Self>, from: NodeId, ping: &Ping) {
        self.clock_told(from, Hlc(ping.clock));
        self.hear_ping(from, ping);
        self.status(from).leaving.store(ping.leaving, Ordering::Relaxed);
    }

    fn ping(&self, sent_us: u64) -> Ping {
        Ping {
            sent_us,
            wall_ms: self.wall().0,
            clock_ceiling: self.clock.ceiling().0,
            clock: self.clock.highest().0,
            storage_id: Bytes::copy_from_slice(&self.storage_id().to_bytes()),
            leaving: self.goaway.is_cancelled(),
        }
    }

    /// Makes metadata durable here and takes it into force, if it is newer and of this cluster.
    pub async fn adopt_durably(self: &Arc<Self>, metadata: Metadata) -> Result<bool, StorageError> {
        let _turn = self.changes.adopting.lock().await;
        let (ours, theirs) = (self.cluster(), metadata.cluster());
        if !ours.is_nil() && ours != theirs {
            Counters::count(&self.counters.peer_messages_malformed);
            tracing::error!(%ours, %theirs, "metadata of another cluster refused");
            return Ok(false);
        }
        if metadata.sequence() <= self.view.load().sequence() {
            return Ok(false);
        }
        let key = Bytes::from_static(system_key::METADATA);
        self.make_durable(key, Some(metadata.encode().into())).await?;
        let adopted = self.adopt(Arc::new(metadata));
        self.look_at_directory();
        self.metadata_changed.notify_waiters();
        Ok(adopted)
    }
}
