//! The calls of a client, each written down as it is made and as it ends.

use std::{collections::BTreeMap, future::Future, time::Duration};

use bytes::Bytes;
use client::{Error, ScanRange, WriteItem};
use model::{ConsistencyLevel, Version};
use proto::CallOutcome;
use rand::RngExt;

use super::{Session, connect};
use crate::{
    discipline::Discipline,
    history::{Action, Outcome, Via},
    recorder::{KeyKind, KeyName, now},
};

impl Session {
    pub(super) async fn put(&mut self, discipline: Discipline) {
        let key = self.key_to_write(discipline);
        let level = self.write_level(discipline);
        let (value, ttl) = (self.load.recorder.value(), self.ttl(&key));
        let action = Action::Put { value, ttl_ms: ttl.map(millis) };
        let (timeout, patience) = (self.timeout(), self.patience());
        let id = self.load.recorder.call(self.who, &key, level, action, Via::Single, Some(timeout));
        let bytes = encode(value, self.filler());
        let mut put = self.keyspace.put(key.key(), bytes).consistency(level).timeout(timeout);
        if let Some(ttl) = ttl {
            put = put.ttl(ttl);
        }
        let request_id = self.random.random_range(1..u64::MAX);
        let answer = within(patience, put.request_id(request_id).send()).await;
        self.load.recorder.returned(id, written(answer.map(|it| it.map(|it| it.version))));
    }

    pub(super) async fn delete(&mut self, discipline: Discipline) {
        let key = self.hot_key(discipline, KeyKind::Hot);
        let level = self.write_level(discipline);
        let (timeout, patience) = (self.timeout(), self.patience());
        let recorder = &self.load.recorder;
        let id = recorder.call(self.who, &key, level, Action::Delete, Via::Single, Some(timeout));
        let delete = self.keyspace.delete(key.key()).consistency(level).timeout(timeout);
        let answer = within(patience, delete.send()).await;
        self.load.recorder.returned(id, written(answer.map(|it| it.map(|it| it.version))));
    }

    pub(super) async fn get(&mut self, discipline: Discipline) {
        if !self.reads(discipline) {
            return;
        }
        let key = self.key_to_read(discipline);
        let level = self.read_level(discipline);
        let (timeout, patience) = (self.timeout(), self.patience());
        let recorder = &self.load.recorder;
        let id = recorder.call(self.who, &key, level, Action::Get, Via::Single, Some(timeout));
        let get = self.keyspace.get(key.key()).consistency(level).timeout(timeout);
        let answer = within(patience, get.send()).await;
        let outcome = match answer {
            Some(Ok(read)) => self.found(&key, read.value.as_ref(), read.version),
            Some(Err(error)) => failed(&error),
            None => given_up(),
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
            item.ttl = ttl.filter(|_| !delete);
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
                Ok(found) => self.found(key, found.value.as_ref(), found.version),
                Err(error) => failed(&error),
            };
            recorder.returned(id, outcome);
        }
    }

    /// Reads one partition key's rows, forward or back, in pages of one or two.
    pub(super) async fn scan(&mut self, discipline: Discipline) {
        if !self.reads(discipline) {
            return;
        }
        let level = self.read_level(discipline);
        let partition = self.key_to_read(discipline).partition();
        let reverse = self.random.random();
        let called = now();
        let mut range = ScanRange::partition(partition.clone());
        if reverse {
            range = range.reverse();
        }
        let scan = self.keyspace.scan(range).consistency(level);
        let mut scan = scan.page_rows(self.random.random_range(1..=3));
        // Every key that was ever asked about, and lies where no page has been.
        let mut rest = self.load.recorder.keys_of(&partition);
        while let Ok(Some(page)) = scan.next_page().await {
            for known in self.load.recorder.keys_of(&partition) {
                let ahead = |it: &KeyName| rest.iter().any(|other| other == it);
                let is_new = !ahead(&known) && page.rows.iter().any(|it| it.key == known.key());
                if is_new {
                    rest.push(known);
                }
            }
            let last = page.rows.last().map(|it| it.key.clone());
            let is_last = page.next_page_token.is_empty();
            let covered = |it: &KeyName| match &last {
                _ if is_last => true,
                Some(last) if reverse => it.key().sort_key >= last.sort_key,
                Some(last) => it.key().sort_key <= last.sort_key,
                // Where an empty page ends only its token knows.
                None => false,
            };
            let (judged, left) = rest.into_iter().partition::<Vec<_>, _>(covered);
            rest = left;
            for key in judged {
                let row = page.rows.iter().find(|it| it.key == key.key());
                let outcome = match row {
                    Some(row) => self.found(&key, Some(&row.value), Some(row.version)),
                    None => Outcome::Found { value: None, version: None },
                };
                self.load.recorder.scanned(self.who, &key, level, called, outcome);
            }
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

    /// What was read, if it makes sense.
    fn found(&self, key: &KeyName, value: Option<&Bytes>, version: Option<Version>) -> Outcome {
        let decoded = value.map(|it| decode(it));
        if decoded == Some(None) {
            let value = value.map(|it| it.slice(..it.len().min(40)));
            self.load.complain(format!("{} holds what nobody wrote: {value:?}", key.name()));
        }
        Outcome::Found { value: decoded.flatten(), version }
    }
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

/// `None` if the client's patience ended first: the call is cancelled.
async fn within<T>(patience: Duration, call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(patience, call).await.ok()
}

fn written(answer: Option<Result<Version, Error>>) -> Outcome {
    match answer {
        Some(Ok(version)) => Outcome::Written { version },
        Some(Err(error)) => failed(&error),
        None => given_up(),
    }
}

pub(super) fn failed(error: &Error) -> Outcome {
    match error.outcome() {
        CallOutcome::NotApplied => Outcome::NotApplied { reason: error.reason() },
        CallOutcome::Unknown => {
            Outcome::Unknown { reason: Some(error.reason()), versions: Vec::new() }
        }
    }
}

fn given_up() -> Outcome {
    Outcome::Unknown { reason: None, versions: Vec::new() }
}
