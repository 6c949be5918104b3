//! Reads of this node's own replica, all that one turn of the loop brings together.
//!
//! Where a row is in memory the processor has to be told by memory that it does not hold near: each read alone
//! waits for that several times, and many together wait as long as one ([`Storage::announce`]).
//!
//! [`Storage::announce`]: crate::storage::Storage::announce

use std::sync::Arc;

use coordinator::ReadEvent;
use model::{Hlc, OperationId, ReplicaIndex, StorageKey};

use super::{
    answers::expiry_clock,
    io_loop::{IoLoop, LoopState},
};
use crate::{local_read::ReadAt, operation::Token, shared::Shared, storage::announce_first};

/// One that is to be done.
pub struct OwnRead {
    /// This node among the replicas.
    pub from: ReplicaIndex,
    /// Of which round of which operation.
    pub operation: OperationId,
    /// The reader's clock (G3).
    pub read_at: Hlc,
    /// What is read.
    pub key: StorageKey,
}

impl IoLoop {
    /// Has this node's own replica read as soon as what else can go on now has, or right behind those that
    /// are being read.
    pub(super) fn read_own_soon(&self, state: &mut LoopState, read: OwnRead) {
        if state.own_reads.is_empty() {
            self.own_reads_due.notify_one();
        }
        state.own_reads.push(read);
    }

    /// Reads this node's own replicas, for as long as the node lives.
    pub(super) async fn run_own_reads(self: Arc<Self>) {
        let (storage, mut reads) = (&self.shared.world.storage, Vec::new());
        loop {
            self.own_reads_due.notified().await;
            std::mem::swap(&mut reads, &mut self.lock().own_reads);
            let mut left = reads.drain(..);
            while !left.as_slice().is_empty() {
                // Votes are counted by the directories that are known now (F12).
                self.follow_storages();
                {
                    let mut state = self.lock();
                    let slice = left.as_slice();
                    let announced = announce_first(storage, slice, |it| Some(it.key.as_bytes()));
                    left.by_ref().take(announced).for_each(|it| self.read_own(&mut state, it));
                    self.push_local(&mut state);
                }
                if !left.as_slice().is_empty() {
                    // So many at once that others have to have their turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// At once if memory knows, else behind everybody's back.
    fn read_own(&self, state: &mut LoopState, read: OwnRead) {
        let OwnRead { from, operation, read_at, key } = read;
        let event = move |shared: &Shared, (read, floor): ReadAt| match read {
            Ok(record) => {
                let clock = expiry_clock(read_at, shared.clock.highest());
                ReadEvent::Answer { from, read_at, record, clock, floor }
            }
            Err(refusal) => ReadEvent::Refused { from, refusal },
        };
        let (token, _) = Token::of(operation);
        if state.operations.get_mut(token).is_none() {
            // It has ended meanwhile.
            return;
        }
        let read = self.read_here(&key, move |this, state, read| {
            this.read_event(state, token, event(&this.shared, read));
        });
        if let Some(read) = read {
            self.read_event(state, token, event(&self.shared, read));
        }
    }
}
