//! The parts of a batch that is larger than a node takes.

use std::ops::Range;

use futures_util::{StreamExt, stream};

/// Cuts items of these sizes, in order.
pub(super) fn parts(
    sizes: impl Iterator<Item = usize>,
    keys_max: usize,
    bytes_max: usize,
) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (position, size) in sizes.enumerate() {
        match parts.last_mut() {
            Some(part) if part.len() < keys_max && filled + size <= bytes_max => {
                part.end = position + 1;
                filled += size;
            }
            _ => {
                parts.push(position..position + 1);
                filled = size;
            }
        }
    }
    parts
}

/// Runs all parts, some at a time, and joins their results in order.
pub(super) async fn in_order<T, F: Future<Output = Vec<T>>>(
    mut parts: Vec<Range<usize>>,
    run: impl Fn(Range<usize>) -> F,
) -> Vec<T> {
    if parts.len() <= 1 {
        return match parts.pop() {
            Some(part) => run(part).await,
            None => Vec::new(),
        };
    }
    let results: Vec<_> = stream::iter(parts).map(run).buffered(PARTS_AT_A_TIME).collect().await;
    results.into_iter().flatten().collect()
}

/// Parts of a large batch that are under way at a time.
const PARTS_AT_A_TIME: usize = 4;
