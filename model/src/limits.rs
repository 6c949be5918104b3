//! What a request may ask for. Each limit is checked before anything is sent or allocated for it.

/// Bounds on the inputs of clients. All are inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a partition key. 4 KiB.
    pub partition_key_bytes_max: usize,
    /// Bytes of a sort key. 1 KiB.
    pub sort_key_bytes_max: usize,
    /// Bytes of a value. 1 MiB by default; below `batch_bytes_max`.
    pub value_bytes_max: usize,
    /// Keys of one batch. A batch is answered whole, so this bounds the answer too.
    pub batch_keys_max: usize,
    /// Bytes of keys and values of one batch.
    pub batch_bytes_max: usize,
    /// Rows of one scan page; larger wishes are lowered to it.
    pub scan_rows_max: usize,
    /// Bytes of one scan page, within the replicas and to the client.
    pub scan_bytes_max: usize,
    /// Seconds until expiry of a write. A hundred years: beyond that, leave the TTL away.
    pub ttl_seconds_max: u64,
    /// Bytes of a keyspace's name.
    pub name_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            partition_key_bytes_max: 4 << 10,
            sort_key_bytes_max: 1 << 10,
            value_bytes_max: 1 << 20,
            batch_keys_max: 4_096,
            batch_bytes_max: 4 << 20,
            scan_rows_max: 1_000,
            scan_bytes_max: 1 << 20,
            ttl_seconds_max: 100 * 365 * 86_400,
            name_bytes_max: 48,
        }
    }
}
