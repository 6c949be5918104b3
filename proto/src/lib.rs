//! The wire: generated messages, their conversion from and to the model, errors as gRPC statuses.
//!
//! Of all crates only this one knows both `model` and the generated types.

mod codec;
mod convert;
mod error;
pub mod link;

pub use convert::{ConvertError, node_id, refusal, storage_id};
pub use error::{CallError, CallOutcome, Reason};

/// The public interface.
#[expect(missing_docs, reason = "generated; the documentation stands in the .proto files")]
#[expect(unused_qualifications, reason = "generated")]
#[expect(clippy::allow_attributes_without_reason, clippy::too_many_lines, reason = "generated")]
#[expect(
    clippy::large_enum_variant,
    reason = "generated; one message of each kind is alive at once"
)]
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// The interface between nodes.
#[expect(missing_docs, reason = "generated; the documentation stands in the .proto files")]
pub mod internal {
    tonic::include_proto!("quorate.internal.v1");
}

/// The encoded descriptors of the public interface, for server reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
