//! Consistency levels: how many replicas must answer, and where.
//!
//! Decides what one call requires of the replicas of its key, and whether two levels always meet in
//! a replica. Never looks at who is up: that is the coordinator's next step.
//! Source: Dynamo (DeCandia et al. 2007), 4.5; the levels of several datacenters as in Cassandra.

use std::{fmt, slice, str::FromStr};

use crate::{DcIndex, Mutant, ReplicaMask, ReplicaSet};

/// What a client asks of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConsistencyLevel {
    /// Writes only: one replica, or a durable hint at the coordinator. Promises convergence alone.
    Any,
    /// One replica, anywhere.
    One,
    /// Two replicas, anywhere.
    Two,
    /// Three replicas, anywhere.
    Three,
    /// More than half of all replicas.
    Quorum,
    /// All replicas.
    All,
    /// One replica of the coordinator's datacenter.
    LocalOne,
    /// More than half of the replicas of the coordinator's datacenter.
    LocalQuorum,
    /// More than half of the replicas in every datacenter that has some.
    EachQuorum,
    /// So many replicas, anywhere: the raw R of a read or W of a write.
    Count(u8),
}

/// Why a level cannot be used for a call. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// A count of no replicas promises nothing.
    #[error("a count of 0 replicas promises nothing: give 1 to {replicas}")]
    Zero {
        /// The replicas of the key.
        replicas: u8,
    },
    /// The level asks for more replicas than the key has.
    #[error("{level} requires {required} replicas, and the keyspace has {replicas}")]
    TooMany {
        /// The level asked for.
        level: ConsistencyLevel,
        /// How many replicas it requires.
        required: u8,
        /// The replicas of the key.
        replicas: u8,
    },
    /// A local level in a datacenter that holds no replicas of the keyspace.
    #[error(
        "{level} needs replicas in the coordinator's datacenter, and the keyspace has none there"
    )]
    NoLocalReplicas {
        /// The level asked for.
        level: ConsistencyLevel,
        /// The coordinator's datacenter.
        datacenter: DcIndex,
    },
    /// ANY is a level of writes: a hint cannot be read.
    #[error("ANY is a level of writes only")]
    AnyRead,
    /// The keyspace does not allow ANY.
    #[error("ANY is not allowed in this keyspace: it has to set allow_any")]
    AnyNotAllowed,
}

/// A name that is not a level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no consistency level: ANY, ONE, TWO, THREE, QUORUM, ALL, LOCAL_ONE, LOCAL_QUORUM, EACH_QUORUM or a count of replicas"
)]
pub struct UnknownLevel(pub String);

/// What one level asks of one set of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeRequirement {
    /// The datacenter it speaks of; `None` for all replicas of the key.
    pub datacenter: Option<DcIndex>,
    /// Its replicas.
    pub mask: ReplicaMask,
    /// How many of them must answer: R or W.
    pub required: u8,
    /// More than half of them: Q.
    pub quorum: u8,
}

impl ScopeRequirement {
    fn new(datacenter: Option<DcIndex>, mask: ReplicaMask, required: u8) -> Self {
        Self { datacenter, mask, required, quorum: quorum(count(mask)) }
    }

    /// How many of a set's replicas belong to this scope.
    pub fn count(&self, of: ReplicaMask) -> u8 {
        count(self.mask.and(of))
    }

    /// The replicas of this scope: N.
    pub fn replicas(&self) -> u8 {
        count(self.mask)
    }
}

/// What one call requires of the replicas of its key: every scope must be satisfied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    any: bool,
    scopes: Scopes,
}

/// Nearly always one, so that a request does not allocate for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scopes {
    One(ScopeRequirement),
    Each(Box<[ScopeRequirement]>),
}

impl Requirement {
    /// What a write at `level` requires. `allow_any` is the keyspace's setting.
    ///
    /// Fails when the level cannot be used with these replicas, whoever is up.
    pub fn for_write(
        level: ConsistencyLevel,
        replicas: &ReplicaSet,
        local_dc: DcIndex,
        allow_any: bool,
    ) -> Result<Self, LevelError> {
        if level == ConsistencyLevel::Any && !allow_any {
            return Err(LevelError::AnyNotAllowed);
        }
        Self::new(level, replicas, local_dc)
    }

    /// What a read at `level` requires. Fails like `for_write`, and for ANY.
    pub fn for_read(
        level: ConsistencyLevel,
        replicas: &ReplicaSet,
        local_dc: DcIndex,
    ) -> Result<Self, LevelError> {
        if level == ConsistencyLevel::Any {
            return Err(LevelError::AnyRead);
        }
        Self::new(level, replicas, local_dc)
    }

    fn new(
        level: ConsistencyLevel,
        replicas: &ReplicaSet,
        local_dc: DcIndex,
    ) -> Result<Self, LevelError> {
        let (all, local) = (replicas.all(), replicas.in_datacenter(local_dc));
        let scopes = match level.demand(count(all), count(local), local_dc)? {
            Demand::Total(required) => Scopes::One(ScopeRequirement::new(None, all, required)),
            Demand::Local(required) => {
                let mut scope = ScopeRequirement::new(Some(local_dc), local, required);
                if Mutant::LocalCountsRemote.is_on() {
                    scope.mask = all;
                }
                Scopes::One(scope)
            }
            Demand::Each if Mutant::EachIsLocal.is_on() => {
                let required = quorum(count(local));
                Scopes::One(ScopeRequirement::new(Some(local_dc), local, required))
            }
            Demand::Each => {
                let each = replicas.datacenters().iter();
                Scopes::Each(
                    each.map(|it| ScopeRequirement::new(Some(it.0), it.1, quorum(count(it.1))))
                        .collect(),
                )
            }
        };
        Ok(Self { any: level == ConsistencyLevel::Any, scopes })
    }

    /// The scopes, all of which must be satisfied. Never empty.
    pub fn scopes(&self) -> &[ScopeRequirement] {
        match &self.scopes {
            Scopes::One(it) => slice::from_ref(it),
            Scopes::Each(each) => each,
        }
    }

    /// True for ANY: a durable hint at the coordinator counts as the one answer required.
    pub fn is_any(&self) -> bool {
        self.any
    }

    /// True if every scope requires a quorum: operations at such levels are linearizable per key,
    /// against each other and within their scope.
    pub fn is_ordered(&self) -> bool {
        self.scopes().iter().all(|it| it.required >= it.quorum)
    }

    /// How many answers are required over all scopes.
    pub fn required(&self) -> u8 {
        self.scopes().iter().map(|it| it.required).sum()
    }

    /// The replicas whose answers count.
    pub fn mask(&self) -> ReplicaMask {
        self.scopes().iter().fold(ReplicaMask::EMPTY, |mask, it| mask.or(it.mask))
    }
}

/// What a level asks for, before it is applied to named replicas.
#[derive(Clone, Copy)]
enum Demand {
    Total(u8),
    Local(u8),
    Each,
}

impl ConsistencyLevel {
    /// The named levels, in the order in which help texts list them.
    pub const NAMED: [Self; 9] = [
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

    /// True for the levels that ask only the coordinator's datacenter.
    pub fn is_local(self) -> bool {
        matches!(self, Self::LocalOne | Self::LocalQuorum)
    }

    fn demand(self, replicas: u8, local: u8, datacenter: DcIndex) -> Result<Demand, LevelError> {
        let required = match self {
            Self::Any | Self::One | Self::LocalOne | Self::EachQuorum => 1,
            Self::Two => 2,
            Self::Three => 3,
            Self::Quorum => quorum(replicas),
            Self::LocalQuorum => quorum(local),
            Self::All => replicas.max(1),
            Self::Count(0) => return Err(LevelError::Zero { replicas }),
            Self::Count(n) => n,
        };
        if self.is_local() && local == 0 {
            return Err(LevelError::NoLocalReplicas { level: self, datacenter });
        }
        if required > replicas {
            return Err(LevelError::TooMany { level: self, required, replicas });
        }
        Ok(match self {
            Self::LocalOne | Self::LocalQuorum => Demand::Local(required),
            Self::EachQuorum => Demand::Each,
            _ => Demand::Total(required),
        })
    }

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Any => "ANY",
            Self::One => "ONE",
            Self::Two => "TWO",
            Self::Three => "THREE",
            Self::Quorum => "QUORUM",
            Self::All => "ALL",
            Self::LocalOne => "LOCAL_ONE",
            Self::LocalQuorum => "LOCAL_QUORUM",
            Self::EachQuorum => "EACH_QUORUM",
            Self::Count(_) => return None,
        })
    }
}

impl fmt::Display for ConsistencyLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.pad(name),
            (None, Self::Count(n)) => fmt::Display::fmt(n, f),
            (None, other) => unreachable!("{other:?} has a name"),
        }
    }
}

impl FromStr for ConsistencyLevel {
    type Err = UnknownLevel;

    /// Reads a level's name, in any case, or a count of replicas.
    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        let named = Self::NAMED
            .into_iter()
            .find(|it| it.name().is_some_and(|name| name.eq_ignore_ascii_case(text)));
        let count = || text.parse().ok().map(Self::Count);
        named.or_else(count).ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

/// True if every set of replicas that satisfies `read` meets every one that satisfies `write`: R+W>N,
/// for levels of any scope. Both calls go through coordinators of `local_dc`.
///
/// `replicas_per_dc` is the keyspace's replication. Levels that it cannot satisfy never overlap, and
/// neither does ANY, which a hint alone satisfies.
pub fn overlaps(
    read: ConsistencyLevel,
    write: ConsistencyLevel,
    replicas_per_dc: &[(DcIndex, u8)],
    local_dc: DcIndex,
) -> bool {
    if [read, write].contains(&ConsistencyLevel::Any) {
        return false;
    }
    let replicas = replicas_per_dc.iter().fold(0, |sum: u8, it| sum.saturating_add(it.1));
    let local = replicas_per_dc.iter().find(|it| it.0 == local_dc).map_or(0, |it| it.1);
    let demand = |level: ConsistencyLevel| level.demand(replicas, local, local_dc);
    let (Ok(read), Ok(write)) = (demand(read), demand(write)) else { return false };

    // Two disjoint sets exist iff each datacenter can hold what both demand of it alone, and all of
    // them together what is demanded in total.
    let within = |demand, (dc, n): (DcIndex, u8)| match demand {
        Demand::Total(_) => 0,
        Demand::Local(required) => u8::from(dc == local_dc) * required,
        Demand::Each => u8::from(n > 0) * quorum(n),
    };
    let total = |demand| match demand {
        Demand::Total(required) => required,
        _ => replicas_per_dc.iter().map(|it| within(demand, *it)).sum(),
    };
    let fits = |it: &(DcIndex, u8)| within(read, *it) + within(write, *it) <= it.1;
    let disjoint = replicas_per_dc.iter().all(fits) && total(read) + total(write) <= replicas;
    !disjoint
}

/// True if calls at these levels may be made in a keyspace with `require_overlap`: R+W>N, 2W>N and
/// 2R>N in the levels' scope. Where the keyspace has several datacenters, a local level goes only
/// with a local level. Arguments as for `overlaps`.
pub fn satisfies_require_overlap(
    read: ConsistencyLevel,
    write: ConsistencyLevel,
    replicas_per_dc: &[(DcIndex, u8)],
    local_dc: DcIndex,
) -> bool {
    let datacenters = replicas_per_dc.iter().filter(|it| it.1 > 0).count();
    if datacenters > 1 && read.is_local() != write.is_local() {
        return false;
    }
    let meet = |a, b| overlaps(a, b, replicas_per_dc, local_dc);
    if Mutant::OverlapWithoutWrites.is_on() {
        return meet(read, write);
    }
    meet(read, write) && meet(write, write) && meet(read, read)
}

/// More than half.
fn quorum(replicas: u8) -> u8 {
    if Mutant::HalfIsAQuorum.is_on() {
        return (replicas / 2).max(1);
    }
    replicas / 2 + 1
}

fn count(mask: ReplicaMask) -> u8 {
    u8::try_from(mask.len()).expect("at most 32 replicas")
}

#[cfg(test)]
mod tests;
