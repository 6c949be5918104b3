//! Fills the preference lists of one datacenter, place by place.
//!
//! The lists are filled for all partitions to the same length before any becomes longer. One place
//! is filled in three steps: nodes that held the partition stay, the rest is given to the nodes that
//! are furthest below their share, and then single places are exchanged along paths from nodes above
//! their share to nodes below, the cheapest in moved replicas first, until none helps.

use super::{Datacenter, shares::shares};

/// Nodes, by their index in the datacenter, for each partition.
pub(super) fn place(datacenter: &Datacenter<'_>) -> Vec<Vec<usize>> {
    let mixer = Mixer::new(datacenter);
    let mut lists = vec![Vec::new(); datacenter.partitions()];
    let mut held = vec![0.0; datacenter.nodes.len()];
    for length in 1..=datacenter.list_length() {
        let chosen = Place::new(datacenter, &mixer, &lists, &held, length).choose();
        for (list, node) in lists.iter_mut().zip(chosen) {
            list.push(node);
            held[node] += 1.0;
        }
    }
    lists
}

/// Numbers that break ties differently for each pair of partition and node, so that the partitions
/// of one node share them with all others, and not with the next in some order.
struct Mixer {
    nodes: usize,
    numbers: Vec<u32>,
}

impl Mixer {
    fn new(datacenter: &Datacenter<'_>) -> Self {
        let mut numbers = Vec::with_capacity(datacenter.partitions() * datacenter.nodes.len());
        for partition in 0..datacenter.partitions() {
            for node in &datacenter.nodes {
                let seed = u64::try_from(partition).expect("at most 4,096 partitions");
                let id = node.description.id.to_bytes();
                let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&id, seed);
                numbers.push(u32::try_from(hash >> 32).expect("32 bits remain"));
            }
        }
        Self { nodes: datacenter.nodes.len(), numbers }
    }

    fn number(&self, partition: usize, node: usize) -> u32 {
        self.numbers[partition * self.nodes + node]
    }
}

/// The choice of one place for all partitions.
struct Place<'a> {
    mixer: &'a Mixer,
    nodes: usize,
    shares: Vec<f64>,
    /// Partitions that each node holds so far, with what is chosen here.
    held: Vec<f64>,
    /// What each pair of partition and node would be.
    kinds: Vec<Kind>,
    /// For each partition the nodes that held it, within the same number of replicas.
    before: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The node is in the list already, or its rack has more of it than others.
    Excluded,
    /// The partition's data would move to the node.
    Move,
    /// The node held the partition.
    Stay,
}

impl<'a> Place<'a> {
    fn new(
        datacenter: &Datacenter<'_>,
        mixer: &'a Mixer,
        lists: &[Vec<usize>],
        held: &[f64],
        length: usize,
    ) -> Self {
        let nodes = datacenter.nodes.len();
        let mut kinds = Vec::with_capacity(lists.len() * nodes);
        let mut before = Vec::with_capacity(lists.len());
        for (list, old) in lists.iter().zip(&datacenter.before) {
            let old: Vec<_> = old.iter().take(length).flatten().copied().collect();
            let mut in_rack = vec![0; datacenter.rack_sizes.len()];
            for node in list {
                in_rack[datacenter.nodes[*node].rack] += 1;
            }
            let open = |rack: &usize| in_rack[*rack] < datacenter.rack_sizes[*rack];
            let racks = (0..in_rack.len()).filter(open);
            let least = racks.map(|it| in_rack[it]).min().expect("some node is in no list yet");
            kinds.extend((0..nodes).map(|it| {
                if list.contains(&it) || in_rack[datacenter.nodes[it].rack] > least {
                    Kind::Excluded
                } else if old.contains(&it) {
                    Kind::Stay
                } else {
                    Kind::Move
                }
            }));
            before.push(old);
        }
        let shares = shares(datacenter, length);
        Self { mixer, nodes, shares, held: held.to_vec(), kinds, before }
    }

    fn choose(mut self) -> Vec<usize> {
        let mut chosen: Vec<Option<usize>> = Vec::with_capacity(self.before.len());
        for (partition, old) in self.before.iter().enumerate() {
            let stay = old.iter().find(|it| self.kind(partition, **it) == Kind::Stay);
            chosen.push(stay.copied());
        }
        for node in chosen.iter().flatten() {
            self.held[*node] += 1.0;
        }
        let mut filled = Vec::with_capacity(chosen.len());
        for (partition, stay) in chosen.into_iter().enumerate() {
            filled.push(stay.unwrap_or_else(|| {
                let node = self.neediest(partition);
                self.held[node] += 1.0;
                node
            }));
        }
        while self.improve(&mut filled) {}
        filled
    }

    fn kind(&self, partition: usize, node: usize) -> Kind {
        self.kinds[partition * self.nodes + node]
    }

    fn neediest(&self, partition: usize) -> usize {
        let need = |it: usize| (self.held[it] + 1.0) / self.shares[it];
        let open = (0..self.nodes).filter(|it| self.kind(partition, *it) != Kind::Excluded);
        let order = |a: &usize, b: &usize| {
            let ties = self.mixer.number(partition, *a).cmp(&self.mixer.number(partition, *b));
            need(*a).total_cmp(&need(*b)).then(ties)
        };
        open.min_by(order).expect("some node is in no list yet")
    }

    /// Exchanges places along one path, from a node above its share to one below. False if no path
    /// brings any two nodes nearer to their shares.
    fn improve(&mut self, chosen: &mut [usize]) -> bool {
        let excess: Vec<_> = self.held.iter().zip(&self.shares).map(|it| it.0 - it.1).collect();
        let lowest = excess.iter().copied().fold(f64::INFINITY, f64::min);
        let mut sources: Vec<_> = (0..self.nodes).filter(|it| helps(excess[*it], lowest)).collect();
        if sources.is_empty() {
            return false;
        }
        sources.sort_by(|a, b| excess[*b].total_cmp(&excess[*a]).then(a.cmp(b)));
        let exchanges = self.exchanges(chosen);
        for source in sources {
            let Some(path) = cheapest_path(&exchanges, self.nodes, source, &excess) else {
                continue;
            };
            for pair in path.windows(2) {
                let step =
                    exchanges[pair[0] * self.nodes + pair[1]].expect("the path is made of these");
                chosen[step.partition] = pair[1];
            }
            self.held[source] -= 1.0;
            self.held[*path.last().expect("a path has two ends")] += 1.0;
            return true;
        }
        false
    }

    /// For each pair of nodes the cheapest partition whose place could go from one to the other.
    fn exchanges(&self, chosen: &[usize]) -> Vec<Option<Exchange>> {
        let mut found: Vec<Option<Exchange>> = vec![None; self.nodes * self.nodes];
        for (partition, from) in chosen.iter().enumerate() {
            let leaves_home = self.kind(partition, *from) == Kind::Stay;
            for to in 0..self.nodes {
                let kind = self.kind(partition, to);
                if kind == Kind::Excluded || to == *from {
                    continue;
                }
                let moves = leaves_home && kind == Kind::Move;
                let mixed = self.mixer.number(partition, to);
                let it = Exchange { moves, mixed, partition };
                let best = &mut found[from * self.nodes + to];
                if best.is_none_or(|best| it < best) {
                    *best = Some(it);
                }
            }
        }
        found
    }
}

/// True if taking a place from one node and giving it to another brings them nearer to their shares.
/// The margin is for rounding: equal shares must compare as equal.
fn helps(from_excess: f64, to_excess: f64) -> bool {
    from_excess - to_excess > 1.0 + 1e-6
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Exchange {
    /// Whether one more replica has to move.
    moves: bool,
    mixed: u32,
    partition: usize,
}

/// The path of fewest moves, then of fewest steps, to a node that is worth it; of several such nodes
/// to the one furthest below its share. Dijkstra's algorithm on a dense graph.
fn cheapest_path(
    exchanges: &[Option<Exchange>],
    nodes: usize,
    source: usize,
    excess: &[f64],
) -> Option<Vec<usize>> {
    let mut reached: Vec<Option<(usize, usize)>> = vec![None; nodes];
    let mut from = vec![source; nodes];
    let mut done = vec![false; nodes];
    reached[source] = Some((0, 0));
    loop {
        let open = (0..nodes).filter(|it| !done[*it] && reached[*it].is_some());
        let nearest = |a: &usize, b: &usize| {
            let below = excess[*a].total_cmp(&excess[*b]);
            reached[*a].cmp(&reached[*b]).then(below).then(a.cmp(b))
        };
        let at = open.min_by(nearest)?;
        if helps(excess[source], excess[at]) {
            return Some(trace(&from, source, at));
        }
        done[at] = true;
        let (moves, steps) = reached[at].expect("open nodes are reached");
        for to in 0..nodes {
            let Some(exchange) = exchanges[at * nodes + to] else { continue };
            let cost = (moves + usize::from(exchange.moves), steps + 1);
            if !done[to] && reached[to].is_none_or(|it| cost < it) {
                reached[to] = Some(cost);
                from[to] = at;
            }
        }
    }
}

fn trace(from: &[usize], source: usize, target: usize) -> Vec<usize> {
    let mut path = vec![target];
    let mut at = target;
    while at != source {
        at = from[at];
        path.push(at);
    }
    path.reverse();
    path
}
