//! What each server major has built in, generated from real servers, and what of it does what, reviewed by hand.
//!
//! `builtins/*.tsv` are written by `cargo run -p xtask -- builtins`. `builtins/*.txt`
//! are written by people. A function that no list names is refused where something is protected.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::code::Operand;
use super::types::{FIRST_USER_OID, TypeEntry, TypeKind, TypeLayers};
use super::{Oid, SystemRelation};
use crate::facts::FunctionClass;

/// One built-in function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) oid: Oid,
    pub(crate) arguments: Vec<Oid>,
    defaults: usize,
    pub(crate) variadic: bool,
    pub(crate) aggregate: bool,
    pub(crate) class: FunctionClass,
    pub(crate) quiet: Quiet,
    /// It touches files of the server.
    pub(crate) files: bool,
    /// Type of its result.
    pub(crate) result: Oid,
    /// Names and types of its OUT arguments: the columns it gives in FROM.
    pub(crate) columns: Vec<(&'static str, Oid)>,
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
    /// 0 = prefix operator.
    left: Oid,
    right: Oid,
    operands: [Oid; 2],
    function: Oid,
}

#[derive(Debug, Clone, Copy)]
struct Cast {
    implicit: bool,
    quiet: bool,
}

/// A function that a call may mean, and whether getting its arguments there never raises.
pub(crate) struct Candidate<'b> {
    pub(crate) function: &'b Function,
    pub(crate) quiet_arguments: bool,
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
                operands: [left, right],
                function,
            });
        }
        let quiet_casts = quiet_casts();
        for line in rows_of(CASTS, major) {
            let [source, target, _function, context, method] = line.as_slice() else {
                continue;
            };
            let (Ok(source), Ok(target)) = (source.parse(), target.parse()) else {
                continue;
            };
            // Binary coercible: nothing is computed.
            let quiet = *method == "b" || quiet_casts.contains(&(source, target));
            builtins.casts.insert(
                (source, target),
                Cast {
                    implicit: *context == "i",
                    quiet,
                },
            );
        }
        for (source, target) in quiet_casts {
            // Through text, without an entry of its own.
            builtins.casts.entry((source, target)).or_insert(Cast {
                implicit: false,
                quiet: true,
            });
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
    ) -> impl Iterator<Item = Candidate<'_>> {
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
        let chosen = match exact {
            Some(function) => vec![function],
            None => self.most_exact(types, arguments, possible, |function| &function.arguments),
        };
        let quiet = |function: &Function| {
            !function.variadic
                && arguments
                    .iter()
                    .zip(&function.arguments)
                    .all(|(a, t)| self.becomes_quietly(types, *a, *t))
        };
        let candidates: Vec<Candidate<'_>> = chosen
            .into_iter()
            .map(|function| Candidate {
                function,
                quiet_arguments: quiet(function),
            })
            .collect();
        candidates.into_iter()
    }

    /// The functions behind the built-in operators that those operands may mean.
    pub(crate) fn operators(
        &self,
        types: TypeLayers<'_>,
        name: &str,
        left: Option<Operand>,
        right: Operand,
    ) -> impl Iterator<Item = Candidate<'_>> {
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
        let chosen = match (exact, left) {
            (Some(operator), _) => vec![operator],
            (None, Some(left)) => self.most_exact(types, &[left, right], possible, |o| &o.operands),
            (None, None) => possible,
        };
        let candidates: Vec<Candidate<'_>> = chosen
            .into_iter()
            .filter_map(|operator| {
                let quiet_arguments = left
                    .is_none_or(|left| self.becomes_quietly(types, left, operator.left))
                    && self.becomes_quietly(types, right, operator.right);
                Some(Candidate {
                    function: self.function(operator.function)?,
                    quiet_arguments,
                })
            })
            .collect();
        candidates.into_iter()
    }

    /// A cast that never raises: both types are for certain.
    pub(crate) fn quiet_cast(
        &self,
        types: TypeLayers<'_>,
        source: Operand,
        target: Oid,
        modifier: i32,
    ) -> bool {
        let Operand::Typed(source) = source else {
            return false;
        };
        let Some((source, _)) = types.base(source, -1) else {
            return false;
        };
        let is_text = matches!(target, TEXT | VARCHAR | BPCHAR);
        // An explicit cast cuts text to its length, but refuses a number that does not fit.
        (modifier == -1 || is_text)
            && (source.oid == target
                || self
                    .casts
                    .get(&(source.oid, target))
                    .is_some_and(|cast| cast.quiet)
                || is_text && quiet_output(types, source, 0))
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

    /// The server keeps, of what is possible, the overloads that most of the known types match exactly. One with a
    /// polymorphic parameter neither counts here nor is dropped: whether it fits is not certain.
    fn most_exact<'o, T>(
        &self,
        types: TypeLayers<'_>,
        operands: &[Operand],
        possible: Vec<&'o T>,
        parameters: impl Fn(&T) -> &[Oid],
    ) -> Vec<&'o T> {
        if operands.contains(&Operand::Unsure) {
            return possible;
        }
        let bases: Vec<Option<Oid>> = operands.iter().map(|operand| base_of(types, *operand)).collect();
        let exact = |item: &T| {
            bases
                .iter()
                .zip(parameters(item))
                .filter(|(base, p)| **base == Some(**p))
                .count()
        };
        let certain = |item: &T| {
            parameters(item)
                .iter()
                .all(|p| types.get(*p).is_some_and(|entry| entry.kind != TypeKind::Pseudo))
        };
        let most = possible
            .iter()
            .filter(|item| certain(item))
            .map(|item| exact(item))
            .max()
            .unwrap_or(0);
        possible
            .into_iter()
            .filter(|item| !certain(item) || exact(item) == most)
            .collect()
    }

    /// The server brings that argument to the parameter's type without any chance to raise. An untyped literal is
    /// read once, before there are rows.
    fn becomes_quietly(&self, types: TypeLayers<'_>, argument: Operand, parameter: Oid) -> bool {
        let pseudo = types
            .get(parameter)
            .is_some_and(|entry| entry.kind == TypeKind::Pseudo);
        match argument {
            Operand::Untyped => true,
            Operand::Typed(_) => pseudo || self.quiet_cast(types, argument, parameter, -1),
            Operand::Unsure => {
                let into = self
                    .casts
                    .iter()
                    .filter(|((_, target), cast)| *target == parameter && cast.implicit);
                // pg_ndistinct, pg_dependencies, pg_mcv_list: only pg_statistic_ext_data holds such values.
                let into = into.filter(|((source, _), _)| !matches!(source, 3361 | 3402 | 5017));
                let mut sources = into.map(|((source, _), _)| Operand::Typed(*source));
                sources.all(|source| self.quiet_cast(types, source, parameter, -1))
            }
        }
    }

    fn accepts(&self, types: TypeLayers<'_>, argument: Operand, parameter: Oid) -> bool {
        let Some(base) = base_of(types, argument) else {
            return true;
        };
        if base == parameter
            || self
                .casts
                .get(&(base, parameter))
                .is_some_and(|cast| cast.implicit)
        {
            return true;
        }
        // Of a type that the catalog does not know, anything may be; so may a value of no certain type.
        let Some(entry) = types.get(base).filter(|entry| entry.kind != TypeKind::Pseudo) else {
            return true;
        };
        // Arrays become arrays where their elements do.
        if let (TypeKind::Array { element }, Some(TypeKind::Array { element: wanted })) =
            (&entry.kind, types.get(parameter).map(|parameter| &parameter.kind))
        {
            return self.accepts(types, Operand::Typed(*element), *wanted);
        }
        match parameter {
            ANYARRAY | ANYCOMPATIBLEARRAY => {
                matches!(entry.kind, TypeKind::Array { .. }) || matches!(base, INT2VECTOR | OIDVECTOR)
            }
            ANYENUM => entry.kind == TypeKind::Enum,
            ANYRANGE | ANYCOMPATIBLERANGE => matches!(entry.kind, TypeKind::Range { .. }),
            ANYMULTIRANGE | ANYCOMPATIBLEMULTIRANGE => matches!(entry.kind, TypeKind::Multirange { .. }),
            RECORD => matches!(entry.kind, TypeKind::Composite { .. }),
            // The other pseudo types take what they get. A user's base type may have casts of its own.
            _ => {
                types
                    .get(parameter)
                    .is_none_or(|parameter| parameter.kind == TypeKind::Pseudo)
                    || matches!(entry.kind, TypeKind::Base { .. }) && base >= FIRST_USER_OID
            }
        }
    }
}

const INT2VECTOR: Oid = 22;
const OIDVECTOR: Oid = 30;
const RECORD: Oid = 2249;
const ANYARRAY: Oid = 2277;
const ANYENUM: Oid = 3500;
const ANYRANGE: Oid = 3831;
const ANYMULTIRANGE: Oid = 4537;
const ANYCOMPATIBLEMULTIRANGE: Oid = 4538;
const ANYCOMPATIBLEARRAY: Oid = 5078;
const ANYCOMPATIBLERANGE: Oid = 5080;

impl Function {
    fn takes(&self, arguments: usize) -> bool {
        let declared = self.arguments.len();
        let fewest = declared
            .saturating_sub(self.defaults)
            .saturating_sub(usize::from(self.variadic));
        arguments >= fewest && (self.variadic || arguments <= declared)
    }
}

/// A call whose first argument is that literal never raises for any value of that type in the other argument, though
/// another literal might.
pub(crate) fn quiet_with_literal(major: u16, name: &str, literal: &str, value: Oid) -> bool {
    const DATE_FIELDS: [&str; 13] = [
        "century",
        "day",
        "decade",
        "dow",
        "doy",
        "epoch",
        "isodow",
        "isoyear",
        "millennium",
        "month",
        "quarter",
        "week",
        "year",
    ];
    const TIME_FIELDS: [&str; 5] = ["hour", "minute", "second", "milliseconds", "microseconds"];
    const INTERVAL_FIELDS: [&str; 8] = [
        "century",
        "day",
        "decade",
        "epoch",
        "millennium",
        "month",
        "quarter",
        "year",
    ];
    const TRUNCATES_BELOW_DAY: [&str; 5] = ["hour", "minute", "second", "milliseconds", "microseconds"];
    let field = literal.to_ascii_lowercase();
    let among = |fields: &[&str]| fields.contains(&field.as_str());
    match (name, value) {
        // Before 14, and always as date_part, a date goes through a timestamp, which may not hold it.
        ("extract", DATE) => major >= 14 && among(&DATE_FIELDS),
        ("extract" | "date_part", TIMESTAMP | TIMESTAMPTZ) => among(&DATE_FIELDS) || among(&TIME_FIELDS),
        ("extract" | "date_part", TIME) => field == "epoch" || among(&TIME_FIELDS),
        ("extract" | "date_part", INTERVAL) => among(&INTERVAL_FIELDS) || among(&TIME_FIELDS),
        ("date_trunc", TIMESTAMP) => field == "day" || among(&TRUNCATES_BELOW_DAY),
        _ => false,
    }
}

/// A regular expression that cannot be wrong, and cannot be slow.
pub(crate) fn is_quiet_pattern(pattern: &str) -> bool {
    pattern.len() <= 256
        && pattern
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " %^$.".contains(c))
}

const DATE: Oid = 1082;
const TIME: Oid = 1083;
const TIMESTAMP: Oid = 1114;
const TIMESTAMPTZ: Oid = 1184;
const INTERVAL: Oid = 1186;
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
        result,
        arguments,
        columns,
    ] = line.as_slice()
    else {
        return None;
    };
    let oid = oid.parse().ok()?;
    let arguments = arguments
        .split_ascii_whitespace()
        .map(|a| a.parse().ok())
        .collect::<Option<Vec<Oid>>>()?;
    let column = |written: &'static str| {
        let (name, type_oid) = written.rsplit_once(':')?;
        Some((name, type_oid.parse().ok()?))
    };
    let columns = columns
        .split_ascii_whitespace()
        .map(column)
        .collect::<Option<Vec<_>>>()?;
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
            result: result.parse().ok()?,
            columns,
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
pub(crate) use whole::{function_lines, listed_but_unknown, unlisted_functions};

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
            let [_, _, name, oid, _, _, _, _, _, result, arguments, _] = fields.as_slice() else {
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

    /// The rows of `functions.tsv` for that major, as they stand there.
    pub(crate) fn function_lines(major: u16) -> Vec<String> {
        rows_of(FUNCTIONS, major)
            .map(|fields| fields.join("\t"))
            .collect()
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
        /// The quiet functions of this major: (name, types of the arguments).
        pub(crate) fn quiet_functions(&self) -> Vec<(&'static str, Vec<Oid>)> {
            let named = self
                .by_name
                .iter()
                .flat_map(|(name, places)| places.iter().map(move |place| (*name, place)));
            let mut quiet: Vec<_> = named
                .filter_map(|(name, place)| Some((name, self.list.get(*place)?)))
                .filter(|(_, function)| function.quiet != Quiet::No)
                .map(|(name, function)| (name, function.arguments.clone()))
                .collect();
            quiet.sort();
            quiet
        }
        /// The quiet casts of this major that are not between text types alone.
        pub(crate) fn quiet_casts(&self) -> Vec<(Oid, Oid)> {
            self.casts
                .iter()
                .filter(|(_, cast)| cast.quiet)
                .map(|(pair, _)| *pair)
                .collect()
        }
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
