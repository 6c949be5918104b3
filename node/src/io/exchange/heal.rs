//! Damaged records are replaced by what the other replicas hold (F9).
//!
//! The damaged record may have been the newest, and its replica's answer one of those that a call is just
//! being counted by. So the others are asked when every such call has ended, and enough of them have to
//! answer; until then the key stays an error here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::heal::{Named, heir};
use model::{Hlc, NodeId, Record, ReplicaSet, StorageKey};
use proto::internal::{ExchangeHeld, HeldRecord, exchange_request::Step};
use tokio::sync::oneshot;

use crate::{
    commit::{CommitItem, Healing, Mend, Mended},
    damage::Damage,
    exchange::HELD_KEYS_MAX,
    io::io_loop::IoLoop,
    view::View,
};

/// A damaged record whose call for the others has come.
struct Patient {
    key: StorageKey,
    damaged: u64,
    asked_at: crate::commit::PartitionFloor,
    named: Vec<Named>,
}

impl IoLoop {
    /// Heals, for as long as the node lives.
    pub(in crate::io) async fn run_heals(self: Arc<Self>) {
        loop {
            let noted = self.shared.damage.noted.notified();
            if !self.heal_some().await {
                tokio::select! {
                    biased;
                    () = noted => {}
                    () = tokio::time::sleep(HEAL_INTERVAL) => {}
                }
            }
        }
    }

    /// Looks after the keys that are due. False if none was, or the node ends.
    async fn heal_some(&self) -> bool {
        let due = self.shared.damage.due(self.now_us(), HELD_KEYS_MAX);
        let (known, new): (Vec<_>, Vec<_>) = due.into_iter().partition(|it| it.1.hash.is_some());
        let found = !known.is_empty() || !new.is_empty();
        for (key, _) in new {
            let Some(mended) = self.mend_record(&key, None).await else { return false };
            self.note_mended(&key, None, mended);
        }
        if !known.is_empty() && !self.ask_for(known).await {
            return false;
        }
        found
    }

    /// Asks the other replicas for keys, and heals what they know enough of.
    async fn ask_for(&self, keys: Vec<(StorageKey, Damage)>) -> bool {
        let shared = &self.shared;
        let (view, floors) = (shared.view.load_full(), shared.floors.all());
        let mut patients = Vec::new();
        let mut asked: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (key, damage) in keys {
            let Some(replicas) = self.replicas_with_own(&view, &key) else {
                // Not this node's to hold any more.
                shared.damage.forget(&key);
                continue;
            };
            for other in replicas.nodes().iter().filter(|it| Some(**it) != view.own()) {
                if let Some(metadata) = view.metadata() {
                    let node = metadata.layout().node(*other).id;
                    asked.entry(node).or_default().push(patients.len());
                }
            }
            let asked_at = floors.of(key.keyspace(), view.partition(key.token()));
            let damaged = damage.hash.unwrap_or_default();
            patients.push(Patient { key, damaged, asked_at, named: Vec::new() });
        }
        for (node, places) in asked {
            self.ask_one(&view, node, &places, &mut patients).await;
        }
        for patient in patients {
            let healing = self.healing_of(&view, &patient);
            let Some(mended) = self.mend_record(&patient.key, healing).await else { return false };
            self.note_mended(&patient.key, Some(patient.damaged), mended);
        }
        true
    }

    /// Asks one other replica. One that does not answer names nothing.
    async fn ask_one(
        &self,
        view: &View,
        other: NodeId,
        places: &[usize],
        patients: &mut [Patient],
    ) {
        let Some(node) = view.node_index(other).filter(|_| self.can_deliver(other)) else { return };
        let keys = places.iter().map(|it| patients[*it].key.as_bytes().clone()).collect();
        let Ok(answered) = self.exchange_step(node, Step::Held(ExchangeHeld { keys })).await else {
            return;
        };
        for (place, held) in places.iter().zip(answered.answer.held) {
            let patient = &mut patients[*place];
            let Some(replicas) = self.replicas_with_own(view, &patient.key) else { continue };
            let replica = replicas.replica(node);
            let Some((replica, (record, floor))) = replica.zip(parse_held(&patient.key, held))
            else {
                continue;
            };
            // A record from the future moves to nobody (C4).
            if record.as_ref().is_some_and(|it| self.is_future(it.version().hlc)) {
                continue;
            }
            patient.named.push(Named { replica, record, floor });
        }
    }

    fn healing_of(&self, view: &View, patient: &Patient) -> Option<Box<Healing>> {
        let Patient { key, damaged, asked_at, named } = patient;
        let replicas = self.replicas_with_own(view, key)?;
        let own = replicas.replica(view.own()?)?;
        let heir = heir(&replicas, own, asked_at.floor, named)?;
        Some(Box::new(Healing { heir, damaged: *damaged, asked_at: *asked_at }))
    }

    /// The replicas of a key, if this node is one of them.
    fn replicas_with_own(&self, view: &View, key: &StorageKey) -> Option<Arc<ReplicaSet>> {
        let replicas =
            view.keyspace_of_id(key.keyspace())?.replica_set(view.partition(key.token()));
        replicas.replica(view.own()?).map(|_| Arc::clone(replicas))
    }

    /// Notes what came of a key. The others are asked when no call is under way any more that may have
    /// counted the damaged record: those damaged bytes, from now on.
    fn note_mended(&self, key: &StorageKey, asked: Option<u64>, mended: Mended) {
        let (damage, now_us) = (&self.shared.damage, self.now_us());
        match mended {
            Mended::Nothing | Mended::Done => damage.forget(key),
            Mended::Damaged(hash) => {
                let wait_ms = match asked == Some(hash) {
                    true => HEAL_AGAIN_MS,
                    false => self.shared.config.heal_after_ms(),
                };
                damage.set(key, Damage { hash: Some(hash), due_us: now_us + wait_ms * 1_000 });
            }
            Mended::Unreadable => {
                let due_us = now_us + HEAL_AGAIN_MS * 1_000;
                damage.set(key, Damage { hash: None, due_us });
            }
        }
    }

    /// Has the commit path look at a record; `None` if the node ends.
    async fn mend_record(&self, key: &StorageKey, by: Option<Box<Healing>>) -> Option<Mended> {
        let (done, mended) = oneshot::channel();
        let done = Box::new(move |it| {
            // Nobody listening any more is no error.
            let _ = done.send(it);
        });
        self.queue(CommitItem::Mend(Mend::Record { key: key.clone(), by, done }));
        // A full disk leaves the record as it is.
        Some(mended.await.ok()?.unwrap_or(Mended::Unreadable))
    }
}

/// What another replica has said, if it makes sense.
fn parse_held(key: &StorageKey, held: HeldRecord) -> Option<(Option<Record>, Hlc)> {
    let floor = Hlc(held.floor);
    if held.unknown {
        return None;
    }
    if held.record.is_empty() {
        return Some((None, floor));
    }
    let record = Record::check(key, held.record).ok()?;
    // What is purgeable there is gone there.
    Some((Some(record).filter(|it| !it.purgeable_at(floor)), floor))
}

/// How often keys are looked for whose time has come.
const HEAL_INTERVAL: Duration = Duration::from_secs(1);
/// How soon a key is tried again.
const HEAL_AGAIN_MS: u64 = 5_000;
