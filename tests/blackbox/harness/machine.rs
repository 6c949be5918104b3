//! Shares the machine among tests that run at once: processes are slots, addresses are handed out
//! once.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process,
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

/// Node processes that may run at once: a cluster of nine beside one of three on a small machine.
fn slots_max() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (6 * cores).max(12)
}

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// Leave to run some processes, given back when dropped.
pub(crate) struct Slots(usize);

impl Slots {
    /// Waits until so many more processes may run. Blocks the thread, so call it first in a test.
    pub(crate) fn take(count: usize) -> Self {
        let count = count.min(slots_max());
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken + count > slots_max() {
            taken = GIVEN_BACK.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += count;
        Self(count)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        GIVEN_BACK.notify_all();
    }
}

/// The ports that are handed out: below those that systems take for outgoing connections, so that a
/// node that was killed finds its port free again.
const PORTS: std::ops::Range<u32> = 12_000..32_000;

static NEXT_PORT: Mutex<Option<u32>> = Mutex::new(None);

/// An address on loopback where nobody listens, never handed out before by this process.
pub(super) fn free_address() -> SocketAddr {
    let mut next = NEXT_PORT.lock().unwrap_or_else(PoisonError::into_inner);
    let count = PORTS.end - PORTS.start;
    for _ in 0..count {
        // Other test processes begin elsewhere.
        let port = next.unwrap_or(PORTS.start + process::id().wrapping_mul(7919) % count);
        *next = Some(if port + 1 < PORTS.end { port + 1 } else { PORTS.start });
        let port = u16::try_from(port).expect("the range above");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port of {PORTS:?} is free on loopback");
}

/// A copy of a folder and all that is in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), &target).expect("copied")),
        }
    }
}
