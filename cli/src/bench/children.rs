//! Server processes of a benchmark: this binary again, on free ports of this machine.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

use super::echo::EchoReady;
use crate::failure::Failure;

/// How long a server may take until it listens.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A running server process. It is killed when this is dropped.
pub(super) struct Server {
    child: Child,
    // Kept open: a server that cannot write its output would fail.
    _stdout: BufReader<ChildStdout>,
    /// Its process id.
    pub(super) pid: u32,
    /// Where clients connect.
    pub(super) client_address: SocketAddr,
    /// Where nodes connect; `None` for the echo server.
    pub(super) peer_address: Option<SocketAddr>,
    /// From the start of the process until it listened.
    pub(super) started_in: Duration,
}

/// Where a node lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeAddress {
    /// For clients.
    pub(super) client: SocketAddr,
    /// For nodes.
    pub(super) peer: SocketAddr,
}

impl NodeAddress {
    /// Any free ports of this machine.
    pub(super) fn any() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { client: any, peer: any }
    }
}

/// Datacenter and rack of a node, by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) datacenter: usize,
    pub(super) rack: usize,
}

#[derive(Deserialize)]
struct NodeReady {
    client_address: SocketAddr,
    peer_address: SocketAddr,
}

impl Server {
    /// Starts the echo server.
    pub(super) async fn echo(value_bytes: usize) -> Result<Self, Failure> {
        let arguments = ["echo-server".to_owned(), format!("--value-size={value_bytes}")];
        let (it, ready) = Self::spawn::<EchoReady>(&arguments).await?;
        Ok(Self { client_address: ready.client_address, ..it })
    }

    /// Starts a node.
    pub(super) async fn node(
        data: &Path,
        place: Place,
        address: NodeAddress,
        join: Option<SocketAddr>,
        options: &[&str],
    ) -> Result<Self, Failure> {
        let mut arguments = vec![
            "start".to_owned(),
            format!("--data={}", data.display()),
            format!("--listen={}", address.client),
            format!("--peer-listen={}", address.peer),
            format!("--dc=dc{}", place.datacenter),
            format!("--rack=rack{}", place.rack),
            "--cluster=bench".to_owned(),
        ];
        arguments.extend(join.map(|it| format!("--join={it}")));
        arguments.extend(options.iter().map(|it| (*it).to_owned()));
        let (it, ready) = Self::spawn::<NodeReady>(&arguments).await?;
        let peer_address = Some(ready.peer_address);
        Ok(Self { client_address: ready.client_address, peer_address, ..it })
    }

    /// A node's addresses, to start it there again.
    pub(super) fn address(&self) -> NodeAddress {
        let peer = self.peer_address.expect("a node has one");
        NodeAddress { client: self.client_address, peer }
    }

    /// Ends it at once, without a word to it.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(|error| Failure::file("cannot end a server", &error))
    }

    async fn spawn<R: DeserializeOwned>(arguments: &[String]) -> Result<(Self, R), Failure> {
        let failure = |error| Failure::file("cannot start a server process", &error);
        let program = std::env::current_exe().map_err(failure)?;
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            // That nodes are killed, and come back with empty directories, is what is measured.
            .args(["--json", "--log=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failure)?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let said = timeout(START_PATIENCE, stdout.read_line(&mut line)).await;
        let started_in = begun.elapsed();
        let failed =
            |what: String| Failure::new("SERVER_FAILED", what).fact("command", arguments.join(" "));
        said.map_err(|late| failed(format!("a server process did not listen in time: {late}")))?
            .map_err(failure)?;
        let ready = serde_json::from_str(&line)
            .map_err(|error| failed(format!("a server process did not start: {error}")))?;
        let pid = child.id().ok_or_else(|| failed("a server process ended at once".to_owned()))?;
        let client_address = NodeAddress::any().client;
        let it =
            Self { child, _stdout: stdout, pid, client_address, peer_address: None, started_in };
        Ok((it, ready))
    }
}
