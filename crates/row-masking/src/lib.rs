//! `row-masking`: one table that says for each (mask, column type) its SQL form, its wire form, or why neither; and
//! the writer that turns rows and wire masks into rows that are safe to show.
//!
//! ```text
//!  Mask + ColumnType ──form──► SqlMask   (an expression, put where the table is read)
//!                        │
//!                        ├───► WireMask  (made on the bytes of a value)
//!                        └───► MaskError (why this pair does not exist)
//!
//!  RowPlan + DataRow ──mask_row──► MaskedRow (proof that the row was written through its plan)
//! ```
//!
//! Pure. It knows types and values; it does not know tables, policies or sessions.

mod constant;
mod form;
mod mask;
mod rows;
mod token;

use serde::{Deserialize, Serialize};

pub use form::{MaskError, MaskForm, SqlMask, form};
pub use mask::{DateUnit, HashKey, HashKeyError, Mask, strictest};
pub use rows::{Cell, MaskedRow, ResultFormats, RowError, RowPlan, mask_row};
pub use token::{Format, ValueError, WireMask};

/// A column's type, as masks and governed text need it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnType {
    /// Type OID (of the domain, if it is one).
    pub oid: u32,
    /// Base type OID behind domains (equal to `oid` otherwise).
    pub base_oid: u32,
    /// `atttypmod` (of the base type behind a domain), -1 = none.
    pub modifier: i32,
    /// The base type as it must be written, schema-qualified, with its modifier: `pg_catalog."varchar"(20)`.
    pub sql: String,
    /// What kind of type it is.
    pub class: TypeClass,
    /// Schema-qualified, quoted collation, where it is not the type's default.
    pub collation: Option<String>,
}

/// Type families, as far as masks tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TypeClass {
    /// text
    Text,
    /// varchar(n)
    Varchar,
    /// bpchar(n)
    Bpchar,
    /// int2, int4, int8
    Integer,
    /// numeric, float4, float8, money
    Number,
    /// bool
    Boolean,
    /// date
    Date,
    /// timestamp
    Timestamp,
    /// timestamptz
    TimestampTz,
    /// uuid
    Uuid,
    /// bytea
    Bytea,
    /// json, jsonb
    Json,
    /// inet, cidr
    Inet,
    /// Enum types.
    Enum,
    /// Arrays.
    Array,
    /// Ranges and multiranges.
    Range,
    /// Composite types.
    Composite,
    /// Anything else.
    Other,
}
