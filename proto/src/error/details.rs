//! The google.rpc details of a status, as bytes that depend on nothing but what they say.
//!
//! tonic-types keeps the entries of an `ErrorInfo` in a map whose order differs from one process to
//! the next. It reads what is written here.

use std::collections::BTreeMap;

use prost::{Message, bytes::Bytes};
use tonic_types::{BadRequest, ErrorInfo, RetryInfo, pb};

use super::CallError;

/// The domain of all reasons in `ErrorInfo`.
pub(super) const DOMAIN: &str = "quorate";

/// `google.rpc.Status`.
#[derive(Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Message)]
struct OrderedErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

impl Detail {
    fn new(type_url: &str, message: &impl Message) -> Self {
        Self { type_url: type_url.to_owned(), value: message.encode_to_vec() }
    }
}

/// All that an error says beside its code and message, for a status's `grpc-status-details-bin`.
pub(super) fn encode(error: &CallError) -> Bytes {
    let info = OrderedErrorInfo {
        reason: error.reason.as_str().to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: error.wire_metadata(),
    };
    let mut details = vec![Detail::new(ErrorInfo::TYPE_URL, &info)];
    if let Some(field) = &error.field {
        let request = BadRequest::with_violation(field.as_str(), error.message.as_str());
        details.push(Detail::new(BadRequest::TYPE_URL, &pb::BadRequest::from(request)));
    }
    if let Some(delay) = error.retry_after {
        let retry = pb::RetryInfo::from(RetryInfo::new(Some(delay)));
        details.push(Detail::new(RetryInfo::TYPE_URL, &retry));
    }
    let status = RpcStatus { code: error.code.into(), message: error.message.clone(), details };
    status.encode_to_vec().into()
}
