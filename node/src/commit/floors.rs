//! How far each partition has come on the way to purging: fence, signature and floor, by the protocol's
//! section 2. Durable; none of them falls while a directory counts.
//!
//! A row is `prefix | keyspace (4) | partition (2)` -> `fence (8) | signed (8) | its round (8) | floor (8)
//! | its round (8) | swept (8) | opened (8) | filled (8) | CRC32C (4) of key and value`.
//!
//! A directory that replaces another holds nothing that counts until others have filled it, partition by
//! partition (F7). While it does, one more row says which directory that is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The generation of the directory that takes writes for the partition while others fill it.
    pub opened: u64,
    /// The generation of the directory that others have filled: its replica counts.
    pub filled: u64,
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
    /// F7: begins to take writes, and what sources hold. Whatever an earlier directory has vouched for
    /// is void.
    Open {
        /// The directory's generation.
        generation: u64,
        /// No write at or below is taken but from a source.
        fence: Hlc,
        /// The highest floor of the sources: what was purged there is not to come back from here.
        floor: Hlc,
        /// The round of that floor.
        round: u64,
    },
    /// F7: holds what the sources hold.
    Filled {
        /// The directory's generation.
        generation: u64,
    },
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
            FloorChange::Open { generation, fence, floor, round } => {
                let again = self.opened == generation && self.filled != generation;
                if self.opened < generation || again && floor > self.floor {
                    after.fence = self.fence.max(fence).max(floor);
                    (after.signed, after.signed_round) = (floor, round);
                    (after.floor, after.floor_round) = (floor, round);
                    after.swept = self.swept.min(floor);
                    after.opened = generation;
                }
            }
            FloorChange::Filled { generation } => {
                if self.opened == generation {
                    after.filled = generation;
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
            self.opened,
            self.filled,
        ] {
            value.put_u64(it);
        }
        value.put_u32(checksum(key, &value));
        value.freeze()
    }

    /// Reads the row of a partition; `None` if it is damaged.
    pub fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (body, crc) = value.split_last_chunk::<4>()?;
        let (fields, []) = body.as_chunks::<8>() else { return None };
        let [fence, signed, signed_round, floor, floor_round, swept, opened, filled] = fields
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
            opened: number(opened),
            filled: number(filled),
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
    /// Nothing is taken or answered yet: others have to look at the directory first (F13).
    shut: AtomicBool,
}

/// By keyspace; those of a keyspace by partition, as many as there are.
#[derive(Clone, Debug, Default)]
pub struct FloorTable {
    partitions: BTreeMap<KeyspaceId, Arc<Vec<PartitionFloor>>>,
    /// The generation of the directory that is being filled, if it is.
    filling: Option<u64>,
}

impl FloorTable {
    /// Where a partition stands.
    pub fn of(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> PartitionFloor {
        let floors = self.partitions.get(&keyspace).and_then(|it| it.get(partition.index()));
        floors.copied().unwrap_or_default()
    }

    /// The generation of the directory that is being filled, if it is.
    pub fn filling(&self) -> Option<u64> {
        self.filling
    }

    /// True if this replica of a partition takes writes.
    pub fn takes_writes(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> bool {
        self.filling.is_none_or(|it| self.of(keyspace, partition).opened == it)
            || Mutant::ServesUnfilled.is_on()
    }

    /// True if what this replica of a partition holds counts: reads are answered by it.
    pub fn counts(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> bool {
        self.filling.is_none_or(|it| self.of(keyspace, partition).filled == it)
            || Mutant::ServesUnfilled.is_on()
    }

    /// Every partition that stands anywhere.
    pub fn iter(&self) -> impl Iterator<Item = (KeyspaceId, PartitionIndex, PartitionFloor)> {
        self.partitions.iter().flat_map(|(keyspace, floors)| {
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

    /// Takes and answers nothing from now on, or does again (F13).
    pub fn set_shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Release);
    }

    /// True while nothing is taken or answered.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// True if this replica of a partition takes writes.
    pub fn takes_writes(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> bool {
        !self.is_shut() && self.table.load().takes_writes(keyspace, partition)
    }

    /// The floor of a partition; an error if what this replica holds of it does not count.
    pub fn readable(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
    ) -> Result<Hlc, Refusal> {
        let table = self.table.load();
        let counts = !self.is_shut() && table.counts(keyspace, partition);
        if counts { Ok(table.of(keyspace, partition).floor) } else { Err(Refusal::NotReady) }
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
        if let Some(value) = storage.get(Space::System, FILL_KEY)? {
            table.filling = Some(decode_fill(&value).ok_or_else(|| malformed(FILL_KEY))?);
        }
        floors.table.store(Arc::new(table.clone()));
        Ok(Self { floors, table, changed: false })
    }

    /// Where a partition stands, the group's earlier items included.
    pub(super) fn of(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> PartitionFloor {
        self.table.of(keyspace, partition)
    }

    /// True unless the partition is still being filled.
    pub(super) fn counts(&self, keyspace: KeyspaceId, partition: PartitionIndex) -> bool {
        self.table.counts(keyspace, partition)
    }

    /// Why a mutation is not taken, if so.
    pub(super) fn refuse(
        &self,
        key: &StorageKey,
        partition: PartitionIndex,
        record: &Record,
        origin: Origin,
    ) -> Option<Refusal> {
        if self.floors.is_shut() || !self.table.takes_writes(key.keyspace(), partition) {
            return Some(Refusal::NotReady);
        }
        if self.table.partitions.is_empty() {
            return None;
        }
        let own = self.of(key.keyspace(), partition);
        let below = match origin {
            Origin::Fresh => record.version().hlc <= own.fence && !Mutant::FenceIgnored.is_on(),
            Origin::Held(_) if Mutant::SourceFloorIgnored.is_on() => false,
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

    /// What the directory holds counts no more, until it was filled; or `None`: it was (F7).
    pub(super) fn fill(
        &mut self,
        generation: Option<u64>,
        ends: Option<u64>,
        batch: &mut WriteBatch,
    ) {
        if generation.is_none() && self.table.filling != ends {
            // Another directory is to be filled by now.
            return;
        }
        match generation {
            Some(it) => batch.put(Space::System, FILL_KEY, [&encode_fill(it)[..]]),
            None => batch.delete(Space::System, FILL_KEY),
        }
        self.table.filling = generation;
        self.changed = true;
    }

    /// Forgets a keyspace.
    pub(super) fn drop_keyspace(&mut self, keyspace: KeyspaceId, batch: &mut WriteBatch) {
        if self.table.partitions.remove(&keyspace).is_some() {
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
    let floors = Arc::make_mut(table.partitions.entry(keyspace).or_default());
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

/// The row of a directory that is being filled, for one that is prepared before it is opened.
pub(crate) fn fill_row(generation: u64) -> (&'static [u8], Bytes) {
    (FILL_KEY, encode_fill(generation))
}

fn encode_fill(generation: u64) -> Bytes {
    let body = generation.to_be_bytes();
    [&body[..], &checksum(FILL_KEY, &body).to_be_bytes()].concat().into()
}

fn decode_fill(value: &[u8]) -> Option<u64> {
    let (body, crc) = value.split_last_chunk::<4>()?;
    let generation = u64::from_be_bytes(body.try_into().ok()?);
    (u32::from_be_bytes(*crc) == checksum(FILL_KEY, body)).then_some(generation)
}

const PREFIX: &[u8] = b"\0floor/";
const FILL_KEY: &[u8] = b"\0fill";
const VALUE_BYTES: usize = 8 * 8 + 4;

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
    fn a_directory_that_is_filled_goes_by_its_sources() {
        let old = [FloorChange::Fence(Hlc(9)), sign(8, 1), adopt(8, 1), FloorChange::Swept(Hlc(8))];
        let (fence, floor) = (Hlc(12), Hlc(5));
        let open = FloorChange::Open { generation: 2, fence, floor, round: 3 };
        let filled = |generation| FloorChange::Filled { generation };
        let run = |more: &[FloorChange]| {
            let all = [&old[..], more].concat();
            all.iter().fold(PartitionFloor::default(), |it, change| it.after(*change))
        };
        let opened = run(&[open]);
        let clocks = [opened.fence, opened.signed, opened.floor, opened.swept];
        assert_eq!(clocks, [Hlc(12), Hlc(5), Hlc(5), Hlc(5)], "what it vouched for is void");
        assert_eq!(run(&[open, open]), opened, "once");
        let higher = FloorChange::Open { generation: 2, fence, floor: Hlc(7), round: 4 };
        assert_eq!(run(&[open, higher]).floor, Hlc(7), "a source has heard of a higher one");
        assert_eq!(run(&[higher, open]).floor, Hlc(7), "and it does not fall again");
        assert_eq!(run(&[open, filled(2), higher]).floor, Hlc(5), "once filled, by rounds alone");
        assert_eq!(run(&[filled(2)]).filled, 0, "not before it takes writes");
        assert_eq!(run(&[open, filled(1)]).filled, 0, "of this directory");
        assert_eq!(run(&[open, filled(2)]).filled, 2);
        let mut table = FloorTable { filling: Some(2), ..FloorTable::default() };
        assert!(!table.takes_writes(KEYSPACE, PARTITION) && !table.counts(KEYSPACE, PARTITION));
        *slot(&mut table, KEYSPACE, PARTITION) = opened;
        assert!(table.takes_writes(KEYSPACE, PARTITION) && !table.counts(KEYSPACE, PARTITION));
        *slot(&mut table, KEYSPACE, PARTITION) = run(&[open, filled(2)]);
        assert!(table.counts(KEYSPACE, PARTITION) && !table.counts(KEYSPACE, PartitionIndex(0)));
        assert_eq!(decode_fill(&encode_fill(7)), Some(7));
        assert_eq!(decode_fill(&encode_fill(7)[1..]), None);
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
            opened: 9,
            filled: 8,
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
