//! What a node finds on its own disk when it starts: who it is, and what it has yet to clear away.

use bytes::Bytes;
use model::{Hlc, NodeId, StorageId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{start::StartError, world::World};
use crate::{
    commit::CommitItem,
    config::NodeConfig,
    shared::{Identity, Shared, system_key},
    storage::{Durability, RangeRequest, Space, StorageError, WriteBatch},
};

/// Removes the rows of dropped keyspaces that are still here: a crash between adopting the change and
/// removing them, or a write that came later, has left them.
pub(super) fn sweep_dropped_keyspaces(shared: &Shared) -> Result<(), StorageError> {
    let view = shared.view.load();
    let Some(metadata) = view.metadata() else { return Ok(()) };
    for keyspace in metadata.dropped_keyspaces() {
        let prefix = keyspace.0.to_be_bytes().to_vec();
        let first = RangeRequest { rows_max: 1, ..RangeRequest::prefix(Space::Data, prefix) };
        if !shared.world.storage.range(&first)?.rows.is_empty() {
            let item = CommitItem::DropKeyspace { keyspace };
            // Never refused for lack of room; a closed queue is a node that ends.
            let _ = shared.commits.push(|items| items.push_back(item));
        }
    }
    Ok(())
}

/// Reads who this node is, or mints it, and begins a new incarnation: durable before the first
/// message.
pub(super) fn open_identity(config: &NodeConfig, world: &World) -> Result<Identity, StartError> {
    let storage = &world.storage;
    let damaged = |what| StartError::Damaged { what };
    let (node, storage_id, starts) = match storage.get(Space::System, system_key::IDENTITY)? {
        Some(bytes) => {
            let fields = (bytes.get(..16), bytes.get(16..32), bytes.get(32..40));
            let (Some(node), Some(id), Some(starts)) = fields else {
                return Err(damaged("identity"));
            };
            let node = NodeId::from_slice(node).ok_or(damaged("node id"))?;
            let id = StorageId::from_slice(id).ok_or(damaged("storage id"))?;
            let starts = starts.try_into().map(u64::from_be_bytes);
            (node, id, starts.ok().ok_or(damaged("incarnation"))?)
        }
        None => {
            let mut random = StdRng::seed_from_u64(world.seed ^ 0x4944);
            (NodeId(random.random::<u128>() | 1), StorageId(random.random::<u128>() | 1), 0)
        }
    };
    let clock_ceiling = match storage.get(Space::System, system_key::CLOCK_CEILING)? {
        Some(bytes) => {
            let ceiling = bytes[..].try_into().map(u64::from_be_bytes);
            Hlc(ceiling.ok().ok_or(damaged("clock ceiling"))?)
        }
        None => Hlc::ZERO,
    };
    let starts = starts + 1;
    let mut value = Vec::with_capacity(40);
    value.extend_from_slice(&node.to_bytes());
    value.extend_from_slice(&storage_id.to_bytes());
    value.extend_from_slice(&starts.to_be_bytes());
    let mut batch = WriteBatch::new();
    batch.put(Space::System, system_key::IDENTITY, [&Bytes::from(value)[..]]);
    storage.write(&batch, Durability::Synced)?;
    Ok(Identity {
        node,
        storage: storage_id,
        // Room for the renewals of one life: a node called down takes the next incarnation.
        incarnation: starts << 20,
        client_address: config.advertise.unwrap_or(config.listen),
        peer_address: config.peer_advertise.unwrap_or(config.peer_listen),
        clock_ceiling,
    })
}
