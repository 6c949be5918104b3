//! Answers of replicas with different floors. Rule: docs/protocol.md, F8.
//!
//! A replica with floor F has vouched for every version up to F: it holds the newest of them, or what it
//! held is purged. So of versions up to the highest floor answered, those count that a replica with that
//! floor holds; what a replica below it holds besides is overwritten, or comes from a disk that was put
//! back.

use model::{Hlc, ReadTally, Record, RecordKind, ReplicaIndex, ReplicaMask, Version};

/// What is known of the floors of those that answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Floors {
    /// The floor of all answers so far; `None` before the first.
    common: Option<Hlc>,
    /// The answers, once their floors have been found to differ.
    answers: Option<Vec<(ReplicaIndex, Option<Record>, Hlc)>>,
    /// The newest record was learnt from a write-back: nobody has told its holder's floor.
    adopted: bool,
}

/// What an answer's floor means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloorVerdict {
    /// As all others.
    Same,
    /// It differs, and the answer comes too late to matter.
    Stray,
    /// It differs: ask again.
    Apart,
    /// They are known to differ: weigh the answer against the others.
    Weighed,
}

/// The answers, weighed.
#[derive(Default)]
pub(super) struct Weighed {
    pub(super) tally: ReadTally,
    pub(super) newest: Option<Record>,
    /// Those that hold what must not count: neither that nor absence can be confirmed by them.
    pub(super) ignored: ReplicaMask,
}

impl Floors {
    /// Judges an answer by its floor. `counts` is false once the read has what it needs.
    pub(super) fn judge(&mut self, counts: bool, floor: Hlc) -> FloorVerdict {
        match (&self.answers, counts) {
            (Some(_), true) => FloorVerdict::Weighed,
            (Some(_), false) => FloorVerdict::Stray,
            (None, _) if *self.common.get_or_insert(floor) == floor => FloorVerdict::Same,
            (None, true) => FloorVerdict::Apart,
            (None, false) => FloorVerdict::Stray,
        }
    }

    /// The read begins anew, by a higher clock or by other directories.
    pub(super) fn restart(&mut self) {
        *self = Self { answers: self.answers.take().map(|_| Vec::new()), ..Self::default() };
    }

    /// The read begins anew, to weigh answers.
    pub(super) fn begin_weighing(&mut self) {
        *self = Self { answers: Some(Vec::new()), ..Self::default() };
    }

    pub(super) fn add(&mut self, from: ReplicaIndex, record: Option<Record>, floor: Hlc) {
        self.answers.get_or_insert_default().push((from, record, floor));
    }

    /// The newest was learnt from a write-back.
    pub(super) fn adopt(&mut self) {
        self.adopted = true;
    }

    /// Weighs all answers by the highest floor among them.
    pub(super) fn weigh(&self) -> Weighed {
        let mut weighed = Weighed::default();
        let Some(answers) = &self.answers else { return weighed };
        let highest = self.highest();
        let mut doubtful = Vec::new();
        for (from, record, floor) in answers {
            let vouched = |version| {
                answers.iter().any(|it| it.2 == highest && version_of(it.1.as_ref()) == version)
            };
            let counted = match record {
                Some(it) if *floor < highest && it.version().hlc <= highest => {
                    let gone = it.kind() == RecordKind::Tombstone || it.expired_at(highest);
                    match (vouched(it.version()), gone) {
                        (true, _) => Some(it),
                        (false, true) => None,
                        (false, false) => {
                            doubtful.push((*from, it.version()));
                            continue;
                        }
                    }
                }
                other => other.as_ref(),
            };
            if weighed.tally.record(*from, version_of(counted)) {
                weighed.newest = counted.cloned();
            }
        }
        for (from, version) in doubtful {
            // Overwritten by what counts: as any answer that is older. Else nothing can be confirmed there.
            if version < weighed.tally.newest() {
                weighed.tally.record(from, version);
            } else {
                weighed.ignored.insert(from);
            }
        }
        weighed
    }

    /// The floor of a replica that holds the newest record, the highest if several do.
    pub(super) fn of_newest(&self) -> Hlc {
        if self.adopted {
            return Hlc::ZERO;
        }
        let Some(answers) = &self.answers else { return self.common.unwrap_or_default() };
        let newest = version_of(self.weigh().newest.as_ref());
        let holders = answers.iter().filter(|it| version_of(it.1.as_ref()) == newest);
        holders.map(|it| it.2).max().unwrap_or_default()
    }

    fn highest(&self) -> Hlc {
        self.answers.iter().flatten().map(|it| it.2).max().unwrap_or_default()
    }
}

fn version_of(record: Option<&Record>) -> Version {
    record.map_or(Version::ABSENT, Record::version)
}

#[cfg(test)]
mod tests {
    use model::{Key, KeyspaceId, RequestId, StorageKey};

    use super::*;

    /// "v10" is a value with clock 10, "d10" a tombstone, "" nothing.
    fn record(text: &str) -> Option<Record> {
        let (kind, hlc) = text.split_at_checked(1)?;
        let key = Key::new("k");
        let key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
        let version = Version { hlc: Hlc(hlc.parse().ok()?), request: RequestId(1) };
        Some(Record::encode(&key, version, 0, (kind == "v").then_some(&b"v"[..])))
    }

    /// Weighs answers such as "d10/5", with floors behind the slash: the newest, and who is ignored.
    fn weigh(answers: &str) -> String {
        let mut floors = Floors::default();
        floors.begin_weighing();
        for (at, answer) in (0..).zip(answers.split_whitespace()) {
            let (text, floor) = answer.split_once('/').unwrap();
            floors.add(ReplicaIndex(at), record(text), Hlc(floor.parse().unwrap()));
        }
        let weighed = floors.weigh();
        let newest = weighed.newest.map_or("-".to_owned(), |it| it.version().hlc.0.to_string());
        let ignored: Vec<_> = weighed.ignored.iter().map(|it| it.0.to_string()).collect();
        format!("{newest} {}", ignored.join(","))
    }

    #[test]
    fn versions_up_to_the_highest_floor_count_where_it_is() {
        assert_eq!(weigh("/20 d10/5"), "- ", "purged there, and not here yet");
        assert_eq!(weigh("/20 v10/5"), "- 1", "a disk that was put back");
        assert_eq!(weigh("v10/20 v10/5"), "10 ");
        assert_eq!(weigh("v15/20 v10/5"), "15 ", "stale, as any other");
        assert_eq!(weigh("v15/20 v17/5"), "15 1", "newer, and not to be believed");
        assert_eq!(weigh("v15/20 v10/5 v30/5"), "30 ", "above the floor everything counts");
        assert_eq!(weigh("/20 d10/5 v12/20"), "12 ", "another one with that floor holds it");
    }

    #[test]
    fn answers_are_weighed_once_their_floors_differ() {
        let mut floors = Floors::default();
        assert_eq!(floors.judge(true, Hlc(5)), FloorVerdict::Same);
        assert_eq!(floors.judge(true, Hlc(5)), FloorVerdict::Same);
        assert_eq!(floors.of_newest(), Hlc(5));
        assert_eq!(floors.judge(false, Hlc(7)), FloorVerdict::Stray);
        assert_eq!(floors.judge(true, Hlc(7)), FloorVerdict::Apart);
        floors.begin_weighing();
        assert_eq!(floors.judge(true, Hlc(7)), FloorVerdict::Weighed);
        floors.add(ReplicaIndex(0), record("v10"), Hlc(7));
        floors.add(ReplicaIndex(1), record("v10"), Hlc(5));
        assert_eq!(floors.of_newest(), Hlc(7));
        floors.adopt();
        assert_eq!(floors.of_newest(), Hlc::ZERO, "nobody has told");
        floors.restart();
        assert_eq!(floors.judge(true, Hlc(5)), FloorVerdict::Weighed, "still");
    }
}
