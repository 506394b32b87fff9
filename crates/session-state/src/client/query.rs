//! The simple Query.

use super::*;

pub(super) fn query(session: &mut Session, message: ClientMessage, judge: &mut Judge, out: &mut Vec<Action>) {
    if session.skipping {
        return;
    }
    let Ok(FrontendMessage::Query { sql }) = FrontendMessage::decode(message.tag, &message.body) else {
        session.kill("08P01", "invalid message format", out);
        return;
    };
    if let Some(refusal) = session.cannot_record.clone() {
        return refuse_query(session, refusal, String::new(), out);
    }
    let text = match text_of(session, sql) {
        Ok(text) => text,
        Err(refusal) => return refuse_query(session, refusal, String::new(), out),
    };
    let list = match judge_text(session, text, judge) {
        Text::Run(list) => list,
        Text::NeedsState => return session.block(message, Stage::RepliesThenState, out),
        Text::Refuse(refusal, normalized) => return refuse_query(session, *refusal, normalized, out),
    };

    match ahead_of_query(session, &list, text, judge, out) {
        Ahead::Go => {}
        Ahead::Wait => return session.block(message, Stage::Replies, out),
        Ahead::Refuse(refusal) => return refuse_query(session, *refusal, String::new(), out),
    }

    let limit = session.world.policy.guardrails.max_affected_rows;
    let commits = list.iter().any(|judged| commits(judged));
    let counted = list.iter().any(|judged| is_counted(judged));
    if limit.is_some() {
        if (commits || session.status == TransactionStatus::Idle) && !session.pending.is_empty() {
            // What is under way must be counted before anything may commit it.
            return session.block(message, Stage::Replies, out);
        }
        if (commits || session.status == TransactionStatus::Idle)
            && let Some(refusal) = over_limit(session, &list)
        {
            return refuse_query(session, refusal, String::new(), out);
        }
    }

    // The unnamed statement and portal go with every simple Query.
    let mut undo_first = vec![
        session.objects.remove_statement(b""),
        session.objects.remove_portal(b""),
    ];
    let text_formats: Arc<[i16]> = Arc::from([]);
    let mut parts: Vec<Part> = Vec::with_capacity(list.len());
    for judged in &list {
        match apply_to_objects(session, judged, &text_formats) {
            Ok((undo, result, rows_before)) => {
                let mut run = session.new_run(judged, &result, Arc::clone(&text_formats));
                run.rows_before = rows_before;
                parts.push(Part {
                    run: Some(run),
                    undo,
                    text: part_text(judged, text, list.len() == 1),
                    commits: self::commits(judged),
                });
            }
            Err(refusal) => {
                for part in parts.into_iter().rev() {
                    session.objects.undo(part.undo);
                }
                undo_first
                    .drain(..)
                    .rev()
                    .for_each(|undo| session.objects.undo(undo));
                return refuse_query(session, refusal, String::new(), out);
            }
        }
    }
    for judged in &list {
        note_state_change(session, judged);
    }
    let one_by_one = limit.is_some()
        && counted
        && (session.status == TransactionStatus::Idle || commits)
        && parts.iter().all(|part| part.run.is_some());
    for part in &parts {
        if let Some(run) = &part.run {
            Session::announce(run, out);
            session.wrote |= run.judged.writes() || run.result.writes();
        }
    }
    let governed = list
        .iter()
        .any(|judged| matches!(judged.permit.send(), SendAs::Governed(_)));
    let texts = texts_of(text, &list, governed);
    let mut run = QueryRun {
        parts,
        current: 0,
        texts,
        one_by_one,
        step: Step::Statement,
        counts_beside_tag: false,
        changed_before: 0,
        synced: false,
        poison: None,
    };
    if one_by_one {
        send_part(&mut run, out);
        session.pending.push_back(Pending::Query(run));
        return;
    }
    if governed {
        out.push(Action::ToServer(message::query(&run.texts.sent)));
    } else {
        out.push(Action::ToServer(message.raw));
    }
    session.pending.push_back(Pending::Query(run));
}

/// What must happen before a simple Query goes out.
pub(super) enum Ahead {
    Go,
    Wait,
    Refuse(Box<Refusal>),
}

pub(super) fn ahead_of_query(
    session: &mut Session,
    list: &[Arc<Judged>],
    text: &str,
    judge: &mut Judge,
    out: &mut Vec<Action>,
) -> Ahead {
    if !session.protected() || session.status == TransactionStatus::Failed {
        return Ahead::Go;
    }
    let quiet = session.pending.is_empty();
    // EXECUTE of a statement that means something else now: it is prepared again first.
    for judged in list {
        match execute_moved(session, judged) {
            Moved::No => {}
            Moved::Refuse(refusal) => return Ahead::Refuse(refusal),
            Moved::To(_, _, _) if list.len() > 1 || session.unsynced => {
                return Ahead::Refuse(Box::new(refusals::plan_changed()));
            }
            Moved::To(_, _, _) if !quiet => return Ahead::Wait,
            Moved::To(name, before, now) => {
                prepare_sql_again(session, &name, &before, now, out);
                return Ahead::Wait;
            }
        }
    }
    // A governed text that is new is described before it runs. Of several statements only the first can be: the
    // others may need what it makes. They are checked as they answer.
    if let [judged] = list
        && let SendAs::Governed(governed) = judged.permit.send()
        && !session.unsynced
        && !judge.was_checked(judged, &session.basis())
    {
        if std::mem::take(&mut session.check_done) {
            judge.remember_checked(judged, &session.basis());
            return Ahead::Go;
        }
        if !quiet {
            return Ahead::Wait;
        }
        let prepared = Arc::new(Prepared {
            text: Arc::from(text),
            judged: Some(Arc::clone(judged)),
            basis: session.basis(),
            parameter_types: Vec::new(),
            by_sql: false,
            signature: OnceLock::new(),
            before: None,
        });
        session.check_done = true;
        out.push(Action::ToServer(message::own_check(&governed.text)));
        let texts = texts_of(text, list, true);
        session.pending.push_back(Pending::OwnParse { texts });
        session.pending.push_back(Pending::OwnDescribe {
            prepared,
            replaced: false,
        });
        session.pending.push_back(Pending::OwnClose);
        session.pending.push_back(Pending::OwnSync);
        return Ahead::Wait;
    }
    Ahead::Go
}

/// Prepares a statement of SQL PREPARE again, and has both described, so that a changed result shows.
pub(super) fn prepare_sql_again(
    session: &mut Session,
    name: &str,
    before: &Arc<Prepared>,
    now: Arc<Judged>,
    out: &mut Vec<Action>,
) {
    let text = sent_text(&now, &before.text);
    let sql = format!(
        "DEALLOCATE {}; {text}",
        sql_facts::catalog::quote_identifier(name)
    );
    let prepared = Arc::new(Prepared {
        text: Arc::clone(&before.text),
        judged: Some(now),
        basis: session.basis(),
        parameter_types: Vec::new(),
        by_sql: true,
        signature: OnceLock::new(),
        before: Some(first_of(before)),
    });
    if before.signature.get().is_none() {
        out.push(Action::ToServer(message::describe_and_sync(name.as_bytes())));
        session.pending.push_back(Pending::OwnDescribe {
            prepared: Arc::clone(before),
            replaced: true,
        });
        session.pending.push_back(Pending::OwnSync);
    }
    out.push(Action::ToServer(message::query(&sql)));
    session.pending.push_back(Pending::OwnQuery {
        purpose: OwnPurpose::Prepare,
        failed: None,
    });
    out.push(Action::ToServer(message::describe_and_sync(name.as_bytes())));
    session.pending.push_back(Pending::OwnDescribe {
        prepared: Arc::clone(&prepared),
        replaced: false,
    });
    session.pending.push_back(Pending::OwnSync);
    let _kept = session.objects.set_statement(name.as_bytes(), prepared);
}

/// Sends the current step of a Query that goes one by one.
pub(crate) fn send_part(run: &mut QueryRun, out: &mut Vec<Action>) {
    let Some(part) = run.parts.get(run.current) else {
        run.synced = true;
        out.push(Action::ToServer(message::sync()));
        return;
    };
    let beside_tag = part
        .run
        .as_ref()
        .is_some_and(|run| run.judged.changes_beside_tag || run.result.changes_beside_tag);
    run.counts_beside_tag = beside_tag;
    run.step = if beside_tag {
        Step::CountBefore
    } else {
        Step::Statement
    };
    send_step(run, out);
}

/// Sends what the step is about.
pub(crate) fn send_step(run: &QueryRun, out: &mut Vec<Action>) {
    let sql = match (run.step, run.parts.get(run.current)) {
        (Step::CountBefore | Step::CountAfter, _) | (Step::Statement, None) => CHANGED_SQL,
        (Step::Statement, Some(part)) => &part.text,
    };
    out.push(Action::ToServer(message::own_statement(sql)));
}

/// The text of one part, when parts go one by one. A remembered decision may come from a text with other literals.
pub(super) fn part_text(judged: &Judged, text: &str, alone: bool) -> Arc<str> {
    match judged.permit.send() {
        SendAs::AsWritten if alone => Arc::from(text.trim_end().trim_end_matches(';')),
        SendAs::AsWritten | SendAs::Governed(_) => sent_text(judged, text),
    }
}

pub(super) fn sent_text(judged: &Judged, text: &str) -> Arc<str> {
    match judged.permit.send() {
        SendAs::Governed(governed) => Arc::from(governed.text.as_str()),
        SendAs::AsWritten => match &judged.statement {
            Some(statement) => Arc::from(statement.text.get(statement.span.clone()).unwrap_or(text)),
            None => Arc::from(text),
        },
    }
}

pub(super) fn texts_of(text: &str, list: &[Arc<Judged>], governed: bool) -> Texts {
    if !governed {
        return Texts::default();
    }
    let mut sent = String::new();
    let mut segments = Vec::new();
    for judged in list {
        if !sent.is_empty() {
            sent.push_str("; ");
        }
        let start = judged
            .statement
            .as_ref()
            .map_or(0, |statement| statement.span.start);
        let base = sent.len();
        match judged.permit.send() {
            SendAs::AsWritten => {
                segments.push(Segment {
                    sent: base,
                    client: start,
                    linear: true,
                });
                sent.push_str(&sent_text(judged, text));
            }
            SendAs::Governed(governed) => {
                segments.push(Segment {
                    sent: base,
                    client: start,
                    linear: false,
                });
                segments.extend(governed.positions.iter().map(|(sent, client)| Segment {
                    sent: base + sent,
                    client: *client,
                    linear: false,
                }));
                sent.push_str(&governed.text);
            }
        }
    }
    Texts {
        sent: Arc::from(sent),
        client: Arc::from(text),
        segments: Arc::from(segments),
    }
}
