//! Messages of the client: judged, then sent, held or refused.

use std::sync::{Arc, OnceLock};

use access_policy::{Refusal, SendAs};
use bytes::Bytes;
use sql_facts::facts::{DiscardTarget, FunctionClass, SessionEffect};
use sql_facts::{CatalogView, StatementFacts, StatementKind, Unreadable};
use wire_protocol::postgres::backend::TransactionStatus;
use wire_protocol::postgres::frontend::{self, FrontendMessage, Target};

use crate::describe::describe_text;
use crate::judge::{Judge, Judged, judge_statement, judge_unreadable};
use crate::message;
use crate::objects::{Portal, Prepared, Undo};
use crate::pending::{ClientMessage, OwnPurpose, Part, Pending, QueryRun, Segment, Stage, Step, Texts};
use crate::record::Record;
use crate::refusals;
use crate::session::{Action, Closing, RESERVED_PREFIX, Session, Streaming};
use crate::state::{CHANGED_SQL, Foretold};

/// One message of the client.
pub(crate) fn handle(
    session: &mut Session,
    message: ClientMessage,
    judge: &mut Judge,
    out: &mut Vec<Action>,
) {
    // Long bodies are forwarded or dropped as their head is.
    if message.streamed {
        session.streaming = Streaming::Drop;
    }
    match message.tag {
        b'Q' => query(session, message, judge, out),
        b'P' => in_pipeline(session, message, judge, out, parse),
        b'B' => in_pipeline(session, message, judge, out, bind),
        b'D' => in_pipeline(session, message, judge, out, describe),
        b'E' => in_pipeline(session, message, judge, out, execute),
        b'C' => in_pipeline(session, message, judge, out, close),
        b'F' => function_call(session, message, out),
        // In COPY the server reads over it. Clients send it behind CopyDone or CopyFail.
        b'S' if session.copy_in => out.push(Action::ToServer(message.raw)),
        b'S' => sync(session, message, out),
        // Flush asks for answers and changes nothing.
        b'H' => {
            if !session.skipping {
                out.push(Action::ToServer(message.raw));
            }
        }
        // The server ignores these outside of a COPY; in one, it was judged.
        b'd' | b'c' | b'f' => {
            if message.tag != b'd' {
                session.copy_in = false;
            }
            if message.streamed {
                session.streaming = Streaming::Forward;
            }
            out.push(Action::ToServer(message.raw));
            // Sent as Execute, its end would wait for a Sync in the server's buffer.
            if message.tag != b'd'
                && matches!(session.pending.front(), Some(Pending::Query(query)) if query.one_by_one)
            {
                out.push(Action::ToServer(message::flush()));
            }
        }
        b'X' => {
            out.push(Action::ToServer(message.raw));
            session.on_disconnect(out);
            out.push(Action::Close {
                closing: Closing::Client,
                reason: "the client said goodbye".to_owned(),
            });
        }
        other => {
            let text = format!("invalid frontend message type {other}");
            session.kill("08P01", &text, out);
        }
    }
}

/// A text longer than the cap: refused in every mode, none of it is kept.
pub(crate) fn too_long(session: &mut Session, tag: u8, bytes_max: usize, out: &mut Vec<Action>) {
    let refusal = refusals::text_too_long(bytes_max);
    match tag {
        b'Q' if session.skipping => {}
        b'Q' => refuse_query(session, refusal, String::new(), out),
        _ if session.skipping => {}
        b'P' => refuse_in_pipeline(session, refusal, String::new(), RESERVED_NAME, out),
        _ => session.kill("08P01", "message is too long", out),
    }
}

type Handler = fn(&mut Session, &ClientMessage, &mut Judge) -> Verdict;

/// What a handler of the extended protocol found.
enum Verdict {
    /// Done: these actions.
    Done(Vec<Action>),
    /// Needs the session's state, which is stale.
    NeedsState,
    /// Needs all answers first.
    NeedsReplies,
    /// These actions, then all answers, then the message once more.
    DoThenAgain(Vec<Action>),
    /// No. The name is the statement's where the client's own Parse is refused.
    Refuse {
        refusal: Box<Refusal>,
        normalized: String,
        name: Bytes,
    },
    /// Not a message of the protocol.
    Malformed,
}

const RESERVED_NAME: &[u8] = b"weir_refused";

fn refuse(refusal: Refusal) -> Verdict {
    Verdict::Refuse {
        refusal: Box::new(refusal),
        normalized: String::new(),
        name: Bytes::from_static(RESERVED_NAME),
    }
}

fn in_pipeline(
    session: &mut Session,
    message: ClientMessage,
    judge: &mut Judge,
    out: &mut Vec<Action>,
    handler: Handler,
) {
    if session.skipping {
        // The server drops it too: an error was answered and no Sync has come.
        return;
    }
    if let Some(refusal) = session.cannot_record.clone()
        && matches!(message.tag, b'P' | b'B' | b'E')
    {
        return refuse_in_pipeline(session, refusal, String::new(), RESERVED_NAME, out);
    }
    match handler(session, &message, judge) {
        Verdict::Done(actions) => {
            session.unsynced = true;
            if message.streamed {
                session.streaming = Streaming::Forward;
            }
            out.extend(actions);
        }
        Verdict::NeedsState => session.block(message, Stage::RepliesThenState, out),
        Verdict::NeedsReplies => session.block(message, Stage::Replies, out),
        Verdict::DoThenAgain(actions) => {
            session.unsynced = true;
            out.extend(actions);
            session.block(message, Stage::Replies, out);
        }
        Verdict::Refuse {
            refusal,
            normalized,
            name,
        } => {
            refuse_in_pipeline(session, *refusal, normalized, &name, out);
        }
        Verdict::Malformed => session.kill("08P01", "invalid message format", out),
    }
}

// === refusing ===

/// Nothing is owed and nothing is open, so Weir may answer alone.
fn answers_alone(session: &Session) -> bool {
    session.pending.is_empty() && !session.unsynced && session.status == TransactionStatus::Idle
}

fn denied(session: &mut Session, refusal: &Refusal, normalized: String, out: &mut Vec<Action>) {
    let sequence = session.next_sequence();
    let description = describe_text(&normalized, session.context().view).map(Box::new);
    out.push(Action::Record(Record::Denied {
        sequence,
        normalized,
        description,
        refusal: refusal.clone(),
    }));
}

/// Refuses a Query or FunctionCall.
pub(crate) fn refuse_query(
    session: &mut Session,
    refusal: Refusal,
    normalized: String,
    out: &mut Vec<Action>,
) {
    denied(session, &refusal, normalized, out);
    if answers_alone(session) {
        out.push(Action::ToClient(message::refusal_and_ready(&refusal)));
    } else {
        out.push(Action::ToServer(message::query(&message::poison(&refusal))));
        session.pending.push_back(Pending::Poison {
            refusal,
            as_query: true,
        });
    }
}

/// Refuses a message of the extended protocol: what follows up to the Sync is dropped, as by the server.
fn refuse_in_pipeline(
    session: &mut Session,
    refusal: Refusal,
    normalized: String,
    name: &[u8],
    out: &mut Vec<Action>,
) {
    denied(session, &refusal, normalized, out);
    if answers_alone(session) {
        out.push(Action::ToClient(message::refusal(&refusal)));
    } else {
        out.push(Action::ToServer(message::parse(
            name,
            &message::poison(&refusal),
            &[],
        )));
        session.pending.push_back(Pending::Poison {
            refusal,
            as_query: false,
        });
        session.unsynced = true;
    }
    session.skipping = true;
}

// === reading texts ===

/// The text as the server will read it.
fn text_of<'t>(session: &Session, bytes: &'t [u8]) -> Result<&'t str, Refusal> {
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
fn depends_on_state(judged: &Judged) -> bool {
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
fn changes_state(judged: &Judged) -> bool {
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
enum Elsewhere {
    /// Nothing, or that text changes nothing.
    Nothing,
    /// It only prepares what is in it.
    Later,
    /// It runs a text that may change what later texts mean, or one that is not known.
    Changes,
}

/// EXECUTE and FETCH run what was prepared before, in the session or earlier in the same Query.
fn runs_elsewhere(session: &Session, facts: &StatementFacts, earlier: &[Arc<Judged>]) -> Elsewhere {
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

fn note_state_change(session: &mut Session, judged: &Judged) {
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

fn is_catalog_change(judged: &Judged) -> bool {
    judged.permit.facts().is_some_and(|facts| {
        facts.effects.contains(&SessionEffect::CatalogChange)
            || matches!(
                facts.kind,
                StatementKind::Ddl(_) | StatementKind::CreateTableAs | StatementKind::CreateView
            )
    })
}

/// What a statement does to prepared statements and cursors, taken as successful; and whose plan its rows follow.
fn apply_to_objects(
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

fn prepared_by_sql(session: &Session, judged: &Arc<Judged>) -> Arc<Prepared> {
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

// === simple Query ===

/// A text, judged whole.
enum Text {
    Run(Vec<Arc<Judged>>),
    NeedsState,
    Refuse(Box<Refusal>, String),
}

fn judge_text(session: &mut Session, text: &str, judge: &mut Judge) -> Text {
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
            Err(_) if !trusted => return Text::NeedsState,
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

fn normalized(statement: &sql_facts::ParsedStatement, view: CatalogView<'_>) -> String {
    sql_facts::read(statement, view)
        .map(|facts| facts.normalized)
        .unwrap_or_default()
}

fn judge_unparsed(session: &Session, text: &str, reason: &Unreadable) -> Text {
    match judge_unreadable(text, reason, session.context()) {
        Ok(judged) => Text::Run(vec![judged]),
        Err(refusal) => Text::Refuse(Box::new(refusal), String::new()),
    }
}

fn foretell(
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

use sql_facts::Overlay;

fn query(session: &mut Session, message: ClientMessage, judge: &mut Judge, out: &mut Vec<Action>) {
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
        }
    }
    let governed = list
        .iter()
        .any(|judged| matches!(judged.permit.send(), SendAs::Governed(_)));
    let texts = texts_of(session, text, &list, governed);
    let mut run = QueryRun {
        parts,
        current: 0,
        texts,
        one_by_one,
        step: Step::Statement,
        counts_beside_tag: false,
        changed_before: 0,
        synced: false,
        failed: false,
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
enum Ahead {
    Go,
    Wait,
    Refuse(Box<Refusal>),
}

fn ahead_of_query(
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
        let texts = texts_of(session, text, list, true);
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
fn prepare_sql_again(
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
fn part_text(judged: &Judged, text: &str, alone: bool) -> Arc<str> {
    match judged.permit.send() {
        SendAs::AsWritten if alone => Arc::from(text.trim_end().trim_end_matches(';')),
        SendAs::AsWritten | SendAs::Governed(_) => sent_text(judged, text),
    }
}

fn sent_text(judged: &Judged, text: &str) -> Arc<str> {
    match judged.permit.send() {
        SendAs::Governed(governed) => Arc::from(governed.text.as_str()),
        SendAs::AsWritten => match &judged.statement {
            Some(statement) => Arc::from(statement.text.get(statement.span.clone()).unwrap_or(text)),
            None => Arc::from(text),
        },
    }
}

fn texts_of(session: &Session, text: &str, list: &[Arc<Judged>], governed: bool) -> Texts {
    if !governed {
        return if session.protected() {
            Texts {
                sent: Arc::default(),
                client: Arc::default(),
                segments: Arc::from([]),
            }
        } else {
            Texts::default()
        };
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

// === maxAffectedRows ===

/// Whether a statement would commit.
fn commits(judged: &Judged) -> bool {
    matches!(
        judged.kind(),
        Some(StatementKind::Commit { .. } | StatementKind::TwoPhase)
    ) || judged.permit.facts().is_none()
}

/// Whether it may change rows that count against `maxAffectedRows`: all but those that plain INSERT and COPY add.
fn is_counted(judged: &Judged) -> bool {
    judged.permit.facts().is_none_or(|facts| {
        judged.changes_beside_tag
            || matches!(
                facts.kind,
                StatementKind::Merge | StatementKind::Execute(_) | StatementKind::Call
            )
            || facts.actions.iter().any(|action| {
                matches!(
                    action.action,
                    sql_facts::facts::Action::Update | sql_facts::facts::Action::Delete
                )
            })
    })
}

fn over_limit(session: &Session, list: &[Arc<Judged>]) -> Option<Refusal> {
    let rows_max = session.world.policy.guardrails.max_affected_rows?;
    if session.affected <= rows_max {
        return None;
    }
    let rule = list
        .iter()
        .find_map(|judged| {
            judged
                .permit
                .limits()
                .affected_rows_max
                .as_ref()
                .map(|(_, rule)| rule.clone())
        })
        .unwrap_or_else(affected_rule);
    Some(refusals::too_many_changes(session.affected, rows_max, rule))
}

/// The rule's name where no permit is at hand.
pub(crate) fn affected_rule() -> access_policy::RuleRef {
    access_policy::RuleRef {
        policy: String::new(),
        rule: "guardrails.maxAffectedRows".to_owned(),
    }
}

// === extended protocol ===

fn parse(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
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
            texts = texts_of(session, text, &list, true);
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
fn judge_again(
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
fn same_meaning(before: &Judged, now: &Judged) -> bool {
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
fn first_of(prepared: &Arc<Prepared>) -> Arc<Prepared> {
    Arc::clone(prepared.before.as_ref().unwrap_or(prepared))
}

/// Prepares a statement again under its own name; what the client then binds is the new one.
fn prepare_again(
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

fn bind(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
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

fn describe(session: &mut Session, message: &ClientMessage, _judge: &mut Judge) -> Verdict {
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

fn execute(session: &mut Session, message: &ClientMessage, judge: &mut Judge) -> Verdict {
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
enum Moved {
    No,
    /// Name, the statement as it is prepared, the decision now.
    To(String, Arc<Prepared>, Arc<Judged>),
    Refuse(Box<Refusal>),
}

fn execute_moved(session: &Session, judged: &Judged) -> Moved {
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
fn ask_changed(session: &mut Session, purpose: OwnPurpose, actions: &mut Vec<Action>) {
    actions.push(Action::ToServer(message::own_pipeline(CHANGED_SQL)));
    session.push_own_pipeline(purpose);
}

/// Whether the server resolves the names of that kind only when it executes it.
fn resolves_late(judged: &Judged) -> bool {
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

fn close(session: &mut Session, message: &ClientMessage, _judge: &mut Judge) -> Verdict {
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

fn sync(session: &mut Session, message: ClientMessage, out: &mut Vec<Action>) {
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

fn function_call(session: &mut Session, message: ClientMessage, out: &mut Vec<Action>) {
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
