//! Calls for many keys. A batch is one call to one node, unless it is larger than a node takes.
//!
//! Each key has its own result. Keys that a node refused without doing anything are sent again, the
//! others not; a write of unknown outcome never is.

mod parts;

use std::{collections::BTreeSet, ops::Range, time::Duration};

use bytes::Bytes;
use model::{Key, Version};
use proto::{
    CallError, CallOutcome, Reason,
    v1::kv_service_client::KvServiceClient,
    v1::{self, batch_get_result, batch_write_item, batch_write_result},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, CallOptions, Route},
    channel::Channel,
    cluster::Cluster,
    error::Error,
    keyspace::{IntoKey, Keyspace, coordinator, whole_seconds},
    options::{call_options, into_future},
    retry::{self, Decision, Progress},
};
use parts::{in_order, parts};

/// What a message takes for an item beside its key and value: lengths, a TTL, a request id.
const ITEM_BYTES: usize = 48;

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteItem {
    /// The row.
    pub key: Key,
    /// What to do with it.
    pub write: Write,
    /// How many seconds the row lives, 0 for ever; `None`: as the keyspace says. Only with a put.
    pub ttl_seconds: Option<u64>,
    /// Names this write; 0 lets the node draw one.
    pub request_id: u64,
}

/// What a [`WriteItem`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes the value.
    Put(Bytes),
    /// Deletes the row.
    Delete,
}

impl WriteItem {
    /// Writes a value.
    pub fn put(key: impl IntoKey, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into_key(),
            write: Write::Put(value.into()),
            ttl_seconds: None,
            request_id: 0,
        }
    }

    /// Deletes a row.
    pub fn delete(key: impl IntoKey) -> Self {
        Self { key: key.into_key(), write: Write::Delete, ttl_seconds: None, request_id: 0 }
    }

    /// Sets how long the row lives, rounded up to whole seconds, at least one.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl_seconds = Some(whole_seconds(ttl));
        self
    }

    /// The row never expires, whatever the keyspace says.
    pub fn no_ttl(mut self) -> Self {
        self.ttl_seconds = Some(0);
        self
    }

    fn bytes(&self) -> usize {
        let value = if let Write::Put(value) = &self.write { value.len() } else { 0 };
        key_bytes(&self.key) + value + ITEM_BYTES
    }
}

impl From<&WriteItem> for v1::BatchWriteItem {
    fn from(it: &WriteItem) -> Self {
        Self {
            key: Some(it.key.clone().into()),
            write: Some(match &it.write {
                Write::Put(value) => batch_write_item::Write::Put(value.clone()),
                Write::Delete => batch_write_item::Write::Delete(true),
            }),
            ttl_seconds: it.ttl_seconds,
            request_id: it.request_id,
        }
    }
}

/// What a batch read of one key. An absent key is no error, and tells the version of its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value; `None` if the key was never written, was deleted, or has expired.
    pub value: Option<Bytes>,
    /// The newest version, of a deletion too; `None` if the key was never written.
    pub version: Option<Version>,
    /// When the value expires, in milliseconds since the Unix epoch; `None` for never.
    pub expires_at_ms: Option<u64>,
}

impl From<v1::Found> for Found {
    fn from(it: v1::Found) -> Self {
        Self {
            value: it.found.then_some(it.value),
            version: it.version.map(Into::into),
            expires_at_ms: (it.expires_at_ms != 0).then_some(it.expires_at_ms),
        }
    }
}

/// Writes of many keys, not yet sent: await it, or `send` it.
///
/// ```no_run
/// # async fn example(users: client::Keyspace) {
/// use client::WriteItem;
///
/// let items = vec![WriteItem::put("user:1", "Ada"), WriteItem::delete("user:2")];
/// for (position, result) in users.batch_write(items).await.into_iter().enumerate() {
///     match result {
///         Ok(version) => println!("{position}: {version}"),
///         Err(error) => println!("{position}: {error}"),
///     }
/// }
/// # }
/// ```
#[must_use = "nothing is written unless this is awaited or sent"]
pub struct BatchWrite<'a> {
    keyspace: &'a Keyspace,
    items: Vec<WriteItem>,
    options: CallOptions,
}

call_options!(BatchWrite<'_>);
into_future!(BatchWrite, Vec<Result<Version, Error>>);

impl<'a> BatchWrite<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace, items: Vec<WriteItem>) -> Self {
        Self { keyspace, items, options: CallOptions::default() }
    }

    /// Sends it. The same as awaiting it, without a box around the future. A result per item, in
    /// order; if a call failed as a whole, its items share its error.
    pub async fn send(self) -> Vec<Result<Version, Error>> {
        let Self { keyspace, items, options } = &self;
        let parts = keyspace.parts(items, WriteItem::bytes);
        // A node sees the repetitions of one part only.
        if parts.len() > 1
            && let Some(error) = repeated_key(items)
        {
            return vec![Err(error); items.len()];
        }
        let until = (options, keyspace.deadline(options));
        let run = |part: Range<usize>| {
            let items = &items[part];
            let pending = (0..items.len()).collect();
            let round = WriteRound { keyspace, items, pending, options };
            run_part(keyspace, items.len(), until, round)
        };
        in_order(parts, run).await
    }
}

/// Reads of many keys, not yet sent: await it, or `send` it.
///
/// ```no_run
/// # async fn example(users: client::Keyspace) {
/// for result in users.batch_get(["user:1", "user:2"]).await {
///     match result {
///         Ok(found) => println!("{:?}, written as {:?}", found.value, found.version),
///         Err(error) => println!("{error}"),
///     }
/// }
/// # }
/// ```
#[must_use = "nothing is read unless this is awaited or sent"]
pub struct BatchGet<'a> {
    keyspace: &'a Keyspace,
    keys: Vec<Key>,
    options: CallOptions,
}

call_options!(BatchGet<'_>);
into_future!(BatchGet, Vec<Result<Found, Error>>);

impl<'a> BatchGet<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace, keys: Vec<Key>) -> Self {
        Self { keyspace, keys, options: CallOptions::default() }
    }

    /// Sends it. The same as awaiting it, without a box around the future. A result per key, in
    /// order; if a call failed as a whole, its keys share its error.
    pub async fn send(self) -> Vec<Result<Found, Error>> {
        let Self { keyspace, keys, options } = &self;
        let until = (options, keyspace.deadline(options));
        let run = |part: Range<usize>| {
            let keys = &keys[part];
            let pending = (0..keys.len()).collect();
            let round = GetRound { keyspace, keys, pending, options };
            run_part(keyspace, keys.len(), until, round)
        };
        in_order(keyspace.parts(keys, key_bytes), run).await
    }
}

fn key_bytes(key: &Key) -> usize {
    key.partition_key.len() + key.sort_key.len()
}

impl Keyspace {
    /// Until when all parts of a batch that begins now have to be done.
    fn deadline(&self, options: &CallOptions) -> Instant {
        Instant::now() + options.timeout(self.cluster().config())
    }

    /// Cuts a batch into parts that a node takes. An item that is too large alone is a part: the node
    /// says so better.
    fn parts<T>(&self, items: &[T], bytes: fn(&T) -> usize) -> Vec<Range<usize>> {
        let config = self.cluster().config();
        parts(items.iter().map(bytes), config.batch_keys_max, config.batch_bytes_max)
    }
}

fn repeated_key(items: &[WriteItem]) -> Option<Error> {
    let mut seen = BTreeSet::new();
    let repeated = items.iter().find(|it| !seen.insert(&it.key))?;
    let message = format!("the batch names {:?} twice", repeated.key);
    let cause = CallError::new(Reason::DuplicateKey, message).at_field("items");
    Some(Error::new(WriteRound::NAME, true, None, 0, cause))
}

/// One call of a part: its items, or those of them that are still without a result.
trait Round: Call {
    type Output;

    /// The token of the first pending key, whose replica coordinates.
    fn route(&self) -> Route<'_>;

    /// The positions within the part that this call is about.
    fn pending(&mut self) -> &mut Vec<usize>;

    fn results(response: Self::Response) -> Vec<Result<Self::Output, v1::KeyError>>;
}

/// A part whose turn came when the time of the whole batch was up.
fn no_time_left<R: Round>() -> Error {
    let message = "the time was up before this part of the batch was sent";
    let cause = CallError::new(Reason::DeadlinePassed, message);
    Error::new(R::NAME, R::WRITES, None, 0, cause)
}

/// Sends a part, and sends the keys again that were refused without doing anything.
async fn run_part<R: Round>(
    keyspace: &Keyspace,
    length: usize,
    (options, deadline): (&CallOptions, Instant),
    mut round: R,
) -> Vec<Result<R::Output, Error>> {
    let cluster = keyspace.cluster();
    let config = cluster.config();
    let timeout = deadline.saturating_duration_since(Instant::now());
    if timeout.is_zero() {
        return std::iter::repeat_with(|| Err(no_time_left::<R>())).take(length).collect();
    }
    let mut options = CallOptions { timeout: Some(timeout), ..options.clone() };
    let mut results: Vec<Option<Result<R::Output, Error>>> = Vec::new();
    results.resize_with(length, || None);
    let mut continued = 0;
    for attempt in 1.. {
        let answer = cluster.call(&round, round.route(), &options).await;
        let pending = std::mem::take(round.pending());
        let (response, node) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                pending.iter().for_each(|it| results[*it] = Some(Err(error.clone())));
                break;
            }
        };
        let fail = |cause| {
            let address = node.node().address().clone();
            Error::new(R::NAME, R::WRITES, Some(address), attempt, cause).answered()
        };
        let answers = R::results(response);
        if answers.len() != pending.len() {
            let error = fail(wrong_length(pending.len(), answers.len()));
            pending.iter().for_each(|it| results[*it] = Some(Err(error.clone())));
            break;
        }
        let expected = cluster.topology().has_keyspace(keyspace.name());
        let progress = answers.iter().any(Result::is_ok);
        let mut cut_short = false;
        for (position, answer) in pending.into_iter().zip(answers) {
            results[position] = Some(answer.map_err(|error| {
                let error = CallError::from_key_error(error);
                cluster.observe(error.clock);
                let decision = retry::decide(R::WRITES, Progress::Answered, &error, expected);
                // A full answer, not a refusal: the rest comes with the next one.
                let left_over = progress && !R::WRITES && error.reason == Reason::BatchTooLarge;
                cut_short |= left_over;
                if left_over || decision != Decision::GiveUp {
                    round.pending().push(position);
                }
                fail(error)
            }));
        }
        continued += u32::from(cut_short);
        let pause = if cut_short { Duration::ZERO } else { pause_after(cluster, attempt) };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let given_up = attempt - continued >= config.attempts_max;
        if round.pending().is_empty() || given_up || pause >= remaining {
            break;
        }
        drop(node);
        tokio::time::sleep(pause).await;
        options.timeout = Some(remaining - pause);
    }
    results
        .into_iter()
        .map(|it| it.expect("each position was pending in the first round"))
        .collect()
}

fn pause_after(cluster: &Cluster, attempt: u32) -> Duration {
    let config = cluster.config();
    let draw = cluster.draw();
    retry::pause(config.retry_delay, config.retry_delay_max, attempt, Duration::ZERO, draw)
}

fn wrong_length(expected: usize, actual: usize) -> CallError {
    let message = format!("{actual} results came back for {expected} keys");
    let mut error = CallError::new(Reason::MalformedMessage, message);
    error.outcome = CallOutcome::Unknown;
    error
}

fn no_result() -> v1::KeyError {
    let mut error = CallError::new(Reason::MalformedMessage, "the node gave a key no result");
    error.outcome = CallOutcome::Unknown;
    error.into_key_error()
}

struct WriteRound<'a> {
    keyspace: &'a Keyspace,
    items: &'a [WriteItem],
    pending: Vec<usize>,
    options: &'a CallOptions,
}

impl Call for WriteRound<'_> {
    const NAME: &'static str = "batch write";
    const WRITES: bool = true;
    type Request = v1::BatchWriteRequest;
    type Response = v1::BatchWriteResponse;

    fn request(&self, clock: u64) -> v1::BatchWriteRequest {
        v1::BatchWriteRequest {
            keyspace: self.keyspace.name().to_owned(),
            items: self.pending.iter().map(|it| (&self.items[*it]).into()).collect(),
            consistency: self.options.consistency.map(Into::into),
            clock,
        }
    }

    async fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        KvServiceClient::new(channel)
            .max_decoding_message_size(bytes_max)
            .batch_write(request)
            .await
    }

    fn learned(response: &v1::BatchWriteResponse) -> (u64, Option<u32>) {
        (response.clock, coordinator(response.participation.as_ref()))
    }
}

impl Round for WriteRound<'_> {
    type Output = Version;

    fn route(&self) -> Route<'_> {
        let token = self.items[self.pending[0]].key.token();
        self.keyspace.route(token, true, self.options)
    }

    fn pending(&mut self) -> &mut Vec<usize> {
        &mut self.pending
    }

    fn results(response: v1::BatchWriteResponse) -> Vec<Result<Version, v1::KeyError>> {
        let each = |it: v1::BatchWriteResult| match it.result {
            Some(batch_write_result::Result::Version(version)) => Ok(version.into()),
            Some(batch_write_result::Result::Error(error)) => Err(error),
            None => Err(no_result()),
        };
        response.results.into_iter().map(each).collect()
    }
}

struct GetRound<'a> {
    keyspace: &'a Keyspace,
    keys: &'a [Key],
    pending: Vec<usize>,
    options: &'a CallOptions,
}

impl Call for GetRound<'_> {
    const NAME: &'static str = "batch get";
    const WRITES: bool = false;
    type Request = v1::BatchGetRequest;
    type Response = v1::BatchGetResponse;

    fn request(&self, clock: u64) -> v1::BatchGetRequest {
        v1::BatchGetRequest {
            keyspace: self.keyspace.name().to_owned(),
            keys: self.pending.iter().map(|it| self.keys[*it].clone().into()).collect(),
            consistency: self.options.consistency.map(Into::into),
            clock,
        }
    }

    async fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        KvServiceClient::new(channel).max_decoding_message_size(bytes_max).batch_get(request).await
    }

    fn learned(response: &v1::BatchGetResponse) -> (u64, Option<u32>) {
        (response.clock, coordinator(response.participation.as_ref()))
    }
}

impl Round for GetRound<'_> {
    type Output = Found;

    fn route(&self) -> Route<'_> {
        self.keyspace.route(self.keys[self.pending[0]].token(), false, self.options)
    }

    fn pending(&mut self) -> &mut Vec<usize> {
        &mut self.pending
    }

    fn results(response: v1::BatchGetResponse) -> Vec<Result<Found, v1::KeyError>> {
        let each = |it: v1::BatchGetResult| match it.result {
            Some(batch_get_result::Result::Found(it)) => Ok(it.into()),
            Some(batch_get_result::Result::Error(error)) => Err(error),
            None => Err(no_result()),
        };
        response.results.into_iter().map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_only_where_it_must_be() {
        let check = |sizes: &[usize], expected: &str| {
            let parts = parts(sizes.iter().copied(), 3, 100);
            let parts: Vec<_> = parts.iter().map(|it| format!("{it:?}")).collect();
            assert_eq!(parts.join(" "), expected);
        };
        check(&[], "");
        check(&[100], "0..1");
        check(&[40, 40, 20], "0..3");
        check(&[40, 40, 21], "0..2 2..3");
        check(&[1, 1, 1, 1], "0..3 3..4");
        check(&[1, 500, 1], "0..1 1..2 2..3");
        check(&[usize::MAX / 2, 1], "0..1 1..2");
    }

    #[test]
    fn repetitions_are_found_over_all_parts() {
        let items =
            |keys: &[&str]| keys.iter().map(|it| WriteItem::delete(*it)).collect::<Vec<_>>();
        assert!(repeated_key(&items(&["a", "b", "c"])).is_none());
        let error = repeated_key(&items(&["a", "b", "a"])).unwrap();
        assert_eq!(error.reason(), Reason::DuplicateKey);
        assert_eq!(error.outcome(), CallOutcome::NotApplied);
    }
}
