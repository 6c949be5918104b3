//! The floor of the disk: how many records per second can be appended and made durable, in groups.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::latency::{Latencies, LatencySummary};
use crate::failure::Failure;

/// Appends of groups of one size.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DiskFloor {
    /// Records made durable together.
    pub(crate) group: usize,
    /// Bytes of one record.
    pub(crate) record_bytes: usize,
    /// Groups made durable per second.
    pub(crate) syncs_per_second: f64,
    /// Records made durable per second.
    pub(crate) records_per_second: f64,
    /// Of one append and fdatasync.
    pub(crate) latency: LatencySummary,
}

/// Appends groups to a new file in `folder` for this long. Blocks.
pub(crate) fn measure(
    folder: &Path,
    group: usize,
    record_bytes: usize,
    duration: Duration,
) -> Result<DiskFloor, Failure> {
    let failure = |error| Failure::file(format!("cannot write in {}", folder.display()), &error);
    let mut file = tempfile::tempfile_in(folder).map_err(failure)?;
    let records = vec![0xa5; group * record_bytes];
    let mut latencies = Latencies::new();
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let append = Instant::now();
        append_durably(&mut file, &records).map_err(failure)?;
        latencies.record(append.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let syncs = u32::try_from(latencies.count()).unwrap_or(u32::MAX);
    let syncs_per_second = f64::from(syncs) / seconds;
    let group_size = f64::from(u32::try_from(group).unwrap_or(u32::MAX));
    Ok(DiskFloor {
        group,
        record_bytes,
        syncs_per_second,
        records_per_second: syncs_per_second * group_size,
        latency: latencies.summary(),
    })
}

fn append_durably(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(bytes)?;
    file.sync_data()
}
