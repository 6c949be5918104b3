//! Which hosts hear each other. Several faults may cut one link: it heals when the last has ended.

use std::collections::BTreeMap;

use turmoil::Sim;

/// How a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutKind {
    /// Messages wait, and arrive when it ends: connections survive.
    Jam,
    /// Messages are lost, both ways: connections are dead for good.
    Stop,
    /// Messages one way are lost.
    OneWay,
}

/// A cut between two groups of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How.
    pub kind: CutKind,
    /// From these.
    pub from: Vec<String>,
    /// To those.
    pub to: Vec<String>,
}

/// What one link is like, from the lower name to the higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    Jammed,
    Stopped,
    Forth,
    Back,
}

/// All cuts in force.
#[derive(Default)]
pub(super) struct Links {
    cuts: BTreeMap<u64, Cut>,
    states: BTreeMap<(String, String), LinkState>,
}

impl Links {
    /// Adds a cut under an id that is not in use.
    pub(super) fn cut(&mut self, sim: &Sim<'_>, id: u64, cut: Cut) {
        self.cuts.insert(id, cut);
        self.follow(sim);
    }

    /// True if a cut loses what is sent.
    pub(super) fn loses(&self, id: u64) -> bool {
        self.cuts.get(&id).is_some_and(|it| it.kind != CutKind::Jam)
    }

    /// Ends a cut.
    pub(super) fn heal(&mut self, sim: &Sim<'_>, id: u64) {
        self.cuts.remove(&id);
        self.follow(sim);
    }

    fn follow(&mut self, sim: &Sim<'_>) {
        let wanted = self.wanted();
        for (pair, state) in &self.states {
            if wanted.get(pair) != Some(state) {
                let (a, b) = (pair.0.as_str(), pair.1.as_str());
                match state {
                    LinkState::Jammed => sim.release(a, b),
                    LinkState::Stopped => sim.repair(a, b),
                    LinkState::Forth => sim.repair_oneway(a, b),
                    LinkState::Back => sim.repair_oneway(b, a),
                }
            }
        }
        for (pair, state) in &wanted {
            if self.states.get(pair) != Some(state) {
                let (a, b) = (pair.0.as_str(), pair.1.as_str());
                match state {
                    LinkState::Jammed => sim.hold(a, b),
                    LinkState::Stopped => sim.partition(a, b),
                    LinkState::Forth => sim.partition_oneway(a, b),
                    LinkState::Back => sim.partition_oneway(b, a),
                }
            }
        }
        self.states = wanted;
    }

    /// The worst of all cuts of each link. Turmoil cannot hold a link that is cut one way, so that
    /// the cut counts then.
    fn wanted(&self) -> BTreeMap<(String, String), LinkState> {
        let mut states = BTreeMap::new();
        for cut in self.cuts.values() {
            let pairs = cut.from.iter().flat_map(|from| cut.to.iter().map(move |to| (from, to)));
            for (from, to) in pairs.filter(|(from, to)| from != to) {
                let forth = from < to;
                let pair = if forth { (from, to) } else { (to, from) };
                let state = match cut.kind {
                    CutKind::Jam => LinkState::Jammed,
                    CutKind::Stop => LinkState::Stopped,
                    CutKind::OneWay if forth => LinkState::Forth,
                    CutKind::OneWay => LinkState::Back,
                };
                let entry = states.entry((pair.0.clone(), pair.1.clone())).or_insert(state);
                *entry = worse(*entry, state);
            }
        }
        states
    }
}

fn worse(one: LinkState, other: LinkState) -> LinkState {
    match (one, other) {
        (LinkState::Jammed, it) | (it, LinkState::Jammed) => it,
        (LinkState::Forth, LinkState::Forth) => LinkState::Forth,
        (LinkState::Back, LinkState::Back) => LinkState::Back,
        _ => LinkState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(kind: CutKind, from: &[&str], to: &[&str]) -> Cut {
        let names = |it: &[&str]| it.iter().map(ToString::to_string).collect();
        Cut { kind, from: names(from), to: names(to) }
    }

    #[test]
    fn the_worst_cut_of_a_link_counts() {
        let mut links = Links::default();
        links.cuts.insert(1, cut(CutKind::Jam, &["a"], &["b", "c"]));
        links.cuts.insert(2, cut(CutKind::OneWay, &["b"], &["a"]));
        links.cuts.insert(3, cut(CutKind::OneWay, &["c"], &["d"]));
        links.cuts.insert(4, cut(CutKind::OneWay, &["d"], &["c"]));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = BTreeMap::from([
            (pair("a", "b"), LinkState::Back),
            (pair("a", "c"), LinkState::Jammed),
            (pair("c", "d"), LinkState::Stopped),
        ]);
        assert_eq!(links.wanted(), expected);
    }
}
