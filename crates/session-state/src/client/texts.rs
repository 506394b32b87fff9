//! Texts: read as the server will read them, and judged whole.

use super::*;
use sql_facts::Overlay;

/// The text as the server will read it.
pub(super) fn text_of<'t>(session: &Session, bytes: &'t [u8]) -> Result<&'t str, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refusal {
        sqlstate: "22021",
        ..refusals::text_unreadable("the text is not valid UTF-8")
    })?;
    if session.protected() {
        session.known.can_read(text).map_err(refusals::text_unreadable)?;
    }
    Ok(text)
}

/// Whether what a statement means depends on search_path, role or the session's own relations.
pub(super) fn depends_on_state(judged: &Judged) -> bool {
    match judged.permit.facts() {
        None => true,
        Some(facts) => match &facts.kind {
            StatementKind::Begin
            | StatementKind::Commit { .. }
            | StatementKind::Rollback { .. }
            | StatementKind::RollbackTo(_)
            | StatementKind::Savepoint(_)
            | StatementKind::Release(_)
            | StatementKind::Set
            | StatementKind::Show
            | StatementKind::TransactionSetting
            | StatementKind::Deallocate(_)
            | StatementKind::CloseCursor(_)
            | StatementKind::Fetch { .. }
            | StatementKind::Discard(_)
            | StatementKind::TwoPhase => false,
            _ => {
                !facts.ranges.is_empty()
                    || !facts.actions.is_empty()
                    || !facts.calls.is_empty()
                    || !matches!(facts.kind, StatementKind::Select)
            }
        },
    }
}

/// Whether a statement may change what later texts mean.
pub(super) fn changes_state(judged: &Judged) -> bool {
    match judged.permit.facts() {
        None => true,
        Some(facts) => {
            let only_plain_settings = !facts.effects.is_empty()
                && facts.effects.iter().all(|effect| match effect {
                    SessionEffect::Setting { name, .. } => !crate::state::decides_meaning(name),
                    SessionEffect::ResetAll
                    | SessionEffect::UnknownSetting
                    | SessionEffect::CatalogChange => false,
                });
            if facts.kind == StatementKind::Set && only_plain_settings {
                return false;
            }
            facts.effects.iter().any(|effect| !matches!(effect, SessionEffect::Setting { name, .. } if !crate::state::decides_meaning(name)))
                || facts.calls.iter().any(|call| {
                    matches!(
                        call.class,
                        FunctionClass::Settings | FunctionClass::RunsSql | FunctionClass::Unlisted
                    )
                })
                || matches!(
                    facts.kind,
                    StatementKind::Ddl(_)
                        | StatementKind::CreateTableAs
                        | StatementKind::CreateView
                        | StatementKind::Set
                        | StatementKind::Discard(_)
                        | StatementKind::Call
                        | StatementKind::Admin(_)
                )
        }
    }
}

/// What a statement has to do with a text that stands elsewhere.
pub(super) enum Elsewhere {
    /// Nothing, or that text changes nothing.
    Nothing,
    /// It only prepares what is in it.
    Later,
    /// It runs a text that may change what later texts mean, or one that is not known.
    Changes,
}

/// EXECUTE and FETCH run what was prepared before, in the session or earlier in the same Query.
pub(super) fn runs_elsewhere(
    session: &Session,
    facts: &StatementFacts,
    earlier: &[Arc<Judged>],
) -> Elsewhere {
    let prepared_earlier = |wanted: &str| {
        earlier.iter().rev().find(|judged| match judged.kind() {
            Some(StatementKind::Prepare(name) | StatementKind::Declare { name, .. }) => name == wanted,
            _ => false,
        })
    };
    // EXPLAIN ANALYZE and CREATE TABLE AS may run an EXECUTE.
    let kind = match facts.inner.as_deref() {
        Some(inner @ StatementKind::Execute(_)) => inner,
        Some(_) | None => &facts.kind,
    };
    let runs = match kind {
        StatementKind::Prepare(_) | StatementKind::Declare { .. } => return Elsewhere::Later,
        StatementKind::Execute(name) => prepared_earlier(name).cloned().or_else(|| {
            let prepared = session.objects.statement(name.as_bytes())?;
            prepared.judged.clone()
        }),
        StatementKind::Fetch { name, .. } => prepared_earlier(name).cloned().or_else(|| {
            let portal = session.objects.portal(name.as_bytes())?;
            portal.prepared.judged.clone()
        }),
        _ => return Elsewhere::Nothing,
    };
    match runs {
        Some(judged) if !changes_state(&judged) => Elsewhere::Nothing,
        Some(_) | None => Elsewhere::Changes,
    }
}

pub(super) fn note_state_change(session: &mut Session, judged: &Judged) {
    if is_catalog_change(judged) {
        session.catalog_touched = true;
    }
    let elsewhere = judged
        .permit
        .facts()
        .map(|facts| runs_elsewhere(session, facts, &[]));
    if changes_state(judged) || matches!(elsewhere, Some(Elsewhere::Changes)) {
        session.stale = true;
        session.touched = true;
    } else if session.touched
        && matches!(
            judged.kind(),
            Some(
                StatementKind::Rollback { .. }
                    | StatementKind::RollbackTo(_)
                    | StatementKind::Commit { .. }
                    | StatementKind::TwoPhase
            )
        )
    {
        session.stale = true;
    }
}

pub(super) fn is_catalog_change(judged: &Judged) -> bool {
    judged.permit.facts().is_some_and(|facts| {
        facts.effects.contains(&SessionEffect::CatalogChange)
            || matches!(
                facts.kind,
                StatementKind::Ddl(_) | StatementKind::CreateTableAs | StatementKind::CreateView
            )
    })
}

/// What a statement does to prepared statements and cursors, taken as successful; and whose plan its rows follow.
pub(super) fn apply_to_objects(
    session: &mut Session,
    judged: &Arc<Judged>,
    formats: &Arc<[i16]>,
) -> Result<(Undo, Arc<Judged>, u64), Refusal> {
    let Some(facts) = judged.permit.facts() else {
        return Ok((Undo::Nothing, Arc::clone(judged), 0));
    };
    let own = Arc::clone(judged);
    Ok(match &facts.kind {
        StatementKind::Prepare(name) => {
            if name.as_bytes().starts_with(RESERVED_PREFIX) {
                return Err(refusals::reserved_name());
            }
            let prepared = prepared_by_sql(session, judged);
            (session.objects.set_statement(name.as_bytes(), prepared), own, 0)
        }
        StatementKind::Execute(name) => {
            let Some(prepared) = session.objects.statement(name.as_bytes()) else {
                return if session.protected() {
                    Err(refusals::unknown_statement(name.as_bytes()))
                } else {
                    Ok((Undo::Nothing, own, 0))
                };
            };
            let result = prepared.judged.clone().unwrap_or(own);
            (Undo::Nothing, result, 0)
        }
        StatementKind::Deallocate(Some(name)) => (session.objects.remove_statement(name.as_bytes()), own, 0),
        StatementKind::Deallocate(None) => (session.objects.remove_statements(), own, 0),
        StatementKind::Declare { name, hold } => {
            if name.as_bytes().starts_with(RESERVED_PREFIX) {
                return Err(refusals::reserved_name());
            }
            let prepared = prepared_by_sql(session, judged);
            let portal = Portal {
                prepared,
                formats: Arc::clone(formats),
                run: None,
                hold: *hold,
                rows_delivered: 0,
            };
            (session.objects.set_portal(name.as_bytes(), portal), own, 0)
        }
        StatementKind::Fetch { name, .. } => {
            let policy = session.world.policy.generation;
            match session.objects.portal(name.as_bytes()) {
                Some(portal) => {
                    if session.protected() && portal.prepared.basis.policy != policy {
                        return Err(refusals::policy_changed());
                    }
                    (
                        Undo::Nothing,
                        portal.prepared.judged.clone().unwrap_or(own),
                        portal.rows_delivered,
                    )
                }
                None if session.protected() => return Err(refusals::unknown_portal(name.as_bytes())),
                None => (Undo::Nothing, own, 0),
            }
        }
        StatementKind::CloseCursor(Some(name)) => (session.objects.remove_portal(name.as_bytes()), own, 0),
        StatementKind::CloseCursor(None) => (session.objects.remove_portals(), own, 0),
        StatementKind::Discard(DiscardTarget::All) => (session.objects.remove_all(), own, 0),
        _ => (Undo::Nothing, own, 0),
    })
}

pub(super) fn prepared_by_sql(session: &Session, judged: &Arc<Judged>) -> Arc<Prepared> {
    let text = judged
        .statement
        .as_ref()
        .and_then(|statement| statement.text.get(statement.span.clone()))
        .map(Arc::from)
        .unwrap_or_default();
    Arc::new(Prepared {
        text,
        judged: Some(Arc::clone(judged)),
        basis: session.basis(),
        parameter_types: Vec::new(),
        by_sql: true,
        signature: OnceLock::new(),
        before: None,
    })
}

/// A text, judged whole.
pub(super) enum Text {
    Run(Vec<Arc<Judged>>),
    NeedsState,
    Refuse(Box<Refusal>, String),
}

pub(super) fn judge_text(session: &mut Session, text: &str, judge: &mut Judge) -> Text {
    let basis = session.basis();
    let trusted = !session.stale || session.status == TransactionStatus::Failed || !session.protected();
    if let Some(judged) = judge.remembered(text, &basis) {
        if !trusted && depends_on_state(&judged) {
            return Text::NeedsState;
        }
        return Text::Run(vec![judged]);
    }
    let parsed = match sql_facts::parse(text) {
        Ok(parsed) => parsed,
        Err(reason) => return judge_unparsed(session, text, &reason),
    };
    let single = parsed.statements.len() == 1;
    let mut foretold = Foretold::from_known(&session.known);
    let mut list = Vec::with_capacity(parsed.statements.len());
    for statement in &parsed.statements {
        let (Some(path), Some(overlay)) = (foretold.path.as_ref(), foretold.overlay.as_ref()) else {
            // Something before it in this text moved what names mean: only what needs no names may follow.
            match judge_statement(statement, session.context()) {
                Ok(judged) if !session.protected() || !depends_on_state(&judged) => {
                    list.push(judged);
                    continue;
                }
                Ok(_) | Err(_) if session.protected() => {
                    let what = if foretold.path.is_none() {
                        "a setting that is changed"
                    } else {
                        "definitions that are changed"
                    };
                    return Text::Refuse(Box::new(refusals::cannot_foretell(what)), String::new());
                }
                Ok(judged) => {
                    list.push(judged);
                    continue;
                }
                Err(refusal) => return Text::Refuse(Box::new(refusal), String::new()),
            }
        };
        let context = access_policy::DecisionContext {
            policy: &session.world.policy,
            subject: &session.subject,
            view: CatalogView {
                catalog: &session.world.catalog,
                overlay,
                path,
            },
        };
        let judged = match judge_statement(statement, context) {
            Ok(judged) => judged,
            // Where nothing is protected the state is read back only when it may be why a text is refused.
            Err(_) if session.stale && session.status != TransactionStatus::Failed => {
                return Text::NeedsState;
            }
            Err(refusal) => {
                let normalized = normalized(statement, context.view);
                return Text::Refuse(Box::new(refusal), normalized);
            }
        };
        if !trusted && depends_on_state(&judged) {
            return Text::NeedsState;
        }
        if let Some(facts) = judged.permit.facts() {
            foretell(session, &judged, facts, &list, &mut foretold, statement);
        } else if !single {
            foretold.path = None;
        }
        list.push(judged);
    }
    if single
        && trusted
        && let Some(judged) = list.first()
    {
        judge.remember(text, &basis, judged);
    }
    Text::Run(list)
}

pub(super) fn normalized(statement: &sql_facts::ParsedStatement, view: CatalogView<'_>) -> String {
    sql_facts::read(statement, view)
        .map(|facts| facts.normalized)
        .unwrap_or_default()
}

pub(super) fn judge_unparsed(session: &Session, text: &str, reason: &Unreadable) -> Text {
    match judge_unreadable(text, reason, session.context()) {
        Ok(judged) => Text::Run(vec![judged]),
        Err(refusal) => Text::Refuse(Box::new(refusal), String::new()),
    }
}

pub(super) fn foretell(
    session: &Session,
    judged: &Judged,
    facts: &StatementFacts,
    earlier: &[Arc<Judged>],
    foretold: &mut Foretold,
    statement: &sql_facts::ParsedStatement,
) {
    match runs_elsewhere(session, facts, earlier) {
        // What it prepares runs at its EXECUTE.
        Elsewhere::Later => {
            if matches!(facts.kind, StatementKind::Declare { .. }) && changes_state(judged) {
                foretold.path = None;
                foretold.overlay = None;
            }
            return;
        }
        Elsewhere::Changes => {
            foretold.path = None;
            foretold.overlay = None;
        }
        Elsewhere::Nothing => {}
    }
    for effect in &facts.effects {
        if matches!(effect, SessionEffect::CatalogChange) {
            // A definition that `apply` understands is followed; else what comes after it cannot be read.
            let applied = match (foretold.overlay.as_ref(), foretold.path.as_ref()) {
                (Some(overlay), Some(path)) => {
                    let mut next = Overlay::clone(overlay);
                    next.apply(&session.world.catalog, statement, path)
                        .ok()
                        .map(|()| next)
                }
                _ => None,
            };
            foretold.overlay = applied.map(Arc::new);
        } else {
            foretold.apply(effect, &session.known, &session.world.catalog);
        }
    }
    let gives_back = matches!(
        facts.kind,
        StatementKind::Rollback { .. } | StatementKind::RollbackTo(_) | StatementKind::Commit { .. }
    );
    if gives_back && (session.touched || session.stale) {
        foretold.path = None;
        foretold.overlay = None;
    }
}
