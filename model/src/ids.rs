//! Identifiers. All are opaque numbers: who mints them draws the randomness.

use std::fmt;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl $name {
            /// The sixteen bytes, big-endian.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// Reads sixteen big-endian bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
            }

            /// True for the all-zero id, which no one mints: it stands for "not known yet".
            pub fn is_nil(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&Uuid::from_u128(self.0).hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_id! {
    /// A node: a process with a data directory, for as long as that directory lives.
    NodeId
}
uuid_id! {
    /// One database directory. Re-minted when a directory is restored or found rolled back, so that
    /// a vote of the disk that is gone cannot be counted for the one that replaced it. The later
    /// directory of a node has the higher id: `generation (64) | random (64)`.
    StorageId
}

impl StorageId {
    /// The id of a directory. Generation 0 is a node's first one; one that replaces another has a higher
    /// generation than that.
    pub fn mint(generation: u64, random: u64) -> Self {
        Self(u128::from(generation) << 64 | u128::from(random | 1))
    }

    /// How often the node's directory was replaced, by a number that only rises.
    pub fn generation(self) -> u64 {
        u64::try_from(self.0 >> 64).expect("64 bits remain")
    }
}

uuid_id! {
    /// A cluster, minted with its first layout. Nodes of different clusters refuse each other.
    ClusterId
}

/// A keyspace, for one life of its name: dropping and creating a name again mints a new id, so that
/// what is still in flight for the old one cannot reach the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyspaceId(pub u32);

/// A node's place in the node list of one layout: the short form used inside that layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeIndex(pub u16);

impl NodeIndex {
    /// As an index into slices.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One operation of one coordinator process: answers carry it back. Never reused by a process, so a
/// late answer cannot be taken for the answer of another operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OperationId(pub u64);
