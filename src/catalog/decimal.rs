//! Decimal text to integers, without a float on the way.

/// Why a decimal was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not digits with at most one point.
    #[error("not a plain decimal number")]
    NotANumber,
    /// Below zero.
    #[error("a negative number")]
    Negative,
    /// More digits after the point than the unit has.
    #[error("more than {0} digits after the point")]
    TooFine(u32),
    /// Past the largest amount.
    #[error("too large")]
    TooLarge,
}

/// `text` × 10^`places`, exactly. A digit that would be lost is an error.
pub fn exact(text: &str, places: u32) -> Result<u64, DecimalError> {
    let (value, rest) = parse(text, places)?;
    if rest {
        return Err(DecimalError::TooFine(places));
    }
    Ok(value)
}

/// `text` × 10^`places`, rounded up to the next whole number.
pub fn rounded_up(text: &str, places: u32) -> Result<u64, DecimalError> {
    let (value, rest) = parse(text, places)?;
    value.checked_add(u64::from(rest)).ok_or(DecimalError::TooLarge)
}

/// The whole part after scaling, and whether anything but zeros was cut off.
fn parse(text: &str, places: u32) -> Result<(u64, bool), DecimalError> {
    if let Some(rest) = text.strip_prefix('-') {
        return match parse(rest, places) {
            Ok(_) => Err(DecimalError::Negative),
            Err(_) => Err(DecimalError::NotANumber),
        };
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(DecimalError::NotANumber);
    }
    let places = places as usize;
    let (kept, cut) = fraction.split_at(fraction.len().min(places));
    let padding = places - kept.len();
    let value = whole
        .bytes()
        .chain(kept.bytes())
        .chain(std::iter::repeat_n(b'0', padding))
        .try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or(DecimalError::TooLarge)?;
    Ok((value, cut.bytes().any(|b| b != b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_keeps_every_digit_or_refuses() {
        assert_eq!(exact("50", 9), Ok(50_000_000_000));
        assert_eq!(exact("0.000000001", 9), Ok(1));
        assert_eq!(exact("0.1000000000", 9), Ok(100_000_000));
        assert_eq!(exact(".5", 9), Ok(500_000_000));
        assert_eq!(exact("0.0000000001", 9), Err(DecimalError::TooFine(9)));
        assert_eq!(exact("-1", 9), Err(DecimalError::Negative));
        assert_eq!(exact("99999999999999999999", 9), Err(DecimalError::TooLarge));
        for bad in ["", ".", "1e3", "1_000", "1,5", "$5", "0x10", "NaN", "+1", " 1", "1.2.3", "--1"]
        {
            assert_eq!(exact(bad, 9), Err(DecimalError::NotANumber), "{bad}");
        }
    }

    #[test]
    fn rounding_is_up() {
        assert_eq!(rounded_up("0.15", 6), Ok(150_000));
        assert_eq!(rounded_up("0.0000001", 6), Ok(1));
        assert_eq!(rounded_up("0.28000000001", 6), Ok(280_001));
        assert_eq!(rounded_up("18446744073709.551615", 6), Ok(u64::MAX));
        assert_eq!(rounded_up("18446744073709.5516151", 6), Err(DecimalError::TooLarge));
    }
}
