//! How much of an exchange is done at a time, and how long it rests in between: clients come first.
//! Pure: time and pressure are arguments.

/// The pace of the rounds with one node.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) struct Pace {
    slice_bytes: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { slice_bytes: SLICE_BYTES_START }
    }
}

impl Pace {
    /// Bytes of records to read for one slice.
    pub(in crate::io) fn slice_bytes(self) -> usize {
        self.slice_bytes
    }

    /// Takes in how a slice went: `pressure` is the worse of both nodes' (see
    /// [`crate::foreground::Foreground::pressure`]). Returns how long to rest, in microseconds.
    pub(in crate::io) fn after(&mut self, took_us: u64, pressure: u32) -> u64 {
        match pressure {
            0 => {
                self.slice_bytes = (2 * self.slice_bytes).min(SLICE_BYTES_MAX);
                0
            }
            1..CALM => {
                self.slice_bytes = (self.slice_bytes + self.slice_bytes / 4).min(SLICE_BYTES_MAX);
                took_us / 2
            }
            CALM..FULL => took_us.saturating_mul(2).min(REST_US_MAX),
            FULL.. => {
                self.slice_bytes = (self.slice_bytes / 2).max(SLICE_BYTES_MIN);
                took_us.saturating_mul(8).min(REST_US_MAX)
            }
        }
    }
}

/// Below three quarters of what calls may take there is room: what they usually take is two thirds.
const CALM: u32 = 750;
const FULL: u32 = 1_000;
const SLICE_BYTES_START: usize = 64 << 10;
const SLICE_BYTES_MIN: usize = 16 << 10;
const SLICE_BYTES_MAX: usize = 512 << 10;
const REST_US_MAX: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_shrink_as_clients_wait_and_grow_again() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            assert_eq!(pace.after(1_000, FULL + 1), 8_000);
        }
        assert_eq!(pace.slice_bytes(), SLICE_BYTES_MIN);
        assert_eq!(pace.after(1_000, CALM), 2_000);
        assert_eq!(pace.slice_bytes(), SLICE_BYTES_MIN, "near enough");
        for _ in 0..60 {
            assert_eq!(pace.after(1_000, 100), 500);
        }
        assert_eq!(pace.slice_bytes(), SLICE_BYTES_MAX);
        assert_eq!(pace.after(1_000, 0), 0, "nobody to wait for");
        assert_eq!(pace.after(u64::MAX, u32::MAX), REST_US_MAX);
    }
}
