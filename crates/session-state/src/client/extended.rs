//! Parse, Bind, Describe, Execute, Close, Sync and FunctionCall.

use super::*;

pub(super) fn parse(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
    let Ok(parse) = frontend::Parse::decode(&message.body) else {
        return Verdict::Malformed;
    };
    if parse.name.starts_with(RESERVED_PREFIX) {
        return refuse(refusals::reserved_name());
    }
    let name = message.body.slice_ref(parse.name);
    let text = match text_of(session, parse.sql) {
        Ok(text) => text,
        Err(refusal) => {
            return Verdict::Refuse {
                refusal: Box::new(refusal),
                normalized: String::new(),
                name,
            };
        }
    };
    let list = match judge_text(session, text, judge) {
        Text::Run(list) => list,
        Text::NeedsState => return Verdict::NeedsState,
        Text::Refuse(refusal, normalized) => {
            return Verdict::Refuse {
                refusal,
                normalized,
                name,
            };
        }
    };
    let types: Vec<u32> = parse.parameter_types().collect();
    // A text of several statements is refused by the server itself; it was judged all the same.
    let judged = if list.len() == 1 {
        list.first().cloned()
    } else {
        None
    };
    let prepared = Arc::new(Prepared {
        text: Arc::from(text),
        judged: judged.clone(),
        basis: session.basis(),
        parameter_types: types.clone(),
        by_sql: false,
        signature: OnceLock::new(),
        before: None,
    });
    let mut actions = Vec::with_capacity(2);
    let mut texts = Texts::default();
    let governed = match judged.as_ref().map(|judged| judged.permit.send()) {
        Some(SendAs::Governed(governed)) => {
            texts = texts_of(text, &list, true);
            actions.push(Action::ToServer(message::parse(
                parse.name,
                &governed.text,
                &types,
            )));
            true
        }
        Some(SendAs::AsWritten) | None => {
            actions.push(Action::ToServer(message.raw.clone()));
            false
        }
    };
    let undo = session.objects.set_statement(parse.name, Arc::clone(&prepared));
    session.pending.push_back(Pending::Parse { undo, texts });
    if governed {
        // The wire check: clients often never ask for a description.
        actions.push(Action::ToServer(message::describe_statement(parse.name)));
        session.pending.push_back(Pending::OwnDescribe {
            prepared,
            replaced: false,
        });
    }
    Verdict::Done(actions)
}

/// Judges a prepared statement again where something it rested on moved.
pub(super) fn judge_again(
    session: &mut Session,
    prepared: &Prepared,
    judge: &mut Judge,
) -> Result<Option<Arc<Judged>>, Verdict> {
    if !session.protected() && prepared.basis.policy == session.world.policy.generation {
        return Ok(None);
    }
    let trusted = !session.stale || session.status == TransactionStatus::Failed || !session.protected();
    let depends = prepared
        .judged
        .as_ref()
        .is_some_and(|judged| depends_on_state(judged));
    if !trusted && depends {
        return Err(Verdict::NeedsState);
    }
    if prepared.basis == session.basis() || prepared.judged.is_none() {
        return Ok(None);
    }
    match judge_text(session, &prepared.text, judge) {
        Text::Run(list) => Ok(list.into_iter().next()),
        Text::NeedsState => Err(Verdict::NeedsState),
        Text::Refuse(refusal, normalized) => Err(Verdict::Refuse {
            refusal,
            normalized,
            name: Bytes::from_static(RESERVED_NAME),
        }),
    }
}

/// Whether two decisions send the same text about the same relations.
pub(super) fn same_meaning(before: &Judged, now: &Judged) -> bool {
    let relations = |judged: &Judged| {
        judged.permit.facts().map(|facts| {
            facts
                .actions
                .iter()
                .map(|action| (action.action, action.relation))
                .collect::<Vec<_>>()
        })
    };
    relations(before) == relations(now)
        && before.permit.send() == now.permit.send()
        && before.result == now.result
}

/// The statement whose result the client knows: the first of that name.
pub(super) fn first_of(prepared: &Arc<Prepared>) -> Arc<Prepared> {
    Arc::clone(prepared.before.as_ref().unwrap_or(prepared))
}

/// Prepares a statement again under its own name; what the client then binds is the new one.
pub(super) fn prepare_again(
    session: &mut Session,
    name: &[u8],
    before: &Arc<Prepared>,
    judged: Arc<Judged>,
) -> Vec<Action> {
    let mut actions = Vec::with_capacity(3);
    let prepared = Arc::new(Prepared {
        text: Arc::clone(&before.text),
        judged: Some(Arc::clone(&judged)),
        basis: session.basis(),
        parameter_types: before.parameter_types.clone(),
        by_sql: before.by_sql,
        signature: OnceLock::new(),
        before: Some(first_of(before)),
    });
    let text = sent_text(&judged, &prepared.text);
    actions.push(Action::ToServer(message::close_statement(name)));
    session.pending.push_back(Pending::OwnClose);
    actions.push(Action::ToServer(message::parse(
        name,
        &text,
        &prepared.parameter_types,
    )));
    session.pending.push_back(Pending::OwnParse {
        texts: Texts::default(),
    });
    actions.push(Action::ToServer(message::describe_statement(name)));
    session.pending.push_back(Pending::OwnDescribe {
        prepared: Arc::clone(&prepared),
        replaced: false,
    });
    // Not taken back on failure: the server closed the old one in any case, and a Bind to it fails there.
    let _kept = session.objects.set_statement(name, prepared);
    actions
}

pub(super) fn bind(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
    let Ok(bind) = frontend::BindNames::decode_front(&message.body) else {
        return Verdict::Malformed;
    };
    if bind.portal.starts_with(RESERVED_PREFIX) || bind.statement.starts_with(RESERVED_PREFIX) {
        return refuse(refusals::reserved_name());
    }
    let Some(mut prepared) = session.objects.statement(bind.statement).cloned() else {
        return refuse(refusals::unknown_statement(bind.statement));
    };
    let mut actions = Vec::new();
    match judge_again(session, &prepared, judge) {
        Ok(None) => {}
        Ok(Some(judged)) => {
            let same = prepared
                .judged
                .as_ref()
                .is_some_and(|before| same_meaning(before, &judged));
            if same {
                let renewed = Arc::new(Prepared {
                    text: Arc::clone(&prepared.text),
                    judged: Some(judged),
                    basis: session.basis(),
                    parameter_types: prepared.parameter_types.clone(),
                    by_sql: prepared.by_sql,
                    signature: prepared.signature.clone(),
                    before: prepared.before.clone(),
                });
                let _kept = session
                    .objects
                    .set_statement(bind.statement, Arc::clone(&renewed));
                prepared = renewed;
            } else if prepared.by_sql {
                return refuse(refusals::plan_changed());
            } else {
                return Verdict::DoThenAgain(prepare_again(session, bind.statement, &prepared, judged));
            }
        }
        Err(verdict) => return verdict,
    }
    if prepared.result_moved() {
        return refuse(refusals::plan_changed());
    }
    // What is new is checked before it runs.
    if let Some(judged) = &prepared.judged
        && matches!(judged.permit.send(), SendAs::Governed(_))
        && !session.pending.is_empty()
        && !judge.was_checked(judged, &session.basis())
    {
        return Verdict::NeedsReplies;
    }
    let strip = prepared
        .judged
        .as_ref()
        .map_or(0, |judged| judged.result.strip.len());
    let masks = prepared
        .judged
        .as_ref()
        .is_some_and(|judged| !judged.result.is_plain());
    let formats: Arc<[i16]> = if masks && message.streamed {
        // The formats stand behind the values, which are streamed.
        return refuse(refusals::not_served(
            "a Bind of more than 64 KiB to a statement whose rows are masked on the wire",
        ));
    } else if message.streamed {
        Arc::from([])
    } else {
        match frontend::Bind::decode(&message.body) {
            Ok(bind) => bind.result_formats.iter().collect(),
            Err(_) => return Verdict::Malformed,
        }
    };
    let mut sent_formats = Arc::clone(&formats);
    if strip > 0 && formats.len() > 1 {
        sent_formats = formats
            .iter()
            .copied()
            .chain(std::iter::repeat_n(0, strip))
            .collect();
        match message::bind_with_formats(&message.body, &sent_formats) {
            Some(raw) => actions.push(Action::ToServer(raw)),
            None => return Verdict::Malformed,
        }
    } else {
        actions.push(Action::ToServer(message.raw.clone()));
    }
    let portal = Portal {
        prepared,
        formats: sent_formats,
        run: None,
        hold: false,
        rows_delivered: 0,
    };
    let undo = session.objects.set_portal(bind.portal, portal);
    session.pending.push_back(Pending::Bind {
        undo,
        texts: Texts::default(),
    });
    Verdict::Done(actions)
}

pub(super) fn describe(session: &mut Session, message: &ClientMessage, _judge: &mut Judge) -> Verdict {
    let Ok(FrontendMessage::Describe(target)) = FrontendMessage::decode(message.tag, &message.body) else {
        return Verdict::Malformed;
    };
    let (plan, prepared) = match target {
        Target::Statement(name) => match session.objects.statement(name) {
            Some(prepared) => (prepared.judged.clone(), Some(Arc::clone(prepared))),
            None => return refuse(refusals::unknown_statement(name)),
        },
        Target::Portal(name) => match session.objects.portal(name) {
            Some(portal) => (portal.prepared.judged.clone(), None),
            None => return refuse(refusals::unknown_portal(name)),
        },
    };
    // EXECUTE and FETCH have the columns of what they run.
    let plan = match plan.as_ref().and_then(|judged| judged.kind()) {
        Some(StatementKind::Execute(name)) => session
            .objects
            .statement(name.as_bytes())
            .and_then(|prepared| prepared.judged.clone())
            .or(plan),
        Some(StatementKind::Fetch { name, .. }) => session
            .objects
            .portal(name.as_bytes())
            .and_then(|portal| portal.prepared.judged.clone())
            .or(plan),
        _ => plan,
    };
    session.pending.push_back(Pending::Describe { plan, prepared });
    Verdict::Done(vec![Action::ToServer(message.raw.clone())])
}

pub(super) fn execute(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
    let Ok(FrontendMessage::Execute(execute)) = FrontendMessage::decode(message.tag, &message.body) else {
        return Verdict::Malformed;
    };
    if execute.portal.starts_with(RESERVED_PREFIX) {
        return refuse(refusals::reserved_name());
    }
    let Some(portal) = session.objects.portal(execute.portal).cloned() else {
        return refuse(refusals::unknown_portal(execute.portal));
    };
    let Some(judged) = portal.prepared.judged.clone() else {
        session.pending.push_back(Pending::ExecuteEmpty);
        return Verdict::Done(vec![Action::ToServer(message.raw.clone())]);
    };
    // An open portal keeps the relations it was bound with; policy and identity are looked at again.
    if session.protected() && portal.prepared.basis.policy != session.world.policy.generation {
        match judge_again(session, &portal.prepared, judge) {
            Ok(None) => {}
            Ok(Some(now)) if same_meaning(&judged, &now) => {}
            Ok(Some(_)) => return refuse(refusals::policy_changed()),
            Err(verdict) => return verdict,
        }
    }
    // Utility statements look their names up only now.
    if session.protected() && resolves_late(&judged) {
        match judge_again(session, &portal.prepared, judge) {
            Ok(None) => {}
            Ok(Some(now)) if same_meaning(&judged, &now) => {}
            Ok(Some(_)) => return refuse(refusals::plan_changed()),
            Err(verdict) => return verdict,
        }
    }
    match execute_moved(session, &judged) {
        Moved::No => {}
        Moved::Refuse(refusal) => return refuse(*refusal),
        Moved::To(_, _, _) => return refuse(refusals::plan_changed()),
    }
    if session.world.policy.guardrails.max_affected_rows.is_some() && commits(&judged) {
        if !session.pending.is_empty() {
            return Verdict::NeedsReplies;
        }
        if let Some(refusal) = over_limit(session, &[Arc::clone(&judged)]) {
            return refuse(refusal);
        }
    }
    let mut actions = Vec::with_capacity(2);
    let limited = session.world.policy.guardrails.max_affected_rows.is_some();
    let undo_is_first = portal
        .run
        .is_none_or(|sequence| !session.runs.contains_key(&sequence));
    let (sequence, undo) = match portal.run {
        // More rows of a suspended portal.
        Some(sequence) if session.runs.contains_key(&sequence) => (sequence, Undo::Nothing),
        _ => {
            let (undo, result, rows_before) = match apply_to_objects(session, &judged, &portal.formats) {
                Ok(done) => done,
                Err(refusal) => return refuse(refusal),
            };
            note_state_change(session, &judged);
            let mut run = session.new_run(&judged, &result, Arc::clone(&portal.formats));
            run.rows_before = rows_before;
            Session::announce(&run, &mut actions);
            session.wrote |= run.judged.writes() || run.result.writes();
            let sequence = run.sequence;
            session.runs.insert(sequence, run);
            if let Some(portal) = session.objects.portal_mut(execute.portal) {
                portal.run = Some(sequence);
            }
            (sequence, undo)
        }
    };
    let beside_tag = limited
        && undo_is_first
        && session
            .runs
            .get(&sequence)
            .is_some_and(|run| run.judged.changes_beside_tag || run.result.changes_beside_tag);
    if beside_tag {
        ask_changed(session, OwnPurpose::CountBefore, &mut actions);
    }
    actions.push(Action::ToServer(message.raw.clone()));
    session.pending.push_back(Pending::Execute {
        sequence,
        undo,
        texts: Texts::default(),
    });
    if beside_tag {
        ask_changed(session, OwnPurpose::CountAfter, &mut actions);
    }
    Verdict::Done(actions)
}

/// Whether EXECUTE runs a statement whose decision no longer holds.
pub(super) enum Moved {
    No,
    /// Name, the statement as it is prepared, the decision now.
    To(String, Arc<Prepared>, Arc<Judged>),
    Refuse(Box<Refusal>),
}

pub(super) fn execute_moved(session: &Session, judged: &Judged) -> Moved {
    if !session.protected() {
        return Moved::No;
    }
    let Some(StatementKind::Execute(name)) = judged.kind() else {
        return Moved::No;
    };
    let Some(prepared) = session.objects.statement(name.as_bytes()) else {
        return Moved::No;
    };
    if prepared.result_moved() {
        return Moved::Refuse(Box::new(refusals::plan_changed()));
    }
    let Some(before) = prepared
        .judged
        .as_ref()
        .filter(|_| prepared.basis != session.basis())
    else {
        return Moved::No;
    };
    let Some(statement) = before.statement.as_ref() else {
        return Moved::No;
    };
    match judge_statement(statement, session.context()) {
        Ok(now) if same_meaning(before, &now) => Moved::No,
        // What Parse prepared is prepared again at its Bind; EXECUTE of it is rare.
        Ok(_) if !prepared.by_sql => Moved::Refuse(Box::new(refusals::plan_changed())),
        Ok(now) => Moved::To(name.clone(), Arc::clone(prepared), now),
        Err(refusal) => Moved::Refuse(Box::new(refusal)),
    }
}

/// Asks the server's statistics inside the pipeline.
pub(super) fn ask_changed(session: &mut Session, purpose: OwnPurpose, actions: &mut Vec<Action>) {
    actions.push(Action::ToServer(message::own_pipeline(CHANGED_SQL)));
    session.push_own_pipeline(purpose);
}

/// Whether the server resolves the names of that kind only when it executes it.
pub(super) fn resolves_late(judged: &Judged) -> bool {
    !matches!(
        judged.kind(),
        Some(
            StatementKind::Select
                | StatementKind::Insert
                | StatementKind::Update
                | StatementKind::Delete
                | StatementKind::Merge
        )
    )
}

pub(super) fn close(session: &mut Session, message: &ClientMessage, _judge: &mut Judge) -> Verdict {
    let Ok(FrontendMessage::Close(target)) = FrontendMessage::decode(message.tag, &message.body) else {
        return Verdict::Malformed;
    };
    let undo = match target {
        Target::Statement(name) => session.objects.remove_statement(name),
        Target::Portal(name) => session.objects.remove_portal(name),
    };
    session.pending.push_back(Pending::Close { undo });
    Verdict::Done(vec![Action::ToServer(message.raw.clone())])
}

pub(super) fn sync(session: &mut Session, message: ClientMessage, out: &mut Vec<Action>) {
    let limit = session.world.policy.guardrails.max_affected_rows;
    if let Some(rows_max) = limit
        && session.status == TransactionStatus::Idle
        && session.unsynced
        && !session.skipping
    {
        // Outside a block the Sync commits: count first.
        if !session.pending.is_empty() {
            return session.block(message, Stage::Replies, out);
        }
        if session.affected > rows_max {
            let refusal = refusals::too_many_changes(session.affected, rows_max, affected_rule());
            refuse_in_pipeline(session, refusal, String::new(), RESERVED_NAME, out);
        }
    }
    session.skipping = false;
    session.unsynced = false;
    session.pending.push_back(Pending::Sync);
    out.push(Action::ToServer(message.raw));
}

pub(super) fn function_call(session: &mut Session, message: ClientMessage, out: &mut Vec<Action>) {
    if session.skipping {
        return;
    }
    if let Some(refusal) = session.cannot_record.clone() {
        return refuse_query(session, refusal, String::new(), out);
    }
    let Ok(call) = frontend::FunctionCall::function_of_front(&message.body) else {
        session.kill("08P01", "invalid message format", out);
        return;
    };
    let judged = match access_policy::decide_function_call(call, session.context()) {
        access_policy::Decision::Permit(permit) => crate::judge::judged_call(permit),
        access_policy::Decision::Refuse(refusal) => {
            return refuse_query(session, refusal, String::new(), out);
        }
    };
    let formats: Arc<[i16]> = Arc::from([]);
    let run = session.new_run(&judged, &judged, formats);
    Session::announce(&run, out);
    let sequence = run.sequence;
    session.runs.insert(sequence, run);
    session.pending.push_back(Pending::FunctionCall { sequence });
    if message.streamed {
        session.streaming = Streaming::Forward;
    }
    out.push(Action::ToServer(message.raw));
}
