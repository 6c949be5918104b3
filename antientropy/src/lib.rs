//! antientropy
