//! What all nodes of a cluster agree on: its identity, its layout and its keyspaces.
//!
//! Immutable and always valid. Each is made from its parent by one change and names it by hash, so
//! that two nodes with the same hash hold the same history. Which of two successors is the next one
//! is not decided here: the agreement of rule L5 does.

use std::{fmt, sync::Arc};

use crate::{ClusterId, DecodeError, Keyspace, KeyspaceError, KeyspaceId, Layout, Limits};

mod change;
mod encoding;

pub use change::{Change, ChangeError, FollowError, KeyspaceChange};

/// What all nodes of a cluster agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    cluster: ClusterId,
    cluster_key: [u8; 16],
    sequence: u64,
    parent: MetadataHash,
    layout: Arc<Layout>,
    keyspaces: Vec<Keyspace>,
    next_keyspace_id: u32,
    hash: MetadataHash,
}

/// Names one metadata: the xxh3-128 of its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MetadataHash(pub u128);

impl MetadataHash {
    /// The parent of a cluster's first metadata, which has none.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for MetadataHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MetadataHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Metadata {
    /// The most keyspaces: each has a tree for every partition.
    pub const KEYSPACES_MAX: usize = 1_024;
    /// The most bytes of an encoded metadata: what a peer may be asked to buffer.
    pub const BYTES_MAX: usize = 8 << 20;

    /// A cluster's first metadata: a layout and no keyspaces. Whoever calls draws id and key.
    ///
    /// Fails unless the layout is of version 1.
    pub fn genesis(
        cluster: ClusterId,
        cluster_key: [u8; 16],
        layout: Layout,
    ) -> Result<Self, ChangeError> {
        let (required, actual) = (1, layout.version());
        if actual != required {
            return Err(ChangeError::LayoutVersion { required, actual });
        }
        let parent = MetadataHash::NONE;
        Ok(Self::hashed(cluster, cluster_key, 1, parent, Arc::new(layout), Vec::new(), 1))
    }

    /// The metadata after one change. Fails, with nothing changed, if the change makes no sense here.
    pub fn successor(&self, change: Change, limits: &Limits) -> Result<Self, ChangeError> {
        change::apply(self, change, limits)
    }

    /// Checks that this can be the next metadata after `parent`, `None` being the parent of a
    /// cluster's first. Anyone may have made it: only its own validity is given.
    pub fn check_follows(&self, parent: Option<&Self>) -> Result<(), FollowError> {
        change::check_follows(self, parent)
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The key of the hashes in Merkle trees, made with the cluster (rule M1). Not for clients.
    pub fn cluster_key(&self) -> [u8; 16] {
        self.cluster_key
    }

    /// 1 for a cluster's first metadata, and one more for each that follows.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The hash of the metadata that this one replaced.
    pub fn parent(&self) -> MetadataHash {
        self.parent
    }

    /// Who holds what.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The keyspaces, by name.
    pub fn keyspaces(&self) -> &[Keyspace] {
        &self.keyspaces
    }

    /// The keyspace of that name.
    pub fn keyspace(&self, name: &str) -> Option<&Keyspace> {
        let at = self.keyspaces.binary_search_by(|it| it.name.as_str().cmp(name)).ok()?;
        Some(&self.keyspaces[at])
    }

    /// The keyspace of that id.
    pub fn keyspace_of_id(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.iter().find(|it| it.id == id)
    }

    /// True if the id was given to a keyspace that has been dropped since.
    pub fn was_dropped(&self, id: KeyspaceId) -> bool {
        (1..self.next_keyspace_id).contains(&id.0) && self.keyspace_of_id(id).is_none()
    }

    /// The ids of all keyspaces that have been dropped.
    pub fn dropped_keyspaces(&self) -> impl Iterator<Item = KeyspaceId> {
        (1..self.next_keyspace_id).map(KeyspaceId).filter(|it| self.was_dropped(*it))
    }

    /// The id that the next keyspace gets.
    pub fn next_keyspace_id(&self) -> KeyspaceId {
        KeyspaceId(self.next_keyspace_id)
    }

    /// Names this metadata.
    pub fn hash(&self) -> MetadataHash {
        self.hash
    }

    /// The one encoding of this metadata.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    /// Decodes a metadata and checks it whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        encoding::decode(bytes)
    }

    fn hashed(
        cluster: ClusterId,
        cluster_key: [u8; 16],
        sequence: u64,
        parent: MetadataHash,
        layout: Arc<Layout>,
        keyspaces: Vec<Keyspace>,
        next_keyspace_id: u32,
    ) -> Self {
        let hash = MetadataHash::NONE;
        let mut it = Self {
            cluster,
            cluster_key,
            sequence,
            parent,
            layout,
            keyspaces,
            next_keyspace_id,
            hash,
        };
        it.hash = MetadataHash(xxhash_rust::xxh3::xxh3_128(&it.encode()));
        it
    }

    /// Checks what everything relies on, so that even a decoded metadata has it.
    fn check_shape(&self) -> Result<(), KeyspaceError> {
        self.keyspaces.iter().try_for_each(|it| it.check_shape(&self.layout))
    }
}

#[cfg(test)]
mod tests;
