//! The C tree → the relational form. Every node kind is either lowered with all its fields or refused by name; the
//! catalog is not looked at.

mod define;
mod expr;
mod query;
mod utility;

use std::fmt::{self, Write as _};

use pg_raw_parse::Node;
use pg_raw_parse::list::{CastNodeList, NodeList};
use pg_raw_parse::nodes;

use super::parse::DEPTH_MAX;
use crate::facts::Unreadable;
use crate::form::{Alias, Expr, ExprKind, Name, RelationRef, Statement, Step, TypeRef};

type Lowered<T> = Result<T, Unreadable>;

/// Lowers one statement; also gives the highest parameter number it mentions.
pub(crate) fn lower(node: Node<'_>) -> Lowered<(Statement, u16)> {
    let mut lower = Lower {
        depth: 0,
        parameters: 0,
        into: None,
    };
    let statement = lower.statement(node)?;
    Ok((statement, lower.parameters))
}

pub(super) struct Lower {
    depth: usize,
    parameters: u16,
    /// The table that SELECT INTO makes.
    into: Option<RelationRef>,
}

impl Lower {
    /// Runs `inner` one level deeper, within the bound.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Lowered<T>) -> Lowered<T> {
        if self.depth >= DEPTH_MAX {
            return Err(Unreadable::TooComplex(format!("nested deeper than {DEPTH_MAX}")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn relation(&mut self, range: &nodes::RangeVar) -> RelationRef {
        RelationRef {
            name: Name {
                catalog: range.catalogname().map(str::to_owned),
                schema: range.schemaname().map(str::to_owned),
                name: range.relname().unwrap_or_default().to_owned(),
            },
            alias: alias(range.alias()),
            location: range.location,
            temporary: u8::try_from(range.relpersistence) == Ok(b't')
                || range.schemaname() == Some("pg_temp"),
        }
    }

    fn type_name(&mut self, name: Option<&nodes::TypeName>) -> Lowered<TypeRef> {
        let Some(node) = name else {
            return Err(Unreadable::NotBuilt("a type without a name".to_owned()));
        };
        let mut parts = Vec::new();
        for part in node.names() {
            parts.push(part.sval().unwrap_or_default().to_owned());
        }
        let of_column = node.pct_type;
        // Modifiers are numbers or bare words; anything else is an expression that the server refuses as well.
        for modifier in node.typmods() {
            match modifier {
                Node::A_Const(_) | Node::ColumnRef(_) => {}
                other => return Err(refuse(other, "a type modifier")),
            }
        }
        for bound in node.array_bounds() {
            match bound {
                Node::Integer(_) => {}
                other => return Err(refuse(other, "an array bound")),
            }
        }
        let name = name_of_parts(parts, "a type name")?;
        Ok(TypeRef {
            name,
            array: !node.array_bounds().is_empty(),
            modified: !node.typmods().is_empty(),
            of_column,
            location: node.location,
        })
    }

    fn steps(&mut self, indirection: &NodeList) -> Lowered<Vec<Step>> {
        let mut steps = Vec::new();
        for node in indirection {
            steps.push(match node {
                Node::String(field) => Step::Field(field.sval().unwrap_or_default().to_owned()),
                Node::A_Star(_) => Step::All,
                Node::A_Indices(indices) => {
                    let mut bounds = Vec::new();
                    bounds.extend(self.optional(indices.lidx())?);
                    bounds.extend(self.optional(indices.uidx())?);
                    Step::Index(bounds)
                }
                other => return Err(refuse(other, "a subscript or field")),
            });
        }
        Ok(steps)
    }

    /// An expression that may be left out.
    fn optional(&mut self, node: Node<'_>) -> Lowered<Option<Expr>> {
        match node {
            Node::None => Ok(None),
            node => self.expr(node).map(Some),
        }
    }

    fn exprs(&mut self, list: &NodeList) -> Lowered<Vec<Expr>> {
        let mut exprs = Vec::with_capacity(list.len());
        for node in list {
            exprs.push(self.expr(node)?);
        }
        Ok(exprs)
    }
}

fn alias(alias: Option<&nodes::Alias>) -> Option<Alias> {
    alias.map(|alias| Alias {
        name: alias.aliasname().unwrap_or_default().to_owned(),
        columns: words(alias.colnames()),
    })
}

/// The strings of a list; nodes of other kinds are left out, so use it only where the grammar makes no others.
fn words(list: &NodeList) -> Vec<String> {
    list.iter()
        .filter_map(|node| node.as_str().map(str::to_owned))
        .collect()
}

fn cast_words(list: &CastNodeList<nodes::String>) -> Vec<String> {
    list.iter()
        .map(|part| part.sval().unwrap_or_default().to_owned())
        .collect()
}

/// A possibly qualified name from a list of strings.
fn name_of(list: &NodeList, what: &str) -> Lowered<Name> {
    let mut parts = Vec::new();
    for node in list {
        match node {
            Node::String(part) => parts.push(part.sval().unwrap_or_default().to_owned()),
            other => return Err(refuse(other, what)),
        }
    }
    name_of_parts(parts, what)
}

fn name_of_parts(mut parts: Vec<String>, what: &str) -> Lowered<Name> {
    let name = parts.pop();
    let schema = parts.pop();
    let catalog = parts.pop();
    match (name, parts.is_empty()) {
        (Some(name), true) => Ok(Name {
            catalog,
            schema,
            name,
        }),
        (Some(_), false) | (None, _) => Err(Unreadable::NotBuilt(format!("{what} of that many parts"))),
    }
}

fn expr(location: i32, kind: ExprKind) -> Expr {
    Expr { location, kind }
}

/// Why a node is not read: its kind and where it stands.
fn refuse(node: Node<'_>, place: &str) -> Unreadable {
    if matches!(node, Node::Invalid(_)) {
        return Unreadable::NotBuilt(format!(
            "what the parser's library has no name for (CREATE FOREIGN TABLE) in {place}"
        ));
    }
    Unreadable::NotBuilt(format!("{} in {place}", kind_of(node)))
}

/// The name of a node's kind. Debug output of a tree has no bound, so it is cut off at the first parenthesis.
fn kind_of(node: Node<'_>) -> String {
    struct FirstWord(String);
    impl fmt::Write for FirstWord {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            match text.split_once(['(', ' ', '{']) {
                Some((word, _)) => {
                    self.0.push_str(word);
                    Err(fmt::Error)
                }
                None => {
                    self.0.push_str(text);
                    if self.0.len() > 64 {
                        Err(fmt::Error)
                    } else {
                        Ok(())
                    }
                }
            }
        }
    }
    let mut word = FirstWord(String::new());
    // The error only says that enough was written.
    let _ = write!(word, "{node:?}");
    word.0
}
