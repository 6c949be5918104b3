//! The scrub: leaves of Merkle trees are counted again from the data, one after another, all the time and
//! slowly (M6). What a disk has lost, or put in a wrong place, shows as a leaf that is not what the data
//! say; the commit path makes the leaf again, and then the exchange brings what is missing.

use std::{sync::Arc, time::Duration};

use antientropy::merkle::{Leaf, Tree};
use bytes::Bytes;
use model::{KeyspaceId, Mutant, Refusal, Token};
use tokio::sync::oneshot;

use super::{exchange::pace::Pace, io_loop::IoLoop};
use crate::{
    commit::{CommitItem, Mend, Mended},
    scrub::{ScrubCursor, ScrubReport},
    shared::{Shared, system_key},
    storage::{Space, StorageError},
};

/// Leaves that were compared together.
#[derive(Default)]
struct Batch {
    report: ScrubReport,
    /// Leaves that are not what the data say, as it seems: writes go on meanwhile.
    suspects: Vec<(KeyspaceId, Token)>,
    behind: Option<(KeyspaceId, Token)>,
    /// There are no more.
    ends: bool,
}

/// A pass over all leaves.
struct Pass {
    /// How many had been asked for when it began.
    asked: u64,
    /// It was asked for: it rests only as clients need it. Any other takes the interval.
    at_once: bool,
    pace: Pace,
    report: ScrubReport,
    /// When it was last made durable how far it is.
    stored_us: u64,
}

impl IoLoop {
    /// Compares trees with data, for as long as the node lives.
    pub(super) async fn run_scrub(self: Arc<Self>) {
        let (shared, board) = (&self.shared, &self.shared.scrub);
        let read = |shared: &Shared| {
            let stored = shared.world.storage.get(Space::System, system_key::SCRUB);
            stored.map_err(|error| shared.read_error(&error))
        };
        let stored = Arc::clone(shared).blocking(read).await.ok().flatten();
        let mut cursor = stored.map_or_else(ScrubCursor::default, |it| ScrubCursor::decode(&it));
        board.resume(cursor.ended_ms);
        loop {
            let ((asked, at_once), began_us) = (board.asked(), self.now_us());
            if at_once {
                cursor.behind = None;
            }
            let (pace, report) = (Pace::default(), ScrubReport::default());
            let mut pass = Pass { asked, at_once, pace, report, stored_us: began_us };
            let ended = Mutant::ScrubOff.is_on() || self.scrub(&mut pass, &mut cursor).await;
            if ended {
                let (report, ended_ms) = (pass.report, shared.wall().0);
                cursor = ScrubCursor { behind: None, ended_ms };
                self.store_cursor(cursor);
                shared.damage.set_unreadable(report.unreadable);
                board.ended(asked, report, ended_ms);
                if report.mismatches + report.damaged + report.unreadable > 0 {
                    tracing::error!(?report, "the data were not what trees say, or are damaged");
                }
            }
            let interval_us = match ended {
                true => shared.config.scrub_interval_ms * 1_000,
                false => REST_FAILED_US,
            };
            if !board.asked().1 {
                self.rest((began_us + interval_us).saturating_sub(self.now_us())).await;
            }
        }
    }

    /// Compares all leaves behind the cursor. False if another pass was asked for meanwhile, or the disk
    /// cannot be read.
    async fn scrub(&self, pass: &mut Pass, cursor: &mut ScrubCursor) -> bool {
        let shared = &self.shared;
        loop {
            let (began_us, behind) = (self.now_us(), cursor.behind);
            let slice_bytes = pass.pace.slice_bytes();
            let work = move |it: &Shared| it.scrub_leaves(behind, slice_bytes);
            let Ok(batch) = Arc::clone(shared).blocking(work).await else { return false };
            pass.report.add(&batch.report);
            for (keyspace, token) in batch.suspects {
                let Some(mended) = self.recount(keyspace, token).await else { return false };
                pass.report.mismatches += u64::from(mended);
            }
            cursor.behind = batch.behind;
            shared.scrub.note(pass.report);
            if batch.ends {
                return true;
            }
            let now_us = self.now_us();
            if now_us > pass.stored_us + STORE_INTERVAL_US {
                pass.stored_us = now_us;
                self.store_cursor(*cursor);
            }
            let mut rest_us = pass.pace.after(now_us - began_us, shared.pressure());
            if !pass.at_once {
                let leaves = shared.trees.statistics().leaves.max(1);
                let share_us = shared.config.scrub_interval_ms * 1_000 / leaves;
                rest_us = rest_us.max(share_us.saturating_mul(batch.report.leaves));
            }
            if rest_us > 0 {
                self.rest(rest_us).await;
            }
            if shared.scrub.asked().0 > pass.asked {
                return false;
            }
        }
    }

    /// Has the commit path count a leaf again. Whether it was wrong; `None` if the node ends.
    async fn recount(&self, keyspace: KeyspaceId, token: Token) -> Option<bool> {
        let (done, mended) = oneshot::channel();
        let done = Box::new(move |it| {
            // Nobody listening any more is no error.
            let _ = done.send(it);
        });
        self.queue(CommitItem::Mend(Mend::Leaf { keyspace, token, done }));
        Some(matches!(mended.await.ok()?, Ok(Mended::Done)))
    }

    fn store_cursor(&self, cursor: ScrubCursor) {
        let value = Bytes::copy_from_slice(&cursor.encode());
        // A failure stops the node by itself.
        self.shared.store_system(system_key::SCRUB, Some(value), |_| {});
    }

    /// Waits, or until a pass is asked for.
    async fn rest(&self, rest_us: u64) {
        tokio::select! {
            biased;
            () = self.shared.scrub.wanted.notified() => {}
            () = tokio::time::sleep(Duration::from_micros(rest_us)) => {}
        }
    }
}

/// What a leaf was found to be.
struct Compared {
    report: ScrubReport,
    /// Its data are not what it says.
    is_suspect: bool,
}

impl Shared {
    /// Compares leaves with their data until about so many bytes were read.
    fn scrub_leaves(
        &self,
        mut behind: Option<(KeyspaceId, Token)>,
        bytes_max: usize,
    ) -> Result<Batch, Refusal> {
        let mut batch = Batch { behind, ..Batch::default() };
        let mut bytes = 0;
        let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        while bytes < bytes_max && batch.report.leaves < BATCH_LEAVES {
            let Some((keyspace, mut leaf)) = self.trees.leaf_behind(behind) else {
                batch.ends = true;
                break;
            };
            let mut compared = self.compare_leaf(keyspace, &leaf)?;
            // One that was written meanwhile differs from what was read after it.
            for _ in 0..LOOKS_AGAIN {
                if !compared.is_suspect {
                    break;
                }
                match self.trees.leaf_behind(behind) {
                    Some((same, now)) if same == keyspace && now != leaf => leaf = now,
                    _ => break,
                }
                compared = self.compare_leaf(keyspace, &leaf)?;
            }
            bytes += compared.report.bytes;
            batch.report.add(&compared.report);
            if compared.is_suspect {
                batch.suspects.push((keyspace, leaf.first));
            }
            batch.report.leaves += 1;
            batch.report.partitions += u64::from(self.ends_partition(&leaf));
            behind = Some((keyspace, leaf.last()));
            batch.behind = behind;
        }
        Ok(batch)
    }

    /// Compares one leaf with its data.
    fn compare_leaf(&self, keyspace: KeyspaceId, leaf: &Leaf) -> Result<Compared, Refusal> {
        let data = match self.trees.leaf_data(&self.world.storage, keyspace, leaf) {
            Ok(data) => data.unwrap_or_default(),
            Err(error @ StorageError::Corruption { .. }) => {
                self.read_error(&error);
                let report = ScrubReport { leaves_unreadable: 1, ..ScrubReport::default() };
                return Ok(Compared { report, is_suspect: false });
            }
            Err(error) => return Err(self.read_error(&error)),
        };
        data.damaged.iter().for_each(|it| self.damage.note(it));
        let report = ScrubReport {
            records: data.records,
            bytes: u64::try_from(data.bytes).unwrap_or(u64::MAX),
            damaged: u64::try_from(data.damaged.len()).unwrap_or(u64::MAX),
            unreadable: data.unreadable,
            ..ScrubReport::default()
        };
        Ok(Compared { report, is_suspect: !data.is(leaf) })
    }

    /// True for the last leaf of a partition.
    fn ends_partition(&self, leaf: &Leaf) -> bool {
        let view = self.view.load();
        let partitions = view.metadata().map(|it| it.layout().partitions());
        let whole = partitions.map(|it| Tree::root(leaf.first.partition(it), it));
        whole.is_some_and(|it| it.last() == leaf.last())
    }
}

impl ScrubReport {
    fn add(&mut self, more: &Self) {
        self.partitions += more.partitions;
        self.leaves += more.leaves;
        self.records += more.records;
        self.bytes += more.bytes;
        self.mismatches += more.mismatches;
        self.damaged += more.damaged;
        self.unreadable += more.unreadable;
        self.leaves_unreadable += more.leaves_unreadable;
    }
}

/// Leaves compared before the next ones are: a database of many small ones is no burst either.
const BATCH_LEAVES: u64 = 64;
/// How often a leaf is compared anew that is written meanwhile. Then it is counted while nothing is written: that
/// holds up all writes for as long as its records take to be read.
const LOOKS_AGAIN: usize = 3;
/// How often it is made durable how far a pass is.
const STORE_INTERVAL_US: u64 = 60_000_000;
/// How soon a disk that could not be read is read again.
const REST_FAILED_US: u64 = 1_000_000;
