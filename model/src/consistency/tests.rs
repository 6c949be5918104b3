use ConsistencyLevel::{
    All, Any, Count, EachQuorum, LocalOne, LocalQuorum, One, Quorum, Three, Two,
};

use super::*;
use crate::NodeIndex;

const LOCAL: DcIndex = DcIndex(0);

fn replica_set(sizes: &[u8]) -> ReplicaSet {
    let mut nodes = (0..).map(NodeIndex);
    let dcs = (0..).map(DcIndex).zip(sizes);
    ReplicaSet::new(dcs.map(|(dc, n)| (dc, nodes.by_ref().take(usize::from(*n)).collect())))
}

fn levels() -> impl Iterator<Item = ConsistencyLevel> + Clone {
    ConsistencyLevel::NAMED.into_iter().chain((0..=9).map(Count))
}

#[test]
fn names() {
    for level in levels() {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    assert_eq!(EachQuorum.to_string(), "EACH_QUORUM");
    assert_eq!("local_quorum".parse(), Ok(LocalQuorum));
    assert_eq!("2".parse(), Ok(Count(2)));
    for unknown in ["", "FOUR", "-1", "256", "QUORUM "] {
        assert_eq!(unknown.parse::<ConsistencyLevel>(), Err(UnknownLevel(unknown.to_owned())));
    }
}

/// The scopes of a write as "mask: required/quorum", or the error.
fn check(level: ConsistencyLevel, sizes: &[u8], expected: &str) {
    let actual = match Requirement::for_write(level, &replica_set(sizes), LOCAL, true) {
        Ok(it) => {
            let scope =
                |it: &ScopeRequirement| format!("{:b}: {}/{}", it.mask.0, it.required, it.quorum);
            it.scopes().iter().map(scope).collect::<Vec<_>>().join(", ")
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(actual, expected, "{level} of {sizes:?}");
}

#[test]
fn requirements() {
    check(Any, &[3], "111: 1/2");
    check(One, &[3], "111: 1/2");
    check(Two, &[3], "111: 2/2");
    check(Three, &[3], "111: 3/2");
    check(Quorum, &[4], "1111: 3/3");
    check(Quorum, &[3, 3, 3], "111111111: 5/5");
    check(All, &[2, 1], "111: 3/2");
    check(LocalOne, &[3, 2], "111: 1/2");
    check(LocalQuorum, &[3, 2], "111: 2/2");
    check(EachQuorum, &[3, 0, 2], "111: 2/2, 11000: 2/2");
    check(Count(4), &[3, 3], "111111: 4/4");
}

#[test]
fn refusals() {
    check(Two, &[1], "TWO requires 2 replicas, and the keyspace has 1");
    check(Count(7), &[3, 3], "7 requires 7 replicas, and the keyspace has 6");
    check(Count(0), &[3], "a count of 0 replicas promises nothing: give 1 to 3");
    check(EachQuorum, &[], "EACH_QUORUM requires 1 replicas, and the keyspace has 0");
    check(All, &[], "ALL requires 1 replicas, and the keyspace has 0");
    let nowhere = "needs replicas in the coordinator's datacenter, and the keyspace has none there";
    check(LocalOne, &[0, 3], &format!("LOCAL_ONE {nowhere}"));
    check(LocalQuorum, &[0, 3], &format!("LOCAL_QUORUM {nowhere}"));

    let replicas = replica_set(&[3]);
    let refused = Requirement::for_write(Any, &replicas, LOCAL, false);
    assert_eq!(refused, Err(LevelError::AnyNotAllowed));
    assert_eq!(Requirement::for_read(Any, &replicas, LOCAL), Err(LevelError::AnyRead));
}

#[test]
fn quorum_levels_are_ordered() {
    let ordered = |level, sizes: &[u8]| {
        Requirement::for_read(level, &replica_set(sizes), LOCAL).unwrap().is_ordered()
    };
    for level in [Two, Quorum, All, LocalQuorum, EachQuorum, Count(2), Count(3)] {
        assert!(ordered(level, &[3]), "{level}");
    }
    for level in [One, LocalOne, Count(1)] {
        assert!(!ordered(level, &[3]), "{level}");
        assert!(ordered(level, &[1]), "{level} of one replica");
    }
    assert!(!ordered(Three, &[3, 3]));
}

/// A dumb judge of a level: whether these replicas (one number per datacenter) satisfy it.
fn satisfies(level: ConsistencyLevel, sizes: &[u8], chosen: &[u8]) -> bool {
    let total: u8 = chosen.iter().sum();
    let all: u8 = sizes.iter().sum();
    match level {
        Any => true,
        One => total >= 1,
        Two => total >= 2,
        Three => total >= 3,
        Quorum => total > all / 2,
        All => total == all,
        LocalOne => chosen[0] >= 1,
        LocalQuorum => chosen[0] > sizes[0] / 2,
        EachQuorum => chosen.iter().zip(sizes).all(|it| *it.1 == 0 || *it.0 > *it.1 / 2),
        Count(n) => total >= n,
    }
}

/// For each subset of the replicas, a bit each: how many it has in each datacenter.
fn subsets(sizes: &[u8]) -> Vec<Vec<u8>> {
    let all: u32 = sizes.iter().map(|it| u32::from(*it)).sum();
    let count = |subset: u32| {
        let mut left = subset;
        let mut take = |n: &u8| {
            let part = left & ((1 << n) - 1);
            left >>= n;
            u8::try_from(part.count_ones()).unwrap()
        };
        sizes.iter().map(&mut take).collect()
    };
    (0..1 << all).map(count).collect()
}

#[test]
fn overlap_is_that_of_all_subsets() {
    for n in 0..64u8 {
        let sizes = [n % 4, n / 4 % 4, n / 16];
        let dcs: Vec<_> = (0..).map(DcIndex).zip(sizes).collect();
        let replicas = replica_set(&sizes);
        let subsets = subsets(&sizes);
        let usable = |level| Requirement::new(level, &replicas, LOCAL).is_ok();
        let satisfying = |level| -> Vec<usize> {
            (0..subsets.len()).filter(|it| satisfies(level, &sizes, &subsets[*it])).collect()
        };
        for write in levels() {
            let writes = satisfying(write);
            for read in levels() {
                // Sets that satisfy a level still do with more replicas: the complement decides.
                let meets =
                    |set: &usize| !satisfies(read, &sizes, &subsets[subsets.len() - 1 - set]);
                let valid = usable(read) && usable(write) && ![read, write].contains(&Any);
                let expected = valid && writes.iter().all(meets);
                let actual = overlaps(read, write, &dcs, LOCAL);
                assert_eq!(actual, expected, "read {read}, write {write} of {sizes:?}");
            }
        }
    }
}

#[test]
fn require_overlap() {
    let check = |read, write, sizes: &[u8]| {
        let dcs: Vec<_> = (0..).map(DcIndex).zip(sizes.iter().copied()).collect();
        (overlaps(read, write, &dcs, LOCAL), satisfies_require_overlap(read, write, &dcs, LOCAL))
    };
    assert_eq!(check(Quorum, Quorum, &[3]), (true, true));
    assert_eq!(check(All, One, &[3]), (true, false), "2W>N does not hold (CE5)");
    assert_eq!(check(One, All, &[3]), (true, false), "2R>N does not hold");
    assert_eq!(check(Quorum, One, &[3]), (false, false));
    assert_eq!(check(Two, Quorum, &[4]), (true, false));
    assert_eq!(check(One, One, &[1]), (true, true));
    assert_eq!(check(LocalQuorum, LocalQuorum, &[3, 3]), (true, true));
    assert_eq!(check(LocalQuorum, EachQuorum, &[3, 3]), (true, false), "not the same scope");
    assert_eq!(check(LocalQuorum, Quorum, &[3]), (true, true), "the same scope");
    assert_eq!(check(LocalQuorum, Quorum, &[3, 3]), (false, false));
    assert_eq!(check(Quorum, EachQuorum, &[3, 3, 3]), (true, true));
    assert_eq!(check(EachQuorum, EachQuorum, &[3, 3, 3]), (true, true));
    assert_eq!(check(One, Any, &[1]), (false, false));
}
