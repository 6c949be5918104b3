//! The first test of all: the same seed twice, the same run.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, UNIX_EPOCH},
};

use node::storage::memory::MemoryStorage;
use proto::v1::{
    self, admin_service_client::AdminServiceClient, kv_service_client::KvServiceClient,
};
use turmoil::Builder;

use crate::{HostSettings, channel, host::CLIENT_PORT, run_host};

const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// Runs three nodes and one client; returns what the client saw and when.
fn run(seed: u64) -> Vec<String> {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .simulation_duration(Duration::from_secs(60))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .tcp_capacity(1_024)
        .enable_random_order()
        .build();
    for (number, name) in (1..).zip(HOSTS) {
        let settings = HostSettings {
            name: name.to_owned(),
            datacenter: "dc1".to_owned(),
            join: HOSTS.map(str::to_owned).to_vec(),
            seed: seed << 8 | number,
            disk: MemoryStorage::new(),
        };
        sim.host(name, move || {
            let settings = settings.clone();
            async move { Ok(run_host(settings).await?) }
        });
    }
    let log = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&log);
    sim.client("client", async move {
        work(&seen).await?;
        Ok(())
    });
    sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    log.take()
}

async fn work(log: &RefCell<Vec<String>>) -> Result<(), tonic::Status> {
    let to = |host: &str| channel(&format!("{host}:{CLIENT_PORT}"));
    let mut admin = AdminServiceClient::new(to("n1"));
    loop {
        let status = admin.get_cluster_status(v1::GetClusterStatusRequest {}).await?.into_inner();
        if status.nodes.iter().filter(|it| it.up).count() == HOSTS.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let plan = admin.plan_layout(v1::PlanLayoutRequest { partitions: 16 }).await?.into_inner();
    let plan_hash = plan.plan_hash;
    admin.commit_layout(v1::CommitLayoutRequest { plan_hash, partitions: 16 }).await?;
    let keyspace = v1::Keyspace { name: "test".to_owned(), ..v1::Keyspace::default() };
    let request = v1::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
    admin.create_keyspace(request).await?;
    for number in 0..30 {
        let mut kv = KvServiceClient::new(to(HOSTS[number % 3]));
        let name = format!("key {}", number % 7);
        let key = Some(v1::Key { partition_key: name.into(), ..v1::Key::default() });
        let keyspace = "test".to_owned();
        let value = number.to_string().into();
        let put = v1::PutRequest { keyspace, key: key.clone(), value, ..Default::default() };
        let written = kv.put(put).await?.into_inner();
        let mut other = KvServiceClient::new(to(HOSTS[(number + 1) % 3]));
        let get = v1::GetRequest { keyspace: "test".to_owned(), key, ..Default::default() };
        let read = other.get(get).await?.into_inner();
        assert_eq!(read.version, written.version, "a quorum read sees the write before it");
        let at = turmoil::sim_elapsed();
        log.borrow_mut().push(format!("{at:?} {:?} {:?}", written.version, written.participation));
    }
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.len(), 30, "seed {seed}");
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1), run(2), "a seed that decides nothing would prove nothing");
}
