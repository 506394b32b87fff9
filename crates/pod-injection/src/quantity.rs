//! Kubernetes quantities, as far as the sidecar's resources need them.

/// The quantity in billionths, so that `100m` and `0.1` are the same; none where it is no quantity.
pub(crate) fn nanos(text: &str) -> Option<i128> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.' && letter != '+' && letter != '-')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let unit: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => NANOS,
        "k" => NANOS * 1_000,
        "M" => NANOS * 1_000_000,
        "G" => NANOS * 1_000_000_000,
        "T" => NANOS * 1_000_000_000_000,
        "P" => NANOS * 1_000_000_000_000_000,
        "E" => NANOS * 1_000_000_000_000_000_000,
        "Ki" => NANOS << 10,
        "Mi" => NANOS << 20,
        "Gi" => NANOS << 30,
        "Ti" => NANOS << 40,
        "Pi" => NANOS << 50,
        "Ei" => NANOS << 60,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            NANOS.checked_mul(10_i128.checked_pow(power)?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let negative = whole.starts_with('-');
    let whole: i128 = match whole {
        "" | "-" | "+" => 0,
        digits => digits.parse().ok()?,
    };
    let mut total = whole.checked_mul(unit)?;
    if !fraction.is_empty() {
        let digits: u64 = fraction.parse().ok()?;
        let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = i128::from(digits).checked_mul(unit)? / scale;
        total = if negative {
            total.checked_sub(part)?
        } else {
            total.checked_add(part)?
        };
    }
    Some(total)
}

/// The quantity in whole units (bytes), rounded down; none where it is none or below zero.
pub(crate) fn whole(text: &str) -> Option<u64> {
    u64::try_from(nanos(text)? / NANOS).ok()
}

const NANOS: i128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_quantity_in_several_spellings_is_one() {
        assert_eq!(nanos("100m"), nanos("0.1"));
        assert_eq!(nanos("1"), nanos("1000m"));
        assert_eq!(nanos("1Gi"), nanos("1073741824"));
        assert_eq!(nanos("1e3"), nanos("1k"));
        assert_eq!(nanos("1.5Gi"), nanos("1536Mi"));
        assert_eq!(nanos("5E"), nanos("5e18"));
        assert_eq!(whole("1Gi"), Some(1 << 30));
        for wrong in ["", "x", "1X", "1..2", "--1", "1e999", "1 Gi", "ü", "0.1234567890"] {
            assert_eq!(nanos(wrong), None, "{wrong}");
        }
        assert_eq!(whole("-1"), None);
    }
}
