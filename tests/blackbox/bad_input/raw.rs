//! Bytes on a socket: HTTP/2 frames made by hand (RFC 9113), and calls whose body is whatever a test
//! wants it to be.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::ServiceExt;

use crate::harness::{PATIENCE, within};

/// What every HTTP/2 client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Flags of frames.
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const ACK: u8 = 1;

/// A frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The beginning of a sound connection: preface and empty settings.
pub(super) fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header block without compression: literals that are not indexed (RFC 7541, 6.2.2).
pub(super) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            // Below 127, a length is one byte.
            assert!(text.len() < 127, "{text}");
            block.push(u8::try_from(text.len()).expect("below 127"));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The headers of a call.
pub(super) fn call_headers<'a>(path: &'a str, further: &[(&'a str, &'a str)]) -> Vec<u8> {
    let mut headers = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    headers.extend(further);
    header_block(&headers)
}

/// Whatever this frame was, how a node ended a connection.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Frames before the end: type, flags, stream, payload.
    pub(super) frames: Vec<(u8, u8, u32, Bytes)>,
    /// Everything else that was read.
    pub(super) bytes: usize,
}

impl Ended {
    /// The error code of the node's farewell, if it said one.
    pub(super) fn farewell(&self) -> Option<u32> {
        let goaway = self.frames.iter().rev().find(|it| it.0 == GOAWAY)?;
        goaway.3.get(4..8).map(|it| u32::from_be_bytes(it.try_into().expect("four bytes")))
    }
}

/// Error codes of farewells.
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

/// Connects.
pub(super) async fn connect(address: SocketAddr) -> TcpStream {
    let stream = within("a connection", PATIENCE, TcpStream::connect(address)).await;
    stream.expect("the node listens")
}

/// Sends bytes while reading what comes back, until the node closes the connection. Panics if it does
/// not.
pub(super) async fn send_until_closed(stream: TcpStream, bytes: Vec<u8>) -> Ended {
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        // Fails when the node has closed; the half stays open otherwise.
        let _ = to.write_all(&bytes).await;
        to
    });
    let ended = within("the node closes the connection", PATIENCE, read_to_end(&mut from)).await;
    drop(within("the rest was sent or refused", PATIENCE, writing).await.expect("no panic"));
    ended
}

/// Reads until the other side closes, in whatever way.
async fn read_to_end(from: &mut (impl AsyncReadExt + Unpin)) -> Ended {
    let (mut ended, mut buffer) = (Ended::default(), Vec::new());
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        buffer.extend_from_slice(&chunk[..count]);
        ended.bytes += count;
        take_frames(&mut buffer, &mut ended.frames);
    }
    ended
}

fn take_frames(buffer: &mut Vec<u8>, frames: &mut Vec<(u8, u8, u32, Bytes)>) {
    let mut at = 0;
    while let Some(head) = buffer.get(at..at + 9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
        let (kind, flags) = (head[3], head[4]);
        let Some(payload) = buffer.get(at + 9..at + 9 + length) else { break };
        frames.push((kind, flags, stream, Bytes::copy_from_slice(payload)));
        at += 9 + length;
    }
    buffer.drain(..at);
}

/// Reads frames until one of this type comes. Panics if the connection ends before.
pub(super) async fn read_until(stream: &mut TcpStream, kind: u8) -> (u8, u8, u32, Bytes) {
    let (mut buffer, mut frames) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 << 10];
    loop {
        let read = within("a frame", PATIENCE, stream.read(&mut chunk)).await;
        let count = read.expect("the connection stands");
        assert!(count > 0, "closed before a frame of type {kind}: {frames:?}");
        buffer.extend_from_slice(&chunk[..count]);
        take_frames(&mut buffer, &mut frames);
        if let Some(at) = frames.iter().position(|it| it.0 == kind) {
            return frames.swap_remove(at);
        }
    }
}

/// A body of chunks, sent as they are.
struct Chunks {
    chunks: std::vec::IntoIter<Bytes>,
    /// False for a body whose rest never comes.
    ends: bool,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.chunks.next() {
            None if !self.ends => Poll::Pending,
            next => Poll::Ready(next.map(|it| Ok(Frame::data(it)))),
        }
    }
}

/// A gRPC message: not compressed, its length, its bytes.
pub(super) fn message(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    [&[0][..], &length, bytes].concat().into()
}

/// Calls a method with these headers and this body. Returns the bytes of the answer, or the status.
pub(super) async fn call(
    channel: Channel,
    path: &str,
    headers: &[(&'static str, &str)],
    body: Vec<Bytes>,
) -> Result<Bytes, Status> {
    call_with(channel, path, headers, Body::new(Chunks { chunks: body.into_iter(), ends: true }))
        .await
}

/// As `call`, with a body that stops after these bytes and never ends.
pub(super) async fn call_stalled(
    channel: Channel,
    path: &str,
    first: Bytes,
) -> Result<Bytes, Status> {
    call_with(
        channel,
        path,
        &[],
        Body::new(Chunks { chunks: vec![first].into_iter(), ends: false }),
    )
    .await
}

async fn call_with(
    channel: Channel,
    path: &str,
    headers: &[(&'static str, &str)],
    body: Body,
) -> Result<Bytes, Status> {
    let mut request = http::Request::post(format!("http://localhost{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).expect("sound headers");
    let answering = async {
        let response =
            channel.oneshot(request).await.map_err(|it| Status::from_error(Box::new(it)))?;
        if let Some(status) = status_in(response.headers()) {
            return Err(status);
        }
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        let (mut answer, mut body) = (Vec::new(), response.into_body());
        loop {
            let next =
                std::future::poll_fn(|it| http_body::Body::poll_frame(Pin::new(&mut body), it));
            let Some(next) = next.await else { panic!("an answer without a status") };
            match next?.into_data() {
                Ok(mut data) => answer.extend_from_slice(&data.copy_to_bytes(data.remaining())),
                Err(rest) => {
                    let Ok(trailers) = rest.into_trailers() else {
                        panic!("neither data nor trailers")
                    };
                    let status = status_in(&trailers).expect("a status in the trailers");
                    return if status.code() == Code::Ok { Ok(answer.into()) } else { Err(status) };
                }
            }
        }
    };
    within(path, PATIENCE, answering).await
}

fn status_in(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}
