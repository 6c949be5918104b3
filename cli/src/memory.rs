//! How much memory a node takes for its caches.

use node::storage::rocks::RocksLimits;
use sysinfo::{MemoryRefreshKind, Process, ProcessRefreshKind, ProcessesToUpdate, System};

/// What a node takes that is not told: a quarter of what there is.
pub(crate) fn default_bytes() -> usize {
    quarter(available_bytes())
}

/// Says so if a node is to take more than there is.
pub(crate) fn warn_of(bytes: usize) {
    if let Some(available) =
        available_bytes().filter(|it| u64::try_from(bytes).is_ok_and(|bytes| bytes > *it))
    {
        tracing::warn!(bytes, available, "--memory is more than there is");
    }
}

fn quarter(available_bytes: Option<u64>) -> usize {
    let Some(bytes) = available_bytes else { return RocksLimits::MEMORY_BYTES_DEFAULT };
    usize::try_from(bytes / 4).unwrap_or(usize::MAX).max(RocksLimits::MEMORY_BYTES_MIN)
}

/// What the machine has, or, if that is less, what the control group of this process allows.
fn available_bytes() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = Some(system.total_memory()).filter(|it| *it > 0);
    let own = sysinfo::get_current_pid().ok();
    if let Some(own) = own {
        let (own, nothing) = ([own], ProcessRefreshKind::nothing());
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&own), false, nothing);
    }
    let own = own.and_then(|it| system.process(it)).and_then(Process::cgroup_limits);
    let groups = [system.cgroup_limits(), own].into_iter().flatten().map(|it| it.total_memory);
    machine.into_iter().chain(groups).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_what_there_is() {
        assert_eq!(quarter(Some(24 << 30)), 6 << 30);
        assert_eq!(quarter(Some(1 << 20)), RocksLimits::MEMORY_BYTES_MIN);
        assert_eq!(quarter(None), RocksLimits::MEMORY_BYTES_DEFAULT);
    }

    #[test]
    fn this_machine_has_memory() {
        let bytes = available_bytes().expect("it is told");
        assert!((32 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
