//! Small pieces of the tree, and names as the server makes them.

use std::ops::ControlFlow;

use pg_raw_parse::walk::{Recurse, walk_manual};

use super::*;
use crate::postgres::DEPTH_MAX;

/// A relation without anything.
pub(super) fn nothing(oid: Oid) -> Relation {
    Relation {
        oid,
        schema: String::new(),
        name: String::new(),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        columns: Vec::new(),
        primary_key: Vec::new(),
        parents: Vec::new(),
        definition: None,
        security_invoker: false,
        before_row_triggers: false,
        triggers: Vec::new(),
        owned_by: None,
        row_type: 0,
        used_by: Vec::new(),
        cascades: Vec::new(),
        rules: Vec::new(),
        definition_path: SearchPath::default(),
        last_number: 0,
    }
}

/// What stands for the type of a column whose type the parent gives.
pub(super) fn placeholder() -> ColumnType {
    ColumnType {
        oid: 0,
        base_oid: 0,
        modifier: -1,
        sql: String::new(),
        class: row_masking::TypeClass::Other,
        collation: None,
    }
}

/// A column written again in a child: the parent's type stays.
pub(super) fn merge(known: &mut NewColumn, written: NewColumn) {
    known.column.not_null |= written.column.not_null;
    known.primary |= written.primary;
    known.references.extend(written.references);
    if written.column.has_default {
        known.column.has_default = true;
        known.column.default_code = written.column.default_code;
        known.calls = written.calls;
    }
    if written.generated_names.is_some() {
        known.generated_names = written.generated_names;
    }
    if written.sequence != Sequence::No {
        known.sequence = written.sequence;
    }
}

pub(in crate::catalog) fn resolve_type_name(
    view: CatalogView<'_>,
    name: &nodes::TypeName,
) -> Applied<ColumnType> {
    if name.pct_type || name.setof {
        return Err(not_applied("%TYPE or SETOF"));
    }
    let names: Vec<&str> = name.names().iter().filter_map(|part| part.sval()).collect();
    let mut modifiers = Vec::new();
    for modifier in name.typmods() {
        match modifier {
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::Integer(value)) => modifiers.push(value),
                _ => return Err(not_applied("a type modifier that is no number")),
            },
            _ => return Err(not_applied("a type modifier that is no number")),
        }
    }
    let (schema, name_alone) = match names.as_slice() {
        [name] => (None, *name),
        [schema, name] => (Some(*schema), *name),
        _ => return Err(not_applied("a type's name of more than two parts")),
    };
    let array = if name.array_bounds().is_empty() { "" } else { "[]" };
    let found = view.resolve_type(schema, &format!("{name_alone}{array}"), &modifiers);
    found.ok_or_else(|| not_applied(&format!("type `{}` is not known", names.join("."))))
}

/// The type behind `serial` and its kin, which are words of CREATE TABLE and no types.
pub(super) fn serial(name: &nodes::TypeName) -> Option<Oid> {
    let names = name.names();
    let only = names.first().and_then(|part| part.sval());
    match (names.len(), only?) {
        (1, "serial" | "serial4") => Some(23),
        (1, "bigserial" | "serial8") => Some(20),
        (1, "smallserial" | "serial2") => Some(21),
        _ => None,
    }
}

/// Collations that every server has, or that `initdb` takes from its machine.
pub(super) fn is_built_in_collation(name: &str) -> bool {
    matches!(
        name,
        "default"
            | "C"
            | "POSIX"
            | "ucs_basic"
            | "unicode"
            | "pg_c_utf8"
            | "pg_unicode_fast"
            | "C.UTF-8"
            | "C.utf8"
    ) || name.ends_with("-x-icu")
}

/// The name that a primary key gets where none is written.
pub(super) fn default_key_name(table: &str) -> String {
    format!("{}_pkey", cut(table, IDENTIFIER_BYTES_MAX - "_pkey".len()))
}

/// The name of the multirange over a range type.
pub(super) fn multirange_name(range: &str) -> String {
    match range.find("range") {
        Some(place) => {
            let (before, after) = range.split_at(place);
            format!("{before}multi{after}")
        }
        None => format!(
            "{}_multirange",
            cut(range, IDENTIFIER_BYTES_MAX - "_multirange".len())
        ),
    }
}

/// At most that many bytes, whole characters only.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Calls `see` for a node and all below it. A tree deeper than we read anywhere is not applied.
pub(super) fn visit<'n>(node: Node<'n>, see: &mut impl FnMut(Node<'n>)) -> Applied<()> {
    fn level<'n>(node: Node<'n>, depth: usize, see: &mut impl FnMut(Node<'n>)) -> bool {
        if depth > DEPTH_MAX {
            return false;
        }
        see(node);
        let too_deep = walk_manual(node, |child| {
            if level(child, depth + 1, see) {
                ControlFlow::Continue(Recurse::No)
            } else {
                ControlFlow::Break(())
            }
        });
        too_deep.is_none()
    }
    if level(node, 0, see) {
        Ok(())
    } else {
        Err(not_applied(&format!("an expression deeper than {DEPTH_MAX}")))
    }
}

/// The column names that an expression mentions.
pub(super) fn columns_named(expression: Node<'_>) -> Applied<Vec<String>> {
    let mut names = Vec::new();
    visit(expression, &mut |node| {
        if let Node::ColumnRef(reference) = node {
            names.extend(words(reference.fields()).pop());
        }
    })?;
    Ok(names)
}

/// `'s'` or `'s'::regclass`.
pub(super) fn regclass_literal(node: Node<'_>) -> Option<&str> {
    match node {
        Node::A_Const(constant) => match constant.val()? {
            ConstValue::String(text) => Some(text),
            _ => None,
        },
        Node::TypeCast(cast) => match cast.arg() {
            inner @ Node::A_Const(_) => regclass_literal(inner),
            _ => None,
        },
        _ => None,
    }
}

/// The parts of a (perhaps quoted) qualified name within a string.
pub(super) fn split_name(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            c if quoted => part.push(c),
            c => part.push(c.to_ascii_lowercase()),
        }
    }
    parts.push(part);
    parts
}

/// The name that SEQUENCE NAME gives among the options of an identity column.
pub(super) fn written_sequence(options: &NodeList) -> Option<(Option<String>, String)> {
    let mut named = options.iter().filter_map(|option| match option {
        Node::DefElem(option) if option.defname() == Some("sequence_name") => {
            Some(object_names(option.arg()))
        }
        _ => None,
    });
    match named.next()?.as_slice() {
        [name] => Some((None, name.clone())),
        [.., schema, name] => Some((Some(schema.clone()), name.clone())),
        [] => None,
    }
}

pub(super) fn option_value(node: Node<'_>) -> String {
    match node {
        // Without a value an option is on.
        Node::None => "true".to_owned(),
        Node::String(string) => string.sval().unwrap_or_default().to_owned(),
        Node::Boolean(boolean) => boolean.boolval.to_string(),
        Node::Integer(integer) => integer.ival.to_string(),
        Node::TypeName(name) => name
            .names()
            .iter()
            .filter_map(|part| part.sval())
            .collect::<Vec<_>>()
            .join("."),
        _ => String::new(),
    }
}

/// The name of a dropped, renamed or moved object: a list of strings, a string, a type, or a function with arguments.
pub(super) fn object_names(node: Node<'_>) -> Vec<String> {
    match node {
        Node::NodeList(list) => words(list),
        Node::String(string) => vec![string.sval().unwrap_or_default().to_owned()],
        Node::TypeName(name) => name
            .names()
            .iter()
            .filter_map(|part| part.sval())
            .map(str::to_owned)
            .collect(),
        Node::ObjectWithArgs(object) => words(object.objname()),
        _ => Vec::new(),
    }
}

pub(super) fn words(list: &NodeList) -> Vec<String> {
    let word = |node| match node {
        Node::String(string) => string.sval().map(str::to_owned),
        _ => None,
    };
    list.iter().filter_map(word).collect()
}

pub(super) fn strings(list: &pg_raw_parse::list::CastNodeList<nodes::String>) -> Vec<String> {
    list.iter()
        .filter_map(|string| string.sval())
        .map(str::to_owned)
        .collect()
}

pub(super) fn name_of(at: &nodes::RangeVar) -> &str {
    at.relname().unwrap_or_default()
}

pub(super) fn written(at: &nodes::RangeVar) -> String {
    match at.schemaname() {
        Some(schema) => format!("{schema}.{}", name_of(at)),
        None => name_of(at).to_owned(),
    }
}

pub(super) fn deparsed(node: Node<'_>) -> Applied<String> {
    // Printing recurses in the library, without a bound of its own.
    visit(node, &mut |_| {})?;
    let printed = pg_raw_parse::deparse(node).map_err(|e| not_applied(&format!("cannot be printed: {e}")))?;
    Ok(printed.as_str().to_owned())
}

/// An expression printed alone.
pub(super) fn deparsed_expression(node: Node<'_>) -> Applied<String> {
    // So does copying.
    visit(node, &mut |_| {})?;
    let select = pg_raw_parse::make::owned(|mem| {
        let mut select = mem.make_node::<nodes::SelectStmt>();
        let target = mem.make_res_target(None, mem.empty(), mem.make_unique(node));
        select.as_mut().set_target_list(mem.make_list(&[target]));
        select
    });
    let printed = deparsed(Node::SelectStmt(&select))?;
    printed
        .strip_prefix("SELECT ")
        .map(str::to_owned)
        .ok_or_else(|| not_applied("an expression that cannot be printed"))
}

pub(super) fn not_applied(what: &str) -> CatalogError {
    CatalogError::NotApplied(what.to_owned())
}

pub(super) fn already(name: &str) -> CatalogError {
    not_applied(&format!("`{name}` is there already"))
}

/// The kind of a node for messages, without what it holds: the first word of its debug output, which has no bound.
pub(super) fn kind_of(node: Node<'_>) -> String {
    struct FirstWord(String);
    impl std::fmt::Write for FirstWord {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let word = text.split(['(', ' ', '{']).next().unwrap_or_default();
            self.0.push_str(word);
            if word.len() == text.len() && self.0.len() < 64 {
                Ok(())
            } else {
                Err(std::fmt::Error)
            }
        }
    }
    let mut word = FirstWord(String::new());
    // An error only says that enough was written.
    let _ = std::fmt::Write::write_fmt(&mut word, format_args!("{node:?}"));
    word.0
}
