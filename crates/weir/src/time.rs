//! Times as people give and read them.

use anyhow::{Result, bail};
use jiff::Timestamp;

/// `2026-11-25T10:00:00Z`, `2026-11-25`, or how long ago: `90s`, `15m`, `24h`, `7d`, `2w`.
pub(crate) fn parse_us(text: &str, now: Timestamp) -> Result<i64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_microsecond());
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        return Ok(day
            .to_zoned(jiff::tz::TimeZone::UTC)?
            .timestamp()
            .as_microsecond());
    }
    let seconds = text.char_indices().next_back().and_then(|(at, unit)| {
        let count: i64 = text.get(..at)?.parse().ok()?;
        let unit = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        count.checked_mul(unit)?.checked_mul(1_000_000)
    });
    match seconds {
        Some(ago) if ago >= 0 => Ok(now.as_microsecond().saturating_sub(ago)),
        _ => bail!(
            "`{text}` is not a time: give 2026-11-25T10:00:00Z, 2026-11-25, or how long ago (15m, 24h, 7d)"
        ),
    }
}

/// `2026-11-25 10:00:00.123Z`
pub(crate) fn show_us(time_us: i64) -> String {
    match Timestamp::from_microsecond(time_us) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string(),
        Err(_) => time_us.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages() {
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        let us = |text: &str| parse_us(text, now).map(show_us);
        assert_eq!(us("2026-11-25T09:00:00Z").unwrap(), "2026-11-25 09:00:00.000Z");
        assert_eq!(us("2026-11-24").unwrap(), "2026-11-24 00:00:00.000Z");
        assert_eq!(us("90m").unwrap(), "2026-11-25 08:30:00.000Z");
        assert_eq!(us("1w").unwrap(), "2026-11-18 10:00:00.000Z");
        for bad in ["", "x", "-5m", "5y", "10", "99999999999999999w"] {
            assert!(us(bad).is_err(), "{bad}");
        }
    }
}
