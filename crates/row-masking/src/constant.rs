//! Is a policy's constant a value of the column's type? Checked when the policy is bound, so that no statement meets
//! it first. Only forms that mean the same in every session (DateStyle, TimeZone, locale) are taken. Labels of enums,
//! elements of arrays, fields of composites and types of extensions are not known here: a wrong one raises when the
//! statement is planned, which shows nothing.

use crate::{ColumnType, TypeClass};

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
const JSONB_DEPTH_MAX: usize = 100;

/// `Err` says what is wrong, as the end of "is not a T: …".
pub(crate) fn check(value: &str, column_type: &ColumnType) -> Result<(), &'static str> {
    match column_type.class {
        TypeClass::Text => Ok(()),
        TypeClass::Varchar | TypeClass::Bpchar => character_length(value, column_type.modifier),
        TypeClass::Integer => integer(value, column_type.base_oid),
        TypeClass::Number => number(value, column_type),
        TypeClass::Boolean => match value {
            "true" | "false" | "t" | "f" => Ok(()),
            _ => Err("write true or false"),
        },
        TypeClass::Date => date(value),
        TypeClass::Timestamp => timestamp(value, Zone::Absent),
        TypeClass::TimestampTz => timestamp(value, Zone::Needed),
        TypeClass::Uuid => uuid(value),
        TypeClass::Bytea => bytea(value),
        TypeClass::Json => json(value),
        TypeClass::Inet => inet(value),
        TypeClass::Enum | TypeClass::Array | TypeClass::Range | TypeClass::Composite | TypeClass::Other => {
            Ok(())
        }
    }
}

fn character_length(value: &str, modifier: i32) -> Result<(), &'static str> {
    match usize::try_from(modifier.saturating_sub(4)) {
        Ok(max) if value.chars().count() > max => Err("it is too long"),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn integer(value: &str, base_oid: u32) -> Result<(), &'static str> {
    let fits = match base_oid {
        INT2 => value.parse::<i16>().is_ok(),
        INT4 => value.parse::<i32>().is_ok(),
        INT8 => value.parse::<i64>().is_ok(),
        _ => value.parse::<u32>().is_ok_and(|number| number <= i16::MAX as u32),
    };
    if fits {
        Ok(())
    } else {
        Err("write an integer that fits")
    }
}

fn number(value: &str, column_type: &ColumnType) -> Result<(), &'static str> {
    let plain = value.strip_prefix(['+', '-']).unwrap_or(value);
    let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || plain.len() > 300 {
        return Err("write it with digits and a decimal point");
    }
    match column_type.base_oid {
        NUMERIC => {
            let Ok(modifier) = u32::try_from(column_type.modifier.saturating_sub(4)) else {
                return Ok(());
            };
            let precision = (modifier >> 16) & 0xffff;
            // Eleven bits, signed since PostgreSQL 15.
            let scale = i64::from(((modifier & 0x7ff) ^ 1024) as i32 - 1024);
            let whole_digits = whole.trim_start_matches('0').len() as i64;
            let fraction_digits = fraction.trim_end_matches('0').len() as i64;
            if scale < 0 && whole_digits > 0 {
                return Err("only 0 is taken for a negative scale");
            }
            // numeric(2,4) holds 0.00nn: the leading zeros of the fraction are no digits of the value.
            let leading = i64::from(whole_digits == 0)
                * (fraction.len() - fraction.trim_start_matches('0').len()) as i64;
            let significant_fits = if whole_digits > 0 {
                whole_digits <= i64::from(precision) - scale
            } else {
                fraction_digits == 0 || leading >= scale - i64::from(precision)
            };
            if significant_fits && fraction_digits <= scale.max(0) {
                Ok(())
            } else {
                Err("it has more digits than the type")
            }
        }
        FLOAT4 => match value.parse::<f32>() {
            Ok(parsed) if parsed.is_finite() && (parsed != 0.0 || is_zero(plain)) => Ok(()),
            Ok(_) | Err(_) => Err("it is out of range"),
        },
        FLOAT8 => match value.parse::<f64>() {
            Ok(parsed) if parsed.is_finite() && (parsed != 0.0 || is_zero(plain)) => Ok(()),
            Ok(_) | Err(_) => Err("it is out of range"),
        },
        // money reads its text by the server's locale.
        _ if fraction.is_empty() && whole.len() <= 15 => Ok(()),
        _ => Err("write a whole number of at most 15 digits"),
    }
}

fn is_zero(plain: &str) -> bool {
    plain.bytes().all(|byte| matches!(byte, b'0' | b'.'))
}

fn date(value: &str) -> Result<(), &'static str> {
    const WRITE: &str = "write YYYY-MM-DD";
    let mut parts = value.split('-');
    let (Some(year), Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(WRITE);
    };
    let year = fixed_digits(year, 4).filter(|year| *year >= 1).ok_or(WRITE)?;
    let month = fixed_digits(month, 2).ok_or(WRITE)?;
    let day = fixed_digits(day, 2).ok_or(WRITE)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return Err("there is no such month"),
    };
    if (1..=days).contains(&day) {
        Ok(())
    } else {
        Err("there is no such day")
    }
}

#[derive(Clone, Copy)]
enum Zone {
    Absent,
    Needed,
}

fn timestamp(value: &str, zone: Zone) -> Result<(), &'static str> {
    let write = match zone {
        Zone::Absent => "write YYYY-MM-DD HH:MM:SS",
        Zone::Needed => "write YYYY-MM-DD HH:MM:SS+00",
    };
    let (day, time) = value.split_once([' ', 'T']).ok_or(write)?;
    date(day)?;
    let clock = match zone {
        Zone::Absent => time,
        Zone::Needed => match time.strip_suffix('Z') {
            Some(clock) => clock,
            None => {
                let (clock, offset) = time.split_once(['+', '-']).ok_or(write)?;
                let (hours, minutes) = offset.split_once(':').unwrap_or((offset, "00"));
                fixed_digits(hours, 2).filter(|hours| *hours <= 14).ok_or(write)?;
                fixed_digits(minutes, 2)
                    .filter(|minutes| *minutes <= 59)
                    .ok_or(write)?;
                clock
            }
        },
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(write);
    }
    let mut parts = clock.split(':');
    let (Some(hour), Some(minute), Some(second), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(write);
    };
    fixed_digits(hour, 2).filter(|hour| *hour <= 23).ok_or(write)?;
    fixed_digits(minute, 2)
        .filter(|minute| *minute <= 59)
        .ok_or(write)?;
    fixed_digits(second, 2)
        .filter(|second| *second <= 59)
        .ok_or(write)?;
    Ok(())
}

fn fixed_digits(text: &str, count: usize) -> Option<u32> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn uuid(value: &str) -> Result<(), &'static str> {
    crate::token::uuid_bytes(value.as_bytes())
        .map(|_| ())
        .ok_or("write xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
}

fn bytea(value: &str) -> Result<(), &'static str> {
    match value.strip_prefix("\\x").map(hex::decode) {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err("write \\x and pairs of hexadecimal digits"),
    }
}

/// Stricter than the server: what json takes and jsonb does not (`\u0000`, half surrogates, huge numbers) is no.
fn json(value: &str) -> Result<(), &'static str> {
    let depth = value.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if depth > JSONB_DEPTH_MAX || value.contains("\\u0000") {
        return Err("it is too deep or holds \\u0000");
    }
    serde_json::from_str::<serde_json::Value>(value)
        .map(|_| ())
        .map_err(|_| "it is no JSON text")
}

fn inet(value: &str) -> Result<(), &'static str> {
    value
        .parse::<std::net::IpAddr>()
        .map(|_| ())
        .map_err(|_| "write an address without a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(class: TypeClass, oid: u32, modifier: i32) -> ColumnType {
        ColumnType {
            oid,
            base_oid: oid,
            modifier,
            sql: "t".into(),
            class,
            collation: None,
        }
    }

    /// Class, OID, modifier, values that fit, values that do not.
    type Case = (
        TypeClass,
        u32,
        i32,
        &'static [&'static str],
        &'static [&'static str],
    );

    #[test]
    fn values_that_fit_are_taken_and_others_are_not() {
        let numeric = |precision: i32, scale: i32| (precision << 16 | (scale & 0x7ff)) + 4;
        let cases: &[Case] = &[
            (TypeClass::Text, 25, -1, &["", "a'b", "{}"], &[]),
            (TypeClass::Varchar, 1043, 7, &["", "äöü"], &["abcd"]),
            (TypeClass::Bpchar, 1042, 7, &["abc"], &["abcd"]),
            (
                TypeClass::Integer,
                21,
                -1,
                &["0", "-32768"],
                &["32768", "", "1.0", "x"],
            ),
            (TypeClass::Integer, 23, -1, &["2147483647"], &["2147483648"]),
            (
                TypeClass::Integer,
                20,
                -1,
                &["9223372036854775807"],
                &["9223372036854775808"],
            ),
            (
                TypeClass::Number,
                1700,
                -1,
                &["0", "-1.5", "12345678901234567890"],
                &["", "1e5", "NaN", "1,5", "."],
            ),
            (
                TypeClass::Number,
                1700,
                numeric(5, 2),
                &["123.45", "0", "000123.4500"],
                &["1234", "1.234"],
            ),
            (
                TypeClass::Number,
                1700,
                numeric(2, 4),
                &["0.0012", "0"],
                &["0.1", "0.012", "1"],
            ),
            (TypeClass::Number, 1700, numeric(3, -2), &["0"], &["100"]),
            (
                TypeClass::Number,
                700,
                -1,
                &["0", "0.0", "1.5"],
                &["1e400", "inf"],
            ),
            (TypeClass::Number, 790, -1, &["0", "12"], &["1.5"]),
            (TypeClass::Boolean, 16, -1, &["true", "f"], &["yes?", "", "1"]),
            (
                TypeClass::Date,
                1082,
                -1,
                &["1970-01-01", "2024-02-29"],
                &["2023-02-29", "1.1.1970", "0000-01-01", "2023-13-01"],
            ),
            (
                TypeClass::Timestamp,
                1114,
                -1,
                &["1970-01-01 00:00:00", "1970-01-01T00:00:00.123456"],
                &["1970-01-01", "1970-01-01 24:00:00", "1970-01-01 00:00:00+00"],
            ),
            (
                TypeClass::TimestampTz,
                1184,
                -1,
                &[
                    "1970-01-01 00:00:00+00",
                    "1970-01-01T00:00:00Z",
                    "1970-01-01 00:00:00-05:30",
                ],
                &["1970-01-01 00:00:00", "1970-01-01 00:00:00 UTC"],
            ),
            (
                TypeClass::Uuid,
                2950,
                -1,
                &["00000000-0000-0000-0000-000000000000"],
                &["0", "g0000000-0000-0000-0000-000000000000"],
            ),
            (
                TypeClass::Bytea,
                17,
                -1,
                &["\\x", "\\x00ff"],
                &["00", "\\x0", "\\xzz"],
            ),
            (
                TypeClass::Json,
                3802,
                -1,
                &["\"***\"", "{}", "null"],
                &["***", "\"\\u0000\"", "\"\\ud800\"", ""],
            ),
            (
                TypeClass::Inet,
                869,
                -1,
                &["0.0.0.0", "::"],
                &["0.0.0", "10.0.0.0/8"],
            ),
        ];
        for (class, oid, modifier, good, bad) in cases {
            let column = column(*class, *oid, *modifier);
            for value in *good {
                assert_eq!(check(value, &column), Ok(()), "{class:?} {value:?}");
            }
            for value in *bad {
                assert!(check(value, &column).is_err(), "{class:?} {value:?}");
            }
        }
    }
}
