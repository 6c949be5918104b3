//! Makes a cluster of nodes that have just started: the first layout and the keyspace of the run.

use std::{rc::Rc, time::Duration};

use client::{Error, wire};
use model::ConsistencyLevel;

use crate::{
    shape::datacenter_name,
    workload::{KEYSPACE, Load, Phase, connect},
};

pub(crate) async fn set_up(load: &Rc<Load>, seed: u64) {
    loop {
        match try_set_up(load, seed).await {
            Ok(()) => break,
            // Nothing is wrong yet: nodes are still finding each other.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    load.phase.set(Phase::Work);
}

async fn try_set_up(load: &Rc<Load>, seed: u64) -> Result<(), Error> {
    let shape = &load.shape;
    let nodes = shape.nodes().count();
    let mut config = crate::workload::client_config(shape, 0, seed);
    // Before the first layout there is no datacenter to prefer.
    config.datacenter = None;
    let client = client::Client::connect(config).await?;
    let admin = client.admin();
    loop {
        let status = admin.status().await?;
        if status.nodes.iter().filter(|it| it.up).count() == nodes {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if client.topology().nodes().is_empty() {
        let plan = admin.plan_layout(shape.partitions).await?;
        admin.commit_layout(plan.plan_hash, plan.partitions).await?;
    }
    let replicas = (0..shape.datacenter_count()).map(|it| wire::DatacenterReplicas {
        datacenter: datacenter_name(it),
        replicas: u32::from(shape.replicas_in(it)),
    });
    let keyspace = wire::Keyspace {
        name: KEYSPACE.to_owned(),
        replicas: replicas.collect(),
        allow_any: true,
        ..wire::Keyspace::default()
    };
    let request =
        wire::CreateKeyspaceRequest { keyspace: Some(keyspace), accept_weak_defaults: true };
    admin.create_keyspace(request).await?;
    drop(client);
    if let Some(client) = connect(load, 0, seed).await {
        let keyspace = client.keyspace(KEYSPACE);
        while keyspace.get("set up").consistency(ConsistencyLevel::All).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
