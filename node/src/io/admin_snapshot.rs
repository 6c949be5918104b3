//! Snapshots of this node, as the administration interface makes, lists, verifies and deletes them. Each
//! file is a step of its own in the blocking pool, so that reads of the database come between.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use proto::{
    CallError, Reason,
    v1::{self, create_snapshot_response, verify_snapshot_response},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::{
    shared::Shared,
    snapshot::{
        Draft, Finding, KeyspaceEntry, Manifest, ManifestError, Opened, Origin, Problem,
        SnapshotError, SnapshotFolder, SnapshotName, compare, compare_digest,
    },
    storage::FORMAT_VERSION,
    view::View,
};

/// The answers of a call that takes long: progress, then the result or an error.
pub(super) struct Steps<T>(mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for Steps<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// A node that answers about its snapshots.
pub(super) struct Snapshots(pub(super) Arc<Shared>);

impl Snapshots {
    /// Makes one. It is made to its end even if nobody waits for it.
    pub(super) fn create(
        &self,
        name: &str,
    ) -> Result<Steps<v1::CreateSnapshotResponse>, CallError> {
        let (mut job, steps) = Job::begin(&self.0, name)?;
        tokio::spawn(async move {
            let created = job.create().await.map(|manifest| {
                let created = message(&job.name, Ok(&manifest));
                let step = Some(create_snapshot_response::Step::Created(created));
                v1::CreateSnapshotResponse { step }
            });
            job.end(created).await;
        });
        Ok(steps)
    }

    /// Compares one with its manifest. Ends early if nobody waits for it.
    pub(super) fn verify(
        &self,
        name: &str,
    ) -> Result<Steps<v1::VerifySnapshotResponse>, CallError> {
        let (mut job, steps) = Job::begin(&self.0, name)?;
        tokio::spawn(async move {
            let verified = job.verify().await.map(|report| {
                let step = Some(verify_snapshot_response::Step::Report(report));
                v1::VerifySnapshotResponse { step }
            });
            job.end(verified).await;
        });
        Ok(steps)
    }

    /// All of them.
    pub(super) async fn list(&self) -> Result<v1::ListSnapshotsResponse, CallError> {
        let folder = folder(&self.0)?;
        let (listed, snapshots_max) = (Arc::clone(&folder), folder.snapshots_max());
        let listed = in_pool(&self.0, move || listed.list()).await?;
        let snapshots = listed.iter().map(|(name, manifest)| message(name, manifest.as_ref()));
        Ok(v1::ListSnapshotsResponse {
            snapshots: snapshots.collect(),
            snapshots_max: u32::try_from(snapshots_max).unwrap_or(u32::MAX),
        })
    }

    /// Deletes one.
    pub(super) async fn delete(&self, name: &str) -> Result<v1::DeleteSnapshotResponse, CallError> {
        let (folder, name) = (folder(&self.0)?, parse(name)?);
        let permit = folder.permit()?;
        in_pool(&self.0, move || {
            let _permit = permit;
            folder.delete(&name)
        })
        .await?;
        Ok(v1::DeleteSnapshotResponse {})
    }
}

/// Work on one snapshot, under the permit.
struct Job<T> {
    shared: Arc<Shared>,
    folder: Arc<SnapshotFolder>,
    name: SnapshotName,
    permit: OwnedSemaphorePermit,
    progress: v1::SnapshotProgress,
    sender: mpsc::Sender<Result<T, Status>>,
}

/// Messages that tell how far a job is.
trait Progress: Send + 'static {
    fn of(progress: v1::SnapshotProgress) -> Self;
}

impl Progress for v1::CreateSnapshotResponse {
    fn of(progress: v1::SnapshotProgress) -> Self {
        Self { step: Some(create_snapshot_response::Step::Progress(progress)) }
    }
}

impl Progress for v1::VerifySnapshotResponse {
    fn of(progress: v1::SnapshotProgress) -> Self {
        Self { step: Some(verify_snapshot_response::Step::Progress(progress)) }
    }
}

impl<T: Progress> Job<T> {
    fn begin(shared: &Arc<Shared>, name: &str) -> Result<(Self, Steps<T>), CallError> {
        let (folder, name) = (folder(shared)?, parse(name)?);
        let permit = folder.permit()?;
        let (sender, steps) = mpsc::channel(1);
        let shared = Arc::clone(shared);
        let progress = v1::SnapshotProgress::default();
        Ok((Self { shared, folder, name, permit, progress, sender }, Steps(steps)))
    }

    /// Gives the permit back, and tells the result to whoever still listens.
    async fn end(self, done: Result<T, SnapshotError>) {
        if let Err(error) = &done {
            tracing::warn!(name = %self.name, %error, "a snapshot failed");
        }
        drop(self.permit);
        let answer = done.map_err(|error| Status::from(call_error(&error)));
        // Nobody waits any more: the snapshot speaks for itself.
        let _ = self.sender.send(answer).await;
    }

    async fn create(&mut self) -> Result<Manifest, SnapshotError> {
        // Older than what is copied, and the clock newer: both hold of the copy then.
        let view = self.shared.view.load_full();
        let (folder, name) = (Arc::clone(&self.folder), self.name.clone());
        let storage = Arc::clone(&self.shared.world.storage);
        let draft = self.step(move || folder.begin(&name, &*storage)).await?;
        let origin = origin(&self.shared, &view);
        tracing::info!(name = %self.name, "the database is copied");
        let draft = Arc::new(draft);
        let finished = self.finish(&draft, origin).await;
        if finished.is_err() {
            let draft = Arc::clone(&draft);
            self.step(move || {
                draft.abandon();
                Ok(())
            })
            .await?;
        }
        finished
    }

    async fn finish(
        &mut self,
        draft: &Arc<Draft>,
        origin: Origin,
    ) -> Result<Manifest, SnapshotError> {
        let files = draft.files();
        self.expect(files.len(), files.iter().map(|it| it.1).sum());
        let mut entries = Vec::with_capacity(files.len());
        for at in 0..files.len() {
            let draft = Arc::clone(draft);
            let entry = self.step(move || draft.digest(at)).await?;
            self.advance(entry.bytes);
            entries.push(entry);
        }
        let (folder, draft) = (Arc::clone(&self.folder), Arc::clone(draft));
        self.step(move || {
            let manifest = draft.manifest(origin, entries);
            folder.finish(&draft, &manifest)?;
            Ok(manifest)
        })
        .await
    }

    async fn verify(&mut self) -> Result<v1::SnapshotReport, SnapshotError> {
        let (folder, name) = (Arc::clone(&self.folder), self.name.clone());
        let opened = match self.step(move || folder.open(&name)).await? {
            Ok(opened) => Arc::new(opened),
            Err(error) => return Ok(damaged_report(&self.name, &error)),
        };
        let compared = compare(&opened.manifest.files, &opened.found);
        let mut findings = compared.findings;
        self.expect(compared.unread.len(), compared.unread.iter().map(|it| it.bytes).sum());
        for entry in compared.unread {
            if self.sender.is_closed() {
                break;
            }
            let (opened, asked) = (Arc::clone(&opened), entry.clone());
            let read = self.step(move || Ok(opened.digest(&asked))).await?;
            self.advance(entry.bytes);
            findings.extend(compare_digest(&entry, read));
        }
        Ok(report(&self.name, &opened, findings))
    }

    fn expect(&mut self, files: usize, bytes: u64) {
        self.progress.files = u64::try_from(files).unwrap_or(u64::MAX);
        self.progress.bytes = bytes;
        self.tell();
    }

    fn advance(&mut self, bytes: u64) {
        self.progress.files_done += 1;
        self.progress.bytes_done += bytes;
        self.tell();
    }

    /// Says how far it is, unless the word before that is still on its way.
    fn tell(&self) {
        let _ = self.sender.try_send(Ok(T::of(self.progress)));
    }

    /// Does one step in the pool, and says now and then that it is still at it.
    async fn step<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, SnapshotError> + Send + 'static,
    ) -> Result<R, SnapshotError> {
        let mut done = pin!(in_pool(&self.shared, work));
        loop {
            match tokio::time::timeout(PROGRESS_INTERVAL, done.as_mut()).await {
                Ok(done) => return done,
                Err(_) => self.tell(),
            }
        }
    }
}

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Findings in one report.
const FINDINGS_MAX: usize = 1_000;

/// Does work that blocks where that is allowed.
async fn in_pool<R: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce() -> Result<R, SnapshotError> + Send + 'static,
) -> Result<R, SnapshotError> {
    // The pool refuses only when it ends with the node.
    Arc::clone(shared).blocking(move |_| Ok(work())).await.unwrap_or(Err(SnapshotError::Ended))
}

fn folder(shared: &Shared) -> Result<Arc<SnapshotFolder>, SnapshotError> {
    shared.world.snapshots.clone().ok_or(SnapshotError::Unsupported)
}

fn parse(name: &str) -> Result<SnapshotName, CallError> {
    SnapshotName::new(name)
        .map_err(|error| CallError::new(Reason::InvalidField, error.to_string()).at_field("name"))
}

impl From<SnapshotError> for CallError {
    fn from(error: SnapshotError) -> Self {
        call_error(&error)
    }
}

fn call_error(error: &SnapshotError) -> CallError {
    let reason = match error {
        SnapshotError::Unsupported => Reason::SnapshotUnsupported,
        SnapshotError::Busy => Reason::Overloaded,
        SnapshotError::Exists { .. } => Reason::SnapshotExists,
        SnapshotError::NotFound { .. } => Reason::SnapshotNotFound,
        SnapshotError::TooMany { .. } => Reason::SnapshotLimit,
        SnapshotError::Ended => Reason::Draining,
        _ if error.is_full() => Reason::DiskFull,
        SnapshotError::TooManyFiles { .. }
        | SnapshotError::Storage(_)
        | SnapshotError::File { .. } => Reason::SnapshotFailed,
    };
    let it = CallError::new(reason, error.to_string());
    match error {
        SnapshotError::Exists { name } | SnapshotError::NotFound { name } => it.with("name", name),
        SnapshotError::TooMany { limit, actual } => it.with("limit", limit).with("actual", actual),
        SnapshotError::Busy => it.with("limit", 1),
        _ => it,
    }
}

/// What a copy made just now is of. `view` is from before the copy.
fn origin(shared: &Shared, view: &View) -> Origin {
    let metadata = view.metadata();
    let keyspaces = metadata.map(|it| it.keyspaces()).unwrap_or_default();
    let cluster_id = metadata.map(|it| it.cluster().to_string()).unwrap_or_default();
    Origin {
        created_at_ms: shared.wall().0,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        database_format: FORMAT_VERSION,
        cluster_id,
        node_id: shared.identity.node.to_string(),
        storage_id: shared.storage_id().to_string(),
        datacenter: shared.config.datacenter.clone(),
        rack: shared.config.rack.clone(),
        metadata_sequence: view.sequence(),
        layout_hash: format!("{:016x}", view.layout_hash()),
        keyspaces: keyspaces
            .iter()
            .map(|it| KeyspaceEntry { name: it.name.clone(), id: it.id.0 })
            .collect(),
        highest_clock: shared.clock.highest().to_string(),
    }
}

fn message(name: &SnapshotName, manifest: Result<&Manifest, &ManifestError>) -> v1::Snapshot {
    let name = name.to_string();
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            return v1::Snapshot { name, problem: error.to_string(), ..v1::Snapshot::default() };
        }
    };
    let origin = &manifest.origin;
    v1::Snapshot {
        name,
        created_at_ms: origin.created_at_ms,
        cluster_id: id_bytes(&origin.cluster_id),
        node_id: id_bytes(&origin.node_id),
        storage_id: id_bytes(&origin.storage_id),
        datacenter: origin.datacenter.clone(),
        rack: origin.rack.clone(),
        metadata_sequence: origin.metadata_sequence,
        layout_hash: origin.layout_hash(),
        keyspaces: origin.keyspaces.iter().map(|it| it.name.clone()).collect(),
        clock: origin.clock().0,
        files: u64::try_from(manifest.files.len()).unwrap_or(u64::MAX),
        bytes: manifest.bytes,
        software_version: origin.software_version.clone(),
        problem: String::new(),
    }
}

/// The sixteen bytes of an id as manifests spell it; none for none.
fn id_bytes(spelled: &str) -> Bytes {
    let id = u128::from_str_radix(&spelled.replace('-', ""), 16);
    id.map(|it| Bytes::copy_from_slice(&it.to_be_bytes())).unwrap_or_default()
}

fn report(name: &SnapshotName, opened: &Opened, mut findings: Vec<Finding>) -> v1::SnapshotReport {
    findings.sort_by(|a, b| a.path.cmp(&b.path));
    let left_out = findings.len().saturating_sub(FINDINGS_MAX);
    v1::SnapshotReport {
        snapshot: Some(message(name, Ok(&opened.manifest))),
        findings: findings.iter().take(FINDINGS_MAX).map(finding_message).collect(),
        findings_left_out: u64::try_from(left_out).unwrap_or(u64::MAX),
    }
}

fn damaged_report(name: &SnapshotName, error: &ManifestError) -> v1::SnapshotReport {
    let problem = Problem::Manifest { message: error.to_string() };
    let finding = Finding { path: SnapshotFolder::MANIFEST.to_owned(), problem };
    v1::SnapshotReport {
        snapshot: Some(message(name, Err(error))),
        findings: vec![finding_message(&finding)],
        findings_left_out: 0,
    }
}

fn finding_message(finding: &Finding) -> v1::SnapshotFinding {
    let problem = match finding.problem {
        Problem::Missing => v1::SnapshotProblem::Missing,
        Problem::Extra => v1::SnapshotProblem::Extra,
        Problem::Size { .. } | Problem::Kind | Problem::Contents { .. } => {
            v1::SnapshotProblem::Changed
        }
        Problem::Unreadable { .. } => v1::SnapshotProblem::Unreadable,
        Problem::Manifest { .. } => v1::SnapshotProblem::Damaged,
    };
    v1::SnapshotFinding {
        path: finding.path.clone(),
        problem: problem.into(),
        detail: finding.problem.to_string(),
    }
}
