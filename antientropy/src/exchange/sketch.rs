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
    record: u64,
    /// The clock of its version.
    hlc: Hlc,
}

impl RecordDigest {
    /// The digest of a record.
    pub fn new(salt: u64, hasher: &RecordHasher, key: &StorageKey, record: &Record) -> Self {
        let hash = hasher.hash(key, record).to_bytes();
        Self {
            key: hash_of(salt, key),
            record: xxh3_64_with_seed(&hash, salt),
            hlc: record.version().hlc,
        }
    }

    /// The name by which one side asks the other for the record.
    pub fn name(&self, width: Width) -> u64 {
        width.name(self.key)
    }

    fn named(&self, width: Width) -> NamedRecord {
        NamedRecord { name: self.name(width), hlc: self.hlc, record: width.record(self.record) }
    }

    fn bucket(&self, bits: u32) -> usize {
        let bucket = self.key.checked_shr(64 - bits).unwrap_or(0);
        usize::try_from(bucket).expect("few buckets")
    }
}

/// The name of a key's record, whatever its version.
pub fn name_of(salt: u64, key: &StorageKey, width: Width) -> u64 {
    width.name(hash_of(salt, key))
}

fn hash_of(salt: u64, key: &StorageKey) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), salt)
}

/// How much of the hashes is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Width {
    /// As little as mostly suffices: what is mistaken is found with another salt.
    #[default]
    Short,
    /// All: nothing is mistaken, and what was found equal is.
    Exact,
}

impl Width {
    fn name(self, hash: u64) -> u64 {
        if self == Self::Exact { hash } else { hash & u64::from(u32::MAX) }
    }

    fn record(self, hash: u64) -> u64 {
        if self == Self::Exact { hash } else { hash & u64::from(u16::MAX) }
    }
}

/// Hashes of the records of a range, by bucket. Their number is a power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch(Vec<u16>);

/// Records of one bucket, on average: naming a bucket's records costs about as much as the bucket.
const BUCKET_RECORDS: usize = 4;
const BUCKETS_MAX: usize = 256;

impl Sketch {
    /// The sketch of some records, with as many buckets as suit them.
    pub fn new(records: &[RecordDigest]) -> Self {
        let buckets = records.len().div_ceil(BUCKET_RECORDS).next_power_of_two();
        Self::with_buckets(records, buckets.min(BUCKETS_MAX))
    }

    fn with_buckets(records: &[RecordDigest], buckets: usize) -> Self {
        let mut sketch = Self(vec![0; buckets]);
        let bits = sketch.bits();
        let fold = |it: &RecordDigest| it.record.to_be_bytes();
        for it in records {
            let [.., high, low] = fold(it);
            sketch.0[it.bucket(bits)] ^= u16::from_be_bytes([high, low]);
        }
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
    pub name: u64,
    /// The clock of its version.
    pub hlc: Hlc,
    /// A salted hash of it.
    pub record: u64,
}

const SHORT_BYTES: usize = 4 + 8 + 2;
const EXACT_BYTES: usize = 8 + 8 + 8;

/// What the side that was asked finds different.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Differences {
    /// One bit per bucket of the sketch: set if it differs. Empty if all may.
    buckets: Vec<u8>,
    /// What the answering side holds in those.
    pub records: Vec<NamedRecord>,
    width: Width,
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
    differences.records = named.map(|it| it.named(Width::Short)).collect();
    differences
}

/// Names all records, exactly.
pub fn name_all(records: &[RecordDigest]) -> Differences {
    let records = records.iter().map(|it| it.named(Width::Exact)).collect();
    Differences { buckets: Vec::new(), records, width: Width::Exact }
}

impl Differences {
    fn has(&self, bucket: usize) -> bool {
        self.buckets.is_empty()
            || self.buckets.get(bucket / 8).is_some_and(|it| it & 1 << (bucket % 8) != 0)
    }

    /// As they are sent: buckets, and records.
    pub fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let mut records = Vec::with_capacity(self.records.len() * EXACT_BYTES);
        for it in &self.records {
            let (name, record) = (it.name.to_be_bytes(), it.record.to_be_bytes());
            let [skipped_name, skipped_record] = match self.width {
                Width::Short => [4, 6],
                Width::Exact => [0, 0],
            };
            records.extend_from_slice(&name[skipped_name..]);
            records.extend_from_slice(&it.hlc.0.to_be_bytes());
            records.extend_from_slice(&record[skipped_record..]);
        }
        (self.buckets.clone(), records)
    }

    /// What was sent; `None` if that makes no sense.
    pub fn decode(buckets: &[u8], records: &[u8], width: Width) -> Option<Self> {
        let records = match width {
            Width::Short => {
                let (records, []) = records.as_chunks::<SHORT_BYTES>() else { return None };
                records.iter().map(short).collect()
            }
            Width::Exact => {
                let (records, []) = records.as_chunks::<EXACT_BYTES>() else { return None };
                records.iter().map(exact).collect()
            }
        };
        Some(Self { buckets: buckets.to_vec(), records, width })
    }
}

fn short([a, b, c, d, hlc @ .., high, low]: &[u8; SHORT_BYTES]) -> NamedRecord {
    NamedRecord {
        name: u32::from_be_bytes([*a, *b, *c, *d]).into(),
        hlc: Hlc(u64::from_be_bytes(*hlc)),
        record: u16::from_be_bytes([*high, *low]).into(),
    }
}

fn exact(bytes: &[u8; EXACT_BYTES]) -> NamedRecord {
    let (fields, _) = bytes.as_chunks::<8>();
    let field = |at: usize| u64::from_be_bytes(fields[at]);
    NamedRecord { name: field(0), hlc: Hlc(field(1)), record: field(2) }
}

/// What is to be moved, so that both sides hold the newer record of each key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Moves {
    /// Indexes of our records that the other side lacks.
    pub push: Vec<usize>,
    /// Names of its records that we lack.
    pub fetch: Vec<u64>,
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
        let our = our.named(differences.width);
        let Ok(place) = theirs.binary_search_by_key(&our.name, |it| it.name) else {
            moves.push.extend((our.hlc <= cutoff).then_some(at));
            continue;
        };
        met[place] = true;
        let their = theirs[place];
        // Of two records with one clock the versions' request ids decide: each side is shown the other's.
        let differs = our.hlc != their.hlc || our.record != their.record;
        if differs && our.hlc >= their.hlc && our.hlc <= cutoff {
            moves.push.push(at);
        }
        if differs && our.hlc <= their.hlc && their.hlc <= cutoff {
            moves.fetch.push(their.name);
        }
    }
    let unmet = theirs.iter().zip(met).filter(|(their, met)| !met && their.hlc <= cutoff);
    moves.fetch.extend(unmet.map(|(their, _)| their.name));
    moves
}
