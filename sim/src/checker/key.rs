//! One key's history, with what most checkers ask of it.

use std::collections::BTreeMap;

use model::{ConsistencyLevel, Version};

use super::{Context, expiry};
use crate::{
    discipline::Discipline,
    history::{Action, Operation, Outcome, Via},
};

/// The operations on one key.
pub(super) struct KeyHistory<'a> {
    pub(super) name: &'a str,
    pub(super) discipline: Discipline,
    /// By their calls.
    pub(super) operations: Vec<&'a Operation>,
    puts: BTreeMap<u64, &'a Operation>,
    writers: BTreeMap<Version, &'a Operation>,
    /// Writes by their request ids.
    requests: BTreeMap<u64, &'a Operation>,
    /// Writes that may leave the key absent: deletes, and puts that expire.
    erasing: Vec<&'a Operation>,
}

/// A read that was answered.
#[derive(Clone, Copy)]
pub(super) struct Read<'a> {
    pub(super) operation: &'a Operation,
    pub(super) value: Option<u64>,
    /// `None` if the answer does not tell.
    pub(super) version: Option<Version>,
    pub(super) returned_us: u64,
}

/// What happens to an operation.
#[derive(Clone, Copy)]
pub(super) enum Event<'a> {
    /// It was called.
    Called(&'a Operation),
    /// It succeeded.
    Returned(&'a Operation),
}

/// The operation with the highest version so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Newest<'a>(pub(super) Option<(Version, &'a Operation)>);

impl<'a> Newest<'a> {
    pub(super) fn raise(&mut self, operation: &'a Operation, version: Version) {
        if self.0.is_none_or(|(newest, _)| newest < version) {
            self.0 = Some((version, operation));
        }
    }
}

impl<'a> KeyHistory<'a> {
    /// The keys of a history. Panics if a value was put twice: the checkers tell writes by values.
    pub(super) fn all(history: &'a [Operation]) -> Vec<Self> {
        let mut keys = BTreeMap::<&str, Vec<&Operation>>::new();
        for operation in history {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys.into_iter().map(|(name, operations)| Self::new(name, operations)).collect()
    }

    fn new(name: &'a str, mut operations: Vec<&'a Operation>) -> Self {
        operations.sort_by_key(|it| (it.called_us, it.id));
        let mut puts = BTreeMap::new();
        let mut writers = BTreeMap::new();
        let mut requests = BTreeMap::new();
        let mut erasing = Vec::new();
        for &operation in operations.iter().filter(|it| it.is_write()) {
            if let Action::Put { value, .. } = operation.action {
                let twice = puts.insert(value, operation);
                assert!(twice.is_none(), "{value} was put twice: {operation:?}, {twice:?}");
            }
            match &operation.outcome {
                Outcome::Written { version } => drop(writers.insert(*version, operation)),
                Outcome::Unknown { versions, .. } => {
                    writers.extend(versions.iter().flatten().map(|it| (*it, operation)));
                }
                _ => {}
            }
            requests.extend(operation.request.map(|it| (it, operation)));
            let erases = !matches!(operation.action, Action::Put { ttl_ms: None, .. });
            if erases && !is_refused(operation) {
                erasing.push(operation);
            }
        }
        for read in operations.iter().filter_map(|it| read_of(it)) {
            let put = read.value.and_then(|it| puts.get(&it));
            if let (Some(version), Some(put)) = (read.version, put) {
                writers.entry(version).or_insert(*put);
            }
        }
        let discipline = operations[0].discipline;
        Self { name, discipline, operations, puts, writers, requests, erasing }
    }

    /// The put of a value, whatever came of it.
    pub(super) fn put(&self, value: u64) -> Option<&'a Operation> {
        self.puts.get(&value).copied()
    }

    /// The write that is known to have had a version.
    pub(super) fn writer(&self, version: Version) -> Option<&'a Operation> {
        let by_version = self.writers.get(&version);
        let by_request = || self.requests.get(&version.request.0);
        by_version.or_else(|| by_request().filter(|it| may_have(it, version))).copied()
    }

    /// True if some write can have left the key absent under this version before a read returned.
    pub(super) fn erases(&self, version: Version, read: &Read<'_>) -> bool {
        let hides = |write: &Operation| write.tries == 1 && one_lives(self, write, read.operation);
        self.erasing.iter().any(|write| {
            write.called_us <= read.returned_us
                && may_have(write, version)
                && (!hides(write) || acknowledged(write).is_none_or(|it| it == version))
        })
    }

    /// The reads that were answered, by their calls.
    pub(super) fn reads(&self) -> impl Iterator<Item = Read<'a>> {
        self.operations.iter().filter_map(|it| read_of(it))
    }

    /// Calls and successes in order. At equal times calls come first, so that whatever an operation
    /// finds returned was so strictly before it.
    pub(super) fn events(&self) -> Vec<Event<'a>> {
        timeline(self.operations.iter().copied())
    }

    /// True if the operation counts for the discipline's promise: used at its levels and, if that is
    /// local, at home.
    pub(super) fn is_own(&self, operation: &Operation) -> bool {
        let levels = match operation.is_write() {
            true => self.discipline.write_levels(),
            false => self.discipline.read_levels(),
        };
        let home = match self.discipline {
            Discipline::LocalQuorum { home } => operation.datacenter == home,
            _ => true,
        };
        home && levels.contains(&operation.level)
    }

    /// True if a read that found nothing, without telling a version, can have found a deletion or an
    /// expired value that is not below `floor`.
    pub(super) fn explains_absence(
        &self,
        read: &Read<'_>,
        floor: Version,
        context: &Context,
    ) -> bool {
        floor.is_absent()
            || self.erasing.iter().any(|write| {
                let version = acknowledged(write).filter(|_| write.tries == 1);
                let window = expiry::window(write, version, context);
                write.called_us <= read.returned_us
                    && may_reach(write, floor)
                    && window.is_none_or(|it| it.from_us <= read.returned_us)
            })
    }
}

/// True if a write can have had this version: the one acknowledged, or one below it that had been
/// replaced (P4), or one of those of which its error told, under its request id. Of a write sent
/// several times only the last answer tells.
pub(super) fn may_have(write: &Operation, version: Version) -> bool {
    let named = write.request.is_none_or(|it| it == version.request.0);
    named
        && match &write.outcome {
            Outcome::NotApplied { .. } => write.tries > 1,
            _ if write.tries > 1 => true,
            Outcome::Written { version: last } => {
                version == *last || (version < *last && version.request == last.request)
            }
            Outcome::Unknown { versions, .. } => {
                versions.as_ref().is_none_or(|it| it.contains(&version))
            }
            Outcome::Found { .. } => false,
        }
}

/// True if a write can have had a version that is not below `floor`.
fn may_reach(write: &Operation, floor: Version) -> bool {
    match &write.outcome {
        _ if write.tries > 1 => true,
        Outcome::Written { version } => *version >= floor,
        Outcome::Unknown { versions, .. } => {
            versions.as_ref().is_none_or(|it| it.iter().any(|it| *it >= floor))
        }
        Outcome::NotApplied { .. } | Outcome::Found { .. } => false,
    }
}

/// True if reads such as this one cannot see a stamp of the write that was replaced.
pub(super) fn one_lives(key: &KeyHistory<'_>, write: &Operation, read: &Operation) -> bool {
    use Discipline as D;
    match key.discipline {
        D::Quorum | D::EachQuorum | D::EachThenLocal | D::LocalThenEach | D::LocalQuorum { .. } => {
            key.is_own(write) && key.is_own(read)
        }
        D::AllThenOne | D::QuorumThenOne | D::Mixed => false,
    }
}

/// True if nothing of a write was applied, or will be.
pub(super) fn is_refused(write: &Operation) -> bool {
    write.tries == 1 && matches!(write.outcome, Outcome::NotApplied { .. })
}

/// The version of an acknowledged write.
pub(super) fn acknowledged(operation: &Operation) -> Option<Version> {
    match operation.outcome {
        Outcome::Written { version } => Some(version),
        _ => None,
    }
}

/// The read, if the operation is one and was answered.
pub(super) fn read_of(operation: &Operation) -> Option<Read<'_>> {
    let (Outcome::Found { value, version }, Some(returned_us)) =
        (&operation.outcome, operation.returned_us)
    else {
        return None;
    };
    let never_written = operation.via != Via::Scan && value.is_none() && !operation.purges;
    let version = version.or(never_written.then_some(Version::ABSENT));
    Some(Read { operation, value: *value, version, returned_us })
}

/// The version that an operation was answered with.
pub(super) fn version_seen(operation: &Operation) -> Option<Version> {
    acknowledged(operation).or_else(|| read_of(operation)?.version)
}

/// As [`KeyHistory::events`], of any operations.
pub(super) fn timeline<'a>(operations: impl Iterator<Item = &'a Operation>) -> Vec<Event<'a>> {
    let mut events = Vec::new();
    for operation in operations {
        events.push((operation.called_us, 0, operation.id, Event::Called(operation)));
        if let Some(returned_us) = operation.returned_us.filter(|_| operation.succeeded()) {
            events.push((returned_us, 1, operation.id, Event::Returned(operation)));
        }
    }
    events.sort_by_key(|(at_us, kind, id, _)| (*at_us, *kind, *id));
    events.into_iter().map(|(.., event)| event).collect()
}

/// True if every read at its level meets a replica that an acknowledged write has reached, whatever
/// the replication factor. Versions at a replica only rise, so it then finds that write or a newer
/// one.
pub(super) fn meets(write: (ConsistencyLevel, u8), read: &Operation, datacenters: u8) -> bool {
    use ConsistencyLevel as L;
    let (write, from) = write;
    let merged = |level| match level {
        L::LocalQuorum | L::EachQuorum if datacenters == 1 => L::Quorum,
        other => other,
    };
    match (merged(write), merged(read.level)) {
        (L::Any, _) => false,
        (_, L::All) | (L::All, _) => true,
        (L::Quorum, L::Quorum | L::EachQuorum) => true,
        (L::EachQuorum, L::Quorum | L::EachQuorum | L::LocalQuorum) => true,
        (L::LocalQuorum, L::EachQuorum) => true,
        (L::LocalQuorum, L::LocalQuorum) => from == read.datacenter,
        _ => false,
    }
}
