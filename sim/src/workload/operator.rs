//! Operators in several datacenters who change the cluster's metadata while it suffers.

use std::{rc::Rc, time::Duration};

use client::wire;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Load, Phase, connect};
use crate::recorder::now;

/// Creates and drops keyspaces until the work is over. What comes of each call is told by the log;
/// that all nodes agree is for others to judge.
pub(crate) async fn operate(load: Rc<Load>, datacenter: u8, seed: u64) {
    load.reach(Phase::Work).await;
    let mut random = StdRng::seed_from_u64(seed);
    let Some(client) = connect(&load, datacenter, seed).await else { return };
    let admin = client.admin().timeout(Duration::from_millis(1_000));
    while load.phase.get() == Phase::Work {
        let name = format!("spare{}", random.random_range(0..3));
        let result = if random.random() {
            let keyspace = wire::Keyspace { name: name.clone(), ..wire::Keyspace::default() };
            let request =
                wire::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
            admin.create_keyspace(request).await.map(|_| "created")
        } else {
            admin.drop_keyspace(name.clone()).await.map(|()| "dropped")
        };
        let told = match result {
            Ok(what) => what,
            Err(error) => error.reason().as_str(),
        };
        *load.operated.borrow_mut().entry(told).or_default() += 1;
        load.recorder
            .log
            .say(now(), format_args!("operator of datacenter {datacenter}: {name} {told}"));
        tokio::time::sleep(Duration::from_millis(random.random_range(100..=900))).await;
    }
}
