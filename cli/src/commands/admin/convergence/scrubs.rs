//! How far nodes' Merkle trees are known to be those of their data.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Answer;
use crate::{
    output::Paint,
    table::{Cell, Table},
    values::{spell_bytes, spell_count, spell_duration, spell_time},
};

/// What one node says of its scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct ScrubDocument {
    /// When its last pass over all data ended, in milliseconds since the epoch.
    ended_ms: Option<u64>,
    /// Partitions that the pass under way has compared so far.
    partitions: u64,
    /// Their bytes.
    bytes: u64,
    /// Leaves that were not what the data say, since the node started.
    mismatches: u64,
    /// Records that are damaged, and not healed yet.
    records_damaged: u64,
    /// Records that were healed since the node started.
    records_healed: u64,
}

impl ScrubDocument {
    pub(super) fn of(answer: &Answer) -> Self {
        let scrub = answer.convergence.scrub.unwrap_or_default();
        let running = scrub.running.unwrap_or_default();
        Self {
            ended_ms: scrub.ended_ms,
            partitions: running.partitions,
            bytes: running.bytes,
            mismatches: answer.counter("leaves_recounted"),
            records_damaged: scrub.records_damaged,
            records_healed: answer.counter("records_healed"),
        }
    }

    fn spell_ended(&self) -> String {
        let Some(ended) = self.ended_ms.map(Duration::from_millis) else {
            return "never".to_owned();
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match now.checked_sub(ended) {
            Some(age) => format!("{} ago", spell_duration(age)),
            None => spell_time(ended),
        }
    }
}

/// A row for each node.
pub(super) fn table<'a>(scrubs: impl Iterator<Item = (&'a str, &'a ScrubDocument)>) -> Table {
    let columns = [
        "scrub of",
        ">last pass",
        ">partitions now",
        ">bytes now",
        ">wrong",
        ">damaged",
        ">healed",
    ];
    let mut table = Table::new(&columns);
    let alarm = |count: u64| {
        let paint = if count == 0 { Paint::Good } else { Paint::Bad };
        Cell::painted(paint, spell_count(count))
    };
    for (node, it) in scrubs {
        table.row([
            node.into(),
            it.spell_ended().into(),
            spell_count(it.partitions).into(),
            spell_bytes(it.bytes).into(),
            alarm(it.mismatches),
            alarm(it.records_damaged),
            spell_count(it.records_healed).into(),
        ]);
    }
    table
}
