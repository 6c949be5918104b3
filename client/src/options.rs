//! The options that every call of a keyspace has, as methods of its builder.

/// Adds the methods to a builder that has a field `options: CallOptions`.
macro_rules! call_options {
    ($builder:ty) => {
        impl $builder {
            /// How many replicas must take part. Default: the keyspace's own level.
            pub fn consistency(mut self, level: ::model::ConsistencyLevel) -> Self {
                self.options.consistency = Some(level);
                self
            }

            /// The longest that the call may take, with all its attempts. For a scan: the longest
            /// wait for its next page. Default: `ClientConfig::request_timeout`.
            pub fn timeout(mut self, timeout: ::std::time::Duration) -> Self {
                self.options.timeout = Some(timeout);
                self
            }

            /// The W3C trace context that the call belongs to.
            pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
                self.options.traceparent = Some(traceparent.into().into_boxed_str());
                self
            }
        }
    };
}

/// Makes a builder awaitable: awaiting it is its `send`, boxed.
macro_rules! into_future {
    ($builder:ident, $output:ty) => {
        impl<'a> IntoFuture for $builder<'a> {
            type Output = $output;
            type IntoFuture = ::futures_util::future::BoxFuture<'a, $output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}

pub(crate) use {call_options, into_future};
