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
    /// Connections.
    pub(crate) connections: Connections,
}

/// Connections of each loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Of clients.
    pub(crate) clients: usize,
    /// That other nodes open. This node opens as many.
    pub(crate) peers: usize,
}

impl OpenFiles {
    /// Shares out `limit` for so many loops. `asked` is what the command line asks for clients: less is no answer
    /// to that. Else nobody gets more connections than `most` has.
    pub(crate) fn share(
        limit: usize,
        loops: usize,
        asked: Option<usize>,
        most: Connections,
    ) -> Result<Self, Failure> {
        let too_few = |problem: String| {
            let said = format!("this process may open {limit} files and connections: {problem}");
            Err(Failure::usage(said).advise("ulimit -n, or LimitNOFILE= of its unit"))
        };
        if limit < LIMIT_MIN {
            return too_few(format!("a node needs {LIMIT_MIN}"));
        }
        let database = (limit / 4).clamp(DATABASE_MIN, DATABASE_MAX);
        let rest = limit.saturating_sub(database + SPARE + SPARE_OF_A_LOOP * loops);
        let (room, peers) = (rest / 2 / loops, rest / 4 / loops);
        if peers < PEERS_MIN {
            return too_few(format!("too few for {loops} I/O threads"));
        }
        if let Some(asked) = asked
            && asked > room
        {
            return too_few(format!(
                "they leave {room} for clients, and --connections-max asks for {asked}"
            ));
        }
        let clients = asked.unwrap_or(room.min(most.clients));
        Ok(Self { database, connections: Connections { clients, peers: peers.min(most.peers) } })
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

    const MOST: Connections = Connections { clients: 4_096, peers: 4_096 };

    #[test]
    fn what_is_allowed_suffices_for_all() {
        for limit in [256, 300, 1_024, 4_096, 20_000, 524_288, LIMIT_MAX] {
            for loops in [1, 4, 16] {
                let Ok(it) = OpenFiles::share(limit, loops, None, MOST) else {
                    assert!(loops > 1 && limit <= 1_024, "{limit} for {loops}");
                    continue;
                };
                let Connections { clients, peers } = it.connections;
                let all = it.database + loops * (clients + 2 * peers) + SPARE;
                assert!(all <= limit && peers >= PEERS_MIN, "{limit} for {loops}: {it:?}");
            }
        }
    }

    #[test]
    fn shares() {
        let share = |limit, asked| OpenFiles::share(limit, 1, asked, MOST);
        let of = |database, clients, peers| OpenFiles {
            database,
            connections: Connections { clients, peers },
        };
        assert_eq!(share(1_024, None).unwrap(), of(256, 348, 174));
        assert_eq!(share(LIMIT_MAX, None).unwrap(), of(8_192, 4_096, 4_096));
        assert_eq!(share(LIMIT_MAX, Some(100_000)).unwrap().connections.clients, 100_000);
        assert_eq!(share(1_024, Some(348)).unwrap().connections.clients, 348);
        assert!(share(1_024, Some(349)).is_err() && share(255, None).is_err());
    }

    #[test]
    fn as_many_as_are_allowed() {
        raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
