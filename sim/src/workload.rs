//! What the clients of a run do: calls of every kind, at every level, to keys that are used in every
//! way, from every datacenter.

mod calls;
mod operator;
mod probe;
mod read_back;
mod scan;

use std::{cell::Cell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use client::{Client, ClientConfig, Keyspace};
use model::ConsistencyLevel;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    discipline::Discipline,
    recorder::{KeyKind, KeyName, Recorder, Who},
    shape::{Shape, datacenter_name},
    world::{CLIENT_PORT, SimNetwork},
};
pub(crate) use calls::decode;
pub(crate) use operator::operate;
pub(crate) use probe::{PROBED, Probe, probe};
pub(crate) use read_back::read_back;

/// The keyspace of all runs.
pub(crate) const KEYSPACE: &str = "run";

/// What all clients of a run share.
pub(crate) struct Load {
    /// The cluster.
    pub shape: Shape,
    /// What they write down.
    pub recorder: Recorder,
    /// What they are to do now.
    pub phase: Cell<Phase>,
    /// True while they call much too often.
    pub overload: Cell<bool>,
    /// Sessions that still work.
    pub working: Cell<u32>,
    /// Datacenters that have read everything back.
    pub read_back: Cell<u8>,
    /// What operators were told, and how often.
    pub operated: std::cell::RefCell<BTreeMap<&'static str, u64>>,
    /// What probes were told.
    pub(crate) probes: std::cell::RefCell<Vec<Probe>>,
    /// What they found that no checker would.
    pub complaints: std::cell::RefCell<Vec<String>>,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Wait for the cluster.
    SetUp,
    /// Call.
    Work,
    /// Nothing.
    Quiet,
    /// Read everything back.
    ReadBack,
    /// End.
    Done,
}

impl Load {
    /// Clients that wait.
    pub(crate) fn new(shape: Shape, recorder: Recorder) -> Rc<Self> {
        Rc::new(Self {
            shape,
            recorder,
            phase: Cell::new(Phase::SetUp),
            overload: Cell::new(false),
            working: Cell::new(0),
            read_back: Cell::new(0),
            operated: std::cell::RefCell::default(),
            probes: std::cell::RefCell::default(),
            complaints: std::cell::RefCell::default(),
        })
    }

    /// Waits until the phase has come, or a later one.
    pub(crate) async fn reach(&self, phase: Phase) {
        while (self.phase.get() as u8) < phase as u8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Notes something that is wrong.
    pub(crate) fn complain(&self, what: String) {
        self.complaints.borrow_mut().push(what);
    }
}

/// Settings of a client in a datacenter: it prefers its own, and knows the others.
pub(crate) fn client_config(shape: &Shape, datacenter: u8, seed: u64) -> ClientConfig {
    let mut nodes: Vec<(u8, usize)> = shape.nodes().zip(1..).collect();
    nodes.sort_by_key(|it| (it.0 != datacenter, it.1));
    ClientConfig {
        addresses: nodes.iter().map(|it| format!("n{}:{CLIENT_PORT}", it.1)).collect(),
        datacenter: Some(datacenter_name(datacenter)),
        connect_timeout: Duration::from_millis(300),
        request_timeout: REQUEST_TIMEOUT,
        keep_alive_interval: Duration::from_secs(1),
        keep_alive_timeout: Duration::from_secs(1),
        topology_refresh_interval: Duration::from_secs(2),
        seed: Some(seed),
        connector: Arc::new(SimNetwork(None)),
        ..ClientConfig::default()
    }
}

/// How long a call may take that does not say.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);

/// One client: a session of calls, one after another.
pub(crate) struct Session {
    load: Rc<Load>,
    who: Who,
    random: StdRng,
    keyspace: Keyspace,
    disciplines: Vec<Discipline>,
}

/// Connects, for as long as it takes.
pub(crate) async fn connect(load: &Load, datacenter: u8, seed: u64) -> Option<Client> {
    loop {
        match Client::connect(client_config(&load.shape, datacenter, seed)).await {
            Ok(client) => return Some(client),
            Err(_) if load.phase.get() == Phase::Done => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Works as one client until the work is over.
pub(crate) async fn work(load: Rc<Load>, who: Who, seed: u64) {
    load.reach(Phase::Work).await;
    if let Some(client) = connect(&load, who.datacenter, seed).await {
        let keyspace = client.keyspace(KEYSPACE);
        let mut disciplines = Discipline::all(load.shape.datacenter_count());
        // What one replica alone has acknowledged may be lost.
        disciplines.retain(|it| *it != Discipline::Mixed || !load.shape.loses_disk);
        let random = StdRng::seed_from_u64(seed);
        let mut session = Session { load: Rc::clone(&load), who, random, keyspace, disciplines };
        while load.phase.get() == Phase::Work {
            session.step().await;
            let think_ms = if load.overload.get() { 3 } else { load.shape.think_ms };
            let think_ms = session.random.random_range(0..=think_ms);
            tokio::time::sleep(Duration::from_millis(think_ms)).await;
        }
    }
    load.working.set(load.working.get() - 1);
}

impl Session {
    async fn step(&mut self) {
        let discipline = self.discipline();
        match self.random.random_range(0..100) {
            0..=39 => self.put(discipline).await,
            40..=47 => self.delete(discipline).await,
            48..=83 => self.get(discipline).await,
            84..=88 => self.batch_write(discipline).await,
            89..=93 => self.batch_get(discipline).await,
            94..=98 => self.scan(discipline).await,
            _ => self.misbehave().await,
        }
    }

    /// Many calls are of the strictest discipline.
    fn discipline(&mut self) -> Discipline {
        let strict = if self.load.shape.races { 5 } else { 2 };
        if self.random.random_ratio(strict, 6) {
            return Discipline::Quorum;
        }
        *self.disciplines.choose(&mut self.random).expect("there are some")
    }

    /// True if this client may read keys of the discipline.
    fn reads(&self, discipline: Discipline) -> bool {
        !matches!(discipline, Discipline::LocalQuorum { home } if home != self.who.datacenter)
    }

    fn write_level(&mut self, discipline: Discipline) -> ConsistencyLevel {
        *discipline.write_levels().choose(&mut self.random).expect("there are some")
    }

    fn read_level(&mut self, discipline: Discipline) -> ConsistencyLevel {
        *discipline.read_levels().choose(&mut self.random).expect("there are some")
    }

    /// A key to write: one that nobody has written, or one that everybody does.
    fn key_to_write(&mut self, discipline: Discipline) -> KeyName {
        if self.load.shape.races && self.random.random_ratio(4, 5) {
            return KeyName { discipline, kind: KeyKind::Hot, number: 0 };
        }
        match self.random.random_range(0..10) {
            0..=4 => self.load.recorder.fresh_key(discipline),
            5 => self.hot_key(discipline, KeyKind::Expiring),
            _ => self.hot_key(discipline, KeyKind::Hot),
        }
    }

    fn hot_key(&mut self, discipline: Discipline, kind: KeyKind) -> KeyName {
        let few = self.load.overload.get() || self.random.random_ratio(2, 3);
        let number = self.random.random_range(0..if few { 1 } else { KeyName::ROWS });
        KeyName { discipline, kind, number }
    }

    fn key_to_read(&mut self, discipline: Discipline) -> KeyName {
        if self.load.shape.races && self.random.random_ratio(4, 5) {
            return KeyName { discipline, kind: KeyKind::Hot, number: 0 };
        }
        let fresh = self.load.recorder.fresh_keys(discipline);
        match self.random.random_range(0..10) {
            0..=3 if fresh > 0 => {
                let back = self.random.random_range(0..fresh.min(12));
                KeyName { discipline, kind: KeyKind::Once, number: fresh - 1 - back }
            }
            4 => self.hot_key(discipline, KeyKind::Expiring),
            _ => self.hot_key(discipline, KeyKind::Hot),
        }
    }

    /// The time that a call gets: mostly the usual, now and then very little.
    fn timeout(&mut self) -> Duration {
        match self.random.random_range(0..20) {
            0 => Duration::from_millis(self.random.random_range(0..=60)),
            _ => REQUEST_TIMEOUT,
        }
    }
}
