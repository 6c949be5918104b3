//! Agreement on the metadata, led through what would fork it.

use model::Mutant;
use node::storage::Space;
use proto::v1;

use super::{
    Scenario, Shown,
    executions::{steps, stop},
    names,
    script::{Script, ensure},
};
use crate::{
    shape::Shape,
    world::{Cut, CutKind, EndKind},
};

pub(super) fn all() -> Vec<Scenario> {
    let shape = Shape { wan_ms: 100, disk_ms: 1, clock_offset_ms: 0, ..Shape::grid(3, 1) };
    vec![steps(
        "paxos-promises-survive-a-restart",
        "A change is decided by the first node and the second, who never hears that it is, loses its \
         power and returns. What the third node and the second decide next does not fork from it.",
        &shape,
        |it| Box::pin(restart(it)),
        &[Shown { mutant: Mutant::PromiseForgotten, says: "hold different metadata" }],
    )]
}

async fn restart(it: Script) -> Result<(), String> {
    it.cut(1, stop(&["n1"], &["n3"])).await;
    let left = {
        let it = it.clone();
        tokio::task::spawn_local(async move { create(&it, 0, "left").await })
    };
    // The acceptance is on its way to n1. Nothing of n1 reaches n2 from now on.
    it.until_stored(1, Space::System, b"left").await?;
    let (from, to) = (names(&["n1"]), names(&["n2"]));
    it.cut(2, Cut { kind: CutKind::OneWay, from, to }).await;
    let left = left.await.map_err(|error| error.to_string())?;
    left.map_err(|error| format!("\"left\" is not acknowledged: {error}"))?;
    it.say("\"left\" is acknowledged");
    it.end(1, EndKind::PowerLoss).await;
    it.start(1).await;
    let right = it.within(10, async || create(&it, 2, "right").await).await;
    right.map_err(|error| format!("\"right\" is not acknowledged: {error}"))?;
    it.heal(1).await;
    it.heal(2).await;
    for node in 0..3 {
        lists_both(&it, node).await?;
    }
    Ok(())
}

async fn create(it: &Script, node: usize, name: &str) -> Result<(), String> {
    let keyspace = v1::Keyspace { name: name.to_owned(), ..v1::Keyspace::default() };
    let request = v1::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
    let created = it.admin(node).create_keyspace(request).await;
    created.map(|_| ()).map_err(|status| status.message().to_owned())
}

async fn lists_both(it: &Script, node: usize) -> Result<(), String> {
    it.within(20, async || {
        let listed = it.admin(node).list_keyspaces(v1::ListKeyspacesRequest {}).await;
        let listed = listed.map_err(|status| status.message().to_owned())?.into_inner().keyspaces;
        let known: Vec<_> = listed.into_iter().map(|it| it.name).collect();
        let both = ["left", "right"].iter().all(|name| known.iter().any(|it| it == name));
        ensure(both, format!("both were acknowledged, and n{} knows {known:?}", node + 1))
    })
    .await
}
