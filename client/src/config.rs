//! What a client is told when it is made. Nothing here is read from the environment.

use std::{fmt, sync::Arc, time::Duration};

use proto::{CallError, Reason};

use crate::{
    connect::{Connector, TcpConnector},
    error::Error,
};

/// Settings of a [`Client`](crate::Client). All but the addresses have defaults that suit most.
///
/// ```
/// use std::time::Duration;
///
/// let config = client::ClientConfig {
///     addresses: vec!["10.0.0.1:7400".into(), "10.0.0.2:7400".into()],
///     datacenter: Some("amsterdam".into()),
///     request_timeout: Duration::from_secs(2),
///     ..client::ClientConfig::default()
/// };
/// # assert_eq!(config.connections_per_node, 1);
/// ```
#[derive(Clone)]
pub struct ClientConfig {
    /// Nodes to learn the cluster from, as `host:port`, tried in order. One that answers is enough;
    /// the others matter when it is down. Default: `127.0.0.1:7400`.
    pub addresses: Vec<String>,
    /// The datacenter whose nodes serve this client, and the one that LOCAL levels mean. Default: that
    /// of the node that answers first. Calls at LOCAL levels never leave it.
    pub datacenter: Option<String>,
    /// The longest that opening one connection may take. Below `request_timeout`, so that a call can
    /// still go elsewhere. Default: 1 s.
    pub connect_timeout: Duration,
    /// The longest that a call may take, with all its attempts, unless it says otherwise. For a scan:
    /// the longest wait for its next page. Default: 5 s.
    pub request_timeout: Duration,
    /// HTTP/2 connections to each node, at least 1. One carries any number of calls at a time; more
    /// help only a client that keeps more than one core busy. Default: 1.
    pub connections_per_node: usize,
    /// How often one call is tried, on whatever nodes: 1 for no retries, at most 16. Only what cannot
    /// have happened is tried again. Default: 4.
    pub attempts_max: u32,
    /// The pause before a call is tried on a node that was tried already, or after a refusal that
    /// concerns the whole cluster. Doubles with each attempt, and is shortened by up to a half at
    /// random. Default: 20 ms.
    pub retry_delay: Duration,
    /// The longest such pause, unless a node asks for a longer one. Default: 1 s.
    pub retry_delay_max: Duration,
    /// How often the topology is asked for when nothing suggests that it changed. Default: 30 s.
    pub topology_refresh_interval: Duration,
    /// How often a connection is probed. Default: 10 s.
    pub keep_alive_interval: Duration,
    /// How long a probe may stay unanswered before its connection counts as broken. Default: 5 s.
    pub keep_alive_timeout: Duration,
    /// Bytes of the largest answer that is read. Default: 64 MiB.
    pub message_bytes_max: usize,
    /// Keys of the largest batch sent in one call; a larger one is sent in several. Not above the
    /// nodes' own limit. Default: 4096.
    pub batch_keys_max: usize,
    /// Bytes of keys and values of the largest batch sent in one call, and some 48 more for each write: a node
    /// reads little more than its limit. Not above that. Default: 4 MiB.
    pub batch_bytes_max: usize,
    /// Decides all random choices; `None` draws one from the operating system. Default: `None`.
    pub seed: Option<u64>,
    /// Opens the connections. Default: TCP.
    pub connector: Arc<dyn Connector>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let limits = model::Limits::default();
        Self {
            addresses: vec!["127.0.0.1:7400".to_owned()],
            datacenter: None,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            connections_per_node: 1,
            attempts_max: 4,
            retry_delay: Duration::from_millis(20),
            retry_delay_max: Duration::from_secs(1),
            topology_refresh_interval: Duration::from_secs(30),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
            message_bytes_max: 64 << 20,
            batch_keys_max: limits.batch_keys_max,
            batch_bytes_max: limits.batch_bytes_max,
            seed: None,
            connector: Arc::new(TcpConnector),
        }
    }
}

impl ClientConfig {
    /// The defaults, with these addresses as `host:port`.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self { addresses, ..Self::default() }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |field: &str, message: String| {
            let cause = CallError::new(Reason::InvalidField, message).at_field(field);
            Err(Error::refused("connect", cause))
        };
        if self.addresses.is_empty() {
            return refuse("addresses", "there is no address to connect to".to_owned());
        }
        for (field, timeout) in
            [("connect_timeout", self.connect_timeout), ("request_timeout", self.request_timeout)]
        {
            if timeout.is_zero() {
                return refuse(field, "0 leaves no time for a call".to_owned());
            }
        }
        if self.connections_per_node == 0 {
            return refuse("connections_per_node", "0 connections carry no call".to_owned());
        }
        if !(1..=ATTEMPTS_LIMIT).contains(&self.attempts_max) {
            let actual = self.attempts_max;
            return refuse("attempts_max", format!("{actual} is not in 1 to {ATTEMPTS_LIMIT}"));
        }
        if self.batch_keys_max == 0 {
            return refuse("batch_keys_max", "a batch has at least 1 key".to_owned());
        }
        if self.topology_refresh_interval.is_zero() {
            return refuse("topology_refresh_interval", "0 would ask without a pause".to_owned());
        }
        Ok(())
    }
}

impl ClientConfig {
    /// With no time longer than [`TIME_MAX`].
    pub(crate) fn bounded(mut self) -> Self {
        for time in [
            &mut self.connect_timeout,
            &mut self.request_timeout,
            &mut self.retry_delay,
            &mut self.retry_delay_max,
            &mut self.topology_refresh_interval,
            &mut self.keep_alive_interval,
            &mut self.keep_alive_timeout,
        ] {
            *time = TIME_MAX.min(*time);
        }
        self
    }
}

/// What stands for ever: clocks and headers have no room for much more.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The highest `attempts_max`.
pub(crate) const ATTEMPTS_LIMIT: u32 = 16;

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("addresses", &self.addresses)
            .field("datacenter", &self.datacenter)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("connections_per_node", &self.connections_per_node)
            .field("attempts_max", &self.attempts_max)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let check = |change: fn(&mut ClientConfig), field: &str| {
            let mut config = ClientConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!((error.reason(), error.field()), (Reason::InvalidField, Some(field)));
        };
        assert!(ClientConfig::default().validate().is_ok());
        check(|it| it.addresses.clear(), "addresses");
        check(|it| it.connect_timeout = Duration::ZERO, "connect_timeout");
        check(|it| it.request_timeout = Duration::ZERO, "request_timeout");
        check(|it| it.connections_per_node = 0, "connections_per_node");
        check(|it| it.attempts_max = 0, "attempts_max");
        check(|it| it.attempts_max = 17, "attempts_max");
        check(|it| it.batch_keys_max = 0, "batch_keys_max");
        check(|it| it.topology_refresh_interval = Duration::ZERO, "topology_refresh_interval");
    }

    #[test]
    fn for_ever_is_a_year() {
        let config = ClientConfig {
            request_timeout: Duration::MAX,
            topology_refresh_interval: Duration::MAX,
            ..ClientConfig::default()
        };
        let bounded = config.bounded();
        assert_eq!(bounded.request_timeout, TIME_MAX);
        assert_eq!(bounded.topology_refresh_interval, TIME_MAX);
        assert_eq!(bounded.retry_delay, ClientConfig::default().retry_delay);
    }
}
