//! What each pair of levels promises, and who judges it.

use model::Mutant;

use crate::{
    checker::{Finding, Violation},
    discipline::Discipline,
};

/// What some keys promise, and who judges it.
pub(super) struct Promise {
    /// Its name in the evidence.
    pub(super) name: &'static str,
    pub(super) keys: Keys,
    pub(super) levels: &'static str,
    pub(super) promised: &'static str,
    /// Checkers of `sim/src/checker/` and `sim/src/inspect.rs`, by name.
    pub(super) judges: &'static [&'static str],
    /// Bugs that break it.
    pub(super) mutants: &'static [Mutant],
}

/// The keys whose history a promise is about.
pub(super) enum Keys {
    /// Those used like this; of a datacenter's, those of every datacenter.
    Of(&'static [Discipline]),
    /// Those with a time to live, however they are used.
    Expiring,
}

impl Promise {
    /// True if this is a judge's word about one of its keys. A doubt breaks nothing.
    pub(super) fn is_broken_by(&self, violation: &Violation) -> bool {
        violation.finding == Finding::Violated
            && self.judges.contains(&violation.checker)
            && violation.key.as_deref().is_none_or(|it| self.keys.contain(it))
    }
}

impl Keys {
    fn contain(&self, key: &str) -> bool {
        // Inspectors name keys as nodes do: `Key { partition_key: b"quorum/hot/0", sort_key: b"1" }`.
        let name = key.split_once('"').map_or(key, |it| it.1);
        let mut words = name.split('/');
        let (prefix, kind) = (words.next().unwrap_or_default(), words.next());
        let wherever =
            |prefix: &str| prefix.trim_end_matches(|it: char| it.is_ascii_digit()).to_owned();
        match self {
            Self::Of(those) => those.iter().any(|it| wherever(&it.prefix()) == wherever(prefix)),
            Self::Expiring => kind == Some("expiring"),
        }
    }
}

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: "quorum",
        keys: Keys::Of(&[Discipline::Quorum]),
        levels: "QUORUM or ALL / QUORUM or ALL, or counts of at least a quorum",
        promised: "linearizable: each put, delete and get takes effect at one instant between its call and its \
                  answer; a write of unknown outcome may take effect later, once",
        judges: &["linearizable", "acked", "deletes", "monotonic", "unknown"],
        mutants: &[Mutant::NoConfirmation, Mutant::SupersededConfirms, Mutant::HalfIsAQuorum],
    },
    Promise {
        name: "local",
        keys: Keys::Of(&[Discipline::LocalQuorum { home: 0 }]),
        levels: "LOCAL_QUORUM / LOCAL_QUORUM, clients of one datacenter",
        promised: "linearizable in that datacenter; what others write there is a write that may take effect \
                  at any time",
        judges: &["linearizable", "acked"],
        mutants: &[Mutant::HalfIsAQuorum],
    },
    Promise {
        name: "each",
        keys: Keys::Of(&[Discipline::EachQuorum]),
        levels: "EACH_QUORUM / EACH_QUORUM",
        promised: "linearizable; both are unavailable while any datacenter lacks its quorum",
        judges: &["linearizable", "acked"],
        mutants: &[Mutant::EachIsLocal],
    },
    Promise {
        name: "each-local",
        keys: Keys::Of(&[Discipline::EachThenLocal]),
        levels: "EACH_QUORUM / LOCAL_QUORUM",
        promised: "regular: no acknowledged write is missed and writes keep their order; a write under way may \
                  be read here and not yet there",
        judges: &["regular", "acked", "deletes"],
        mutants: &[Mutant::EachIsLocal, Mutant::HalfIsAQuorum],
    },
    Promise {
        name: "local-each",
        keys: Keys::Of(&[Discipline::LocalThenEach]),
        levels: "LOCAL_QUORUM / EACH_QUORUM",
        promised: "an acknowledged write is read, unless a higher clock overwrote it",
        judges: &["acked", "session"],
        mutants: &[Mutant::ClientClockIgnored],
    },
    Promise {
        name: "all-one",
        keys: Keys::Of(&[Discipline::AllThenOne]),
        levels: "ALL / ONE",
        promised: "regular; not monotonic while a write is under way",
        judges: &["regular", "acked"],
        mutants: &[Mutant::CorruptIsAbsent],
    },
    Promise {
        name: "others",
        keys: Keys::Of(&[Discipline::QuorumThenOne, Discipline::Mixed]),
        levels: "QUORUM / ONE, and all other pairs",
        promised: "replicas converge by themselves; what is newest at a replica only rises, and each client's own writes keep their order",
        judges: &["replicas-agree", "versions-rise", "session"],
        mutants: &[Mutant::RowCacheStale, Mutant::GroupJudgedBlindly, Mutant::ClientClockIgnored],
    },
    Promise {
        name: "expiring",
        keys: Keys::Expiring,
        levels: "keys with a time to live",
        promised: "as above; around the moment of expiry, within the bound of clock offsets, either answer is \
                  given, and never the value after its absence",
        judges: &["expiry"],
        mutants: &[Mutant::ExpiryByOwnClock],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_judge_that_is_named_exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let inspect = ["inspect.rs", "inspect/replicas.rs", "inspect/trees.rs"]
            .map(|it| std::fs::read_to_string(format!("{source}/{it}")).unwrap())
            .concat();
        for judge in PROMISES.iter().flat_map(|it| it.judges) {
            let file = std::fs::read_to_string(format!("{source}/checker/{judge}.rs"));
            let (checker, name) = (file.unwrap_or_default(), format!("\"{judge}\""));
            assert!(checker.contains(&name) || inspect.contains(&name), "who is {judge}?");
        }
    }

    #[test]
    fn a_promise_is_broken_on_its_own_keys_by_its_own_judges() {
        let find = |name| PROMISES.iter().find(|it| it.name == name).unwrap();
        let breaks = |promise, checker, key: &str| {
            find(promise).is_broken_by(&Violation::broken(checker, Some(key), String::new()))
        };
        assert!(breaks("quorum", "acked", "quorum/hot/0/1"));
        assert!(!breaks("quorum", "acked", "quorum-one/hot/0/1"));
        assert!(!breaks("quorum", "session", "quorum/hot/0/1"));
        assert!(breaks("local", "acked", "local2/once/0/1"));
        assert!(!breaks("local", "acked", "local-each/once/0/1"));
        assert!(breaks("expiring", "expiry", "mixed/expiring/0/1"));
        assert!(!breaks("expiring", "expiry", "mixed/hot/0/1"));
        let stored = "Key { partition_key: b\"mixed/hot/0\", sort_key: b\"1\" }";
        assert!(breaks("others", "replicas-agree", stored));
        let doubt = Violation::undecided("acked", Some("quorum/hot/0/1"), String::new());
        assert!(!find("quorum").is_broken_by(&doubt));
    }
}
