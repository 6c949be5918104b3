//! What takes the place of a record that is damaged: the newest of what enough of the other replicas
//! hold. Rule: docs/protocol.md, F9.
//!
//! The damaged record may have been the newest, and one of a quorum that a write was acknowledged by. So
//! the others have to be so many that each quorum with this replica has another one of them in it: of all
//! replicas, and of those of its own datacenter, whose quorums answer for themselves.

use model::{Hlc, Mutant, Record, ReplicaIndex, ReplicaMask, ReplicaSet};

/// What one of the other replicas has said that it holds for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Who.
    pub replica: ReplicaIndex,
    /// Its record; `None` if it holds none.
    pub record: Option<Record>,
    /// Its floor, before it looked.
    pub floor: Hlc,
}

/// What takes the damaged record's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heir {
    /// The record; `None` if nobody holds one: then the damaged one goes.
    pub record: Option<Record>,
    /// The floor of who holds it (F8).
    pub floor: Hlc,
}

/// Finds what takes the place of a record that is damaged at the replica `own`, whose floor is
/// `own_floor`; `None` while too few of the others have named what they hold. One with a lower floor says
/// nothing that counts (F8).
pub fn heir(
    replicas: &ReplicaSet,
    own: ReplicaIndex,
    own_floor: Hlc,
    named: &[Named],
) -> Option<Heir> {
    let counted = || named.iter().filter(|it| it.replica != own && it.floor >= own_floor);
    let heard =
        counted().fold(ReplicaMask::EMPTY, |heard, it| heard.or(ReplicaMask::only(it.replica)));
    let datacenter = replicas.datacenters().iter().find(|it| it.1.contains(own))?.1;
    let scopes = [replicas.all(), datacenter];
    let enough = scopes.into_iter().all(|scope| heard.and(scope).len() >= needed(scope));
    let one_is_enough = Mutant::HealsFromOne.is_on() && !heard.is_empty();
    if !enough && !one_is_enough {
        return None;
    }
    let newest = counted().max_by_key(|it| {
        let rank = |it: &Record| (it.version(), it.crc());
        // Of equal records that of the highest floor.
        (it.record.as_ref().map(rank), it.floor)
    });
    newest.map(|it| Heir { record: it.record.clone(), floor: it.floor })
}

/// How many other replicas of a scope meet each quorum of it that the damaged one was in.
fn needed(scope: ReplicaMask) -> u32 {
    let (all, quorum) = (scope.len(), scope.len() / 2 + 1);
    all - quorum + 1
}

#[cfg(test)]
mod tests {
    use model::{DcIndex, Key, KeyspaceId, NodeIndex, RequestId, StorageKey, Version};
    use proptest::prelude::*;

    use super::*;

    fn record(at: u64) -> Record {
        let key = Key::new(&b"k"[..]);
        let key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
        let version = Version { hlc: Hlc(at), request: RequestId(1) };
        Record::encode(&key, version, 0, Some(&at.to_be_bytes()))
    }

    fn replicas(datacenters: &[usize]) -> ReplicaSet {
        let mut next = 0..;
        let mut nodes =
            |count: usize| -> Vec<NodeIndex> { next.by_ref().take(count).map(NodeIndex).collect() };
        let of = |(dc, count): (u8, &usize)| (DcIndex(dc), nodes(*count));
        let sets: Vec<_> = (0..).zip(datacenters).map(of).collect();
        ReplicaSet::new(sets)
    }

    /// Replica 0 is damaged, its floor is 10. "1:7" says that replica 1 holds the record of 7, "2:-" that
    /// replica 2 holds none, and a "!" behind it that its floor is lower.
    fn check(datacenters: &[usize], said: &str) -> String {
        let named = said.split_whitespace().map(|it| {
            let (replica, held) = it.split_once(':').unwrap();
            let floor = Hlc(if held.ends_with('!') { 9 } else { 10 });
            let record = held.trim_end_matches('!').parse().ok().map(record);
            Named { replica: ReplicaIndex(replica.parse().unwrap()), record, floor }
        });
        let named: Vec<_> = named.collect();
        match heir(&replicas(datacenters), ReplicaIndex(0), Hlc(10), &named) {
            None => "wait".to_owned(),
            Some(Heir { record: None, .. }) => "nothing".to_owned(),
            Some(Heir { record: Some(it), .. }) => it.version().hlc.0.to_string(),
        }
    }

    #[test]
    fn the_newest_of_enough_others_stays() {
        assert_eq!(check(&[3], "1:20"), "wait", "one of three");
        assert_eq!(check(&[3], "1:20 1:21"), "wait", "twice the same");
        assert_eq!(check(&[3], "1:20 0:99"), "wait", "its own word counts not");
        assert_eq!(check(&[3], "1:20 2:30"), "30");
        assert_eq!(check(&[3], "1:- 2:30"), "30");
        assert_eq!(check(&[3], "1:- 2:-"), "nothing");
        assert_eq!(check(&[3], "1:20 2:30!"), "wait", "a lower floor");
        assert_eq!(check(&[5], "1:20 2:30"), "wait");
        assert_eq!(check(&[5], "1:20 2:30 4:-"), "30");
        assert_eq!(check(&[1], ""), "wait", "the only copy");
        assert_eq!(check(&[1, 1, 1], "1:20 2:20"), "wait", "the only one of its datacenter");
        assert_eq!(check(&[3, 3], "3:20 4:20 5:20"), "wait", "nobody of its own datacenter");
        assert_eq!(check(&[3, 3], "1:20 2:20"), "wait", "too few of all");
        assert_eq!(check(&[3, 3], "1:20 2:20 5:40"), "40");
        assert_eq!(check(&[2], "1:7"), "7");
    }

    proptest! {
        /// A write that any quorum with the damaged replica has acknowledged is never lost.
        #[test]
        fn what_a_quorum_acknowledged_stays(
            datacenters in proptest::collection::vec(1usize..4, 1..4),
            local: bool,
            chosen in proptest::collection::vec(any::<bool>(), 12),
            heard in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let replicas = replicas(&datacenters);
            let scope = if local { replicas.datacenters()[0].1 } else { replicas.all() };
            let acked: Vec<_> = scope.iter().filter(|it| it.0 == 0 || chosen[it.index()]).collect();
            prop_assume!(acked.len() > scope.iter().count() / 2);
            let said = replicas.all().iter().filter(|it| it.0 > 0 && heard[it.index()]);
            let named: Vec<_> = said
                .map(|it| {
                    let at = if acked.contains(&it) { 20 } else { 10 };
                    Named { replica: it, record: Some(record(at)), floor: Hlc(0) }
                })
                .collect();
            if let Some(it) = heir(&replicas, ReplicaIndex(0), Hlc(0), &named) {
                prop_assert_eq!(it.record.map(|it| it.version().hlc), Some(Hlc(20)));
            }
        }
    }
}
