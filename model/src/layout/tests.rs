//! Layouts: validation, encoding, replica sets.
