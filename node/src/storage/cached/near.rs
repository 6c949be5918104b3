//! Brings rows near before they are asked for, many at a time.
//!
//! A row of a large cache lies four lines of memory away that no cache of the processor holds: what the table
//! says of its hash, where its place is, the place, and the row. Each names the next, so that one row is
//! four waits; but the waits of several rows go on side by side, unless something stands between them that the
//! processor does not look past. A lock is that: hence the shards of several rows are locked together, those
//! that nobody else has, for nothing depends on it.

use std::hint::black_box;
use std::sync::{Mutex, MutexGuard};

use super::{SHARDS, Shard, shard_of};

/// Reads the beginnings of whatever rows there are of these hashes, each line of memory once.
pub(super) fn bring_near(shards: &[Mutex<Shard>], hashes: &[u64]) {
    let mut touched = 0;
    for hashes in hashes.chunks(TOGETHER) {
        let wanted = hashes.iter().fold(0_u64, |all, it| all | 1 << shard_of(*it));
        let held: [Option<MutexGuard<'_, Shard>>; SHARDS] =
            std::array::from_fn(|it| match wanted >> it & 1 {
                1 => shards[it].try_lock().ok(),
                _ => None,
            });
        for hash in hashes {
            let shard = held[shard_of(*hash)].as_ref();
            if let Some(row) = shard.and_then(|it| it.rows.peek(hash)) {
                let lines = row.bytes.iter().step_by(LINE_BYTES).take(LINES);
                touched ^= lines.fold(0, |all, it| all ^ it);
            }
        }
    }
    black_box(touched);
}

/// Some microseconds' work, for which others wait who want one of their shards.
const TOGETHER: usize = 32;
/// Of a row: what comes behind them the processor fetches by itself, once it sees that it is read in order.
const LINES: usize = 8;
/// Of the caches of all processors that matter here.
const LINE_BYTES: usize = 64;
