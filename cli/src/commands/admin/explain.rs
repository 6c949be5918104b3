//! `quorate admin explain`: where a key lives and what each replica holds of it.

use std::time::Duration;

use clap::Args;
use client::Admin;
use model::{Hlc, Version};
use proto::v1;
use serde::Serialize;

use super::look;
use crate::{
    args::RowArgs,
    commands::RowName,
    connect::fail,
    failure::{Attempt, Failure},
    output::{Output, Paint},
    table::{Cell, Table},
    values::{spell_bytes, spell_duration},
};

/// Show where a key lives and what every replica holds of it
///
/// Repairs nothing: what differs stays as it is. A replica that does not answer is shown as
/// unreachable, which says nothing about what it holds.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Example:
  quorate admin explain shop user:42")]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    row: RowArgs,
}

/// Asks and shows.
pub(super) async fn run(args: ExplainArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let key = args.row.key()?;
    let keyspace = &args.row.keyspace;
    let attempt =
        Attempt { keyspace: Some(keyspace.clone()), key: Some(args.row.name()), ..look() };
    let explained = admin.explain(keyspace, key.clone()).await;
    let explained = explained.map_err(|error| fail(&error, &attempt))?;
    let name = RowName::new(&key, args.row.encoding.get());
    let document = ExplainDocument::new(keyspace, name, &explained);
    if output.is_json() {
        return output.document(&document);
    }
    output.line(&format!(
        "key {}   keyspace {keyspace}   token {}   partition {}",
        args.row.name(),
        document.token,
        document.partition,
    ))?;
    output.report(&document.table())?;
    let paint = if document.agreed { Paint::Good } else { Paint::Warning };
    output.line(&output.paint(paint, &document.verdict()))
}

#[derive(Clone, Debug, Serialize)]
struct ExplainDocument {
    keyspace: String,
    #[serde(flatten)]
    row: RowName,
    token: String,
    partition: u32,
    newest: Option<String>,
    agreed: bool,
    replicas: Vec<ReplicaDocument>,
}

#[derive(Clone, Debug, Serialize)]
struct ReplicaDocument {
    datacenter: String,
    address: String,
    state: State,
    version: Option<String>,
    tombstone: bool,
    expires_at_ms: Option<u64>,
    /// True if the row has expired, by the clock of the node that was asked.
    expired: bool,
    digest: Option<String>,
    value_bytes: u64,
    age_ms: Option<u64>,
    refusal: Option<String>,
}

/// What a replica's answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It holds the newest version found.
    Current,
    /// It holds an older version.
    Stale,
    /// It holds no record, and another replica does.
    Missing,
    /// No replica holds a record: the row was never written, or was purged after its end.
    Absent,
    /// It answered that it cannot tell.
    Refused,
    /// It did not answer.
    Unreachable,
}

impl State {
    fn of(replica: &v1::ReplicaState, newest: Option<&v1::Version>) -> Self {
        match (replica.answered, replica.holds_record) {
            (false, _) => Self::Unreachable,
            _ if !replica.refusal.is_empty() => Self::Refused,
            (true, false) if newest.is_none() => Self::Absent,
            (true, false) => Self::Missing,
            (true, true) if replica.version.as_ref() == newest => Self::Current,
            (true, true) => Self::Stale,
        }
    }

    fn cell(self, replica: &ReplicaDocument) -> Cell {
        let (paint, text) = match self {
            Self::Current => (Paint::Good, "current"),
            Self::Stale => (Paint::Warning, "STALE"),
            Self::Missing => (Paint::Warning, "MISSING"),
            Self::Absent => (Paint::Faint, "nothing held: never written, or purged"),
            Self::Refused => (Paint::Bad, replica.refusal.as_deref().unwrap_or("REFUSED")),
            Self::Unreachable => (Paint::Bad, "unreachable"),
        };
        let ended = match (replica.tombstone, replica.expired) {
            (true, _) => ", deleted",
            (false, true) => ", expired",
            (false, false) => "",
        };
        Cell::painted(paint, format!("{text}{ended}"))
    }
}

impl ExplainDocument {
    fn new(keyspace: &str, row: RowName, it: &v1::ExplainResponse) -> Self {
        let newest = it.newest.as_ref();
        Self {
            keyspace: keyspace.to_owned(),
            row,
            token: format!("{:016x}", it.token),
            partition: it.partition,
            newest: newest.map(|it| Version::from(*it).to_string()),
            agreed: it.agreed,
            replicas: it.replicas.iter().map(|it| ReplicaDocument::new(it, newest)).collect(),
        }
    }

    fn table(&self) -> Table {
        let columns = ["replica", "dc", "version", ">age", "digest", ">size", "expires", "state"];
        let mut table = Table::new(&columns);
        let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "-".to_owned()));
        for it in &self.replicas {
            let unknown = matches!(it.state, State::Unreachable | State::Refused);
            let version = it.version.clone().or_else(|| unknown.then(|| "?".to_owned()));
            let holds = it.version.is_some();
            table.row([
                it.address.as_str().into(),
                it.datacenter.as_str().into(),
                or_dash(version),
                or_dash(it.age_ms.map(|ms| spell_duration(Duration::from_millis(ms)))),
                or_dash(it.digest.clone()),
                or_dash(holds.then(|| spell_bytes(it.value_bytes))),
                or_dash(it.expires_at_ms.map(|ms| format!("{}", Hlc::from_ms(ms).ms()))),
                it.state.cell(it),
            ]);
        }
        table
    }

    fn verdict(&self) -> String {
        let count = |state| self.replicas.iter().filter(|it| it.state == state).count();
        let (all, unreachable) = (self.replicas.len(), count(State::Unreachable));
        if self.agreed {
            let what = if self.newest.is_some() { "the same version" } else { "no record" };
            return format!("all {all} replicas hold {what}");
        }
        let mut parts = Vec::new();
        for (state, text) in [
            (State::Current, "hold the newest"),
            (State::Stale, "are stale"),
            (State::Missing, "miss it"),
            (State::Refused, "refused"),
            (State::Unreachable, "cannot be reached"),
        ] {
            let n = count(state);
            if n > 0 {
                parts.push(format!("{n} {text}"));
            }
        }
        let hint = match unreachable {
            0 => "; a read at QUORUM or above repairs them",
            _ => "",
        };
        format!("of {all} replicas {}{hint}", parts.join(", "))
    }
}

impl ReplicaDocument {
    fn new(it: &v1::ReplicaState, newest: Option<&v1::Version>) -> Self {
        let holds = it.answered && it.holds_record;
        let version = it.version.filter(|_| holds).map(Version::from);
        // Age counts from the stamp to now, both by the coordinator's clock.
        let now_ms = version.map_or(0, |version| version.hlc.ms().saturating_add(it.age_ms));
        Self {
            datacenter: it.datacenter.clone(),
            address: it.address.clone(),
            state: State::of(it, newest),
            version: version.map(|it| it.to_string()),
            tombstone: holds && it.tombstone,
            expires_at_ms: (holds && it.expires_at_ms != 0).then_some(it.expires_at_ms),
            expired: holds && it.expires_at_ms != 0 && it.expires_at_ms <= now_ms,
            digest: holds.then(|| format!("{:08x}", it.digest)),
            value_bytes: it.value_bytes,
            age_ms: holds.then_some(it.age_ms),
            refusal: (!it.refusal.is_empty()).then(|| it.refusal.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Encoding;

    fn version(ms: u64) -> v1::Version {
        v1::Version { clock: Hlc::from_ms(ms).0, request_id: 7 }
    }

    fn replica(port: u16, held: Option<u64>) -> v1::ReplicaState {
        v1::ReplicaState {
            datacenter: "dc1".to_owned(),
            address: format!("127.0.0.1:{port}"),
            answered: true,
            holds_record: held.is_some(),
            version: held.map(version),
            digest: 0xa91f_0000,
            value_bytes: 5,
            age_ms: 12_000,
            ..v1::ReplicaState::default()
        }
    }

    fn explain(replicas: Vec<v1::ReplicaState>, newest: Option<u64>, agreed: bool) -> String {
        let response = v1::ExplainResponse {
            replicas,
            newest: newest.map(version),
            agreed,
            ..v1::ExplainResponse::default()
        };
        let row = RowName::new(&model::Key::new("user:42"), Encoding::Text);
        let document = ExplainDocument::new("shop", row, &response);
        format!("{}{}", document.table().aligned(false), document.verdict())
    }

    #[test]
    fn replicas_that_differ() {
        let replicas = vec![
            replica(1, Some(412)),
            replica(2, Some(101)),
            replica(3, None),
            v1::ReplicaState { answered: false, ..replica(4, Some(412)) },
            v1::ReplicaState { refusal: "CORRUPT".to_owned(), ..replica(5, None) },
        ];
        assert_eq!(
            explain(replicas, Some(412), false),
            "replica      dc   version                    age  digest    size  expires  state
127.0.0.1:1  dc1  412.0@0000000000000007  12.0 s  a91f0000   5 B  -        current
127.0.0.1:2  dc1  101.0@0000000000000007  12.0 s  a91f0000   5 B  -        STALE
127.0.0.1:3  dc1  -                            -  -            -  -        MISSING
127.0.0.1:4  dc1  ?                            -  -            -  -        unreachable
127.0.0.1:5  dc1  ?                            -  -            -  -        CORRUPT
of 5 replicas 1 hold the newest, 1 are stale, 1 miss it, 1 refused, 1 cannot be reached"
        );
    }

    #[test]
    fn replicas_that_agree() {
        let deleted = v1::ReplicaState { tombstone: true, ..replica(1, Some(9)) };
        let text = explain(vec![deleted.clone(), deleted], Some(9), true);
        assert!(text.ends_with("current, deleted\nall 2 replicas hold the same version"), "{text}");
        let text = explain(vec![replica(1, None)], None, true);
        let nothing = "nothing held: never written, or purged\nall 1 replicas hold no record";
        assert!(text.ends_with(nothing), "{text}");
    }

    #[test]
    fn a_row_that_has_expired_says_so() {
        // Stamped at 1,000 ms, and 12 s old.
        let at = |expires_at_ms| v1::ReplicaState { expires_at_ms, ..replica(1, Some(1_000)) };
        let text = explain(vec![at(13_000), at(13_001)], Some(1_000), true);
        let states: Vec<_> = text.lines().filter_map(|it| it.split("130").nth(1)).collect();
        assert_eq!(states, ["00    current, expired", "01    current"], "{text}");
    }
}
