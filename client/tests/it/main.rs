//! The client against scripted nodes, over real connections on the loopback interface.

mod batches;
mod cluster;
mod fake;
mod reads;
mod scans;
mod snapshots;
mod writes;
