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
        Self(self.0.iter().zip(&baseline.0).map(|(value, base)| value / base).collect()).spread()
    }

    fn spread(&self) -> Spread {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => 0.0,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        let end = |value: Option<&f64>| value.copied().unwrap_or_default();
        Spread { median, least: end(sorted.first()), most: end(sorted.last()) }
    }
}

/// Where the values of a series lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// The value that `percent` percent of `sorted` do not exceed (nearest rank); 0 of nothing.
pub(super) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
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
        assert_eq!(ratio, Spread { median: 0.9, least: 0.9, most: 0.99 });
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
    }
}
