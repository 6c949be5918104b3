//! One sweep: every level, for every kind of call, through some coordinators, against the dumb model.

use std::collections::BTreeSet;

use bytes::Bytes;
use model::Key;
use proto::{CallOutcome, Reason, v1};

use super::expected::{Lack, Level, Verdict, World, node_of, replicas_of};
use crate::harness::{Api, Called, Cluster, Random};

/// A keyspace under test, as the model has to know it.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) keyspace: &'a str,
    pub(super) allow_any: bool,
    /// The keyspace's own levels.
    pub(super) read: Level,
    pub(super) write: Level,
    /// Tells the model that a healthy replica is dead, to show that the sweep would notice.
    pub(super) lie: bool,
}

impl<'a> Subject<'a> {
    /// Without ANY, and with QUORUM both ways.
    pub(super) fn new(cluster: &'a Cluster, keyspace: &'a str) -> Self {
        let (read, write) = (Level::Quorum, Level::Quorum);
        Self { cluster, keyspace, allow_any: false, read, write, lie: false }
    }
}

/// What a sweep has seen, so that a sweep over nothing is noticed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) reached: usize,
    pub(super) unavailable: usize,
    pub(super) impossible: usize,
}

/// Everything about one call that is checked.
struct Call<'a> {
    subject: &'a Subject<'a>,
    topology: &'a v1::GetTopologyResponse,
    coordinator: usize,
    world: World,
    level: Level,
    writes: bool,
    what: String,
}

impl Call<'_> {
    fn check_participation(&self, participation: &v1::Participation, required: usize) {
        let what = &self.what;
        let Self { world, level, .. } = self;
        let said = usize::try_from(participation.required).expect("few");
        assert_eq!(said, required, "{what}: required");
        let nodes = participation.answered.iter();
        let nodes = nodes.map(|it| node_of(self.subject.cluster, self.topology, *it));
        let answered: BTreeSet<usize> = nodes.collect();
        assert_eq!(answered.len(), participation.answered.len(), "{what}: a node counted twice");
        let alive_replicas: BTreeSet<usize> = world.replicas.values().flatten().copied().collect();
        let strangers: Vec<_> = answered.difference(&alive_replicas).collect();
        assert!(strangers.is_empty(), "{what}: {strangers:?} hold no replica");
        let dead: Vec<_> = answered.difference(&world.alive).collect();
        assert!(dead.is_empty(), "{what}: {dead:?} are dead and answered");
        let by_hint = *level == Level::Any && answered.is_empty();
        assert!(by_hint || world.satisfied_by(*level, &answered), "{what}: {answered:?}");
        let by = node_of(self.subject.cluster, self.topology, participation.coordinator);
        assert_eq!(by, self.coordinator, "{what}: coordinator");
        let overlap = match self.writes {
            true => world.overlap(self.subject.read, *level),
            false => world.overlap(*level, self.subject.write),
        };
        assert_eq!(participation.overlap, overlap, "{what}: R + W > N");
    }

    /// Checks a call against the model; its answer if it was to succeed.
    fn check<T>(&self, called: Called<T>, seen: &mut Seen) -> Option<(T, usize)> {
        let what = &self.what;
        match (self.world.verdict(self.level, self.writes), called) {
            (Verdict::Reached(required), Ok(answer)) => {
                seen.reached += 1;
                return Some((answer, required));
            }
            (Verdict::Impossible, Err(error)) => {
                assert_eq!(error.reason, Reason::InvalidConsistency, "{what}: {error}");
                assert_eq!(error.code, tonic::Code::InvalidArgument, "{what}: {error}");
                assert_eq!(error.field.as_deref(), Some("consistency"), "{what}: {error}");
                assert_eq!(error.outcome, CallOutcome::NotApplied, "{what}: {error}");
                seen.impossible += 1;
            }
            (Verdict::Unavailable(lacks), Err(error)) => {
                assert_eq!(error.reason, Reason::NotEnoughReplicas, "{what}: {error}");
                assert_eq!(error.code, tonic::Code::Unavailable, "{what}: {error}");
                assert_eq!(error.outcome, CallOutcome::NotApplied, "{what}: {error}");
                assert!(error.retry_after.is_some(), "{what}: when to try again");
                let number = |name: &str| {
                    let text = error.metadata.get(name).unwrap_or_else(|| panic!("{what}: {name}"));
                    text.parse::<usize>().expect("a number")
                };
                let datacenter = error.metadata.get("datacenter").cloned();
                let (required, alive) = (number("required"), number("alive"));
                let said = Lack { datacenter, required, alive };
                assert!(lacks.contains(&said), "{what}: {said:?}, not of {lacks:?}");
                assert_eq!(error.metadata.get("level"), Some(&self.level.to_string()), "{what}");
                seen.unavailable += 1;
            }
            (verdict, Ok(_)) => panic!("{what}: succeeded, expected {verdict:?}"),
            (verdict, Err(error)) => panic!("{what}: {error}, expected {verdict:?}"),
        }
        None
    }
}

/// Puts, gets, batches, scans and deletes at every level through these coordinators.
pub(super) async fn sweep(subject: &Subject<'_>, through: &[usize], random: &mut Random) -> Seen {
    let mut seen = Seen::default();
    let topology = subject.cluster.api(through[0]).topology().await.expect("a topology");
    for coordinator in through {
        let api = subject.cluster.api(*coordinator);
        for level in Level::all() {
            let name = format!("{level}-{coordinator}-{:x}", random.next());
            let key = Key::with_sort_key(name.clone(), "row");
            let mut world = World {
                replicas: replicas_of(subject.cluster, &topology, subject.keyspace, &key),
                alive: subject.cluster.running().into_iter().collect(),
                local: subject.cluster.node(*coordinator).datacenter.clone(),
                allow_any: subject.allow_any,
            };
            if subject.lie {
                let some = *world.replicas.values().flatten().next().expect("replicas");
                world.alive.remove(&some);
            }
            let call = |kind: &str, writes: bool| Call {
                subject,
                topology: &topology,
                coordinator: *coordinator,
                world: world.clone(),
                level,
                writes,
                what: format!("{kind} at {level} through node {coordinator}, {:?} up", world.alive),
            };
            one_level(&api, subject.keyspace, &key, name.into(), call, &mut seen).await;
        }
    }
    seen
}

async fn one_level<'a>(
    api: &Api,
    keyspace: &str,
    key: &Key,
    value: Bytes,
    call: impl Fn(&str, bool) -> Call<'a>,
    seen: &mut Seen,
) {
    let put = call("put", true);
    let wire = put.level.wire();
    let done = api.set(keyspace, key, value.clone(), wire).await;
    let written = put.check(done, seen);
    if let Some((answer, required)) = &written {
        let participation = answer.participation.as_ref().expect("who took part");
        put.check_participation(participation, *required);
        assert!(answer.version.is_some() && answer.clock > 0, "{}", put.what);
    }
    let get = call("get", false);
    let done = api.read(keyspace, key, wire).await;
    if let Some((answer, required)) = get.check(done, seen) {
        let participation = answer.participation.as_ref().expect("who took part");
        get.check_participation(participation, required);
        if written.is_some() && get.world.overlap(get.level, get.level) {
            assert_eq!((answer.found, &answer.value), (true, &value), "{}", get.what);
        }
    }
    batches(api, keyspace, key, wire, &call, seen).await;
    let scan = call("scan", false);
    let request = v1::ScanRequest {
        keyspace: keyspace.to_owned(),
        range: Some(v1::scan_request::Range::Partition(v1::PartitionScan {
            partition_key: key.partition_key.clone(),
            ..v1::PartitionScan::default()
        })),
        consistency: wire,
        ..v1::ScanRequest::default()
    };
    if let Some((pages, required)) = scan.check(api.scan(request).await, seen) {
        let participation = pages[0].participation.as_ref().expect("who took part");
        assert_eq!(usize::try_from(participation.required), Ok(required), "{}", scan.what);
        if written.is_some() && scan.world.overlap(scan.level, scan.level) {
            let rows: Vec<_> = pages.iter().flat_map(|it| &it.rows).map(|it| &it.value).collect();
            assert_eq!(rows, [&value, &value], "{}: the put and the batch", scan.what);
        }
    }
    let delete = call("delete", true);
    if let Some((answer, required)) = delete.check(api.remove(keyspace, key, wire).await, seen) {
        let participation = answer.participation.as_ref().expect("who took part");
        delete.check_participation(participation, required);
        let again = api.read(keyspace, key, wire).await;
        if get.world.overlap(get.level, get.level) {
            let gone = again.expect("a read went well just before");
            assert!(!gone.found && gone.value.is_empty(), "{}: deleted", delete.what);
            assert_eq!(gone.version, answer.version, "{}: the deletion's version", delete.what);
        }
    }
}

/// A batch of one key beside the key, with the same value.
async fn batches<'a>(
    api: &Api,
    keyspace: &str,
    key: &Key,
    wire: Option<v1::Consistency>,
    call: &impl Fn(&str, bool) -> Call<'a>,
    seen: &mut Seen,
) {
    let beside = v1::Key {
        partition_key: key.partition_key.clone(),
        sort_key: Bytes::from_static(b"row, of a batch"),
    };
    let value = key.partition_key.clone();
    let item = v1::BatchWriteItem {
        key: Some(beside.clone()),
        write: Some(v1::batch_write_item::Write::Put(value.clone())),
        ..v1::BatchWriteItem::default()
    };
    let request = v1::BatchWriteRequest {
        keyspace: keyspace.to_owned(),
        items: vec![item],
        consistency: wire,
        clock: 0,
    };
    let write = call("batch write", true);
    let answer = match api.batch_write(request).await {
        Ok(answer) => answer,
        // A level that nobody could mean is the fault of the batch, not of each key.
        Err(error) => {
            assert!(write.check::<()>(Err(error), seen).is_none(), "{}", write.what);
            return;
        }
    };
    let required = answer.participation.as_ref().expect("who took part").required;
    let [v1::BatchWriteResult { result: Some(result) }] = &answer.results[..] else {
        panic!("{}: {answer:?}", write.what)
    };
    let done = match result.clone() {
        v1::batch_write_result::Result::Version(version) => Ok(version),
        v1::batch_write_result::Result::Error(error) => Err(key_error(error)),
    };
    let written = write.check(done, seen).is_some_and(|(_, expected)| {
        assert_eq!(usize::try_from(required), Ok(expected), "{}", write.what);
        true
    });
    let request = v1::BatchGetRequest {
        keyspace: keyspace.to_owned(),
        keys: vec![beside],
        consistency: wire,
        clock: 0,
    };
    let get = call("batch get", false);
    let answer = api.batch_get(request).await.unwrap_or_else(|it| panic!("{}: {it}", get.what));
    let [v1::BatchGetResult { result: Some(result) }] = &answer.results[..] else {
        panic!("{}: {answer:?}", get.what)
    };
    let done = match result.clone() {
        v1::batch_get_result::Result::Found(found) => Ok(found),
        v1::batch_get_result::Result::Error(error) => Err(key_error(error)),
    };
    if let Some((found, _)) = get.check(done, seen)
        && written
        && get.world.overlap(get.level, get.level)
    {
        assert_eq!((found.found, &found.value), (true, &value), "{}", get.what);
    }
}

/// A key's error in a batch. It carries neither the field nor when to try again: those are filled in,
/// so that one check serves both kinds of call.
fn key_error(error: v1::KeyError) -> proto::CallError {
    let mut it = proto::CallError::from_key_error(error);
    it.field = Some("consistency".to_owned());
    it.retry_after = Some(std::time::Duration::ZERO);
    it
}
