//! The calls of a client, each written down as it is made and as it ends.

use std::{collections::BTreeMap, future::Future, time::Duration};

use bytes::Bytes;
use client::{Error, WriteItem};
use model::{ConsistencyLevel, Hlc, RequestId, Version};
use proto::CallOutcome;
use rand::{RngExt, rngs::StdRng};

use super::{Load, Phase, Session, connect};
use crate::{
    discipline::Discipline,
    history::{Action, Outcome, Via},
    recorder::{KeyKind, KeyName},
};

impl Session {
    pub(super) async fn put(&mut self, discipline: Discipline) {
        let key = self.key_to_write(discipline);
        let level = self.write_level(discipline);
        let (value, ttl) = (self.load.recorder.value(), self.ttl(&key));
        let action = Action::Put { value, ttl_ms: ttl.map(millis) };
        let timeout = self.timeout();
        let id = self.load.recorder.call(self.who, &key, level, action, Via::Single, Some(timeout));
        let request = self.request(id);
        let bytes = encode(value, self.filler());
        let outcome = loop {
            let mut put = self.keyspace.put(key.key(), bytes.clone()).consistency(level);
            if let Some(ttl) = ttl {
                put = put.ttl(ttl);
            }
            let put = put.timeout(timeout).request_id(request);
            let answer = within(patience(&mut self.random), put.send()).await;
            let outcome = written(answer.map(|it| it.map(|it| it.version)));
            if !self.sends_again(id, request, &outcome, timeout).await {
                break outcome;
            }
        };
        self.load.recorder.returned(id, outcome);
    }

    pub(super) async fn delete(&mut self, discipline: Discipline) {
        let key = self.hot_key(discipline, KeyKind::Hot);
        let level = self.write_level(discipline);
        let timeout = self.timeout();
        let recorder = &self.load.recorder;
        let id = recorder.call(self.who, &key, level, Action::Delete, Via::Single, Some(timeout));
        let request = self.request(id);
        let outcome = loop {
            let delete = self.keyspace.delete(key.key()).consistency(level).timeout(timeout);
            let delete = delete.request_id(request);
            let answer = within(patience(&mut self.random), delete.send()).await;
            let outcome = written(answer.map(|it| it.map(|it| it.version)));
            if !self.sends_again(id, request, &outcome, timeout).await {
                break outcome;
            }
        };
        self.load.recorder.returned(id, outcome);
    }

    /// Names a write, or lets the node do that.
    fn request(&mut self, id: u64) -> u64 {
        let drawn = self.random.random_range(1..u64::MAX);
        let request = if self.random.random_ratio(1, 10) { 0 } else { drawn };
        self.load.recorder.named(id, request);
        request
    }

    /// Whether a client sends a write of unknown outcome once more, under the request id that it had.
    /// It should not: that is a second write (X2), and has to be nothing worse.
    async fn sends_again(
        &mut self,
        id: u64,
        request: u64,
        outcome: &Outcome,
        timeout: Duration,
    ) -> bool {
        let unknown = matches!(outcome, Outcome::Unknown { .. }) && request != 0;
        if !unknown || !self.random.random_ratio(1, 3) || self.load.phase.get() != Phase::Work {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..=200))).await;
        self.load.recorder.sent_again(id, Some(timeout));
        true
    }

    pub(super) async fn get(&mut self, discipline: Discipline) {
        if !self.reads(discipline) {
            return;
        }
        let key = self.key_to_read(discipline);
        let level = self.read_level(discipline);
        let timeout = self.timeout();
        let recorder = &self.load.recorder;
        let id = recorder.call(self.who, &key, level, Action::Get, Via::Single, Some(timeout));
        let get = self.keyspace.get(key.key()).consistency(level).timeout(timeout);
        let answer = within(patience(&mut self.random), get.send()).await;
        let outcome = match answer {
            Some(Ok(read)) => found(&self.load, &key, read.value.as_ref(), read.version),
            Some(Err(error)) => failed(&error),
            None => Outcome::GIVEN_UP,
        };
        self.load.recorder.returned(id, outcome);
    }

    pub(super) async fn batch_write(&mut self, discipline: Discipline) {
        let level = self.write_level(discipline);
        let timeout = self.timeout();
        let mut items = BTreeMap::new();
        for _ in 0..self.random.random_range(2..=5) {
            let key = self.key_to_write(discipline);
            if items.contains_key(&key) {
                continue;
            }
            let delete = key.kind == KeyKind::Hot && self.random.random_ratio(1, 4);
            let (value, ttl) = (self.load.recorder.value(), self.ttl(&key));
            let action = match delete {
                true => Action::Delete,
                false => Action::Put { value, ttl_ms: ttl.map(millis) },
            };
            let recorder = &self.load.recorder;
            let id = recorder.call(self.who, &key, level, action, Via::Batch, Some(timeout));
            let mut item = match delete {
                true => WriteItem::delete(key.key()),
                false => WriteItem::put(key.key(), encode(value, 0)),
            };
            if let Some(ttl) = ttl.filter(|_| !delete) {
                item = item.ttl(ttl);
            }
            item.request_id = self.request(id);
            items.insert(key, (id, item));
        }
        let (ids, items): (Vec<_>, Vec<_>) = items.into_values().unzip();
        let batch = self.keyspace.batch_write(items).consistency(level).timeout(timeout);
        for (id, result) in ids.into_iter().zip(batch.send().await) {
            self.load.recorder.returned(id, written(Some(result)));
        }
    }

    pub(super) async fn batch_get(&mut self, discipline: Discipline) {
        if !self.reads(discipline) {
            return;
        }
        let level = self.read_level(discipline);
        let timeout = self.timeout();
        let wanted = self.random.random_range(2..=6);
        let mut keys: Vec<KeyName> = (0..wanted).map(|_| self.key_to_read(discipline)).collect();
        keys.sort();
        keys.dedup();
        let recorder = self.load.recorder.clone();
        let call =
            |key| recorder.call(self.who, key, level, Action::Get, Via::Batch, Some(timeout));
        let ids: Vec<u64> = keys.iter().map(call).collect();
        let batch = self.keyspace.batch_get(keys.iter().map(KeyName::key));
        let results = batch.consistency(level).timeout(timeout).send().await;
        for ((key, id), result) in keys.iter().zip(ids).zip(results) {
            let outcome = match result {
                Ok(read) => found(&self.load, key, read.value.as_ref(), read.version),
                Err(error) => failed(&error),
            };
            recorder.returned(id, outcome);
        }
    }

    /// What a client should not do, and a node must bear: a clock out of nowhere, a new connection
    /// that is dropped at once.
    pub(super) async fn misbehave(&mut self) {
        let seed = self.random.random();
        let Some(other) = connect(&self.load, self.who.datacenter, seed).await else { return };
        other.observe_clock(self.random.random());
        let keyspace = other.keyspace(super::KEYSPACE);
        let key = KeyName { discipline: Discipline::Mixed, kind: KeyKind::Hot, number: 0 };
        let get = keyspace.get(key.key()).consistency(ConsistencyLevel::One);
        // Whatever comes of it: the others are not to notice.
        let _ = within(Duration::from_millis(50), get.send()).await;
    }

    fn ttl(&mut self, key: &KeyName) -> Option<Duration> {
        let seconds = self.random.random_range(1..=3);
        (key.kind == KeyKind::Expiring).then(|| Duration::from_secs(seconds))
    }

    fn filler(&mut self) -> usize {
        match self.random.random_range(0..30) {
            0 if self.load.overload.get() => 200 << 10,
            0 => 8 << 10,
            _ => 0,
        }
    }
}

/// What was read, if it makes sense.
pub(super) fn found(
    load: &Load,
    key: &KeyName,
    value: Option<&Bytes>,
    version: Option<Version>,
) -> Outcome {
    let decoded = value.map(|it| decode(it));
    if decoded == Some(None) {
        let value = value.map(|it| it.slice(..it.len().min(40)));
        load.complain(format!("{} holds what nobody wrote: {value:?}", key.name()));
    }
    Outcome::Found { value: decoded.flatten(), version }
}

/// A value's bytes: its number, and filler that depends on it.
pub(crate) fn encode(value: u64, filler: usize) -> Bytes {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b':');
    bytes.resize(bytes.len() + filler, fill(value));
    bytes.into()
}

/// The number of a value, if the bytes are one.
pub(crate) fn decode(bytes: &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|it| *it == b':')?;
    let value = std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
    bytes[end + 1..].iter().all(|it| *it == fill(value)).then_some(value)
}

fn fill(value: u64) -> u8 {
    b'a' + u8::try_from(value % 26).expect("a letter")
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

/// When a client gives up by itself, if it does.
fn patience(random: &mut StdRng) -> Duration {
    match random.random_range(0..25) {
        0 => Duration::from_millis(random.random_range(0..=40)),
        _ => Duration::MAX,
    }
}

/// `None` if the client's patience ended first: the call is cancelled.
async fn within<T>(patience: Duration, call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(patience, call).await.ok()
}

fn written(answer: Option<Result<Version, Error>>) -> Outcome {
    match answer {
        Some(Ok(version)) => Outcome::Written { version },
        Some(Err(error)) => failed(&error),
        None => Outcome::GIVEN_UP,
    }
}

pub(super) fn failed(error: &Error) -> Outcome {
    match error.outcome() {
        CallOutcome::NotApplied => Outcome::NotApplied { reason: error.reason() },
        CallOutcome::Unknown => {
            let (reason, answered) = (Some(error.reason()), error.is_answer());
            Outcome::Unknown { reason, answered, versions: versions(error) }
        }
    }
}

/// The versions under which a write was sent, if a node's answer tells.
fn versions(error: &Error) -> Option<Vec<Version>> {
    let told = error.metadata().get("versions").filter(|_| error.is_answer())?;
    let told = told.split(',').filter(|it| !it.is_empty());
    told.map(version).collect()
}

/// Reads a version as it is shown: `MILLISECONDS.COUNTER@REQUEST`.
fn version(text: &str) -> Option<Version> {
    let (hlc, request) = text.split_once('@')?;
    let (ms, counter) = hlc.split_once('.')?;
    let hlc = Hlc(Hlc::from_ms(ms.parse().ok()?).0 | counter.parse::<u64>().ok()?);
    Some(Version { hlc, request: RequestId(u64::from_str_radix(request, 16).ok()?) })
}
