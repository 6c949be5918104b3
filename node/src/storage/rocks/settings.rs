//! RocksDB's settings, and the memory and threads that databases of one process share.

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Env, LogLevel, MemtableFactory,
    Options, WriteBufferManager,
};

use super::super::StorageError;

/// Memory and threads that all databases of one process share. Make one per process.
#[derive(Clone)]
pub struct RocksShared {
    env: Env,
    cache: Cache,
    write_buffers: WriteBufferManager,
    memtable_bytes: usize,
    row_cache_bytes: usize,
    compaction_threads: i32,
    open_files_max: i32,
}

/// The sizes of [`RocksShared`].
#[derive(Clone, Copy, Debug)]
pub struct RocksLimits {
    /// Block cache of the process; index blocks, filters and memtables count against it.
    pub cache_bytes: usize,
    /// Memtables of the process. The sum may pass it by a memtable for each database.
    pub write_buffer_bytes: usize,
    /// The memtable of one database. The log behind it is what a restart has to read: 8 MiB take
    /// some 50 ms, larger ones gain no speed.
    pub memtable_bytes: usize,
    /// The cache of rows before one database, taken as rows are touched.
    pub row_cache_bytes: usize,
    /// Threads that compact the databases of the process.
    pub compaction_threads: u16,
    /// Files of one database that are kept open.
    pub open_files_max: u16,
}

impl RocksLimits {
    /// The least that [`Self::for_memory`] can share out.
    pub const MEMORY_BYTES_MIN: usize = 16 << 20;
    /// What is shared out where nobody says how much there is.
    pub const MEMORY_BYTES_DEFAULT: usize = 112 << 20;

    /// Shares out memory for one database: four parts in seven for rows, for one that is found there costs a
    /// tenth of one that is found in a block, and the others for blocks. Of those memtables take two thirds, but
    /// no more than keeps a restart short.
    pub fn for_memory(bytes: usize) -> Self {
        let row_cache_bytes = bytes / 7 * 4;
        let cache_bytes = bytes - row_cache_bytes;
        let write_buffer_bytes = (cache_bytes / 3 * 2).min(WRITE_BUFFER_BYTES_MAX);
        Self {
            cache_bytes,
            write_buffer_bytes,
            memtable_bytes: write_buffer_bytes / 4,
            row_cache_bytes,
            compaction_threads: COMPACTION_THREADS,
            open_files_max: OPEN_FILES_MAX,
        }
    }
}

impl Default for RocksLimits {
    /// 112 MiB: 64 of rows and 48 of blocks, of which memtables take at most 32, 8 for a database.
    fn default() -> Self {
        Self::for_memory(Self::MEMORY_BYTES_DEFAULT)
    }
}

impl RocksShared {
    /// Sets up what the databases of this process share: threads for compactions, and one for flushes.
    pub fn new(limits: RocksLimits) -> Result<Self, StorageError> {
        let env = Env::new().map_err(|it| StorageError::Failed { message: it.to_string() })?;
        let cache = Cache::new_lru_cache(limits.cache_bytes);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            limits.write_buffer_bytes,
            false,
            cache.clone(),
        );
        let RocksLimits { memtable_bytes, row_cache_bytes, .. } = limits;
        let compaction_threads = limits.compaction_threads.into();
        let mut shared = Self {
            env,
            cache,
            write_buffers,
            memtable_bytes,
            row_cache_bytes,
            compaction_threads,
            open_files_max: limits.open_files_max.into(),
        };
        shared.env.set_low_priority_background_threads(compaction_threads);
        shared.env.set_high_priority_background_threads(FLUSH_THREADS);
        Ok(shared)
    }

    /// Bytes of the block cache in use, memtables included.
    pub fn cache_used_bytes(&self) -> usize {
        self.cache.get_usage()
    }

    /// Bytes of rows to cache before each database.
    pub fn row_cache_bytes(&self) -> usize {
        self.row_cache_bytes
    }

    /// The settings of column families whose rows go again, in large numbers and maybe without another
    /// write after them: a file with many deletes is compacted though no level is full, and what comes of
    /// it too, until they have met what they delete.
    pub(super) fn row_options(&self) -> Options {
        let mut options = self.options();
        options.add_compact_on_deletion_collector_factory(
            DELETES_WINDOW,
            DELETES_IN_WINDOW,
            DELETES_SHARE,
        );
        options
    }

    /// The settings of the column family of Merkle trees. Every group of records writes leaves here,
    /// and nobody reads one before the next start: an unsorted memtable takes it at a fraction of the
    /// cost of a skip list, and is sorted once, when it is flushed.
    pub(super) fn tree_options(&self) -> Options {
        let mut options = self.options();
        options.set_memtable_factory(MemtableFactory::Vector);
        options
    }

    /// The settings of a database and of each of its other column families.
    pub(super) fn options(&self) -> Options {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_cache(&self.cache);
        tables.set_cache_index_and_filter_blocks(true);
        tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
        tables.set_bloom_filter(BLOOM_BITS_PER_KEY, false);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_env(&self.env);
        options.set_block_based_table_factory(&tables);
        // Young files are soon rewritten. While a database is small its bottom is young too: hence
        // by level, counted from the first that is filled and takes a quarter of a GiB at most, and
        // nothing special for the bottommost.
        options.set_compression_per_level(&[
            DBCompressionType::None,
            DBCompressionType::None,
            DBCompressionType::Lz4,
            DBCompressionType::Zstd,
        ]);
        options.set_level_zero_file_num_compaction_trigger(LEVEL_ZERO_FILES);
        options.set_compaction_readahead_size(COMPACTION_READ_BYTES);
        options.set_max_open_files(self.open_files_max);
        options.set_max_background_jobs(self.compaction_threads + FLUSH_THREADS);

        // The log behind the memtables is what a restart reads. A column family that is hardly ever
        // written would keep old logs alive for ever, hence the bound over all of them.
        options.set_write_buffer_size(self.memtable_bytes);
        options.set_write_buffer_manager(&self.write_buffers);
        // There is one writer, unsorted memtables take no more, and only for one does a skip list look
        // for places from the last one.
        options.set_allow_concurrent_memtable_write(false);
        options.set_max_total_wal_size(2 * self.memtable_bytes as u64);

        // The default recovery drops, silently, acknowledged writes behind a damaged record. This
        // one refuses to open instead, and only takes a torn tail for what it is.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_paranoid_checks(true);

        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_log_level(LogLevel::Warn);
        options.set_max_log_file_size(EVENT_LOG_BYTES_MAX);
        options.set_keep_log_file_num(EVENT_LOGS_KEPT);
        options
    }
}

/// More memtables would gain no speed, and a restart reads what they hold from the log.
const WRITE_BUFFER_BYTES_MAX: usize = 32 << 20;
const COMPACTION_THREADS: u16 = 2;
const FLUSH_THREADS: i32 = 1;
/// Each compaction of these rewrites what it meets below: fewer of them cost less CPU, and more files
/// cost a read one filter each.
const LEVEL_ZERO_FILES: i32 = 10;
/// Held for each file of a compaction; the kernel reads ahead by itself.
const COMPACTION_READ_BYTES: usize = 256 << 10;
const OPEN_FILES_MAX: u16 = 512;
/// Rows behind one another of which so many are deletes, or so many of a whole file: then it is compacted.
const DELETES_WINDOW: usize = 512;
const DELETES_IN_WINDOW: usize = 256;
const DELETES_SHARE: f64 = 0.25;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
const EVENT_LOG_BYTES_MAX: usize = 1 << 20;
const EVENT_LOGS_KEPT: usize = 3;
