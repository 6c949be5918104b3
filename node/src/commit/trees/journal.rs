//! The journal of the leaves: a group's changed leaves are one row of it, not a row for each of them.
//!
//! A group of records at random keys changes as many leaves. Put each under its own key, they cost more than
//! everything else that trees need: so they go, whole as ever, into one row, and for several changes one leaf
//! is put under its own key, the next one in the order of tokens, changed or not. Once that has come around,
//! what the journal held when it began is not needed any more and goes.
//!
//! **Invariant**: a leaf that is put in a round holds all that the journal said of it before the round began.
//! So whoever reads takes the leaves first and then the journal in its order. The last that it says of a leaf is
//! what the leaf is, even if what stands under the leaf's own key is newer than the rest that it says of it.

use model::{KeyspaceId, Token};

use super::Trees;
use super::rows::{self, Change};
use crate::storage::WriteBatch;

/// The journal, from whoever writes to it. What is appended counts once it is kept, when its batch is
/// written.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    state: State,
    staged: Option<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The number of the next row.
    next: u64,
    /// That of the first row that is needed beside the leaves.
    first: u64,
    /// That of the first row of this round of the leaves: those before it go when the round ends.
    began: u64,
    /// The leaf that this round put last, by its last token.
    put: Option<(KeyspaceId, Token)>,
    /// Changes in this round.
    changes: usize,
    /// Those of them for which no leaf was put yet.
    unpaid: usize,
    /// For how many changes a leaf is put; 0 before the first.
    changes_per_leaf: usize,
}

impl Journal {
    /// A journal of which rows from `first` up to `next` are needed.
    pub(super) fn with_rows(first: u64, next: u64) -> Self {
        Self { state: State { next, first, began: next, ..State::default() }, staged: None }
    }

    /// Puts changes into a batch, and of what trees hold in memory some leaves, to which the changes need
    /// not have come yet.
    pub(super) fn append(&mut self, batch: &mut WriteBatch, trees: &Trees, changes: &[Change]) {
        self.staged = None;
        if changes.is_empty() {
            return;
        }
        let mut state = self.state;
        // Nothing is put of a keyspace that goes: nobody would remove it.
        if !changes.iter().any(|it| matches!(it, Change::Dropped(_))) {
            state.put_leaves(batch, trees, changes.len());
        }
        rows::put_journal(batch, state.next, state.first, changes);
        state.next += 1;
        self.staged = Some(state);
    }

    /// What was appended last is written.
    pub(super) fn keep(&mut self) {
        self.state = self.staged.take().unwrap_or(self.state);
    }
}

impl State {
    fn put_leaves(&mut self, batch: &mut WriteBatch, trees: &Trees, changes: usize) {
        if self.changes_per_leaf == 0 {
            self.changes_per_leaf = changes_per_leaf(trees.statistics().leaves);
        }
        self.changes += changes;
        self.unpaid += changes;
        while self.unpaid >= self.changes_per_leaf {
            match trees.leaf_behind(self.put) {
                Some((keyspace, leaf)) => {
                    self.unpaid -= self.changes_per_leaf;
                    rows::put_leaf(batch, keyspace, &leaf);
                    self.put = Some((keyspace, leaf.last()));
                }
                None if self.changes < ROUND_CHANGES_MIN => {
                    self.unpaid = 0;
                }
                None => {
                    rows::delete_journal(batch, self.first, self.began);
                    let (next, first) = (self.next, self.began);
                    // The row that these changes come to be in is of the round that ends.
                    *self = Self { next, first, began: next + 1, ..Self::default() };
                    return;
                }
            }
        }
    }
}

/// Two rounds of the leaves, each of so many changes a leaf, are the longest that a start has to read.
fn changes_per_leaf(leaves: u64) -> usize {
    let changes = CHANGES_MAX / 2 / leaves.max(1);
    usize::try_from(changes).unwrap_or(CHANGES_PER_LEAF_MAX).clamp(1, CHANGES_PER_LEAF_MAX)
}

/// Changes in the journal, 33 MiB, while there are not more than a quarter as many leaves.
const CHANGES_MAX: u64 = 1 << 20;
/// Beyond this nothing more is saved.
const CHANGES_PER_LEAF_MAX: usize = 8;
/// A round is not ended before so many: each leaves a mark of what it removes in the database.
const ROUND_CHANGES_MIN: usize = if cfg!(test) { 32 } else { 512 };
