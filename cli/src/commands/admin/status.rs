//! `quorate admin status`: who is in the cluster and who is up, a block for each datacenter.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use client::Admin;
use proto::v1;
use serde::Serialize;

use super::{convergence::OwnConvergence, look, spell_hash, spell_id, spell_level, spell_replicas};
use crate::{
    connect::fail,
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
    values::{spell_count, spell_duration},
};

/// Show who is in the cluster, who is up, and its keyspaces
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Every node answers as it sees the cluster itself. The two letters before a node:
  U up, D down (the answering node cannot reach it)
  N normal (in the layout), J joining (not in the layout)")]
pub(crate) struct StatusArgs {}

/// Asks one node for its view and shows it.
pub(super) async fn run(admin: &Admin, output: Output) -> Result<(), Failure> {
    let status = admin.status().await.map_err(|error| fail(&error, &look()))?;
    let mut document = StatusDocument::new(&status);
    document.convergence = OwnConvergence::of(&status, admin).await;
    if output.is_json() { output.document(&document) } else { document.show(output) }
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Serialize)]
struct StatusDocument {
    cluster_id: String,
    answered_by: String,
    layout_version: u64,
    layout_hash: String,
    partitions: u32,
    metadata_sequence: u64,
    /// What the answering node makes of its wall clock.
    clock_state: String,
    nodes: Vec<NodeDocument>,
    keyspaces: Vec<KeyspaceDocument>,
    /// What the answering node has in common with the others, and keeps for them.
    convergence: Option<OwnConvergence>,
    counters: BTreeMap<String, u64>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeDocument {
    /// Two letters, as the legend has them.
    code: &'static str,
    up: bool,
    in_layout: bool,
    pub(super) datacenter: String,
    pub(super) rack: String,
    pub(super) client_address: String,
    peer_address: String,
    pub(super) node_id: String,
    storage_id: String,
    capacity: u32,
    partitions: u32,
    last_heard_ms: u64,
    /// How far ahead of the answering node's its wall clock is.
    clock_offset_ms: Option<i64>,
    software_version: String,
}

/// One keyspace.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KeyspaceDocument {
    name: String,
    id: u32,
    replicas: BTreeMap<String, u32>,
    read_consistency: String,
    write_consistency: String,
    default_ttl_seconds: u64,
    require_overlap: bool,
    allow_any: bool,
    #[serde(skip)]
    spelled_replicas: String,
}

impl NodeDocument {
    pub(super) fn new(node: &v1::NodeInfo) -> Self {
        Self {
            code: match (node.up, node.in_layout) {
                (true, true) => "UN",
                (true, false) => "UJ",
                (false, true) => "DN",
                (false, false) => "DJ",
            },
            up: node.up,
            in_layout: node.in_layout,
            datacenter: node.datacenter.clone(),
            rack: node.rack.clone(),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            node_id: spell_id(&node.node_id),
            storage_id: spell_id(&node.storage_id),
            capacity: node.capacity,
            partitions: node.partitions,
            last_heard_ms: node.last_heard_ms,
            clock_offset_ms: node.clock_offset_ms,
            software_version: node.software_version.clone(),
        }
    }

    /// The two letters, painted.
    fn code_cell(&self) -> Cell {
        let paint = match (self.up, self.in_layout) {
            (false, _) => Paint::Bad,
            (true, true) => Paint::Good,
            (true, false) => Paint::Warning,
        };
        Cell::painted(paint, self.code)
    }
}

impl KeyspaceDocument {
    pub(super) fn new(keyspace: &v1::Keyspace) -> Self {
        let replicas = keyspace.replicas.iter().map(|it| (it.datacenter.clone(), it.replicas));
        Self {
            name: keyspace.name.clone(),
            id: keyspace.id,
            replicas: replicas.collect(),
            read_consistency: spell_level(keyspace.read_consistency.as_ref()),
            write_consistency: spell_level(keyspace.write_consistency.as_ref()),
            default_ttl_seconds: keyspace.default_ttl_seconds,
            require_overlap: keyspace.require_overlap,
            allow_any: keyspace.allow_any,
            spelled_replicas: spell_replicas(&keyspace.replicas),
        }
    }

    /// A table of keyspaces.
    pub(super) fn table(keyspaces: &[Self]) -> Table {
        let mut table = Table::new(&["keyspace", "replicas", "reads", "writes", "ttl", "rules"]);
        for it in keyspaces {
            let ttl = match it.default_ttl_seconds {
                0 => "never".to_owned(),
                seconds => spell_duration(Duration::from_secs(seconds)),
            };
            let rules = [(it.require_overlap, "require_overlap"), (it.allow_any, "allow_any")];
            let rules: Vec<_> = rules.iter().filter(|it| it.0).map(|it| it.1).collect();
            table.row([
                it.name.as_str().into(),
                it.spelled_replicas.as_str().into(),
                it.read_consistency.as_str().into(),
                it.write_consistency.as_str().into(),
                ttl.into(),
                rules.join(", ").into(),
            ]);
        }
        table
    }
}

impl StatusDocument {
    fn new(status: &v1::GetClusterStatusResponse) -> Self {
        let nodes: Vec<_> = status.nodes.iter().map(NodeDocument::new).collect();
        let answered_by = usize::try_from(status.answered_by).ok().and_then(|it| nodes.get(it));
        Self {
            cluster_id: spell_id(&status.cluster_id),
            answered_by: answered_by.map(|it| it.client_address.clone()).unwrap_or_default(),
            layout_version: status.layout_version,
            layout_hash: spell_hash(status.layout_hash),
            partitions: status.partitions,
            metadata_sequence: status.metadata_sequence,
            clock_state: spell_clock_state(status.clock_state()),
            keyspaces: status.keyspaces.iter().map(KeyspaceDocument::new).collect(),
            convergence: None,
            counters: status.counters.iter().map(|(name, it)| (name.clone(), *it)).collect(),
            nodes,
        }
    }

    fn show(&self, output: Output) -> Result<(), Failure> {
        output.line(&self.heading())?;
        for (datacenter, table) in self.blocks() {
            let heading = format!("Datacenter: {datacenter}");
            output.line("")?;
            output.line(&output.paint(Paint::Heading, &heading))?;
            output.line(&"=".repeat(heading.len()))?;
            output.line("Status=Up/Down")?;
            output.line("|/ State=Normal/Joining (not in the layout yet)")?;
            output.report(&table)?;
        }
        let keyspaces = KeyspaceDocument::table(&self.keyspaces);
        if !keyspaces.is_empty() {
            output.line("")?;
            output.report(&keyspaces)?;
        }
        if let Some(convergence) = &self.convergence {
            convergence.show(output)?;
        }
        for advice in [self.clock_advice(), self.advice()].into_iter().flatten() {
            output.line(&format!("\n{}", output.paint(Paint::Warning, &advice)))?;
        }
        Ok(())
    }

    fn heading(&self) -> String {
        if self.layout_version == 0 {
            return format!("No layout yet: no cluster. Answered by {}", self.answered_by);
        }
        format!(
            "Cluster {}  layout {}  {} partitions  answered by {}",
            self.cluster_id, self.layout_version, self.partitions, self.answered_by
        )
    }

    /// A table for each datacenter, by name.
    fn blocks(&self) -> BTreeMap<&str, Table> {
        let columns = [
            "--",
            "clients",
            "peers",
            "rack",
            ">partitions",
            ">owns",
            "node",
            ">last heard",
            ">clock",
        ];
        let mut blocks = BTreeMap::new();
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|it| (&it.rack, &it.client_address));
        for node in nodes {
            let table =
                blocks.entry(node.datacenter.as_str()).or_insert_with(|| Table::new(&columns));
            let owns = match self.partitions {
                0 => "-".to_owned(),
                all => format!("{:.1}%", f64::from(node.partitions) / f64::from(all) * 100.0),
            };
            let heard = match node.last_heard_ms {
                0 => "now".to_owned(),
                ms => spell_duration(Duration::from_millis(ms)) + " ago",
            };
            table.row([
                node.code_cell(),
                node.client_address.as_str().into(),
                node.peer_address.as_str().into(),
                node.rack.as_str().into(),
                spell_count(node.partitions.into()).into(),
                owns.into(),
                node.node_id.as_str().into(),
                heard.into(),
                node.clock_offset_ms.map_or("-".to_owned(), |it| format!("{it:+} ms")).into(),
            ]);
        }
        blocks
    }

    fn clock_advice(&self) -> Option<String> {
        let node = &self.answered_by;
        let what = match self.clock_state.as_str() {
            "unverified" => {
                "coordinates nothing before it has compared its clock with enough others"
            }
            "disputed" => {
                "and the other nodes in reach all have different clocks: set the wrong ones right"
            }
            "jumped" => "coordinates nothing: its clock has jumped, and nobody has confirmed it",
            "off" => "coordinates nothing: set its clock right",
            "behind" => {
                "coordinates nothing: the stamps of its last run lie far ahead of its clock and of the others"
            }
            _ => return None,
        };
        Some(format!("{node} {what}"))
    }

    fn advice(&self) -> Option<String> {
        let joining = self.nodes.iter().filter(|it| it.up && !it.in_layout).count();
        let down = self.nodes.iter().filter(|it| !it.up).count();
        if joining > 0 && self.layout_version == 0 {
            return Some(format!("{joining} joining: `quorate admin layout plan` gives them work"));
        }
        if joining > 0 && down == 0 {
            let why = "this version adds nobody to a layout that is in force";
            return Some(format!("{joining} not in the layout: {why}"));
        }
        (down > 0).then(|| format!("{down} of {} nodes are down", self.nodes.len()))
    }
}

/// As the document has it: `good`.
fn spell_clock_state(state: v1::ClockState) -> String {
    state.as_str_name().trim_start_matches("CLOCK_STATE_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(datacenter: &str, port: u16, up: bool, in_layout: bool) -> v1::NodeInfo {
        v1::NodeInfo {
            node_id: vec![u8::try_from(port % 256).unwrap(); 16].into(),
            datacenter: datacenter.to_owned(),
            rack: "rack1".to_owned(),
            client_address: format!("127.0.0.1:{port}"),
            peer_address: format!("127.0.0.1:{}", port + 1),
            up,
            in_layout,
            partitions: if in_layout { 128 } else { 0 },
            last_heard_ms: if up { 0 } else { 61_000 },
            clock_offset_ms: up.then_some(i64::from(port) - 7_402),
            ..v1::NodeInfo::default()
        }
    }

    #[test]
    fn a_block_for_each_datacenter() {
        let status = v1::GetClusterStatusResponse {
            nodes: vec![
                node("fra", 7400, true, true),
                node("ams", 7402, false, true),
                node("fra", 7404, true, false),
            ],
            layout_version: 1,
            partitions: 256,
            clock_state: v1::ClockState::Off.into(),
            ..v1::GetClusterStatusResponse::default()
        };
        let document = StatusDocument::new(&status);
        let text: String = document
            .blocks()
            .iter()
            .map(|(name, table)| format!("[{name}]\n{}", table.aligned(false)))
            .collect();
        assert_eq!(
            text,
            "[ams]
--  clients         peers           rack   partitions   owns  node                                  last heard  clock
DN  127.0.0.1:7402  127.0.0.1:7403  rack1         128  50.0%  eaeaeaea-eaea-eaea-eaea-eaeaeaeaeaea   1m01s ago      -
[fra]
--  clients         peers           rack   partitions   owns  node                                  last heard  clock
UN  127.0.0.1:7400  127.0.0.1:7401  rack1         128  50.0%  e8e8e8e8-e8e8-e8e8-e8e8-e8e8e8e8e8e8         now  -2 ms
UJ  127.0.0.1:7404  127.0.0.1:7405  rack1           0   0.0%  ecececec-ecec-ecec-ecec-ecececececec         now  +2 ms
"
        );
        assert_eq!(document.advice().unwrap(), "1 of 3 nodes are down");
        let mut up = document.clone();
        up.nodes.iter_mut().for_each(|it| it.up = true);
        assert_eq!(
            up.advice().unwrap(),
            "1 not in the layout: this version adds nobody to a layout that is in force"
        );
        assert_eq!(
            document.clock_advice().unwrap(),
            "127.0.0.1:7400 coordinates nothing: set its clock right"
        );
    }

    #[test]
    fn before_the_first_layout() {
        let status = v1::GetClusterStatusResponse {
            nodes: vec![node("fra", 7400, true, false)],
            ..v1::GetClusterStatusResponse::default()
        };
        let document = StatusDocument::new(&status);
        assert_eq!(document.heading(), "No layout yet: no cluster. Answered by 127.0.0.1:7400");
    }
}
