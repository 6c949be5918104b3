//! Metadata: changes, encoding, succession.
