//! Functions, operators and casts: whose code a name may reach, and what it does.

use std::collections::HashMap;

use super::builtins::{self, Builtins, Candidate, Quiet};
use super::types::{FIRST_USER_OID, TypeKind};
use super::{CatalogView, CodeFacts, Oid, unlisted};
use crate::facts::{FunctionClass, FunctionOrigin};
use serde::{Deserialize, Serialize};

/// A foreign key seen from the referenced side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cascade {
    /// The referencing relation.
    pub relation: Oid,
    /// ON DELETE changes or removes its rows.
    pub on_delete: bool,
    /// ON UPDATE changes its rows.
    pub on_update: bool,
}

/// A function, procedure, aggregate or window function that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFunction {
    /// `pg_proc.oid`
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `prokind`: `f`, `p`, `a` or `w`.
    pub kind: char,
    /// Fewest arguments it can be called with.
    pub arguments_min: usize,
    /// Most arguments; `None` = VARIADIC.
    pub arguments_max: Option<usize>,
    /// Types of its input arguments.
    pub arguments: Vec<Oid>,
}

/// An operator that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserOperator {
    /// `pg_operator.oid`
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Left operand's type, 0 = prefix operator.
    pub left: Oid,
    /// Right operand's type.
    pub right: Oid,
}

/// A cast that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCast {
    /// From.
    pub source: Oid,
    /// To.
    pub target: Oid,
    /// Its function, 0 = none (binary, or through text).
    pub function: Oid,
    /// The server applies it by itself.
    pub implicit: bool,
}

/// Code that is not built in, by name.
#[derive(Debug, Clone, Default)]
pub struct CodeTable {
    functions: HashMap<String, Vec<UserFunction>>,
    operators: HashMap<String, Vec<UserOperator>>,
    by_oid: HashMap<Oid, String>,
    casts: Vec<UserCast>,
}

impl CodeTable {
    /// Adds a function.
    pub fn add_function(&mut self, function: UserFunction) {
        self.by_oid.insert(function.oid, function.name.clone());
        let same_name = self.functions.entry(function.name.clone()).or_default();
        same_name.retain(|known| known.oid != function.oid);
        same_name.push(function);
    }
    /// Adds an operator.
    pub fn add_operator(&mut self, operator: UserOperator) {
        let same_name = self.operators.entry(operator.name.clone()).or_default();
        same_name.retain(|known| known.oid != operator.oid);
        same_name.push(operator);
    }
    /// Adds a cast.
    pub fn add_cast(&mut self, cast: UserCast) {
        self.casts.push(cast);
    }
    /// The functions of that name, in all schemas.
    pub fn functions(&self, name: &str) -> &[UserFunction] {
        self.functions.get(name).map(Vec::as_slice).unwrap_or_default()
    }
    /// The operators of that name, in all schemas.
    pub fn operators(&self, name: &str) -> &[UserOperator] {
        self.operators.get(name).map(Vec::as_slice).unwrap_or_default()
    }
    /// The function of that OID.
    pub fn function_by_oid(&self, oid: Oid) -> Option<&UserFunction> {
        self.functions(self.by_oid.get(&oid)?)
            .iter()
            .find(|function| function.oid == oid)
    }
    /// Puts the additions of an upper layer into this one.
    pub(crate) fn absorb(&mut self, upper: CodeTable) {
        upper
            .functions
            .into_values()
            .flatten()
            .for_each(|function| self.add_function(function));
        upper
            .operators
            .into_values()
            .flatten()
            .for_each(|operator| self.add_operator(operator));
        self.casts.extend(upper.casts);
    }
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() && self.operators.is_empty() && self.casts.is_empty()
    }
    /// All casts.
    pub fn casts(&self) -> &[UserCast] {
        &self.casts
    }
}

/// What is known of an operand's or argument's type, for the look-ups that use types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A literal or `$n` without a type: it takes the type the server finds for it.
    Untyped,
    /// An expression of that type for certain.
    Typed(Oid),
    /// Not known.
    Unsure,
}

/// Results that depend on the arguments: pseudo-types, and record.
const UNCERTAIN_RESULTS: [Oid; 14] = [
    2249, 2276, 2277, 2278, 2283, 2776, 3500, 3831, 4537, 5077, 5078, 5079, 5080, 4538,
];

fn certain_result<'c>(candidates: impl Iterator<Item = builtins::Candidate<'c>>) -> Operand {
    let mut results = candidates.map(|candidate| candidate.function.result);
    match results.next() {
        Some(first) if !UNCERTAIN_RESULTS.contains(&first) && results.all(|other| other == first) => {
            Operand::Typed(first)
        }
        Some(_) | None => Operand::Unsure,
    }
}

impl<'a> CatalogView<'a> {
    /// The function behind a name called with that many arguments.
    ///
    /// Where user code of that name can be reached the origin is [`FunctionOrigin::UserDefined`], whatever the
    /// built-in of that name does; `class` is then that of the strictest built-in it shares the name with (an
    /// unlisted one counts as [`FunctionClass::Server`]), or `Unlisted` where there is none.
    pub fn function(&self, schema: Option<&str>, name: &str, arguments: usize) -> CodeFacts {
        self.function_with(schema, name, &vec![Operand::Unsure; arguments])
    }
    /// The same where types are known: overloads that those types rule out do not count.
    pub fn function_with(&self, schema: Option<&str>, name: &str, arguments: &[Operand]) -> CodeFacts {
        let mut found = Found::default();
        for function in self.user_functions(schema, name, arguments.len()) {
            found.user(matches!(function.kind, 'a' | 'w'));
        }
        if let Some(builtins) = self.builtins()
            && self.reaches(schema, "pg_catalog")
        {
            let types = self.types();
            let quiet_elements = builtins.quiet_elements(types, arguments);
            let mut candidates: Vec<Candidate<'_>> = builtins.functions(types, name, arguments).collect();
            if candidates.is_empty() {
                candidates.extend(builtins.functions(types, name, &self.castable(arguments)));
            }
            self.note_implicit_casts(&mut found, arguments, &candidates);
            found.builtin(quiet_elements, candidates.into_iter());
        }
        if let Some(builtins) = self.builtins()
            && self.reaches(schema, "information_schema")
        {
            let full_name = format!("information_schema.{name}");
            found.builtin(false, builtins.functions(self.types(), &full_name, arguments));
        }
        // `f(x)` is also how a cast to a type called f may be written.
        if let [argument] = arguments
            && let Some(entry) = self.resolve_type_entry(schema, name)
            && (entry.oid >= FIRST_USER_OID || found.is_empty())
        {
            found.merge(self.cast_between(*argument, entry.oid, -1));
        }
        found.facts()
    }
    /// The columns that a built-in function of `pg_catalog` gives in FROM by its OUT arguments, each with its type
    /// (which may be polymorphic); none where it has no OUT arguments. `None` where that is not certain: no such
    /// function, overloads that differ, or columns that the call itself must define (`json_to_record`).
    pub fn function_columns(&self, name: &str, arguments: usize) -> Option<&'static [(&'static str, Oid)]> {
        const RECORD: Oid = 2249;
        let arguments = vec![Operand::Unsure; arguments];
        let mut candidates = self
            .builtins()?
            .functions(self.types(), name, &arguments)
            .map(|c| c.function);
        let first = candidates.next()?;
        let undefined = first.columns.is_empty() && first.result == RECORD;
        let differs =
            candidates.any(|other| other.columns != first.columns || other.result == RECORD && undefined);
        (!undefined && !differs).then_some(first.columns.as_slice())
    }
    /// The user functions that a call with that many arguments may mean.
    pub(crate) fn user_functions(
        &self,
        schema: Option<&str>,
        name: &str,
        arguments: usize,
    ) -> Vec<&'a UserFunction> {
        let (overlay, catalog) = (self.overlay, self.catalog);
        let all = overlay
            .code
            .functions(name)
            .iter()
            .chain(catalog.code.functions(name));
        all.filter(|function| {
            function.arguments_min <= arguments
                && function.arguments_max.is_none_or(|max| arguments <= max)
                && self.reaches(schema, &function.schema)
        })
        .collect()
    }
    /// The type that a call gives, where all that it may mean agree on one. Polymorphic results and rows are not
    /// certain.
    pub fn function_result(&self, schema: Option<&str>, name: &str, arguments: &[Operand]) -> Operand {
        let of_user = self
            .overlay
            .code
            .functions(name)
            .iter()
            .chain(self.catalog.code.functions(name));
        if of_user
            .into_iter()
            .any(|function| self.reaches(schema, &function.schema))
        {
            return Operand::Unsure;
        }
        match self.builtins().filter(|_| self.reaches(schema, "pg_catalog")) {
            Some(builtins) => certain_result(builtins.functions(self.types(), name, arguments)),
            None => Operand::Unsure,
        }
    }
    /// The same for an operator; `left` is `None` for a prefix operator.
    pub fn operator_result(
        &self,
        schema: Option<&str>,
        name: &str,
        left: Option<Operand>,
        right: Operand,
    ) -> Operand {
        let of_user = self
            .overlay
            .code
            .operators(name)
            .iter()
            .chain(self.catalog.code.operators(name));
        if of_user
            .into_iter()
            .any(|operator| self.reaches(schema, &operator.schema))
        {
            return Operand::Unsure;
        }
        match self.builtins().filter(|_| self.reaches(schema, "pg_catalog")) {
            Some(builtins) => certain_result(builtins.operators(self.types(), name, left, right)),
            None => Operand::Unsure,
        }
    }
    /// The type of an array's elements; what has no type stays so.
    pub fn element_of(&self, array: Operand) -> Operand {
        match array {
            Operand::Typed(oid) => match self.types().get(oid).map(|entry| &entry.kind) {
                Some(TypeKind::Array { element }) => Operand::Typed(*element),
                Some(_) | None => Operand::Unsure,
            },
            Operand::Untyped => Operand::Untyped,
            Operand::Unsure => Operand::Unsure,
        }
    }
    /// The array type over a type.
    pub fn array_over(&self, element: Operand) -> Operand {
        match element {
            Operand::Typed(oid) => self.types().array_of(oid).map_or(Operand::Unsure, Operand::Typed),
            Operand::Untyped | Operand::Unsure => Operand::Unsure,
        }
    }
    /// The function of that OID, for FunctionCall.
    pub fn function_by_oid(&self, oid: Oid) -> CodeFacts {
        let user = self
            .overlay
            .code
            .function_by_oid(oid)
            .or_else(|| self.catalog.code.function_by_oid(oid));
        let mut found = Found::default();
        if let Some(function) = user {
            found.user(matches!(function.kind, 'a' | 'w'));
        } else if let Some(builtins) = self.builtins() {
            let function = builtins.function(oid);
            found.builtin(
                false,
                function
                    .map(|function| Candidate {
                        function,
                        quiet_arguments: true,
                    })
                    .into_iter(),
            );
        }
        found.facts()
    }
    /// The operator of that name; `operands` is 1 or 2.
    pub fn operator(&self, schema: Option<&str>, name: &str, operands: usize) -> CodeFacts {
        match operands {
            1 => self.operator_with(schema, name, None, Operand::Unsure),
            2 => self.operator_with(schema, name, Some(Operand::Unsure), Operand::Unsure),
            _ => unlisted(),
        }
    }
    /// The same where types are known; `left` is `None` for a prefix operator.
    pub fn operator_with(
        &self,
        schema: Option<&str>,
        name: &str,
        left: Option<Operand>,
        right: Operand,
    ) -> CodeFacts {
        let mut found = Found::default();
        for operator in self
            .overlay
            .code
            .operators(name)
            .iter()
            .chain(self.catalog.code.operators(name))
        {
            if (operator.left == 0) == left.is_none() && self.reaches(schema, &operator.schema) {
                found.user(false);
            }
        }
        if let Some(builtins) = self.builtins()
            && self.reaches(schema, "pg_catalog")
        {
            let types = self.types();
            let operands: Vec<Operand> = left.into_iter().chain([right]).collect();
            let quiet_elements = builtins.quiet_elements(types, &operands);
            let mut candidates: Vec<Candidate<'_>> = builtins.operators(types, name, left, right).collect();
            if candidates.is_empty() {
                let as_cast = |operand| {
                    if self.is_castable(operand) {
                        Operand::Unsure
                    } else {
                        operand
                    }
                };
                candidates.extend(builtins.operators(types, name, left.map(as_cast), as_cast(right)));
            }
            self.note_implicit_casts(&mut found, &operands, &candidates);
            found.builtin(quiet_elements, candidates.into_iter());
        }
        found.facts()
    }
    /// The code that a cast to that type may run (its input function, its cast functions, a domain's checks). The
    /// name is as in [`CatalogView::resolve_type`], with its schema in front where one is written.
    pub fn cast(&self, target: &str) -> CodeFacts {
        let (name, is_array) = match target.strip_suffix("[]") {
            Some(element) => (element, true),
            None => (target, false),
        };
        let entry = self.resolve_type_entry(None, name).or_else(|| {
            let (schema, name) = name.split_once('.')?;
            self.resolve_type_entry(Some(schema), name)
        });
        let oid = match entry {
            Some(entry) if is_array => self.types().array_of(entry.oid),
            Some(entry) => Some(entry.oid),
            None => None,
        };
        oid.map_or_else(unlisted, |oid| self.cast_between(Operand::Unsure, oid, -1))
    }
    /// The code that a cast to that type may run, where the type of what is cast is known. `modifier` is the target's,
    /// -1 = none: `x::numeric(5,2)` may raise where `x::numeric` does not.
    pub fn cast_between(&self, source: Operand, target: Oid, modifier: i32) -> CodeFacts {
        let mut found = Found::default();
        self.cast_into(&mut found, source, target, modifier, 0);
        found.facts()
    }
    /// A call that is not quiet for every first argument is so for this literal: `extract` and `date_trunc` with their
    /// field, `~` and its kin (as operator names) with their pattern as the literal. `value` is the type of the other
    /// argument.
    pub fn quiet_with_literal(&self, name: &str, literal: &str, value: Operand) -> bool {
        let Operand::Typed(value) = value else {
            return false;
        };
        let Some((base, _)) = self.types().base(value, -1) else {
            return false;
        };
        match name {
            "~" | "~*" | "!~" | "!~*" => {
                matches!(base.oid, 25 | 1042 | 1043) && builtins::is_quiet_pattern(literal)
            }
            _ => builtins::quiet_with_literal(self.catalog.server_major, name, literal, base.oid),
        }
    }
    /// A user-defined cast function may run by itself on a value of that type.
    pub fn casts_implicitly(&self, source: Oid) -> bool {
        let mut casts = self.overlay.code.casts().iter().chain(self.catalog.code.casts());
        casts.any(|cast| cast.implicit && cast.function >= FIRST_USER_OID && cast.source == source)
    }

    fn cast_into(&self, found: &mut Found, source: Operand, target: Oid, modifier: i32, depth: usize) {
        let layers = self.types();
        let (Some(entry), Some(builtins)) = (layers.get(target), self.builtins()) else {
            found.merge(unlisted());
            return;
        };
        // Types made of types of types: the server has no limit, ours is far above what anyone writes.
        if depth > 100 {
            found.merge(unlisted());
            return;
        }
        for cast in self.overlay.code.casts().iter().chain(self.catalog.code.casts()) {
            let from_there = match source {
                Operand::Typed(oid) => {
                    oid == cast.source || layers.base(oid, -1).is_some_and(|b| b.0.oid == cast.source)
                }
                // A literal is read by the target's input function.
                Operand::Untyped => false,
                Operand::Unsure => true,
            };
            if cast.target == target && from_there && cast.function >= FIRST_USER_OID {
                found.user(false);
            }
        }
        let part = Operand::Unsure;
        match &entry.kind {
            TypeKind::Base { user_code: true } | TypeKind::Range { user_code: true, .. } => found.user(false),
            TypeKind::Base { user_code: false } => {
                // The text of a user's type is made by that type's own output function.
                if let Operand::Typed(oid) = source
                    && let Some((from, _)) = layers.base(oid, -1)
                    && matches!(from.kind, TypeKind::Base { user_code: true })
                {
                    found.user(false);
                }
                found.plain(builtins.quiet_cast(layers, source, target, modifier));
            }
            TypeKind::Pseudo | TypeKind::Enum => found.plain(false),
            TypeKind::Array { element } => self.cast_into(found, part, *element, -1, depth + 1),
            TypeKind::Range { subtype, .. } => {
                found.plain(false);
                self.cast_into(found, part, *subtype, -1, depth + 1);
            }
            TypeKind::Multirange { range } => self.cast_into(found, part, *range, -1, depth + 1),
            TypeKind::Composite { relation } => {
                found.plain(false);
                match self.relation(*relation) {
                    Some(relation) => {
                        for column in &relation.columns {
                            self.cast_into(found, part, column.column_type.oid, -1, depth + 1);
                        }
                    }
                    None => found.merge(unlisted()),
                }
            }
            TypeKind::Domain {
                base,
                checks,
                user_code,
                ..
            } => {
                found.plain(false);
                if *user_code {
                    found.user(false);
                }
                for check in checks {
                    found.merge(self.check_code(check));
                }
                self.cast_into(found, source, *base, -1, depth + 1);
            }
        }
        if depth > 0 {
            found.plain(false);
        }
    }

    /// The strictest code of any name in a CHECK that the server printed. `pg_depend` already said that nothing of it
    /// is a user's, so names count as built in.
    fn check_code(&self, printed: &str) -> CodeFacts {
        // Longer than any check a person writes; keeps the walk shallow.
        const CHECK_BYTES_MAX: usize = 8192;
        let expression = printed
            .strip_prefix("CHECK ")
            .filter(|rest| rest.len() <= CHECK_BYTES_MAX);
        let (Some(expression), Some(builtins)) = (expression, self.builtins()) else {
            return unlisted();
        };
        let expression = expression.strip_suffix(" NOT VALID").unwrap_or(expression);
        let Ok(tree) = pg_raw_parse::parse(&format!("SELECT {expression}")) else {
            return unlisted();
        };
        let mut found = Found::default();
        found.plain(false);
        for statement in tree.iter() {
            pg_raw_parse::walk::walk(statement.stmt(), |node| {
                if let pg_raw_parse::Node::FuncCall(call) = node {
                    let name = call
                        .funcname()
                        .iter()
                        .filter_map(string_of)
                        .next_back()
                        .unwrap_or_default();
                    let arguments = vec![Operand::Unsure; call.args().len()];
                    let before = found.builtins;
                    found.builtin(false, builtins.functions(self.types(), name, &arguments));
                    if found.builtins == before {
                        found.merge(unlisted());
                    }
                }
            });
        }
        found.facts()
    }

    /// A user's implicit cast may make something else of it.
    fn is_castable(&self, operand: Operand) -> bool {
        let Operand::Typed(oid) = operand else {
            return false;
        };
        self.casts_implicitly(oid)
            || self
                .types()
                .base(oid, -1)
                .is_some_and(|b| self.casts_implicitly(b.0.oid))
    }
    fn castable(&self, operands: &[Operand]) -> Vec<Operand> {
        let as_cast = |operand: &Operand| {
            if self.is_castable(*operand) {
                Operand::Unsure
            } else {
                *operand
            }
        };
        operands.iter().map(as_cast).collect()
    }
    /// Marks calls on whose way to a built-in parameter a user's implicit cast function may run.
    fn note_implicit_casts(&self, found: &mut Found, operands: &[Operand], candidates: &[Candidate<'_>]) {
        let casts = self.overlay.code.casts().iter().chain(self.catalog.code.casts());
        for cast in casts.filter(|cast| cast.implicit && cast.function >= FIRST_USER_OID) {
            let may_be = |operand: &Operand| match operand {
                Operand::Untyped => false,
                Operand::Unsure => true,
                Operand::Typed(oid) => {
                    *oid == cast.source
                        || self
                            .types()
                            .base(*oid, -1)
                            .is_some_and(|b| b.0.oid == cast.source)
                }
            };
            let takes = |candidate: &Candidate<'_>| {
                let parameters = &candidate.function.arguments;
                candidate.function.variadic && operands.iter().any(may_be)
                    || operands
                        .iter()
                        .zip(parameters)
                        .any(|(o, parameter)| *parameter == cast.target && may_be(o))
            };
            if candidates.iter().any(takes) {
                found.user(false);
            }
        }
    }
    /// A name written with that schema (or none) may mean something of `home`.
    fn reaches(&self, written: Option<&str>, home: &str) -> bool {
        let temp = self.overlay.temp_schema.as_deref();
        match written {
            Some("pg_temp") => temp == Some(home),
            Some(schema) => schema == home,
            // Functions and operators are never looked up in the temporary schema unless it is written.
            None => temp != Some(home) && self.schemas().any(|schema| schema == home),
        }
    }
    pub(super) fn builtins(&self) -> Option<&'static Builtins> {
        builtins::of_major(self.catalog.server_major)
    }
}

/// Collects the strictest of what a name could mean.
#[derive(Default)]
struct Found {
    facts: Option<CodeFacts>,
    /// How many built-in functions were merged in.
    builtins: usize,
    user: bool,
    user_aggregate: bool,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.facts.is_none() && !self.user
    }
    fn user(&mut self, aggregate: bool) {
        self.user = true;
        self.user_aggregate |= aggregate;
    }
    fn plain(&mut self, quiet: bool) {
        self.merge(CodeFacts {
            origin: FunctionOrigin::BuiltIn,
            class: FunctionClass::Open,
            quiet,
            aggregate: false,
            server_files: false,
            relations: Vec::new(),
        });
    }
    fn builtin<'b>(&mut self, quiet_elements: bool, candidates: impl Iterator<Item = Candidate<'b>>) {
        for Candidate {
            function,
            quiet_arguments,
        } in candidates
        {
            self.builtins += 1;
            self.merge(CodeFacts {
                origin: FunctionOrigin::BuiltIn,
                class: function.class,
                quiet: match function.quiet {
                    Quiet::No => false,
                    Quiet::Yes => quiet_arguments,
                    Quiet::OfElements => quiet_arguments && quiet_elements,
                },
                aggregate: function.aggregate,
                server_files: function.files,
                relations: function.relations.clone(),
            });
        }
    }
    fn merge(&mut self, other: CodeFacts) {
        if other.origin == FunctionOrigin::UserDefined {
            self.user = true;
        }
        self.facts = Some(match self.facts.take() {
            None => other,
            Some(mut facts) => {
                facts.class = facts.class.max(other.class);
                facts.quiet &= other.quiet;
                facts.aggregate |= other.aggregate;
                facts.server_files |= other.server_files;
                for relation in other.relations {
                    if !facts.relations.contains(&relation) {
                        facts.relations.push(relation);
                    }
                }
                if other.origin == FunctionOrigin::Unknown {
                    facts.origin = FunctionOrigin::Unknown;
                }
                facts
            }
        });
    }
    fn facts(self) -> CodeFacts {
        let mut facts = self.facts.unwrap_or_else(unlisted);
        if self.user {
            facts.aggregate |= self.user_aggregate;
            facts.quiet = false;
            if facts.origin == FunctionOrigin::BuiltIn && facts.class == FunctionClass::Unlisted {
                facts.class = FunctionClass::Server;
            }
            facts.origin = FunctionOrigin::UserDefined;
        }
        facts
    }
}

fn string_of(node: pg_raw_parse::Node<'_>) -> Option<&str> {
    match node {
        pg_raw_parse::Node::String(string) => string.sval(),
        _ => None,
    }
}
