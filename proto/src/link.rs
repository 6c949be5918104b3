//! The bytes of a link between two nodes: frames one after the other, both ways.
//!
//! Each side says [`PREFACE`] once. Then come frames: the length of the message in bytes and its CRC-32C,
//! four bytes each, little-endian, and the message, an encoded [`Frame`]. A length of zero keeps the link
//! alive. What a link carries is one stream of large messages that both sides trust each other to bound, so
//! that it needs none of HTTP/2's streams, windows and headers.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio_util::codec::{Decoder, Encoder};
use tonic::{Code, Status};

use crate::internal::{Frame, Refused};

/// What each side says first: its last byte is the version of what follows.
pub const PREFACE: &[u8; 8] = b"QUORATE\x01";

const HEAD_BYTES: usize = 8;
/// What is read at once.
pub const READ_BYTES: usize = 16 << 10;
/// A message that is longer gets its room as its bytes come, not as its length promises.
const RESERVE_BYTES_MAX: usize = 64 << 10;

/// What is wrong with the bytes of a link. It cannot go on after any of these.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// They do not begin as a link between nodes does.
    #[error("these are not the bytes of a link between nodes")]
    NotALink,
    /// A frame is longer than agreed.
    #[error("a frame of {actual} bytes, more than {limit}")]
    FrameTooLarge {
        /// What the receiver takes.
        limit: usize,
        /// What was said.
        actual: usize,
    },
    /// A frame is not what was sent.
    #[error("a frame was damaged on its way")]
    Damaged,
    /// A frame is no message.
    #[error("a frame that is no message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A frame cannot be encoded.
    #[error("a frame cannot be encoded: {0}")]
    NotEncoded(#[from] prost::EncodeError),
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Encodes what is said on a link, and decodes what is heard.
#[derive(Debug)]
pub struct LinkCodec {
    /// The longest message, either way, in bytes.
    pub frame_bytes_max: usize,
    preface_said: bool,
    preface_heard: bool,
}

/// Says that this side is there.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive;

impl LinkCodec {
    /// A link of which nothing was said or heard yet.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max, preface_said: false, preface_heard: false }
    }

    fn say_preface(&mut self, bytes: &mut BytesMut) {
        if !std::mem::replace(&mut self.preface_said, true) {
            bytes.put_slice(PREFACE);
        }
    }

    /// Takes the preface; false if it has not come whole.
    fn hear_preface(&mut self, bytes: &mut BytesMut) -> Result<bool, LinkError> {
        if !self.preface_heard {
            let count = bytes.len().min(PREFACE.len());
            if bytes[..count] != PREFACE[..count] {
                return Err(LinkError::NotALink);
            }
            if count < PREFACE.len() {
                return Ok(false);
            }
            bytes.advance(count);
            self.preface_heard = true;
        }
        Ok(true)
    }

    fn checked(&self, actual: usize) -> Result<u32, LinkError> {
        let limit = self.frame_bytes_max;
        let length = u32::try_from(actual).ok().filter(|_| actual <= limit);
        length.ok_or(LinkError::FrameTooLarge { limit, actual })
    }
}

impl Encoder<&Frame> for LinkCodec {
    type Error = LinkError;

    fn encode(&mut self, frame: &Frame, bytes: &mut BytesMut) -> Result<(), LinkError> {
        self.say_preface(bytes);
        let head = bytes.len();
        bytes.put_bytes(0, HEAD_BYTES);
        frame.encode(bytes)?;
        let message = &bytes[head + HEAD_BYTES..];
        let (length, sum) = (self.checked(message.len()), crc32c::crc32c(message));
        let length = length.inspect_err(|_| bytes.truncate(head))?;
        let mut at = &mut bytes[head..head + HEAD_BYTES];
        at.put_u32_le(length);
        at.put_u32_le(sum);
        Ok(())
    }
}

impl Encoder<KeepAlive> for LinkCodec {
    type Error = LinkError;

    fn encode(&mut self, _: KeepAlive, bytes: &mut BytesMut) -> Result<(), LinkError> {
        self.say_preface(bytes);
        bytes.put_bytes(0, HEAD_BYTES);
        Ok(())
    }
}

impl Decoder for LinkCodec {
    /// `None` keeps the link alive.
    type Item = Option<Frame>;
    type Error = LinkError;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Self::Item>, LinkError> {
        if !self.hear_preface(bytes)? {
            return Ok(None);
        }
        let Some(mut head) = bytes.get(..HEAD_BYTES) else { return Ok(None) };
        let (length, sum) = (head.get_u32_le(), head.get_u32_le());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.checked(length)?;
        let missing = (HEAD_BYTES + length).saturating_sub(bytes.len());
        if missing > 0 {
            bytes.reserve(missing.min(RESERVE_BYTES_MAX));
            return Ok(None);
        }
        bytes.advance(HEAD_BYTES);
        let message = bytes.split_to(length).freeze();
        if length > RESERVE_BYTES_MAX {
            // Else all its room would be kept for what comes next, until that has filled it.
            let rest = bytes.split();
            *bytes = BytesMut::with_capacity(READ_BYTES.max(rest.len()));
            bytes.put_slice(&rest);
        }
        if crc32c::crc32c(&message) != sum {
            return Err(LinkError::Damaged);
        }
        if message.is_empty() {
            return Ok(Some(None));
        }
        Ok(Some(Some(Frame::decode(message)?)))
    }
}

impl From<&Status> for Refused {
    fn from(status: &Status) -> Self {
        let code = u32::try_from(i32::from(status.code())).unwrap_or_default();
        let details = Bytes::copy_from_slice(status.details());
        Self { code, message: status.message().to_owned(), details }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = Code::from_i32(i32::try_from(refused.code).unwrap_or(-1));
        Self::with_details(code, refused.message, refused.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CallError, Reason};

    const LIMIT: usize = 10_000;

    fn frame(operations: u64) -> Frame {
        Frame { applied: (0..operations).collect(), clock: 7, ..Frame::default() }
    }

    fn said() -> BytesMut {
        let (mut codec, mut bytes) = (LinkCodec::new(LIMIT), BytesMut::new());
        codec.encode(&frame(3), &mut bytes).unwrap();
        codec.encode(KeepAlive, &mut bytes).unwrap();
        codec.encode(&frame(1_000), &mut bytes).unwrap();
        bytes
    }

    fn heard(codec: &mut LinkCodec, bytes: &mut BytesMut) -> Vec<Option<Frame>> {
        std::iter::from_fn(|| codec.decode(bytes).unwrap()).collect()
    }

    #[test]
    fn what_is_said_is_heard_however_the_bytes_are_cut() {
        let whole = said();
        for cut in 1..100 {
            let (mut codec, mut bytes, mut items) =
                (LinkCodec::new(LIMIT), BytesMut::new(), vec![]);
            for part in whole.chunks(cut) {
                bytes.extend_from_slice(part);
                items.extend(heard(&mut codec, &mut bytes));
            }
            assert_eq!(items, [Some(frame(3)), None, Some(frame(1_000))], "cut every {cut} bytes");
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let golden = b"QUORATE\x01\x09\0\0\0\x30\x28\x89\xc0\x11\x07\0\0\0\0\0\0\0";
        let (mut codec, mut bytes) = (LinkCodec::new(LIMIT), BytesMut::new());
        codec.encode(&frame(0), &mut bytes).unwrap();
        assert_eq!(bytes[..], golden[..]);
    }

    #[test]
    fn no_damaged_byte_is_taken_for_what_was_said() {
        let whole = said();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let mut codec = LinkCodec::new(LIMIT);
            let mut items = Vec::new();
            let failed = loop {
                match codec.decode(&mut bytes) {
                    Ok(Some(item)) => items.push(item),
                    // It waits for the rest of a longer frame, and takes nothing for one.
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            assert!(failed || !bytes.is_empty(), "byte {at}: {items:?}");
            let sound = [Some(frame(3)), None, Some(frame(1_000))];
            assert_eq!(items[..], sound[..items.len()], "byte {at}");
            assert!(items.len() < sound.len(), "byte {at}");
        }
    }

    #[test]
    fn strangers_are_known_by_their_first_byte_that_differs() {
        for stranger in [&b"PRI * HTTP/2.0"[..], b"GET / HTTP/1.1", b"Q\0", b"QUORATE\x02"] {
            let mut bytes = BytesMut::from(stranger);
            let heard = LinkCodec::new(LIMIT).decode(&mut bytes);
            assert!(matches!(heard, Err(LinkError::NotALink)), "{stranger:?}: {heard:?}");
        }
        assert!(LinkCodec::new(LIMIT).decode(&mut BytesMut::from(&b"QUO"[..])).unwrap().is_none());
    }

    #[test]
    fn a_length_is_judged_before_there_is_room_for_it() {
        let mut bytes = BytesMut::from(&PREFACE[..]);
        bytes.put_u32_le(u32::MAX);
        bytes.put_u32_le(0);
        let heard = LinkCodec::new(LIMIT).decode(&mut bytes);
        assert!(matches!(heard, Err(LinkError::FrameTooLarge { limit: LIMIT, .. })), "{heard:?}");
        let mut bytes = BytesMut::from(&PREFACE[..]);
        bytes.put_u32_le(1 << 30);
        bytes.put_u32_le(0);
        assert!(LinkCodec::new(1 << 30).decode(&mut bytes).unwrap().is_none());
        assert!(bytes.capacity() <= 2 * RESERVE_BYTES_MAX, "{}", bytes.capacity());
        let (mut codec, mut bytes) = (LinkCodec::new(100), BytesMut::new());
        codec.encode(&frame(1), &mut bytes).unwrap();
        let before = bytes.clone();
        codec.encode(&frame(100), &mut bytes).unwrap_err();
        assert_eq!(bytes, before, "nothing of it is said");
    }

    #[test]
    fn a_large_frame_leaves_a_buffer_of_the_usual_size() {
        let large = Frame { gossip: vec![vec![7; 1 << 20].into()], ..Frame::default() };
        let (mut codec, mut bytes) = (LinkCodec::new(2 << 20), BytesMut::new());
        codec.encode(&large, &mut bytes).unwrap();
        codec.encode(&frame(3), &mut bytes).unwrap();
        let mut kept = vec![codec.decode(&mut bytes).unwrap().flatten().unwrap()];
        assert!((READ_BYTES..2 * READ_BYTES).contains(&bytes.capacity()), "{}", bytes.capacity());
        kept.push(codec.decode(&mut bytes).unwrap().flatten().unwrap());
        assert_eq!(kept, [large, frame(3)]);
    }

    #[test]
    fn a_refusal_survives_the_wire() {
        let error = CallError::new(Reason::VersionMismatch, "no").with("required", 1);
        let refused = Refused::from(&Status::from(error.clone()));
        assert_eq!(CallError::from(&Status::from(refused)), error);
        let unknown = Refused { code: u32::MAX, ..Refused::default() };
        assert_eq!(Status::from(unknown).code(), Code::Unknown);
    }
}
