//! Snapshots through the administration interface of a whole node.

use proto::{
    CallError, Reason,
    v1::{
        self, admin_service_client::AdminServiceClient, create_snapshot_response,
        verify_snapshot_response,
    },
};
use tonic::{Response, Status, Streaming, transport::Channel};

use super::{Cluster, disk::Alone};

type Admin = AdminServiceClient<Channel>;

/// Every message of a stream, to its end.
async fn all<T>(opened: Result<Response<Streaming<T>>, Status>) -> Result<Vec<T>, CallError> {
    let mut stream = opened.map_err(|it| CallError::from(&it))?.into_inner();
    let mut messages = Vec::new();
    while let Some(it) = stream.message().await.map_err(|it| CallError::from(&it))? {
        messages.push(it);
    }
    Ok(messages)
}

async fn create(admin: &mut Admin, name: &str) -> Result<v1::Snapshot, CallError> {
    let request = v1::CreateSnapshotRequest { name: name.to_owned() };
    let last = all(admin.create_snapshot(request).await).await?.pop().and_then(|it| it.step);
    match last {
        Some(create_snapshot_response::Step::Created(it)) => Ok(it),
        other => panic!("the last message is {other:?}"),
    }
}

async fn verify(admin: &mut Admin, name: &str) -> Result<v1::SnapshotReport, CallError> {
    let request = v1::VerifySnapshotRequest { name: name.to_owned() };
    let last = all(admin.verify_snapshot(request).await).await?.pop().and_then(|it| it.step);
    match last {
        Some(verify_snapshot_response::Step::Report(it)) => Ok(it),
        other => panic!("the last message is {other:?}"),
    }
}

async fn delete(admin: &mut Admin, name: &str) -> Result<(), CallError> {
    let request = v1::DeleteSnapshotRequest { name: name.to_owned() };
    admin.delete_snapshot(request).await.map(drop).map_err(|it| CallError::from(&it))
}

#[tokio::test]
async fn made_listed_verified_and_deleted() {
    let cluster = Cluster::start(&["dc1"]).await;
    let mut admin = AdminServiceClient::new(cluster.channel(0).await);
    let status = admin.get_cluster_status(v1::GetClusterStatusRequest {}).await;
    let status = status.unwrap().into_inner();

    let made = create(&mut admin, "first").await.unwrap();
    assert_eq!(made.cluster_id, status.cluster_id);
    assert_eq!(made.node_id, status.nodes[0].node_id);
    assert_eq!(made.storage_id, status.nodes[0].storage_id);
    assert_eq!(
        (made.layout_hash, made.metadata_sequence),
        (status.layout_hash, status.metadata_sequence)
    );
    assert_eq!(
        (made.datacenter.as_str(), made.keyspaces.as_slice()),
        ("dc1", &["test".to_owned()][..])
    );
    assert!(made.clock >= status.clock && made.files > 0 && made.bytes > 0, "{made:?}");

    let listed = admin.list_snapshots(v1::ListSnapshotsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.snapshots, std::slice::from_ref(&made));
    let report = verify(&mut admin, "first").await.unwrap();
    assert_eq!((report.snapshot, report.findings), (Some(made), vec![]));

    let path = cluster.configs[0].data.join("snapshots/first");
    std::fs::write(path.join("stray"), "x").unwrap();
    let report = verify(&mut admin, "first").await.unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!((finding.path.as_str(), finding.problem()), ("stray", v1::SnapshotProblem::Extra));
    std::fs::write(path.join("manifest.json"), "{}").unwrap();
    let report = verify(&mut admin, "first").await.unwrap();
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!(finding.path, "manifest.json");
    assert_eq!(finding.problem(), v1::SnapshotProblem::Damaged);

    let error = create(&mut admin, "first").await.unwrap_err();
    assert_eq!(error.reason, Reason::SnapshotExists, "{error}");
    delete(&mut admin, "first").await.unwrap();
    let error = delete(&mut admin, "first").await.unwrap_err();
    assert_eq!(error.reason, Reason::SnapshotNotFound, "{error}");
    let error = verify(&mut admin, "first").await.unwrap_err();
    assert_eq!(error.reason, Reason::SnapshotNotFound, "{error}");
    for name in ["", "..", "../first", "a/b", &"x".repeat(65)] {
        let error = create(&mut admin, name).await.unwrap_err();
        assert_eq!((error.reason, error.field.as_deref()), (Reason::InvalidField, Some("name")));
        assert_eq!(delete(&mut admin, name).await.unwrap_err().reason, Reason::InvalidField);
        assert_eq!(verify(&mut admin, name).await.unwrap_err().reason, Reason::InvalidField);
    }
}

async fn storage_without_files() {
    let mut it = Alone::start(node::config::NodeConfig::default()).await;
    let mut errors = vec![create(&mut it.admin, "a").await.unwrap_err()];
    errors.push(verify(&mut it.admin, "a").await.unwrap_err());
    errors.push(delete(&mut it.admin, "a").await.unwrap_err());
    let listed = it.admin.list_snapshots(v1::ListSnapshotsRequest {}).await;
    errors.push(CallError::from(&listed.unwrap_err()));
    for error in errors {
        assert_eq!(error.reason, Reason::SnapshotUnsupported, "{error}");
        assert_eq!(error.code, tonic::Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_node_without_files_says_so() {
    tokio::task::LocalSet::new().run_until(storage_without_files()).await;
}
