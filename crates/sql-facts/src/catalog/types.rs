//! Types: what the catalog knows of each, and how a type with its modifier is written.

use std::collections::{HashMap, HashSet};

use row_masking::{ColumnType, TypeClass};

use super::Oid;
use super::names::quote_qualified;

/// The first OID that a server gives to an object of a user; below it all is built in.
pub const FIRST_USER_OID: Oid = 16384;

/// What a type is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeKind {
    /// A base type.
    Base {
        /// Its input function is not built in.
        user_code: bool,
    },
    /// A true array.
    Array {
        /// Type of its elements.
        element: Oid,
    },
    /// A domain.
    Domain {
        /// The type it is made over, perhaps a domain too.
        base: Oid,
        /// Modifier of that type.
        modifier: i32,
        /// `typnotnull`
        not_null: bool,
        /// Its CHECK constraints as `pg_get_constraintdef` prints them.
        checks: Vec<String>,
        /// A check calls a function or operator that is not built in.
        user_code: bool,
    },
    /// An enum.
    Enum,
    /// A row type: of a relation, or a free-standing composite type.
    Composite {
        /// The relation that lists its columns.
        relation: Oid,
    },
    /// A range.
    Range {
        /// Type of its bounds.
        subtype: Oid,
        /// It has a canonical function that is not built in.
        user_code: bool,
    },
    /// A multirange.
    Multirange {
        /// Its range type.
        range: Oid,
    },
    /// `any`, `record`, `anyelement`…
    Pseudo,
}

/// One type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeEntry {
    /// `pg_type.oid`
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// `typname`
    pub name: String,
    /// What it is made of.
    pub kind: TypeKind,
    /// `typcategory`
    pub category: char,
    /// `typispreferred`
    pub preferred: bool,
    /// `typcollation`, 0 = not collatable.
    pub collation: Oid,
}

/// Types by OID and by name.
#[derive(Debug, Clone, Default)]
pub struct TypeTable {
    by_oid: HashMap<Oid, TypeEntry>,
    by_name: HashMap<String, HashMap<String, Oid>>,
    arrays: HashMap<Oid, Oid>,
    hidden: HashSet<Oid>,
}

impl TypeTable {
    /// Adds or replaces a type.
    pub fn insert(&mut self, entry: TypeEntry) {
        if let TypeKind::Array { element } = entry.kind {
            self.arrays.insert(element, entry.oid);
        }
        self.remove(entry.oid);
        self.by_name
            .entry(entry.schema.clone())
            .or_default()
            .insert(entry.name.clone(), entry.oid);
        self.by_oid.insert(entry.oid, entry);
    }
    /// Takes a type out.
    pub fn remove(&mut self, oid: Oid) -> Option<TypeEntry> {
        let entry = self.by_oid.remove(&oid)?;
        if let Some(names) = self.by_name.get_mut(&entry.schema)
            && names.get(&entry.name) == Some(&oid)
        {
            names.remove(&entry.name);
        }
        Some(entry)
    }
    /// Takes a type out, and hides the one of that OID in the layer below.
    pub fn hide(&mut self, oid: Oid) {
        self.remove(oid);
        self.hidden.insert(oid);
    }
    /// The type of that OID.
    pub fn get(&self, oid: Oid) -> Option<&TypeEntry> {
        self.by_oid.get(&oid)
    }
    /// The type of that name in that schema.
    pub fn named(&self, schema: &str, name: &str) -> Option<&TypeEntry> {
        self.by_oid.get(self.by_name.get(schema)?.get(name)?)
    }
    /// The array type over that element.
    pub fn array_of(&self, element: Oid) -> Option<Oid> {
        self.arrays.get(&element).copied()
    }
    /// Puts the changes of an upper layer into this one.
    pub(crate) fn absorb(&mut self, upper: TypeTable) {
        for oid in upper.hidden {
            self.remove(oid);
        }
        for entry in upper.by_oid.into_values() {
            self.insert(entry);
        }
    }
    /// All types, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &TypeEntry> {
        self.by_oid.values()
    }
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.by_oid.is_empty() && self.hidden.is_empty()
    }
}

/// The tables of types that count for a look-up, the first one first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypeLayers<'a> {
    pub(crate) upper: Option<&'a TypeTable>,
    pub(crate) lower: &'a TypeTable,
}

impl<'a> TypeLayers<'a> {
    pub(crate) fn get(&self, oid: Oid) -> Option<&'a TypeEntry> {
        match self.upper {
            Some(upper) => upper.get(oid).or_else(|| self.below(upper, self.lower.get(oid))),
            None => self.lower.get(oid),
        }
    }
    pub(crate) fn named(&self, schema: &str, name: &str) -> Option<&'a TypeEntry> {
        match self.upper {
            Some(upper) => upper
                .named(schema, name)
                .or_else(|| self.below(upper, self.lower.named(schema, name))),
            None => self.lower.named(schema, name),
        }
    }
    pub(crate) fn array_of(&self, element: Oid) -> Option<Oid> {
        self.upper
            .and_then(|types| types.array_of(element))
            .or_else(|| self.lower.array_of(element))
    }
    /// What the lower layer says, unless the upper one changed or dropped that type.
    fn below(&self, upper: &TypeTable, found: Option<&'a TypeEntry>) -> Option<&'a TypeEntry> {
        found.filter(|entry| !upper.hidden.contains(&entry.oid) && !upper.by_oid.contains_key(&entry.oid))
    }

    /// The type behind domains, with the modifier that counts there.
    pub(crate) fn base(&self, oid: Oid, modifier: i32) -> Option<(&'a TypeEntry, i32)> {
        let mut entry = self.get(oid)?;
        let mut modifier = modifier;
        // Domains over domains end: the server refuses cycles. The bound is for catalogs that are no server's.
        for _ in 0..100 {
            match &entry.kind {
                TypeKind::Domain {
                    base,
                    modifier: inner,
                    ..
                } => {
                    if *inner != -1 {
                        modifier = *inner;
                    }
                    entry = self.get(*base)?;
                }
                _ => return Some((entry, modifier)),
            }
        }
        None
    }

    /// A column of that type. `collation` is the column's own (schema, name), where it has one that is not
    /// `pg_catalog."default"`; `written` is what `format_type` says of a user type with a modifier.
    pub(crate) fn column_type(
        &self,
        oid: Oid,
        modifier: i32,
        collation: Option<(&str, &str)>,
        written: Option<&str>,
    ) -> Option<ColumnType> {
        let (base, modifier) = self.base(oid, modifier)?;
        let sql = self.spell(base, modifier, written)?;
        let default = default_collation(base);
        let collation = match collation {
            Some(own) if Some(own) == default => None,
            Some(own) => Some(quote_qualified(own.0, own.1)),
            None => default.map(|_| "pg_catalog.\"default\"".to_owned()),
        };
        Some(ColumnType {
            oid,
            base_oid: base.oid,
            modifier,
            sql,
            class: self.class(base),
            collation,
        })
    }

    fn spell(&self, entry: &TypeEntry, modifier: i32, written: Option<&str>) -> Option<String> {
        if let TypeKind::Array { element } = entry.kind {
            let element = self.get(element)?;
            let written = written.map(|text| text.strip_suffix("[]").unwrap_or(text));
            return Some(format!("{}[]", self.spell(element, modifier, written)?));
        }
        let plain = quote_qualified(&entry.schema, &entry.name);
        if modifier == -1 {
            return Some(plain);
        }
        if entry.oid >= FIRST_USER_OID {
            let written = written?;
            let open = written.rfind('(')?;
            return Some(format!("{plain}{}", written.get(open..)?));
        }
        spell_modifier(entry.oid, modifier).map(|spelled| match spelled {
            Spelled::Suffix(suffix) => format!("{plain}{suffix}"),
            Spelled::Whole(whole) => whole,
        })
    }

    fn class(&self, entry: &TypeEntry) -> TypeClass {
        match entry.kind {
            TypeKind::Array { .. } => TypeClass::Array,
            TypeKind::Enum => TypeClass::Enum,
            TypeKind::Composite { .. } => TypeClass::Composite,
            TypeKind::Range { .. } | TypeKind::Multirange { .. } => TypeClass::Range,
            TypeKind::Domain { .. } | TypeKind::Pseudo => TypeClass::Other,
            TypeKind::Base { .. } => match entry.oid {
                25 => TypeClass::Text,
                1043 => TypeClass::Varchar,
                1042 => TypeClass::Bpchar,
                20 | 21 | 23 => TypeClass::Integer,
                700 | 701 | 790 | 1700 => TypeClass::Number,
                16 => TypeClass::Boolean,
                1082 => TypeClass::Date,
                1114 => TypeClass::Timestamp,
                1184 => TypeClass::TimestampTz,
                2950 => TypeClass::Uuid,
                17 => TypeClass::Bytea,
                114 | 3802 => TypeClass::Json,
                650 | 869 => TypeClass::Inet,
                _ => TypeClass::Other,
            },
        }
    }
}

/// The collation a type has by itself, where that is not `pg_catalog."default"`: "C" for `name` and its domains.
pub(crate) fn default_collation(entry: &TypeEntry) -> Option<(&'static str, &'static str)> {
    const C_COLLATION: Oid = 950;
    (entry.collation == C_COLLATION).then_some(("pg_catalog", "C"))
}

enum Spelled {
    Suffix(String),
    Whole(String),
}

/// How a built-in type writes its modifier (the `typmodout` functions), `None` where it has none.
fn spell_modifier(oid: Oid, modifier: i32) -> Option<Spelled> {
    let suffix = |text: String| Some(Spelled::Suffix(text));
    match oid {
        // bpchar, varchar: length plus the header of a varlena.
        1042 | 1043 => suffix(format!("({})", modifier.checked_sub(4)?)),
        // numeric: precision and a signed scale of 11 bits.
        1700 => {
            let packed = modifier.checked_sub(4)?;
            let scale = ((packed & 0x7ff) ^ 1024) - 1024;
            suffix(format!("({},{scale})", (packed >> 16) & 0xffff))
        }
        // bit, varbit, time, timetz, timestamp, timestamptz.
        1560 | 1562 | 1083 | 1266 | 1114 | 1184 => suffix(format!("({modifier})")),
        // interval: only the keyword form takes fields or a precision.
        1186 => {
            let precision = modifier & 0xffff;
            let fields = interval_fields((modifier >> 16) & 0x7fff)?;
            let precision = if precision == 0xffff {
                String::new()
            } else {
                format!("({precision})")
            };
            Some(Spelled::Whole(format!("interval{fields}{precision}")))
        }
        _ => None,
    }
}

const FULL_RANGE: i32 = 0x7fff;
const YEAR: i32 = 1 << 2;
const MONTH: i32 = 1 << 1;
const DAY: i32 = 1 << 3;
const HOUR: i32 = 1 << 10;
const MINUTE: i32 = 1 << 11;
const SECOND: i32 = 1 << 12;

fn interval_fields(mask: i32) -> Option<&'static str> {
    const DAY_HOUR: i32 = DAY | HOUR;
    const DAY_MINUTE: i32 = DAY | HOUR | MINUTE;
    const DAY_SECOND: i32 = DAY | HOUR | MINUTE | SECOND;
    const HOUR_MINUTE: i32 = HOUR | MINUTE;
    const HOUR_SECOND: i32 = HOUR | MINUTE | SECOND;
    const MINUTE_SECOND: i32 = MINUTE | SECOND;
    const YEAR_MONTH: i32 = YEAR | MONTH;
    Some(match mask {
        FULL_RANGE => "",
        YEAR => " year",
        MONTH => " month",
        DAY => " day",
        HOUR => " hour",
        MINUTE => " minute",
        SECOND => " second",
        YEAR_MONTH => " year to month",
        DAY_HOUR => " day to hour",
        DAY_MINUTE => " day to minute",
        DAY_SECOND => " day to second",
        HOUR_MINUTE => " hour to minute",
        HOUR_SECOND => " hour to second",
        MINUTE_SECOND => " minute to second",
        _ => return None,
    })
}

/// `typmod` of a built-in type from the modifiers that the grammar gives (the `typmodin` functions). `None` where
/// the type takes no such modifiers, or they are out of its range.
pub(crate) fn modifier_from(oid: Oid, modifiers: &[i32]) -> Option<i32> {
    match (oid, modifiers) {
        (_, []) => Some(-1),
        (1042 | 1043, [length]) if (1..=10_485_760).contains(length) => Some(length + 4),
        (1700, [precision]) if (1..=1000).contains(precision) => Some((precision << 16) + 4),
        (1700, [precision, scale]) if (1..=1000).contains(precision) && (-1000..=1000).contains(scale) => {
            Some(((precision << 16) | (scale & 0x7ff)) + 4)
        }
        (1560 | 1562, [length]) if *length >= 1 => Some(*length),
        // A precision above 6 is cut to 6, with a warning.
        (1083 | 1266 | 1114 | 1184, [precision]) if *precision >= 0 => Some((*precision).min(6)),
        (1186, [mask]) => {
            interval_fields(*mask)?;
            Some(if *mask == FULL_RANGE {
                -1
            } else {
                (mask << 16) | 0xffff
            })
        }
        (1186, [mask, precision]) if *precision >= 0 => {
            interval_fields(*mask)?;
            Some((mask << 16) | (*precision).min(6))
        }
        _ => None,
    }
}
