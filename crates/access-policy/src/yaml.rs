//! YAML with the place of every value, and the walk that checks it against a schema.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_yaml::Spanned;

/// Deepest nesting of a manifest.
const DEPTH_MAX: usize = 32;
/// Largest manifest in bytes.
const TEXT_MAX: usize = 4 << 20;

/// Line and column, both from 1; 0 = unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Place,
    pub(crate) content: Content,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Integer(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Content {
    fn name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a number",
            Self::Float => "a number with a fraction",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl Node {
    /// The value of a key, if this is a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(entries) => entries
                .iter()
                .find(|(name, _)| matches!(&name.content, Content::Text(text) if text == key))
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// A value that came as JSON, without a place.
    pub(crate) fn from_json(value: &Value) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(*value),
            Value::Number(number) => number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .map_or(Content::Float, Content::Integer),
            Value::String(text) => Content::Text(text.clone()),
            Value::Array(items) => Content::List(items.iter().map(Self::from_json).collect()),
            Value::Object(entries) => Content::Map(
                entries
                    .iter()
                    .map(|(name, value)| {
                        (
                            Self::from_json(&Value::from(name.as_str())),
                            Self::from_json(value),
                        )
                    })
                    .collect(),
            ),
        };
        Self {
            at: Place::default(),
            content,
        }
    }

    /// Its text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self {
            at: place(spanned.referenced),
            content: spanned.value,
        })
    }
}

fn place(location: serde_yaml::Location) -> Place {
    Place {
        line: usize::try_from(location.line()).unwrap_or(0),
        column: usize::try_from(location.column()).unwrap_or(0),
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }
    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }
    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Integer(i128::from(value)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Integer(i128::from(value)))
    }
    fn visit_i128<E>(self, value: i128) -> Result<Content, E> {
        Ok(Content::Integer(value))
    }
    fn visit_u128<E>(self, value: u128) -> Result<Content, E> {
        Ok(Content::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }
    fn visit_f64<E>(self, _value: f64) -> Result<Content, E> {
        Ok(Content::Float)
    }
    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = access.next_element::<Node>()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry::<Node, Node>()? {
            entries.push(entry);
        }
        Ok(Content::Map(entries))
    }
}

/// Reads all documents of a text. Duplicate keys are kept, so that the walk names each.
///
/// # Errors
/// Place and message of the first thing that is not YAML.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, (Place, String)> {
    if text.len() > TEXT_MAX {
        let message = format!("the file has {} bytes, the limit is {TEXT_MAX}", text.len());
        return Err((Place::default(), message));
    }
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! { max_depth: DEPTH_MAX },
        duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::PassThrough,
        merge_keys: serde_yaml::options::MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_yaml::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let at = error.location().map(place).unwrap_or_default();
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().to_owned();
        (at, format!("not YAML that can be read: {message}"))
    })
}

/// What the walk finds: every problem with its place and field, and the place of every field.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// (place, field, message)
    pub(crate) problems: Vec<(Place, String, String)>,
    /// Field path → where its value stands.
    pub(crate) places: BTreeMap<String, Place>,
}

impl Findings {
    /// Adds a problem at a field whose value was walked; the nearest parent's place where it has none of its own.
    pub(crate) fn add(&mut self, field: &str, message: impl Into<String>) {
        let mut path = field;
        let at = loop {
            if let Some(place) = self.places.get(path) {
                break *place;
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = path.get(..cut).unwrap_or_default(),
                None => break self.places.get("").copied().unwrap_or_default(),
            }
        };
        self.problems.push((at, field.to_owned(), message.into()));
    }
}

/// What is to be said of a field that a later version brings.
pub(crate) type NotBuilt<'a> = &'a [(&'a str, &'a str)];

/// Checks a node against a schema (the part of OpenAPI that our definitions use) and returns it as JSON. Whatever is
/// wrong is added to `findings`.
pub(crate) fn check(
    schema: &Value,
    node: &Node,
    path: &str,
    not_built: NotBuilt<'_>,
    findings: &mut Findings,
) -> Value {
    findings.places.insert(path.to_owned(), node.at);
    if matches!(node.content, Content::Null) && schema.get("nullable") == Some(&Value::Bool(true)) {
        findings.add(path, "has no value; give one, or leave the field out");
        return Value::Null;
    }
    let expected = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    match (expected, &node.content) {
        // Not ours to check: what the API server keeps beside a spec.
        ("", _) => Value::Null,
        ("object", Content::Map(entries)) => check_map(schema, entries, path, not_built, findings),
        ("array", Content::List(items)) => {
            bounds(
                schema,
                "minItems",
                "maxItems",
                items.len(),
                "items",
                path,
                findings,
            );
            let item_schema = schema.get("items").unwrap_or(&Value::Null);
            let values = items.iter().enumerate().map(|(index, item)| {
                check(
                    item_schema,
                    item,
                    &format!("{path}[{index}]"),
                    not_built,
                    findings,
                )
            });
            Value::Array(values.collect())
        }
        ("string", Content::Text(text)) => {
            check_text(schema, text, path, findings);
            Value::String(text.clone())
        }
        ("string", Content::Bool(_) | Content::Integer(_) | Content::Float) => {
            let message = format!("must be text, not {}; put it in quotes", node.content.name());
            findings.add(path, message);
            Value::Null
        }
        ("integer", Content::Integer(number)) => check_number(schema, *number, path, findings),
        ("boolean", Content::Bool(value)) => Value::Bool(*value),
        (expected, found) => {
            let expected = match expected {
                "object" => "a map",
                "array" => "a list",
                "string" => "text",
                "integer" => "a whole number",
                "boolean" => "true or false",
                other => other,
            };
            findings.add(path, format!("must be {expected}, not {}", found.name()));
            Value::Null
        }
    }
}

fn check_map(
    schema: &Value,
    entries: &[(Node, Node)],
    path: &str,
    not_built: NotBuilt<'_>,
    findings: &mut Findings,
) -> Value {
    let known = schema.get("properties").and_then(Value::as_object);
    let open = schema.get("additionalProperties");
    let mut values = Map::new();
    for (key, value) in entries {
        let Some(name) = key.text() else {
            findings.problems.push((
                key.at,
                path.to_owned(),
                format!("a field name must be text, not {}", key.content.name()),
            ));
            continue;
        };
        let field = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        };
        if values.contains_key(name) {
            findings
                .problems
                .push((key.at, field, "is given twice; keep one".to_owned()));
            continue;
        }
        if let Some(schema) = known.and_then(|known| known.get(name)).or(open) {
            let checked = check(schema, value, &field, not_built, findings);
            values.insert(name.to_owned(), checked);
            continue;
        }
        let plain = without_indices(&field);
        let message = match not_built.iter().find(|(field, _)| *field == plain) {
            Some((_, what)) => format!("{what} is not in this version; leave the field out"),
            None => unknown(
                "field",
                name,
                known.into_iter().flat_map(Map::keys).map(String::as_str),
            ),
        };
        findings.problems.push((key.at, field, message));
        // Kept, so that a second mention is a duplicate and not two unknown fields.
        values.insert(name.to_owned(), Value::Null);
    }
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !values.contains_key(name) {
            let field = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            let described = known
                .and_then(|known| known.get(name)?.get("description")?.as_str())
                .and_then(|text| text.split_inclusive(['.', ':']).next())
                .map(|text| format!(": {}", text.trim_end_matches(['.', ':'])));
            findings.add(&field, format!("is required{}", described.unwrap_or_default()));
        }
    }
    if let Some(known) = known {
        values.retain(|name, value| known.contains_key(name) && !value.is_null());
    }
    Value::Object(values)
}

fn check_text(schema: &Value, text: &str, path: &str, findings: &mut Findings) {
    if let Some(members) = schema.get("enum").and_then(Value::as_array) {
        if !members.iter().any(|member| member.as_str() == Some(text)) {
            findings.add(
                path,
                unknown("value", text, members.iter().filter_map(Value::as_str)),
            );
        }
        return;
    }
    bounds(
        schema,
        "minLength",
        "maxLength",
        text.chars().count(),
        "characters",
        path,
        findings,
    );
    if text.contains('\0') {
        findings.add(path, "holds a NUL character");
    }
}

fn bounds(
    schema: &Value,
    least: &str,
    most: &str,
    size: usize,
    unit: &str,
    path: &str,
    findings: &mut Findings,
) {
    let limit = |key| {
        schema
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|limit| usize::try_from(limit).ok())
    };
    if limit(least).is_some_and(|least| size < least) {
        findings.add(
            path,
            "must not be empty; fill it, or leave it out with what it belongs to",
        );
    }
    if let Some(most) = limit(most).filter(|most| size > *most) {
        findings.add(
            path,
            format!("has {size} {unit}, the most is {most}; shorten it, or spread it over two rules"),
        );
    }
}

fn check_number(schema: &Value, number: i128, path: &str, findings: &mut Findings) -> Value {
    // Limits are printed as numbers with a fraction; ours are all far below 2^53.
    #[allow(clippy::cast_possible_truncation, reason = "limits are small whole numbers")]
    let limit = |key| schema.get(key).and_then(Value::as_f64).map(|limit| limit as i128);
    let least = limit("minimum").unwrap_or(0);
    let most = limit("maximum").unwrap_or(i128::from(u32::MAX) * 1_000);
    match u64::try_from(number) {
        Ok(value) if number >= least && number <= most => Value::Number(Number::from(value)),
        _ => {
            findings.add(path, format!("is {number}; it must be from {least} to {most}"));
            Value::Null
        }
    }
}

fn without_indices(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for character in path.chars() {
        match character {
            '[' => inside = true,
            ']' => inside = false,
            other if !inside => plain.push(other),
            _ => {}
        }
    }
    plain
}

/// `unknown field "mask"; did you mean "masks"?`
pub(crate) fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|candidate| (distance(name, candidate), *candidate))
        .min();
    let near = |far: usize, candidate: &str| {
        let longer = name.chars().count().max(candidate.chars().count());
        // Who writes `denied` for `deny` has the beginning right.
        let begins = name.chars().take(2).eq(candidate.chars().take(2));
        far * 5 <= 2 * longer || (begins && far * 2 <= longer)
    };
    match nearest {
        Some((far, candidate)) if near(far, candidate) => {
            format!("unknown {what} \"{name}\"; did you mean \"{candidate}\"?")
        }
        _ => format!("unknown {what} \"{name}\"; known are {}", known.join(", ")),
    }
}

/// Edits between two names, letter case aside: a letter more, less or another, or two neighbours exchanged.
fn distance(left: &str, right: &str) -> usize {
    let letters = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
    let (left, right) = (letters(left), letters(right));
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    for (line, from) in left.iter().enumerate() {
        let mut next = vec![line + 1];
        for (place, to) in right.iter().enumerate() {
            let replaced = at(&row, place) + usize::from(from != to);
            let mut best = replaced.min(at(&row, place + 1) + 1).min(at(&next, place) + 1);
            if let (Some(line), Some(place)) = (line.checked_sub(1), place.checked_sub(1))
                && (left.get(line), right.get(place)) == (Some(to), Some(from))
            {
                best = best.min(at(&above, place) + 1);
            }
            next.push(best);
        }
        above = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
