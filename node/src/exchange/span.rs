//! The records of a range, as an exchange reads them: verified, digested, and never more than fits.

use antientropy::exchange::{RecordDigest, TokenRange};
use antientropy::merkle::RecordHasher;
use bytes::Bytes;
use model::{Hlc, KeyspaceId, Record, Refusal, StorageKey, Token};
use proto::internal::RecordRange;

use crate::damage::DamageBoard;
use crate::replica::decode_stored;
use crate::shared::Shared;
use crate::storage::{RangeRequest, Space, Storage, StorageError};

/// A range of tokens, or a part of one: a partition key with more rows than are read at once has one
/// token for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The keyspace.
    pub(crate) keyspace: KeyspaceId,
    /// The tokens.
    pub(crate) range: TokenRange,
    /// The first storage key, inclusive; empty for the range's own.
    pub(crate) from: Bytes,
    /// The end, exclusive; empty for the range's own.
    pub(crate) until: Bytes,
}

impl Span {
    /// A whole range.
    pub(crate) fn whole(keyspace: KeyspaceId, range: TokenRange) -> Self {
        Self { keyspace, range, from: Bytes::new(), until: Bytes::new() }
    }

    /// What a peer asked for; `None` if there is no such range.
    pub(crate) fn from_wire(keyspace: KeyspaceId, range: &RecordRange) -> Option<Self> {
        let tokens = TokenRange::new(Token(range.first), u8::try_from(range.bits).ok()?)?;
        let (from, until) = (range.from.clone(), range.until.clone());
        Some(Self { keyspace, range: tokens, from, until })
    }

    /// As a peer is asked for it.
    pub(crate) fn to_wire(&self, sketch: Vec<u8>) -> RecordRange {
        RecordRange {
            first: self.range.first.0,
            bits: self.range.bits.into(),
            from: self.from.clone(),
            until: self.until.clone(),
            sketch: sketch.into(),
        }
    }

    /// What of the span comes behind a storage key.
    pub(crate) fn behind(&self, key: &[u8]) -> Self {
        Self { from: [key, &[0]].concat().into(), ..self.clone() }
    }

    /// The span up to a storage key, inclusive.
    pub(crate) fn up_to(&self, key: &[u8]) -> Self {
        Self { until: [key, &[0]].concat().into(), ..self.clone() }
    }

    fn request(&self, rows_max: usize, bytes_max: usize) -> RangeRequest {
        let (first, end) =
            StorageKey::token_range(self.keyspace, self.range.first, self.range.last());
        // A peer may name any bounds: never beyond the range.
        let start = first.max(self.from.clone());
        let until = Some(self.until.clone()).filter(|it| !it.is_empty());
        let end = match (end, until) {
            (Some(end), Some(until)) => Some(end.min(until)),
            (end, until) => end.or(until),
        };
        RangeRequest { space: Space::Data, start, end, reverse: false, rows_max, bytes_max }
    }

    /// Reads the span's records until so many rows or about so many bytes; notes which are damaged. Of a span
    /// that storage cannot read there are none: others are compared all the same.
    pub(crate) fn read_for(
        &self,
        shared: &Shared,
        hasher: &RecordHasher,
        salt: u64,
        limits: (usize, usize),
    ) -> Result<SpanRecords, Refusal> {
        let read = self.read(&shared.world.storage, hasher, salt, limits, &shared.damage);
        read.or_else(|error| match shared.read_error(&error) {
            Refusal::Corrupt => {
                Ok(SpanRecords { damaged: 1, is_unreadable: true, ..SpanRecords::default() })
            }
            refusal => Err(refusal),
        })
    }

    /// Reads the span's records until so many rows or about so many bytes; notes which are damaged.
    fn read(
        &self,
        storage: &impl Storage,
        hasher: &RecordHasher,
        salt: u64,
        (rows_max, bytes_max): (usize, usize),
        damage: &DamageBoard,
    ) -> Result<SpanRecords, StorageError> {
        let request = self.request(rows_max, bytes_max);
        if request.end.as_ref().is_some_and(|end| *end <= request.start) {
            return Ok(SpanRecords::default());
        }
        let page = storage.range(&request)?;
        let mut read = SpanRecords::default();
        let last = page.rows.last().map(|it| it.0.clone());
        read.covered_to = last.filter(|_| page.more);
        for (row, value) in page.rows {
            read.bytes += row.len() + value.len();
            let Some(key) = StorageKey::parse(row) else {
                read.damaged += 1;
                continue;
            };
            match decode_stored(&key, value) {
                Ok(stored) => {
                    read.digests.push(RecordDigest::new(salt, hasher, &key, &stored.record));
                    read.rows.push((key, stored.record));
                }
                // It takes no part: the other side names what it holds for the key.
                Err(error) => {
                    tracing::error!(token = %key.token(), %error, "a stored record is damaged");
                    read.damaged += 1;
                    damage.note(&key);
                }
            }
        }
        Ok(read)
    }
}

/// Records of a span, in the order of their keys.
#[derive(Default)]
pub(crate) struct SpanRecords {
    /// Keys and records.
    pub(crate) rows: Vec<(StorageKey, Record)>,
    /// The digest of each.
    pub(crate) digests: Vec<RecordDigest>,
    /// What was read, in bytes.
    pub(crate) bytes: usize,
    /// Rows that failed their checksum.
    pub(crate) damaged: usize,
    /// Storage cannot read the span at all.
    pub(crate) is_unreadable: bool,
    /// The last storage key that was read, if there are more behind it.
    pub(crate) covered_to: Option<Bytes>,
}

impl SpanRecords {
    /// Leaves out what is purgeable at a floor.
    pub(crate) fn without_purgeable(self, floor: Hlc) -> Self {
        self.retain(|it| !it.purgeable_at(floor))
    }

    /// Keeps what was stamped later. What is damaged is of any age: who compares everything meets it.
    pub(crate) fn stamped_after(self, since: Hlc) -> Self {
        match since {
            Hlc::ZERO => self,
            _ => Self { damaged: 0, ..self.retain(|it| it.version().hlc > since) },
        }
    }

    fn retain(mut self, keeps: impl Fn(&Record) -> bool) -> Self {
        let kept: Vec<bool> = self.rows.iter().map(|it| keeps(&it.1)).collect();
        if kept.contains(&false) {
            let mut at = kept.iter().copied();
            self.rows.retain(|_| at.next().unwrap_or(true));
            let mut at = kept.iter().copied();
            self.digests.retain(|_| at.next().unwrap_or(true));
        }
        self
    }

    /// Keeps what lies up to a storage key, inclusive.
    pub(crate) fn truncate(&mut self, key: &[u8]) {
        let kept = self.rows.partition_point(|it| it.0.as_bytes()[..] <= *key);
        self.rows.truncate(kept);
        self.digests.truncate(kept);
    }
}
