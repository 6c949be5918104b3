use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use proto::CallOutcome;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Semaphore,
};
use tonic::Status;

use super::*;
use crate::{
    ClientConfig,
    call::{failure, out_of_time, send_within},
    connect::{Connecting, Connection, Connector, authority_of},
    node::Node,
    retry::Progress,
};

/// Refuses each connection once it may.
struct Refusing {
    begun: AtomicUsize,
    may_end: Arc<Semaphore>,
}

impl Connector for Refusing {
    fn connect(&self, _: &str) -> Connecting {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let may_end = Arc::clone(&self.may_end);
        Box::pin(async move {
            may_end.acquire().await.expect("it is not closed").forget();
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        })
    }
}

/// Connects to the other ends of pipes that were made before.
struct Piped(Mutex<Vec<DuplexStream>>);

impl Connector for Piped {
    fn connect(&self, _: &str) -> Connecting {
        let stream = self.0.lock().expect("nobody panics with it").pop();
        Box::pin(async move {
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// What a node says first.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A link that connects once, and the node's end of that.
fn piped(config: ClientConfig) -> (Arc<Link>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let connector = Arc::new(Piped(Mutex::new(vec![ours])));
    let dialer = Arc::new(Dialer::new(&ClientConfig { connector, ..config }));
    (Link::new(authority_of("127.0.0.1:1").expect("it is one"), dialer), theirs)
}

/// Makes a call, by a connection that is opened for it.
async fn call(link: &Arc<Link>, body: Body) -> Result<Response<Incoming>, BoxError> {
    let mut channel = link.open().await?;
    channel.call(Request::new(body)).await
}

/// What becomes of a call whose request is answered with these bytes, and then with the end.
async fn answered_with(frames: &'static [u8]) -> Progress {
    const HEADERS: u8 = 1;
    let (link, mut theirs) = piped(ClientConfig::default());
    tokio::spawn(async move {
        theirs.write_all(SETTINGS).await?;
        let mut preface = [0; 24];
        theirs.read_exact(&mut preface).await?;
        loop {
            let mut head = [0; 9];
            theirs.read_exact(&mut head).await?;
            let [high, middle, low, kind, ..] = head;
            let length = u32::from_be_bytes([0, high, middle, low]);
            tokio::io::copy(&mut (&mut theirs).take(length.into()), &mut tokio::io::sink()).await?;
            if kind == HEADERS {
                theirs.write_all(frames).await?;
                return theirs.shutdown().await;
            }
        }
    });
    let body = Body::new(String::from("a call"));
    let error = call(&link, body).await.expect_err("no answer");
    failure(&Status::from_error(error)).progress
}

#[tokio::test]
async fn what_a_node_turns_away_was_never_taken() {
    const GOAWAY_BEFORE_IT: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const GOAWAY_AFTER_IT: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    const CANCELLED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    assert_eq!(answered_with(GOAWAY_BEFORE_IT).await, Progress::NeverTaken);
    for frames in [GOAWAY_AFTER_IT, REFUSED, CANCELLED, b""] {
        assert_eq!(answered_with(frames).await, Progress::NoAnswer, "{frames:?}");
    }
}

#[tokio::test]
async fn an_attempt_to_connect_is_for_all_who_wait_and_outlives_who_began_it() {
    let may_end = Arc::new(Semaphore::new(0));
    let connector =
        Arc::new(Refusing { begun: AtomicUsize::new(0), may_end: Arc::clone(&may_end) });
    let config = ClientConfig { connector: connector.clone(), ..ClientConfig::default() };
    let authority = authority_of("127.0.0.1:1").expect("it is one");
    let link = Link::new(authority, Arc::new(Dialer::new(&config)));
    let call = || {
        let link = Arc::clone(&link);
        tokio::spawn(async move { call(&link, Body::empty()).await })
    };
    let (first, others) = (call(), [call(), call()]);
    while connector.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.is_err_and(|it| it.is_cancelled()));
    may_end.add_permits(1);
    for other in others {
        let error = other.await.expect("it does not panic").expect_err("nobody listens");
        assert!(error.is::<ConnectError>(), "{error}");
    }
    assert_eq!(connector.begun.load(Ordering::Relaxed), 1);
    may_end.add_permits(1);
    assert!(call().await.expect("it does not panic").is_err(), "another attempt ends too");
    assert_eq!(connector.begun.load(Ordering::Relaxed), 2);
}

/// What becomes of a call to a node whose operating system alone accepts its connection, and which then
/// breaks it off or leaves it.
async fn taken_by_nobody(breaks_off: bool) -> Progress {
    let connect_timeout = Duration::from_millis(50);
    let (link, mut theirs) = piped(ClientConfig { connect_timeout, ..ClientConfig::default() });
    let call = call(&link, Body::new(String::from("a call")));
    let node = async move {
        // Something has been sent, and is read by nobody.
        theirs.read_exact(&mut [0; 24]).await.expect("a preface");
        let left = (!breaks_off).then_some(theirs);
        std::future::pending::<()>().await;
        drop(left);
    };
    let error = tokio::select! {
        answer = call => answer.expect_err("no answer"),
        () = node => unreachable!("it is pending"),
    };
    failure(&Status::from_error(error)).progress
}

#[tokio::test]
async fn what_only_an_operating_system_accepts_was_never_taken() {
    assert_eq!(taken_by_nobody(true).await, Progress::NeverTaken);
    assert_eq!(taken_by_nobody(false).await, Progress::NeverTaken);
}

#[tokio::test]
async fn time_that_is_up_before_there_is_a_connection_proves_that_nothing_was_sent() {
    let may_end = Arc::new(Semaphore::new(0));
    let connector = Arc::new(Refusing { begun: AtomicUsize::new(0), may_end });
    let config = ClientConfig { connector, ..ClientConfig::default() };
    let node = Node::new("127.0.0.1:1", &Arc::new(Dialer::new(&config))).expect("an address");
    let budget = Duration::from_millis(20);
    let send = async |_: Channel| -> Result<(), Status> { unreachable!("it is not connected") };
    let late = |was_sent| out_of_time(true, was_sent, budget);
    let failure = send_within(&node, budget, send, late).await.expect_err("nobody listens");
    assert_eq!(failure.progress, Progress::NeverTaken);
    assert_eq!(failure.error.outcome, CallOutcome::NotApplied);
}

/// Answers of other calls come though scans are not read: what the connection may have under way does not bind.
#[tokio::test]
async fn a_connection_has_all_the_room_that_there_is() {
    const WINDOW_UPDATE: u8 = 8;
    let (link, mut theirs) = piped(ClientConfig::default());
    theirs.write_all(SETTINGS).await.expect("room");
    let open = link.open().await.expect("it has said something");
    theirs.read_exact(&mut [0; 24]).await.expect("a preface");
    let window = loop {
        let mut head = [0; 9];
        theirs.read_exact(&mut head).await.expect("a frame");
        let [high, middle, low, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        theirs.read_exact(&mut payload).await.expect("its payload");
        if kind == WINDOW_UPDATE && stream == [0; 4] {
            break u32::from_be_bytes(payload.try_into().expect("four bytes")) + 65_535;
        }
    };
    assert_eq!(window, (1 << 31) - 1);
    drop(open);
}
