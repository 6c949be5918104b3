//! Keys with a time to live: no value disappears before its time, and none is read long after it.
//!
//! Between the two lies the window in which clocks may disagree. Either answer is right there, but
//! where reads are linearizable none finds the value once another has found it expired (G3).

use std::collections::BTreeMap;

use model::Version;

use super::{
    Context, Violation,
    key::{KeyHistory, Read},
    linearizable, tell,
};
use crate::history::{Action, Operation};

const NAME: &str = "expiry";

/// When an expiring value may disappear, and when it must have, in microseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from_us: u64,
    pub(super) until_us: u64,
}

/// The window of an expiring put under a version. Without one the put's call bounds it: the stamp is
/// as late as the coordinator's clock, and later if the put was stamped again.
pub(super) fn window(
    put: &Operation,
    version: Option<Version>,
    context: &Context,
) -> Option<Window> {
    let Action::Put { ttl_ms: Some(ttl_ms), .. } = put.action else { return None };
    let offset_us = context.clock_offset_max_ms * 1_000;
    let ttl_us = ttl_ms * 1_000;
    let window = match version {
        Some(version) => {
            let stamped_us = version.hlc.ms().saturating_sub(context.epoch_ms) * 1_000;
            let expiry_us = stamped_us + ttl_us;
            let from_us = expiry_us.saturating_sub(offset_us);
            Window { from_us, until_us: expiry_us + offset_us }
        }
        None => {
            let earliest_us = put.called_us + ttl_us;
            Window { from_us: earliest_us.saturating_sub(2 * offset_us), until_us: u64::MAX }
        }
    };
    Some(window)
}

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    let judged = key.reads().filter_map(|read| judge(key, &read, context));
    let returned = returned(key);
    judged.chain(returned).map(|what| Violation::broken(NAME, Some(key.name), what)).collect()
}

/// Reads that found a value although an earlier one had found it expired.
fn returned(key: &KeyHistory<'_>) -> Vec<String> {
    if !linearizable::is_promised(key.discipline) {
        return Vec::new();
    }
    let own = || key.reads().filter(|it| key.is_own(it.operation));
    let mut expired = BTreeMap::<Version, Read<'_>>::new();
    for read in own().filter(|it| it.value.is_none()) {
        let Some(version) = read.version else { continue };
        let first = expired.entry(version).or_insert(read);
        if read.returned_us < first.returned_us {
            *first = read;
        }
    }
    let values = own().filter(|it| it.value.is_some());
    let found = values.filter_map(|read| {
        let first = expired.get(&read.version?)?;
        let is_back = first.returned_us < read.operation.called_us;
        is_back.then(|| format!("{} after {}", tell(read.operation), tell(first.operation)))
    });
    found.collect()
}

fn judge(key: &KeyHistory<'_>, read: &Read<'_>, context: &Context) -> Option<String> {
    let put = match read.value {
        Some(value) => key.put(value),
        None => read.version.and_then(|it| key.writer(it)),
    }?;
    let window = window(put, read.version, context)?;
    let told = || format!("{}, after {}", tell(read.operation), tell(put));
    if read.value.is_some() && read.operation.called_us > window.until_us {
        return Some(format!("read after {} us, when it had expired: {}", window.until_us, told()));
    }
    let early = read.value.is_none() && read.returned_us < window.from_us;
    early.then(|| format!("absent before {} us, when it may expire: {}", window.from_us, told()))
}
