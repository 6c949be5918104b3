//! From the global options to a connected client, and from the client's errors to failures.

use std::time::Duration;

use client::{Client, ClientConfig};
use proto::Reason;

use crate::{
    args::Global,
    failure::{Attempt, Effect, Exit, Failure},
};

/// A node that takes longer to accept a connection is taken for down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects as the global options say, with one connection for each node.
pub(crate) async fn connect(global: &Global) -> Result<Client, Failure> {
    connect_with(global, 1).await
}

/// Connects for a command that writes: if that fails, nothing of it was sent.
pub(crate) async fn connect_to_write(global: &Global) -> Result<Client, Failure> {
    connect(global).await.map_err(|failure| failure.effect(Effect::NotApplied))
}

/// Connects with so many connections for each node.
pub(crate) async fn connect_with(
    global: &Global,
    connections_per_node: usize,
) -> Result<Client, Failure> {
    let config = ClientConfig {
        addresses: global.nodes.clone(),
        connect_timeout: CONNECT_TIMEOUT,
        request_timeout: global.timeout,
        datacenter: global.prefer_dc.clone(),
        connections_per_node,
        ..ClientConfig::default()
    };
    Client::connect(config).await.map_err(|error| {
        let asked = global.nodes.join(", ");
        let failure = fail(&error, &Attempt::default()).of_connecting().fact("asked", asked);
        match error.reason() {
            // The address or the datacenter makes no sense: another node would not help.
            Reason::InvalidField => failure
                .exit(Exit::Usage)
                .advise("--node HOST:PORT, and --prefer-dc of a datacenter there is"),
            Reason::ConnectionLost | Reason::DeadlinePassed => failure
                .exit(Exit::Unavailable)
                .advise("quorate start, or --node ADDRESS of a node that is up"),
            reason => failure
                .exit(Exit::Unavailable)
                .advise(client::Error::advice_about(reason))
                .advise("--node ADDRESS of another node"),
        }
    })
}

/// A failure from the client's error.
pub(crate) fn fail(error: &client::Error, attempt: &Attempt) -> Failure {
    Failure::call(error.cause(), error.node(), attempt)
}

/// The datacenter that local levels mean; `None` if it is the only one, and they save nothing.
pub(crate) fn local_datacenter(client: &Client) -> Option<String> {
    let several = client.topology().datacenters().len() > 1;
    several.then(|| client.datacenter().to_owned())
}
