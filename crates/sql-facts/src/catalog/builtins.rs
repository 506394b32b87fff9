//! What each server major has built in, generated from real servers, and what of it does what, reviewed by hand.
//!
//! `builtins/*.tsv` are written by `cargo run -p xtask -- builtins`. `builtins/*.txt`
//! are written by people. A function that no list names is refused where something is protected.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::code::Operand;
use super::types::{TypeEntry, TypeKind, TypeLayers};
use super::{Oid, SystemRelation};
use crate::facts::FunctionClass;

/// One built-in function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) oid: Oid,
    pub(crate) arguments: Vec<Oid>,
    defaults: usize,
    variadic: bool,
    pub(crate) aggregate: bool,
    pub(crate) class: FunctionClass,
    pub(crate) quiet: Quiet,
    /// It touches files of the server.
    pub(crate) files: bool,
    /// What it reads or writes, whatever its arguments are.
    pub(crate) relations: Vec<Oid>,
}

/// On the closed list of quiet code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    /// Not on it.
    No,
    /// For all values of its argument types.
    Yes,
    /// Where the elements of its arrays or ranges are of quiet types.
    OfElements,
}

#[derive(Debug, Clone)]
struct Operator {
    left: Oid,
    right: Oid,
    function: Oid,
}

#[derive(Debug, Clone, Copy)]
struct Cast {
    implicit: bool,
    quiet: bool,
}

/// The built-ins of one server major.
#[derive(Debug, Default)]
pub(crate) struct Builtins {
    functions: HashMap<Oid, usize>,
    list: Vec<Function>,
    by_name: HashMap<&'static str, Vec<usize>>,
    operators: HashMap<&'static str, Vec<Operator>>,
    casts: HashMap<(Oid, Oid), Cast>,
    system: HashMap<(&'static str, &'static str), Access>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Open,
    OpenExcept(&'static str),
    NeedsRule,
}

const FUNCTIONS: &str = include_str!("../../builtins/functions.tsv");
const OPERATORS: &str = include_str!("../../builtins/operators.tsv");
const CASTS: &str = include_str!("../../builtins/casts.tsv");
const CLASSES: &str = include_str!("../../builtins/classes.txt");
const QUIET: &str = include_str!("../../builtins/quiet.txt");
const RELATIONS: &str = include_str!("../../builtins/relations.txt");

/// Majors whose lists are reviewed, each with what a newly made server answers to the catalog statement.
const REVIEWED: [(u16, &str); 6] = [
    (13, include_str!("../../builtins/catalog-13.tsv")),
    (14, include_str!("../../builtins/catalog-14.tsv")),
    (15, include_str!("../../builtins/catalog-15.tsv")),
    (16, include_str!("../../builtins/catalog-16.tsv")),
    (17, include_str!("../../builtins/catalog-17.tsv")),
    (18, include_str!("../../builtins/catalog-18.tsv")),
];

/// The built-ins of that major, read once; `None` where it is not reviewed.
pub(crate) fn of_major(major: u16) -> Option<&'static Builtins> {
    static READ: [OnceLock<Builtins>; REVIEWED.len()] = [const { OnceLock::new() }; REVIEWED.len()];
    let place = REVIEWED.iter().position(|(reviewed, _)| *reviewed == major)?;
    READ.get(place)
        .map(|once| once.get_or_init(|| Builtins::read(major)))
}

/// The rows that a newly made server of that major answers to the catalog statement.
pub(crate) fn catalog_rows(major: u16) -> Option<impl Iterator<Item = (&'static str, &'static str)>> {
    let (_, rows) = REVIEWED.iter().find(|(reviewed, _)| *reviewed == major)?;
    Some(rows.lines().filter_map(|line| line.split_once('\t')))
}

impl Builtins {
    fn read(major: u16) -> Self {
        let mut builtins = Self::default();
        let classes = classes();
        let quiet = quiet_functions();
        for line in rows_of(FUNCTIONS, major) {
            let Some((name, function)) = function(line, &classes, &quiet) else {
                continue;
            };
            let place = builtins.list.len();
            if function.oid != 0 {
                builtins.functions.insert(function.oid, place);
            }
            builtins.by_name.entry(name).or_default().push(place);
            builtins.list.push(function);
        }
        for line in rows_of(OPERATORS, major) {
            let [name, left, right, _result, function] = line.as_slice() else {
                continue;
            };
            let (Ok(left), Ok(right), Ok(function)) = (left.parse(), right.parse(), function.parse()) else {
                continue;
            };
            builtins.operators.entry(name).or_default().push(Operator {
                left,
                right,
                function,
            });
        }
        let quiet_casts = quiet_casts();
        for line in rows_of(CASTS, major) {
            let [source, target, _function, context, _method] = line.as_slice() else {
                continue;
            };
            let (Ok(source), Ok(target)) = (source.parse(), target.parse()) else {
                continue;
            };
            let quiet = quiet_casts.contains(&(source, target));
            builtins.casts.insert(
                (source, target),
                Cast {
                    implicit: *context == "i",
                    quiet,
                },
            );
        }
        builtins.system = system_relations();
        builtins
    }

    /// The function of that OID.
    pub(crate) fn function(&self, oid: Oid) -> Option<&Function> {
        self.list.get(*self.functions.get(&oid)?)
    }

    /// The functions of `pg_catalog` that a call with those arguments may mean.
    pub(crate) fn functions(
        &self,
        types: TypeLayers<'_>,
        name: &str,
        arguments: &[Operand],
    ) -> impl Iterator<Item = &Function> {
        let all = self.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        let possible: Vec<&Function> = all
            .iter()
            .filter_map(|place| self.list.get(*place))
            .filter(|function| function.takes(arguments.len()))
            .filter(|function| {
                function.variadic
                    || arguments
                        .iter()
                        .zip(&function.arguments)
                        .all(|(a, t)| self.accepts(types, *a, *t))
            })
            .collect();
        let exact = possible.iter().copied().find(|function| {
            function.arguments.len() == arguments.len()
                && arguments
                    .iter()
                    .zip(&function.arguments)
                    .all(|(a, t)| base_of(types, *a) == Some(*t))
        });
        match exact {
            Some(function) => vec![function].into_iter(),
            None => possible.into_iter(),
        }
    }

    /// The functions behind the built-in operators that those operands may mean.
    pub(crate) fn operators(
        &self,
        types: TypeLayers<'_>,
        name: &str,
        left: Option<Operand>,
        right: Operand,
    ) -> impl Iterator<Item = &Function> {
        let all = self.operators.get(name).map(Vec::as_slice).unwrap_or_default();
        let possible = all.iter().filter(|operator| match left {
            None => operator.left == 0 && self.accepts(types, right, operator.right),
            Some(left) => {
                operator.left != 0
                    && self.accepts(types, left, operator.left)
                    && self.accepts(types, right, operator.right)
            }
        });
        let possible: Vec<&Operator> = possible.collect();
        // An untyped literal is first taken as the type of the other side.
        let (l, r) = (left.and_then(|left| base_of(types, left)), base_of(types, right));
        let exact = match left {
            Some(left) => match (left, right) {
                (Operand::Untyped, Operand::Typed(_)) => r.map(|r| (r, r)),
                (Operand::Typed(_), Operand::Untyped) => l.map(|l| (l, l)),
                _ => l.zip(r),
            },
            None => r.map(|r| (0, r)),
        };
        let exact = exact.and_then(|(l, r)| possible.iter().copied().find(|o| o.left == l && o.right == r));
        let chosen = match exact {
            Some(operator) => vec![operator],
            None => possible,
        };
        chosen
            .into_iter()
            .filter_map(|operator| self.function(operator.function))
    }

    /// A cast that never raises: both types are for certain.
    pub(crate) fn quiet_cast(&self, types: TypeLayers<'_>, source: Operand, target: Oid) -> bool {
        let Operand::Typed(source) = source else {
            return false;
        };
        let Some((source, _)) = types.base(source, -1) else {
            return false;
        };
        source.oid == target
            || self
                .casts
                .get(&(source.oid, target))
                .is_some_and(|cast| cast.quiet)
            || matches!(target, TEXT | VARCHAR | BPCHAR) && quiet_output(types, source, 0)
    }

    /// Comparing elements of these containers never raises.
    pub(crate) fn quiet_elements(&self, types: TypeLayers<'_>, operands: &[Operand]) -> bool {
        let mut known = false;
        for operand in operands {
            match operand {
                Operand::Untyped => {}
                Operand::Unsure => return false,
                Operand::Typed(oid) => {
                    known = true;
                    match types.base(*oid, -1) {
                        Some((entry, _)) if quiet_comparison(types, entry, 0) => {}
                        Some(_) | None => return false,
                    }
                }
            }
        }
        known
    }

    fn accepts(&self, types: TypeLayers<'_>, argument: Operand, parameter: Oid) -> bool {
        let Some(base) = base_of(types, argument) else {
            return true;
        };
        base == parameter
            || types.get(parameter).is_none_or(|entry| entry.kind == TypeKind::Pseudo)
            || self.casts.get(&(base, parameter)).is_some_and(|cast| cast.implicit)
            // Casts from a type that the catalog does not know, or of a user's type: anything may be.
            || types.get(base).is_none_or(|entry| !matches!(entry.kind, TypeKind::Base { user_code: false }))
    }
}

impl Function {
    fn takes(&self, arguments: usize) -> bool {
        let declared = self.arguments.len();
        let fewest = declared
            .saturating_sub(self.defaults)
            .saturating_sub(usize::from(self.variadic));
        arguments >= fewest && (self.variadic || arguments <= declared)
    }
}

const TEXT: Oid = 25;
const VARCHAR: Oid = 1043;
const BPCHAR: Oid = 1042;

fn base_of(types: TypeLayers<'_>, operand: Operand) -> Option<Oid> {
    match operand {
        Operand::Typed(oid) => types.base(oid, -1).map(|(entry, _)| entry.oid),
        Operand::Untyped | Operand::Unsure => None,
    }
}

/// Its output function never raises, for any value.
fn quiet_output(types: TypeLayers<'_>, entry: &TypeEntry, depth: usize) -> bool {
    // bool, bytea, char, name, int8, int2, int4, text, oid, json, float4, float8, money, bpchar, varchar, date, time,
    // timestamp, timestamptz, interval, timetz, bit, varbit, numeric, uuid, jsonb, inet, cidr, macaddr, macaddr8.
    const QUIET_OUTPUT: [Oid; 30] = [
        16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 700, 701, 790, 1042, 1043, 1082, 1083, 1114, 1184, 1186,
        1266, 1560, 1562, 1700, 2950, 3802, 869, 650, 829, 774,
    ];
    match entry.kind {
        TypeKind::Base { user_code } => !user_code && QUIET_OUTPUT.contains(&entry.oid),
        TypeKind::Enum => true,
        TypeKind::Array { element } if depth < 10 => types
            .base(element, -1)
            .is_some_and(|(element, _)| quiet_output(types, element, depth + 1)),
        _ => false,
    }
}

/// Its comparison functions never raise, for any two values.
fn quiet_comparison(types: TypeLayers<'_>, entry: &TypeEntry, depth: usize) -> bool {
    // As above, without json (it has none) and cidr (it uses inet's).
    const QUIET_COMPARISON: [Oid; 28] = [
        16, 17, 18, 19, 20, 21, 23, 25, 26, 700, 701, 790, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266,
        1560, 1562, 1700, 2950, 3802, 869, 829, 774,
    ];
    let inner = |oid| {
        types
            .base(oid, -1)
            .is_some_and(|(entry, _)| quiet_comparison(types, entry, depth + 1))
    };
    match entry.kind {
        TypeKind::Base { user_code } => !user_code && QUIET_COMPARISON.contains(&entry.oid),
        TypeKind::Enum => true,
        TypeKind::Array { element } => depth < 10 && inner(element),
        TypeKind::Range { subtype, user_code } => depth < 10 && !user_code && inner(subtype),
        TypeKind::Multirange { range } => depth < 10 && inner(range),
        TypeKind::Domain { .. } | TypeKind::Composite { .. } | TypeKind::Pseudo => false,
    }
}

/// The lines of a table that hold for that major, without the two columns that say so.
fn rows_of(table: &'static str, major: u16) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().filter_map(move |line| {
        let mut fields = line.split('\t');
        let first: u16 = fields.next()?.parse().ok()?;
        let last: u16 = fields.next()?.parse().ok()?;
        (first..=last).contains(&major).then(|| fields.collect())
    })
}

type Classes = HashMap<(&'static str, Option<Oid>), Listed>;

#[derive(Clone)]
struct Listed {
    class: FunctionClass,
    relations: Vec<Oid>,
    files: bool,
}

const NOT_LISTED: Listed = Listed {
    class: FunctionClass::Unlisted,
    relations: Vec::new(),
    files: false,
};

fn function(
    line: Vec<&'static str>,
    classes: &Classes,
    quiet: &HashMap<Oid, Quiet>,
) -> Option<(&'static str, Function)> {
    let [
        name,
        oid,
        kind,
        defaults,
        variadic,
        _volatile,
        _leakproof,
        _result,
        arguments,
    ] = line.as_slice()
    else {
        return None;
    };
    let oid = oid.parse().ok()?;
    let arguments = arguments
        .split_ascii_whitespace()
        .map(|a| a.parse().ok())
        .collect::<Option<Vec<Oid>>>()?;
    let listed = classes
        .get(&(*name, Some(oid)))
        .or_else(|| classes.get(&(*name, None)));
    let Listed {
        class,
        relations,
        files,
    } = listed.cloned().unwrap_or(NOT_LISTED);
    Some((
        name,
        Function {
            oid,
            arguments,
            defaults: defaults.parse().ok()?,
            variadic: *variadic == "v",
            aggregate: matches!(*kind, "a" | "w"),
            class,
            quiet: quiet.get(&oid).copied().unwrap_or(Quiet::No),
            files,
            relations,
        },
    ))
}

/// The sections of a list: (what stands in the brackets, its words).
fn sections(list: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut section = "";
    list.lines().flat_map(move |line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            return Vec::new();
        }
        line.split_ascii_whitespace()
            .map(|word| (section, word))
            .collect()
    })
}

/// `builtins/classes.txt`: sections are a class and the OIDs of what is read or written; a word is a function's name,
/// or `name/oid` for one overload of it.
fn classes() -> Classes {
    let mut classes = Classes::new();
    for (section, word) in sections(CLASSES) {
        let mut parts = section.split_ascii_whitespace();
        let class = match parts.next() {
            Some("Open") => FunctionClass::Open,
            Some("Settings") => FunctionClass::Settings,
            Some("ReadsRows") => FunctionClass::ReadsRows,
            Some("Writes") => FunctionClass::Writes,
            Some("Server") => FunctionClass::Server,
            Some("RunsSql") => FunctionClass::RunsSql,
            _ => FunctionClass::Unlisted,
        };
        let mut listed = Listed { class, ..NOT_LISTED };
        for part in parts {
            match part.parse() {
                Ok(oid) => listed.relations.push(oid),
                Err(_) => listed.files |= part == "files",
            }
        }
        let key = match word.split_once('/') {
            Some((name, oid)) => (name, oid.parse().ok()),
            None => (word, None),
        };
        classes.insert(key, listed);
    }
    classes
}

/// `builtins/quiet.txt`, sections `functions` and `functions of elements`: `name/oid`.
fn quiet_functions() -> HashMap<Oid, Quiet> {
    let mut quiet = HashMap::new();
    for (section, word) in sections(QUIET) {
        let kind = match section {
            "functions" => Quiet::Yes,
            "functions of elements" => Quiet::OfElements,
            _ => continue,
        };
        if let Some(oid) = word.split_once('/').and_then(|(_, oid)| oid.parse().ok()) {
            quiet.insert(oid, kind);
        }
    }
    quiet
}

/// `builtins/quiet.txt`, section `casts`: `source>target`, both as OIDs.
fn quiet_casts() -> Vec<(Oid, Oid)> {
    sections(QUIET)
        .filter(|(section, _)| *section == "casts")
        .filter_map(|(_, word)| {
            let (source, target) = word.split_once('>')?;
            Some((source.parse().ok()?, target.parse().ok()?))
        })
        .collect()
}

/// `builtins/relations.txt`: sections `Open` and `NeedsRule` with a schema behind; a word is a relation's name, or
/// `name(column,column)` for one that is open but for these columns.
fn system_relations() -> HashMap<(&'static str, &'static str), Access> {
    let mut relations = HashMap::new();
    for (section, word) in sections(RELATIONS) {
        let Some((kind, schema)) = section.split_once(' ') else {
            continue;
        };
        let (name, access) = match (kind, word.split_once('(')) {
            ("Open", None) => (word, Access::Open),
            ("Open", Some((name, columns))) => (name, Access::OpenExcept(columns.trim_end_matches(')'))),
            _ => (word, Access::NeedsRule),
        };
        relations.insert((schema, name), access);
    }
    relations
}

impl Builtins {
    /// How a system relation may be read; whatever is not listed needs a rule.
    pub(crate) fn access(&self, relation: &super::Relation) -> SystemRelation {
        match self
            .system
            .get(&(relation.schema.as_str(), relation.name.as_str()))
        {
            Some(Access::Open) => SystemRelation::Open,
            Some(Access::OpenExcept(columns)) => SystemRelation::OpenExcept(
                columns
                    .split(',')
                    .filter_map(|name| relation.column(name))
                    .map(|column| column.number)
                    .collect(),
            ),
            Some(Access::NeedsRule) | None => SystemRelation::NeedsRule,
        }
    }
}

#[cfg(test)]
pub(crate) use whole::{listed_but_unknown, unlisted_functions};

#[cfg(test)]
mod whole {
    //! Whether the lists name all there is, for tests.

    use std::collections::BTreeSet;

    use super::*;

    /// Functions that SQL can call and no section of `classes.txt` names.
    pub(crate) fn unlisted_functions() -> Vec<String> {
        // internal, cstring, trigger, event_trigger, language_handler, fdw_handler, tsm_handler, index_am_handler,
        // table_am_handler.
        const MACHINERY: [&str; 9] = [
            "2281", "2275", "2279", "3838", "2280", "3115", "3310", "325", "269",
        ];
        let classes = classes();
        let mut missing = BTreeSet::new();
        for line in FUNCTIONS.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [_, _, name, oid, _, _, _, _, _, result, arguments] = fields.as_slice() else {
                missing.insert(format!("not a row: {line}"));
                continue;
            };
            let oid: Oid = oid.parse().expect("a number");
            let machinery =
                MACHINERY.contains(result) || arguments.split(' ').any(|a| MACHINERY.contains(&a));
            let listed = classes.contains_key(&(*name, None)) || classes.contains_key(&(*name, Some(oid)));
            if !machinery && !listed {
                missing.insert((*name).to_owned());
            }
        }
        missing.into_iter().collect()
    }

    /// Words of the lists that no major has.
    pub(crate) fn listed_but_unknown() -> Vec<String> {
        let known: BTreeSet<(&str, Oid)> = FUNCTIONS
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('\t').skip(2);
                Some((fields.next()?, fields.next()?.parse().ok()?))
            })
            .collect();
        let functions = classes().into_keys().filter(|(name, oid)| {
            !known
                .iter()
                .any(|(known, known_oid)| known == name && oid.is_none_or(|oid| oid == *known_oid))
        });
        let quiet = sections(QUIET)
            .filter(|(section, _)| section.starts_with("functions"))
            .filter(|(_, word)| {
                let oid = word
                    .split_once('/')
                    .and_then(|(name, oid)| Some((name, oid.parse().ok()?)));
                oid.is_none_or(|oid| !known.contains(&oid))
            })
            .map(|(_, word)| word.to_owned());
        functions.map(|(name, _)| name.to_owned()).chain(quiet).collect()
    }

    impl Builtins {
        pub(crate) fn lists(&self, relation: &crate::catalog::Relation) -> bool {
            self.system
                .contains_key(&(relation.schema.as_str(), relation.name.as_str()))
        }
        pub(crate) fn operator_names(&self) -> BTreeSet<(&'static str, usize)> {
            let of = |o: &Operator| if o.left == 0 { 1 } else { 2 };
            self.operators
                .iter()
                .flat_map(|(name, all)| all.iter().map(move |o| (*name, of(o))))
                .collect()
        }
    }
}
