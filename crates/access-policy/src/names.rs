//! Names as policies write them: SQL identifiers, `schema.*`, prefixes with `*`.

use std::fmt;

/// Bytes an identifier may have (`NAMEDATALEN` - 1).
const IDENTIFIER_MAX: usize = 63;

/// A relation by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Relation.
    pub name: String,
}

impl TableName {
    /// For SQL that a server reads: both parts in quotes.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", always_quoted(&self.schema), always_quoted(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// A column by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnName {
    /// Its relation.
    pub table: TableName,
    /// Its own name.
    pub column: String,
}

impl fmt::Display for ColumnName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.table, quoted(&self.column))
    }
}

/// One relation, or every relation of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TablePattern {
    /// `schema.name`
    One(TableName),
    /// `schema.*`
    Schema(String),
}

impl TablePattern {
    /// It speaks of that relation.
    pub fn matches(&self, schema: &str, name: &str) -> bool {
        match self {
            Self::One(table) => table.schema == schema && table.name == name,
            Self::Schema(pattern) => pattern == schema,
        }
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(table) => table.fmt(formatter),
            Self::Schema(schema) => write!(formatter, "{}.*", quoted(schema)),
        }
    }
}

/// A text, or every text that begins with it (`pii.*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix {
    text: String,
    open: bool,
}

impl Prefix {
    /// Reads `name` or `begin*`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (stem, open) = match text.strip_suffix('*') {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        if stem.contains('*') {
            return Err("`*` may stand at the end only".to_owned());
        }
        if stem.is_empty() && !open {
            return Err("must not be empty".to_owned());
        }
        if stem
            .chars()
            .any(|character| character.is_whitespace() || character.is_control())
        {
            return Err("must not hold blanks".to_owned());
        }
        Ok(Self {
            text: stem.to_owned(),
            open,
        })
    }

    /// It speaks of that text.
    pub fn matches(&self, text: &str) -> bool {
        if self.open {
            text.starts_with(&self.text)
        } else {
            text == self.text
        }
    }
}

/// Reads `schema.table` or `schema.*`.
///
/// # Errors
/// What is wrong with it, and how it is written.
pub fn table_pattern(text: &str) -> Result<TablePattern, String> {
    if let Some(stem) = text.strip_suffix(".*") {
        let mut parts = identifiers(stem)?;
        return match (parts.pop(), parts.is_empty()) {
            (Some(schema), true) => Ok(TablePattern::Schema(schema)),
            _ => Err("`*` stands for every relation of a schema: write schema.*".to_owned()),
        };
    }
    table_name(text).map(TablePattern::One)
}

/// Reads `schema.table`.
///
/// # Errors
/// What is wrong with it, and how it is written.
pub fn table_name(text: &str) -> Result<TableName, String> {
    let mut parts = identifiers(text)?.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(schema), Some(name), None) => Ok(TableName { schema, name }),
        (Some(name), None, None) => Err(format!(
            "names no schema; write schema.{}, for example public.{}",
            quoted(&name),
            quoted(&name)
        )),
        _ => Err("has too many parts; a table is written schema.table".to_owned()),
    }
}

/// Reads `schema.table.column`.
///
/// # Errors
/// What is wrong with it, and how it is written.
pub fn column_name(text: &str) -> Result<ColumnName, String> {
    if text.ends_with('*') {
        return Err("`*` does not stand for columns; name each: schema.table.column".to_owned());
    }
    let mut parts = identifiers(text)?.into_iter();
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(schema), Some(name), Some(column), None) => Ok(ColumnName {
            table: TableName { schema, name },
            column,
        }),
        (_, _, None, _) => Err("has too few parts; a column is written schema.table.column".to_owned()),
        _ => Err("has too many parts; a column is written schema.table.column".to_owned()),
    }
}

/// The identifiers of a dotted name, unquoted ones in lower case as the server does.
pub(crate) fn identifiers(text: &str) -> Result<Vec<String>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = identifier(rest)?;
        if part.len() > IDENTIFIER_MAX {
            return Err(format!(
                "has an identifier of {} bytes; PostgreSQL has at most {IDENTIFIER_MAX}",
                part.len()
            ));
        }
        parts.push(part);
        if after.is_empty() {
            return Ok(parts);
        }
        rest = after
            .strip_prefix('.')
            .ok_or_else(|| format!("has {after:?} where a dot or the end is expected"))?;
    }
}

fn identifier(text: &str) -> Result<(String, &str), String> {
    if let Some(inner) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = inner;
        loop {
            let cut = rest.find('"').ok_or("has a quote that does not end")?;
            let (before, after) = rest.split_at(cut);
            name.push_str(before);
            rest = after.strip_prefix('"').unwrap_or_default();
            match rest.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None if name.is_empty() => return Err("has an empty name in quotes".to_owned()),
                None => return Ok((name, rest)),
            }
        }
    }
    let end = text
        .char_indices()
        .find(|(at, character)| {
            let letter = character.is_ascii_alphabetic() || *character == '_' || !character.is_ascii();
            let inner = character.is_ascii_digit() || *character == '$';
            !(letter || (*at > 0 && inner))
        })
        .map_or(text.len(), |(at, _)| at);
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return Err(match text.chars().next() {
            None => "ends where a name is expected".to_owned(),
            Some(character) => {
                format!(
                    "has {character:?} where a name is expected; a name with such characters needs \"quotes\""
                )
            }
        });
    }
    // The server lowers ASCII letters only in multi-byte encodings.
    Ok((name.to_ascii_lowercase(), rest))
}

/// An identifier as SQL text, with quotes where it needs them (keywords keep none: this is for people).
pub(crate) fn quoted(name: &str) -> String {
    let plain = name.chars().enumerate().all(|(at, letter)| {
        letter == '_' || letter.is_ascii_lowercase() || (at > 0 && letter.is_ascii_digit())
    });
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        always_quoted(name)
    }
}

/// An identifier in quotes, for SQL that a server reads.
pub(crate) fn always_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
