//! Removes the rows that floors cover: tombstones and expired records, from disk, trees and index.
//! Rules: docs/protocol.md, F6.

use std::{sync::Arc, time::Duration};

use model::{Hlc, KeyspaceId, PartitionIndex};

use crate::{
    commit::{CommitItem, FloorChange, Mend, due_keys},
    io::io_loop::IoLoop,
    shared::Shared,
};

impl IoLoop {
    /// Removes what floors cover, for as long as the node lives.
    pub(in crate::io) async fn run_sweeps(self: Arc<Self>) {
        let mut purged = 0;
        loop {
            for (keyspace, partition, floor) in self.shared.floors.all().iter() {
                if floor.swept < floor.floor {
                    self.sweep(keyspace, partition, floor.floor).await;
                }
            }
            tokio::select! {
                biased;
                () = self.shared.floors.changed.notified() => {}
                () = tokio::time::sleep(SWEEP_INTERVAL) => self.give_space_back(&mut purged).await,
            }
        }
    }

    /// Removes what one partition's floor covers. What cannot be read stays, and is met again.
    async fn sweep(&self, keyspace: KeyspaceId, partition: PartitionIndex, floor: Hlc) {
        let mut after = None;
        loop {
            let work = move |shared: &Shared| {
                let storage = &shared.world.storage;
                due_keys(storage, keyspace, partition, floor, after.as_ref(), SWEEP_ROWS)
                    .map_err(|error| shared.read_error(&error))
            };
            let Ok(page) = Arc::clone(&self.shared).blocking(work).await else { return };
            for key in page.keys {
                self.queue(CommitItem::Purge { key });
            }
            if !self.settled().await {
                return;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let work = move |shared: &Shared| {
            let storage = &shared.world.storage;
            let left = due_keys(storage, keyspace, partition, floor, None, SWEEP_ROWS);
            left.map_err(|error| shared.read_error(&error))
        };
        let Ok(left) = Arc::clone(&self.shared).blocking(work).await else { return };
        let is_swept = left.keys.is_empty();
        for (key, row) in left.keys.into_iter().zip(left.rows) {
            // Whose record the disk has lost.
            self.queue(CommitItem::Mend(Mend::Due { row, key }));
        }
        if is_swept {
            let change = FloorChange::Swept(floor);
            self.queue(CommitItem::Floor { keyspace, partition, change });
        }
    }
}

/// How soon a floor that was not swept whole is swept again.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Records removed before the next ones are looked for.
const SWEEP_ROWS: usize = 1_024;
