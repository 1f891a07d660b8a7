//! Medians and ratios over rounds.

/// The middle value; between two, their mean. `None` of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The median of the ratios of rounds that ran next to each other: what the machine did
/// meanwhile hits both.
pub(crate) fn ratio(of: &[Option<f64>], to: &[Option<f64>]) -> Option<f64> {
    let pairs = of.iter().zip(to).filter_map(|(a, b)| Some((*a)? / (*b)?));
    median(pairs)
}

/// The median of the differences of rounds that ran next to each other.
pub(crate) fn difference(of: &[Option<f64>], from: &[Option<f64>]) -> Option<f64> {
    let pairs = of.iter().zip(from).filter_map(|(a, b)| Some((*a)? - (*b)?));
    median(pairs)
}

/// How many times `to` a time is, both beyond that of something else. `None` unless `to` is more
/// than nothing: the ratio to a negative one would be below any limit.
pub(crate) fn multiple(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    let to = to.filter(|to| *to > 0.0)?;
    Some(of? / to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_one_bad_round() {
        assert_eq!(median([3.0, 1.0, 1000.0]), Some(3.0));
        assert_eq!(median([4.0, 2.0]), Some(3.0));
        assert_eq!(median([]), None);
        assert_eq!(median([f64::NAN, 2.0]), Some(2.0));
    }

    #[test]
    fn ratios_pair_the_rounds() {
        // The machine was twice as slow in round two: the ratio does not see it.
        let tollbar = [Some(12.0), Some(24.0), None];
        let yardstick = [Some(10.0), Some(20.0), Some(1.0)];
        assert_eq!(ratio(&tollbar, &yardstick), Some(1.2));
        assert_eq!(difference(&tollbar, &yardstick), Some(3.0));
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(ratio(&[Some(1.0)], &[Some(0.0)]), None);
    }

    #[test]
    fn nothing_is_a_multiple_of_a_time_that_was_saved() {
        assert_eq!(multiple(Some(30.0), Some(20.0)), Some(1.5));
        assert_eq!(multiple(Some(-1.0), Some(20.0)), Some(-0.05));
        for to in [None, Some(0.0), Some(-20.0), Some(f64::NAN)] {
            assert_eq!(multiple(Some(30.0), to), None, "{to:?}");
        }
        assert_eq!(multiple(None, Some(1.0)), None);
    }
}
