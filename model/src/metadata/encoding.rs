//! The encoding of the metadata, on disk and between nodes: frozen, for its hash names it.

use std::sync::Arc;

use super::{Metadata, MetadataHash};
use crate::{
    ClusterId, ConflictType, ConsistencyLevel, DecodeError, Keyspace, KeyspaceId, Layout, Reader,
    ReplicaSet, Writer,
};

const FORMAT: u8 = 1;
/// Bytes of a keyspace's name that are decoded, whatever the limit for new ones is.
const NAME_BYTES_MAX: usize = 255;
const LAST_WRITER_WINS: u8 = 1;

pub(super) fn encode(it: &Metadata) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(FORMAT).u128(it.cluster.0).raw(&it.cluster_key);
    writer.u64(it.sequence).u128(it.parent.0).bytes(&it.layout.encode());
    writer.u32(it.next_keyspace_id).count(it.keyspaces.len());
    for keyspace in &it.keyspaces {
        write_keyspace(&mut writer, keyspace);
    }
    writer.finish()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Metadata, DecodeError> {
    let (what, limit) = ("bytes of metadata", Metadata::BYTES_MAX);
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge { what, limit, actual: bytes.len() });
    }
    let mut reader = Reader::new(bytes);
    reader.format("metadata", FORMAT)?;
    let cluster = ClusterId(reader.u128()?);
    let cluster_key = reader.array()?;
    let sequence = reader.u64()?;
    let parent = MetadataHash(reader.u128()?);
    let layout = Layout::decode(reader.bytes("layout", Layout::BYTES_MAX)?)?;
    let next_keyspace_id = reader.u32()?;
    let count = reader.count("keyspaces", Metadata::KEYSPACES_MAX)?;
    let keyspaces =
        (0..count).map(|_| read_keyspace(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    reader.finish()?;

    let invalid = DecodeError::Invalid { what: "metadata" };
    let sorted = keyspaces.windows(2).all(|it| it[0].name < it[1].name);
    let mut ids: Vec<_> = keyspaces.iter().map(|it| it.id.0).collect();
    ids.sort_unstable();
    let distinct = ids.windows(2).all(|it| it[0] < it[1]);
    let given = ids.iter().all(|it| (1..next_keyspace_id).contains(it));
    let numbered =
        (1..u64::MAX).contains(&sequence) && (sequence == 1) == (parent == MetadataHash::NONE);
    if !sorted || !distinct || !given || !numbered {
        return Err(invalid);
    }
    let layout = Arc::new(layout);
    let it = Metadata::hashed(
        cluster,
        cluster_key,
        sequence,
        parent,
        layout,
        keyspaces,
        next_keyspace_id,
    );
    it.check_shape().ok().ok_or(invalid)?;
    Ok(it)
}

fn write_keyspace(writer: &mut Writer, it: &Keyspace) {
    writer.u32(it.id.0).str(&it.name).count(it.replicas.len());
    for (datacenter, replicas) in &it.replicas {
        writer.str(datacenter).u8(*replicas);
    }
    write_level(writer, it.read_level);
    write_level(writer, it.write_level);
    writer.bool(it.default_ttl_seconds.is_some()).u64(it.default_ttl_seconds.unwrap_or(0));
    writer.bool(it.require_overlap).bool(it.allow_any);
    writer.u8(match it.conflict {
        ConflictType::LastWriterWins => LAST_WRITER_WINS,
    });
}

fn read_keyspace(reader: &mut Reader<'_>) -> Result<Keyspace, DecodeError> {
    let id = KeyspaceId(reader.u32()?);
    let name = reader.str("keyspace name", NAME_BYTES_MAX)?.to_owned();
    let count = reader.count("datacenters of a keyspace", ReplicaSet::REPLICAS_MAX)?;
    let mut replicas = Vec::new();
    for _ in 0..count {
        let datacenter = reader.str("datacenter", Layout::NAME_BYTES_MAX)?;
        replicas.push((datacenter.to_owned(), reader.u8()?));
    }
    Ok(Keyspace {
        id,
        name,
        replicas,
        read_level: read_level(reader)?,
        write_level: read_level(reader)?,
        default_ttl_seconds: read_ttl(reader)?,
        require_overlap: reader.bool("require_overlap")?,
        allow_any: reader.bool("allow_any")?,
        conflict: match reader.u8()? {
            LAST_WRITER_WINS => ConflictType::LastWriterWins,
            _ => return Err(DecodeError::Invalid { what: "conflict type" }),
        },
    })
}

fn read_ttl(reader: &mut Reader<'_>) -> Result<Option<u64>, DecodeError> {
    match (reader.bool("default TTL")?, reader.u64()?) {
        (true, seconds) => Ok(Some(seconds)),
        (false, 0) => Ok(None),
        (false, _) => Err(DecodeError::Invalid { what: "default TTL" }),
    }
}

/// A byte for the level and one for its count, zero for named levels.
fn write_level(writer: &mut Writer, it: ConsistencyLevel) {
    let (tag, count) = match it {
        ConsistencyLevel::Any => (1, 0),
        ConsistencyLevel::One => (2, 0),
        ConsistencyLevel::Two => (3, 0),
        ConsistencyLevel::Three => (4, 0),
        ConsistencyLevel::Quorum => (5, 0),
        ConsistencyLevel::All => (6, 0),
        ConsistencyLevel::LocalOne => (7, 0),
        ConsistencyLevel::LocalQuorum => (8, 0),
        ConsistencyLevel::EachQuorum => (9, 0),
        ConsistencyLevel::Count(count) => (10, count),
    };
    writer.u8(tag).u8(count);
}

fn read_level(reader: &mut Reader<'_>) -> Result<ConsistencyLevel, DecodeError> {
    Ok(match (reader.u8()?, reader.u8()?) {
        (1, 0) => ConsistencyLevel::Any,
        (2, 0) => ConsistencyLevel::One,
        (3, 0) => ConsistencyLevel::Two,
        (4, 0) => ConsistencyLevel::Three,
        (5, 0) => ConsistencyLevel::Quorum,
        (6, 0) => ConsistencyLevel::All,
        (7, 0) => ConsistencyLevel::LocalOne,
        (8, 0) => ConsistencyLevel::LocalQuorum,
        (9, 0) => ConsistencyLevel::EachQuorum,
        (10, count) => ConsistencyLevel::Count(count),
        _ => return Err(DecodeError::Invalid { what: "consistency level" }),
    })
}
