//! Writers that go on while nodes come and go.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use model::{Key, Version};
use proto::v1::ConsistencyLevel as Wire;

use crate::harness::{Api, PATIENCE, eventually, level, within};

/// Writers that overwrite their own keys at LOCAL_QUORUM through some nodes until told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<BTreeMap<Key, Version>>>,
}

const WRITERS: usize = 4;
/// Keys of each.
const KEYS: usize = 40;

impl Load {
    /// How many keys there are in the end.
    pub(crate) const KEYS: usize = WRITERS * KEYS;

    /// Starts it.
    pub(crate) fn start(apis: &[Api]) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |writer: usize| {
            let api = apis[writer % apis.len()].clone();
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let mut written = BTreeMap::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = Key::new(format!("writer {writer} {}", number % KEYS).into_bytes());
                    let value = format!("{number}").repeat(20);
                    let version = loop {
                        let consistency = level(Wire::LocalQuorum);
                        match api.set("shop", &key, value.clone(), consistency).await {
                            Ok(done) => break done.version.expect("a version"),
                            // A busy machine. What is written once more is the newest, whatever became of the
                            // first.
                            Err(_) => tokio::task::yield_now().await,
                        }
                    };
                    written.insert(key, version.into());
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                written
            })
        };
        let writers = (0..WRITERS).map(writer).collect();
        Self { stop, acknowledged, writers }
    }

    /// Waits for so many more acknowledged writes.
    pub(crate) async fn goes_on(&self, more: u64) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually("the load goes on", async || {
            let count = self.acknowledged.load(Ordering::Relaxed);
            if count >= wanted { Ok(()) } else { Err(format!("{count} of {wanted}")) }
        })
        .await;
    }

    /// Stops it; the newest version of every key.
    pub(crate) async fn stop(self) -> BTreeMap<Key, Version> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = BTreeMap::new();
        for writer in self.writers {
            written.extend(within("a writer ends", PATIENCE, writer).await.expect("no panic"));
        }
        written
    }
}
