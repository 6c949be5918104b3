//! What an exchange reads, answers and remembers; who begins one and when is in `node/src/io/exchange.rs`.
//! What is compared, and what moves, decides [`antientropy::exchange`].

mod answer;
mod block;
mod board;
mod claims;
mod held;
mod purge_block;
mod span;

pub(crate) use answer::{floor_message, is_known_format, partition_of, refused, source_floor};
pub(crate) use block::{BLOCK_BYTES, decode_block, encode_block};
pub(crate) use board::{DirtyPart, ExchangeBoard, OpenRound, RoundEnd, RoundReport, SharedTrees};
pub(crate) use claims::Begun;
pub(crate) use held::HELD_KEYS_MAX;
pub(crate) use purge_block::PurgeBlock;
pub(crate) use span::{Span, SpanRecords};
