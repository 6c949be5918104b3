//! Keyspaces: a namespace with its replication and defaults, and whether it makes sense.
//!
//! Decides what may be created or altered in a given layout. Never changes anything: the metadata
//! does, and replication changes are changes of layout.

use crate::{
    ConsistencyLevel, DcIndex, KeyspaceId, Layout, LevelError, Limits, NodeIndex, ReplicaSet,
    Requirement,
    consistency::{overlaps, satisfies_require_overlap},
};

/// A namespace with its replication and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// Given by the metadata when the keyspace is created, and never again to another.
    pub id: KeyspaceId,
    /// What clients call it: `[a-z][a-z0-9_]*`.
    pub name: String,
    /// How many nodes of each datacenter hold each key, in order of the datacenters' names, none of
    /// them twice. Datacenters without replicas are left out.
    pub replicas: Vec<(String, u8)>,
    /// The level of reads that name none.
    pub read_level: ConsistencyLevel,
    /// The level of writes that name none.
    pub write_level: ConsistencyLevel,
    /// Seconds until a write that names no TTL expires; `None` for never.
    pub default_ttl_seconds: Option<u64>,
    /// Refuse calls whose level does not give R+W>N, 2W>N and 2R>N.
    pub require_overlap: bool,
    /// Allow writes at ANY. Such a keyspace pays with later purges of tombstones (rule F10).
    pub allow_any: bool,
    /// What becomes of concurrent writes of a key.
    pub conflict: ConflictType,
}

/// What becomes of concurrent writes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ConflictType {
    /// The highest version stays.
    #[default]
    LastWriterWins,
}

/// Why a keyspace cannot be as described. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// The name has other characters than it may have.
    #[error("{name:?} is no keyspace name: a-z first, then a-z 0-9 _")]
    Name {
        /// The name given.
        name: String,
    },
    /// The name is too long.
    #[error("the keyspace name has {actual} bytes; at most {limit} are allowed")]
    NameTooLong {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes given.
        actual: usize,
    },
    /// No datacenter holds replicas.
    #[error("the keyspace has no replicas in any datacenter")]
    NoReplicas,
    /// No node is in a datacenter of that name.
    #[error("datacenter {datacenter:?} is not in the layout, which has {}", known.join(", "))]
    UnknownDatacenter {
        /// The name given.
        datacenter: String,
        /// The datacenters of the layout.
        known: Vec<String>,
    },
    /// A datacenter is named twice, or they are not in order.
    #[error("datacenter {datacenter:?} is named twice or out of order")]
    DatacenterOrder {
        /// The name.
        datacenter: String,
    },
    /// A datacenter is to hold no replicas: then it is to be left out.
    #[error("0 replicas in datacenter {datacenter:?}: leave it out instead")]
    ZeroReplicas {
        /// The datacenter.
        datacenter: String,
    },
    /// More replicas than the datacenter has nodes, or than a preference list holds.
    #[error("{replicas} replicas in datacenter {datacenter:?}, where {limit} nodes can hold one")]
    TooManyReplicas {
        /// The datacenter.
        datacenter: String,
        /// The replicas asked for.
        replicas: u8,
        /// The nodes there; at most 7.
        limit: usize,
    },
    /// More replicas over all datacenters than a key may have.
    #[error("{actual} replicas over all datacenters; at most {limit} are allowed")]
    TooManyReplicasInTotal {
        /// The most allowed.
        limit: usize,
        /// The number given.
        actual: usize,
    },
    /// A default level cannot be satisfied by these replicas, whoever is up.
    #[error("the default {what} level of the keyspace is impossible: {source}")]
    Level {
        /// "read" or "write".
        what: &'static str,
        /// Why.
        source: LevelError,
    },
    /// Reads at the default level may miss writes at the default level, and nobody has accepted it.
    #[error(
        "reads at {read} may miss writes at {write}: R + W > N does not hold for R = {reads}, \
         W = {writes}, N = {replicas}"
    )]
    Weak {
        /// The default level of reads.
        read: ConsistencyLevel,
        /// The default level of writes.
        write: ConsistencyLevel,
        /// R: replicas that must answer a read.
        reads: u8,
        /// W: replicas that must answer a write; none for ANY, which a hint satisfies.
        writes: u8,
        /// N: the replicas that the levels choose from.
        replicas: u8,
    },
    /// The keyspace requires overlap, and its own defaults do not give it.
    #[error(
        "require_overlap needs R + W > N, 2W > N and 2R > N, and {read} and {write} give R = {reads}, \
         W = {writes}, N = {replicas}"
    )]
    RequiresOverlap {
        /// The default level of reads.
        read: ConsistencyLevel,
        /// The default level of writes.
        write: ConsistencyLevel,
        /// R: replicas that must answer a read.
        reads: u8,
        /// W: replicas that must answer a write; none for ANY, which a hint satisfies.
        writes: u8,
        /// N: the replicas that the levels choose from.
        replicas: u8,
    },
    /// ANY never overlaps with anything.
    #[error(
        "require_overlap and allow_any exclude each other: a write at ANY overlaps with no read"
    )]
    OverlapOrAny,
    /// The default TTL is zero or too long.
    #[error("a default TTL of {actual} seconds; 1 to {limit} are allowed, or none")]
    Ttl {
        /// The most seconds allowed.
        limit: u64,
        /// The seconds given.
        actual: u64,
    },
}

impl Keyspace {
    /// Checks all that a client may get wrong. `accept_weak` accepts default levels without R+W>N;
    /// with `require_overlap` nothing does.
    pub fn validate(
        &self,
        layout: &Layout,
        limits: &Limits,
        accept_weak: bool,
    ) -> Result<(), KeyspaceError> {
        self.check_shape(layout)?;
        let (actual, limit) = (self.name.len(), limits.name_bytes_max);
        if actual > limit {
            return Err(KeyspaceError::NameTooLong { limit, actual });
        }
        if let Some(actual) = self.default_ttl_seconds {
            let limit = limits.ttl_seconds_max;
            if actual == 0 || actual > limit {
                return Err(KeyspaceError::Ttl { limit, actual });
            }
        }
        if self.require_overlap && self.allow_any {
            return Err(KeyspaceError::OverlapOrAny);
        }
        let by_datacenter = self.replicas_in(layout).expect("check_shape knows all datacenters");
        let replicas = shape_of(&by_datacenter);
        for (local, _) in &by_datacenter {
            self.check_levels(&replicas, &by_datacenter, *local, accept_weak)?;
        }
        Ok(())
    }

    /// The replication, with the datacenters as the layout numbers them: the argument for
    /// `Layout::replica_set`. `None` if a datacenter is not in the layout.
    pub fn replicas_in(&self, layout: &Layout) -> Option<Vec<(DcIndex, u8)>> {
        let resolve = |(name, count): &(String, u8)| Some((layout.datacenter_index(name)?, *count));
        self.replicas.iter().map(resolve).collect()
    }

    /// Checks what everything else relies on, so that even decoded keyspaces have it.
    pub(crate) fn check_shape(&self, layout: &Layout) -> Result<(), KeyspaceError> {
        let mut bytes = self.name.bytes();
        let first = bytes.next().is_some_and(|it| it.is_ascii_lowercase());
        let allowed = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_';
        if !first || !bytes.all(allowed) {
            return Err(KeyspaceError::Name { name: self.name.clone() });
        }
        if self.replicas.is_empty() {
            return Err(KeyspaceError::NoReplicas);
        }
        for (at, (datacenter, replicas)) in self.replicas.iter().enumerate() {
            let (datacenter, replicas) = (datacenter.clone(), *replicas);
            if at > 0 && self.replicas[at - 1].0 >= datacenter {
                return Err(KeyspaceError::DatacenterOrder { datacenter });
            }
            let Some(index) = layout.datacenter_index(&datacenter) else {
                let known = layout.datacenters().to_vec();
                return Err(KeyspaceError::UnknownDatacenter { datacenter, known });
            };
            if replicas == 0 {
                return Err(KeyspaceError::ZeroReplicas { datacenter });
            }
            let limit = layout.nodes_in(index).min(Layout::LIST_MAX);
            if usize::from(replicas) > limit {
                return Err(KeyspaceError::TooManyReplicas { datacenter, replicas, limit });
            }
        }
        let actual = self.replicas.iter().map(|it| usize::from(it.1)).sum();
        let limit = ReplicaSet::REPLICAS_MAX;
        if actual > limit {
            return Err(KeyspaceError::TooManyReplicasInTotal { limit, actual });
        }
        Ok(())
    }

    fn check_levels(
        &self,
        shape: &ReplicaSet,
        by_datacenter: &[(DcIndex, u8)],
        local: DcIndex,
        accept_weak: bool,
    ) -> Result<(), KeyspaceError> {
        let (read, write) = (self.read_level, self.write_level);
        let reads = Requirement::for_read(read, shape, local)
            .map_err(|source| KeyspaceError::Level { what: "read", source })?;
        let writes = Requirement::for_write(write, shape, local, self.allow_any)
            .map_err(|source| KeyspaceError::Level { what: "write", source })?;

        let local_only = read.is_local() && write.is_local();
        let scope = if local_only { shape.in_datacenter(local) } else { shape.all() };
        let replicas = u8::try_from(scope.len()).expect("at most 32 replicas");
        let reads = reads.required();
        let writes = if writes.is_any() { 0 } else { writes.required() };
        if self.require_overlap && !satisfies_require_overlap(read, write, by_datacenter, local) {
            return Err(KeyspaceError::RequiresOverlap { read, write, reads, writes, replicas });
        }
        if !accept_weak && !overlaps(read, write, by_datacenter, local) {
            return Err(KeyspaceError::Weak { read, write, reads, writes, replicas });
        }
        Ok(())
    }
}

/// Any replica set of this shape: levels ask for numbers, not for nodes.
fn shape_of(by_datacenter: &[(DcIndex, u8)]) -> ReplicaSet {
    let mut nodes = (0..).map(NodeIndex);
    let each = by_datacenter.iter();
    ReplicaSet::new(each.map(|it| (it.0, nodes.by_ref().take(usize::from(it.1)).collect())))
}

#[cfg(test)]
pub(crate) mod tests;
