//! The Rust client of Quorate.
//!
//! A [`Client`] connects to any node, learns the ring, and sends each call to a replica of its key,
//! in its own datacenter if it can. It carries the highest clock that it has seen into every call, so
//! that it reads its own writes in any datacenter. It tries again only what cannot have happened: a
//! write of unknown outcome is reported, never repeated.
//!
//! # Quick start
//!
//! ```no_run
//! use client::{Client, ConsistencyLevel, ScanRange};
//!
//! # async fn example() -> Result<(), client::Error> {
//! let client = Client::connect_to("127.0.0.1:7400").await?;
//! let users = client.keyspace("users");
//!
//! // At the keyspace's default level.
//! users.put("user:42", "Ada").await?;
//! let read = users.get("user:42").await?;
//! assert_eq!(read.value.as_deref(), Some(&b"Ada"[..]));
//!
//! // At a level of the call's own; rows of one partition key are ordered by their sort key.
//! let written = users
//!     .put(("user:42", "2026-11-20"), "signed in")
//!     .consistency(ConsistencyLevel::Quorum)
//!     .ttl(std::time::Duration::from_secs(86_400))
//!     .await?;
//! println!("{} of {} replicas had answered", written.answered.len(), written.required);
//!
//! let mut scan = users.scan(ScanRange::partition("user:42").prefix("2026-").reverse());
//! while let Some(page) = scan.next_page().await? {
//!     for row in page.rows {
//!         println!("{:?} = {:?}", row.key.sort_key, row.value);
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # When a call fails
//!
//! ```no_run
//! # async fn example(users: client::Keyspace) {
//! use client::Reason;
//!
//! if let Err(error) = users.put("user:42", "Grace").await {
//!     if error.is_unknown_write() {
//!         // It may have been applied, or may take effect later: read the key to see.
//!     } else if error.reason() == Reason::NotEnoughReplicas {
//!         // Nothing was applied: `required` replicas were asked for, `alive` were up.
//!         println!("{:?} of {:?}", error.number("alive"), error.number("required"));
//!     }
//!     println!("{error}"); // What happened, whether it was applied, what to try.
//! }
//! # }
//! ```

mod admin;
mod batch;
mod call;
mod channel;
mod client;
mod cluster;
mod config;
mod connect;
mod error;
mod keyspace;
mod node;
mod options;
mod refresh;
mod retry;
mod routing;
mod scan;
mod topology;

pub use admin::Admin;
pub use batch::{BatchGet, BatchWrite, Found, Write, WriteItem};
pub use client::Client;
pub use config::ClientConfig;
pub use connect::{Connecting, Connection, Connector, TcpConnector};
pub use error::Error;
pub use keyspace::{Delete, Get, IntoKey, Keyspace, Put, Read, Written};
pub use scan::{Page, PartitionRange, Row, Scan, ScanRange};
pub use topology::{Topology, TopologyNode};

pub use model::{ConsistencyLevel, Key, NodeIndex, Token, Version};
/// The messages of the wire, which administration calls take and return.
pub use proto::v1 as wire;
pub use proto::{CallError, CallOutcome, Reason};
