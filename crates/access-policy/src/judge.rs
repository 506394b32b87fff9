//! Judging, purely on facts: may this statement run for this subject, and what happens to the relations it mentions.
//!
//! One [`Judge`] looks through a set of policies: those that enforce, or all of them as if they did (for what an
//! Audit policy would have done). The order is: what is closed whatever the rules say, then access rules, then
//! guardrails, then the plan of masks and filters.

use std::collections::{BTreeMap, BTreeSet};

use row_masking::MaskForm;
use sql_facts::catalog::{Persistence, SystemRelation};
use sql_facts::facts::{
    Action, Call, CallSyntax, CopyTarget, FunctionClass, FunctionOrigin, SessionEffect, TableAction,
};
use sql_facts::plan::{ColumnMask, RowFilter};
use sql_facts::{
    AttNum, CatalogView, Oid, Plan, Relation, RelationKind, RelationPlan, StatementFacts, StatementKind,
};

use crate::bind::{BoundFilter, BoundMask, BoundPolicy, strictest_form};
use crate::decide::{Refusal, RuleRef, StatementLimits};
use crate::policy::{AccessRule, Effect, FunctionRules, Policy, PolicyMode, Subject, SubjectPattern};
use crate::predicate::Typing;
use crate::refusals::{Why, built_in};

/// Which policies count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Those in mode Enforce.
    Enforcing,
    /// All, as if each enforced.
    All,
}

/// What judging found.
#[derive(Debug, Clone)]
pub(crate) struct Judgement {
    /// Who allowed it.
    pub(crate) rule: RuleRef,
    /// What happens to the relations it mentions.
    pub(crate) plan: Plan,
}

/// One subject's view of a set of policies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub(crate) policy: &'a BoundPolicy,
    pub(crate) subject: &'a Subject,
    pub(crate) view: CatalogView<'a>,
    pub(crate) counted: Counted,
}

type Judged<T> = Result<T, Refusal>;

/// Functions that touch the server's files; the reviewed list has them in one class with other functions of the
/// server, which need an Admin rule only.
const FILE_FUNCTIONS: [&str; 26] = [
    "pg_read_file",
    "pg_read_file_old",
    "pg_read_binary_file",
    "pg_stat_file",
    "pg_ls_dir",
    "pg_ls_dir_files",
    "pg_ls_logdir",
    "pg_ls_waldir",
    "pg_ls_tmpdir",
    "pg_ls_archive_statusdir",
    "pg_ls_logicalsnapdir",
    "pg_ls_logicalmapdir",
    "pg_ls_replslotdir",
    "pg_ls_summariesdir",
    "pg_logdir_ls",
    "pg_file_write",
    "pg_file_sync",
    "pg_file_rename",
    "pg_file_unlink",
    "pg_file_read",
    "pg_file_length",
    "lo_import",
    "lo_export",
    "be_lo_import",
    "be_lo_export",
    "pg_hba_file_rules",
];

/// Their sequence is an action of its own in the facts; `lastval` gives what the session's own nextval gave.
const SEQUENCE_FUNCTIONS: [&str; 5] = [
    "nextval",
    "setval",
    "currval",
    "pg_sequence_last_value",
    "lastval",
];

/// Their relation is `pg_largeobject`, an action of its own in the facts.
const LARGE_OBJECT_FUNCTIONS: [&str; 15] = [
    "lo_get",
    "loread",
    "lo_open",
    "lo_lseek",
    "lo_lseek64",
    "lo_tell",
    "lo_tell64",
    "lo_creat",
    "lo_create",
    "lo_from_bytea",
    "lo_put",
    "lo_truncate",
    "lo_truncate64",
    "lo_unlink",
    "lowrite",
];

/// The part of a name behind its last dot.
fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl<'a> Judge<'a> {
    /// The policies that count, with their places.
    fn policies(&self) -> impl Iterator<Item = (usize, &'a Policy)> + use<'a> {
        let counted = self.counted;
        self.policy.policies.iter().map(AsRef::as_ref).enumerate().filter(
            move |(_, policy): &(usize, &'a Policy)| match counted {
                Counted::All => true,
                Counted::Enforcing => policy.mode == PolicyMode::Enforce,
            },
        )
    }

    fn counts(&self, policy: usize) -> bool {
        self.policies().any(|(index, _)| index == policy)
    }

    /// No policy counts: what is asked has no answer here.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies().next().is_none()
    }

    /// A mask, row filter, Deny rule or `defaultAction: Deny` is in force.
    pub(crate) fn protects(&self) -> bool {
        self.policies().any(|(_, policy)| policy.protects())
    }

    /// A guardrail is set that only a statement that was read can be held to.
    pub(crate) fn guards(&self) -> bool {
        self.policies().any(|(_, policy)| {
            let rules = &policy.guardrails;
            rules.require_where_update
                || rules.require_where_delete
                || rules.max_affected_rows.is_some()
                || rules.functions.is_some()
                || rules.channels.is_some()
        })
    }

    /// May it run, and how.
    pub(crate) fn judge(&self, facts: &StatementFacts) -> Judged<Judgement> {
        if self.policy.policies.is_empty() {
            return Err(Why::NoPolicy.refuse(built_in("no-policy"), "no policy governs this database"));
        }
        self.server_access(facts)?;
        if !self.protects() {
            self.stated_guardrails(facts)?;
            return Ok(Judgement {
                rule: self.default_rule(),
                plan: Plan::default(),
            });
        }
        self.settings(facts)?;
        self.unknown_names(facts)?;
        let mut decided = None;
        for action in self.actions(facts) {
            let rule = match facts.kind {
                StatementKind::Lock if action.action == Action::Update => self.any_write(&action)?,
                _ => self.action(&action)?,
            };
            decided = decided.or(rule);
        }
        let label = String::new();
        for call in &facts.calls {
            let rule = self.call(call, facts, &label)?;
            decided = decided.or(rule);
        }
        self.views(facts)?;
        self.defaults(facts)?;
        self.kind(facts)?;
        self.effective_where(facts)?;
        self.definitions(facts)?;
        let plan = self.plan(facts)?;
        self.everything_is_planned(facts, &plan)?;
        Ok(Judgement {
            rule: decided.unwrap_or_else(|| built_in("open")),
            plan,
        })
    }

    fn default_rule(&self) -> RuleRef {
        match self.policies().next() {
            Some((_, policy)) => reference(policy, "defaultAction"),
            None => built_in("open"),
        }
    }

    // ---- What a database that is not protected is held to as well.

    fn server_access(&self, facts: &StatementFacts) -> Judged<()> {
        let kinds = std::iter::once(&facts.kind).chain(facts.inner.as_deref());
        let mut files = facts.server_files;
        let mut programs = facts.server_programs;
        for kind in kinds {
            match kind {
                StatementKind::CopyTo(target) | StatementKind::CopyFrom(target) => match target {
                    CopyTarget::Client => {}
                    CopyTarget::File => files = true,
                    CopyTarget::Program => programs = true,
                },
                _ => {}
            }
        }
        if files {
            self.files("the statement reads or writes a file of the server")?;
        }
        if programs {
            self.effect(
                |policy| policy.guardrails.programs,
                "guardrails.serverAccess.programs",
                Why::ServerPrograms,
                "the statement runs a program on the server",
            )?;
        }
        match facts.calls.iter().find(|call| is_file_function(call)) {
            Some(call) => self.files(&format!("{} reads or writes a file of the server", call.name)),
            None => Ok(()),
        }
    }

    /// Files and programs of the server are both allowed, so it does not matter whether a text reaches them.
    pub(crate) fn allows_server(&self) -> bool {
        self.files("").is_ok()
            && self
                .effect(
                    |policy| policy.guardrails.programs,
                    "guardrails.serverAccess.programs",
                    Why::ServerPrograms,
                    "",
                )
                .is_ok()
    }

    fn files(&self, reason: &str) -> Judged<()> {
        self.effect(
            |policy| policy.guardrails.files,
            "guardrails.serverAccess.files",
            Why::ServerFiles,
            reason,
        )
    }

    /// Denied where a policy says so or none says anything.
    fn effect(
        &self,
        stated: impl Fn(&Policy) -> Option<Effect>,
        name: &str,
        why: Why,
        reason: &str,
    ) -> Judged<()> {
        let mut allowed = false;
        for (_, policy) in self.policies() {
            match stated(policy) {
                Some(Effect::Deny) => return Err(why.refuse(reference(policy, name), reason)),
                Some(Effect::Allow) => allowed = true,
                None => {}
            }
        }
        if allowed || self.is_empty() {
            Ok(())
        } else {
            Err(why.refuse(built_in(name), reason))
        }
    }

    /// Guardrails that a policy states hold even where nothing is protected; what they leave open stays open.
    fn stated_guardrails(&self, facts: &StatementFacts) -> Judged<()> {
        let stated = self
            .policies()
            .any(|(_, policy)| policy.guardrails.functions.is_some());
        for call in &facts.calls {
            if stated {
                self.denied_function(call)?;
                if call.origin == FunctionOrigin::UserDefined {
                    self.stated_user_code(&call.name)?;
                }
            }
        }
        if let StatementKind::Listen(channel) = &facts.kind
            && self
                .policies()
                .any(|(_, policy)| policy.guardrails.channels.is_some())
        {
            self.channel(channel)?;
        }
        self.uncountable(facts)?;
        self.effective_where(facts)
    }

    fn stated_user_code(&self, name: &str) -> Judged<()> {
        for (_, policy) in self.policies() {
            if let Some(rules) = &policy.guardrails.functions
                && opinion(rules, name) == Some(Effect::Deny)
            {
                let rule = reference(policy, "guardrails.functions.userDefined");
                return Err(
                    Why::UserDefined.refuse(rule, format!("{name} is code whose body cannot be seen"))
                );
            }
        }
        Ok(())
    }

    // ---- Settings and names.

    /// The parser has no switches: these two settings change what a text means.
    fn settings(&self, facts: &StatementFacts) -> Judged<()> {
        for effect in &facts.effects {
            let SessionEffect::Setting {
                name,
                values: Some(values),
                ..
            } = effect
            else {
                continue;
            };
            let value = values
                .first()
                .map(|value| value.trim().to_ascii_lowercase())
                .unwrap_or_default();
            let right = match name.as_str() {
                "standard_conforming_strings" => is_word(&value, &["on", "true", "yes", "1"]),
                "transform_null_equals" => is_word(&value, &["off", "false", "no", "0"]),
                _ => true,
            };
            if !right {
                let reason =
                    format!("with {name} = {value} the server would read texts in another way than Weir");
                return Err(Why::Setting.refuse(built_in("settings"), reason));
            }
        }
        Ok(())
    }

    /// A relation that the catalog does not have: the answer is the one the server would give, and nothing is sent.
    fn unknown_names(&self, facts: &StatementFacts) -> Judged<()> {
        for action in facts.actions.iter().filter(|action| action.relation.is_none()) {
            self.closed_name(&action.name)?;
            match action.action {
                Action::Select | Action::Insert | Action::Update | Action::Delete | Action::Truncate => {
                    let name = &action.name;
                    if name.contains(' ') {
                        let reason = format!("it acts on {name}");
                        return Err(Why::ReadsUnknownRows.refuse(built_in("unknown-relation"), reason));
                    }
                    let reason = format!("relation \"{name}\" does not exist");
                    return Err(Why::UnknownName.refuse(built_in("unknown-relation"), reason));
                }
                Action::Ddl | Action::Call | Action::Admin => {}
            }
        }
        Ok(())
    }

    /// The name is one that the policy has and the database had not.
    fn closed_name(&self, name: &str) -> Judged<()> {
        let (schema, name) = self.created_as(name);
        let closed = self.policy.closed_names.iter().find(|(table, closed)| {
            self.counts(closed.policy) && table.schema == schema && table.name == name
        });
        match closed {
            Some((_, closed)) => {
                let reason = format!("{schema}.{name} is closed: {}", closed.reason);
                Err(Why::Closed.refuse(closed.rule.clone(), reason))
            }
            None => Ok(()),
        }
    }

    /// Schema and name of what a name as written would create.
    fn created_as<'n>(&self, name: &'n str) -> (&'n str, &'n str)
    where
        'a: 'n,
    {
        if let Some((schema, name)) = name.split_once('.') {
            return (schema, name);
        }
        let schemas = self.view.path.0.iter().map(String::as_str);
        let mut permanent = schemas
            .filter(|schema| !schema.is_empty() && !schema.starts_with("pg_temp") && *schema != "pg_catalog");
        (permanent.next().unwrap_or_default(), name)
    }

    // ---- Access rules.

    /// The actions of a statement, with the one that its kind is where the facts name no relation for it.
    fn actions(&self, facts: &StatementFacts) -> Vec<TableAction> {
        let mut actions = facts.actions.clone();
        if facts.creates_temporary && (facts.only_adds || !matches!(facts.kind, StatementKind::Ddl(_))) {
            // The session's own, seen by nobody else: no rule is needed to make it.
            actions.retain(|action| action.action != Action::Ddl);
            return actions;
        }
        let kind = match &facts.kind {
            StatementKind::Explain { .. } | StatementKind::Prepare(_) | StatementKind::Declare { .. } => {
                facts.inner.as_deref().unwrap_or(&facts.kind)
            }
            kind => kind,
        };
        let needed = match kind {
            StatementKind::Ddl(name) => Some((Action::Ddl, name.clone())),
            StatementKind::CreateView => Some((Action::Ddl, "CREATE VIEW".to_owned())),
            StatementKind::CreateTableAs => Some((Action::Ddl, "CREATE TABLE AS".to_owned())),
            StatementKind::Call => Some((Action::Call, "CALL or DO".to_owned())),
            StatementKind::Admin(name) => Some((Action::Admin, name.clone())),
            _ => None,
        };
        if let Some((action, name)) = needed
            && !actions.iter().any(|known| known.action == action)
        {
            actions.push(TableAction {
                action,
                relation: None,
                name,
                columns: BTreeSet::new(),
            });
        }
        actions
    }

    /// One action: who allows it, if a rule is needed at all.
    fn action(&self, action: &TableAction) -> Judged<Option<RuleRef>> {
        let Some(relation) = action.relation.and_then(|oid| self.view.relation(oid)) else {
            if action.relation.is_some() {
                let reason = format!("{} is not in the catalog", action.name);
                return Err(Why::NotBoundYet.refuse(built_in("catalog"), reason));
            }
            if action.name.starts_with("pg_temp.") {
                return Ok(None);
            }
            let (schema, name) = self.created_as(&action.name);
            return self
                .ruled(
                    action,
                    Object {
                        schema,
                        name,
                        relation: None,
                    },
                )
                .map(Some);
        };
        if relation.persistence == Persistence::Temporary {
            return Ok(None);
        }
        // An index or TOAST table counts as its table, a sequence as the tables that use it.
        if let Some(tables) = self.stands_for(relation, action.action) {
            let mut decided = None;
            for (table, column) in tables {
                let Some(owner) = self.view.relation(table) else {
                    continue;
                };
                let columns = Some(column).filter(|column| *column != 0).into_iter().collect();
                let inner = TableAction {
                    action: action.action,
                    relation: Some(table),
                    name: format!("{}.{}", owner.schema, owner.name),
                    columns,
                };
                decided = decided.or(self.action(&inner)?);
            }
            return Ok(decided);
        }
        self.not_closed(relation)?;
        self.is_bound(relation)?;
        if let Some(decided) = self.system(relation, action)? {
            return Ok(decided);
        }
        let object = Object {
            schema: &relation.schema,
            name: &relation.name,
            relation: Some(relation),
        };
        self.ruled(action, object).map(Some)
    }

    /// A lock above ROW SHARE needs a right to write, whichever.
    fn any_write(&self, action: &TableAction) -> Judged<Option<RuleRef>> {
        let with = |write| TableAction {
            action: write,
            ..action.clone()
        };
        let update = self.action(&with(Action::Update));
        update
            .or_else(|refusal| self.action(&with(Action::Delete)).map_err(|_| refusal))
            .or_else(|refusal| self.action(&with(Action::Insert)).map_err(|_| refusal))
    }

    fn stands_for(&self, relation: &Relation, action: Action) -> Option<Vec<(Oid, AttNum)>> {
        match relation.kind {
            RelationKind::Index => Some(relation.owned_by.into_iter().collect()),
            RelationKind::Sequence if matches!(action, Action::Select | Action::Insert | Action::Update) => {
                let users: BTreeSet<(Oid, AttNum)> = relation
                    .owned_by
                    .into_iter()
                    .chain(relation.used_by.iter().copied())
                    .collect();
                (!users.is_empty()).then(|| users.into_iter().collect())
            }
            RelationKind::Table
            | RelationKind::PartitionedTable
            | RelationKind::View
            | RelationKind::MaterializedView
            | RelationKind::ForeignTable
            | RelationKind::Sequence
            | RelationKind::CompositeType
            | RelationKind::Toast => None,
        }
    }

    fn not_closed(&self, relation: &Relation) -> Judged<()> {
        let closed = self.policy.closed.get(&relation.oid).into_iter().flatten();
        let mut closed =
            closed.filter(|closed| self.counts(closed.policy) && !matches(&closed.except, self.subject));
        match closed.next() {
            Some(closed) => {
                let reason = format!(
                    "{}.{} is closed: {}",
                    relation.schema, relation.name, closed.reason
                );
                Err(Why::Closed.refuse(closed.rule.clone(), reason))
            }
            None => self.closed_name(&format!("{}.{}", relation.schema, relation.name)),
        }
    }

    /// A relation that was not there when names were looked up may be one that a rule names.
    fn is_bound(&self, relation: &Relation) -> Judged<()> {
        if self.policy.known.contains_key(&relation.oid) {
            return Ok(());
        }
        let named = |rule: RuleRef| {
            let reason = format!(
                "{}.{} is new, and a rule names it",
                relation.schema, relation.name
            );
            Err(Why::NotBoundYet.refuse(rule, reason))
        };
        if !self.view.overlay.relations.contains_key(&relation.oid) {
            return named(built_in("catalog"));
        }
        for (_, policy) in self.policies() {
            let labels = policy
                .classifications
                .iter()
                .map(|(_, column, _)| (column, "classifications"));
            let masks = policy
                .masks
                .iter()
                .flat_map(|mask| mask.columns.iter().map(|column| (column, mask.name.as_str())));
            for (column, rule) in masks.chain(labels) {
                if column.table.schema == relation.schema && column.table.name == relation.name {
                    return named(reference(policy, rule));
                }
            }
            for filter in &policy.row_filters {
                if filter
                    .tables
                    .iter()
                    .any(|pattern| pattern.matches(&relation.schema, &relation.name))
                {
                    return named(reference(policy, &filter.name));
                }
            }
        }
        // A child of a protected parent shows what the parent does.
        let parents = relation.parents.iter();
        if parents
            .into_iter()
            .any(|parent| self.policy.governed_relations.contains(parent))
        {
            return named(built_in("catalog"));
        }
        Ok(())
    }

    /// What the closed list says of a system relation. `Some` = decided without the ordinary rules.
    fn system(&self, relation: &Relation, action: &TableAction) -> Judged<Option<Option<RuleRef>>> {
        let toast = relation.kind == RelationKind::Toast || relation.schema == "pg_toast";
        let access = match self.view.system_relation(relation.oid) {
            Some(access) => access,
            None if toast => SystemRelation::NeedsRule,
            None => return Ok(None),
        };
        if let Some(denied) = self.denied(action, self.object(relation)) {
            return Err(denied);
        }
        let open = action.action == Action::Select
            && match access {
                // The plan makes the other columns NULL.
                SystemRelation::Open | SystemRelation::OpenExcept(_) => true,
                SystemRelation::NeedsRule => false,
            };
        if open {
            return Ok(Some(None));
        }
        match self.explicit(action, relation) {
            Some(rule) => Ok(Some(Some(rule))),
            None => {
                let reason = format!(
                    "{} on {}.{} needs an access rule that names it",
                    action_name(action.action),
                    relation.schema,
                    relation.name
                );
                Err(Why::SystemRelation.refuse(built_in("system-catalog"), reason))
            }
        }
    }

    fn object(&self, relation: &'a Relation) -> Object<'a> {
        Object {
            schema: &relation.schema,
            name: &relation.name,
            relation: Some(relation),
        }
    }

    /// An Allow rule that names this relation itself, or its schema.
    fn explicit(&self, action: &TableAction, relation: &Relation) -> Option<RuleRef> {
        for (_, policy) in self.policies() {
            for rule in policy.access.iter().filter(|rule| rule.effect == Effect::Allow) {
                let named = rule
                    .tables
                    .iter()
                    .any(|pattern| pattern.matches(&relation.schema, &relation.name));
                if named && rule.actions.contains(&action.action) && subjects(rule, self.subject) {
                    return Some(reference(policy, &rule.name));
                }
            }
        }
        None
    }

    /// Deny of any, else Allow of any, else the default.
    fn ruled(&self, action: &TableAction, object: Object<'_>) -> Judged<RuleRef> {
        if let Some(refusal) = self.denied(action, object) {
            return Err(refusal);
        }
        let mut covered: BTreeSet<AttNum> = BTreeSet::new();
        let mut narrowed = None;
        for (_, policy) in self.policies() {
            for rule in policy.access.iter().filter(|rule| rule.effect == Effect::Allow) {
                if !rule.actions.contains(&action.action) || !subjects(rule, self.subject) {
                    continue;
                }
                match reach(rule, object) {
                    Reach::None => {}
                    Reach::Whole => return Ok(reference(policy, &rule.name)),
                    Reach::Columns { numbers, .. } => {
                        covered.extend(numbers);
                        narrowed.get_or_insert_with(|| reference(policy, &rule.name));
                    }
                }
            }
        }
        if let Some(rule) = narrowed {
            let all = object.relation.is_some_and(|relation| {
                relation
                    .columns
                    .iter()
                    .all(|column| covered.contains(&column.number))
            });
            let within = action
                .columns
                .iter()
                .all(|column| covered.contains(column) || (*column == 0 && all));
            if within {
                return Ok(rule);
            }
        }
        let denying = self
            .policies()
            .find(|(_, policy)| policy.default_action == Effect::Deny);
        match denying {
            None => Ok(self.default_rule()),
            Some((_, policy)) => {
                let what = action_name(action.action);
                let reason = match (object.relation, covered.is_empty()) {
                    (Some(relation), true) => {
                        format!("no rule allows {what} on {}.{}", relation.schema, relation.name)
                    }
                    (Some(relation), false) => {
                        format!(
                            "no rule allows {what} on all of these columns of {}.{}",
                            relation.schema, relation.name
                        )
                    }
                    (None, _) => format!("no rule allows {what} ({})", action.name),
                };
                Err(Why::NoRuleAllows.refuse(reference(policy, "defaultAction"), reason))
            }
        }
    }

    fn denied(&self, action: &TableAction, object: Object<'_>) -> Option<Refusal> {
        for (index, policy) in self.policies() {
            for (at, rule) in policy.access.iter().enumerate() {
                if rule.effect != Effect::Deny
                    || !rule.actions.contains(&action.action)
                    || !subjects(rule, self.subject)
                {
                    continue;
                }
                let renamed = object.relation.is_some_and(|relation| {
                    let bound = self.policy.denied.get(&(index, at));
                    bound.is_some_and(|bound| bound.contains(&relation.oid))
                });
                let hit = match reach(rule, object) {
                    Reach::Whole => true,
                    Reach::None => renamed,
                    // A column that is not there any more may have another name now.
                    Reach::Columns { missing: true, .. } => true,
                    Reach::Columns { numbers, .. } => {
                        renamed
                            || action.columns.contains(&0)
                            || action.columns.iter().any(|column| numbers.contains(column))
                    }
                };
                if hit {
                    let what = action_name(action.action);
                    let reason = match object.relation {
                        Some(relation) => {
                            format!("{what} on {}.{} is denied", relation.schema, relation.name)
                        }
                        None => format!("{what} is denied ({})", action.name),
                    };
                    return Some(Why::DeniedByRule.refuse(reference(policy, &rule.name), reason));
                }
            }
        }
        None
    }

    // ---- Code.

    /// One call; `inside` tells whose definition it stands in, if not the statement's own text.
    fn call(&self, call: &Call, facts: &StatementFacts, inside: &str) -> Judged<Option<RuleRef>> {
        self.denied_function(call)?;
        let name = &call.name;
        match call.origin {
            FunctionOrigin::UserDefined => {
                let reason = || format!("{name}{inside} is code whose body cannot be seen");
                self.user_code(name, Why::UserDefined, reason)?;
                // A built-in may share the name: the strictest of both counts.
                self.class(call, facts, inside, false)
            }
            FunctionOrigin::Unknown => {
                let reason = || match call.syntax {
                    CallSyntax::Function => format!("function {name}{inside} does not exist"),
                    CallSyntax::Operator => format!("operator {name}{inside} does not exist"),
                    CallSyntax::Cast => format!("type {name}{inside} does not exist"),
                };
                self.user_code(name, Why::UserDefined, reason)
                    .map_err(|refusal| Refusal {
                        sqlstate: match call.syntax {
                            CallSyntax::Function | CallSyntax::Operator => "42883",
                            CallSyntax::Cast => "42704",
                        },
                        ..refusal
                    })?;
                Ok(None)
            }
            FunctionOrigin::BuiltIn => self.class(call, facts, inside, true),
        }
    }

    fn class(
        &self,
        call: &Call,
        facts: &StatementFacts,
        inside: &str,
        built_in_alone: bool,
    ) -> Judged<Option<RuleRef>> {
        let name = &call.name;
        match call.class {
            FunctionClass::Open | FunctionClass::Settings => Ok(None),
            FunctionClass::ReadsRows => self.reads_told(call, facts, Action::Select),
            FunctionClass::Writes => self.reads_told(call, facts, Action::Update),
            FunctionClass::RunsSql => {
                let reason = format!("{name}{inside} runs SQL text that would not be judged");
                Err(Why::RunsSql.refuse(built_in("functions"), reason))
            }
            FunctionClass::Unlisted if !built_in_alone => Ok(None),
            // TABLESAMPLE's methods: they can be reached in no other way.
            FunctionClass::Unlisted if matches!(name.as_str(), "bernoulli" | "system") => Ok(None),
            FunctionClass::Unlisted => {
                let reason = || format!("{name}{inside} is not on the reviewed list of built-in functions");
                self.user_code(name, Why::UnlistedFunction, reason)?;
                Ok(None)
            }
            FunctionClass::Server => {
                let action = TableAction {
                    action: Action::Admin,
                    relation: None,
                    name: format!("{name}{inside}"),
                    columns: BTreeSet::new(),
                };
                let object = Object {
                    schema: "",
                    name,
                    relation: None,
                };
                self.ruled(&action, object).map(Some)
            }
        }
    }

    /// A function that reads or writes rows is judged by the relation it works on; where the facts do not name one,
    /// nobody knows which.
    fn reads_told(&self, call: &Call, facts: &StatementFacts, action: Action) -> Judged<Option<RuleRef>> {
        let name = last_part(&call.name);
        let large_objects = facts.actions.iter().any(|known| {
            let relation = known.relation.and_then(|oid| self.view.relation(oid));
            known.action == action && relation.is_some_and(|relation| relation.name == "pg_largeobject")
        });
        let told =
            SEQUENCE_FUNCTIONS.contains(&name) || (LARGE_OBJECT_FUNCTIONS.contains(&name) && large_objects);
        if told {
            return Ok(None);
        }
        let reason = format!("{} works on rows that the statement does not name", call.name);
        Err(Why::ReadsUnknownRows.refuse(built_in("functions"), reason))
    }

    fn denied_function(&self, call: &Call) -> Judged<()> {
        for (_, policy) in self.policies() {
            let rules = policy.guardrails.functions.iter();
            if rules.into_iter().any(|rules| names(&rules.deny, &call.name)) {
                let rule = reference(policy, "guardrails.functions.deny");
                return Err(Why::FunctionDenied.refuse(rule, format!("{} may not be called", call.name)));
            }
        }
        Ok(())
    }

    /// Code that needs to be allowed: denied where a policy that speaks of functions does not allow it, or none does.
    fn user_code(&self, name: &str, why: Why, reason: impl Fn() -> String) -> Judged<()> {
        let mut allowed = false;
        for (_, policy) in self.policies() {
            let Some(rules) = &policy.guardrails.functions else {
                continue;
            };
            match opinion(rules, name) {
                Some(Effect::Deny) => {
                    return Err(why.refuse(reference(policy, "guardrails.functions.userDefined"), reason()));
                }
                Some(Effect::Allow) => allowed = true,
                None => {}
            }
        }
        if allowed {
            Ok(())
        } else {
            Err(why.refuse(built_in("guardrails.functions.userDefined"), reason()))
        }
    }

    /// What a view reads is read, and what it calls is called.
    fn views(&self, facts: &StatementFacts) -> Judged<()> {
        let mentioned: BTreeSet<Oid> = facts
            .actions
            .iter()
            .filter_map(|action| action.relation)
            .collect();
        for oid in mentioned {
            let Some(inner) = self.policy.views.get(&oid) else {
                continue;
            };
            let Some(view) = self.view.relation(oid) else {
                continue;
            };
            let inside = format!(" in view {}.{}", view.schema, view.name);
            for (base, columns) in &inner.reads {
                let Some(relation) = self.view.relation(*base) else {
                    continue;
                };
                let action = TableAction {
                    action: Action::Select,
                    relation: Some(*base),
                    name: format!("{}.{}", relation.schema, relation.name),
                    columns: columns.clone(),
                };
                if let Some(mut refusal) = self.denied(&action, self.object(relation)) {
                    refusal.reason.push_str(&inside);
                    return Err(refusal);
                }
                let closed = match self.view.system_relation(*base) {
                    Some(SystemRelation::NeedsRule) => true,
                    Some(SystemRelation::OpenExcept(except)) => {
                        columns.contains(&0) || except.iter().any(|column| columns.contains(column))
                    }
                    Some(SystemRelation::Open) | None => false,
                };
                if closed && self.explicit(&action, relation).is_none() {
                    let reason = format!(
                        "reading {}.{}{inside} needs an access rule that names it",
                        relation.schema, relation.name
                    );
                    return Err(Why::SystemRelation.refuse(built_in("system-catalog"), reason));
                }
            }
            for call in &inner.calls {
                if SEQUENCE_FUNCTIONS.contains(&last_part(&call.name)) {
                    let reason = format!("{}{inside} changes a sequence", call.name);
                    return Err(Why::ReadsUnknownRows.refuse(built_in("functions"), reason));
                }
                self.call(call, facts, &inside)?;
                if is_file_function(call) {
                    self.files(&format!(
                        "{}{inside} reads or writes a file of the server",
                        call.name
                    ))?;
                }
            }
        }
        Ok(())
    }

    /// Functions in defaults of columns that a statement does not set.
    fn defaults(&self, facts: &StatementFacts) -> Judged<()> {
        for action in &facts.actions {
            let Some(relation) = action.relation.and_then(|oid| self.view.relation(oid)) else {
                continue;
            };
            self.rules(relation, action.action)?;
            for column in relation
                .columns
                .iter()
                .filter(|column| !column.default_code.is_empty())
            {
                let runs = match action.action {
                    Action::Insert => !action.columns.contains(&column.number),
                    Action::Update => action.columns.contains(&column.number) || action.columns.contains(&0),
                    Action::Select
                    | Action::Delete
                    | Action::Truncate
                    | Action::Ddl
                    | Action::Call
                    | Action::Admin => false,
                };
                if runs {
                    for code in &column.default_code {
                        let reason = || {
                            format!(
                                "{code}, in the default of column {}, is code whose body cannot be seen",
                                column.name
                            )
                        };
                        self.user_code(code, Why::UserDefined, reason)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Rules rewrite a write into whatever their owner wrote, rows of other tables in its answer included.
    fn rules(&self, relation: &Relation, action: Action) -> Judged<()> {
        let writes = matches!(action, Action::Insert | Action::Update | Action::Delete);
        let Some(rule) = relation.rules.first().filter(|_| writes) else {
            return Ok(());
        };
        let reason = || {
            format!(
                "rule {rule} of {}.{} is code whose effects cannot be seen",
                relation.schema, relation.name
            )
        };
        self.user_code(rule, Why::UserDefined, reason)
    }

    // ---- Guardrails and kinds.

    fn kind(&self, facts: &StatementFacts) -> Judged<()> {
        if let StatementKind::Listen(channel) = &facts.kind {
            self.channel(channel)?;
        }
        if matches!(facts.kind, StatementKind::Truncate) {
            for action in facts
                .actions
                .iter()
                .filter(|action| action.action == Action::Truncate)
            {
                if let Some(rule) = action.relation.and_then(|oid| self.protecting(oid)) {
                    let reason = format!(
                        "{} is protected: TRUNCATE would take rows that may not be seen",
                        action.name
                    );
                    return Err(Why::ProtectedTruncate.refuse(rule, reason));
                }
            }
        }
        // What stands behind the name is known to the session only: its tokens would be stored raw, and a plan would
        // count rows that a filter hides.
        if matches!(facts.inner.as_deref(), Some(StatementKind::Execute(_))) {
            let reason = "EXECUTE inside of another statement is not governed yet: write its query there";
            return Err(Why::CannotGovern.refuse(built_in("execute-inside"), reason));
        }
        self.uncountable(facts)
    }

    fn channel(&self, channel: &str) -> Judged<()> {
        let mut allowed = false;
        for (_, policy) in self.policies() {
            let Some(channels) = &policy.guardrails.channels else {
                continue;
            };
            if !channels.iter().any(|pattern| pattern.matches(channel)) {
                let rule = reference(policy, "guardrails.channels");
                return Err(
                    Why::Channel.refuse(rule, format!("channel {channel} is not one that LISTEN may name"))
                );
            }
            allowed = true;
        }
        if allowed {
            Ok(())
        } else {
            let reason = format!("no policy names channel {channel}; a trigger may send a row through it");
            Err(Why::Channel.refuse(built_in("guardrails.channels"), reason))
        }
    }

    /// Statements whose changes nobody can count or take back.
    fn uncountable(&self, facts: &StatementFacts) -> Judged<()> {
        let what = match facts.kind {
            StatementKind::Truncate => "TRUNCATE",
            StatementKind::Call => "CALL or DO, which may commit,",
            _ => return Ok(()),
        };
        match self
            .policies()
            .find(|(_, policy)| policy.guardrails.max_affected_rows.is_some())
        {
            Some((_, policy)) => {
                let rule = reference(policy, "guardrails.maxAffectedRows");
                let reason = format!("{what} cannot be held to a number of rows");
                Err(Why::AffectedRowsUncountable.refuse(rule, reason))
            }
            None => Ok(()),
        }
    }

    fn effective_where(&self, facts: &StatementFacts) -> Judged<()> {
        for (oid, action, effective) in &facts.effective_where {
            let relation = self.view.relation(*oid);
            let temporary = relation.is_some_and(|relation| relation.persistence == Persistence::Temporary);
            if *effective || temporary {
                continue;
            }
            let asked = self.policies().find(|(_, policy)| match action {
                Action::Update => policy.guardrails.require_where_update,
                Action::Delete => policy.guardrails.require_where_delete,
                Action::Select
                | Action::Insert
                | Action::Truncate
                | Action::Ddl
                | Action::Call
                | Action::Admin => false,
            });
            if let Some((_, policy)) = asked {
                let what = action_name(*action);
                let rule = reference(policy, "guardrails.requireWhere");
                let reason = match relation {
                    Some(relation) => {
                        format!(
                            "{what} on {}.{} has no WHERE that picks rows",
                            relation.schema, relation.name
                        )
                    }
                    None => format!("{what} has no WHERE that picks rows"),
                };
                return Err(Why::NeedsWhere.refuse(rule, reason));
            }
        }
        Ok(())
    }

    /// A rule that masks or filters that relation, for anybody.
    pub(crate) fn protecting(&self, oid: Oid) -> Option<RuleRef> {
        let masks = self
            .policy
            .masks
            .get(&oid)
            .into_iter()
            .flat_map(BTreeMap::values)
            .flatten();
        let masks = masks
            .filter(|mask| self.counts(mask.policy))
            .map(|mask| &mask.rule);
        let filters = self.policy.filters.get(&oid).into_iter().flatten();
        let filters = filters
            .filter(|filter| self.counts(filter.policy))
            .map(|filter| &filter.rule);
        masks.chain(filters).next().cloned()
    }

    /// DDL on protected relations, but for the short list that neither reads nor renames one.
    fn definitions(&self, facts: &StatementFacts) -> Judged<()> {
        let command = match &facts.kind {
            StatementKind::Ddl(command) => command.as_str(),
            StatementKind::CreateView => "CREATE VIEW",
            StatementKind::CreateTableAs => "CREATE TABLE AS",
            _ => return Ok(()),
        };
        for action in &facts.actions {
            let Some(oid) = action.relation else {
                continue;
            };
            let oid = match self.view.relation(oid) {
                Some(relation) if relation.kind == RelationKind::Index => {
                    relation.owned_by.map_or(oid, |owner| owner.0)
                }
                _ => oid,
            };
            let Some(rule) = self.protecting(oid) else {
                continue;
            };
            let refused = match action.action {
                // What is stored from a query is stored as governed.
                Action::Select if !matches!(facts.kind, StatementKind::Ddl(_)) => false,
                Action::Select => {
                    self.reads_masked(oid, &action.columns) || self.tells_hidden_rows(oid, command, facts)
                }
                Action::Ddl => !facts.only_adds && !facts.creates_temporary,
                Action::Insert
                | Action::Update
                | Action::Delete
                | Action::Truncate
                | Action::Call
                | Action::Admin => false,
            };
            if refused {
                let reason = format!("{command} would change or read the protected {}", action.name);
                return Err(Why::ProtectedDefinition.refuse(rule, reason));
            }
        }
        Ok(())
    }

    /// The server runs the expressions of a definition on every row, those that a filter hides too, and says whether
    /// one failed: a check answers a guess, a cast in an index as well.
    fn tells_hidden_rows(&self, oid: Oid, command: &str, facts: &StatementFacts) -> bool {
        let mut filters = self.policy.filters.get(&oid).into_iter().flatten();
        filters.any(|filter| self.counts(filter.policy))
            && (command != "CREATE INDEX" || facts.calls.iter().any(|call| !call.quiet))
    }

    fn reads_masked(&self, oid: Oid, columns: &BTreeSet<AttNum>) -> bool {
        let masks = self.policy.masks.get(&oid);
        masks.into_iter().flatten().any(|(column, masks)| {
            (columns.contains(column) || columns.contains(&0))
                && masks.iter().any(|mask| self.counts(mask.policy))
        })
    }

    // ---- The plan.

    /// Masks on that relation for this subject, by column.
    pub(crate) fn masks(&self, oid: Oid) -> BTreeMap<AttNum, Vec<&'a BoundMask>> {
        let mut found = BTreeMap::new();
        for (column, masks) in self.policy.masks.get(&oid).into_iter().flatten() {
            let masks: Vec<&BoundMask> = masks
                .iter()
                .filter(|mask| self.counts(mask.policy) && !matches(&mask.except, self.subject))
                .collect();
            if !masks.is_empty() {
                found.insert(*column, masks);
            }
        }
        found
    }

    /// What happens to the relations that the statement mentions.
    fn plan(&self, facts: &StatementFacts) -> Judged<Plan> {
        let mut plan = Plan::default();
        let mentioned: BTreeSet<Oid> = facts.ranges.iter().map(|range| range.relation).collect();
        for oid in mentioned {
            let Some(relation) = self.view.relation(oid) else {
                continue;
            };
            let one = self.relation_plan(relation)?;
            if !one.masks.is_empty() || !one.filters.is_empty() {
                plan.relations.insert(oid, one);
            }
        }
        Ok(plan)
    }

    fn relation_plan(&self, relation: &Relation) -> Judged<RelationPlan> {
        let mut plan = RelationPlan::default();
        for (number, masks) in self.masks(relation.oid) {
            let Some(column) = relation.column_by_number(number) else {
                continue;
            };
            let rule = masks
                .first()
                .map_or_else(|| built_in("masks"), |mask| mask.rule.clone());
            let form = strictest_form(&masks, &column.column_type).ok_or_else(|| {
                let reason = format!("{}.{} has no mask that fits its type", relation.name, column.name);
                Why::CannotGovern.refuse(rule, reason)
            })?;
            plan.masks.insert(number, column_mask(form));
        }
        if let Some(SystemRelation::OpenExcept(columns)) = self.view.system_relation(relation.oid) {
            let reading = TableAction {
                action: Action::Select,
                relation: Some(relation.oid),
                name: relation.name.clone(),
                columns: BTreeSet::new(),
            };
            if self.explicit(&reading, relation).is_none() {
                for number in columns {
                    let column = relation.column_by_number(number);
                    let form = column.and_then(|column| {
                        row_masking::form(&row_masking::Mask::Null, &column.column_type).ok()
                    });
                    if let Some(form) = form {
                        plan.masks.insert(number, column_mask(form));
                    }
                }
            }
        }
        for filter in self.policy.filters.get(&relation.oid).into_iter().flatten() {
            if self.counts(filter.policy) && !matches(&filter.except, self.subject) {
                plan.filters.push(self.row_filter(relation, filter)?);
            }
        }
        Ok(plan)
    }

    fn row_filter(&self, relation: &Relation, filter: &BoundFilter) -> Judged<RowFilter> {
        let mut trouble = None;
        let renamed = |name: &str| {
            filter
                .renames
                .get(name)
                .map_or_else(|| name.to_owned(), Clone::clone)
        };
        let predicate = filter.predicate.render(
            |claim, typing| {
                let literal = self.claim(relation, claim, typing, &renamed);
                literal.map_err(|reason| trouble = Some(reason)).ok()
            },
            |column| filter.renames.get(column).cloned(),
        );
        match predicate {
            Ok(predicate) => Ok(RowFilter {
                rule: filter.rule.rule.clone(),
                predicate,
            }),
            Err(claim) => {
                let reason = trouble.unwrap_or_else(|| format!("claim {claim} cannot be used"));
                Err(Why::Claim.refuse(filter.rule.clone(), reason))
            }
        }
    }

    /// A claim as a typed literal. Absent, or not of the column's type: no literal, never NULL.
    fn claim(
        &self,
        relation: &Relation,
        claim: &str,
        typing: &Typing,
        renamed: &impl Fn(&str) -> String,
    ) -> Result<String, String> {
        let value = self
            .subject
            .claims
            .get(claim)
            .ok_or_else(|| format!("the claim {claim} is absent"))?;
        if value.contains('\0') {
            return Err(format!("the claim {claim} holds a NUL character"));
        }
        match typing {
            // The cast stands behind it.
            Typing::Cast => Ok(literal(value)),
            Typing::Column(name) => {
                let name = renamed(name);
                let column = relation.column(&name).ok_or_else(|| {
                    format!("the claim {claim} is compared with {name}, which the table does not have")
                })?;
                let sql_type = comparable(&column.column_type);
                let constant = row_masking::Mask::Constant { value: value.clone() };
                // The same check that a Constant mask of that type gets; the reason would repeat nothing of the value.
                row_masking::form(
                    &constant,
                    &row_masking::ColumnType {
                        modifier: -1,
                        sql: sql_type.clone(),
                        ..column.column_type.clone()
                    },
                )
                .map_err(|_| format!("the claim {claim} is not a value of type {sql_type}"))?;
                Ok(format!("{}::{sql_type}", literal(value)))
            }
        }
    }

    /// Every protected relation that rows are read from or written to stands in the text, where it can be governed.
    fn everything_is_planned(&self, facts: &StatementFacts, _plan: &Plan) -> Judged<()> {
        if matches!(
            facts.kind,
            StatementKind::Lock | StatementKind::Ddl(_) | StatementKind::Truncate | StatementKind::Admin(_)
        ) {
            return Ok(());
        }
        for action in &facts.actions {
            let Some(oid) = action.relation else {
                continue;
            };
            let rows = matches!(
                action.action,
                Action::Select | Action::Insert | Action::Update | Action::Delete
            );
            let mentioned = facts.ranges.iter().any(|range| range.relation == oid);
            // A sequence counts as its table, and gives nothing but its own number.
            let sequence = facts
                .calls
                .iter()
                .any(|call| SEQUENCE_FUNCTIONS.contains(&last_part(&call.name)));
            if rows
                && !mentioned
                && !sequence
                && let Some(rule) = self.protecting(oid)
            {
                let reason = format!(
                    "it reaches the protected {} in a way that cannot be governed",
                    action.name
                );
                return Err(Why::CannotGovern.refuse(rule, reason));
            }
        }
        Ok(())
    }

    /// Columns that must not reach a result raw.
    pub(crate) fn forbidden_origins(&self) -> BTreeSet<(Oid, AttNum)> {
        let relations = self.policy.masks.keys();
        relations
            .flat_map(|oid| self.masks(*oid).into_keys().map(|column| (*oid, column)))
            .collect()
    }

    /// The mask of each masked column, by name: of several the strictest.
    pub(crate) fn mask_names(&self) -> BTreeMap<(Oid, AttNum), &'static str> {
        const STRICTEST_FIRST: [&str; 6] = ["Null", "Constant", "Hash", "DateTrunc", "Email", "Partial"];
        let rank = |name: &str| STRICTEST_FIRST.iter().position(|known| *known == name);
        let relations = self.policy.masks.keys();
        relations
            .flat_map(|oid| {
                self.masks(*oid).into_iter().filter_map(|(column, masks)| {
                    let names = masks.iter().map(|mask| mask.mask.name());
                    Some(((*oid, column), names.min_by_key(|name| rank(name))?))
                })
            })
            .collect()
    }

    /// What the session watches while the statement runs.
    pub(crate) fn limits(&self) -> StatementLimits {
        let mut limits = StatementLimits::default();
        for (_, policy) in self.policies() {
            let rules = &policy.guardrails;
            tighten(
                &mut limits.returned_rows_max,
                rules.max_returned_rows,
                policy,
                "guardrails.maxReturnedRows",
            );
            tighten(
                &mut limits.affected_rows_max,
                rules.max_affected_rows,
                policy,
                "guardrails.maxAffectedRows",
            );
            tighten(
                &mut limits.timeout_seconds,
                rules.statement_timeout_seconds,
                policy,
                "guardrails.statementTimeoutSeconds",
            );
        }
        limits
    }
}

fn tighten<N: Ord + Copy>(
    tightest: &mut Option<(N, RuleRef)>,
    stated: Option<N>,
    policy: &Policy,
    rule: &str,
) {
    if let Some(stated) = stated
        && tightest.as_ref().is_none_or(|(known, _)| stated < *known)
    {
        *tightest = Some((stated, reference(policy, rule)));
    }
}

fn column_mask(form: MaskForm) -> ColumnMask {
    match form {
        MaskForm::Sql(mask) => ColumnMask::Sql(mask),
        MaskForm::Wire(mask) => ColumnMask::Wire(mask),
    }
}

/// The type a claim is written in. A cast to varchar(3) would cut, one to numeric(5,2) would round, and the filter
/// would show the rows of another value: modifiers are left out.
fn comparable(column: &row_masking::ColumnType) -> String {
    match column.class {
        row_masking::TypeClass::Varchar => "pg_catalog.text".to_owned(),
        _ if column.modifier != -1 => {
            let cut = column.sql.find('(').unwrap_or(column.sql.len());
            column.sql.get(..cut).unwrap_or(&column.sql).to_owned()
        }
        _ => column.sql.clone(),
    }
}

/// A string literal that means the same under either setting of `standard_conforming_strings`.
fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A relation, or the name of one that is not there (yet).
#[derive(Debug, Clone, Copy)]
struct Object<'o> {
    schema: &'o str,
    name: &'o str,
    relation: Option<&'o Relation>,
}

/// How far a rule reaches into a relation.
enum Reach {
    None,
    Whole,
    Columns {
        numbers: BTreeSet<AttNum>,
        missing: bool,
    },
}

fn reach(rule: &AccessRule, object: Object<'_>) -> Reach {
    let columns: Vec<&str> = rule
        .columns
        .iter()
        .filter(|column| column.table.schema == object.schema && column.table.name == object.name)
        .map(|column| column.column.as_str())
        .collect();
    if !columns.is_empty() {
        let found: Vec<Option<AttNum>> = columns
            .iter()
            .map(|name| {
                object
                    .relation
                    .and_then(|relation| relation.column(name))
                    .map(|column| column.number)
            })
            .collect();
        return Reach::Columns {
            missing: found.iter().any(Option::is_none),
            numbers: found.into_iter().flatten().collect(),
        };
    }
    let whole = if rule.tables.is_empty() {
        rule.columns.is_empty()
    } else {
        rule.tables
            .iter()
            .any(|pattern| pattern.matches(object.schema, object.name))
    };
    if whole { Reach::Whole } else { Reach::None }
}

fn subjects(rule: &AccessRule, subject: &Subject) -> bool {
    rule.subjects.is_empty() || matches(&rule.subjects, subject)
}

fn matches(patterns: &[SubjectPattern], subject: &Subject) -> bool {
    patterns.iter().any(|pattern| pattern.matches(subject))
}

fn names(patterns: &[crate::names::Prefix], name: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| pattern.matches(name) || pattern.matches(last_part(name)))
}

/// What one policy says of code by that name.
fn opinion(rules: &FunctionRules, name: &str) -> Option<Effect> {
    if names(&rules.deny, name) {
        Some(Effect::Deny)
    } else if names(&rules.allow, name) {
        Some(Effect::Allow)
    } else {
        rules.user_defined
    }
}

fn is_file_function(call: &Call) -> bool {
    call.syntax == CallSyntax::Function && FILE_FUNCTIONS.contains(&last_part(&call.name))
}

/// A statement that may reach files or programs of the server, where a name in it is not known.
pub(crate) fn may_reach_server(reach: &sql_facts::Reach) -> bool {
    reach.files_or_programs
        || reach.escaped_name
        || reach
            .names
            .iter()
            .any(|name| FILE_FUNCTIONS.contains(&name.as_str()))
}

/// A text that may reach files or programs of the server, as far as words tell. Escapes could spell any of them.
pub(crate) fn may_touch_server(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let words = ["copy", "load", "u&"];
    words
        .iter()
        .chain(&FILE_FUNCTIONS)
        .any(|word| lower.contains(word))
}

/// One of these words of a boolean setting, or a beginning of it that the server takes too.
fn is_word(value: &str, words: &[&str]) -> bool {
    words.iter().any(|word| {
        let least = if matches!(*word, "on" | "off") { 2 } else { 1 };
        value.len() >= least && word.starts_with(value)
    })
}

fn reference(policy: &Policy, rule: &str) -> RuleRef {
    RuleRef {
        policy: policy.id.clone(),
        rule: rule.to_owned(),
    }
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Select => "Select",
        Action::Insert => "Insert",
        Action::Update => "Update",
        Action::Delete => "Delete",
        Action::Truncate => "Truncate",
        Action::Ddl => "DDL",
        Action::Call => "Call",
        Action::Admin => "Admin",
    }
}
