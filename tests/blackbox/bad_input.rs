//! What clients and peers must never send, sent over real connections: each gets its answer, others
//! do not notice, and nothing is left behind.

mod connections;
mod data_loss;
mod floods;
mod peers;
mod raw;
mod requests;
mod transport;
mod watch;
