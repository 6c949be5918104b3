//! Messages on gRPC calls, in buffers of their usual size.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// tonic's codec with smaller buffers.
///
/// By default both sides of each call have 8 KiB for a message of some hundred bytes. What is decoded is
/// part of the buffer, so that a value that waits for the disk kept all of it; and buffers so far apart fall
/// into the same few places of the processor's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompactCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CompactCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for CompactCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// Where buffers begin; they grow as messages ask for it. No power of two: see above.
const BUFFER_BYTES: usize = 640;
/// What a stream encodes before it hands it on: tonic's own.
const YIELD_BYTES: usize = 32 << 10;
