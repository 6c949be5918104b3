//! Checked binary encoding, for what is kept on disk and sent between nodes outside of protobuf.
//!
//! Numbers are big-endian and of fixed size; byte strings carry their length in four bytes. There
//! is one encoding of each value, so that hashes of it agree everywhere. Decoding never panics, and
//! never allocates for a length before it has seen the bytes. What the bytes mean, and which
//! versions of a format exist, is up to the types that use this.

/// Why bytes are not the encoding of a value. Nothing of the value is to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("{needed} more bytes are needed, and {left} are left")]
    Truncated {
        /// Bytes that the next part takes.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// Bytes follow the value.
    #[error("{left} bytes follow the end")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// A format version that this build does not know: written by a newer one, or not at all.
    #[error("{what} of format {actual}, and this build reads up to {newest}")]
    UnknownFormat {
        /// Of what.
        what: &'static str,
        /// The newest format this build knows.
        newest: u8,
        /// The format found.
        actual: u8,
    },
    /// A length or a count is above its limit.
    #[error("{what}: {actual}, and at most {limit} are allowed")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The most allowed.
        limit: usize,
        /// The number found.
        actual: usize,
    },
    /// The bytes are there, but no value is encoded so.
    #[error("no valid encoding of {what}")]
    Invalid {
        /// Of what.
        what: &'static str,
    },
}

/// Writes an encoding, part by part.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty encoding.
    pub fn new() -> Self {
        Self::default()
    }

    /// The encoding.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// One byte.
    pub fn u8(&mut self, it: u8) -> &mut Self {
        self.bytes.push(it);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, it: u16) -> &mut Self {
        self.raw(&it.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, it: u32) -> &mut Self {
        self.raw(&it.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, it: u64) -> &mut Self {
        self.raw(&it.to_be_bytes())
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, it: u128) -> &mut Self {
        self.raw(&it.to_be_bytes())
    }

    /// One byte, 0 or 1.
    pub fn bool(&mut self, it: bool) -> &mut Self {
        self.u8(u8::from(it))
    }

    /// Bytes whose number the reader knows.
    pub fn raw(&mut self, it: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(it);
        self
    }

    /// How many items follow, in four bytes.
    ///
    /// Panics with 4 Gi items or more: whoever encodes has checked a limit far below.
    pub fn count(&mut self, it: usize) -> &mut Self {
        self.u32(u32::try_from(it).expect("limits keep counts below 4 Gi"))
    }

    /// Bytes with their length before them. Panics with 4 GiB or more.
    pub fn bytes(&mut self, it: &[u8]) -> &mut Self {
        self.count(it.len()).raw(it)
    }

    /// Text with its length in bytes before it. Panics with 4 GiB or more.
    pub fn str(&mut self, it: &str) -> &mut Self {
        self.bytes(it.as_bytes())
    }
}

/// Reads an encoding, part by part, in the order in which it was written.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of the bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Fails unless everything was read.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.left.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing { left }),
        }
    }

    /// Reads a format byte; fails unless it is from 1 to `newest`.
    pub fn format(&mut self, what: &'static str, newest: u8) -> Result<u8, DecodeError> {
        let actual = self.u8()?;
        if (1..=newest).contains(&actual) {
            Ok(actual)
        } else {
            Err(DecodeError::UnknownFormat { what, newest, actual })
        }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        Ok(u128::from_be_bytes(self.array()?))
    }

    /// One byte, which must be 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid { what }),
        }
    }

    /// `length` bytes, borrowed.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.left.len();
        let truncated = DecodeError::Truncated { needed: length, left };
        let (taken, left) = self.left.split_at_checked(length).ok_or(truncated)?;
        self.left = left;
        Ok(taken)
    }

    /// As many bytes as the array has.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.raw(N)?.try_into().expect("raw returns as many as asked for"))
    }

    /// A number of items, at most `limit`. The caller must not reserve more memory for them than
    /// `limit` items need.
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let actual = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if actual > limit { Err(DecodeError::TooLarge { what, limit, actual }) } else { Ok(actual) }
    }

    /// Bytes with their length before them, at most `limit`, borrowed.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.count(what, limit)?;
        self.raw(length)
    }

    /// Text with its length before it, at most `limit` bytes, borrowed.
    pub fn str(&mut self, what: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what, limit)?).ok().ok_or(DecodeError::Invalid { what })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden() {
        let mut writer = Writer::new();
        writer.u8(1).u16(0x0203).u32(0x0405_0607).u64(8).u128(9).bool(true).bytes(b"ab").str("é");
        let expected = [
            &[1, 2, 3, 4, 5, 6, 7][..],
            &[0, 0, 0, 0, 0, 0, 0, 8],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            &[1, 0, 0, 0, 2, b'a', b'b', 0, 0, 0, 2, 0xc3, 0xa9],
        ];
        assert_eq!(writer.finish(), expected.concat());
    }

    #[test]
    fn a_length_is_checked_before_the_bytes_are() {
        let bytes = [0xff; 4];
        let limit = DecodeError::TooLarge { what: "name", limit: 9, actual: u32::MAX as usize };
        assert_eq!(Reader::new(&bytes).bytes("name", 9), Err(limit));
        let truncated = DecodeError::Truncated { needed: u32::MAX as usize, left: 0 };
        assert_eq!(Reader::new(&bytes).bytes("name", usize::MAX), Err(truncated));
    }

    #[test]
    fn formats() {
        let unknown = |actual| Err(DecodeError::UnknownFormat { what: "it", newest: 2, actual });
        let read = |byte: u8| Reader::new(&[byte]).format("it", 2);
        assert_eq!([0, 1, 2, 3].map(read), [unknown(0), Ok(1), Ok(2), unknown(3)]);
    }

    proptest! {
        #[test]
        fn round_trips(a: u8, b: u16, c: u32, d: u64, e: u128, f: bool, g: Vec<u8>, h: String) {
            let mut writer = Writer::new();
            writer.u8(a).u16(b).u32(c).u64(d).u128(e).bool(f).bytes(&g).str(&h);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.u8().unwrap(), a);
            prop_assert_eq!(reader.u16().unwrap(), b);
            prop_assert_eq!(reader.u32().unwrap(), c);
            prop_assert_eq!(reader.u64().unwrap(), d);
            prop_assert_eq!(reader.u128().unwrap(), e);
            prop_assert_eq!(reader.bool("f").unwrap(), f);
            prop_assert_eq!(reader.bytes("g", g.len()).unwrap(), &g[..]);
            prop_assert_eq!(reader.str("h", h.len()).unwrap(), &h);
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, calls in proptest::collection::vec(0..9u8, 0..20)) {
            let mut reader = Reader::new(&bytes);
            for call in calls {
                let before = reader.left.len();
                let failed = match call {
                    0 => reader.u8().is_err(),
                    1 => reader.u16().is_err(),
                    2 => reader.u32().is_err(),
                    3 => reader.u64().is_err(),
                    4 => reader.u128().is_err(),
                    5 => reader.bool("it").is_err(),
                    6 => reader.bytes("it", 100).is_err(),
                    7 => reader.str("it", 100).is_err(),
                    _ => reader.raw(7).is_err(),
                };
                prop_assert!(failed || reader.left.len() < before, "a read consumes or fails");
            }
        }
    }
}
