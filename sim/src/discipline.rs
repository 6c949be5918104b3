//! Which levels are used on a key, and so what its history promises: the rows of the table in
//! `docs/guarantees.md`.
//!
//! A key keeps one discipline for its life, and its name begins with the discipline's.

use model::ConsistencyLevel;

/// How a key is written and read, by all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discipline {
    /// QUORUM or ALL, both ways: linearizable.
    Quorum,
    /// LOCAL_QUORUM both ways, read by clients of one datacenter: linearizable there. Clients of
    /// other datacenters may write it too; each stamp of theirs is a pending write of its own.
    LocalQuorum {
        /// The datacenter.
        home: u8,
    },
    /// EACH_QUORUM both ways: linearizable.
    EachQuorum,
    /// Written at EACH_QUORUM, read at LOCAL_QUORUM anywhere: regular.
    EachThenLocal,
    /// Written at LOCAL_QUORUM anywhere, read at EACH_QUORUM: acknowledged writes are read, unless
    /// overwritten by a higher clock.
    LocalThenEach,
    /// Written at ALL, read at ONE: regular.
    AllThenOne,
    /// Written at QUORUM, read at ONE: converges.
    QuorumThenOne,
    /// Any level of all, both ways: converges, and each client sees its own order.
    Mixed,
}

impl Discipline {
    /// Every discipline, in a cluster of so many datacenters.
    pub fn all(datacenters: u8) -> Vec<Self> {
        let local = (0..datacenters).map(|home| Self::LocalQuorum { home });
        let others = [
            Self::Quorum,
            Self::EachQuorum,
            Self::EachThenLocal,
            Self::LocalThenEach,
            Self::AllThenOne,
            Self::QuorumThenOne,
            Self::Mixed,
        ];
        others.into_iter().chain(local).collect()
    }

    /// What its keys' names begin with.
    pub fn prefix(self) -> String {
        match self {
            Self::Quorum => "quorum".to_owned(),
            Self::LocalQuorum { home } => format!("local{home}"),
            Self::EachQuorum => "each".to_owned(),
            Self::EachThenLocal => "each-local".to_owned(),
            Self::LocalThenEach => "local-each".to_owned(),
            Self::AllThenOne => "all-one".to_owned(),
            Self::QuorumThenOne => "quorum-one".to_owned(),
            Self::Mixed => "mixed".to_owned(),
        }
    }

    /// The levels at which it is written. Never empty.
    pub fn write_levels(self) -> &'static [ConsistencyLevel] {
        use ConsistencyLevel as L;
        match self {
            Self::Quorum => &[L::Quorum, L::Quorum, L::Quorum, L::All],
            Self::LocalQuorum { .. } | Self::LocalThenEach => &[L::LocalQuorum],
            Self::EachQuorum | Self::EachThenLocal => &[L::EachQuorum],
            Self::AllThenOne => &[L::All],
            Self::QuorumThenOne => &[L::Quorum],
            Self::Mixed => &[
                L::Any,
                L::Any,
                L::One,
                L::Two,
                L::Three,
                L::Quorum,
                L::All,
                L::LocalOne,
                L::LocalQuorum,
                L::EachQuorum,
                L::Count(1),
                L::Count(2),
            ],
        }
    }

    /// The levels at which it is read. Never empty.
    pub fn read_levels(self) -> &'static [ConsistencyLevel] {
        use ConsistencyLevel as L;
        match self {
            Self::Quorum => &[L::Quorum, L::Quorum, L::Quorum, L::All],
            Self::LocalQuorum { .. } | Self::EachThenLocal => &[L::LocalQuorum],
            Self::EachQuorum | Self::LocalThenEach => &[L::EachQuorum],
            Self::AllThenOne | Self::QuorumThenOne => &[L::One],
            Self::Mixed => &[
                L::One,
                L::Two,
                L::Three,
                L::Quorum,
                L::All,
                L::LocalOne,
                L::LocalQuorum,
                L::EachQuorum,
                L::Count(1),
                L::Count(2),
            ],
        }
    }
}
