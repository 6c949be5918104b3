//! How many files and connections this process may have open, and who gets them: clients that connect must leave the
//! database its files.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::failure::Failure;

/// Lets this process open as many as it is allowed to. Processes begin with far fewer, for the sake of old
/// programs.
pub(crate) fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What it has stays if this fails, and is shared out.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many this process may have open.
pub(crate) fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX).min(LIMIT_MAX)
}

/// Who gets how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    /// Files of the database.
    pub(crate) database: usize,
    /// Connections of clients, on each loop.
    pub(crate) clients: usize,
    /// Connections that other nodes open, on each loop. This node opens as many.
    pub(crate) peers: usize,
}

impl OpenFiles {
    /// Shares out `limit` for so many loops. `clients` is what the command line asks for; less is no answer to
    /// that, and more than the default is not taken.
    pub(crate) fn share(
        limit: usize,
        loops: usize,
        clients: Option<usize>,
        default: Self,
    ) -> Result<Self, Failure> {
        if limit < LIMIT_MIN {
            let problem = format!(
                "this process may open {limit} files and connections, and a node needs {LIMIT_MIN}"
            );
            return Err(Failure::usage(problem).advise("ulimit -n, or LimitNOFILE= of its unit"));
        }
        let database = (limit / 4).clamp(DATABASE_MIN, DATABASE_MAX);
        let rest = limit.saturating_sub(database + SPARE + SPARE_OF_A_LOOP * loops);
        let (room, peers) = (rest / 2 / loops, rest / 4 / loops);
        if peers < PEERS_MIN {
            let problem = format!(
                "this process may open {limit} files and connections, too few for {loops} I/O threads"
            );
            return Err(Failure::usage(problem).advise("ulimit -n, or LimitNOFILE= of its unit"));
        }
        if let Some(asked) = clients
            && asked > room
        {
            let problem = format!(
                "--connections-max: {asked} are more than {room}, which is what the {limit} files and \
                 connections that this process may open leave for clients"
            );
            return Err(Failure::usage(problem).advise("ulimit -n, or LimitNOFILE= of its unit"));
        }
        let clients = clients.unwrap_or(room.min(default.clients)).max(1);
        Ok(Self { database, clients, peers: peers.clamp(1, default.peers) })
    }
}

/// Nothing needs more.
const LIMIT_MAX: usize = 1 << 20;
const LIMIT_MIN: usize = 256;
/// A database with less closes and opens files all the time.
const DATABASE_MIN: usize = 128;
const DATABASE_MAX: usize = 8_192;
/// Standard streams, logs, the connections of metrics.
const SPARE: usize = 64;
/// Its ports and event queues.
const SPARE_OF_A_LOOP: usize = 8;
/// Links to so many other nodes, at least.
const PEERS_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: OpenFiles = OpenFiles { database: 512, clients: 4_096, peers: 4_096 };

    #[test]
    fn what_is_allowed_suffices_for_all() {
        for limit in [256, 300, 1_024, 4_096, 20_000, 524_288, LIMIT_MAX] {
            for loops in [1, 4, 16] {
                let Ok(it) = OpenFiles::share(limit, loops, None, DEFAULT) else {
                    assert!(loops > 1 && limit <= 1_024, "{limit} for {loops}");
                    continue;
                };
                let most = it.database + loops * (it.clients + 2 * it.peers) + SPARE;
                assert!(most <= limit && it.peers >= PEERS_MIN, "{limit} for {loops}: {it:?}");
            }
        }
    }

    #[test]
    fn shares() {
        let share = |limit, clients| OpenFiles::share(limit, 1, clients, DEFAULT);
        let of = |database, clients, peers| OpenFiles { database, clients, peers };
        assert_eq!(share(1_024, None).unwrap(), of(256, 348, 174));
        assert_eq!(share(LIMIT_MAX, None).unwrap(), of(8_192, 4_096, 4_096));
        assert_eq!(share(LIMIT_MAX, Some(100_000)).unwrap().clients, 100_000);
        assert_eq!(share(1_024, Some(348)).unwrap().clients, 348);
        assert!(share(1_024, Some(349)).is_err() && share(255, None).is_err());
    }

    #[test]
    fn as_many_as_are_allowed() {
        raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
