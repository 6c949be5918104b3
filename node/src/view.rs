//! What requests need of the cluster's metadata, ready to use: one snapshot, replaced whole.

use std::sync::Arc;

use model::{
    ConsistencyLevel, DcIndex, Keyspace, KeyspaceId, Metadata, NodeId, NodeIndex, PartitionIndex,
    ReplicaSet, Token, overlaps, satisfies_require_overlap,
};

use crate::call_bytes::UsualBytes;

/// The metadata in force, as one node sees it.
#[derive(Debug, Default)]
pub struct View {
    metadata: Option<Arc<Metadata>>,
    own: Option<NodeIndex>,
    local_dc: Option<DcIndex>,
    keyspaces: Vec<Arc<KeyspaceView>>,
}

/// One keyspace with its replicas for every partition.
#[derive(Debug)]
pub struct KeyspaceView {
    /// The definition.
    pub keyspace: Keyspace,
    /// Replicas per datacenter, by the layout's indexes.
    pub replicas: Vec<(DcIndex, u8)>,
    local_dc: DcIndex,
    sets: Vec<Arc<ReplicaSet>>,
    /// How large its values usually are.
    pub usual_value: UsualBytes,
}

impl View {
    /// The view of a node of a datacenter. `previous` lends its replica sets where nothing changed.
    pub fn new(metadata: Arc<Metadata>, node: NodeId, datacenter: &str, previous: &Self) -> Self {
        let layout = metadata.layout();
        // A node whose datacenter is not in the layout coordinates too, without local replicas.
        let local_dc = layout.datacenter_index(datacenter);
        let same_layout = previous.layout_hash() == layout.hash();
        let keyspaces = metadata.keyspaces().iter().map(|keyspace| {
            let known = previous.keyspaces.iter().find(|it| it.keyspace.id == keyspace.id);
            let sets = known.filter(|_| same_layout).map(|it| it.sets.clone());
            let usual_value = known.map(|it| it.usual_value.continued()).unwrap_or_default();
            let replicas = replicas_by_index(keyspace, &metadata);
            let sets = sets.unwrap_or_else(|| layout.replica_sets(&replicas));
            Arc::new(KeyspaceView {
                keyspace: keyspace.clone(),
                replicas,
                local_dc: local_dc.unwrap_or(NO_DATACENTER),
                sets,
                usual_value,
            })
        });
        let keyspaces = keyspaces.collect();
        Self { own: layout.node_index(node), local_dc, keyspaces, metadata: Some(metadata) }
    }

    /// The metadata; `None` before the first layout.
    pub fn metadata(&self) -> Option<&Arc<Metadata>> {
        self.metadata.as_ref()
    }

    /// The layout's hash; 0 before the first layout.
    pub fn layout_hash(&self) -> u64 {
        self.metadata.as_ref().map_or(0, |it| it.layout().hash())
    }

    /// The metadata's sequence; 0 before the first layout.
    pub fn sequence(&self) -> u64 {
        self.metadata.as_ref().map_or(0, |it| it.sequence())
    }

    /// This node's place in the layout, if it has one.
    pub fn own(&self) -> Option<NodeIndex> {
        self.own
    }

    /// This node's datacenter, as the levels count it.
    pub fn local_dc(&self) -> DcIndex {
        self.local_dc.unwrap_or(NO_DATACENTER)
    }

    /// The partition of a token; the first before there is a layout.
    pub fn partition(&self, token: Token) -> PartitionIndex {
        let layout = self.metadata.as_ref().map(|it| it.layout());
        layout.map_or(PartitionIndex(0), |it| token.partition(it.partitions()))
    }

    /// The place of a node in the layout.
    pub fn node_index(&self, node: NodeId) -> Option<NodeIndex> {
        self.metadata.as_ref()?.layout().node_index(node)
    }

    /// A keyspace by id.
    pub fn keyspace_of_id(&self, id: KeyspaceId) -> Option<&Arc<KeyspaceView>> {
        self.keyspaces.iter().find(|it| it.keyspace.id == id)
    }

    /// A keyspace by name.
    pub fn keyspace(&self, name: &str) -> Option<&Arc<KeyspaceView>> {
        let at = self.keyspaces.binary_search_by(|it| it.keyspace.name.as_str().cmp(name)).ok()?;
        Some(&self.keyspaces[at])
    }
}

impl KeyspaceView {
    /// Who holds a partition.
    pub fn replica_set(&self, partition: PartitionIndex) -> &Arc<ReplicaSet> {
        &self.sets[partition.index()]
    }

    /// True if every read at one level meets every write at the other: R + W > N.
    pub fn overlap(&self, read: ConsistencyLevel, write: ConsistencyLevel) -> bool {
        overlaps(read, write, &self.replicas, self.local_dc)
    }

    /// True if the keyspace allows a read at this level: see `require_overlap`.
    pub fn allows_read(&self, level: ConsistencyLevel) -> bool {
        !self.keyspace.require_overlap
            || satisfies_require_overlap(
                level,
                self.keyspace.write_level,
                &self.replicas,
                self.local_dc,
            )
    }

    /// True if the keyspace allows a write at this level: see `require_overlap`.
    pub fn allows_write(&self, level: ConsistencyLevel) -> bool {
        !self.keyspace.require_overlap
            || satisfies_require_overlap(
                self.keyspace.read_level,
                level,
                &self.replicas,
                self.local_dc,
            )
    }
}

/// A datacenter that no layout has: more than 32 cannot hold replicas.
const NO_DATACENTER: DcIndex = DcIndex(u8::MAX);

fn replicas_by_index(keyspace: &Keyspace, metadata: &Metadata) -> Vec<(DcIndex, u8)> {
    let index = |name: &str| {
        metadata.layout().datacenter_index(name).expect("metadata is checked when it is made")
    };
    keyspace.replicas.iter().map(|(name, count)| (index(name), *count)).collect()
}
