//! Changes of the metadata, and what makes one metadata a successor of another.

use std::sync::Arc;

use super::{Metadata, MetadataHash};
use crate::{ConsistencyLevel, Keyspace, KeyspaceError, KeyspaceId, Layout, Limits};

/// One change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The next layout.
    SetLayout(Layout),
    /// A new keyspace. Its id is ignored: the metadata gives it one.
    CreateKeyspace {
        /// The keyspace.
        keyspace: Keyspace,
        /// Accept default levels without R+W>N.
        accept_weak: bool,
    },
    /// Other defaults for a keyspace.
    AlterKeyspace {
        /// Its name.
        name: String,
        /// What changes.
        change: KeyspaceChange,
        /// Accept default levels without R+W>N.
        accept_weak: bool,
    },
    /// Drop a keyspace and its data. Its id is never used again.
    DropKeyspace {
        /// Its name.
        name: String,
    },
}

/// What changes in a keyspace: `None` leaves it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyspaceChange {
    /// Replicas per datacenter. Accepted only as they are: another replication is a change of
    /// layout, because data has to move first.
    pub replicas: Option<Vec<(String, u8)>>,
    /// The level of reads that name none.
    pub read_level: Option<ConsistencyLevel>,
    /// The level of writes that name none.
    pub write_level: Option<ConsistencyLevel>,
    /// The default TTL: `Some(None)` sets it to never.
    pub default_ttl_seconds: Option<Option<u64>>,
    /// See `Keyspace`.
    pub require_overlap: Option<bool>,
    /// See `Keyspace`.
    pub allow_any: Option<bool>,
}

/// Why a change makes no sense. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The layout is not the next one: something has changed since it was planned.
    #[error("the layout has version {actual}; {required} would be next")]
    LayoutVersion {
        /// The version that would be next.
        required: u64,
        /// The version given.
        actual: u64,
    },
    /// The number of partitions is fixed when a cluster is made.
    #[error("the layout has {actual} partitions; the cluster was made with {required}")]
    Partitions {
        /// The cluster's number.
        required: u32,
        /// The layout's.
        actual: u32,
    },
    /// The layout has no place for a keyspace that exists.
    #[error("keyspace {name:?} does not fit the layout: {source}")]
    LayoutTooSmall {
        /// The keyspace.
        name: String,
        /// Why it does not fit.
        source: KeyspaceError,
    },
    /// A keyspace of that name exists.
    #[error("keyspace {name:?} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// No keyspace has that name.
    #[error("there is no keyspace {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Replication cannot be changed as a setting.
    #[error("the replicas of keyspace {name:?} cannot be altered: that is a change of layout")]
    ReplicasFixed {
        /// The keyspace.
        name: String,
    },
    /// There is no room for another keyspace.
    #[error("{limit} keyspaces exist, and no more are allowed")]
    TooManyKeyspaces {
        /// The most allowed.
        limit: usize,
    },
    /// All ids are used up: 4 Gi keyspaces have been created.
    #[error("no keyspace id is left")]
    IdsExhausted,
    /// The keyspace makes no sense.
    #[error(transparent)]
    Keyspace(#[from] KeyspaceError),
}

/// Why a metadata is no successor of another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// It was made from another parent.
    #[error("its parent is {actual}, and here it is {required}")]
    Parent {
        /// The parent here.
        required: MetadataHash,
        /// The one it names.
        actual: MetadataHash,
    },
    /// Its number is not the next one.
    #[error("its sequence is {actual}, and {required} would be next")]
    Sequence {
        /// The number that would be next.
        required: u64,
        /// The one it has.
        actual: u64,
    },
    /// It changes what no change may: the cluster's id, key or number of partitions, or keyspace ids.
    #[error("it changes the {what}, which never changes")]
    Fixed {
        /// What it changes.
        what: &'static str,
    },
}

pub(super) fn apply(
    before: &Metadata,
    change: Change,
    limits: &Limits,
) -> Result<Metadata, ChangeError> {
    let mut layout = Arc::clone(&before.layout);
    let mut keyspaces = before.keyspaces.clone();
    let mut next_id = before.next_keyspace_id;
    match change {
        Change::SetLayout(next) => {
            check_layout(before, &next)?;
            layout = Arc::new(next);
        }
        Change::CreateKeyspace { mut keyspace, accept_weak } => {
            let at = keyspaces.binary_search_by(|it| it.name.cmp(&keyspace.name));
            let Err(at) = at else { return Err(ChangeError::Exists { name: keyspace.name }) };
            let limit = Metadata::KEYSPACES_MAX;
            if keyspaces.len() >= limit {
                return Err(ChangeError::TooManyKeyspaces { limit });
            }
            keyspace.id = KeyspaceId(next_id);
            keyspace.replicas.sort();
            keyspace.validate(&layout, limits, accept_weak)?;
            next_id = next_id.checked_add(1).ok_or(ChangeError::IdsExhausted)?;
            keyspaces.insert(at, keyspace);
        }
        Change::AlterKeyspace { name, change, accept_weak } => {
            let altered = &mut keyspaces[find(before, name)?];
            alter(altered, change)?;
            altered.validate(&layout, limits, accept_weak)?;
        }
        Change::DropKeyspace { name } => {
            keyspaces.remove(find(before, name)?);
        }
    }
    let (sequence, parent) = (before.sequence + 1, before.hash);
    let (cluster, key) = (before.cluster, before.cluster_key);
    Ok(Metadata::hashed(cluster, key, sequence, parent, layout, keyspaces, next_id))
}

fn find(metadata: &Metadata, name: String) -> Result<usize, ChangeError> {
    let found = metadata.keyspaces.binary_search_by(|it| it.name.cmp(&name));
    found.ok().ok_or(ChangeError::NotFound { name })
}

fn check_layout(before: &Metadata, next: &Layout) -> Result<(), ChangeError> {
    let (required, actual) = (before.layout.version() + 1, next.version());
    if actual != required {
        return Err(ChangeError::LayoutVersion { required, actual });
    }
    let (required, actual) = (before.layout.partitions(), next.partitions());
    if actual != required {
        return Err(ChangeError::Partitions { required, actual });
    }
    before.keyspaces.iter().try_for_each(|it| {
        let too_small = |source| ChangeError::LayoutTooSmall { name: it.name.clone(), source };
        it.check_shape(next).map_err(too_small)
    })
}

fn alter(keyspace: &mut Keyspace, change: KeyspaceChange) -> Result<(), ChangeError> {
    if let Some(mut replicas) = change.replicas {
        replicas.sort();
        if replicas != keyspace.replicas {
            return Err(ChangeError::ReplicasFixed { name: keyspace.name.clone() });
        }
    }
    keyspace.read_level = change.read_level.unwrap_or(keyspace.read_level);
    keyspace.write_level = change.write_level.unwrap_or(keyspace.write_level);
    keyspace.default_ttl_seconds =
        change.default_ttl_seconds.unwrap_or(keyspace.default_ttl_seconds);
    keyspace.require_overlap = change.require_overlap.unwrap_or(keyspace.require_overlap);
    keyspace.allow_any = change.allow_any.unwrap_or(keyspace.allow_any);
    Ok(())
}

pub(super) fn check_follows(it: &Metadata, parent: Option<&Metadata>) -> Result<(), FollowError> {
    let required = parent.map_or(MetadataHash::NONE, |parent| parent.hash);
    if it.parent != required {
        return Err(FollowError::Parent { required, actual: it.parent });
    }
    let required = parent.map_or(1, |parent| parent.sequence + 1);
    if it.sequence != required {
        return Err(FollowError::Sequence { required, actual: it.sequence });
    }
    let Some(parent) = parent else { return Ok(()) };
    let fixed = |what, same| if same { Ok(()) } else { Err(FollowError::Fixed { what }) };
    fixed("cluster id", it.cluster == parent.cluster)?;
    fixed("cluster key", it.cluster_key == parent.cluster_key)?;
    fixed("number of partitions", it.layout.partitions() == parent.layout.partitions())?;
    // An id that was given stays given, and a keyspace that is new has a new one.
    fixed("keyspace ids given", it.next_keyspace_id >= parent.next_keyspace_id)?;
    let known = |keyspace: &&Keyspace| keyspace.id.0 < parent.next_keyspace_id;
    for keyspace in it.keyspaces.iter().filter(known) {
        let before = parent.keyspace_of_id(keyspace.id);
        let same =
            before.is_some_and(|it| it.name == keyspace.name && it.replicas == keyspace.replicas);
        fixed("name or replicas of a keyspace id", same)?;
    }
    Ok(())
}
