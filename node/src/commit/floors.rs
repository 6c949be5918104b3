//! How far each partition has come on the way to purging: fence, signature and floor, by the protocol's
//! section 2. Durable, and none of them ever falls.
//!
//! A row is `prefix | keyspace (4) | partition (2)` -> `fence (8) | signed (8) | its round (8) | floor (8)
//! | its round (8) | swept (8) | CRC32C (4) of key and value`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use model::{Hlc, KeyspaceId, Mutant, PartitionIndex, Record, Refusal, StorageKey};
use tokio::sync::Notify;

use super::hints::malformed;
use crate::storage::{RangeRequest, Space, Storage, StorageError, WriteBatch};

/// Where one partition of a replica stands. `floor <= signed <= fence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionFloor {
    /// No write of a client at or below is taken any more.
    pub fence: Hlc,
    /// Up to here this replica has vouched to hold whatever any replica held.
    pub signed: Hlc,
    /// The round of that signature.
    pub signed_round: u64,
    /// Up to here all replicas have vouched: tombstones and expired records are gone.
    pub floor: Hlc,
    /// The round in which they have.
    pub floor_round: u64,
    /// Up to here they are gone from disk and trees too.
    pub swept: Hlc,
}

/// A step on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloorChange {
    /// F1: raises the fence.
    Fence(Hlc),
    /// F4: signs what is held up to here. Needs the fence.
    Sign {
        /// Up to where.
        up_to: Hlc,
        /// The round.
        round: u64,
    },
    /// F5: all have signed. Needs this replica's own signature of that round.
    Adopt {
        /// Up to where.
        up_to: Hlc,
        /// The round.
        round: u64,
    },
    /// Nothing purgeable is left up to here.
    Swept(Hlc),
}

impl PartitionFloor {
    /// The state after a step; the same if the step is not allowed, or is behind.
    fn after(self, change: FloorChange) -> Self {
        let mut after = self;
        match change {
            FloorChange::Fence(up_to) => after.fence = self.fence.max(up_to),
            FloorChange::Sign { up_to, round } => {
                if up_to <= self.fence && up_to >= self.signed {
                    (after.signed, after.signed_round) = (up_to, round);
                }
            }
            FloorChange::Adopt { up_to, round } => {
                let own = up_to == self.signed && round == self.signed_round;
                if own && up_to > self.floor {
                    (after.floor, after.floor_round) = (up_to, round);
                }
            }
            FloorChange::Swept(up_to) => {
                if up_to <= self.floor {
                    after.swept = self.swept.max(up_to);
                }
            }
        }
        after
    }

    /// True for a record at or below this floor from a replica with a lower one (F8): it is overwritten
    /// here, or comes from a disk that was put back.
    pub(crate) fn is_behind(&self, record: &Record, floor: Hlc) -> bool {
        let behind = record.version().hlc <= self.floor && floor < self.floor;
        behind && !record.purgeable_at(self.floor)
    }

    fn encode(self, key: &[u8]) -> Bytes {
        let mut value = BytesMut::with_capacity(VALUE_BYTES);
        for it in [
            self.fence.0,
            self.signed.0,
            self.signed_round,
            self.floor.0,
            self.floor_round,
            self.swept.0,
        ] {
            value.put_u64(it);
        }
        value.put_u32(checksum(key, &value));
        value.freeze()
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (body, crc) = value.split_last_chunk::<4>()?;
        let ([fence, signed, signed_round, floor, floor_round, swept], []) = body.as_chunks::<8>()
        else {
            return None;
        };
        let sound = u32::from_be_bytes(*crc) == checksum(key, body);
        let number = |it: &[u8; 8]| u64::from_be_bytes(*it);
        sound.then(|| Self {
            fence: Hlc(number(fence)),
            signed: Hlc(number(signed)),
            signed_round: number(signed_round),
            floor: Hlc(number(floor)),
            floor_round: number(floor_round),
            swept: Hlc(number(swept)),
        })
    }
}

/// By which right a mutation comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's write, or a hint: never at or below the fence (F1).
    Fresh,
    /// A record that another replica holds, whose floor is given: a write-back or an exchange. At or
    /// below this replica's floor only if the other one's is no lower (F8).
    Held(Hlc),
}

/// The states of all partitions that have one. The commit path alone changes them.
#[derive(Default)]
pub struct Floors {
    table: ArcSwap<FloorTable>,
    /// Wakes who removes what floors cover.
    pub(crate) changed: Notify,
}

/// By keyspace; those of a keyspace by partition, as many as there are.
#[derive(Clone, Debug, Default)]
pub struct FloorTable(BTreeMap<KeyspaceId, Arc<Vec<PartitionFloor>>>);

impl FloorTable {
    /// Where a partition stands.
    pub fn of(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> PartitionFloor {
        let floors = self.0.get(&keyspace).and_then(|it| it.get(partition.index()));
        floors.copied().unwrap_or_default()
    }

    /// Every partition that stands anywhere.
    pub fn iter(&self) -> impl Iterator<Item = (KeyspaceId, PartitionIndex, PartitionFloor)> {
        self.0.iter().flat_map(|(keyspace, floors)| {
            let partitions = (0..=u16::MAX).map(PartitionIndex);
            partitions.zip(floors.iter()).map(|(partition, floor)| (*keyspace, partition, *floor))
        })
    }
}

impl Floors {
    /// Where a partition stands.
    pub fn of(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> PartitionFloor {
        self.table.load().of(keyspace, partition)
    }

    /// All of them, as they are now.
    pub fn all(&self) -> Arc<FloorTable> {
        self.table.load_full()
    }
}

/// The floors' part of a commit path.
pub(super) struct FloorStage {
    floors: Arc<Floors>,
    /// With what the group at hand changes.
    table: FloorTable,
    changed: bool,
}

impl FloorStage {
    /// Takes over the changing of floors, read from `storage`. An error if a row is damaged: without
    /// its fence a replica must not take part.
    pub(super) fn open(floors: Arc<Floors>, storage: &impl Storage) -> Result<Self, StorageError> {
        let mut table = FloorTable::default();
        for (key, value) in storage.range(&RangeRequest::prefix(Space::System, PREFIX))?.rows {
            let (keyspace, partition) = parse_key(&key).ok_or_else(|| malformed(&key))?;
            let floor = PartitionFloor::decode(&key, &value).ok_or_else(|| malformed(&key))?;
            *slot(&mut table, keyspace, partition) = floor;
        }
        floors.table.store(Arc::new(table.clone()));
        Ok(Self { floors, table, changed: false })
    }

    /// Where a partition stands, the group's earlier items included.
    pub(super) fn of(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> PartitionFloor {
        self.table.of(keyspace, partition)
    }

    /// Why a mutation is not taken, if so.
    pub(super) fn refuse(
        &self,
        key: &StorageKey,
        partition: PartitionIndex,
        record: &Record,
        origin: Origin,
    ) -> Option<Refusal> {
        if self.table.0.is_empty() {
            return None;
        }
        let own = self.of(key.keyspace(), partition);
        let below = match origin {
            Origin::Fresh => record.version().hlc <= own.fence && !Mutant::FenceIgnored.is_on(),
            Origin::Held(floor) => own.is_behind(record, floor) || record.purgeable_at(own.floor),
        };
        below.then_some(Refusal::BelowFence)
    }

    /// Takes a step for a partition.
    pub(super) fn change(
        &mut self,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
        change: FloorChange,
        batch: &mut WriteBatch,
    ) {
        let before = self.of(keyspace, partition);
        let after = before.after(change);
        if after == before {
            return;
        }
        *slot(&mut self.table, keyspace, partition) = after;
        let key = key_of(keyspace, partition);
        batch.put(Space::System, &key, [&after.encode(&key)[..]]);
        self.changed = true;
    }

    /// Forgets a keyspace.
    pub(super) fn drop_keyspace(&mut self, keyspace: KeyspaceId, batch: &mut WriteBatch) {
        if self.table.0.remove(&keyspace).is_some() {
            let start = [PREFIX, &keyspace.0.to_be_bytes()].concat();
            if let Some(end) = StorageKey::prefix_end(&start) {
                batch.delete_range(Space::System, &start, &end);
            }
            self.changed = true;
        }
    }

    /// The group is written: so are its steps.
    pub(super) fn keep(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.floors.table.store(Arc::new(self.table.clone()));
            self.floors.changed.notify_one();
        }
    }

    /// The group is not written.
    pub(super) fn undo(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.table = FloorTable::clone(&self.floors.table.load());
        }
    }
}

fn slot(
    table: &mut FloorTable,
    keyspace: KeyspaceId,
    partition: PartitionIndex,
) -> &mut PartitionFloor {
    let floors = Arc::make_mut(table.0.entry(keyspace).or_default());
    if floors.len() <= partition.index() {
        floors.resize(partition.index() + 1, PartitionFloor::default());
    }
    &mut floors[partition.index()]
}

fn key_of(keyspace: KeyspaceId, partition: PartitionIndex) -> Bytes {
    [PREFIX, &keyspace.0.to_be_bytes(), &partition.0.to_be_bytes()].concat().into()
}

fn parse_key(key: &[u8]) -> Option<(KeyspaceId, PartitionIndex)> {
    let (keyspace, partition) = key.strip_prefix(PREFIX)?.split_first_chunk()?;
    let partition = u16::from_be_bytes(partition.try_into().ok()?);
    Some((KeyspaceId(u32::from_be_bytes(*keyspace)), PartitionIndex(partition)))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

const PREFIX: &[u8] = b"\0floor/";
const VALUE_BYTES: usize = 6 * 8 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(3);
    const PARTITION: PartitionIndex = PartitionIndex(7);

    fn sign(up_to: u64, round: u64) -> FloorChange {
        FloorChange::Sign { up_to: Hlc(up_to), round }
    }

    fn adopt(up_to: u64, round: u64) -> FloorChange {
        FloorChange::Adopt { up_to: Hlc(up_to), round }
    }

    fn after(changes: &[FloorChange]) -> [u64; 4] {
        let it = changes.iter().fold(PartitionFloor::default(), |it, change| it.after(*change));
        [it.fence, it.signed, it.floor, it.swept].map(|it| it.0)
    }

    #[test]
    fn floor_follows_signature_follows_fence() {
        let fence = |up_to| FloorChange::Fence(Hlc(up_to));
        let swept = |up_to| FloorChange::Swept(Hlc(up_to));
        assert_eq!(after(&[sign(5, 1)]), [0, 0, 0, 0], "no signature above the fence");
        assert_eq!(after(&[fence(5), adopt(5, 1)]), [5, 0, 0, 0], "no floor without a signature");
        assert_eq!(after(&[fence(5), sign(5, 1), adopt(5, 2)]), [5, 5, 0, 0], "of that round");
        assert_eq!(after(&[fence(5), sign(5, 1), adopt(4, 1)]), [5, 5, 0, 0], "of that height");
        assert_eq!(after(&[fence(5), sign(5, 1), adopt(5, 1), swept(6)]), [5, 5, 5, 0]);
        assert_eq!(after(&[fence(5), sign(5, 1), adopt(5, 1), swept(5)]), [5, 5, 5, 5]);
        let later = [fence(5), sign(5, 1), adopt(5, 1), fence(9), sign(9, 2), fence(3), sign(2, 3)];
        assert_eq!(after(&later), [9, 9, 5, 0], "nothing falls");
    }

    #[test]
    fn rows_survive_and_damage_is_found() {
        let floor = PartitionFloor {
            fence: Hlc(6),
            signed: Hlc(5),
            signed_round: 4,
            floor: Hlc(3),
            floor_round: 2,
            swept: Hlc(1),
        };
        let key = key_of(KEYSPACE, PARTITION);
        assert_eq!(parse_key(&key), Some((KEYSPACE, PARTITION)));
        let value = floor.encode(&key);
        assert_eq!(PartitionFloor::decode(&key, &value), Some(floor));
        for bit in 0..value.len() * 8 {
            let mut damaged = value.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PartitionFloor::decode(&key, &damaged), None, "bit {bit}");
        }
        assert_eq!(PartitionFloor::decode(&key, &value[1..]), None);
        assert_eq!(PartitionFloor::decode(&key_of(KEYSPACE, PartitionIndex(8)), &value), None);
    }
}
