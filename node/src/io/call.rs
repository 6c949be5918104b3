//! What all calls of clients have in common: admission, keyspace, level, deadline, errors.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use arc_swap::Guard;
use coordinator::{ReadError, WriteError};
use http::{HeaderMap, HeaderName};
use model::{
    ConsistencyLevel, DcIndex, Hlc, Key, KeyError, LevelError, Refusal, ReplicaMask, ReplicaSet,
    Timestamp,
};
use proto::{CallError, CallOutcome, Reason, v1};
use tonic::metadata::MetadataMap;

use super::{coordinate::Full, io_loop::IoLoop};
use crate::{
    clock_watch::ClockState,
    counters::Counters,
    shared::{Shared, StopReason},
    view::{KeyspaceView, View},
};

/// A call of a client that has been admitted.
pub(super) struct Call<'a> {
    /// What the node's loops share.
    pub shared: &'a Arc<Shared>,
    /// The metadata that the call is planned by.
    pub view: Guard<Arc<View>>,
    /// What the wall clock showed when the call came, or what it should have. A call that this node
    /// coordinates may be stamped by it.
    pub wall: Timestamp,
    /// When the client has to have its answer, in microseconds since the node started.
    pub deadline_us: u64,
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

impl<'a> Call<'a> {
    /// Admits a call, or says why not. `clock` is the highest that the client has seen.
    pub(super) fn admit(
        io: &'a IoLoop,
        metadata: &MetadataMap,
        clock: u64,
    ) -> Result<Self, CallError> {
        Self::admit_at(io, metadata, clock, io.shared.believed_wall())
    }

    fn admit_at(
        io: &'a IoLoop,
        metadata: &MetadataMap,
        clock: u64,
        wall: Timestamp,
    ) -> Result<Self, CallError> {
        let shared = &io.shared;
        if shared.draining.load(Ordering::Relaxed) {
            return Err(
                CallError::new(Reason::Draining, "this node is stopping").retry_after(RETRY)
            );
        }
        let view = shared.view.load();
        if view.metadata().is_none() {
            let message = "the cluster has no layout yet: plan and commit one";
            return Err(CallError::new(Reason::NoLayout, message).retry_after(RETRY));
        }
        let timeout = effective_timeout(shared, metadata)?;
        let timeout_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        shared.clock.observe_client(wall, Hlc(clock)).map_err(|error| {
            CallError::new(Reason::ClockAhead, format!("the clock given is refused: {error}"))
                .at_field("clock")
                .with("limit_ms", shared.config.clock_offset_max_ms)
        })?;
        let headers: &HeaderMap = metadata.as_ref();
        let traceparent = headers.get(TRACEPARENT).and_then(|it| it.to_str().ok());
        let traceparent = traceparent.filter(|it| it.len() <= TRACEPARENT_BYTES_MAX).map(Arc::from);
        let deadline_us = io.now_us() + timeout_us;
        Ok(Self { shared, view, wall, deadline_us, traceparent })
    }

    /// Admits a call that this node coordinates, which takes a clock that can be believed. Where the
    /// others' word on it is due any moment, the call waits for it.
    pub(super) async fn coordinate(
        io: &'a IoLoop,
        metadata: &MetadataMap,
        clock: u64,
    ) -> Result<Self, CallError> {
        let trusted = io.shared.trusted_wall();
        let wall = trusted.unwrap_or_else(|_| io.shared.believed_wall());
        let mut call = Self::admit_at(io, metadata, clock, wall)?;
        if let Err(state) = trusted {
            call.wall = call.settled_wall(io, state).await?;
        }
        Ok(call)
    }

    /// The wall clock once it can be believed. Whoever waits for that holds a place among the
    /// operations in flight.
    async fn settled_wall(&self, io: &IoLoop, state: ClockState) -> Result<Timestamp, CallError> {
        let _place = if state.is_pending() { Some(io.reserve(1)?) } else { None };
        let left = Duration::from_micros(self.deadline_us.saturating_sub(io.now_us()));
        let settled = self.shared.await_clock(left.min(CLOCK_WAIT)).await;
        let wall = settled.and_then(|()| self.shared.trusted_wall());
        wall.map_err(|state| self.clock_error(state))
    }

    /// Why nothing is coordinated by this node's clock.
    pub(super) fn clock_error(&self, state: ClockState) -> CallError {
        Counters::count(&self.shared.counters.calls_clock_skew);
        let (median_ms, limit_ms) = self.shared.clock_median_ms();
        let why = match state {
            ClockState::Unverified => {
                "has not been compared with enough other nodes since this one started"
            }
            ClockState::Jumped => "has jumped, and the other nodes have not confirmed it",
            ClockState::Behind => {
                "is far behind the stamps of its last run, and the other nodes have not come so far"
            }
            _ => "is too far from those of the other nodes",
        };
        let message = format!("this node's wall clock {why}; nothing was sent");
        let mut error = CallError::new(Reason::ClockSkew, message).with("limit_ms", limit_ms);
        if let Some(median_ms) = median_ms {
            error = error.with("offset_ms", -median_ms);
        }
        error.retry_after(RETRY).with_clock(self.clock())
    }

    /// A keyspace by name.
    pub(super) fn keyspace(&self, name: &str) -> Result<&Arc<KeyspaceView>, CallError> {
        self.view.keyspace(name).ok_or_else(|| {
            CallError::new(Reason::KeyspaceNotFound, format!("there is no keyspace {name:?}"))
                .at_field("keyspace")
                .with("keyspace", name)
        })
    }

    /// A row's name, checked.
    pub(super) fn key(&self, key: Option<v1::Key>) -> Result<Key, CallError> {
        let key = key.ok_or_else(|| {
            CallError::new(Reason::KeyEmpty, "the request names no key").at_field("key")
        })?;
        let key = Key::from(key);
        key.validate(&self.shared.config.limits).map_err(key_error)?;
        Ok(key)
    }

    /// Refuses writes that this node could not take part in.
    pub(super) fn check_writable(&self) -> Result<(), CallError> {
        match self.shared.failure() {
            None => Ok(()),
            Some(StopReason::Storage(error)) => {
                let message = format!("this node's storage has failed: {error}");
                Err(CallError::new(Reason::StorageFailed, message).retry_after(RETRY))
            }
            Some(reason) => {
                let message = format!("this node is stopping: {reason}");
                Err(CallError::new(Reason::Draining, message).retry_after(RETRY))
            }
        }
    }

    /// Who took part in a call.
    pub(super) fn participation(
        &self,
        required: u8,
        answered: ReplicaMask,
        replicas: &ReplicaSet,
        overlap: bool,
    ) -> v1::Participation {
        let answered = answered.iter().map(|it| u32::from(replicas.node(it).0)).collect();
        self.participation_of(required, answered, overlap)
    }

    /// Who took part in a call for several keys.
    pub(super) fn participation_of(
        &self,
        required: u8,
        answered: Vec<u32>,
        overlap: bool,
    ) -> v1::Participation {
        let coordinator = self.view.own().map_or(u32::MAX, |it| it.0.into());
        v1::Participation { required: required.into(), answered, coordinator, overlap }
    }

    /// The highest clock, for the reply.
    pub(super) fn clock(&self) -> u64 {
        self.shared.clock.highest().0
    }

    fn datacenter_name(&self, dc: DcIndex) -> String {
        let names = self.view.metadata().map(|it| it.layout().datacenters());
        let name = names.and_then(|it| it.get(usize::from(dc.0)));
        name.cloned().unwrap_or_default()
    }

    /// A write's failure, as its client sees it.
    pub(super) fn write_error(&self, level: ConsistencyLevel, error: &WriteError) -> CallError {
        let unknown = error.outcome_unknown();
        let call = match error {
            WriteError::Unavailable { datacenter, required, alive } => {
                return self.unavailable(level, *datacenter, *required, *alive);
            }
            WriteError::Timeout { required, acked, .. } => {
                let message = format!(
                    "{acked} of {required} required replicas acknowledged in time; {}",
                    fate(unknown)
                );
                numbers(CallError::new(Reason::WriteTimeout, message), level, *required, *acked)
            }
            WriteError::Failed { required, acked, refusals, .. } => {
                let kinds = refusals.iter().map(|it| it.1);
                if let Some(error) = overload(kinds.clone(), unknown) {
                    numbers(error, level, *required, *acked)
                } else {
                    let message = format!(
                        "{acked} of {required} required replicas acknowledged, and the others cannot \
                         any more{}; {}",
                        refused_by(kinds),
                        fate(unknown)
                    );
                    numbers(CallError::new(Reason::WriteFailed, message), level, *required, *acked)
                }
            }
        };
        let versions: Vec<_> = error.versions().iter().map(ToString::to_string).collect();
        let mut call = call.with_clock(self.clock());
        if unknown {
            call = call.with("versions", versions.join(","));
        } else {
            call.outcome = CallOutcome::NotApplied;
        }
        call
    }

    /// A read's failure, as its client sees it.
    pub(super) fn read_error(&self, level: ConsistencyLevel, error: &ReadError) -> CallError {
        let call = match error {
            ReadError::Unavailable { datacenter, required, alive } => {
                return self.unavailable(level, *datacenter, *required, *alive);
            }
            ReadError::Timeout { required, answered } => {
                let message =
                    format!("{answered} of {required} required replicas answered in time");
                numbers(CallError::new(Reason::ReadTimeout, message), level, *required, *answered)
            }
            ReadError::Failed { required, answered, refusals } => {
                let message = format!(
                    "{answered} of {required} required replicas answered, and no others are left{}",
                    refused_by(refusals.iter().map(|it| it.1))
                );
                let call = CallError::new(Reason::ReadFailed, message).retry_after(RETRY);
                numbers(call, level, *required, *answered)
            }
            ReadError::Corrupt { required, answered, .. } => {
                let message = "the copies that could be read fail their checksum; other replicas, \
                               once they are up, may have a good one";
                numbers(
                    CallError::new(Reason::ChecksumMismatch, message),
                    level,
                    *required,
                    *answered,
                )
            }
        };
        call.with_clock(self.clock())
    }

    fn unavailable(
        &self,
        level: ConsistencyLevel,
        datacenter: Option<DcIndex>,
        required: u8,
        alive: u8,
    ) -> CallError {
        let name = datacenter.map(|it| self.datacenter_name(it));
        let place = name.as_ref().map(|it| format!(" in {it}")).unwrap_or_default();
        let message = format!(
            "{level} needs {required} replicas{place}, and {alive} are up; nothing was sent"
        );
        let mut call = CallError::new(Reason::NotEnoughReplicas, message)
            .with("level", level)
            .with("required", required)
            .with("alive", alive)
            .retry_after(RETRY)
            .with_clock(self.clock());
        if let Some(name) = name {
            call = call.with("datacenter", name);
        }
        call
    }
}

/// A round of pings, and some.
const CLOCK_WAIT: Duration = Duration::from_millis(250);

/// When a client may try again what could not be served just now.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// W3C trace context.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const TRACEPARENT_BYTES_MAX: usize = 128;

fn fate(unknown: bool) -> &'static str {
    if unknown { "the write may have been applied, or may still be" } else { "nothing was applied" }
}

fn numbers(error: CallError, level: ConsistencyLevel, required: u8, received: u8) -> CallError {
    error.with("level", level).with("required", required).with("received", received)
}

/// Refusals that tell the client more than "failed" does.
fn overload(mut kinds: impl Iterator<Item = Refusal> + Clone, unknown: bool) -> Option<CallError> {
    if unknown && kinds.clone().any(|it| !matches!(it, Refusal::Overloaded | Refusal::DiskFull)) {
        return None;
    }
    let reason = if kinds.clone().any(|it| it == Refusal::DiskFull) {
        Reason::DiskFull
    } else if kinds.any(|it| it == Refusal::Overloaded) {
        Reason::Overloaded
    } else {
        return None;
    };
    let message = match reason {
        Reason::DiskFull => "too many replicas have a full disk",
        _ => "too many replicas have as much work as they take",
    };
    let mut error = CallError::new(reason, format!("{message}; {}", fate(unknown)));
    if unknown {
        error.outcome = CallOutcome::Unknown;
    } else {
        error = error.retry_after(RETRY);
    }
    Some(error)
}

fn refused_by(kinds: impl Iterator<Item = Refusal>) -> String {
    let mut names: Vec<_> = kinds.map(|it| format!("{it:?}")).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

fn key_error(error: KeyError) -> CallError {
    match error {
        KeyError::Empty => CallError::new(Reason::KeyEmpty, error.to_string()).at_field("key"),
        KeyError::TooLarge { limit, actual } | KeyError::SortKeyTooLarge { limit, actual } => {
            CallError::new(Reason::KeyTooLarge, error.to_string())
                .at_field("key")
                .with("limit", limit)
                .with("actual", actual)
        }
    }
}

/// A level that makes no sense for the keyspace.
pub(super) fn level_error(error: &LevelError) -> CallError {
    CallError::new(Reason::InvalidConsistency, error.to_string()).at_field("consistency")
}

/// The level of a call: its own, or the keyspace's default.
pub(super) fn level_of(
    wanted: Option<&v1::Consistency>,
    default: ConsistencyLevel,
) -> Result<ConsistencyLevel, CallError> {
    let wanted = wanted.map(v1::Consistency::level).transpose().map_err(|error| {
        CallError::new(Reason::InvalidConsistency, error.to_string()).at_field("consistency")
    })?;
    Ok(wanted.flatten().unwrap_or(default))
}

/// A level that the keyspace's `require_overlap` does not allow.
pub(super) fn overlap_error(level: ConsistencyLevel, keyspace: &KeyspaceView) -> CallError {
    let message = format!(
        "keyspace {:?} requires R + W > N, 2W > N and 2R > N, and in several datacenters local levels \
         with local levels only, which {level} does not give against its defaults (reads {}, writes {})",
        keyspace.keyspace.name, keyspace.keyspace.read_level, keyspace.keyspace.write_level
    );
    CallError::new(Reason::OverlapRequired, message).at_field("consistency").with("level", level)
}

impl From<Full> for CallError {
    fn from(full: Full) -> Self {
        let message = format!("this node has {} {}, its limit", full.limit, full.what);
        Self::new(Reason::Overloaded, message).with("limit", full.limit).retry_after(RETRY)
    }
}

/// The time that a call has: the client's, a little shortened so that our answer comes before the
/// transport gives up, and at most the node's own.
fn effective_timeout(shared: &Shared, metadata: &MetadataMap) -> Result<Duration, CallError> {
    let own = Duration::from_millis(shared.config.request_timeout_ms);
    let Some(wanted) = timeout_of(metadata.as_ref()) else { return Ok(own) };
    if wanted.is_zero() {
        return Err(CallError::new(Reason::DeadlinePassed, "the call's deadline had passed"));
    }
    let margin = (wanted / 10).clamp(MARGIN_MIN, MARGIN_MAX).min(wanted / 2);
    Ok((wanted - margin).min(own))
}

const MARGIN_MIN: Duration = Duration::from_millis(6);
const MARGIN_MAX: Duration = Duration::from_millis(50);

/// The time that the client gives a call, if it says so. What cannot be parsed is ignored.
pub(super) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    headers.get(GRPC_TIMEOUT).and_then(|it| it.to_str().ok()).and_then(parse_timeout)
}

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(count * 3600)),
        'M' => Some(Duration::from_secs(count * 60)),
        'S' => Some(Duration::from_secs(count)),
        'm' => Some(Duration::from_millis(count)),
        'u' => Some(Duration::from_micros(count)),
        'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let check = |text, expected| assert_eq!(parse_timeout(text), expected, "{text}");
        check("100m", Some(Duration::from_millis(100)));
        check("2S", Some(Duration::from_secs(2)));
        check("0n", Some(Duration::ZERO));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "1", "-1S", "1.5S", "123456789S", "1x", "1é"] {
            check(bad, None);
        }
    }
}
