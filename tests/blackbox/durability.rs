//! What was acknowledged is there after all nodes were killed at once under load, whatever else
//! happened to be in flight.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use model::{Key, Version};
use proto::{CallOutcome, v1, v1::ConsistencyLevel as Wire};

use crate::harness::{
    Api, Cluster, Keyspace, Options, PATIENCE, Random, datacenters, eventually, level, within,
};

/// What is known of one key, which has one writer.
#[derive(Clone, Debug, Default)]
struct Ledger {
    /// The newest acknowledged write; `None` as its value is a deletion.
    acknowledged: Option<(Version, Option<Bytes>)>,
    /// Writes that may have happened, or may yet.
    unknown: Vec<Option<Bytes>>,
    /// True if the acknowledgement means that every replica holds the write.
    at_all: bool,
}

impl Ledger {
    /// What is wrong with a value that was read.
    fn complaint(&self, version: Option<Version>, value: Option<&Bytes>) -> Option<String> {
        let acknowledged = self.acknowledged.as_ref();
        let at_least = acknowledged.map(|it| it.0).unwrap_or_default();
        let version = version.unwrap_or_default();
        if version < at_least {
            return Some(format!("lost: {version} is older than {at_least}, acknowledged"));
        }
        let matches = match acknowledged {
            Some((same, written)) if *same == version => written.as_ref() == value,
            None if version.is_absent() => value.is_none(),
            // Newer than what was acknowledged: then one of those of unknown outcome.
            _ => self.unknown.iter().any(|it| it.as_ref() == value),
        };
        let known = &self.unknown;
        (!matches)
            .then(|| format!("{value:?} at {version} is neither {acknowledged:?} nor of {known:?}"))
    }
}

type Ledgers = BTreeMap<Key, Ledger>;

/// One writer of a round: has its own keys, goes on until its nodes die.
struct Writer {
    number: usize,
    apis: Vec<Api>,
    random: Random,
    ledgers: Ledgers,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// Keys that each writer writes again and again.
const OVERWRITTEN: usize = 6;

impl Writer {
    async fn run(mut self, round: usize) -> Ledgers {
        let mut attempt = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            attempt += 1;
            let unique = format!("round {round}, writer {}, attempt {attempt}", self.number);
            match self.random.below(5) {
                // Every key once: nothing later can hide that it was lost.
                0 | 1 => self.put(Key::new(unique.clone()), unique, false).await,
                2 => {
                    let name =
                        format!("writer {}, key {}", self.number, self.random.below(OVERWRITTEN));
                    self.put(Key::new(name), unique, false).await;
                }
                3 => self.batch(&unique).await,
                _ if self.random.below(4) == 0 => self.delete().await,
                _ => self.put(Key::new(format!("{unique}, at all")), unique, true).await,
            }
        }
        self.ledgers
    }

    fn api(&mut self) -> Api {
        self.random.pick(&self.apis).clone()
    }

    /// A value that names its write and has some length.
    fn value(&mut self, unique: &str) -> Bytes {
        let length = [0, 50, 1_000, 20_000][self.random.below(4)];
        let mut value = unique.as_bytes().to_vec();
        value.extend(self.random.bytes(length));
        value.into()
    }

    fn note(
        &mut self,
        key: Key,
        value: Option<Bytes>,
        done: Result<Version, CallOutcome>,
        at_all: bool,
    ) {
        let ledger = self.ledgers.entry(key).or_default();
        match done {
            Ok(version) => {
                let newest = ledger.acknowledged.as_ref().is_none_or(|it| it.0 < version);
                assert!(newest, "{version} came after {ledger:?}");
                ledger.acknowledged = Some((version, value));
                ledger.at_all = at_all;
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(CallOutcome::Unknown) => ledger.unknown.push(value),
            Err(CallOutcome::NotApplied) => {}
        }
    }

    async fn put(&mut self, key: Key, unique: String, at_all: bool) {
        let value = self.value(&unique);
        let consistency = level(if at_all { Wire::All } else { Wire::Quorum });
        let done = self.api().set("plain", &key, value.clone(), consistency).await;
        let done = done.map(|it| it.version.expect("a version").into()).map_err(|it| it.outcome);
        self.note(key, Some(value), done, at_all);
    }

    async fn delete(&mut self) {
        let key =
            Key::new(format!("writer {}, key {}", self.number, self.random.below(OVERWRITTEN)));
        let done = self.api().remove("plain", &key, level(Wire::Quorum)).await;
        let done = done.map(|it| it.version.expect("a version").into()).map_err(|it| it.outcome);
        self.note(key, None, done, false);
    }

    async fn batch(&mut self, unique: &str) {
        let names: Vec<_> =
            (0..20).map(|it| Key::with_sort_key(unique.to_owned(), format!("{it}"))).collect();
        let values: Vec<_> = names.iter().map(|_| self.value(unique)).collect();
        let item = |(key, value): (&Key, &Bytes)| v1::BatchWriteItem {
            key: Some(key.clone().into()),
            write: Some(v1::batch_write_item::Write::Put(value.clone())),
            ..v1::BatchWriteItem::default()
        };
        let request = v1::BatchWriteRequest {
            keyspace: "plain".to_owned(),
            items: names.iter().zip(&values).map(item).collect(),
            consistency: level(Wire::Quorum),
            clock: 0,
        };
        let answer = self.api().batch_write(request).await;
        let failed = answer.as_ref().err().map(|it| it.outcome);
        let mut results = answer.map(|it| it.results).unwrap_or_default().into_iter();
        for (key, value) in names.into_iter().zip(values) {
            let done = match (failed, results.next().and_then(|it| it.result)) {
                (_, Some(v1::batch_write_result::Result::Version(it))) => Ok(it.into()),
                (_, Some(v1::batch_write_result::Result::Error(it))) => {
                    Err(proto::CallError::from_key_error(it).outcome)
                }
                (Some(outcome), None) => Err(outcome),
                (None, None) => panic!("a batch with fewer results than items"),
            };
            self.note(key, Some(value), done, false);
        }
    }
}

/// Writes until so many are acknowledged, then kills every node at once.
async fn load_and_kill(
    cluster: &mut Cluster,
    random: &mut Random,
    round: usize,
    ledgers: &mut Ledgers,
    acknowledged_min: u64,
) {
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = Vec::new();
    for number in 0..8 {
        let own = format!("writer {number}, ");
        let writer = Writer {
            number,
            apis: (0..cluster.len()).map(|it| cluster.api(it)).collect(),
            random: Random::from_seed(random.next()),
            // The keys that this writer overwrites, as they were left.
            ledgers: (ledgers.iter())
                .filter(|it| it.0.partition_key.starts_with(own.as_bytes()))
                .map(|it| (it.0.clone(), it.1.clone()))
                .collect(),
            acknowledged: Arc::clone(&acknowledged),
            stop: Arc::clone(&stop),
        };
        writers.push(tokio::spawn(writer.run(round)));
    }
    eventually("the load runs", async || {
        let count = acknowledged.load(Ordering::Relaxed);
        if count >= acknowledged_min { Ok(()) } else { Err(format!("{count} acknowledged")) }
    })
    .await;
    let all: Vec<usize> = (0..cluster.len()).collect();
    cluster.kill(&all);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        ledgers.extend(within("a writer ends", PATIENCE, writer).await.expect("a writer"));
    }
}

/// Every key through one node at QUORUM. Returns what is wrong.
async fn check_all(cluster: &Cluster, ledgers: &Ledgers) -> Vec<String> {
    let mut complaints = Vec::new();
    let keys: Vec<&Key> = ledgers.keys().collect();
    for (at, part) in keys.chunks(200).enumerate() {
        let request = v1::BatchGetRequest {
            keyspace: "plain".to_owned(),
            keys: part.iter().map(|it| (*it).clone().into()).collect(),
            consistency: level(Wire::Quorum),
            clock: 0,
        };
        let answer = cluster.api(at % cluster.len()).batch_get(request).await.expect("a batch");
        assert_eq!(answer.results.len(), part.len());
        for (key, result) in part.iter().zip(answer.results) {
            let Some(v1::batch_get_result::Result::Found(found)) = result.result else {
                panic!("{key:?}: {result:?}")
            };
            let value = found.found.then_some(&found.value);
            let version = found.version.map(Into::into);
            let complaint = ledgers[*key].complaint(version, value);
            complaints.extend(complaint.map(|it| format!("{key:?}: {it}")));
        }
    }
    complaints
}

/// What was acknowledged at ALL is at every replica, before any read could have repaired it.
async fn check_each_replica(cluster: &Cluster, ledgers: &Ledgers, count: usize) -> usize {
    let at_all: Vec<_> = ledgers.iter().filter(|it| it.1.at_all).collect();
    let newest_last = at_all.len().saturating_sub(count);
    for (key, ledger) in &at_all[newest_last..] {
        let (written, _) = ledger.acknowledged.as_ref().expect("acknowledged");
        let seen = cluster.api(0).explain("plain", key).await.expect("an explanation");
        assert_eq!(seen.replicas.len(), 3);
        for replica in seen.replicas {
            let version: Version = replica.version.map(Into::into).unwrap_or_default();
            assert!(
                replica.answered && version >= *written,
                "{key:?}: {} holds {version}, acknowledged at ALL was {written}",
                replica.address,
            );
        }
    }
    at_all.len() - newest_last
}

#[tokio::test]
async fn every_acknowledged_write_survives() {
    const ROUNDS: usize = 4;
    /// Most kills hit a write in flight; a test that meets none of those in so many proves nothing.
    const ROUNDS_MAX: usize = 20;
    let mut random = Random::new("every_acknowledged_write_survives");
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::default()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let mut ledgers = Ledgers::new();
    let unknown = |it: &Ledgers| it.values().map(|it| it.unknown.len()).sum::<usize>();
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS && unknown(&ledgers) > 0 {
            break;
        }
        load_and_kill(&mut cluster, &mut random, round, &mut ledgers, 600).await;
        let all: Vec<usize> = (0..cluster.len()).collect();
        cluster.restart(&all).await;
        let at_all = check_each_replica(&cluster, &ledgers, 100).await;
        assert!(at_all > 10, "only {at_all} writes at ALL to look at");
        let complaints = check_all(&cluster, &ledgers).await;
        assert!(complaints.is_empty(), "round {round}: {}", complaints.join("\n"));
    }
    let acknowledged = ledgers.values().filter(|it| it.acknowledged.is_some()).count();
    let unknown = unknown(&ledgers);
    println!("{acknowledged} keys acknowledged, {unknown} writes of unknown outcome");
    assert!(unknown > 0, "no kill ever hit a write in flight: the load is too weak");
    // Once more at the end, when reads have settled everything: nothing may have come loose.
    assert_eq!(check_all(&cluster, &ledgers).await, [""; 0]);
    // And the check can fail: a value that nobody wrote, a version that nobody got.
    let (key, ledger) = ledgers.iter_mut().find(|it| it.1.acknowledged.is_some()).expect("some");
    let (version, _) = ledger.acknowledged.clone().expect("found so");
    ledger.acknowledged = Some((version, Some("never written".into())));
    let (key, expected) = (key.clone(), [(key.clone(), ledger.clone())].into());
    assert_eq!(check_all(&cluster, &expected).await.len(), 1, "{key:?}");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            fs::copy(&path, &copy).expect("a copy");
        }
    }
}

/// The ledger notices when writes are lost: all disks go back to what they held earlier. Of fewer the others
/// would know.
#[tokio::test]
async fn lost_writes_are_noticed() {
    let mut random = Random::new("lost_writes_are_noticed");
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let (all, mut ledgers) = ([0, 1, 2], Ledgers::new());
    load_and_kill(&mut cluster, &mut random, 0, &mut ledgers, 100).await;
    for at in all {
        let earlier = cluster.folder().join(format!("earlier-{at}"));
        copy_folder(&cluster.node(at).data, &earlier);
    }
    cluster.restart(&all).await;
    assert_eq!(check_all(&cluster, &ledgers).await, [""; 0]);
    load_and_kill(&mut cluster, &mut random, 1, &mut ledgers, 300).await;
    for at in all {
        let data = &cluster.node(at).data;
        fs::remove_dir_all(data).expect("removed");
        copy_folder(&cluster.folder().join(format!("earlier-{at}")), data);
    }
    cluster.restart(&all).await;
    let complaints = check_all(&cluster, &ledgers).await;
    println!("{} complaints, such as {:?}", complaints.len(), complaints.first());
    assert!(complaints.iter().any(|it| it.contains("lost:")), "{complaints:?}");
}
