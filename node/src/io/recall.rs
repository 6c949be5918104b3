//! What a node finds on its own disk when it starts: who it is, and what it has yet to clear away.

use model::{Hlc, NodeId, StorageId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{start::StartError, witness::encode_identity, world::World};
use crate::{
    commit::{CommitItem, fill_row},
    config::NodeConfig,
    shared::{Identity, Shared, system_key},
    storage::{Durability, RangeRequest, Space, StorageError, WriteBatch},
    witness::Witness,
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
/// message. A directory that replaces a node's earlier one is marked in the same step: it counts for
/// nothing until others have filled it (F7).
pub(super) fn open_identity(config: &NodeConfig, world: &World) -> Result<Identity, StartError> {
    let storage = &world.storage;
    let mut batch = WriteBatch::new();
    let known = read_identity(world)?;
    let clock_ceiling = match storage.get(Space::System, system_key::CLOCK_CEILING)? {
        Some(bytes) => {
            let ceiling = bytes[..].try_into().map(u64::from_be_bytes);
            Hlc(ceiling.ok().ok_or(StartError::Damaged { what: "clock ceiling" })?)
        }
        None => Hlc::ZERO,
    };
    let mut random = StdRng::seed_from_u64(world.seed ^ 0x4944);
    let (fresh_node, fresh_storage) = (NodeId(random.random::<u128>() | 1), random.random());
    let (node, storage_id, starts, minted) = match (known, config.replace) {
        (Some((own, ..)), Some(asked)) if own != asked => {
            return Err(StartError::NotReplacing { own, asked });
        }
        (Some((node, id, starts)), _) if !config.restored => (node, id, starts, false),
        (None, None) => (fresh_node, StorageId::mint(0, fresh_storage), 0, false),
        (known, asked) => {
            // Above whatever the directory before had: both count up, and this one from later on.
            let now_ms = world.clock.now().0.max(1);
            let (node, before) = match known {
                Some((node, id, _)) => (node, id.generation()),
                None => (asked.unwrap_or(fresh_node), 0),
            };
            let id = StorageId::mint(now_ms.max(before.saturating_add(1)), fresh_storage);
            let (key, value) = fill_row(id.generation());
            batch.put(Space::System, key, [&value]);
            (node, id, 0, true)
        }
    };
    // No less than the time in seconds: what a disk says that was lost or put back is behind what the
    // others have heard, and they would take every word for an old one. Unless the clock went back too.
    let starts = (starts + 1).max(world.clock.now().0 / 1_000);
    let identity = encode_identity(node, storage_id, starts);
    batch.put(Space::System, system_key::IDENTITY, [&identity]);
    storage.write(&batch, Durability::Synced)?;
    Ok(Identity {
        node,
        storage: storage_id,
        minted,
        // Room for the renewals of one life: a node called down takes the next incarnation.
        incarnation: starts << 20,
        client_address: config.advertise.unwrap_or(config.listen),
        peer_address: config.peer_advertise.unwrap_or(config.peer_listen),
        clock_ceiling,
    })
}

/// Node, directory and starts so far; `None` in an empty database.
fn read_identity(world: &World) -> Result<Option<(NodeId, StorageId, u64)>, StartError> {
    let damaged = |what| StartError::Damaged { what };
    let stored = world.storage.get(Space::System, system_key::IDENTITY)?;
    let Some(bytes) = stored else { return Ok(None) };
    let fields = (bytes.get(..16), bytes.get(16..32), bytes.get(32..40));
    let (Some(node), Some(id), Some(starts)) = fields else {
        return Err(damaged("identity"));
    };
    let node = NodeId::from_slice(node).ok_or(damaged("node id"))?;
    let id = StorageId::from_slice(id).ok_or(damaged("storage id"))?;
    let starts = starts.try_into().map(u64::from_be_bytes);
    Ok(Some((node, id, starts.ok().ok_or(damaged("incarnation"))?)))
}

/// Reads what was seen of other nodes' directories.
pub(super) fn open_witness(world: &World) -> Result<Witness, StartError> {
    let Some(bytes) = world.storage.get(Space::System, system_key::WITNESS)? else {
        return Ok(Witness::default());
    };
    let damaged = StartError::Damaged { what: "what was seen of other nodes' directories" };
    Witness::decode(&bytes).ok_or(damaged)
}
