//! The encoding of a layout, on disk and between nodes: frozen, for its hash names the layout.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::{Assignment, Layout, NodeDescription, datacenters_of};
use crate::{DecodeError, NodeId, NodeIndex, Reader, Writer};

const FORMAT: u8 = 1;
const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// Datacenters are not written: they are those of the nodes.
pub(super) fn encode(it: &Layout) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(FORMAT).u64(it.version).u32(it.partitions).count(it.nodes.len());
    for node in &it.nodes {
        writer.u128(node.id.0).str(&node.datacenter).str(&node.rack);
        write_address(&mut writer, node.client_address);
        write_address(&mut writer, node.peer_address);
        writer.u32(node.capacity);
    }
    for lists in &it.assignment {
        let length = lists.first().map_or(0, Vec::len);
        writer.u8(u8::try_from(length).expect("at most 7"));
        for node in lists.iter().flatten() {
            writer.u16(node.0);
        }
    }
    writer.finish()
}

/// Reads a layout, and checks it whole.
pub(super) fn decode(bytes: &[u8]) -> Result<Layout, DecodeError> {
    let (what, limit) = ("bytes of a layout", Layout::BYTES_MAX);
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge { what, limit, actual: bytes.len() });
    }
    let reader = &mut Reader::new(bytes);
    reader.format("layout", FORMAT)?;
    let version = reader.u64()?;
    let partitions = reader.u32()?;
    if partitions > Layout::PARTITIONS_MAX {
        return Err(DecodeError::Invalid { what: "layout: partitions" });
    }
    let count = reader.count("nodes", Layout::NODES_MAX)?;
    let nodes = (0..count).map(|_| read_node(reader)).collect::<Result<Vec<_>, _>>()?;
    let invalid = DecodeError::Invalid { what: "layout" };
    let datacenters = datacenters_of(&nodes).ok().ok_or(invalid.clone())?.len();
    let mut assignment = Assignment::new();
    for _ in 0..datacenters {
        let length = usize::from(reader.u8()?);
        let mut lists = Vec::new();
        for _ in 0..partitions {
            let list = (0..length).map(|_| reader.u16().map(NodeIndex));
            lists.push(list.collect::<Result<Vec<_>, _>>()?);
        }
        assignment.push(lists);
    }
    reader.clone().finish()?;
    Layout::new(version, partitions, nodes, assignment).ok().ok_or(invalid)
}

fn read_node(reader: &mut Reader<'_>) -> Result<NodeDescription, DecodeError> {
    let limit = Layout::NAME_BYTES_MAX;
    Ok(NodeDescription {
        id: NodeId(reader.u128()?),
        datacenter: reader.str("datacenter", limit)?.to_owned(),
        rack: reader.str("rack", limit)?.to_owned(),
        client_address: read_address(reader)?,
        peer_address: read_address(reader)?,
        capacity: reader.u32()?,
    })
}

fn write_address(writer: &mut Writer, it: SocketAddr) {
    match it {
        SocketAddr::V4(it) => writer.u8(IPV4).raw(&it.ip().octets()).u16(it.port()),
        SocketAddr::V6(it) => {
            let writer = writer.u8(IPV6).raw(&it.ip().octets()).u16(it.port());
            writer.u32(it.flowinfo()).u32(it.scope_id())
        }
    };
}

fn read_address(reader: &mut Reader<'_>) -> Result<SocketAddr, DecodeError> {
    match reader.u8()? {
        IPV4 => {
            let ip = Ipv4Addr::from(reader.array::<4>()?);
            Ok(SocketAddr::new(IpAddr::V4(ip), reader.u16()?))
        }
        IPV6 => {
            let ip = Ipv6Addr::from(reader.array::<16>()?);
            let (port, flow) = (reader.u16()?, reader.u32()?);
            Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, reader.u32()?)))
        }
        _ => Err(DecodeError::Invalid { what: "address" }),
    }
}
