//! node

pub mod commit;
pub mod replica;
pub mod storage;
