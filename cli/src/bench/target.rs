//! What a load calls: a cluster through the client crate, or the echo server through bare gRPC.

use bytes::Bytes;
use client::{Error, Keyspace, WriteItem};
use futures_util::StreamExt;
use model::{ConsistencyLevel, Key};
use proto::{CallError, CallOutcome, v1};
use tonic::transport::{Channel, Endpoint};
use v1::kv_service_client::KvServiceClient;

use super::cluster::KEYSPACE;

/// Takes the calls of a load.
#[derive(Clone)]
pub(crate) enum Target {
    /// A cluster.
    Cluster {
        /// The keyspace, with the client behind it.
        keyspace: Keyspace,
        /// The level of all calls; `None` for the keyspace's default.
        level: Option<ConsistencyLevel>,
    },
    /// Servers that are asked themselves, whoever holds the keys: one client for each connection.
    Servers {
        /// Clients take them in turns.
        clients: Vec<KvServiceClient<Channel>>,
        /// The level of all calls.
        level: ConsistencyLevel,
        /// The clock of every call.
        clock: u64,
    },
}

/// What became of the keys of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Keys written, or read.
    pub(crate) keys: u64,
    /// Keys read that had no value; part of `keys`.
    pub(crate) absent: u64,
    /// Why keys failed, one entry each.
    pub(crate) errors: Vec<String>,
}

impl Target {
    /// An echo server, with so many connections to it.
    pub(crate) fn echo(address: &str, connections: usize) -> Self {
        let clients = (0..connections).map(|_| connect(address)).collect();
        Self::Servers { clients, level: ConsistencyLevel::Quorum, clock: ECHO_CLOCK }
    }

    /// These nodes alone, with a connection to each.
    pub(crate) fn nodes(addresses: impl Iterator<Item = String>, level: ConsistencyLevel) -> Self {
        Self::Servers { clients: addresses.map(|it| connect(&it)).collect(), level, clock: 0 }
    }

    /// Writes one key for client number `client`.
    pub(crate) async fn put(&self, client: usize, key: Key, value: Bytes) -> Done {
        match self {
            Self::Cluster { keyspace, level } => {
                let mut call = keyspace.put(key, value);
                if let Some(level) = level {
                    call = call.consistency(*level);
                }
                one(call.send().await.map(|_| false))
            }
            Self::Servers { clients, level, clock } => {
                let request = v1::PutRequest {
                    keyspace: KEYSPACE.to_owned(),
                    key: Some(key.into()),
                    value,
                    consistency: Some((*level).into()),
                    clock: *clock,
                    ..v1::PutRequest::default()
                };
                one_answer(pick(clients, client).put(request).await, |_| false)
            }
        }
    }

    /// Reads one key for client number `client`.
    pub(crate) async fn get(&self, client: usize, key: Key) -> Done {
        match self {
            Self::Cluster { keyspace, level } => {
                let mut call = keyspace.get(key);
                if let Some(level) = level {
                    call = call.consistency(*level);
                }
                one(call.send().await.map(|it| it.value.is_none()))
            }
            Self::Servers { clients, level, clock } => {
                let request = v1::GetRequest {
                    keyspace: KEYSPACE.to_owned(),
                    key: Some(key.into()),
                    consistency: Some((*level).into()),
                    clock: *clock,
                };
                one_answer(pick(clients, client).get(request).await, |it| !it.found)
            }
        }
    }

    /// Writes many keys in one call. Servers that are asked themselves are sent no batches.
    pub(crate) async fn put_batch(&self, rows: Vec<(Key, Bytes)>) -> Done {
        let Self::Cluster { keyspace, level } = self else { return Done::default() };
        let items = rows.into_iter().map(|(key, value)| WriteItem::put(key, value)).collect();
        let mut call = keyspace.batch_write(items);
        if let Some(level) = level {
            call = call.consistency(*level);
        }
        many(call.await.into_iter().map(|it| it.map(|_| false)))
    }

    /// Deletes many keys in one call. Servers that are asked themselves are sent no batches.
    pub(crate) async fn delete_batch(&self, keys: Vec<Key>) -> Done {
        let Self::Cluster { keyspace, level } = self else { return Done::default() };
        let mut call = keyspace.batch_write(keys.into_iter().map(WriteItem::delete).collect());
        if let Some(level) = level {
            call = call.consistency(*level);
        }
        many(call.await.into_iter().map(|it| it.map(|_| false)))
    }

    /// Reads many keys in one call. Servers that are asked themselves are sent no batches.
    pub(crate) async fn get_batch(&self, keys: Vec<Key>) -> Done {
        let Self::Cluster { keyspace, level } = self else { return Done::default() };
        let mut call = keyspace.batch_get(keys);
        if let Some(level) = level {
            call = call.consistency(*level);
        }
        many(call.await.into_iter().map(|it| it.map(|found| found.value.is_none())))
    }
}

fn connect(address: &str) -> KvServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.expect("an address makes a URI").tcp_nodelay(true);
    KvServiceClient::new(endpoint.connect_lazy())
}

/// Makes calls, a few at a time. What went wrong first, if anything did: then no more are made.
pub(crate) async fn first_error(
    calls: impl Iterator<Item = impl Future<Output = Done>>,
) -> Option<String> {
    let mut done = futures_util::stream::iter(calls).buffer_unordered(BATCHES_IN_FLIGHT);
    while let Some(done) = done.next().await {
        if let Some(error) = done.errors.into_iter().next() {
            return Some(error);
        }
    }
    None
}

/// So many batches at a time keep a cluster busy, and its queues short.
pub(crate) const BATCHES_IN_FLIGHT: usize = 8;

/// A reading as large as real ones, so that messages are as long.
const ECHO_CLOCK: u64 = 1 << 56;

fn pick(clients: &[KvServiceClient<Channel>], client: usize) -> KvServiceClient<Channel> {
    clients[client % clients.len()].clone()
}

fn one(result: Result<bool, Error>) -> Done {
    many([result])
}

fn many(results: impl IntoIterator<Item = Result<bool, Error>>) -> Done {
    let mut done = Done::default();
    for result in results {
        match result {
            Ok(absent) => {
                done.keys += 1;
                done.absent += u64::from(absent);
            }
            Err(error) => done.errors.push(spell(error.cause())),
        }
    }
    done
}

fn one_answer<T>(
    result: Result<tonic::Response<T>, tonic::Status>,
    is_absent: impl Fn(&T) -> bool,
) -> Done {
    match result {
        Ok(it) => Done { keys: 1, absent: is_absent(it.get_ref()).into(), ..Done::default() },
        Err(status) => Done { errors: vec![spell(&CallError::from(&status))], ..Done::default() },
    }
}

fn spell(error: &CallError) -> String {
    match error.outcome {
        CallOutcome::Unknown => format!("{} (unknown)", error.reason),
        CallOutcome::NotApplied => error.reason.to_string(),
    }
}
