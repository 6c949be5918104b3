//! The answering side of an exchange: what this node holds, step by step.

use std::collections::BTreeSet;

use antientropy::exchange::{
    RecordDigest, Sketch, TokenRange, Width, compare, decode_tiling, differing, name_all,
};
use antientropy::merkle::HASH_FORMAT;
use bytes::{BufMut, Bytes, BytesMut};
use model::{Hlc, KeyspaceId, Mutant, NodeId, PartitionIndex, Refusal, StorageKey, Token};
use proto::internal::{
    self, ExchangeAnswer, ExchangeLeaves, ExchangeRecords, ExchangeRoots, RecordDifferences,
    RecordNames, Tiling, exchange_request::Step,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{BLOCK_BYTES, Begun, SharedTrees, Span, block::encode_block, board::PairKey};
use crate::commit::{FloorTable, PartitionFloor};
use crate::shared::Shared;

/// Rows and bytes of one range that are read to answer a step.
const ANSWER_LIMITS: (usize, usize) = (2_048, 512 << 10);
/// Bytes read for one step, after which the rest waits for another one.
const STEP_READ_BYTES: usize = 2 << 20;
/// Bytes of one answer, likewise.
const STEP_ANSWER_BYTES: usize = 128 << 10;
/// More than any node asks for in one step.
const STEP_RANGES_MAX: usize = 16_384;

/// The partition that a range of tokens lies in; `None` if it is in none alone.
pub(crate) fn partition_of(range: TokenRange, partitions: u32) -> Option<PartitionIndex> {
    let bits = u8::try_from(partitions.trailing_zeros()).ok()?;
    (range.bits >= bits).then(|| range.first.partition(partitions))
}

impl Shared {
    /// Answers a step that only reads. May wait for the disk.
    pub(crate) fn answer_exchange(&self, from: NodeId, step: &Step) -> ExchangeAnswer {
        let answer = match step {
            Step::All(all) => Ok(self.answer_all(from, &all.hash)),
            Step::Roots(roots) => self.answer_roots(from, roots),
            Step::Leaves(leaves) => self.answer_leaves(leaves),
            Step::Records(records) => self.answer_records(records),
            Step::Held(held) => self.answer_held(held),
            Step::Settled(_)
            | Step::Dirty(_)
            | Step::Moves(_)
            | Step::PurgeOpen(_)
            | Step::PurgeSign(_)
            | Step::PurgeCertify(_)
            | Step::FillOpen(_) => Err(Refusal::Failed),
        };
        answer.unwrap_or_else(refused)
    }

    /// A hash over the roots of all trees that this node shares with another one.
    pub(crate) fn roots_hash(&self, shared: &SharedTrees) -> Bytes {
        let (mut roots, floors) = (BytesMut::new(), self.floors.all());
        for (keyspace, partitions) in shared {
            roots.put_u32(keyspace.0);
            for (partition, root) in partitions.iter().zip(self.trees.roots(*keyspace, partitions))
            {
                roots.put_u16(partition.0);
                roots.put_u64(floors.of(*keyspace, *partition).swept.0);
                roots.put_slice(&root.to_bytes());
            }
        }
        Bytes::copy_from_slice(&xxh3_128(&roots).to_be_bytes())
    }

    fn answer_all(&self, from: NodeId, hash: &[u8]) -> ExchangeAnswer {
        let at_us = self.elapsed_us();
        let shared = self.exchange.shared_trees(&self.view.load(), from);
        let equal = self.roots_hash(&shared)[..] == *hash;
        if equal {
            for (keyspace, partitions) in &shared {
                self.exchange.verified((*keyspace, from), partitions, at_us);
            }
        }
        ExchangeAnswer { equal, ..ExchangeAnswer::default() }
    }

    fn answer_roots(&self, from: NodeId, asked: &ExchangeRoots) -> Result<ExchangeAnswer, Refusal> {
        let at_us = self.elapsed_us();
        let keyspace = KeyspaceId(asked.keyspace);
        // The asking node may know a keyspace that this one has not heard of yet.
        self.view.load().keyspace_of_id(keyspace).ok_or(Refusal::StaleLayout)?;
        let partition = |it: &u32| u16::try_from(*it).ok().map(PartitionIndex);
        let partitions = asked.partitions.iter().map(partition).collect::<Option<Vec<_>>>();
        let partitions = partitions.ok_or(Refusal::Failed)?;
        let (theirs, []) = asked.roots.as_chunks::<8>() else { return Err(Refusal::Failed) };
        let (swept, []) = asked.swept.as_chunks::<8>() else { return Err(Refusal::Failed) };
        if partitions.len() != theirs.len() || swept.len() != theirs.len() {
            return Err(Refusal::Failed);
        }
        let ours = self.trees.roots(keyspace, &partitions);
        let (mut answer, mut same) = (ExchangeAnswer::default(), Vec::new());
        let sides = partitions.iter().zip(ours.iter().zip(theirs).zip(swept));
        for (position, (partition, ((our, their), swept))) in (0..).zip(sides) {
            let floor = self.floors.of(keyspace, *partition);
            if floor.swept.0 != u64::from_be_bytes(*swept) {
                answer.apart.push(position);
                answer.floors.push(floor_message(*partition, floor));
            } else if our.short() == u64::from_be_bytes(*their) {
                same.push(*partition);
            } else {
                answer.differing.push(position);
            }
        }
        if Mutant::CompareSkipsLastLeaf.is_on() {
            answer.differing.pop_if(|last| *last as usize + 1 == partitions.len());
        }
        self.exchange.verified((keyspace, from), &same, at_us);
        match asked.claim {
            true => self.grant((keyspace, from), &partitions, &mut answer),
            // A round begins anew.
            false => self.exchange.end_claim(from, Begun::There),
        }
        Ok(answer)
    }

    /// Grants the trees that differ to the one that asks, but for those that another node has.
    fn grant(&self, pair: PairKey, partitions: &[PartitionIndex], answer: &mut ExchangeAnswer) {
        let differing: Vec<_> =
            answer.differing.iter().map(|it| partitions[*it as usize]).collect();
        let (keyspace, from) = pair;
        let claim = (from, Begun::There);
        let granted = self.exchange.claim(claim, keyspace, &differing, self.elapsed_us());
        answer.since = self.same_before(pair, &granted).0;
        let granted: BTreeSet<_> = granted.into_iter().collect();
        let is_granted = |it: &u32| granted.contains(&partitions[*it as usize]);
        (answer.differing, answer.busy) =
            std::mem::take(&mut answer.differing).into_iter().partition(is_granted);
    }

    fn answer_leaves(&self, asked: &ExchangeLeaves) -> Result<ExchangeAnswer, Refusal> {
        let keyspace = KeyspaceId(asked.keyspace);
        let (mut spans, mut bytes) = (Vec::with_capacity(asked.tilings.len()), 0);
        for tiling in &asked.tilings {
            // A whole range is an answer too: then its records tell.
            let found = match bytes < STEP_ANSWER_BYTES {
                true => self.differing_leaves(keyspace, tiling),
                false => range_of(tiling).map(|it| encode_spans(&[it])),
            };
            let found = found.ok_or(Refusal::Failed)?;
            bytes += found.len();
            spans.push(found);
        }
        Ok(ExchangeAnswer { spans, ..ExchangeAnswer::default() })
    }

    fn differing_leaves(&self, keyspace: KeyspaceId, asked: &Tiling) -> Option<Bytes> {
        let range = range_of(asked)?;
        let theirs = decode_tiling(range, &asked.leaves)?;
        let found = match self.trees.tiling(keyspace, range) {
            Some(ours) => differing(&ours, &theirs),
            // One leaf here covers more than the range: its records will tell.
            None => theirs.iter().map(|it| it.range).collect(),
        };
        Some(encode_spans(&found))
    }

    fn answer_records(&self, asked: &ExchangeRecords) -> Result<ExchangeAnswer, Refusal> {
        if asked.ranges.len() > STEP_RANGES_MAX {
            return Err(Refusal::Overloaded);
        }
        let keyspace = KeyspaceId(asked.keyspace);
        let hasher = self.trees.hasher().ok_or(Refusal::NotReady)?;
        let (mut answer, mut bytes, mut read_bytes) = (ExchangeAnswer::default(), 0, 0);
        for range in &asked.ranges {
            if bytes >= STEP_ANSWER_BYTES || read_bytes >= STEP_READ_BYTES {
                break;
            }
            let sketch = match asked.exact {
                true => None,
                false => Some(Sketch::decode(&range.sketch).ok_or(Refusal::Failed)?),
            };
            let span = Span::from_wire(keyspace, range).ok_or(Refusal::Failed)?;
            let read = span.read_for(self, &hasher, asked.salt, ANSWER_LIMITS)?;
            read_bytes += read.bytes;
            let read = read.without_purgeable(Hlc(asked.floor)).stamped_after(Hlc(asked.since));
            // Nobody knows what they were.
            let damaged = read.is_unreadable || asked.exact && read.damaged > 0;
            let differences = match &sketch {
                Some(sketch) => compare(sketch, &read.digests, read.covered_to.is_none()),
                None => name_all(&read.digests),
            };
            let (buckets, records) = differences.encode();
            bytes += buckets.len() + records.len();
            answer.differences.push(RecordDifferences {
                buckets: buckets.into(),
                records: records.into(),
                covered_to: read.covered_to.unwrap_or_default(),
                damaged,
            });
        }
        Ok(answer)
    }

    /// The records that a peer asks for, as many as fit in one block.
    pub(crate) fn answer_wanted(
        &self,
        keyspace: KeyspaceId,
        salt: u64,
        wanted: &[RecordNames],
        (width, compress): (Width, bool),
    ) -> Result<(internal::RecordBlock, Vec<internal::PartitionFloor>), Refusal> {
        if wanted.len() > STEP_RANGES_MAX {
            return Err(Refusal::Overloaded);
        }
        let hasher = self.trees.hasher().ok_or(Refusal::NotReady)?;
        // Before the reads: floors that rise meanwhile would vouch for what is overwritten by now.
        let floors = self.floors.all();
        let (mut rows, mut bytes, mut read_bytes) = (Vec::new(), 0, 0);
        for it in wanted {
            if bytes >= BLOCK_BYTES || read_bytes >= STEP_READ_BYTES {
                break;
            }
            let range = it.range.as_ref().ok_or(Refusal::Failed)?;
            let span = Span::from_wire(keyspace, range).ok_or(Refusal::Failed)?;
            let read = span.read_for(self, &hasher, salt, ANSWER_LIMITS)?;
            read_bytes += read.bytes;
            let mut names = it.names.clone();
            names.sort_unstable();
            let is_wanted =
                |digest: &RecordDigest| names.binary_search(&digest.name(width)).is_ok();
            for ((key, record), _) in
                read.rows.into_iter().zip(&read.digests).filter(|it| is_wanted(it.1))
            {
                if bytes >= BLOCK_BYTES {
                    break;
                }
                bytes += key.as_bytes().len() + record.as_bytes().len();
                rows.push((key, record));
            }
        }
        let floors = self.floors_of(&floors, keyspace, rows.iter().map(|it| &it.0));
        Ok((encode_block(rows.iter().map(|it| (&it.0, &it.1)), compress), floors))
    }

    /// This node's floors, as they were, of the partitions of some keys.
    pub(crate) fn floors_of<'a>(
        &self,
        floors: &FloorTable,
        keyspace: KeyspaceId,
        keys: impl Iterator<Item = &'a StorageKey>,
    ) -> Vec<internal::PartitionFloor> {
        let partitions: BTreeSet<_> =
            keys.filter_map(|it| self.trees.partition_of(it.token())).collect();
        let floor = |it: PartitionIndex| floor_message(it, floors.of(keyspace, it));
        partitions.into_iter().map(floor).collect()
    }
}

fn range_of(tiling: &Tiling) -> Option<TokenRange> {
    TokenRange::new(Token(tiling.first), u8::try_from(tiling.bits).ok()?)
}

fn encode_spans(ranges: &[TokenRange]) -> Bytes {
    let mut spans = BytesMut::with_capacity(9 * ranges.len());
    for it in ranges {
        spans.put_u64(it.first.0);
        spans.put_u8(it.bits);
    }
    spans.freeze()
}

/// A partition's floor for another node.
pub(crate) fn floor_message(
    partition: PartitionIndex,
    it: PartitionFloor,
) -> internal::PartitionFloor {
    internal::PartitionFloor {
        partition: partition.0.into(),
        floor: it.floor.0,
        round: it.floor_round,
        ..internal::PartitionFloor::default()
    }
}

/// A partition's floor and fence, for a node that fills its replica from this one's.
pub(crate) fn source_floor(
    partition: PartitionIndex,
    it: PartitionFloor,
) -> internal::PartitionFloor {
    internal::PartitionFloor { fence: it.fence.0, ..floor_message(partition, it) }
}

/// True if this node can compare hashes of that format.
pub(crate) fn is_known_format(format: u32) -> bool {
    format == u32::from(HASH_FORMAT)
}

/// An answer that is none.
pub(crate) fn refused(refusal: Refusal) -> ExchangeAnswer {
    let refusal = internal::Refusal::from(refusal).into();
    ExchangeAnswer { refusal, ..ExchangeAnswer::default() }
}
