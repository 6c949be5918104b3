//! Watches a node while it is mistreated: a well-behaved client that must not notice, and the node's
//! books before and after.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use model::Key;
use tokio::task::JoinHandle;

use crate::harness::{Api, Cluster, PATIENCE, eventually, within};

/// Far more than a write and a read take on a busy machine, far less than a node that is stuck takes.
const PROMPTLY: Duration = Duration::from_secs(8);

/// A client that writes and reads all the time, and expects answers.
pub(super) struct Witness {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    running: JoinHandle<()>,
}

impl Witness {
    /// Starts, on a connection of its own that stands before anything bad happens.
    pub(super) async fn start(cluster: &Cluster, keyspace: &str) -> Self {
        let api = Api::new(cluster.node(0).client);
        api.status().await.expect("a healthy node");
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, keyspace) = (stop.clone(), served.clone(), keyspace.to_owned());
        let running = tokio::spawn(async move {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (key, value) =
                    (Key::new(format!("witness {}", number % 50)), number.to_string());
                let put = api.set(&keyspace, &key, value.clone(), None);
                let put = within("the witness writes", PROMPTLY, put).await;
                put.unwrap_or_else(|it| panic!("the witness cannot write: {it}"));
                let read =
                    within("the witness reads", PROMPTLY, api.read(&keyspace, &key, None)).await;
                let read = read.unwrap_or_else(|it| panic!("the witness cannot read: {it}"));
                assert_eq!(read.value, value.as_bytes(), "what the witness wrote");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, served, running }
    }

    /// Waits until it was served some more, then ends it. Panics if it was ever let down.
    pub(super) async fn finish(self) {
        let before = self.served.load(Ordering::Relaxed);
        eventually("the witness is served", async || {
            let served = self.served.load(Ordering::Relaxed);
            let enough = served > before + 3 || self.running.is_finished();
            if enough { Ok(()) } else { Err(format!("{served} times")) }
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        within("the witness ends", PATIENCE, self.running).await.expect("the witness was let down");
    }
}

/// The books of a node at rest.
#[derive(Debug)]
pub(super) struct Books {
    at: usize,
    connections: u64,
    sockets: usize,
    resident_kib: u64,
}

/// How much a node's memory may have grown after a test, in KiB: its caches and memtables fill, and
/// its allocator keeps what it was given. A leak under floods of a hundred thousand would show.
const GROWTH_KIB_MAX: u64 = 64 << 10;

impl Books {
    /// Takes them, when the node is at rest.
    pub(super) async fn of(cluster: &Cluster, at: usize) -> Self {
        let connections = cluster.api(at).counter("connections").await;
        let process = cluster.process(at);
        let (sockets, resident_kib) = (process.sockets(), process.resident_kib());
        Self { at, connections, sockets, resident_kib }
    }

    /// Waits until the node is as it was: no connection, no socket, no operation is left over, and
    /// memory within `GROWTH_KIB_MAX` of what it was.
    pub(super) async fn assert_balanced(&self, cluster: &Cluster) {
        let api = cluster.api(self.at);
        eventually("nothing is left behind", async || {
            let status = api.status().await.map_err(|it| it.to_string())?;
            let [connections, operations, call_bytes] =
                ["connections", "operations_in_flight", "call_bytes"].map(|it| status.counters[it]);
            let process = cluster.process(self.at);
            let (sockets, resident_kib) = (process.sockets(), process.resident_kib());
            let nothing_held = operations == 0 && call_bytes == 0;
            let books_closed = connections == self.connections && nothing_held;
            let memory_given_back = resident_kib <= self.resident_kib + GROWTH_KIB_MAX;
            if books_closed && sockets <= self.sockets && memory_given_back {
                return Ok(());
            }
            Err(format!(
                "{connections} connections, {sockets} sockets, {operations} operations, \
                 {call_bytes} bytes in calls, {resident_kib} KiB; before: {self:?}"
            ))
        })
        .await;
        let resident_kib = cluster.process(self.at).resident_kib();
        println!("memory: {} KiB before, {resident_kib} KiB after", self.resident_kib);
    }
}
