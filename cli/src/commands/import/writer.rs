//! Sends the batches of an import and settles them in the order of the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use client::{Error, Keyspace, WriteItem};
use futures_util::{StreamExt, stream::FuturesOrdered};
use model::ConsistencyLevel;
use proto::{CallOutcome, Reason};
use tokio::time::Instant;
use tonic::Code;

use super::{
    Effects, ImportArgs, Job, Stop,
    batches::{Batch, Batches},
};
use crate::{
    failure::Failure,
    output::Output,
    progress,
    signals::StopSignals,
    transfer::{
        columns::{Parsed, ParsedRow},
        errors_file::RecordError,
        state::RowsWithReason,
    },
    values::spell_count,
};

/// How often the position is written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The first pause before rows are tried again; it doubles.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);
/// What stands for ever: clocks have no room for much more.
const RETRY_FOR_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Imports to the end of the file; what stopped it before, if something did.
pub(super) async fn run(
    job: &mut Job,
    args: &ImportArgs,
    keyspace: &Keyspace,
    output: Output,
) -> Result<Option<Stop>, Failure> {
    let mut signals = StopSignals::new()?;
    let (mut stop, stopping, mut is_left) = (None, AtomicBool::new(false), false);
    let bar = progress::bytes_bar(output, job.length);
    let mut batches = Batches::new(args.batch_rows.get());
    let mut in_flight = FuturesOrdered::new();
    let mut saved = Instant::now();
    loop {
        while stop.is_none() && in_flight.len() < args.in_flight.get() {
            let Some(batch) = batches.next(&mut job.source, &args.file)? else { break };
            in_flight.push_back(write(batch, keyspace, args, &stopping));
        }
        if in_flight.is_empty() {
            break;
        }
        let settled = tokio::select! {
            Some(settled) = in_flight.next() => settled,
            signal = signals.next(), if stop.is_none() => {
                stopping.store(true, Ordering::Relaxed);
                stop = Some(Stop::Signal(signal));
                continue;
            }
        };
        batches.settled();
        // Records settle in the order of the file: none behind one that is refused or left does.
        is_left |= settled.is_left;
        if is_left && matches!(stop, Some(Stop::Signal(_))) {
            continue;
        }
        match (&mut stop, settled.refused) {
            (Some(Stop::Refused { behind, .. }), _) => {
                behind.add(settled.rows);
                continue;
            }
            (stop, Some(error)) => {
                stopping.store(true, Ordering::Relaxed);
                *stop = Some(Stop::Refused { error, behind: settled.rows });
                continue;
            }
            (_, None) => {}
        }
        job.settle(&settled.batch, &settled.errors)?;
        bar.set_position(job.state.position.byte);
        bar.set_message(summary(job));
        if saved.elapsed() >= SAVE_INTERVAL {
            job.save()?;
            saved = Instant::now();
        }
    }
    bar.finish_and_clear();
    Ok(stop)
}

fn summary(job: &Job) -> String {
    let counts = job.counts();
    let wrong = counts.not_applied + counts.unknown + counts.malformed;
    let mut text = format!("{} rows", spell_count(counts.written));
    if wrong > 0 {
        text += &format!(", {} to the errors file", spell_count(wrong));
    }
    text
}

/// A batch whose rows are all decided.
pub(super) struct Settled {
    batch: Batch,
    /// By index of the record; a row that is absent was written.
    errors: BTreeMap<usize, RecordError>,
    rows: Effects,
    /// What every other row would meet too. The batch is left as it is then.
    refused: Option<Error>,
    /// The import is to stop, and some of its rows would have been tried again.
    is_left: bool,
}

impl Job {
    /// Counts a batch, writes down its errors and moves the position behind it.
    pub(super) fn settle(
        &mut self,
        batch: &Batch,
        errors: &BTreeMap<usize, RecordError>,
    ) -> Result<(), Failure> {
        for (index, record) in batch.records.iter().enumerate() {
            let counts = &mut self.state.counts;
            let error = match (&record.parsed, errors.get(&index)) {
                (Parsed::Expired, _) => {
                    counts.expired += 1;
                    None
                }
                (Parsed::Bad(problem), _) => {
                    counts.malformed += 1;
                    Some(RecordError {
                        reason: "MALFORMED_RECORD".to_owned(),
                        outcome: CallOutcome::NotApplied.as_str(),
                        message: problem.clone(),
                        attempts: 0,
                    })
                }
                (Parsed::Row(_), None) => {
                    counts.written += 1;
                    None
                }
                (Parsed::Row(_), Some(error)) => {
                    if error.outcome == CallOutcome::Unknown.as_str() {
                        counts.unknown += 1;
                    } else {
                        counts.not_applied += 1;
                    }
                    Some(error.clone())
                }
            };
            if let Some(error) = error {
                self.errors.add(record.line, &record.whole, &error)?;
                let first = RowsWithReason { rows: 0, line: record.line, message: error.message };
                self.state.reasons.entry(error.reason).or_insert(first).rows += 1;
            }
            self.state.position = record.end;
        }
        Ok(())
    }
}

/// Writes the rows of a batch, and those that were not applied again until they are or time is up. Where the
/// import is to stop meanwhile they are left to the next one.
async fn write(
    batch: Batch,
    keyspace: &Keyspace,
    args: &ImportArgs,
    stopping: &AtomicBool,
) -> Settled {
    let deadline = Instant::now() + args.retry_for.min(RETRY_FOR_MAX);
    let mut left: Vec<(usize, ParsedRow)> =
        batch.rows().map(|(index, row)| (index, row.clone())).collect();
    let (mut errors, mut unknown) = (BTreeMap::new(), BTreeSet::new());
    let (mut rows, mut refused) = (Effects::default(), None);
    let (mut attempts, mut delay, mut is_left) = (0, RETRY_DELAY, false);
    while !left.is_empty() && refused.is_none() {
        attempts += 1;
        let items = left.iter().map(|(_, row)| item(row, args.ttl)).collect();
        let results = write_once(keyspace, items, args.consistency.consistency).await;
        let mut again = Vec::new();
        for ((index, row), result) in left.into_iter().zip(results) {
            let Err(error) = result else {
                rows.wrote = true;
                continue;
            };
            if error.is_unknown_write() {
                rows.unknown = true;
                unknown.insert(index);
            }
            if worth_another_try(&error, args.retry_unknown) && Instant::now() + delay < deadline {
                again.push((index, row));
            } else if concerns_every_row(&error) {
                refused = Some(error);
            } else {
                errors.insert(index, record_error(&error, attempts, unknown.contains(&index)));
            }
        }
        left = again;
        is_left = !left.is_empty() && stopping.load(Ordering::Relaxed);
        if is_left {
            break;
        }
        if !left.is_empty() && refused.is_none() {
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }
    Settled { batch, errors, rows, refused, is_left }
}

async fn write_once(
    keyspace: &Keyspace,
    items: Vec<WriteItem>,
    level: Option<ConsistencyLevel>,
) -> Vec<Result<model::Version, Error>> {
    let mut call = keyspace.batch_write(items);
    if let Some(level) = level {
        call = call.consistency(level);
    }
    call.await
}

fn item(row: &ParsedRow, default_ttl: Option<Duration>) -> WriteItem {
    let item = WriteItem::put(row.key.clone(), row.value.clone());
    match row.ttl.or(default_ttl) {
        Some(ttl) if ttl.is_zero() => item.no_ttl(),
        Some(ttl) => item.ttl(ttl),
        None => item,
    }
}

fn worth_another_try(error: &Error, retry_unknown: bool) -> bool {
    match error.outcome() {
        CallOutcome::Unknown => retry_unknown,
        CallOutcome::NotApplied => matches!(
            error.reason(),
            Reason::NotEnoughReplicas
                | Reason::NoLayout
                | Reason::ClockSkew
                | Reason::Starting
                | Reason::Draining
                | Reason::Overloaded
                | Reason::DiskFull
                | Reason::StorageFailed
                | Reason::DeadlinePassed
                | Reason::ConnectionLost
        ),
    }
}

/// True for what is wrong with the keyspace, the level or the way to the cluster, and with no row.
fn concerns_every_row(error: &Error) -> bool {
    match error.reason() {
        Reason::KeyspaceNotFound
        | Reason::InvalidConsistency
        | Reason::OverlapRequired
        | Reason::NoLayout
        | Reason::NotAPeer
        | Reason::ClusterMismatch
        | Reason::VersionMismatch => true,
        // Said by something between, such as a proxy.
        Reason::Other => matches!(
            error.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
        ),
        _ => false,
    }
}

/// What becomes of a row in the end. One whose outcome was unknown once stays so, whatever a later attempt was
/// told.
fn record_error(error: &Error, attempts: u32, was_unknown: bool) -> RecordError {
    let outcome = if was_unknown { CallOutcome::Unknown } else { error.outcome() };
    RecordError {
        reason: error.reason().as_str().to_owned(),
        outcome: outcome.as_str(),
        message: error.message().to_owned(),
        attempts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_row_that_may_have_been_written_once_stays_unknown() {
        let connected = client::Client::connect_to("127.0.0.1:1").await;
        let error = connected.err().expect("nobody listens there");
        assert_eq!(record_error(&error, 2, true).outcome, CallOutcome::Unknown.as_str());
        assert_eq!(record_error(&error, 2, false).outcome, CallOutcome::NotApplied.as_str());
    }
}
