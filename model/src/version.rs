//! Versions: a hybrid logical clock and the request that was stamped.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks" (2014). The tie-break is the request id, not
//! the node: a version then names its request wherever it travels.

use std::fmt;

/// Milliseconds since the Unix epoch, as a wall clock tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// A hybrid logical clock reading: 48 bits of milliseconds, then 16 of counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Below every reading: the clock of a key that was never written.
    pub const ZERO: Self = Self(0);

    /// The first reading of a millisecond. Times past the year 10889 saturate.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.min((1 << 48) - 1) << 16)
    }

    /// The milliseconds, without the counter.
    pub fn ms(self) -> u64 {
        self.0 >> 16
    }

    /// The next reading. Overflow of the counter borrows a millisecond.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.0 & 0xffff)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of one write request: random, or the client's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Orders the writes of a key totally: by clock, then by request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// When the write was stamped.
    pub hlc: Hlc,
    /// Which request it is.
    pub request: RequestId,
}

impl Version {
    /// The version of a key that was never written: below every real one.
    pub const ABSENT: Self = Self { hlc: Hlc::ZERO, request: RequestId(0) };

    /// True for the version of a key that was never written.
    pub fn is_absent(self) -> bool {
        self == Self::ABSENT
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.hlc, self.request)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
