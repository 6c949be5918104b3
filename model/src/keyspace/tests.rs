//! Keyspaces: what is refused, with which numbers.
