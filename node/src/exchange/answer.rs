//! The answering side of an exchange: what this node holds, step by step.

use antientropy::exchange::{RecordDigest, Sketch, TokenRange, compare, decode_tiling, differing};
use antientropy::merkle::HASH_FORMAT;
use bytes::{BufMut, Bytes, BytesMut};
use model::{KeyspaceId, Mutant, NodeId, PartitionIndex, Refusal, Token};
use proto::internal::{
    self, ExchangeAnswer, ExchangeLeaves, ExchangeRecords, ExchangeRoots, RecordDifferences,
    RecordNames, Tiling, exchange_request::Step,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{BLOCK_BYTES, SharedTrees, Span, block::encode_block};
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
            Step::Settled(_) | Step::Dirty(_) | Step::Moves(_) => Err(Refusal::Failed),
        };
        answer.unwrap_or_else(refused)
    }

    /// A hash over the roots of all trees that this node shares with another one.
    pub(crate) fn roots_hash(&self, shared: &SharedTrees) -> Bytes {
        let mut roots = BytesMut::new();
        for (keyspace, partitions) in shared {
            roots.put_u32(keyspace.0);
            for (partition, root) in partitions.iter().zip(self.trees.roots(*keyspace, partitions))
            {
                roots.put_u16(partition.0);
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
        let shared = self.exchange.shared_trees(&self.view.load(), from);
        let partitions = shared.iter().find(|it| it.0 == keyspace);
        // It may know a keyspace that this node has not heard of yet.
        let (_, partitions) = partitions.ok_or(Refusal::StaleLayout)?;
        let (theirs, []) = asked.roots.as_chunks::<8>() else { return Err(Refusal::Failed) };
        let first = usize::try_from(asked.first).map_err(|_above| Refusal::Failed)?;
        let end = first.checked_add(theirs.len()).ok_or(Refusal::Failed)?;
        let partitions = partitions.get(first..end).ok_or(Refusal::StaleLayout)?;
        let ours = self.trees.roots(keyspace, partitions);
        let (mut differing, mut same) = (Vec::new(), Vec::new());
        for (position, (our, their)) in (0..).zip(ours.iter().zip(theirs)) {
            if our.short() == u64::from_be_bytes(*their) {
                same.push(partitions[position as usize]);
            } else {
                differing.push(position);
            }
        }
        if Mutant::CompareSkipsLastLeaf.is_on() {
            differing.pop_if(|last| *last as usize + 1 == partitions.len());
        }
        self.exchange.verified((keyspace, from), &same, at_us);
        Ok(ExchangeAnswer { differing, ..ExchangeAnswer::default() })
    }

    fn answer_leaves(&self, asked: &ExchangeLeaves) -> Result<ExchangeAnswer, Refusal> {
        let keyspace = KeyspaceId(asked.keyspace);
        let spans = asked.tilings.iter().map(|it| self.differing_leaves(keyspace, it));
        let spans = spans.collect::<Option<Vec<_>>>().ok_or(Refusal::Failed)?;
        Ok(ExchangeAnswer { spans, ..ExchangeAnswer::default() })
    }

    fn differing_leaves(&self, keyspace: KeyspaceId, asked: &Tiling) -> Option<Bytes> {
        let range = TokenRange::new(Token(asked.first), u8::try_from(asked.bits).ok()?)?;
        let theirs = decode_tiling(range, &asked.leaves)?;
        let found = match self.trees.tiling(keyspace, range) {
            Some(ours) => differing(&ours, &theirs),
            // One leaf here covers more than the range: its records will tell.
            None => theirs.iter().map(|it| it.range).collect(),
        };
        let mut spans = BytesMut::with_capacity(9 * found.len());
        for it in found {
            spans.put_u64(it.first.0);
            spans.put_u8(it.bits);
        }
        Some(spans.freeze())
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
            let sketch = Sketch::decode(&range.sketch).ok_or(Refusal::Failed)?;
            let span = Span::from_wire(keyspace, range).ok_or(Refusal::Failed)?;
            let read = span
                .read(&self.world.storage, &hasher, asked.salt, ANSWER_LIMITS)
                .map_err(|error| self.read_error(&error))?;
            read_bytes += read.bytes;
            let differences = compare(&sketch, &read.digests, read.covered_to.is_none());
            let (buckets, records) = differences.encode();
            bytes += buckets.len() + records.len();
            answer.differences.push(RecordDifferences {
                buckets: buckets.into(),
                records: records.into(),
                covered_to: read.covered_to.unwrap_or_default(),
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
        compress: bool,
    ) -> Result<internal::RecordBlock, Refusal> {
        if wanted.len() > STEP_RANGES_MAX {
            return Err(Refusal::Overloaded);
        }
        let hasher = self.trees.hasher().ok_or(Refusal::NotReady)?;
        let (mut rows, mut bytes, mut read_bytes) = (Vec::new(), 0, 0);
        for it in wanted {
            if bytes >= BLOCK_BYTES || read_bytes >= STEP_READ_BYTES {
                break;
            }
            let range = it.range.as_ref().ok_or(Refusal::Failed)?;
            let span = Span::from_wire(keyspace, range).ok_or(Refusal::Failed)?;
            let read = span
                .read(&self.world.storage, &hasher, salt, ANSWER_LIMITS)
                .map_err(|error| self.read_error(&error))?;
            read_bytes += read.bytes;
            let mut names = it.names.clone();
            names.sort_unstable();
            let is_wanted = |digest: &RecordDigest| names.binary_search(&digest.name()).is_ok();
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
        Ok(encode_block(rows.iter().map(|it| (&it.0, &it.1)), compress))
    }
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
