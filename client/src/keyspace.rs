//! Calls for one key: put, get, delete.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use model::{Key, NodeIndex, Token, Version};
use proto::v1::{self, kv_service_client::KvServiceClient};
use tonic::{Request, Response, Status};

use crate::{
    batch::{BatchGet, BatchWrite, WriteItem},
    call::{Call, CallOptions, Route},
    channel::Channel,
    client::Client,
    cluster::Cluster,
    error::Error,
    options::{call_options, into_future},
    scan::{Scan, ScanRange},
};

/// A handle to a keyspace. Cheap to clone.
#[derive(Clone)]
pub struct Keyspace {
    client: Client,
    name: Arc<str>,
}

impl Keyspace {
    pub(crate) fn new(client: Client, name: Arc<str>) -> Self {
        Self { client, name }
    }

    /// The keyspace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client that this handle belongs to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Writes one key.
    ///
    /// ```no_run
    /// # async fn example(users: client::Keyspace) -> Result<(), client::Error> {
    /// let written = users.put("user:42", "Ada").consistency(client::ConsistencyLevel::All).await?;
    /// println!("{} of {} replicas had answered", written.answered.len(), written.required);
    /// # Ok(()) }
    /// ```
    pub fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> Put<'_> {
        let (key, value) = (key.into_key(), value.into());
        let options = CallOptions::default();
        Put { keyspace: self, key, value, ttl_seconds: None, request_id: 0, options }
    }

    /// Reads one key. An absent key is no error.
    ///
    /// ```no_run
    /// # async fn example(users: client::Keyspace) -> Result<(), client::Error> {
    /// let read = users.get("user:42").await?;
    /// match read.value {
    ///     Some(value) => println!("{value:?}, written as {:?}", read.version),
    ///     None => println!("absent"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn get(&self, key: impl IntoKey) -> Get<'_> {
        Get { keyspace: self, key: key.into_key(), options: CallOptions::default() }
    }

    /// Deletes one key. Deleting an absent key succeeds.
    pub fn delete(&self, key: impl IntoKey) -> Delete<'_> {
        let options = CallOptions::default();
        Delete { keyspace: self, key: key.into_key(), request_id: 0, options }
    }

    /// Writes many keys, each on its own: no atomicity, no order. No two items may name one key.
    pub fn batch_write(&self, items: Vec<WriteItem>) -> BatchWrite<'_> {
        BatchWrite::new(self, items)
    }

    /// Reads many keys, each on its own.
    pub fn batch_get<K: IntoKey>(&self, keys: impl IntoIterator<Item = K>) -> BatchGet<'_> {
        BatchGet::new(self, keys.into_iter().map(IntoKey::into_key).collect())
    }

    /// Reads the rows of one partition key in sort-key order, or those of the whole keyspace.
    pub fn scan(&self, range: impl Into<ScanRange>) -> Scan {
        Scan::new(self.clone(), range.into())
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        self.client.cluster()
    }

    pub(crate) fn route(&self, token: Token, writes: bool, options: &CallOptions) -> Route<'_> {
        let level =
            options.consistency.or_else(|| self.cluster().default_level(&self.name, writes));
        // A level that is not known may be local.
        let stays_local = level.is_none_or(|it| it.is_local());
        Route::Key { keyspace: &self.name, token, stays_local }
    }
}

/// What can name a row: a [`Key`], bytes or text for a key without a sort key, or a pair of them for
/// one with.
pub trait IntoKey {
    /// The key.
    fn into_key(self) -> Key;
}

impl IntoKey for Key {
    fn into_key(self) -> Key {
        self
    }
}

impl IntoKey for &Key {
    fn into_key(self) -> Key {
        self.clone()
    }
}

macro_rules! owned_keys {
    ($($type:ty),*) => {
        $(impl IntoKey for $type {
            fn into_key(self) -> Key {
                Key::new(self)
            }
        })*
    };
}

owned_keys!(Bytes, Vec<u8>, String);

impl IntoKey for &str {
    fn into_key(self) -> Key {
        Key::new(Bytes::copy_from_slice(self.as_bytes()))
    }
}

impl IntoKey for &[u8] {
    fn into_key(self) -> Key {
        Key::new(Bytes::copy_from_slice(self))
    }
}

impl<const N: usize> IntoKey for &[u8; N] {
    fn into_key(self) -> Key {
        self.as_slice().into_key()
    }
}

impl<P: AsRef<[u8]>, S: AsRef<[u8]>> IntoKey for (P, S) {
    fn into_key(self) -> Key {
        let copy = Bytes::copy_from_slice;
        Key::with_sort_key(copy(self.0.as_ref()), copy(self.1.as_ref()))
    }
}

/// A put, not yet sent: await it, or `send` it.
#[must_use = "nothing is written unless this is awaited or sent"]
pub struct Put<'a> {
    keyspace: &'a Keyspace,
    key: Key,
    value: Bytes,
    ttl_seconds: Option<u64>,
    request_id: u64,
    options: CallOptions,
}

call_options!(Put<'_>);
into_future!(Put, Result<Written, Error>);

impl Put<'_> {
    /// How long the row lives, rounded up to whole seconds, at least one. Default: as the keyspace
    /// says.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl_seconds = Some(whole_seconds(ttl));
        self
    }

    /// Lets the row live for ever, whatever the keyspace says.
    pub fn no_ttl(mut self) -> Self {
        self.ttl_seconds = Some(0);
        self
    }

    /// Names this write: becomes the version's request id. Default: drawn by the node.
    pub fn request_id(mut self, request_id: u64) -> Self {
        self.request_id = request_id;
        self
    }

    /// Sends it. The same as awaiting it, without a box around the future.
    ///
    /// # Errors
    /// See [`Error::is_unknown_write`] first.
    pub async fn send(self) -> Result<Written, Error> {
        let route = self.keyspace.route(self.key.token(), true, &self.options);
        let (response, _) = self.keyspace.cluster().call(&self, route, &self.options).await?;
        Ok(Written::new(response.version, response.participation))
    }
}

impl Call for Put<'_> {
    const NAME: &'static str = "put";
    const WRITES: bool = true;
    type Request = v1::PutRequest;
    type Response = v1::PutResponse;

    fn request(&self, clock: u64) -> v1::PutRequest {
        v1::PutRequest {
            keyspace: self.keyspace.name().to_owned(),
            key: Some(self.key.clone().into()),
            value: self.value.clone(),
            consistency: self.options.consistency.map(Into::into),
            ttl_seconds: self.ttl_seconds,
            request_id: self.request_id,
            clock,
        }
    }

    async fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        KvServiceClient::new(channel).max_decoding_message_size(bytes_max).put(request).await
    }

    fn learned(response: &v1::PutResponse) -> (u64, Option<u32>) {
        (response.clock, coordinator(response.participation.as_ref()))
    }
}

/// A read, not yet sent: await it, or `send` it.
#[must_use = "nothing is read unless this is awaited or sent"]
pub struct Get<'a> {
    keyspace: &'a Keyspace,
    key: Key,
    options: CallOptions,
}

call_options!(Get<'_>);
into_future!(Get, Result<Read, Error>);

impl Get<'_> {
    /// Sends it. The same as awaiting it, without a box around the future.
    pub async fn send(self) -> Result<Read, Error> {
        let route = self.keyspace.route(self.key.token(), false, &self.options);
        let (it, _) = self.keyspace.cluster().call(&self, route, &self.options).await?;
        let participation = it.participation.unwrap_or_default();
        Ok(Read {
            value: it.found.then_some(it.value),
            version: it.version.map(Into::into),
            expires_at_ms: (it.expires_at_ms != 0).then_some(it.expires_at_ms),
            required: participation.required,
            answered: indexes(participation.answered),
            overlap: participation.overlap,
        })
    }
}

impl Call for Get<'_> {
    const NAME: &'static str = "get";
    const WRITES: bool = false;
    type Request = v1::GetRequest;
    type Response = v1::GetResponse;

    fn request(&self, clock: u64) -> v1::GetRequest {
        v1::GetRequest {
            keyspace: self.keyspace.name().to_owned(),
            key: Some(self.key.clone().into()),
            consistency: self.options.consistency.map(Into::into),
            clock,
        }
    }

    async fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        KvServiceClient::new(channel).max_decoding_message_size(bytes_max).get(request).await
    }

    fn learned(response: &v1::GetResponse) -> (u64, Option<u32>) {
        (response.clock, coordinator(response.participation.as_ref()))
    }
}

/// A deletion, not yet sent: await it, or `send` it.
#[must_use = "nothing is deleted unless this is awaited or sent"]
pub struct Delete<'a> {
    keyspace: &'a Keyspace,
    key: Key,
    request_id: u64,
    options: CallOptions,
}

call_options!(Delete<'_>);
into_future!(Delete, Result<Written, Error>);

impl Delete<'_> {
    /// Names this write: becomes the version's request id. Default: drawn by the node.
    pub fn request_id(mut self, request_id: u64) -> Self {
        self.request_id = request_id;
        self
    }

    /// Sends it. The same as awaiting it, without a box around the future.
    ///
    /// # Errors
    /// See [`Error::is_unknown_write`] first.
    pub async fn send(self) -> Result<Written, Error> {
        let route = self.keyspace.route(self.key.token(), true, &self.options);
        let (response, _) = self.keyspace.cluster().call(&self, route, &self.options).await?;
        Ok(Written::new(response.version, response.participation))
    }
}

impl Call for Delete<'_> {
    const NAME: &'static str = "delete";
    const WRITES: bool = true;
    type Request = v1::DeleteRequest;
    type Response = v1::DeleteResponse;

    fn request(&self, clock: u64) -> v1::DeleteRequest {
        v1::DeleteRequest {
            keyspace: self.keyspace.name().to_owned(),
            key: Some(self.key.clone().into()),
            consistency: self.options.consistency.map(Into::into),
            request_id: self.request_id,
            clock,
        }
    }

    async fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        KvServiceClient::new(channel).max_decoding_message_size(bytes_max).delete(request).await
    }

    fn learned(response: &v1::DeleteResponse) -> (u64, Option<u32>) {
        (response.clock, coordinator(response.participation.as_ref()))
    }
}

/// A write that reached its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version under which it was written.
    pub version: Version,
    /// How many replicas the level required.
    pub required: u32,
    /// The replicas that had answered when the reply was made, of [`Topology::nodes`].
    ///
    /// [`Topology::nodes`]: crate::Topology::nodes
    pub answered: Vec<NodeIndex>,
    /// True if every read at the keyspace's default level sees this write: R + W > N.
    pub overlap: bool,
}

impl Written {
    fn new(version: Option<v1::Version>, participation: Option<v1::Participation>) -> Self {
        let participation = participation.unwrap_or_default();
        Self {
            version: version.map(Into::into).unwrap_or_default(),
            required: participation.required,
            answered: indexes(participation.answered),
            overlap: participation.overlap,
        }
    }
}

/// What was read of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The value; `None` if the key was never written, was deleted, or has expired.
    pub value: Option<Bytes>,
    /// The newest version, of a deletion too; `None` if the key was never written.
    pub version: Option<Version>,
    /// When the value expires, in milliseconds since the Unix epoch; `None` for never.
    pub expires_at_ms: Option<u64>,
    /// How many replicas the level required.
    pub required: u32,
    /// The replicas that had answered when the reply was made, of [`Topology::nodes`].
    ///
    /// [`Topology::nodes`]: crate::Topology::nodes
    pub answered: Vec<NodeIndex>,
    /// True if this read sees every write at the keyspace's default level: R + W > N.
    pub overlap: bool,
}

pub(crate) fn coordinator(participation: Option<&v1::Participation>) -> Option<u32> {
    participation.map(|it| it.coordinator)
}

/// Node indexes of a reply. One that no layout can have is left out.
fn indexes(answered: Vec<u32>) -> Vec<NodeIndex> {
    answered.into_iter().filter_map(|it| u16::try_from(it).ok().map(NodeIndex)).collect()
}

/// Whole seconds, rounded up, at least one: 0 would mean for ever.
pub(crate) fn whole_seconds(ttl: Duration) -> u64 {
    let started = u64::from(ttl.subsec_nanos() > 0);
    ttl.as_secs().saturating_add(started).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_what_people_have() {
        let plain = Key::new(&b"user:42"[..]);
        assert_eq!("user:42".into_key(), plain);
        assert_eq!("user:42".to_owned().into_key(), plain);
        assert_eq!(b"user:42".into_key(), plain);
        assert_eq!(b"user:42".to_vec().into_key(), plain);
        assert_eq!((&plain).into_key(), plain);
        let row = Key::with_sort_key(&b"user:42"[..], &b"\x00\x01"[..]);
        assert_eq!(("user:42", [0, 1]).into_key(), row);
        assert_eq!((String::from("user:42"), vec![0, 1]).into_key(), row);
    }

    #[test]
    fn a_ttl_never_rounds_down_to_for_ever() {
        let seconds = |ms| whole_seconds(Duration::from_millis(ms));
        assert_eq!([0, 1, 999, 1_000, 1_001].map(seconds), [1, 1, 1, 1, 2]);
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
