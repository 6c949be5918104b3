//! What a level must come to, by counting on fingers. Shares no code with the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use model::{Key, Token};
use proto::v1;

use crate::harness::{Cluster, count, level};

/// A level as a test names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Any,
    One,
    Two,
    Three,
    Quorum,
    All,
    LocalOne,
    LocalQuorum,
    EachQuorum,
    Raw(u32),
}

impl Level {
    /// Every named level, every raw count that nine replicas can give, and three that they cannot.
    pub(super) fn all() -> Vec<Self> {
        let mut levels = vec![
            Self::Any,
            Self::One,
            Self::Two,
            Self::Three,
            Self::Quorum,
            Self::All,
            Self::LocalOne,
            Self::LocalQuorum,
            Self::EachQuorum,
        ];
        levels.extend((0..=10).map(Self::Raw));
        levels.push(Self::Raw(300));
        levels
    }

    /// As it goes over the wire.
    pub(super) fn wire(self) -> Option<v1::Consistency> {
        use v1::ConsistencyLevel as Wire;
        level(match self {
            Self::Any => Wire::Any,
            Self::One => Wire::One,
            Self::Two => Wire::Two,
            Self::Three => Wire::Three,
            Self::Quorum => Wire::Quorum,
            Self::All => Wire::All,
            Self::LocalOne => Wire::LocalOne,
            Self::LocalQuorum => Wire::LocalQuorum,
            Self::EachQuorum => Wire::EachQuorum,
            Self::Raw(replicas) => return count(replicas),
        })
    }

    fn is_local(self) -> bool {
        matches!(self, Self::LocalOne | Self::LocalQuorum)
    }
}

impl fmt::Display for Level {
    /// As errors spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "ANY",
            Self::One => "ONE",
            Self::Two => "TWO",
            Self::Three => "THREE",
            Self::Quorum => "QUORUM",
            Self::All => "ALL",
            Self::LocalOne => "LOCAL_ONE",
            Self::LocalQuorum => "LOCAL_QUORUM",
            Self::EachQuorum => "EACH_QUORUM",
            Self::Raw(replicas) => return write!(f, "{replicas}"),
        })
    }
}

/// One lack of replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// The datacenter, for levels that count by datacenter.
    pub(super) datacenter: Option<String>,
    /// How many are required there.
    pub(super) required: usize,
    /// How many are up there.
    pub(super) alive: usize,
}

/// What a call must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It succeeds, and says that so many were required.
    Reached(usize),
    /// The level makes no sense here.
    Impossible,
    /// It is refused; the error names one of these.
    Unavailable(Vec<Lack>),
}

/// The replicas of one key, and who is up.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// Nodes that hold the key, by datacenter.
    pub(super) replicas: BTreeMap<String, Vec<usize>>,
    /// Nodes that are up.
    pub(super) alive: BTreeSet<usize>,
    /// The coordinator's datacenter.
    pub(super) local: String,
    /// The keyspace allows ANY.
    pub(super) allow_any: bool,
}

impl World {
    fn all(&self) -> usize {
        self.replicas.values().map(Vec::len).sum()
    }

    fn local(&self) -> usize {
        self.replicas.get(&self.local).map_or(0, Vec::len)
    }

    fn alive_among(&self, nodes: &[usize]) -> usize {
        nodes.iter().filter(|it| self.alive.contains(it)).count()
    }

    /// How many must answer, where. `None` if the level makes no sense.
    fn required(&self, level: Level) -> Option<Vec<(Option<String>, usize)>> {
        let half = |replicas: usize| replicas / 2 + 1;
        let anywhere = match level {
            Level::Any | Level::One => 1,
            Level::Two => 2,
            Level::Three => 3,
            Level::Quorum => half(self.all()),
            Level::All => self.all(),
            Level::Raw(replicas) => usize::try_from(replicas).ok()?,
            Level::LocalOne => return Some(vec![(Some(self.local.clone()), 1)]),
            Level::LocalQuorum => {
                return Some(vec![(Some(self.local.clone()), half(self.local()))]);
            }
            Level::EachQuorum => {
                let each = self.replicas.iter();
                return Some(each.map(|it| (Some(it.0.clone()), half(it.1.len()))).collect());
            }
        };
        Some(vec![(None, anywhere)])
    }

    /// What a call at a level comes to.
    pub(super) fn verdict(&self, level: Level, writes: bool) -> Verdict {
        if level == Level::Any && !(writes && self.allow_any) {
            return Verdict::Impossible;
        }
        if level == Level::Raw(0) || (level.is_local() && self.local() == 0) {
            return Verdict::Impossible;
        }
        let Some(required) = self.required(level) else { return Verdict::Impossible };
        let mut lacks = Vec::new();
        for (datacenter, required) in &required {
            let nodes = match datacenter {
                Some(name) => self.replicas[name].clone(),
                None => self.replicas.values().flatten().copied().collect(),
            };
            if *required > nodes.len() {
                return Verdict::Impossible;
            }
            let alive = self.alive_among(&nodes);
            if alive < *required {
                let (datacenter, required) = (datacenter.clone(), *required);
                lacks.push(Lack { datacenter, required, alive });
            }
        }
        if lacks.is_empty() || level == Level::Any {
            return Verdict::Reached(required.iter().map(|it| it.1).sum());
        }
        Verdict::Unavailable(lacks)
    }

    /// True if these nodes, answering, are enough for a level.
    pub(super) fn satisfied_by(&self, level: Level, answered: &BTreeSet<usize>) -> bool {
        let Some(required) = self.required(level) else { return false };
        required.iter().all(|(datacenter, required)| {
            let nodes = self.replicas.iter();
            let nodes = nodes.filter(|it| datacenter.as_ref().is_none_or(|name| name == it.0));
            nodes.flat_map(|it| it.1).filter(|it| answered.contains(it)).count() >= *required
        })
    }

    /// True if no set of replicas can satisfy the write while all others satisfy the read: found by
    /// trying every set.
    pub(super) fn overlap(&self, read: Level, write: Level) -> bool {
        if [read, write].contains(&Level::Any) {
            return false;
        }
        let nodes: Vec<usize> = self.replicas.values().flatten().copied().collect();
        (0_u32..1 << nodes.len()).all(|set| {
            let part = |inside: bool| {
                let chosen = nodes.iter().enumerate().filter(|it| (set >> it.0 & 1 == 1) == inside);
                chosen.map(|it| *it.1).collect()
            };
            !(self.satisfied_by(write, &part(true)) && self.satisfied_by(read, &part(false)))
        })
    }
}

/// The replicas of a key, from the topology that any client sees.
pub(super) fn replicas_of(
    cluster: &Cluster,
    topology: &v1::GetTopologyResponse,
    keyspace: &str,
    key: &Key,
) -> BTreeMap<String, Vec<usize>> {
    let keyspace = topology.keyspaces.iter().find(|it| it.name == keyspace).expect("created");
    let token = Token::of(&key.partition_key).0;
    let bits = topology.partitions.trailing_zeros();
    let partition = token.checked_shr(64 - bits).unwrap_or(0);
    let partition = usize::try_from(partition).expect("few partitions");
    let mut replicas = BTreeMap::new();
    for wanted in &keyspace.replicas {
        let same = |it: &&v1::Assignment| it.datacenter == wanted.datacenter;
        let assignment = topology.assignments.iter().find(same).expect("assigned");
        let length = usize::try_from(assignment.list_length).expect("short");
        let count = usize::try_from(wanted.replicas).expect("few");
        let list = &assignment.nodes[partition * length..][..count];
        let nodes = list.iter().map(|it| node_of(cluster, topology, *it)).collect();
        replicas.insert(wanted.datacenter.clone(), nodes);
    }
    replicas
}

/// The test's number of a node that a reply names by its place in the topology.
pub(super) fn node_of(cluster: &Cluster, topology: &v1::GetTopologyResponse, index: u32) -> usize {
    let index = usize::try_from(index).expect("few nodes");
    let address = &topology.nodes[index].client_address;
    let same = |it: &usize| cluster.node(*it).client.to_string() == *address;
    (0..cluster.len()).find(same).expect("a node of ours")
}

#[test]
fn the_model_counts_right() {
    let nodes = |from: usize| vec![from, from + 1, from + 2];
    let mut world = World {
        replicas: [("a".to_owned(), nodes(0)), ("b".to_owned(), nodes(3))].into(),
        alive: [0, 1, 3].into(),
        local: "a".to_owned(),
        allow_any: false,
    };
    let lack = |datacenter: Option<&str>, required, alive| {
        let datacenter = datacenter.map(str::to_owned);
        Verdict::Unavailable(vec![Lack { datacenter, required, alive }])
    };
    assert_eq!(world.verdict(Level::LocalQuorum, true), Verdict::Reached(2));
    assert_eq!(world.verdict(Level::Quorum, true), lack(None, 4, 3));
    assert_eq!(world.verdict(Level::EachQuorum, false), lack(Some("b"), 2, 1));
    assert_eq!(world.verdict(Level::Raw(7), false), Verdict::Impossible);
    assert_eq!(world.verdict(Level::Any, true), Verdict::Impossible);
    assert!(world.overlap(Level::Quorum, Level::Quorum));
    assert!(world.overlap(Level::One, Level::All));
    assert!(world.overlap(Level::LocalQuorum, Level::EachQuorum));
    assert!(!world.overlap(Level::LocalQuorum, Level::Quorum));
    assert!(!world.overlap(Level::Three, Level::Three));
    (world.alive, world.allow_any) = (BTreeSet::new(), true);
    assert_eq!(world.verdict(Level::Any, true), Verdict::Reached(1));
}
