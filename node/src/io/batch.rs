//! Batches: each key on its own, all answered together.

use std::{collections::BTreeSet, sync::Arc};

use proto::{CallError, Reason, v1};
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;

use super::{
    call::Call,
    coordinate::PlannedWrite,
    kv::{KvApi, READ_COPIES, WriteItem, WriteLevel, found, stopped_read, stopped_write},
    request::MeasuredRequest,
};
use crate::reply::{Batch, ReplyTo};

impl KvApi {
    pub(super) async fn batch_write_call(
        &self,
        metadata: &MetadataMap,
        request: v1::BatchWriteRequest,
        measured: &mut MeasuredRequest<'_>,
    ) -> Result<v1::BatchWriteResponse, CallError> {
        let call = Call::coordinate(&self.io, metadata, request.clock).await?;
        call.check_writable()?;
        let keyspace = call.keyspace(&request.keyspace)?;
        let WriteLevel { level, overlap } =
            self.write_level(keyspace, request.consistency.as_ref())?;
        measured.at_level(level);
        let bytes =
            check_batch(&call, request.items.iter().map(|it| (it.key.as_ref(), put_bytes(it))))?;
        let mut held = self.io.hold(bytes)?;
        let stamp = self.stamp(&call, request.items.len()).await?;
        let mut results: Vec<Option<v1::BatchWriteResult>> = vec![None; request.items.len()];
        let (mut planned, mut positions, mut required) = (Vec::new(), Vec::new(), 0);
        for (position, item) in request.items.into_iter().enumerate() {
            let item = batch_item(&call, item);
            let bytes = item.as_ref().map_or(0, WriteItem::bytes);
            match item.and_then(|item| self.plan_write(&call, keyspace, level, item)) {
                Ok((request, replicas)) => {
                    let held = held.split(bytes);
                    required = request.requirement.required();
                    let traceparent = call.traceparent.clone();
                    planned.push(PlannedWrite { request, replicas, stamp, held, traceparent });
                    positions.push(position);
                }
                Err(error) => results[position] = Some(write_failure(measured, error)),
            }
        }
        if !planned.is_empty() {
            let (done, results_of) = oneshot::channel();
            let batch = Batch::new(planned.len(), done);
            let writes = planned
                .into_iter()
                .enumerate()
                .map(|(position, it)| (it, ReplyTo::Batch { batch: Arc::clone(&batch), position }));
            self.io.start_writes(writes, call.deadline_us)?;
            for (position, done) in
                positions.into_iter().zip(results_of.await.map_err(stopped_write)?)
            {
                results[position] = Some(match done {
                    Ok(reply) => {
                        let version = v1::batch_write_result::Result::Version(reply.version.into());
                        v1::BatchWriteResult { result: Some(version) }
                    }
                    Err(error) => write_failure(measured, call.write_error(level, &error)),
                });
            }
        }
        Ok(v1::BatchWriteResponse {
            results: results.into_iter().flatten().collect(),
            participation: Some(call.participation_of(required, Vec::new(), overlap)),
            clock: call.clock(),
        })
    }

    pub(super) async fn batch_get_call(
        &self,
        metadata: &MetadataMap,
        request: v1::BatchGetRequest,
        measured: &mut MeasuredRequest<'_>,
    ) -> Result<v1::BatchGetResponse, CallError> {
        let call = Call::coordinate(&self.io, metadata, request.clock).await?;
        let keyspace = call.keyspace(&request.keyspace)?;
        let (level, overlap) = self.read_level(keyspace, request.consistency.as_ref())?;
        measured.at_level(level);
        check_batch(&call, request.keys.iter().map(|it| (Some(it), 0)))?;
        let limit = call.shared.config.limits.batch_bytes_max;
        let keys = request.keys.len();
        let expected = limit.min(keyspace.usual_value.expected().saturating_mul(keys));
        // What is read, and the answer.
        let mut held = self.io.hold_in_advance(expected * (READ_COPIES + 1))?;
        let each = expected * READ_COPIES / keys.max(1);
        let mut results: Vec<Option<v1::BatchGetResult>> = vec![None; request.keys.len()];
        let (mut planned, mut positions, mut required) = (Vec::new(), Vec::new(), 0);
        for (position, key) in request.keys.into_iter().enumerate() {
            let key = call.key(Some(key));
            let planning =
                key.and_then(|key| self.plan_read(&call, keyspace, level, &key, held.split(each)));
            match planning {
                Ok(read) => {
                    required = read.request.requirement.required();
                    planned.push(read);
                    positions.push(position);
                }
                Err(error) => results[position] = Some(read_failure(measured, error)),
            }
        }
        let (mut planned, mut positions) = (planned.into_iter(), positions.into_iter());
        let (mut asked, mut bytes) = (0, 0);
        while planned.len() > 0 && bytes < limit {
            let wave = wave(planned.len(), (asked, bytes), limit, keyspace.usual_value.get());
            asked += wave;
            let (done, results_of) = oneshot::channel();
            let batch = Batch::new(wave, done);
            let reads: Vec<_> = (planned.by_ref().take(wave).enumerate())
                .map(|(position, it)| (it, ReplyTo::Batch { batch: Arc::clone(&batch), position }))
                .collect();
            self.io.start_reads(reads.into_iter(), call.deadline_us)?;
            for (done, read_held) in results_of.await.map_err(stopped_read)? {
                let position = positions.next().expect("one for each that was planned");
                results[position] = Some(match done {
                    Ok(_) if bytes >= limit => answer_full(measured, limit, bytes),
                    Ok(reply) => {
                        if let Some(value) = &reply.value {
                            bytes += value.len();
                            held.join(read_held);
                            keyspace.usual_value.measured(value.len());
                        }
                        let found = v1::batch_get_result::Result::Found(found(reply));
                        v1::BatchGetResult { result: Some(found) }
                    }
                    Err(error) => read_failure(measured, call.read_error(level, &error)),
                });
            }
        }
        for position in positions {
            results[position] = Some(answer_full(measured, limit, bytes));
        }
        Ok(v1::BatchGetResponse {
            results: results.into_iter().flatten().collect(),
            participation: Some(call.participation_of(required, Vec::new(), overlap)),
            clock: call.clock(),
        })
    }
}

/// For a key behind the value that filled the answer.
fn answer_full(
    measured: &mut MeasuredRequest<'_>,
    limit: usize,
    actual: usize,
) -> v1::BatchGetResult {
    let message = format!("the answer has {actual} bytes already: ask again for this key");
    let error = CallError::new(Reason::BatchTooLarge, message);
    read_failure(measured, error.with("limit", limit).with("actual", actual))
}

/// How many of the keys that are left to read at once: values have any size, and what is read is held
/// until the answer is sent. At first as many as fit going by what values of the keyspace usually have, then
/// going by those of this batch.
fn wave(left: usize, (asked, bytes): (usize, usize), limit: usize, usual: Option<usize>) -> usize {
    let fit = match (asked, bytes) {
        (0, _) => usual.map_or(FIRST_WAVE, |it| limit / it).min(FIRST_WAVE_MAX),
        (_, 0) => asked.saturating_mul(FIRST_WAVE),
        _ => (limit - bytes) / (bytes / asked).max(1),
    };
    left.min(fit.max(1))
}

/// While no value of a keyspace has been seen: as few as fit in any case, by the limits that nodes have unless
/// told otherwise. And how many times as many then, for as long as none is found.
const FIRST_WAVE: usize = 4;
/// Most batches are no larger, and are read at once; the values of a larger one may be others than usual.
const FIRST_WAVE_MAX: usize = 128;

/// Checks a batch as a whole: keys, bytes, no row twice. Its bytes.
fn check_batch<'a>(
    call: &Call<'_>,
    items: impl ExactSizeIterator<Item = (Option<&'a v1::Key>, usize)>,
) -> Result<usize, CallError> {
    let limits = &call.shared.config.limits;
    let too_large = |what, limit: usize, actual: usize| {
        let message = format!("the batch has {actual} {what}; at most {limit} are allowed");
        let error = CallError::new(Reason::BatchTooLarge, message);
        Err(error.at_field("items").with("limit", limit).with("actual", actual))
    };
    if items.len() > limits.batch_keys_max {
        return too_large("keys", limits.batch_keys_max, items.len());
    }
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    for (position, (key, value_bytes)) in items.enumerate() {
        bytes += value_bytes;
        let Some(key) = key else { continue };
        bytes += key.partition_key.len() + key.sort_key.len();
        if !seen.insert((&key.partition_key, &key.sort_key)) {
            let message = format!("item {position} names a row that an earlier item names");
            return Err(CallError::new(Reason::DuplicateKey, message)
                .at_field(&format!("items[{position}].key")));
        }
    }
    if bytes > limits.batch_bytes_max {
        return too_large("bytes", limits.batch_bytes_max, bytes);
    }
    Ok(bytes)
}

fn put_bytes(item: &v1::BatchWriteItem) -> usize {
    match &item.write {
        Some(v1::batch_write_item::Write::Put(value)) => value.len(),
        _ => 0,
    }
}

fn batch_item(call: &Call<'_>, item: v1::BatchWriteItem) -> Result<WriteItem, CallError> {
    let invalid = |text: &str| Err(CallError::new(Reason::InvalidField, text).at_field("write"));
    let value = match item.write {
        Some(v1::batch_write_item::Write::Put(value)) => Some(value),
        Some(v1::batch_write_item::Write::Delete(true)) if item.ttl_seconds.is_some() => {
            return invalid("a delete takes no TTL");
        }
        Some(v1::batch_write_item::Write::Delete(true)) => None,
        Some(v1::batch_write_item::Write::Delete(false)) => {
            return invalid("`delete` is false: leave the item away instead");
        }
        None => return invalid("the item has neither `put` nor `delete`"),
    };
    let ttl_seconds = if value.is_some() { item.ttl_seconds } else { Some(0) };
    Ok(WriteItem { key: call.key(item.key)?, value, ttl_seconds, request_id: item.request_id })
}

fn write_failure(measured: &mut MeasuredRequest<'_>, error: CallError) -> v1::BatchWriteResult {
    measured.key_failed(&error);
    let error = v1::batch_write_result::Result::Error(error.into_key_error());
    v1::BatchWriteResult { result: Some(error) }
}

fn read_failure(measured: &mut MeasuredRequest<'_>, error: CallError) -> v1::BatchGetResult {
    measured.key_failed(&error);
    let error = v1::batch_get_result::Result::Error(error.into_key_error());
    v1::BatchGetResult { result: Some(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_as_large_as_what_still_fits() {
        let none = (0, 0);
        assert_eq!(wave(4_000, none, 1_000, None), FIRST_WAVE);
        assert_eq!(wave(100, none, 1_000, Some(10)), 100, "most batches in one");
        assert_eq!(wave(4_000, none, 1_000, Some(200)), 5);
        assert_eq!(wave(4_000, none, 1_000, Some(5)), FIRST_WAVE_MAX, "they may be larger");
        assert_eq!(wave(3_996, (4, 0), 1_000, None), 16, "nothing found yet");
        assert_eq!(wave(3_980, (20, 0), 1_000, None), 80, "and still not");
        assert_eq!(wave(3_872, (128, 128 * 5), 1_000, Some(1)), 72);
        assert_eq!(wave(3_872, (128, 999), 1_000, Some(1)), 1, "always on");
    }
}
