//! Deliberate bugs, one at a time, which the simulator has to catch.
//!
//! A product's build has none of them: without the feature `mutants`, which only `sim` asks for,
//! [`Mutant::is_on`] is the constant `false` and the compiler removes what it guards. With the
//! feature a mutant is chosen for a thread, which is a whole simulated cluster.

macro_rules! mutants {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// One deliberate bug: a rule that is switched off, or a mistake that databases have made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mutant {
            /// Every mutant.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name on the command line.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// What is wrong with it.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

mutants! {
    /// P3 off: answers to the first stamp count for the second.
    CountOverStamps = "count-over-stamps",
    /// P4 off: any stamp that was superseded anywhere is replaced, dead or not.
    RestampOnSuperseded = "restamp-on-superseded",
    /// G1 off: a write-back answered Superseded counts as a confirmation.
    SupersededConfirms = "superseded-confirms",
    /// G1 off: the newest version of a quorum is returned without being confirmed.
    NoConfirmation = "no-confirmation",
    /// G1 off: a read confirms before it has a quorum of answers (CX3).
    WriteBackFirstAnswer = "write-back-first-answer",
    /// P2 off: the clock alone decides that a version was held here (CX1).
    HeldByClock = "held-by-clock",
    /// P2 off: a replica forgets what a record replaced (CX4), as if it had been the first here.
    PreviousLost = "previous-lost",
    /// P2 off: everything superseded is said never to have been the newest.
    NeverAlways = "never-always",
    /// P2 off: the version that was replaced last is said never to have been the newest.
    NeverAtPrevious = "never-at-previous",
    /// P2 off: a version that was replaced is answered Superseded, not Held: writes end undecided.
    HeldUnsaid = "held-unsaid",
    /// P4 off: the second stamp is not above the versions answered.
    RestampAnywhere = "restamp-anywhere",
    /// P4 off: the second stamp is judged as the first was, and may be replaced again (CE4).
    EndlessRestamp = "endless-restamp",
    /// P4 off: a dead stamp is not replaced: the write ends undecided.
    DeadNotReplaced = "dead-not-replaced",
    /// A quorum is half of the replicas, not more.
    HalfIsAQuorum = "half-is-a-quorum",
    /// LOCAL levels count replicas of every datacenter.
    LocalCountsRemote = "local-counts-remote",
    /// EACH_QUORUM asks a quorum of one datacenter.
    EachIsLocal = "each-is-local",
    /// A hint counts as an answer at every level.
    HintCountsAsAnswer = "hint-counts-as-answer",
    /// A read counts refusals as answers.
    RefusalCountsAsAnswer = "refusal-counts-as-answer",
    /// X4 off: a write that may have been sent is said not to have been applied.
    UnknownSaidNotApplied = "unknown-said-not-applied",
    /// H2 off: a hint is not replaced with its stamp: the dead one is handed over (CE23).
    DeadHintKept = "dead-hint-kept",
    /// H3 off: hints of ANY are given up as all others are (CE24).
    AnyHintsGivenUp = "any-hints-given-up",
    /// H3 off: a hint that is too old is dropped, and nothing is marked dirty.
    AgedHintsUnmarked = "aged-hints-unmarked",
    /// H6 off: a hint whose target has left is kept (CE26).
    OrphansKept = "orphans-kept",
    /// H3 off: a hint that a full commit queue or a full disk did not take leaves no dirty mark.
    RefusedHintsUnmarked = "refused-hints-unmarked",
    /// A barrier of hints is passed by the first clean pass, whenever it began.
    BarrierPassedEarly = "barrier-passed-early",
    /// Writes are acknowledged before they are synced.
    AcknowledgedBeforeSync = "acknowledged-before-sync",
    /// Hints are not synced.
    HintsNotSynced = "hints-not-synced",
    /// A hint is removed when it has been sent, not when it has been applied.
    HintForgottenWhenSent = "hint-forgotten-when-sent",
    /// M2 off: a tombstone changes no Merkle tree.
    TreeForgetsTombstones = "tree-forgets-tombstones",
    /// M2 off: leaves of Merkle trees are written one group after the records they stand for.
    TreeWrittenLate = "tree-written-late",
    /// A comparison leaves out the last tree, and of two trees the last leaf.
    CompareSkipsLastLeaf = "compare-skips-last-leaf",
    /// F1 off: fences stop nothing.
    FenceIgnored = "fence-ignored",
    /// F2 off: a round signs without an exchange.
    SignedBlindly = "signed-blindly",
    /// F4 off: a round leaves out replicas that are away.
    PurgedWithoutAll = "purged-without-all",
    /// F6 off: what has a time to live is purged before it has expired.
    PurgesUnexpired = "purges-unexpired",
    /// F1 off: a node whose clock is ahead opens rounds by it, and the others raise their fences to that
    /// (CE22).
    FenceAheadTaken = "fence-ahead-taken",
    /// F10 off: rounds of purging do not ask who keeps hints of ANY.
    AnyHintsUnasked = "any-hints-unasked",
    /// F8 off: a replica takes old records from whoever holds them, whatever was purged meanwhile (CE19).
    SourceFloorIgnored = "source-floor-ignored",
    /// F7 off: a replica whose disk was lost or put back answers reads before others have filled it (CE16).
    ServesUnfilled = "serves-unfilled",
    /// F7 off: one source is enough to fill a replica.
    FilledFromOne = "filled-from-one",
    /// F7 off: of two neighbours whose disks are gone, each is filled without the other (CX7).
    FillOrderIgnored = "fill-order-ignored",
    /// F7 off: what only a replica that was put back holds stays, although it was purged (CE18).
    FillKeepsExtras = "fill-keeps-extras",
    /// F7 off: a replica that is filled is compared with tombstones that its source's floor covers and its disk still
    /// holds (CE18).
    FillMeetsUnswept = "fill-meets-unswept",
    /// F12 off: votes of directories that were replaced meanwhile count (CX5).
    OldVotesCount = "old-votes-count",
    /// F12 half done: votes of a directory that was replaced are dropped, and not asked for again.
    NotAskedAgain = "not-asked-again",
    /// F13 off: a start takes its directory for what it was, whatever others have seen (CX6).
    RollbackUnseen = "rollback-unseen",
    /// F14 off: two processes of one node are let in (CX9).
    DoubleLetIn = "double-let-in",
    /// F14 half done: what a process of the same node has acknowledged is taken for known here (CX10).
    DoubleUnfilled = "double-unfilled",
    /// Records go to another datacenter as they are.
    FarUncompressed = "far-uncompressed",
    /// H1 off: replicas are not compared.
    ExchangeOff = "exchange-off",
    /// A failed sync is ignored.
    FailedSyncIgnored = "failed-sync-ignored",
    /// F9 off: a record that fails its checksum is served.
    ChecksumIgnored = "checksum-ignored",
    /// F9 off: what one other replica holds takes the place of a damaged record.
    HealsFromOne = "heals-from-one",
    /// M6 off: trees are not compared with the data.
    ScrubOff = "scrub-off",
    /// F9 off: a record that fails its checksum is taken for absent.
    CorruptIsAbsent = "corrupt-is-absent",
    /// A write does not reach the row cache.
    RowCacheStale = "row-cache-stale",
    /// A group judges each write against the disk, without the writes of the group before it.
    GroupJudgedBlindly = "group-judged-blindly",
    /// Readings of peers do not move the clock.
    PeerClockIgnored = "peer-clock-ignored",
    /// P1 off: the clock that a client has seen does not move the coordinator's (CE11).
    ClientClockIgnored = "client-clock-ignored",
    /// C5 off: a restarted clock begins at the wall clock.
    ClockForgetsCeiling = "clock-forgets-ceiling",
    /// C3 off: readings far ahead are merged.
    AheadClockMerged = "ahead-clock-merged",
    /// C3 off: what most hybrid clocks have reached is not adopted.
    MajorityClockIgnored = "majority-clock-ignored",
    /// C1 and C2 off: a node whose clock has jumped goes on stamping (CE30).
    OwnClockTrusted = "own-clock-trusted",
    /// C1 off: the others' clocks end no suspension; a clock that has jumped has to come back (CE32).
    JumpNeverConfirmed = "jump-never-confirmed",
    /// C5 off: a node whose ceiling lies far ahead waits for its wall clock, however far most nodes
    /// have come (CE32).
    CeilingAwaited = "ceiling-awaited",
    /// G3 off: expiry is judged by the clock of whoever answers (CE9).
    ExpiryByOwnClock = "expiry-by-own-clock",
    /// Ties between versions are broken the other way round in a read.
    ReadTiesReversed = "read-ties-reversed",
    /// S1 off: replicas send only live rows to a scan (CE33).
    ScanLiveRowsOnly = "scan-live-rows-only",
    /// S2 off: a scan takes rows beyond what every replica has covered.
    ScanBeyondCovered = "scan-beyond-covered",
    /// S4 off: differing rows of a scan are not confirmed.
    ScanUnconfirmed = "scan-unconfirmed",
    /// A deadline that passes while an operation waits is not noticed.
    DeadlineIgnored = "deadline-ignored",
    /// Hints and operations are taken beyond their bounds.
    BoundsIgnored = "bounds-ignored",
    /// A read that had to ask the disk leaves its task behind.
    TaskLeaked = "task-leaked",
    /// A node that was called down stays down.
    DownForEver = "down-for-ever",
    /// An acceptor of the agreement forgets its promises when it restarts.
    PromiseForgotten = "promise-forgotten",
    /// `require_overlap` tests R+W>N alone (CE5).
    OverlapWithoutWrites = "overlap-without-writes",
}

impl Mutant {
    /// Those that only the exhaustive check of the protocol can be asked to catch: they cost
    /// decisions rather than data, or need that a replica forgets just then, or a stamp that no
    /// node's clock would give, or two races on one key within a round trip.
    pub const EXHAUSTIVE: &[Self] = &[
        Self::CountOverStamps,
        Self::PreviousLost,
        Self::NeverAlways,
        Self::NeverAtPrevious,
        Self::HeldByClock,
        Self::HeldUnsaid,
        Self::RestampAnywhere,
        Self::EndlessRestamp,
        Self::DeadNotReplaced,
        Self::ReadTiesReversed,
    ];

    /// True if this is the bug that the present thread runs with.
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        chosen::CHOSEN.get() == Some(self)
    }

    /// False: this build has no mutants.
    #[cfg(not(feature = "mutants"))]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Runs the present thread with this bug, or with none.
    #[cfg(feature = "mutants")]
    pub fn choose(mutant: Option<Self>) {
        chosen::CHOSEN.set(mutant);
    }
}

#[cfg(feature = "mutants")]
mod chosen {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        /// Of a thread, because a thread runs one simulated cluster at a time, and a sweep many.
        pub(super) static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }
}
