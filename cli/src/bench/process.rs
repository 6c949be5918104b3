//! What a process has used, as Linux tells it under /proc.

use std::{fs, time::Duration};

use crate::failure::Failure;

/// Linux tells processor time in hundredths of a second on every architecture that Rust's standard
/// library supports, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// The processor time, user and system, that a process and its ended threads have used.
pub(crate) fn processor_time(pid: u32) -> Result<Duration, Failure> {
    let path = format!("/proc/{pid}/stat");
    let failure = |error| Failure::file(format!("cannot read {path}"), &error);
    let text = fs::read_to_string(&path).map_err(failure)?;
    parse_processor_time(&text)
        .ok_or_else(|| Failure::new("FILE", format!("{path} is not as expected: {text}")))
}

/// The memory that a process holds, in bytes; `None` if it cannot be told.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    parse_resident_bytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_processor_time(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses, which may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user + TICK * system)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_a_strange_name() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 12345 0 0";
        assert_eq!(parse_processor_time(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_processor_time("42 (x"), None);
    }

    #[test]
    fn resident_memory() {
        assert_eq!(parse_resident_bytes("Name:\tx\nVmRSS:\t   14336 kB\n"), Some(14 << 20));
        assert_eq!(parse_resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(processor_time(pid).is_ok());
        assert!(resident_bytes(pid).is_some_and(|it| it > 0));
    }
}
