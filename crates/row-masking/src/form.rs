//! The table: (mask, column type) → how it is made.
//!
//! What every SQL form keeps to, because PostgreSQL was seen to do otherwise when one of them is missing:
//! - It never raises, prints or changes anything, for any value: it may run on rows that a filter hides.
//! - Functions, operators and types are schema-qualified: a temporary table called `text` is a type called `text`.
//! - Same base type, modifier and collation as the column. A CASE loses the modifier, so the cast stands outside; a
//!   constant has the default collation, so COLLATE stands outside. A domain becomes its base type, because a cast
//!   to a NOT NULL domain raises on NULL.
//! - `OPERATOR(…)` binds differently from the bare operator, so every operand has parentheses.
//! - NULL stays NULL.

use crate::constant;
use crate::mask::{DateUnit, Mask};
use crate::token::{TokenShape, WireMask};
use crate::{ColumnType, TypeClass};

/// An expression that stands for a column in the governed text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SqlMask {
    /// SQL with `{}` where the (qualified, quoted) column stands. `{}` stands nowhere else: constants that hold one
    /// are written with an escape.
    pub template: String,
}

impl SqlMask {
    /// The expression for a column, to be used inside a derived table. `column` is qualified and quoted.
    pub fn expression(&self, column: &str) -> String {
        self.template.replace("{}", column)
    }

    /// The expression for use right in a client's expression (write targets). An explicit COLLATE clashes there with
    /// one of the client's (42P21); out of a sub-select it is implicit.
    pub fn expression_in_place(&self, column: &str, column_type: &ColumnType) -> String {
        let expression = self.expression(column);
        match column_type.collation {
            Some(_) => format!("(SELECT {expression})"),
            None => expression,
        }
    }
}

/// How a mask is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaskForm {
    /// In the governed text.
    Sql(SqlMask),
    /// On the wire.
    Wire(WireMask),
}

/// Why a mask does not exist for a type. A policy that asks for it is refused with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// No form for this pair.
    #[error("mask {mask} does not exist for type {sql_type}: {mend}")]
    WrongType {
        /// [`Mask::name`].
        mask: &'static str,
        /// [`ColumnType::sql`].
        sql_type: String,
        /// What would work.
        mend: &'static str,
    },
    /// The token would be too short to be told from a guess.
    #[error("mask Hash does not exist for type {sql_type}: a token needs 16 characters or more")]
    TokenTooShort {
        /// [`ColumnType::sql`].
        sql_type: String,
    },
    /// PostgreSQL's text cannot hold NUL.
    #[error("the value of a Constant mask holds a NUL character")]
    ConstantHoldsNul,
    /// The constant is not a value of the column's type.
    #[error("the value of a Constant mask is not a {sql_type}: {reason}")]
    ConstantDoesNotFit {
        /// [`ColumnType::sql`].
        sql_type: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// More characters than a value can have.
    #[error("a Partial mask keeps at most {max} characters", max = KEEP_MAX)]
    KeepsTooMuch,
}

/// Most characters that Partial keeps on both sides together.
const KEEP_MAX: u32 = 1_000_000;

/// How `mask` is made for a column of this type.
///
/// # Errors
/// [`MaskError`] where the pair does not exist, with what would.
pub fn form(mask: &Mask, column_type: &ColumnType) -> Result<MaskForm, MaskError> {
    let wrong = |mend| {
        Err(MaskError::WrongType {
            mask: mask.name(),
            sql_type: column_type.sql.clone(),
            mend,
        })
    };
    match mask {
        Mask::Null => Ok(sql(typed("NULL", column_type))),
        Mask::Constant { value } => constant_form(value, column_type),
        Mask::Partial {
            keep_first,
            keep_last,
        } => match column_type.class {
            TypeClass::Text | TypeClass::Varchar | TypeClass::Bpchar => {
                let kept = keep_first
                    .checked_add(*keep_last)
                    .filter(|kept| *kept <= KEEP_MAX);
                let kept = kept.ok_or(MaskError::KeepsTooMuch)?;
                Ok(sql(typed(&partial(*keep_first, *keep_last, kept), column_type)))
            }
            TypeClass::Inet => Ok(sql(typed(INET_NETWORK, column_type))),
            TypeClass::Integer
            | TypeClass::Number
            | TypeClass::Boolean
            | TypeClass::Date
            | TypeClass::Timestamp
            | TypeClass::TimestampTz
            | TypeClass::Uuid
            | TypeClass::Bytea
            | TypeClass::Json
            | TypeClass::Enum
            | TypeClass::Array
            | TypeClass::Range
            | TypeClass::Composite
            | TypeClass::Other => {
                wrong("it works on text, varchar, bpchar, inet and cidr; use Null or Constant")
            }
        },
        Mask::Email => match column_type.class {
            TypeClass::Text | TypeClass::Varchar | TypeClass::Bpchar => Ok(sql(typed(EMAIL, column_type))),
            TypeClass::Integer
            | TypeClass::Number
            | TypeClass::Boolean
            | TypeClass::Date
            | TypeClass::Timestamp
            | TypeClass::TimestampTz
            | TypeClass::Uuid
            | TypeClass::Bytea
            | TypeClass::Json
            | TypeClass::Inet
            | TypeClass::Enum
            | TypeClass::Array
            | TypeClass::Range
            | TypeClass::Composite
            | TypeClass::Other => wrong("it works on text, varchar and bpchar; use Null or Constant"),
        },
        Mask::DateTrunc { unit } => match (column_type.class, unit) {
            (TypeClass::Date, DateUnit::Year) => Ok(sql(typed(&date_trunc_date("doy"), column_type))),
            (TypeClass::Date, DateUnit::Month) => Ok(sql(typed(&date_trunc_date("day"), column_type))),
            (TypeClass::Date, DateUnit::Day) => {
                wrong("a date has no time of day to take away; use unit Month or Year")
            }
            (TypeClass::Timestamp, unit) => Ok(sql(typed(&date_trunc_timestamp(*unit), column_type))),
            (TypeClass::TimestampTz, unit) => Ok(sql(typed(&date_trunc_timestamptz(*unit), column_type))),
            (
                TypeClass::Text
                | TypeClass::Varchar
                | TypeClass::Bpchar
                | TypeClass::Integer
                | TypeClass::Number
                | TypeClass::Boolean
                | TypeClass::Uuid
                | TypeClass::Bytea
                | TypeClass::Json
                | TypeClass::Inet
                | TypeClass::Enum
                | TypeClass::Array
                | TypeClass::Range
                | TypeClass::Composite
                | TypeClass::Other,
                DateUnit::Year | DateUnit::Month | DateUnit::Day,
            ) => wrong("it works on date, timestamp and timestamptz; use Null or Constant"),
        },
        Mask::Hash { key } => match token_shape(column_type)? {
            Some(shape) => Ok(MaskForm::Wire(WireMask::new(key.clone(), shape))),
            None => wrong("it works on text, varchar, bpchar, bytea and uuid; use Null or Constant"),
        },
    }
}

fn sql(template: String) -> MaskForm {
    MaskForm::Sql(SqlMask { template })
}

/// `(expression)::type`, and the column's collation where it is not the type's own.
fn typed(expression: &str, column_type: &ColumnType) -> String {
    let sql_type = &column_type.sql;
    match &column_type.collation {
        Some(collation) => format!("(({expression})::{sql_type} COLLATE {collation})"),
        None => format!("(({expression})::{sql_type})"),
    }
}

fn constant_form(value: &str, column_type: &ColumnType) -> Result<MaskForm, MaskError> {
    if value.contains('\0') {
        return Err(MaskError::ConstantHoldsNul);
    }
    constant::check(value, column_type).map_err(|reason| MaskError::ConstantDoesNotFit {
        sql_type: column_type.sql.clone(),
        reason,
    })?;
    // A row IS NOT NULL only if all its fields are; against a bare NULL the DISTINCT test is a null test of the
    // value itself and looks no operator up.
    let present = match column_type.class {
        TypeClass::Composite => "{} IS DISTINCT FROM NULL",
        TypeClass::Text
        | TypeClass::Varchar
        | TypeClass::Bpchar
        | TypeClass::Integer
        | TypeClass::Number
        | TypeClass::Boolean
        | TypeClass::Date
        | TypeClass::Timestamp
        | TypeClass::TimestampTz
        | TypeClass::Uuid
        | TypeClass::Bytea
        | TypeClass::Json
        | TypeClass::Inet
        | TypeClass::Enum
        | TypeClass::Array
        | TypeClass::Range
        | TypeClass::Other => "{} IS NOT NULL",
    };
    let literal = quoted(value);
    let sql_type = &column_type.sql;
    let expression = format!("CASE WHEN {present} THEN {literal}::{sql_type} END");
    Ok(sql(typed(&expression, column_type)))
}

/// A string literal that means the same with `standard_conforming_strings` on and off, and never holds `{}`.
fn quoted(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if value.contains('\\') || value.contains("{}") {
        format!("E'{}'", doubled.replace('\\', "\\\\").replace("{}", "{\\x7D"))
    } else {
        format!("'{doubled}'")
    }
}

const LENGTH: &str = "pg_catalog.char_length({}::pg_catalog.text)";

fn partial(first: u32, last: u32, kept: u32) -> String {
    let stars = |count: &str| format!("pg_catalog.repeat('*'::pg_catalog.text, {count})");
    let mut shown = stars(&format!("({LENGTH} OPERATOR(pg_catalog.-) {kept})"));
    if first > 0 {
        shown =
            format!("(pg_catalog.\"left\"({{}}::pg_catalog.text, {first}) OPERATOR(pg_catalog.||) {shown})");
    }
    if last > 0 {
        shown =
            format!("({shown} OPERATOR(pg_catalog.||) pg_catalog.\"right\"({{}}::pg_catalog.text, {last}))");
    }
    let all = stars(LENGTH);
    format!("CASE WHEN ({LENGTH} OPERATOR(pg_catalog.>) {kept}) THEN {shown} ELSE {all} END")
}

/// First character and what follows the last `@` (a quoted local part may hold one, too). The searches are made
/// under "C", because under a nondeterministic collation they raise.
const EMAIL: &str = "CASE WHEN {} IS NULL THEN NULL \
    WHEN (pg_catalog.strpos(({}::pg_catalog.text COLLATE pg_catalog.\"C\"), '@'::pg_catalog.text) \
    OPERATOR(pg_catalog.>) 1) \
    THEN ((pg_catalog.\"left\"({}::pg_catalog.text, 1) OPERATOR(pg_catalog.||) '***@'::pg_catalog.text) \
    OPERATOR(pg_catalog.||) pg_catalog.\"right\"({}::pg_catalog.text, \
    (pg_catalog.strpos((pg_catalog.reverse({}::pg_catalog.text) COLLATE pg_catalog.\"C\"), '@'::pg_catalog.text) \
    OPERATOR(pg_catalog.-) 1))) \
    ELSE '***'::pg_catalog.text END";

/// `set_masklen` alone would keep the host part of an inet.
const INET_NETWORK: &str = "pg_catalog.network(pg_catalog.set_masklen({}::pg_catalog.inet, 16))";

/// Days are taken off the date itself: `date_trunc` goes through a timestamp and raises on far dates. Before
/// 4713 BC the first day of the year is outside the calendar.
fn date_trunc_date(field: &str) -> String {
    format!(
        "CASE WHEN (pg_catalog.isfinite({{}}::pg_catalog.date) AND ({{}} OPERATOR(pg_catalog.>=) \
         '4713-01-01 BC'::pg_catalog.date)) THEN ({{}} OPERATOR(pg_catalog.-) \
         (pg_catalog.\"extract\"('{field}'::pg_catalog.text, {{}}::pg_catalog.date)::pg_catalog.int4 \
         OPERATOR(pg_catalog.-) 1)) END"
    )
}

fn date_trunc_timestamp(unit: DateUnit) -> String {
    let unit = unit_text(unit);
    format!(
        "CASE WHEN ({{}} OPERATOR(pg_catalog.>=) '4713-01-01 BC'::pg_catalog.\"timestamp\") THEN \
         pg_catalog.date_trunc('{unit}'::pg_catalog.text, {{}}::pg_catalog.\"timestamp\") END"
    )
}

/// With zones written out: without them result and bound would move with the client's TimeZone.
fn date_trunc_timestamptz(unit: DateUnit) -> String {
    let unit = unit_text(unit);
    format!(
        "CASE WHEN ({{}} OPERATOR(pg_catalog.>=) '4713-01-01 00:00+00 BC'::pg_catalog.timestamptz) THEN \
         pg_catalog.date_trunc('{unit}'::pg_catalog.text, {{}}::pg_catalog.timestamptz, 'UTC'::pg_catalog.text) END"
    )
}

fn unit_text(unit: DateUnit) -> &'static str {
    match unit {
        DateUnit::Year => "year",
        DateUnit::Month => "month",
        DateUnit::Day => "day",
    }
}

fn token_shape(column_type: &ColumnType) -> Result<Option<TokenShape>, MaskError> {
    let length = usize::try_from(column_type.modifier.saturating_sub(4)).ok();
    let bounded = |length: Option<usize>| match length {
        Some(length) if length < TokenShape::HEX_MIN => Err(MaskError::TokenTooShort {
            sql_type: column_type.sql.clone(),
        }),
        Some(_) | None => Ok(length),
    };
    match column_type.class {
        TypeClass::Text => Ok(Some(TokenShape::Hex { length: None })),
        TypeClass::Varchar => Ok(Some(TokenShape::Hex {
            length: bounded(length)?,
        })),
        TypeClass::Bpchar => Ok(Some(TokenShape::PaddedHex {
            length: bounded(length)?,
        })),
        TypeClass::Bytea => Ok(Some(TokenShape::Bytes)),
        TypeClass::Uuid => Ok(Some(TokenShape::Uuid)),
        TypeClass::Integer
        | TypeClass::Number
        | TypeClass::Boolean
        | TypeClass::Date
        | TypeClass::Timestamp
        | TypeClass::TimestampTz
        | TypeClass::Json
        | TypeClass::Inet
        | TypeClass::Enum
        | TypeClass::Array
        | TypeClass::Range
        | TypeClass::Composite
        | TypeClass::Other => Ok(None),
    }
}
