//! The range of a scan as storage keys, and the page tokens that resume it.

use bytes::{BufMut, Bytes, BytesMut};
use coordinator::Direction;
use model::{Key, StorageKey, Token};
use proto::{CallError, Reason, v1};

use super::call::Call;
use crate::{shared::Shared, view::KeyspaceView};

/// The range of storage keys that a request asks for.
pub(super) fn bounds(
    keyspace: &KeyspaceView,
    range: &v1::scan_request::Range,
    limits: &model::Limits,
) -> Result<(Bytes, Bytes, Direction), CallError> {
    let id = keyspace.keyspace.id;
    let reversed = |field| {
        let message = "the end of the range lies before its start";
        Err(CallError::new(Reason::RangeReversed, message).at_field(field))
    };
    match range {
        v1::scan_request::Range::Tokens(tokens) => {
            let last = tokens.end.unwrap_or(u64::MAX);
            if last < tokens.start {
                return reversed("tokens.end");
            }
            let (start, _) = token_bounds(id, Token(tokens.start));
            let (_, end) = token_bounds(id, Token(last));
            Ok((start, end, Direction::Forward))
        }
        v1::scan_request::Range::Partition(rows) => {
            let key = Key::with_sort_key(rows.partition_key.clone(), rows.prefix.clone());
            key.validate(limits).map_err(|error| {
                let reason = if key.partition_key.is_empty() {
                    Reason::KeyEmpty
                } else {
                    Reason::KeyTooLarge
                };
                CallError::new(reason, error.to_string()).at_field("partition")
            })?;
            if !rows.end.is_empty() && rows.end < rows.start {
                return reversed("partition.end");
            }
            let prefix = StorageKey::row_prefix(id, key.token(), &rows.partition_key);
            let at = |sort_key: &[u8]| Bytes::from([&prefix[..], sort_key].concat());
            let mut start = at(&rows.start);
            let mut end = match rows.end.is_empty() {
                true => StorageKey::prefix_end(&prefix).unwrap_or_default(),
                false => at(&rows.end),
            };
            if !rows.prefix.is_empty() {
                let prefix = at(&rows.prefix);
                let past = StorageKey::prefix_end(&prefix).unwrap_or_default();
                start = start.max(prefix);
                end = end.min(past);
            }
            // A prefix outside start and end: an empty range, not an error.
            let end = end.max(start.clone());
            let direction = if rows.reverse { Direction::Reverse } else { Direction::Forward };
            Ok((start, end, direction))
        }
    }
}

/// The first storage key at a token, and the first one past it; empty for the end of the space.
fn token_bounds(id: model::KeyspaceId, token: Token) -> (Bytes, Bytes) {
    let head = |id: u32, token: u64| {
        let mut bytes = BytesMut::with_capacity(12);
        bytes.put_u32(id);
        bytes.put_u64(token);
        bytes.freeze()
    };
    let past = match (token.0.checked_add(1), id.0.checked_add(1)) {
        (Some(next), _) => head(id.0, next),
        (None, Some(next)) => head(next, 0),
        (None, None) => Bytes::new(),
    };
    (head(id.0, token.0), past)
}

/// The token of a position, which has at least keyspace and token.
pub(super) fn token_at(position: &[u8]) -> Token {
    let bytes = position.get(4..12).and_then(|it| it.try_into().ok());
    Token(bytes.map_or(u64::MAX, u64::from_be_bytes))
}

/// The token that holds the last key before `end`.
pub(super) fn last_token_before(end: &[u8], start: &[u8]) -> Token {
    // Only rows of one partition key are read in reverse, so start and end share the token, unless
    // the end is that of the last partition key of its keyspace.
    if end.get(..12) == start.get(..12) { token_at(end) } else { token_at(start) }
}

pub(super) fn fingerprint(
    call: &Call<'_>,
    keyspace: &KeyspaceView,
    range: &v1::scan_request::Range,
) -> u64 {
    let mut bytes = BytesMut::new();
    bytes.put_u128(call.shared.cluster().0);
    bytes.put_u32(keyspace.keyspace.id.0);
    match range {
        v1::scan_request::Range::Tokens(it) => {
            bytes.put_u8(0);
            bytes.put_u64(it.start);
            bytes.put_u64(it.end.unwrap_or(u64::MAX));
        }
        v1::scan_request::Range::Partition(it) => {
            bytes.put_u8(1 + u8::from(it.reverse));
            for part in [&it.partition_key, &it.start, &it.end, &it.prefix] {
                bytes.put_u64(u64::try_from(part.len()).unwrap_or(u64::MAX));
                bytes.put_slice(part);
            }
        }
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// A page token: format, cluster, fingerprint of the request, position, checksum of all that.
pub(super) fn write_token(position: &[u8], fingerprint: u64, shared: &Shared) -> Bytes {
    let mut bytes = BytesMut::with_capacity(29 + position.len());
    bytes.put_u8(TOKEN_FORMAT);
    bytes.put_u128(shared.cluster().0);
    bytes.put_u64(fingerprint);
    bytes.put_slice(position);
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32(crc);
    bytes.freeze()
}

pub(super) fn read_token(
    token: &Bytes,
    fingerprint: u64,
    shared: &Shared,
) -> Result<Bytes, CallError> {
    let body = token.len().checked_sub(4).filter(|it| *it >= TOKEN_HEAD_BYTES + 12);
    let body = body.ok_or_else(|| malformed("it is too short"))?;
    let crc = u32::from_be_bytes(token[body..].try_into().expect("four bytes remain"));
    if token[0] != TOKEN_FORMAT || crc != crc32c::crc32c(&token[..body]) {
        return Err(malformed("its checksum does not fit"));
    }
    if token[1..17] != shared.cluster().to_bytes() {
        let message = "the page token is of another cluster";
        return Err(CallError::new(Reason::TokenForeign, message).at_field("page_token"));
    }
    if token[17..25] != fingerprint.to_be_bytes() {
        return Err(malformed("it belongs to another scan"));
    }
    Ok(token.slice(TOKEN_HEAD_BYTES..body))
}

const TOKEN_FORMAT: u8 = 1;
const TOKEN_HEAD_BYTES: usize = 25;

pub(super) fn malformed(what: &str) -> CallError {
    CallError::new(Reason::TokenMalformed, format!("the page token is refused: {what}"))
        .at_field("page_token")
}
