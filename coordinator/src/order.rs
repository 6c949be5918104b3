//! In which order replicas are asked. Never judges who is fast: the caller has ranked them.

use model::{ReplicaIndex, ReplicaMask, ReplicaSet};

/// The replicas, those to ask first before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    replicas: [ReplicaIndex; ReplicaSet::REPLICAS_MAX],
    len: usize,
}

impl Order {
    /// All replicas: those named first, then the rest.
    pub(crate) fn new(preferred: &[ReplicaIndex], all: ReplicaMask) -> Self {
        let mut it = Self { replicas: [ReplicaIndex(0); ReplicaSet::REPLICAS_MAX], len: 0 };
        let mut left = all;
        for next in preferred.iter().copied().chain(all.iter()) {
            if left.contains(next) {
                left.remove(next);
                it.replicas[it.len] = next;
                it.len += 1;
            }
        }
        it
    }

    /// The first `n` of a set, or all of it.
    pub(crate) fn pick(&self, of: ReplicaMask, n: u8) -> ReplicaMask {
        let mut picked = ReplicaMask::EMPTY;
        let ordered = self.replicas[..self.len].iter().filter(|it| of.contains(**it));
        for it in ordered.take(usize::from(n)) {
            picked.insert(*it);
        }
        picked
    }
}
