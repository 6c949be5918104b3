//! Plays scripts against a machine and compares its effects with those written down.
//!
//! A line with `>` is an event, the lines below it are the machine's effects, `#` starts a comment.
//! Replicas are A, B, C and so on through the datacenters; stamps and clocks are milliseconds. With
//! `STORIES=write` in the environment the scripts are rewritten instead of compared.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path, sync::Arc};

use coordinator::{
    Read, ReadEffect, ReadError, ReadEvent, ReadRequest, Write, WriteEffect, WriteError,
    WriteEvent, WriteRequest,
};
use model::{
    DcIndex, Hlc, Key, KeyspaceId, NodeIndex, Record, RecordKind, Refusal, ReplicaIndex,
    ReplicaMask, ReplicaSet, RequestId, Requirement, StorageKey, Version, WriteAnswer,
};

#[test]
fn stories() {
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
    let folder = Path::new(&package).join("tests/it/stories");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let expected = fs::read_to_string(&path).unwrap();
        let actual = play(&expected);
        if env::var("STORIES").is_ok_and(|it| it == "write") {
            fs::write(&path, actual).unwrap();
        } else {
            assert_eq!(actual, expected, "{}", path.display());
        }
    }
}

/// The script with the effects that its events really have.
fn play(script: &str) -> String {
    let mut machine = Machine::None;
    let mut told = String::new();
    for line in script.lines() {
        if let Some(event) = line.strip_prefix("> ") {
            writeln!(told, "{line}").unwrap();
            machine.play(&Line::parse(event), &mut told);
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(told, "{line}").unwrap();
        }
    }
    told
}

enum Machine {
    None,
    Write(Write, Hlc),
    Read(Read, Hlc),
}

impl Machine {
    fn play(&mut self, line: &Line, told: &mut String) {
        let was_finished = self.is_finished();
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        match (line.word(0), &mut *self) {
            ("write", it) => *it = start_write(line, &mut writes),
            ("read", it) => *it = start_read(line, &mut reads),
            (_, Machine::Write(it, stamp)) => it.handle(write_event(line, *stamp), &mut writes),
            (_, Machine::Read(it, read_at)) => it.handle(read_event(line, *read_at), &mut reads),
            (verb, Machine::None) => panic!("{verb} without a request"),
        }
        for effect in writes {
            if let (
                WriteEffect::Send { record, .. } | WriteEffect::Hint { record, .. },
                Self::Write(_, stamp),
            ) = (&effect, &mut *self)
            {
                *stamp = record.version().hlc;
            }
            writeln!(told, "{}", tell_write(&effect)).unwrap();
        }
        for effect in reads {
            if let (ReadEffect::Query { read_at, .. }, Self::Read(_, current)) =
                (&effect, &mut *self)
            {
                *current = *read_at;
            }
            writeln!(told, "{}", tell_read(&effect)).unwrap();
        }
        if self.is_finished() && !was_finished {
            told.push_str("finished\n");
        }
    }

    fn is_finished(&self) -> bool {
        match self {
            Self::None => false,
            Self::Write(it, _) => it.is_finished(),
            Self::Read(it, _) => it.is_finished(),
        }
    }
}

/// An event: words, and `name=value` settings.
struct Line<'a> {
    words: Vec<&'a str>,
    settings: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let (settings, words) =
            line.split_whitespace().partition::<Vec<_>, _>(|it| it.contains('='));
        Self { words, settings: settings.iter().map(|it| it.split_once('=').unwrap()).collect() }
    }

    fn word(&self, at: usize) -> &'a str {
        self.words.get(at).copied().unwrap_or_default()
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.settings.get(name).map(|it| it.parse().unwrap())
    }

    fn replicas(&self, name: &str) -> Vec<ReplicaIndex> {
        letters(self.settings.get(name).copied().unwrap_or_default())
    }

    fn replica_set(&self) -> Arc<ReplicaSet> {
        let mut nodes = (0..).map(NodeIndex);
        let sizes = self.settings["replicas"].split('+').map(|it| it.parse::<usize>().unwrap());
        let dcs = (0..).map(DcIndex).zip(sizes);
        Arc::new(ReplicaSet::new(dcs.map(|(dc, n)| (dc, nodes.by_ref().take(n).collect()))))
    }

    /// The clock of the stamp that the second word names, or `default`.
    fn stamp(&self, default: Hlc) -> Hlc {
        self.number("stamp").map_or(default, Hlc::from_ms)
    }

    /// A record as `10`, with settings and words for what else it says; or `absent`.
    fn record(&self, at: usize) -> Option<Record> {
        let version = version(self.word(at).parse().ok()?);
        let expiry_ms = self.number("expires").unwrap_or(0);
        let value = format!("v{}", version.hlc.ms());
        let value = (!self.has("tombstone")).then_some(value.as_bytes());
        Some(Record::encode(&storage_key(), version, expiry_ms, value))
    }

    fn answer(&self, verb: &str) -> WriteAnswer {
        let after = 1 + self.words.iter().position(|it| *it == verb).unwrap();
        match verb {
            "applied" => WriteAnswer::Applied,
            "held" => WriteAnswer::Held,
            "superseded" => WriteAnswer::Superseded {
                newest: version(
                    self.word(after + usize::from(self.word(0) == verb)).parse().unwrap(),
                ),
                never: self.has("never"),
            },
            "refused" => WriteAnswer::Refused(refusal(self.words.last().unwrap())),
            other => panic!("unknown answer {other}"),
        }
    }
}

fn start_write(line: &Line, effects: &mut Vec<WriteEffect>) -> Machine {
    let replicas = line.replica_set();
    let stamp = Hlc::from_ms(line.number("stamp").unwrap());
    let level = line.word(1).parse().unwrap();
    let request = WriteRequest {
        key: storage_key(),
        value: (!line.has("delete")).then(|| b"value"[..].into()),
        request: RequestId(1),
        ttl_ms: line.number("ttl"),
        requirement: Requirement::for_write(level, &replicas, DcIndex(0), true).unwrap(),
        query_first: line.has("query"),
    };
    let alive = replicas.all().without(mask(&line.replicas("dead")));
    match Write::start(request, replicas, alive, DcIndex(0), stamp, effects) {
        Ok(it) => Machine::Write(it, stamp),
        Err(error) => {
            effects.push(WriteEffect::Reply(Err(error)));
            Machine::None
        }
    }
}

fn write_event(line: &Line, stamp: Hlc) -> WriteEvent {
    let from = || letters(line.word(1))[0];
    match line.word(0) {
        "queried" => {
            WriteEvent::Queried { from: from(), newest: version(line.word(2).parse().unwrap()) }
        }
        "unreachable" => WriteEvent::Unreachable { replicas: mask(&letters(line.word(1))) },
        "not-passed-on" => WriteEvent::NotPassedOn { from: from() },
        "hint-stored" => WriteEvent::HintStored { replica: from(), hlc: line.stamp(stamp) },
        "hint-lost" => WriteEvent::HintNotKept { replica: from(), hlc: line.stamp(stamp) },
        "stamped" => WriteEvent::Stamped(Hlc::from_ms(line.word(1).parse().unwrap())),
        "directory-replaced" => WriteEvent::DirectoryReplaced,
        "ask-again" => WriteEvent::AskAgain { replicas: mask(&letters(line.word(1))) },
        "deadline" => WriteEvent::Deadline,
        verb => {
            WriteEvent::Answer { from: from(), hlc: line.stamp(stamp), answer: line.answer(verb) }
        }
    }
}

fn start_read(line: &Line, effects: &mut Vec<ReadEffect>) -> Machine {
    let replicas = line.replica_set();
    let read_at = Hlc::from_ms(line.number("at").unwrap_or(100));
    let level = line.word(1).parse().unwrap();
    let requirement = Requirement::for_read(level, &replicas, DcIndex(0)).unwrap();
    let alive = replicas.all().without(mask(&line.replicas("dead")));
    let request = ReadRequest { requirement, read_at };
    match Read::start(request, replicas, alive, &line.replicas("prefer"), effects) {
        Ok(it) => Machine::Read(it, read_at),
        Err(error) => {
            effects.push(ReadEffect::Reply(Err(error)));
            Machine::None
        }
    }
}

fn read_event(line: &Line, read_at: Hlc) -> ReadEvent {
    let from = || letters(line.word(1))[0];
    match line.word(0) {
        "answer" => ReadEvent::Answer {
            from: from(),
            read_at: line.number("at").map_or(read_at, Hlc::from_ms),
            record: line.record(2),
            clock: line.number("clock").map_or(read_at, Hlc::from_ms),
            floor: line.number("floor").map_or(Hlc::ZERO, Hlc::from_ms),
        },
        "wrote-back" => {
            let verb = line.word(3);
            let version = version(line.word(2).parse().unwrap());
            let newest = line.record(4);
            ReadEvent::WroteBack { from: from(), version, answer: line.answer(verb), newest }
        }
        "refused" => ReadEvent::Refused { from: from(), refusal: refusal(line.word(2)) },
        "unreachable" => ReadEvent::Unreachable { replicas: mask(&letters(line.word(1))) },
        "slow" => ReadEvent::Slow,
        "directory-replaced" => ReadEvent::DirectoryReplaced,
        "ask-again" => ReadEvent::AskAgain { replicas: mask(&letters(line.word(1))) },
        "deadline" => ReadEvent::Deadline,
        other => panic!("unknown event {other}"),
    }
}

fn storage_key() -> StorageKey {
    let key = Key::new(&b"key"[..]);
    StorageKey::encode(KeyspaceId(1), key.token(), &key)
}

/// Other requests' versions; only the clock is told.
fn version(ms: u64) -> Version {
    Version { hlc: Hlc::from_ms(ms), request: RequestId(2) }
}

fn letters(text: &str) -> Vec<ReplicaIndex> {
    text.bytes().map(|it| ReplicaIndex(it.checked_sub(b'A').unwrap())).collect()
}

fn mask(replicas: &[ReplicaIndex]) -> ReplicaMask {
    replicas.iter().fold(ReplicaMask::EMPTY, |mask, it| mask.or(ReplicaMask::only(*it)))
}

fn refusal(name: &str) -> Refusal {
    match name {
        "BelowFence" => Refusal::BelowFence,
        "StaleLayout" => Refusal::StaleLayout,
        "NotReady" => Refusal::NotReady,
        "ClockAhead" => Refusal::ClockAhead,
        "Corrupt" => Refusal::Corrupt,
        "Failed" => Refusal::Failed,
        "DiskFull" => Refusal::DiskFull,
        "Overloaded" => Refusal::Overloaded,
        other => panic!("unknown refusal {other}"),
    }
}

fn tell_mask(mask: ReplicaMask) -> String {
    let letters: String = mask.iter().map(|it| char::from(b'A' + it.0)).collect();
    if letters.is_empty() { "none".to_owned() } else { letters }
}

fn tell_one(replica: ReplicaIndex) -> String {
    tell_mask(ReplicaMask::only(replica))
}

fn tell_hlc(it: Hlc) -> String {
    if it.0 & 0xffff == 0 { it.ms().to_string() } else { it.to_string() }
}

fn tell_version(version: Version) -> String {
    if version.is_absent() { "absent".to_owned() } else { tell_hlc(version.hlc) }
}

fn tell_record(record: &Record) -> String {
    let tombstone = if record.kind() == RecordKind::Tombstone { " tombstone" } else { "" };
    let expiry = match record.expiry_ms() {
        0 => String::new(),
        ms => format!(" expires {ms}"),
    };
    format!("{}{tombstone}{expiry}", tell_version(record.version()))
}

fn tell_versions(versions: &[Version]) -> String {
    let told: Vec<_> = versions.iter().map(|it| tell_version(*it)).collect();
    if told.is_empty() { "nothing".to_owned() } else { told.join(" then ") }
}

fn tell_refusals(refusals: &[(ReplicaIndex, Refusal)]) -> String {
    let told: Vec<_> = refusals.iter().map(|it| format!("{} {:?}", tell_one(it.0), it.1)).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

fn tell_datacenter(datacenter: Option<DcIndex>) -> String {
    datacenter.map_or(String::new(), |it| format!(" in datacenter {}", it.0))
}

fn tell_write(effect: &WriteEffect) -> String {
    match effect {
        WriteEffect::Send { to, pass_on, record } if pass_on.is_empty() => {
            format!("send {}: {}", tell_one(*to), tell_record(record))
        }
        WriteEffect::Send { to, pass_on, record } => {
            format!(
                "send {}, pass on to {}: {}",
                tell_one(*to),
                tell_mask(*pass_on),
                tell_record(record)
            )
        }
        WriteEffect::Query { to } => format!("query {}", tell_mask(*to)),
        WriteEffect::NeedStamp { above } => format!("need a stamp above {}", tell_hlc(*above)),
        WriteEffect::Hint { to, record, replaces } => {
            let replaces =
                replaces.map_or(String::new(), |it| format!(", replaces {}", tell_version(it)));
            format!("hint for {}: {}{replaces}", tell_one(*to), tell_record(record))
        }
        WriteEffect::Reply(Ok(it)) => format!(
            "reply {}: required {}, answered {}, applied {}{}",
            tell_version(it.version),
            it.required,
            tell_mask(it.answered),
            tell_mask(it.applied),
            if it.superseded_concurrent { ", superseded" } else { "" },
        ),
        WriteEffect::Reply(Err(error)) => {
            let outcome = if error.outcome_unknown() { "outcome unknown" } else { "not applied" };
            format!("{} -> {outcome}", tell_write_error(error))
        }
    }
}

fn tell_write_error(error: &WriteError) -> String {
    match error {
        WriteError::Unavailable { datacenter, required, alive } => {
            format!(
                "unavailable{}: required {required}, alive {alive}",
                tell_datacenter(*datacenter)
            )
        }
        WriteError::Timeout { required, acked, versions } => {
            format!(
                "timeout: required {required}, acked {acked}, stamped {}",
                tell_versions(versions)
            )
        }
        WriteError::Failed { required, acked, refusals, versions } => {
            let (versions, refusals) = (tell_versions(versions), tell_refusals(refusals));
            format!(
                "failed: required {required}, acked {acked}, stamped {versions}, refused {refusals}"
            )
        }
    }
}

fn tell_read(effect: &ReadEffect) -> String {
    match effect {
        ReadEffect::Query { to, read_at } => {
            format!("query {} at {}", tell_mask(*to), tell_hlc(*read_at))
        }
        ReadEffect::WriteBack { to, record, .. } => {
            format!("write back to {}: {}", tell_mask(*to), tell_record(record))
        }
        ReadEffect::Repair { to, record, .. } => {
            format!("repair {}: {}", tell_mask(*to), tell_record(record))
        }
        ReadEffect::Reply(Ok(it)) => format!(
            "reply {}: {}, required {}, answered {}, repaired {}",
            it.record.as_ref().map_or_else(|| tell_version(it.version), tell_record),
            it.value.as_ref().map_or("absent".into(), |it| String::from_utf8_lossy(it)),
            it.required,
            tell_mask(it.answered),
            tell_mask(it.repaired),
        ),
        ReadEffect::Reply(Err(error)) => tell_read_error(error),
    }
}

fn tell_read_error(error: &ReadError) -> String {
    match error {
        ReadError::Unavailable { datacenter, required, alive } => {
            format!(
                "unavailable{}: required {required}, alive {alive}",
                tell_datacenter(*datacenter)
            )
        }
        ReadError::Timeout { required, answered } => {
            format!("timeout: required {required}, answered {answered}")
        }
        ReadError::Failed { required, answered, refusals } => {
            let refusals = tell_refusals(refusals);
            format!("failed: required {required}, answered {answered}, refused {refusals}")
        }
        ReadError::Corrupt { required, answered, corrupt } => {
            format!(
                "corrupt: required {required}, answered {answered}, corrupt {}",
                tell_mask(*corrupt)
            )
        }
    }
}
