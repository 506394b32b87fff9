//! Names in scope: what a FROM list offers, level by level, and the CTEs in reach.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::lineage::Lineage;
use crate::catalog::{AttNum, Oid, Operand};
use crate::form::Cte;

/// A column that a source, query or row value offers.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) lineage: Rc<Lineage>,
    /// Its own fields, where it is a row of known shape.
    pub(crate) row: Option<Rc<Vec<Field>>>,
    /// Its type, as far as it is certain.
    pub(crate) kind: Operand,
    /// The column of a mentioned relation that it is, unchanged.
    pub(crate) origin: Option<(usize, AttNum)>,
}

/// One entry of a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// What qualified names call it.
    pub(crate) name: Option<String>,
    /// Schema and name of the relation, if no alias hides them.
    pub(crate) relation: Option<(Option<String>, String)>,
    pub(crate) fields: Vec<Field>,
    /// Index of the mentioned relation.
    pub(crate) range: Option<usize>,
    /// The relation whose definition is given: what is found here is read by the definition.
    pub(crate) defined: Option<Oid>,
    /// All mentioned relations under it (more than one for a join).
    pub(crate) covers: Vec<usize>,
    /// It may have more columns than are known, all computed from this.
    pub(crate) open: Option<Rc<Lineage>>,
    /// Why its columns are not known: a relation that the catalog does not have, or a function's result.
    pub(crate) unknown: Option<String>,
    /// Its relation has system columns.
    pub(crate) system_columns: bool,
    /// Qualified names find it.
    pub(crate) named: bool,
    /// Bare column names find its columns.
    pub(crate) bare: bool,
    /// It is the row that is updated or deleted.
    pub(crate) target: bool,
    /// It is `excluded`.
    pub(crate) excluded: bool,
}

impl Entry {
    /// An entry without columns, found by both kinds of names.
    pub(crate) fn new(name: Option<String>) -> Self {
        Self {
            name,
            relation: None,
            fields: Vec::new(),
            range: None,
            defined: None,
            covers: Vec::new(),
            open: None,
            unknown: None,
            system_columns: false,
            named: true,
            bare: true,
            target: false,
            excluded: false,
        }
    }

    /// Renames the first columns.
    pub(crate) fn rename(&mut self, names: &[String]) {
        for (field, name) in self.fields.iter_mut().zip(names) {
            field.name.clone_from(name);
        }
    }
}

/// The namespace of one query level, and the levels around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level<'a> {
    /// Entries, in parts because a join and the FROM list around it keep theirs apart.
    pub(crate) parts: &'a [&'a [Entry]],
    pub(crate) parent: Option<&'a Level<'a>>,
}

impl<'a> Level<'a> {
    pub(crate) fn entries(&self) -> impl Iterator<Item = &'a Entry> + use<'a> {
        self.parts.iter().flat_map(|part| part.iter())
    }
}

/// What a CTE name stands for by now.
#[derive(Debug)]
pub(crate) enum CteState<'q> {
    /// Not looked at yet (only with RECURSIVE, where later ones may be named).
    Pending(&'q Cte),
    /// Being read, and what its own mentions of itself see, once its first branch is known.
    Running(Option<Vec<Field>>),
    /// Known.
    Done(Vec<Field>),
}

/// The CTEs of one WITH, and those around it.
#[derive(Debug)]
pub(crate) struct CteScope<'a, 'q> {
    pub(crate) ctes: RefCell<Vec<(String, CteState<'q>)>>,
    pub(crate) parent: Option<&'a CteScope<'a, 'q>>,
    /// Namespace around the WITH, which its queries see.
    pub(crate) level: Option<&'a Level<'a>>,
}

/// Everything that names can mean at one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Env<'a, 'q> {
    pub(crate) level: Option<&'a Level<'a>>,
    pub(crate) ctes: Option<&'a CteScope<'a, 'q>>,
    /// Named windows of this query level.
    pub(crate) windows: Option<&'a HashMap<String, Lineage>>,
}
