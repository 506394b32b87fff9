//! `bind`: names of policies → (OID, attribute number) of a catalog, and what follows for parents, children, generated
//! columns and views.
//!
//! Whatever cannot be bound closes what it names: a column that the table does not have closes the table, a name that
//! resolved before and no longer does keeps its relation closed by OID, a definition that cannot be read closes the
//! view. Nothing becomes free because a name moved.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use row_masking::{Mask, MaskForm};
use sql_facts::facts::{Call, CallSyntax, Transformation};
use sql_facts::{
    AttNum, Catalog, CatalogView, Oid, Overlay, Relation, RelationKind, SearchPath, StatementFacts,
};

use crate::decide::RuleRef;
use crate::names::{ColumnName, TableName, TablePattern};
use crate::policy::{DatabasePolicy, Effect, Policy, PolicyMode, ReceiptMode, SubjectPattern};
use crate::predicate::{Predicate, Typing};

/// The tightest of the guardrails in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guardrails {
    /// UPDATE needs an effective WHERE.
    pub require_where_update: bool,
    /// DELETE needs an effective WHERE.
    pub require_where_delete: bool,
    /// Rows changed in one transaction.
    pub max_affected_rows: Option<u64>,
    /// Rows delivered by one statement.
    pub max_returned_rows: Option<u64>,
    /// Seconds from the message to its last answer.
    pub statement_timeout_seconds: Option<u32>,
}

/// A policy with its names bound to a catalog: columns are (OID, attribute number), kept even when a later catalog
/// no longer has the name.
#[derive(Debug, Clone)]
pub struct BoundPolicy {
    /// Counts up whenever policy or binding changes; part of every decision's key.
    pub generation: u64,
    /// Any mask, row filter, Deny rule or `defaultAction: Deny` is in force (an Audit policy's too).
    pub protected: bool,
    /// Every policy in force is in Audit mode.
    pub audit_only: bool,
    /// Tightest guardrails of the enforcing policies.
    pub guardrails: Guardrails,
    /// Strictest receipt mode.
    pub receipt_mode: ReceiptMode,
    /// Relations with a mask or filter for anybody (wire check, catalog close-down).
    pub governed_relations: BTreeSet<Oid>,
    /// The policies, for their rules that are matched by name.
    pub(crate) policies: Vec<Arc<Policy>>,
    /// Masks by column.
    pub(crate) masks: BTreeMap<Oid, BTreeMap<AttNum, Vec<BoundMask>>>,
    /// Filters by relation.
    pub(crate) filters: BTreeMap<Oid, Vec<BoundFilter>>,
    /// Relations that nobody may touch.
    pub(crate) closed: BTreeMap<Oid, Vec<Closed>>,
    /// The same, for names that no relation has.
    pub(crate) closed_names: Vec<(TableName, Closed)>,
    /// Relations of Deny rules, by (policy, rule): also what had the name before.
    pub(crate) denied: BTreeMap<(usize, usize), BTreeSet<Oid>>,
    /// What views read and call, through all levels.
    pub(crate) views: BTreeMap<Oid, ViewFacts>,
    /// Relations that were there when the names were looked up.
    pub(crate) known: Arc<HashMap<Oid, Arc<Relation>>>,
    bindings: BTreeMap<BindingKey, Vec<Target>>,
}

/// A mask on a column.
#[derive(Debug, Clone)]
pub(crate) struct BoundMask {
    pub(crate) policy: usize,
    pub(crate) rule: RuleRef,
    pub(crate) mask: Mask,
    pub(crate) except: Vec<SubjectPattern>,
}

/// A filter on a relation.
#[derive(Debug, Clone)]
pub(crate) struct BoundFilter {
    pub(crate) policy: usize,
    pub(crate) rule: RuleRef,
    pub(crate) predicate: Predicate,
    /// For views: names of the base table's columns → names of the view's.
    pub(crate) renames: BTreeMap<String, String>,
    pub(crate) except: Vec<SubjectPattern>,
}

/// Why a relation is closed.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) policy: usize,
    pub(crate) rule: RuleRef,
    pub(crate) reason: String,
    /// Who is not concerned (a view that cannot carry a filter is open to whom the filter does not hold).
    pub(crate) except: Vec<SubjectPattern>,
}

/// What a view reads and calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct ViewFacts {
    pub(crate) reads: BTreeMap<Oid, BTreeSet<AttNum>>,
    pub(crate) calls: Vec<Call>,
}

/// A name that a policy uses and the database does not have, or that it cannot use as asked. What it names is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// Policy.
    pub policy: String,
    /// Path of the field.
    pub field: String,
    /// The name.
    pub name: String,
    /// It resolved before (renamed or dropped): its relation stays closed by OID.
    pub was_bound: bool,
    /// What is wrong, and what follows.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BindingKey {
    policy: String,
    rule: String,
    name: String,
}

/// What a name meant; 0 for the whole relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    relation: Oid,
    column: AttNum,
}

/// Looks the policy's names up. `previous` keeps what was bound before, so that renaming never unprotects.
pub fn bind(
    policy: &DatabasePolicy,
    catalog: &Catalog,
    previous: Option<&BoundPolicy>,
) -> (BoundPolicy, Vec<Unresolved>) {
    let mut binding = Binding {
        policy,
        catalog,
        previous,
        unresolved: Vec::new(),
        bound: BoundPolicy {
            generation: previous.map_or(1, |previous| previous.generation.saturating_add(1)),
            protected: policy.is_empty() || policy.policies.iter().any(|policy| policy.protects()),
            audit_only: !policy.is_empty()
                && policy
                    .policies
                    .iter()
                    .all(|policy| policy.mode == PolicyMode::Audit),
            guardrails: tightest(policy),
            receipt_mode: policy.receipt_mode(),
            governed_relations: BTreeSet::new(),
            policies: policy.policies.clone(),
            masks: BTreeMap::new(),
            filters: BTreeMap::new(),
            closed: BTreeMap::new(),
            closed_names: Vec::new(),
            denied: BTreeMap::new(),
            views: BTreeMap::new(),
            known: Arc::clone(&catalog.relations),
            bindings: BTreeMap::new(),
        },
    };
    binding.masks();
    binding.filters();
    binding.denied();
    binding.families();
    binding.generated_columns();
    binding.views();
    binding.check_forms();
    let Binding {
        mut bound,
        unresolved,
        ..
    } = binding;
    bound.governed_relations = bound.masks.keys().chain(bound.filters.keys()).copied().collect();
    (bound, unresolved)
}

fn tightest(policy: &DatabasePolicy) -> Guardrails {
    let mut tightest = Guardrails::default();
    let enforcing = policy
        .policies
        .iter()
        .filter(|policy| policy.mode == PolicyMode::Enforce);
    for rules in enforcing.map(|policy| &policy.guardrails) {
        tightest.require_where_update |= rules.require_where_update;
        tightest.require_where_delete |= rules.require_where_delete;
        tightest.max_affected_rows = least(tightest.max_affected_rows, rules.max_affected_rows);
        tightest.max_returned_rows = least(tightest.max_returned_rows, rules.max_returned_rows);
        tightest.statement_timeout_seconds = least(
            tightest.statement_timeout_seconds,
            rules.statement_timeout_seconds,
        );
    }
    tightest
}

fn least<N: Ord>(left: Option<N>, right: Option<N>) -> Option<N> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (left, right) => left.or(right),
    }
}

/// Where rows can be read from, so that a mask or filter has a meaning there.
fn holds_rows(kind: RelationKind) -> bool {
    match kind {
        RelationKind::Table
        | RelationKind::PartitionedTable
        | RelationKind::View
        | RelationKind::MaterializedView
        | RelationKind::ForeignTable => true,
        RelationKind::Sequence | RelationKind::CompositeType | RelationKind::Toast | RelationKind::Index => {
            false
        }
    }
}

struct Binding<'a> {
    policy: &'a DatabasePolicy,
    catalog: &'a Catalog,
    previous: Option<&'a BoundPolicy>,
    unresolved: Vec<Unresolved>,
    bound: BoundPolicy,
}

/// What a rule is, while its names are looked up.
struct Rule<'r> {
    policy: usize,
    id: &'r str,
    name: &'r str,
}

impl Rule<'_> {
    fn reference(&self) -> RuleRef {
        RuleRef {
            policy: self.id.to_owned(),
            rule: self.name.to_owned(),
        }
    }
}

impl<'a> Binding<'a> {
    fn named(&self, schema: &str, name: &str) -> Option<&'a Arc<Relation>> {
        let oid = self.catalog.names.get(schema)?.get(name)?;
        self.catalog.relations.get(oid)
    }

    fn close(&mut self, relation: Oid, rule: &Rule<'_>, reason: String) {
        self.close_except(relation, rule, reason, Vec::new());
    }

    fn close_except(&mut self, relation: Oid, rule: &Rule<'_>, reason: String, except: Vec<SubjectPattern>) {
        self.bound.closed.entry(relation).or_default().push(Closed {
            policy: rule.policy,
            rule: rule.reference(),
            reason,
            except,
        });
    }

    fn miss(&mut self, rule: &Rule<'_>, field: &str, name: &str, was_bound: bool, reason: String) {
        self.unresolved.push(Unresolved {
            policy: rule.id.to_owned(),
            field: field.to_owned(),
            name: name.to_owned(),
            was_bound,
            reason,
        });
    }

    /// Remembers what a name means now, and gives what else it meant before and still exists.
    fn remember(&mut self, rule: &Rule<'_>, name: &str, now: Option<Target>) -> Vec<Target> {
        let key = BindingKey {
            policy: rule.id.to_owned(),
            rule: rule.name.to_owned(),
            name: name.to_owned(),
        };
        let before = self.previous.and_then(|previous| previous.bindings.get(&key));
        let still_there = |target: &Target| {
            self.catalog
                .relations
                .get(&target.relation)
                .is_some_and(|relation| {
                    target.column == 0 || relation.column_by_number(target.column).is_some()
                })
        };
        let others: Vec<Target> = before
            .into_iter()
            .flatten()
            .filter(|target| Some(**target) != now && still_there(target))
            .copied()
            .collect();
        let kept = self.bound.bindings.entry(key).or_default();
        for target in others.iter().copied().chain(now) {
            if !kept.contains(&target) {
                kept.push(target);
            }
        }
        others
    }

    fn masks(&mut self) {
        let policies = &self.policy.policies;
        for (index, policy) in policies.iter().enumerate() {
            for mask in &policy.masks {
                let rule = Rule {
                    policy: index,
                    id: &policy.id,
                    name: &mask.name,
                };
                let (shown, trouble) = self.policy.mask(&mask.mask);
                if let Some(reason) = trouble {
                    let reason = format!("{reason}; its columns read NULL");
                    self.miss(
                        &rule,
                        &format!("{}.mask.keySecretRef", mask.field),
                        &mask.name,
                        false,
                        reason,
                    );
                }
                let direct = mask.columns.iter().enumerate().map(|(at, column)| {
                    let field = format!("{}.columns[{at}]", mask.field);
                    (column, field)
                });
                // Labels of an Audit policy serve an enforcing one too: naming a column changes nothing by itself.
                let labelled = policies.iter().flat_map(|policy| &policy.classifications);
                let labelled = labelled
                    .filter(|(label, _, _)| mask.labels.iter().any(|pattern| pattern.matches(label)))
                    .map(|(_, column, field)| (column, field.clone()));
                let columns: Vec<(&ColumnName, String)> = direct.chain(labelled).collect();
                for (column, field) in columns {
                    let bound = BoundMask {
                        policy: index,
                        rule: rule.reference(),
                        mask: shown.clone(),
                        except: mask.except.clone(),
                    };
                    self.mask_column(&rule, column, &field, &bound);
                }
            }
        }
    }

    fn mask_column(&mut self, rule: &Rule<'_>, column: &ColumnName, field: &str, mask: &BoundMask) {
        let name = column.to_string();
        let relation = self.named(&column.table.schema, &column.table.name);
        let found = relation.and_then(|relation| Some((relation, relation.column(&column.column)?)));
        let now = found.map(|(relation, found)| Target {
            relation: relation.oid,
            column: found.number,
        });
        let others = self.remember(rule, &name, now);
        for target in others.iter().copied().chain(now) {
            self.add_mask(target.relation, target.column, mask.clone());
        }
        for target in &others {
            let reason = format!("{name} was a column of it and is not any more");
            self.close(target.relation, rule, reason);
        }
        if now.is_some() {
            if !others.is_empty() {
                let reason = format!("{name} means another column now; the one it meant before is closed");
                self.miss(rule, field, &name, true, reason);
            }
            return;
        }
        match relation {
            Some(relation) => {
                let reason = format!("the policy names its column {name}, which it does not have");
                self.close(relation.oid, rule, reason);
                let reason = "the table has no such column and is closed".to_owned();
                self.miss(rule, field, &name, !others.is_empty(), reason);
            }
            None => {
                self.close_name(&column.table, rule, &name);
                let reason =
                    "there is no such table; a table of that name is closed until the policy is mended";
                self.miss(rule, field, &name, !others.is_empty(), reason.to_owned());
            }
        }
    }

    fn close_name(&mut self, table: &TableName, rule: &Rule<'_>, name: &str) {
        let closed = Closed {
            policy: rule.policy,
            rule: rule.reference(),
            reason: format!("the policy names {name}, which did not exist when its names were looked up"),
            except: Vec::new(),
        };
        self.bound.closed_names.push((table.clone(), closed));
    }

    fn add_mask(&mut self, relation: Oid, column: AttNum, mask: BoundMask) -> bool {
        let masks = self
            .bound
            .masks
            .entry(relation)
            .or_default()
            .entry(column)
            .or_default();
        let there = masks
            .iter()
            .any(|known| known.rule == mask.rule && known.mask == mask.mask && known.except == mask.except);
        if !there {
            masks.push(mask);
        }
        !there
    }

    fn add_filter(&mut self, relation: Oid, filter: BoundFilter) -> bool {
        let filters = self.bound.filters.entry(relation).or_default();
        let there = filters
            .iter()
            .any(|known| known.rule == filter.rule && known.renames == filter.renames);
        if !there {
            filters.push(filter);
        }
        !there
    }

    fn filters(&mut self) {
        let policies = &self.policy.policies;
        for (index, policy) in policies.iter().enumerate() {
            for filter in &policy.row_filters {
                let rule = Rule {
                    policy: index,
                    id: &policy.id,
                    name: &filter.name,
                };
                for (at, pattern) in filter.tables.iter().enumerate() {
                    let field = format!("{}.tables[{at}]", filter.field);
                    let bound = BoundFilter {
                        policy: index,
                        rule: rule.reference(),
                        predicate: filter.predicate.clone(),
                        renames: BTreeMap::new(),
                        except: filter.except.clone(),
                    };
                    for relation in self.tables(&rule, pattern, &field) {
                        self.filter_table(&rule, relation, &field, bound.clone());
                    }
                }
            }
        }
    }

    /// The relations a pattern means now and meant before; what cannot be found is closed.
    fn tables(&mut self, rule: &Rule<'_>, pattern: &TablePattern, field: &str) -> BTreeSet<Oid> {
        match pattern {
            TablePattern::Schema(schema) => {
                let names = self.catalog.names.get(schema);
                let here = names.into_iter().flat_map(BTreeMap::values).copied();
                let here: BTreeSet<Oid> = here
                    .filter(|oid| {
                        let relation = self.catalog.relations.get(oid);
                        relation.is_some_and(|relation| holds_rows(relation.kind))
                    })
                    .collect();
                let mut all = here.clone();
                for oid in &here {
                    let now = Target {
                        relation: *oid,
                        column: 0,
                    };
                    all.extend(
                        self.remember(rule, &pattern.to_string(), Some(now))
                            .iter()
                            .map(|old| old.relation),
                    );
                }
                if here.is_empty() {
                    all.extend(
                        self.remember(rule, &pattern.to_string(), None)
                            .iter()
                            .map(|old| old.relation),
                    );
                }
                all
            }
            TablePattern::One(table) => {
                let name = table.to_string();
                let found = self
                    .named(&table.schema, &table.name)
                    .map(|relation| relation.oid);
                let now = found.map(|relation| Target { relation, column: 0 });
                let others = self.remember(rule, &name, now);
                for old in &others {
                    self.close(
                        old.relation,
                        rule,
                        format!("it was called {name} and is not any more"),
                    );
                }
                if now.is_none() {
                    self.close_name(table, rule, &name);
                    let reason =
                        "there is no such table; a table of that name is closed until the policy is mended";
                    self.miss(rule, field, &name, !others.is_empty(), reason.to_owned());
                } else if !others.is_empty() {
                    let reason = "means another table now; the one it meant before is closed".to_owned();
                    self.miss(rule, field, &name, true, reason);
                }
                others
                    .into_iter()
                    .chain(now)
                    .map(|target| target.relation)
                    .collect()
            }
        }
    }

    fn filter_table(&mut self, rule: &Rule<'_>, oid: Oid, field: &str, filter: BoundFilter) {
        let Some(relation) = self.catalog.relations.get(&oid) else {
            return;
        };
        if !holds_rows(relation.kind) {
            let reason = "holds no rows of its own, so no filter can hold there".to_owned();
            self.close(oid, rule, reason.clone());
            self.miss(rule, field, &relation.name, false, reason);
            return;
        }
        if let Err(reason) = self.filter_columns(relation, &filter) {
            self.close(oid, rule, format!("its row filter cannot be used: {reason}"));
            let reason = format!("the predicate cannot be used there: {reason}; the table is closed");
            self.miss(rule, field, &relation.name, false, reason);
        }
        self.add_filter(oid, filter);
    }

    /// The columns that a filter reads of a relation, by their names; the predicate must be quiet and stay within it.
    fn filter_columns(&self, relation: &Relation, filter: &BoundFilter) -> Result<BTreeSet<String>, String> {
        let text = filter.predicate.render(
            |_, typing| match typing {
                Typing::Cast => Some("NULL".to_owned()),
                Typing::Column(column) => {
                    relation.column(filter.renames.get(column).unwrap_or(column))?;
                    Some("NULL".to_owned())
                }
            },
            |column| filter.renames.get(column).cloned(),
        );
        let text = text.map_err(|claim| {
            format!("a claim is compared with a column it does not have (:claims.{claim})")
        })?;
        let table = TableName {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
        };
        let probe = format!("SELECT 1 FROM {} WHERE {text}", table.sql());
        let facts = read_text(&probe, self.catalog, &SearchPath(Vec::new()))?;
        if let Some(loud) = facts
            .calls
            .iter()
            .find(|call| !call.quiet && !casts_constant(call, &probe))
        {
            return Err(format!(
                "{} can fail or speak about rows that the filter hides; only quiet built-in code may stand there",
                loud.name
            ));
        }
        let mut columns = BTreeSet::new();
        for range in &facts.ranges {
            if range.relation != relation.oid || range.needs_all_columns {
                return Err("it reads more than columns of the table".to_owned());
            }
            for number in &range.used_columns {
                let column = relation
                    .column_by_number(*number)
                    .ok_or("it reads a system column")?;
                columns.insert(column.name.clone());
            }
        }
        Ok(columns)
    }

    /// Deny rules keep what they named, so that renaming lifts none.
    fn denied(&mut self) {
        let policies = &self.policy.policies;
        for (index, policy) in policies.iter().enumerate() {
            for (at, access) in policy.access.iter().enumerate() {
                if access.effect != Effect::Deny {
                    continue;
                }
                let rule = Rule {
                    policy: index,
                    id: &policy.id,
                    name: &access.name,
                };
                let mut oids = BTreeSet::new();
                for pattern in &access.tables {
                    let name = pattern.to_string();
                    let relations: Vec<Oid> = match pattern {
                        TablePattern::One(table) => {
                            let found = self.named(&table.schema, &table.name);
                            found.map(|relation| relation.oid).into_iter().collect()
                        }
                        TablePattern::Schema(schema) => {
                            let names = self.catalog.names.get(schema);
                            names.into_iter().flat_map(BTreeMap::values).copied().collect()
                        }
                    };
                    let mut before = Vec::new();
                    for relation in &relations {
                        let target = Target {
                            relation: *relation,
                            column: 0,
                        };
                        before.extend(self.remember(&rule, &name, Some(target)));
                    }
                    if relations.is_empty() {
                        before = self.remember(&rule, &name, None);
                    }
                    oids.extend(relations);
                    oids.extend(before.iter().map(|target| target.relation));
                }
                self.bound.denied.insert((index, at), oids);
            }
        }
    }

    /// Parents and children are one family: masks hold in both directions, filters downwards.
    fn families(&mut self) {
        let mut children: BTreeMap<Oid, Vec<Oid>> = BTreeMap::new();
        for relation in self.catalog.relations.values() {
            for parent in &relation.parents {
                children.entry(*parent).or_default().push(relation.oid);
            }
        }
        if children.is_empty() {
            return;
        }
        let masked: Vec<(Oid, AttNum, BoundMask)> = self
            .bound
            .masks
            .iter()
            .flat_map(|(oid, columns)| {
                let columns = columns.iter();
                columns.flat_map(|(column, masks)| masks.iter().map(|mask| (*oid, *column, mask.clone())))
            })
            .collect();
        for (oid, number, mask) in masked {
            let name = self.column_name(oid, number);
            for member in self.family(oid, &children, true) {
                let column = self
                    .catalog
                    .relations
                    .get(&member)
                    .and_then(|relation| relation.column(&name));
                if let Some(column) = column {
                    self.add_mask(member, column.number, mask.clone());
                }
            }
        }
        let filtered: Vec<(Oid, BoundFilter)> = self
            .bound
            .filters
            .iter()
            .flat_map(|(oid, filters)| filters.iter().map(|filter| (*oid, filter.clone())))
            .collect();
        for (oid, filter) in filtered {
            for member in self.family(oid, &children, false) {
                self.add_filter(member, filter.clone());
            }
            for parent in self.ancestors(oid) {
                let there = self.bound.filters.get(&parent).into_iter().flatten();
                if !there.into_iter().any(|known| known.rule == filter.rule) {
                    let rule = filter.rule.clone();
                    self.bound.closed.entry(parent).or_default().push(Closed {
                        policy: filter.policy,
                        rule,
                        reason: "a row filter holds on one of its children only; name the parent in it"
                            .to_owned(),
                        except: filter.except.clone(),
                    });
                }
            }
        }
        let shut: Vec<(Oid, Closed)> = self
            .bound
            .closed
            .iter()
            .flat_map(|(oid, reasons)| reasons.iter().map(|closed| (*oid, closed.clone())))
            .collect();
        for (oid, closed) in shut {
            // What a parent shows is its children's too.
            for parent in self.ancestors(oid) {
                let there = self.bound.closed.entry(parent).or_default();
                if !there
                    .iter()
                    .any(|known| known.rule == closed.rule && known.reason == closed.reason)
                {
                    there.push(closed.clone());
                }
            }
        }
    }

    fn column_name(&self, oid: Oid, number: AttNum) -> String {
        let relation = self.catalog.relations.get(&oid);
        let column = relation.and_then(|relation| relation.column_by_number(number));
        column.map(|column| column.name.clone()).unwrap_or_default()
    }

    fn ancestors(&self, oid: Oid) -> BTreeSet<Oid> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![oid];
        while let Some(next) = waiting.pop() {
            let relation = self.catalog.relations.get(&next);
            for parent in relation.into_iter().flat_map(|relation| &relation.parents) {
                if found.insert(*parent) {
                    waiting.push(*parent);
                }
            }
        }
        found
    }

    /// Everything below it, and with `both` everything it is connected with.
    fn family(&self, oid: Oid, children: &BTreeMap<Oid, Vec<Oid>>, both: bool) -> BTreeSet<Oid> {
        let mut found = BTreeSet::from([oid]);
        let mut waiting = vec![oid];
        while let Some(next) = waiting.pop() {
            let below = children.get(&next).into_iter().flatten();
            let relation = self.catalog.relations.get(&next).filter(|_| both);
            let above = relation.into_iter().flat_map(|relation| &relation.parents);
            for member in below.chain(above) {
                if found.insert(*member) {
                    waiting.push(*member);
                }
            }
        }
        found.remove(&oid);
        found
    }

    /// A column computed from a masked one reads NULL (or the constant), whatever the other's mask: a mask made for
    /// an address means nothing on its reverse.
    fn generated_columns(&mut self) {
        let mut derived = Vec::new();
        for (oid, columns) in &self.bound.masks {
            let Some(relation) = self.catalog.relations.get(oid) else {
                continue;
            };
            for column in &relation.columns {
                for source in column.generated_from.iter().flatten() {
                    for mask in columns.get(source).into_iter().flatten() {
                        derived.push((*oid, column.number, nulled(mask)));
                    }
                }
            }
        }
        for (oid, number, mask) in derived {
            self.add_mask(oid, number, mask);
        }
    }

    /// Views carry the masks of what their columns come from, and the filters of what they read where they can.
    fn views(&mut self) {
        let views: Vec<(Oid, &'a Arc<Relation>, Result<StatementFacts, String>)> = self
            .catalog
            .relations
            .values()
            .filter(|relation| !matches!(relation.schema.as_str(), "pg_catalog" | "information_schema"))
            .filter(|relation| matches!(relation.kind, RelationKind::View | RelationKind::MaterializedView))
            .map(|relation| (relation.oid, relation, self.read_definition(relation)))
            .collect();
        for (oid, _, facts) in &views {
            if let Ok(facts) = facts {
                let mut reads: BTreeMap<Oid, BTreeSet<AttNum>> = BTreeMap::new();
                for range in &facts.ranges {
                    reads
                        .entry(range.relation)
                        .or_default()
                        .extend(&range.used_columns);
                }
                for action in &facts.actions {
                    if let Some(relation) = action.relation {
                        reads.entry(relation).or_default().extend(&action.columns);
                    }
                }
                let calls = facts.calls.clone();
                self.bound.views.insert(*oid, ViewFacts { reads, calls });
            }
        }
        self.close_over_views();
        let anything =
            !self.bound.masks.is_empty() || !self.bound.filters.is_empty() || !self.bound.closed.is_empty();
        if !anything {
            return;
        }
        for (oid, relation, facts) in &views {
            if let Err(reason) = facts {
                self.close_view(
                    *oid,
                    format!(
                        "what view {}.{} shows is not known: {reason}",
                        relation.schema, relation.name
                    ),
                );
            }
        }
        // A view may read a view: until nothing changes. Each round settles at least one level.
        for _ in 0..=views.len() {
            let mut changed = false;
            for (oid, relation, facts) in &views {
                if let Ok(facts) = facts {
                    changed |= self.view_masks(*oid, relation, facts);
                    changed |= self.view_filters(*oid, relation, facts);
                    changed |= self.view_closed(*oid, facts);
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn read_definition(&self, relation: &Relation) -> Result<StatementFacts, String> {
        let definition = relation
            .definition
            .as_deref()
            .ok_or("its definition could not be read")?;
        let facts = read_text(definition, self.catalog, &relation.definition_path)?;
        if facts.output.len() == relation.columns.len() {
            Ok(facts)
        } else {
            Err("its definition has another number of columns".to_owned())
        }
    }

    /// What is read through views is read, whatever the level.
    fn close_over_views(&mut self) {
        for _ in 0..=self.bound.views.len() {
            let mut changed = false;
            let before = self.bound.views.clone();
            for view in self.bound.views.values_mut() {
                let inner: Vec<&ViewFacts> = view.reads.keys().filter_map(|oid| before.get(oid)).collect();
                for inner in inner {
                    for (relation, columns) in &inner.reads {
                        let fresh = !view.reads.contains_key(relation);
                        let known = view.reads.entry(*relation).or_default();
                        let count = known.len();
                        known.extend(columns);
                        changed |= fresh || count != known.len();
                    }
                    for call in &inner.calls {
                        if !view.calls.contains(call) {
                            view.calls.push(call.clone());
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn close_view(&mut self, oid: Oid, reason: String) {
        // Closed by whoever protects anything here: which of them it would have been, nobody can tell.
        let protecting: Vec<(usize, String)> = self
            .bound
            .policies
            .iter()
            .enumerate()
            .filter(|(_, policy)| policy.protects())
            .map(|(index, policy)| (index, policy.id.clone()))
            .collect();
        for (index, id) in protecting {
            let rule = Rule {
                policy: index,
                id: &id,
                name: "views",
            };
            self.close(oid, &rule, reason.clone());
        }
    }

    fn view_masks(&mut self, oid: Oid, relation: &Relation, facts: &StatementFacts) -> bool {
        let mut found = Vec::new();
        for (column, output) in relation.columns.iter().zip(&facts.output) {
            for source in &output.sources {
                let Some(masks) = self.bound.masks.get(&source.column.relation) else {
                    continue;
                };
                let identity = source.transformation == Transformation::Identity;
                if source.column.column == 0 {
                    found.extend(masks.values().flatten().map(|mask| (column.number, nulled(mask))));
                } else if let Some(masks) = masks.get(&source.column.column) {
                    let same = |mask: &BoundMask| if identity { mask.clone() } else { nulled(mask) };
                    found.extend(masks.iter().map(|mask| (column.number, same(mask))));
                }
            }
        }
        let mut changed = false;
        for (number, mask) in found {
            changed |= self.add_mask(oid, number, mask);
        }
        changed
    }

    fn view_filters(&mut self, oid: Oid, relation: &Relation, facts: &StatementFacts) -> bool {
        let mut found = Vec::new();
        let mut shut = Vec::new();
        let read: BTreeSet<Oid> = facts.ranges.iter().map(|range| range.relation).collect();
        for base in read {
            let filters = self.bound.filters.get(&base).cloned().unwrap_or_default();
            let times = facts.ranges.iter().filter(|range| range.relation == base).count();
            for filter in filters {
                match self.carried(base, times, relation, facts, &filter) {
                    Ok(renames) => found.push(BoundFilter { renames, ..filter }),
                    Err(reason) => shut.push((filter, reason)),
                }
            }
        }
        let mut changed = false;
        for filter in found {
            changed |= self.add_filter(oid, filter);
        }
        for (filter, reason) in shut {
            let reason = format!("it reads a table with a row filter and {reason}");
            let closed = self.bound.closed.entry(oid).or_default();
            if !closed
                .iter()
                .any(|known| known.rule == filter.rule && known.reason == reason)
            {
                closed.push(Closed {
                    policy: filter.policy,
                    rule: filter.rule,
                    reason,
                    except: filter.except,
                });
                changed = true;
            }
        }
        changed
    }

    /// How the view's own columns are called that a filter of `base` needs. Only where a row of the view comes from
    /// one row of the base table does a filter behind the view hide what a filter on the table would.
    fn carried(
        &self,
        base: Oid,
        times: usize,
        view: &Relation,
        facts: &StatementFacts,
        filter: &BoundFilter,
    ) -> Result<BTreeMap<String, String>, String> {
        let base_relation = self.catalog.relations.get(&base).ok_or("that table is gone")?;
        if times != 1 {
            return Err("reads it more than once".to_owned());
        }
        if facts.calls.iter().any(|call| call.aggregate) {
            return Err("puts rows together".to_owned());
        }
        let mut renames = BTreeMap::new();
        for column in self.filter_columns(base_relation, filter)? {
            let number = base_relation.column(&column).map_or(0, |column| column.number);
            let shown = view.columns.iter().zip(&facts.output).find(|(_, output)| {
                let mut sources = output.sources.iter();
                matches!(
                    (sources.next(), sources.next()),
                    (Some(source), None) if source.transformation == Transformation::Identity
                        && source.column.relation == base && source.column.column == number
                )
            });
            let (shown, _) = shown.ok_or_else(|| format!("does not show its column {column} unchanged"))?;
            renames.insert(column, shown.name.clone());
        }
        // Names in the predicate are those of the first table: a view over a view maps them on.
        let mut composed = BTreeMap::new();
        for (first, second) in &filter.renames {
            if let Some(third) = renames.get(second) {
                composed.insert(first.clone(), third.clone());
            }
        }
        for (second, third) in renames {
            if !filter.renames.values().any(|renamed| *renamed == second) {
                composed.insert(second, third);
            }
        }
        Ok(composed)
    }

    fn view_closed(&mut self, oid: Oid, facts: &StatementFacts) -> bool {
        let read: BTreeSet<Oid> = facts.ranges.iter().map(|range| range.relation).collect();
        let mut changed = false;
        for base in read.into_iter().filter(|base| *base != oid) {
            for closed in self.bound.closed.get(&base).cloned().unwrap_or_default() {
                let there = self.bound.closed.entry(oid).or_default();
                if !there
                    .iter()
                    .any(|known| known.rule == closed.rule && known.reason == closed.reason)
                {
                    there.push(closed);
                    changed = true;
                }
            }
        }
        changed
    }

    /// A mask that the column's type does not have reads NULL, and is told.
    fn check_forms(&mut self) {
        let mut told = Vec::new();
        for (oid, columns) in &mut self.bound.masks {
            let Some(relation) = self.catalog.relations.get(oid) else {
                continue;
            };
            for (number, masks) in columns {
                let Some(column) = relation.column_by_number(*number) else {
                    continue;
                };
                for mask in masks {
                    if let Err(error) = row_masking::form(&mask.mask, &column.column_type) {
                        let name = format!("{}.{}.{}", relation.schema, relation.name, column.name);
                        told.push((mask.rule.clone(), name, format!("{error}; the column reads NULL")));
                        mask.mask = Mask::Null;
                    }
                }
            }
        }
        for (rule, name, reason) in told {
            self.unresolved.push(Unresolved {
                policy: rule.policy,
                field: format!("masks \"{}\"", rule.rule),
                name,
                was_bound: false,
                reason,
            });
        }
    }
}

/// The same rule, where the column is something else than the one it names.
fn nulled(mask: &BoundMask) -> BoundMask {
    BoundMask {
        mask: Mask::Null,
        ..mask.clone()
    }
}

/// The form of the strictest of these masks for a column of that type; Null where it has none.
pub(crate) fn strictest_form(masks: &[&BoundMask], column: &row_masking::ColumnType) -> Option<MaskForm> {
    let mask = row_masking::strictest(masks.iter().map(|mask| &mask.mask))?;
    row_masking::form(mask, column)
        .or_else(|_| row_masking::form(&Mask::Null, column))
        .ok()
}

/// A cast of a literal or claim speaks of no row.
fn casts_constant(call: &Call, text: &str) -> bool {
    let before = usize::try_from(call.location).ok().and_then(|at| text.get(..at));
    call.syntax == CallSyntax::Cast
        && before
            .is_some_and(|before| before.trim_end().ends_with(['\'']) || before.trim_end().ends_with("NULL"))
}

/// Reads a text of ours against the shared catalog.
fn read_text(text: &str, catalog: &Catalog, path: &SearchPath) -> Result<StatementFacts, String> {
    let parsed = sql_facts::parse(text).map_err(|error| error.to_string())?;
    let overlay = Overlay::default();
    let view = CatalogView {
        catalog,
        overlay: &overlay,
        path,
    };
    match parsed.statements.as_slice() {
        [statement] => sql_facts::read(statement, view).map_err(|error| error.to_string()),
        _ => Err("it is not one statement".to_owned()),
    }
}
