//! The records of one range, told apart by few bytes.

use model::{Hlc, Record, StorageKey};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::merkle::RecordHasher;

/// A record as the comparison sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordDigest {
    /// A salted hash of the key.
    key: u64,
    /// A salted hash of the record.
    fold: u16,
    /// The clock of its version.
    hlc: Hlc,
}

impl RecordDigest {
    /// The digest of a record.
    pub fn new(salt: u64, hasher: &RecordHasher, key: &StorageKey, record: &Record) -> Self {
        let hash = hasher.hash(key, record).to_bytes();
        let [.., high, low] = xxh3_64_with_seed(&hash, salt).to_be_bytes();
        Self {
            key: hash_of(salt, key),
            fold: u16::from_be_bytes([high, low]),
            hlc: record.version().hlc,
        }
    }

    /// The name by which one side asks the other for the record.
    pub fn name(&self) -> u32 {
        name(self.key)
    }

    fn bucket(&self, bits: u32) -> usize {
        let bucket = self.key.checked_shr(64 - bits).unwrap_or(0);
        usize::try_from(bucket).expect("few buckets")
    }
}

/// The name of a key's record, whatever its version.
pub fn name_of(salt: u64, key: &StorageKey) -> u32 {
    name(hash_of(salt, key))
}

fn hash_of(salt: u64, key: &StorageKey) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), salt)
}

fn name(hash: u64) -> u32 {
    let [.., a, b, c, d] = hash.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Hashes of the records of a range, by bucket. Their number is a power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch(Vec<u16>);

/// Records of one bucket, on average: naming a bucket's records costs about as much as the bucket.
const BUCKET_RECORDS: usize = 4;
const BUCKETS_MAX: usize = 256;
/// The most bytes of an encoded sketch.
pub const SKETCH_BYTES_MAX: usize = 2 * BUCKETS_MAX;

impl Sketch {
    /// The sketch of some records, with as many buckets as suit them.
    pub fn new(records: &[RecordDigest]) -> Self {
        let buckets = records.len().div_ceil(BUCKET_RECORDS).next_power_of_two();
        Self::with_buckets(records, buckets.min(BUCKETS_MAX))
    }

    fn with_buckets(records: &[RecordDigest], buckets: usize) -> Self {
        let mut sketch = Self(vec![0; buckets]);
        let bits = sketch.bits();
        records.iter().for_each(|it| sketch.0[it.bucket(bits)] ^= it.fold);
        sketch
    }

    fn bits(&self) -> u32 {
        self.0.len().trailing_zeros()
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|it| it.to_be_bytes()).collect()
    }

    /// What was sent; `None` if that is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (folds, []) = bytes.as_chunks() else { return None };
        let fits = folds.len().is_power_of_two() && folds.len() <= BUCKETS_MAX;
        fits.then(|| Self(folds.iter().map(|it| u16::from_be_bytes(*it)).collect()))
    }
}

/// A record named to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedRecord {
    /// Its [`RecordDigest::name`].
    pub name: u32,
    /// The clock of its version.
    pub hlc: Hlc,
    /// A salted hash of it.
    pub fold: u16,
}

impl NamedRecord {
    const BYTES: usize = 4 + 8 + 2;
}

/// What the side that was asked finds different.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Differences {
    /// One bit per bucket of the sketch: set if it differs. Empty if all may.
    buckets: Vec<u8>,
    /// What the answering side holds in those.
    pub records: Vec<NamedRecord>,
}

/// Compares a sketch with records. `whole` is false if there are more of them than could be read: then
/// every bucket may differ.
pub fn compare(sketch: &Sketch, records: &[RecordDigest], whole: bool) -> Differences {
    let own = Sketch::with_buckets(records, sketch.0.len());
    let mut differences = Differences::default();
    if whole {
        differences.buckets = vec![0; sketch.0.len().div_ceil(8)];
        let unequal = sketch.0.iter().zip(&own.0).enumerate().filter(|(_, (a, b))| a != b);
        unequal.for_each(|(bucket, _)| differences.buckets[bucket / 8] |= 1 << (bucket % 8));
    }
    let bits = sketch.bits();
    let named = records.iter().filter(|it| differences.has(it.bucket(bits)));
    differences.records =
        named.map(|it| NamedRecord { name: it.name(), hlc: it.hlc, fold: it.fold }).collect();
    differences
}

impl Differences {
    fn has(&self, bucket: usize) -> bool {
        self.buckets.is_empty()
            || self.buckets.get(bucket / 8).is_some_and(|it| it & 1 << (bucket % 8) != 0)
    }

    /// True if nothing differs.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && !self.buckets.is_empty()
            && self.buckets.iter().all(|it| *it == 0)
    }

    /// As they are sent: buckets, and records.
    pub fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let mut records = Vec::with_capacity(self.records.len() * NamedRecord::BYTES);
        for it in &self.records {
            records.extend_from_slice(&it.name.to_be_bytes());
            records.extend_from_slice(&it.hlc.0.to_be_bytes());
            records.extend_from_slice(&it.fold.to_be_bytes());
        }
        (self.buckets.clone(), records)
    }

    /// What was sent; `None` if that makes no sense.
    pub fn decode(buckets: &[u8], records: &[u8]) -> Option<Self> {
        let (records, []) = records.as_chunks::<{ NamedRecord::BYTES }>() else { return None };
        let named = |[a, b, c, d, hlc @ .., high, low]: &[u8; NamedRecord::BYTES]| NamedRecord {
            name: u32::from_be_bytes([*a, *b, *c, *d]),
            hlc: Hlc(u64::from_be_bytes(*hlc)),
            fold: u16::from_be_bytes([*high, *low]),
        };
        Some(Self { buckets: buckets.to_vec(), records: records.iter().map(named).collect() })
    }
}

/// What is to be moved, so that both sides hold the newer record of each key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Moves {
    /// Indexes of our records that the other side lacks.
    pub push: Vec<usize>,
    /// Names of its records that we lack.
    pub fetch: Vec<u32>,
    /// How many records differ and are too young to be moved: they are on their way.
    pub young: usize,
}

/// Decides what moves. `ours` are the records that `sketch` was made of, as far as the answer covers
/// them; nothing above `cutoff` is moved.
pub fn decide(
    ours: &[RecordDigest],
    sketch: &Sketch,
    differences: &Differences,
    cutoff: Hlc,
) -> Moves {
    let mut moves = Moves::default();
    let bits = sketch.bits();
    let mut theirs: Vec<&NamedRecord> = differences.records.iter().collect();
    theirs.sort_by_key(|it| it.name);
    let mut met = vec![false; theirs.len()];
    let named = ours.iter().enumerate().filter(|(_, it)| differences.has(it.bucket(bits)));
    for (at, our) in named {
        let their = theirs.binary_search_by_key(&our.name(), |it| it.name).ok();
        let (mut push, mut fetch) = (true, false);
        if let Some(their) = their {
            met[their] = true;
            let their = theirs[their];
            let unequal = our.fold != their.fold;
            push = our.hlc > their.hlc || our.hlc == their.hlc && unequal;
            fetch = our.hlc < their.hlc || our.hlc == their.hlc && unequal;
            moves.young += usize::from(fetch && their.hlc > cutoff);
            if fetch && their.hlc <= cutoff {
                moves.fetch.push(their.name);
            }
        }
        moves.young += usize::from(push && !fetch && our.hlc > cutoff);
        if push && our.hlc <= cutoff {
            moves.push.push(at);
        }
    }
    for (their, _) in theirs.iter().zip(met).filter(|(_, met)| !met) {
        if their.hlc <= cutoff {
            moves.fetch.push(their.name);
        } else {
            moves.young += 1;
        }
    }
    moves
}
