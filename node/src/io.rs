//! The server's only I/O: connections, timers and the calls that clients and peers make.

mod accept;
mod admin;
mod admin_exchange;
mod admin_hints;
mod admin_scrub;
mod admin_snapshot;
mod admin_view;
mod answers;
mod any_room;
mod batch;
mod call;
mod change;
mod clocks;
mod control;
mod coordinate;
mod dispatch;
mod effects;
mod exchange;
mod gossip;
mod guard;
mod handoff;
mod http2;
mod io_loop;
mod kv;
mod link;
mod links;
mod metrics_http;
mod outlet;
mod own_reads;
mod real;
mod recall;
mod recount;
mod request;
mod running;
mod scan;
mod scan_range;
mod scan_stream;
mod scrub;
mod serve;
mod start;
mod witness;
mod world;

pub use crate::shared::StopReason;
pub use change::Changes;
pub use clocks::ClockGate;
pub(crate) use exchange::{FillBoard, FillStatus};
pub use gossip::{Directory, Gossip, GossipEvent};
pub(crate) use handoff::HandoffBoard;
pub use io_loop::IoLoop;
pub use real::{SystemClock, TcpNetwork};
pub use running::RunningNode;
pub use start::{Node, StartError, start};
pub use witness::WitnessBoard;
pub use world::{
    Blocking, Boxed, BoxedStream, DiskPace, Listener, Network, Stream, WallClock, World,
};
