//! Records on their way between two nodes that compare: one block, compressed where the way is long.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lz4_flex::block;
use model::{Mutant, Record, RecordError, StorageKey};
use proto::internal::RecordBlock;

/// A block is closed when it holds so many bytes.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;

/// Less is not worth the processor's time.
const COMPRESS_BYTES_MIN: usize = 1 << 10;

/// Why a block is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockError {
    /// More than any node sends.
    #[error("the block has {actual} bytes; at most {limit} are allowed")]
    TooLarge {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes it says it has.
        actual: usize,
    },
    /// It does not decompress to what it says.
    #[error("the block cannot be decompressed")]
    Compression,
    /// Lengths and keys make no sense.
    #[error("the block is malformed")]
    Malformed,
    /// A record is damaged.
    #[error("a record of the block is damaged: {0}")]
    Record(#[from] RecordError),
}

/// Puts records into a block.
pub(crate) fn encode_block<'a>(
    rows: impl Iterator<Item = (&'a StorageKey, &'a Record)>,
    compress: bool,
) -> RecordBlock {
    let mut bytes = BytesMut::new();
    for (key, record) in rows {
        put_length(&mut bytes, key.as_bytes().len());
        put_length(&mut bytes, record.as_bytes().len());
        bytes.put_slice(key.as_bytes());
        bytes.put_slice(record.as_bytes());
    }
    if compress && bytes.len() >= COMPRESS_BYTES_MIN && !Mutant::FarUncompressed.is_on() {
        let compressed = block::compress(&bytes);
        if compressed.len() < bytes.len() {
            let rows_bytes = u32::try_from(bytes.len()).expect("a block and one record");
            return RecordBlock { rows: compressed.into(), rows_bytes };
        }
    }
    RecordBlock { rows: bytes.freeze(), rows_bytes: 0 }
}

/// Takes the records out of a block of at most so many bytes, all of them checked.
pub(crate) fn decode_block(
    block: RecordBlock,
    bytes_max: usize,
) -> Result<Vec<(StorageKey, Record)>, BlockError> {
    let actual = usize::try_from(block.rows_bytes).unwrap_or(usize::MAX).max(block.rows.len());
    if actual > bytes_max {
        return Err(BlockError::TooLarge { limit: bytes_max, actual });
    }
    let mut bytes = match block.rows_bytes {
        0 => block.rows,
        _ => decompress(&block.rows, actual)?,
    };
    let mut rows = Vec::new();
    while bytes.has_remaining() {
        if bytes.len() < 8 {
            return Err(BlockError::Malformed);
        }
        let (key, record) = (take_length(&mut bytes), take_length(&mut bytes));
        if key.saturating_add(record) > bytes.len() {
            return Err(BlockError::Malformed);
        }
        let key = StorageKey::parse(bytes.split_to(key)).ok_or(BlockError::Malformed)?;
        let record = Record::check(&key, bytes.split_to(record))?;
        rows.push((key, record));
    }
    Ok(rows)
}

fn decompress(bytes: &[u8], rows_bytes: usize) -> Result<Bytes, BlockError> {
    let rows = block::decompress(bytes, rows_bytes).map_err(|_why| BlockError::Compression)?;
    if rows.len() != rows_bytes {
        return Err(BlockError::Compression);
    }
    Ok(rows.into())
}

fn put_length(bytes: &mut BytesMut, length: usize) {
    bytes.put_u32(u32::try_from(length).expect("keys and records are far smaller"));
}

fn take_length(bytes: &mut Bytes) -> usize {
    usize::try_from(bytes.get_u32()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use model::{Hlc, Key, KeyspaceId, RequestId, Version};

    use super::*;

    fn rows() -> Vec<(StorageKey, Record)> {
        let row = |number: u64| {
            let key = Key::new(number.to_be_bytes().to_vec());
            let key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
            let version = Version { hlc: Hlc(number), request: RequestId(1) };
            let record = Record::encode(&key, version, 0, Some(&[b'x'; 100]));
            (key, record)
        };
        (1..50).map(row).collect()
    }

    fn block(compress: bool) -> RecordBlock {
        let rows = rows();
        encode_block(rows.iter().map(|it| (&it.0, &it.1)), compress)
    }

    #[test]
    fn survives_the_way() {
        assert_eq!(decode_block(block(false), 1 << 20), Ok(rows()));
        assert_eq!(decode_block(block(true), 1 << 20), Ok(rows()));
        assert!(block(true).rows.len() < block(false).rows.len());
        assert_eq!(decode_block(RecordBlock::default(), 0), Ok(Vec::new()));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_unpacked() {
        let huge = RecordBlock { rows_bytes: u32::MAX, ..block(true) };
        let (limit, actual) = (1 << 20, u32::MAX as usize);
        assert_eq!(decode_block(huge, limit), Err(BlockError::TooLarge { limit, actual }));
        assert!(matches!(decode_block(block(false), 100), Err(BlockError::TooLarge { .. })));
    }

    #[test]
    fn damage_is_found() {
        for compress in [false, true] {
            let whole = block(compress);
            for at in 0..whole.rows.len() {
                let mut bytes = whole.rows.to_vec();
                bytes[at] ^= 1;
                let damaged = RecordBlock { rows: bytes.into(), ..whole.clone() };
                // Some bits of a compressed run change nothing.
                let taken = decode_block(damaged, 1 << 20);
                assert!(taken.is_err() || compress && taken == Ok(rows()), "byte {at}");
            }
            let cut = RecordBlock { rows: whole.rows.slice(..whole.rows.len() - 1), ..whole };
            assert!(decode_block(cut, 1 << 20).is_err());
        }
    }
}
