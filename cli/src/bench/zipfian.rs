//! Ranks that follow Zipf's law: the k-th most popular of n is drawn in proportion to 1 / k^s.
//!
//! Source: rejection-inversion, Hörmann and Derflinger, "Rejection-inversion to generate variates
//! from monotone discrete distributions" (1996). Needs no table, so that n may be large, and draws
//! one and a bit uniform numbers per rank.

/// Draws ranks from 1 to `n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipfian {
    n: f64,
    exponent: f64,
    /// The integral of the hat up to half a step above the first rank, less the first bar.
    integral_first: f64,
    integral_last: f64,
    /// Below this distance to the rank nothing has to be rejected.
    squeeze: f64,
}

impl Zipfian {
    /// The distribution over `n` ranks. Panics unless `n` is positive and the exponent is positive
    /// and not 1: at exactly 1 the integral has another form.
    pub(crate) fn new(n: u64, exponent: f64) -> Self {
        assert!(n > 0 && exponent > 0.0 && exponent != 1.0, "{n} ranks, exponent {exponent}");
        let n = float(n);
        let mut it = Self { n, exponent, integral_first: 0.0, integral_last: 0.0, squeeze: 0.0 };
        it.integral_first = it.integral(1.5) - 1.0;
        it.integral_last = it.integral(n + 0.5);
        it.squeeze = 2.0 - it.inverse(it.integral(2.5) - it.weight(2.0));
        it
    }

    /// The next rank, from 1. `uniform` gives numbers from 0 to 1, 1 excluded.
    pub(crate) fn rank(&self, mut uniform: impl FnMut() -> f64) -> u64 {
        loop {
            let under = self.integral_last + uniform() * (self.integral_first - self.integral_last);
            let x = self.inverse(under);
            let rank = (x + 0.5).floor().clamp(1.0, self.n);
            let near = rank - x <= self.squeeze;
            if near || under >= self.integral(rank + 0.5) - self.weight(rank) {
                return whole(rank);
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    fn integral(&self, x: f64) -> f64 {
        x.powf(1.0 - self.exponent) / (1.0 - self.exponent)
    }

    fn inverse(&self, area: f64) -> f64 {
        (area * (1.0 - self.exponent)).powf(1.0 / (1.0 - self.exponent))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rank beyond 2^53 is drawn with that precision")]
fn float(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank is whole, and lies between 1 and n"
)]
fn whole(rank: f64) -> u64 {
    rank as u64
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const DRAWS: u32 = 200_000;

    /// The share of each of the first ranks, drawn and exact.
    fn shares(n: u64, exponent: f64, seed: u64) -> Vec<(f64, f64)> {
        let zipfian = Zipfian::new(n, exponent);
        let mut random = StdRng::seed_from_u64(seed);
        let mut counts = vec![0u32; usize::try_from(n).unwrap() + 1];
        for _ in 0..DRAWS {
            let rank = zipfian.rank(|| random.random());
            assert!((1..=n).contains(&rank), "{rank}");
            counts[usize::try_from(rank).unwrap()] += 1;
        }
        let weight = |rank: u64| float(rank).powf(-exponent);
        let all: f64 = (1..=n).map(weight).sum();
        let share = |rank: u64| {
            let drawn = counts[usize::try_from(rank).unwrap()];
            (f64::from(drawn) / f64::from(DRAWS), weight(rank) / all)
        };
        (1..=n.min(8)).map(share).collect()
    }

    #[test]
    fn the_first_ranks_have_their_exact_shares() {
        // The steeper the law, the more there is to reject.
        for (n, exponent) in
            [(1_000, 0.99), (1_000, 1.2), (20, 0.5), (2, 0.99), (1, 0.99), (20, 2.0), (1_000, 3.0)]
        {
            for (rank, (drawn, exact)) in shares(n, exponent, 7).into_iter().enumerate() {
                // Five standard deviations of a share over so many draws.
                let tolerance = 5.0 * (exact * (1.0 - exact) / f64::from(DRAWS)).sqrt() + 1e-9;
                assert!(
                    (drawn - exact).abs() <= tolerance,
                    "n {n}, exponent {exponent}, rank {}: {drawn} instead of {exact}",
                    rank + 1
                );
            }
        }
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(shares(100, 0.99, 1), shares(100, 0.99, 1));
        assert_ne!(shares(100, 0.99, 1), shares(100, 0.99, 2));
    }
}
