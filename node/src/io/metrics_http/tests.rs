use std::{collections::BTreeSet, io, net::SocketAddr, sync::atomic::Ordering};

use model::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::{
    config::NodeConfig,
    io::{Blocking, Boxed, DiskPace, Listener, Network, Node, WallClock, World},
    storage::memory::MemoryStorage,
};

/// A world without time, network and disk: what is served needs none of them.
struct Nothing;

impl WallClock for Nothing {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000)
    }
}

impl DiskPace for Nothing {
    fn read(&self) -> Boxed<'static, ()> {
        Box::pin(async {})
    }
}

impl Network for Nothing {
    fn listen(&self, _: SocketAddr) -> Boxed<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect(&self, _: String) -> Boxed<'_, io::Result<BoxedStream>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

/// Accepts what tests put in.
struct Pipes(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for Pipes {
    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 7402)))
    }

    fn accept(&mut self) -> Boxed<'_, io::Result<(BoxedStream, SocketAddr)>> {
        Box::pin(async {
            let Some(stream) = self.0.recv().await else { return std::future::pending().await };
            Ok((Box::new(stream) as BoxedStream, SocketAddr::from(([127, 0, 0, 1], 1))))
        })
    }
}

/// A node that serves nothing but metrics.
struct Served {
    shared: Arc<Shared>,
    pipes: mpsc::UnboundedSender<DuplexStream>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    /// With these bounds for a request's head, and for all that follows.
    fn start(first_request_timeout_ms: u64, request_timeout_ms: u64) -> Self {
        let nothing = Arc::new(Nothing);
        let world = World {
            clock: Arc::clone(&nothing) as Arc<dyn WallClock>,
            network: Arc::clone(&nothing) as Arc<dyn Network>,
            storage: Arc::new(MemoryStorage::new()),
            snapshots: None,
            seed: 7,
            blocking: Blocking::Simulated(nothing),
        };
        let config =
            NodeConfig { first_request_timeout_ms, request_timeout_ms, ..NodeConfig::default() };
        let (node, _) = Node::open(config, world).unwrap();
        let (pipes, listener) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(node.run_metrics(Box::new(Pipes(listener)), stop.clone()));
        Self { shared: node.shared, pipes, stop, serving }
    }

    /// Of which no bound is met.
    fn patient() -> Self {
        Self::start(600_000, 60_000)
    }

    fn idle(&self) -> u64 {
        self.shared.counters.connections_idle.load(Ordering::Relaxed)
    }

    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = duplex(1 << 10);
        self.pipes.send(theirs).unwrap();
        ours
    }

    async fn ask(&self, request: &[u8]) -> String {
        let (mut read, mut write) = tokio::io::split(self.connect());
        let mut answer = String::new();
        // The node may answer, and close, before it has read everything.
        let talk =
            async { tokio::join!(write.write_all(request), read.read_to_string(&mut answer)).1 };
        soon(talk).await.unwrap();
        answer
    }

    async fn scrape(&self) -> String {
        let answer = self.ask(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("content-type: {CONTENT_TYPE}")), "{head}");
        assert!(!head.contains("date:"), "{head}");
        body.to_owned()
    }
}

/// Awaits what comes at once, or not before the node gives up on who says nothing.
async fn soon<T>(it: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), it).await.expect("in time")
}

/// Waits until the node closes a connection.
async fn closed(mut stream: DuplexStream) {
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn everything_counted_is_shown_once() {
    let served = Served::patient();
    served.shared.counters.writes_restamped.fetch_add(3, Ordering::Relaxed);
    let text = served.scrape().await;
    assert!(text.ends_with("\n# EOF\n"));
    let lines = |start: &str| -> Vec<String> {
        text.lines().filter_map(|it| it.strip_prefix(start)).map(str::to_owned).collect()
    };
    let names: Vec<_> =
        lines("# TYPE ").iter().map(|it| it.split(' ').next().unwrap().to_owned()).collect();
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
    for figure in served.shared.counters.figures() {
        let name = format!("quorate_{}", figure.name);
        assert!(text.contains(&format!("# HELP {name} {}\n", figure.help)), "{figure:?}");
        assert!(text.contains(&format!("\n{name}_total {}\n", figure.value)), "{figure:?}");
    }
    assert_eq!(lines("quorate_writes_restamped_total "), ["3"]);
    assert_eq!(lines("quorate_commit_group_items_max "), ["0"], "a gauge, whose name is whole");
    assert_eq!(lines("quorate_clock_state{state=\"alone\"} "), ["1"]);
    assert_eq!(lines("quorate_clock_state{").len(), 7);
    let version = format!("version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    assert_eq!(lines("quorate_build_info{"), [version]);
}

#[tokio::test]
async fn there_is_nothing_else() {
    let served = Served::patient();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: node\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: node\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: node\r\nContent-Length: 9\r\n\r\nand a body", "405"),
        ("HEAD /metrics HTTP/1.1\r\nHost: node\r\n\r\n", "405"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        ("\0\0\0 garbage\r\n\r\n", "400"),
        (&long, "431"),
        (&many, "431"),
    ] {
        let answer = served.ask(request.as_bytes()).await;
        let start = request.get(..20).unwrap_or(request);
        let seen = answer.split(' ').nth(1).unwrap_or_default();
        // What is no HTTP/1 at all may be closed without a word.
        assert!(seen == status || answer.is_empty() && status == "400", "{start:?}: {answer}");
    }
    served.scrape().await;
}

#[tokio::test]
async fn who_says_nothing_is_closed() {
    let served = Served::start(20, 60_000);
    closed(served.connect()).await;
    let mut slow = served.connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost:").await.unwrap();
    let mut answer = String::new();
    soon(slow.read_to_string(&mut answer)).await.unwrap();
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(served.idle(), 2);
}

#[tokio::test]
async fn who_does_not_take_the_answer_is_closed() {
    let served = Served::start(20, 20);
    let mut deaf = served.connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
    // What follows the request is not read either: it fails once the other end is gone.
    soon(deaf.write_all(&[0; 1 << 20])).await.unwrap_err();
    assert_eq!(served.idle(), 1);
}

#[tokio::test]
async fn strangers_who_wait_keep_nobody_out() {
    let served = Served::patient();
    let mut strangers: VecDeque<_> = (0..CONNECTIONS_MAX + 4).map(|_| served.connect()).collect();
    served.scrape().await;
    for _ in 0..5 {
        closed(strangers.pop_front().unwrap()).await;
    }
    let refused = || served.shared.counters.connections_refused.load(Ordering::Relaxed);
    assert_eq!(refused(), 5, "four for those above, one for the scrape");
    served.scrape().await;
    assert_eq!(refused(), 5, "the place of the scrape before is free");
    served.stop.cancel();
    served.serving.await.unwrap();
    for it in strangers {
        closed(it).await;
    }
}
