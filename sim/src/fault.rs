//! What goes wrong in a run, each with its parameters: drawn from the seed, or written down by a
//! scenario. `docs/simulation.md` has the catalogue.

mod apply;
mod draw;

use std::fmt;

use node::commit::CommitStage;

pub use apply::{ActiveFaults, heal_all};
pub use draw::draw_faults;

use crate::world::{Cut, CutKind, EndKind};

/// One thing that goes wrong. Nodes are given by their place, datacenters too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Links between two groups of hosts are cut.
    Cut(Cut),
    /// The nodes' links jam one by one, and are freed in another order.
    Swizzle {
        /// The nodes, in the order in which they jam.
        nodes: Vec<usize>,
        /// The order in which they are freed: places in `nodes`.
        freed: Vec<usize>,
    },
    /// Messages between two groups of hosts take long.
    Slow {
        /// From these hosts.
        from: Vec<String>,
        /// To those.
        to: Vec<String>,
        /// So long.
        latency_ms: u64,
    },
    /// Connections of a node break at random: what was sent arrived, its answer is lost.
    Resets {
        /// The node.
        node: usize,
        /// Reads in a thousand that find their connection broken.
        per_mille: u32,
    },
    /// A process ends and starts again when the fault does.
    End {
        /// The node.
        node: usize,
        /// How.
        kind: EndKind,
    },
    /// A process is asked to stop, as for an upgrade, and starts again when the fault ends.
    Stop {
        /// The node.
        node: usize,
    },
    /// A process ends at an exact point of a group of commits.
    EndAt {
        /// The node.
        node: usize,
        /// Where.
        stage: CommitStage,
        /// After so many groups.
        groups: u32,
        /// How.
        kind: EndKind,
    },
    /// All nodes of a datacenter end and its links are cut; all return together.
    DatacenterEnd {
        /// The datacenter.
        datacenter: u8,
        /// How.
        kind: EndKind,
    },
    /// A disk takes long for each group of commits.
    SlowDisk {
        /// The node.
        node: usize,
        /// So long at most.
        disk_ms: u64,
    },
    /// A disk has no room.
    FullDisk {
        /// The node.
        node: usize,
        /// Appends in a thousand that find none.
        per_mille: u32,
    },
    /// A disk fails accesses. After a failed write or sync a node ends, and is started again.
    DiskErrors {
        /// The node.
        node: usize,
        /// Reads in a thousand that fail.
        reads: u32,
        /// Appends in a thousand that fail.
        writes: u32,
        /// Syncs in a thousand that fail.
        syncs: u32,
    },
    /// Bits of stored rows flip.
    Rot {
        /// The node.
        node: usize,
        /// How many rows.
        rows: u32,
    },
    /// Writes were acknowledged and synced, and are not there.
    LostWrites {
        /// The node.
        node: usize,
        /// How many rows.
        rows: u32,
        /// They were made over other rows.
        misplaced: bool,
    },
    /// A process ends with its disk, and starts again in its own place on an empty one when the fault does.
    Wipe {
        /// The node.
        node: usize,
    },
    /// A disk is put back, when the fault ends, to what was on it when it began, and its process started
    /// again: if the others have seen that it was ahead of that.
    RollBack {
        /// The node.
        node: usize,
    },
    /// A clock jumps, and jumps back when the fault ends.
    ClockJump {
        /// The node.
        node: usize,
        /// So far; negative for back.
        jump_ms: i64,
    },
    /// A clock drifts away from where it is, and is slewed back when the fault ends.
    ClockDrift {
        /// The node.
        node: usize,
        /// Millionths.
        ppm: i64,
    },
    /// A process hangs: nothing leaves or reaches it, and no commit goes on until the fault ends. Its
    /// timers ring, so that it looks at its clock and calls its peers down meanwhile.
    Pause {
        /// The node.
        node: usize,
    },
    /// Somebody has read some of a node's rows and sleeps, with write-backs, hints and writes of them in
    /// hand. They come when the fault ends.
    Late {
        /// The node.
        node: usize,
        /// How many rows.
        rows: usize,
    },
    /// Clients call ten times as fast, on few keys, with large values.
    Overload,
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedFault {
    /// When it begins, in milliseconds since faults are allowed.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// What it is.
    pub fault: Fault,
}

impl Fault {
    /// A short name, for counting.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cut(Cut { kind: CutKind::Jam, .. }) => "jam",
            Self::Cut(Cut { kind: CutKind::Stop, .. }) => "partition",
            Self::Cut(Cut { kind: CutKind::OneWay, .. }) => "one-way partition",
            Self::Swizzle { .. } => "swizzle",
            Self::Slow { .. } => "slow links",
            Self::Resets { .. } => "broken connections",
            Self::End { kind: EndKind::Crash, .. } => "crash",
            Self::End { kind: EndKind::PowerLoss, .. } => "power loss",
            Self::Stop { .. } => "stop",
            Self::EndAt { .. } => "crash at a point",
            Self::DatacenterEnd { .. } => "datacenter lost",
            Self::SlowDisk { .. } => "slow disk",
            Self::FullDisk { .. } => "full disk",
            Self::DiskErrors { .. } => "disk errors",
            Self::Rot { .. } => "rot",
            Self::LostWrites { misplaced: false, .. } => "lost writes",
            Self::LostWrites { misplaced: true, .. } => "misplaced writes",
            Self::Wipe { .. } => "wipe",
            Self::RollBack { .. } => "rollback",
            Self::ClockJump { .. } => "clock jump",
            Self::ClockDrift { .. } => "clock drift",
            Self::Pause { .. } => "pause",
            Self::Late { .. } => "late messages",
            Self::Overload => "overload",
        }
    }

    /// Every name that [`Self::name`] gives.
    pub const NAMES: &[&str] = &[
        "jam",
        "partition",
        "one-way partition",
        "swizzle",
        "slow links",
        "broken connections",
        "crash",
        "power loss",
        "stop",
        "crash at a point",
        "datacenter lost",
        "slow disk",
        "full disk",
        "disk errors",
        "rot",
        "lost writes",
        "misplaced writes",
        "wipe",
        "rollback",
        "clock jump",
        "clock drift",
        "pause",
        "late messages",
        "overload",
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self:?}", self.name())
    }
}
