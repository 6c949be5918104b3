//! What a run, or a sweep of many, has really exercised. A figure that stays 0 means that the
//! simulator does not look where it says.

use std::collections::BTreeMap;

use crate::{
    fault::Fault,
    history::{Action, Operation, Outcome},
};

/// Figures by group and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    figures: BTreeMap<(String, String), u64>,
}

impl Coverage {
    /// Adds to one figure.
    pub fn add(&mut self, group: &str, name: &str, count: u64) {
        *self.figures.entry((group.to_owned(), name.to_owned())).or_default() += count;
    }

    /// Adds what a node has counted in one life.
    pub fn add_node(&mut self, counters: &[(&'static str, u64)]) {
        for (name, count) in counters {
            self.add("node", name, *count);
        }
    }

    /// Adds what clients asked and were told.
    pub fn add_history(&mut self, history: &[Operation]) {
        for it in history {
            let action = match it.action {
                Action::Put { ttl_ms: None, .. } => "put",
                Action::Put { .. } => "put with a TTL",
                Action::Delete => "delete",
                Action::Get => "get",
            };
            self.add("call", &format!("{action} {:?}", it.via).to_lowercase(), 1);
            if it.tries > 1 {
                self.add("call", "sent again", 1);
            }
            self.add("level", &it.level.to_string(), 1);
            let outcome = match &it.outcome {
                Outcome::Written { .. } => "written".to_owned(),
                Outcome::Found { value: Some(_), .. } => "found".to_owned(),
                Outcome::Found { value: None, .. } => "absent".to_owned(),
                Outcome::NotApplied { reason } => format!("not applied: {}", reason.as_str()),
                Outcome::Unknown { reason: Some(it), answered: false, .. } => {
                    format!("unanswered: {}", it.as_str())
                }
                Outcome::Unknown { reason: Some(it), .. } => format!("unknown: {}", it.as_str()),
                Outcome::Unknown { reason: None, .. } => "unknown: given up".to_owned(),
            };
            self.add("outcome", &outcome, 1);
        }
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for ((group, name), count) in &other.figures {
            self.add(group, name, *count);
        }
    }

    /// All figures, by group and name.
    pub fn figures(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.figures.iter().map(|((group, name), count)| (group.as_str(), name.as_str(), *count))
    }

    /// One figure.
    pub fn get(&self, group: &str, name: &str) -> u64 {
        self.figures.get(&(group.to_owned(), name.to_owned())).copied().unwrap_or(0)
    }

    /// What a sweep has to exercise and did not.
    pub fn missing(&self) -> Vec<String> {
        let faults = Fault::NAMES.iter().map(|it| ("fault", *it));
        let wanted = faults.chain(WANTED.iter().copied());
        let missing = wanted.filter(|(group, name)| self.get(group, name) == 0);
        missing.map(|(group, name)| format!("{group}: {name}")).collect()
    }
}

/// What every sweep of some length has to exercise, beside all faults.
const WANTED: &[(&str, &str)] = &[
    ("node", "writes_acknowledged"),
    ("node", "writes_unknown"),
    ("node", "writes_unavailable"),
    ("node", "writes_restamped"),
    ("node", "overwritten_concurrent"),
    ("node", "reads_speculative"),
    ("node", "read_write_backs"),
    ("node", "read_repairs"),
    ("node", "scan_pages"),
    ("node", "reads_from_disk"),
    ("node", "hints_delivered"),
    ("node", "hints_stored"),
    ("node", "superseded"),
    ("node", "clock_suspensions"),
    ("node", "calls_clock_skew"),
    ("node", "calls_overloaded"),
    ("node", "hints_marked_dirty"),
    ("node", "operations_recounted"),
    ("node", "votes_not_taken"),
    ("node", "exchange_records_taken"),
    ("node", "records_purged"),
    ("node", "records_healed"),
    ("node", "leaves_recounted"),
    ("node", "below_fence"),
    ("node", "checksum_failures"),
    ("node", "corrupt"),
    ("node", "metadata_adopted"),
    ("node", "groups_full"),
    ("node", "groups_failed"),
    ("node", "peer_answers_dropped"),
    ("node", "reads_failed"),
    ("operator", "created"),
    ("operator", "dropped"),
    ("level", "1"),
    ("level", "2"),
    ("call", "put single"),
    ("call", "delete single"),
    ("call", "get single"),
    ("call", "get batch"),
    ("call", "get scan"),
    ("call", "sent again"),
    ("call", "put with a ttl single"),
    ("call", "delete batch"),
    ("call", "put batch"),
    ("level", "ANY"),
    ("level", "ONE"),
    ("level", "TWO"),
    ("level", "THREE"),
    ("level", "QUORUM"),
    ("level", "ALL"),
    ("level", "LOCAL_ONE"),
    ("level", "LOCAL_QUORUM"),
    ("level", "EACH_QUORUM"),
    ("outcome", "not applied: CLOCK_SKEW"),
    ("outcome", "not applied: READ_TIMEOUT"),
    ("outcome", "unknown: WRITE_FAILED"),
    ("outcome", "unknown: DISK_FULL"),
    ("outcome", "found"),
    ("outcome", "absent"),
    ("outcome", "written"),
    ("outcome", "unknown: given up"),
    ("outcome", "unknown: WRITE_TIMEOUT"),
    ("outcome", "not applied: NOT_ENOUGH_REPLICAS"),
];
