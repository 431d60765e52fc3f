//! Medians, percentiles, and ratios that a change of the machine's speed does not touch.

/// One value a round, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Series(Vec<f64>);

impl Series {
    /// Adds the next round's.
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle value; 0 without any.
    pub(super) fn median(&self) -> f64 {
        self.spread().median
    }

    /// Divides each round's value by the baseline's of the same round.
    pub(super) fn relative_to(&self, baseline: &Self) -> Spread {
        self.with(baseline, |value, base| value / base).spread()
    }

    /// What a function makes of each round's value and another's of the same round.
    pub(super) fn with(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| of(*one, *other)).collect())
    }

    /// The largest value of each round; nothing of nothing.
    pub(super) fn best<'a>(mut all: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let first = all.next()?.clone();
        Some(all.fold(first, |best, other| best.with(other, f64::max)))
    }

    fn spread(&self) -> Spread {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        Spread {
            low: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            high: quantile(&sorted, 0.75),
        }
    }
}

/// Where the values of a series lie: half of them are between `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// A quarter is below this.
    pub low: f64,
    /// The middle one.
    pub median: f64,
    /// A quarter is above this.
    pub high: f64,
}

/// The value at this part of the way from the first to the last, between two if need be.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let (Some(last), Some(steps)) = (sorted.last(), sorted.len().checked_sub(1)) else {
        return 0.0;
    };
    let whole = u32::try_from(steps).map_or(f64::MAX, f64::from) * part;
    let mut rest = whole;
    for pair in sorted.windows(2) {
        if rest < 1.0 {
            return pair[0] + (pair[1] - pair[0]) * rest;
        }
        rest -= 1.0;
    }
    *last
}

/// The value that `percent` percent of `sorted` do not exceed (nearest rank); 0 of nothing.
pub(super) fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    per_mille(sorted, percent * 10)
}

/// The value that `part` in a thousand of `sorted` do not exceed (nearest rank); 0 of nothing.
pub(super) fn per_mille<T: Copy + Default>(sorted: &[T], part: usize) -> T {
    let rank = (sorted.len() * part).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series(values.to_vec())
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        for (values, median) in
            [(&[][..], 0.0), (&[3.0], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)]
        {
            assert_eq!(series(values).median(), median, "{values:?}");
        }
    }

    #[test]
    fn a_ratio_compares_values_of_the_same_round() {
        // The machine was half as fast in the second round; both felt it.
        let ratio = series(&[90.0, 45.0, 99.0]).relative_to(&series(&[100.0, 50.0, 100.0]));
        assert_eq!(ratio.median, 0.9);
    }

    #[test]
    fn the_best_is_another_one_in_each_round() {
        let all = [series(&[1.0, 5.0]), series(&[3.0, 2.0])];
        assert_eq!(Series::best(all.iter()).unwrap().0, [3.0, 5.0]);
        assert!(Series::best([].iter()).is_none());
    }

    #[test]
    fn half_of_the_values_are_within_the_spread() {
        let spread = series(&[5.0, 1.0, 4.0, 2.0, 3.0]).spread();
        assert_eq!(spread, Spread { low: 2.0, median: 3.0, high: 4.0 });
        let spread = series(&[4.0, 8.0]).spread();
        assert_eq!(spread, Spread { low: 5.0, median: 6.0, high: 7.0 });
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (values, percent, expected) in [
            (&hundred[..], 50, 50),
            (&hundred, 99, 99),
            (&hundred[..10], 99, 10),
            (&hundred[..1], 50, 1),
            (&[], 50, 0),
        ] {
            assert_eq!(percentile(values, percent), expected, "{percent} of {}", values.len());
        }
        assert_eq!((per_mille(&hundred, 999), per_mille(&hundred, 985)), (100, 99));
    }
}
