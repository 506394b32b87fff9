//! Messages of the server: matched with what is owed, checked, masked, reduced, then passed on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use wire_protocol::postgres::backend::{self, TransactionStatus};

use crate::client::{affected_rule, send_part, send_step};
use crate::judge::Judged;
use crate::message;
use crate::objects::Prepared;
use crate::pending::{OwnPurpose, Pending, QueryRun, Run, Step, Texts};
use crate::refusals;
use crate::result::ResultPlan;
use crate::session::{Action, Closing, Session, Streaming, finish};
use access_policy::Refusal;

/// One message of the server.
pub(crate) fn handle(session: &mut Session, tag: u8, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    match tag {
        // At any time, whatever is owed.
        b'S' => out.push(Action::ToClient(raw)),
        b'A' => out.push(Action::ToClient(raw)),
        b'N' => notice(session, body, raw, out),
        b'E' => error(session, body, raw, out),
        b'Z' => ready(session, body, raw, out),
        b'D' => row(session, body, raw, out),
        b'd' => copy_row(session, raw, out),
        b'T' => description(session, body, raw, out),
        b'C' | b'I' => complete(session, tag, body, raw, out),
        b'1' => match session.pending.front() {
            Some(Pending::Parse { .. }) => {
                session.pending.pop_front();
                out.push(Action::ToClient(raw));
            }
            Some(Pending::OwnParse { .. }) => {
                session.pending.pop_front();
            }
            Some(Pending::Query(query)) if query.one_by_one => {}
            _ => unexpected(session, tag, out),
        },
        b'2' => match session.pending.front() {
            Some(Pending::Bind { .. }) => {
                session.pending.pop_front();
                out.push(Action::ToClient(raw));
            }
            Some(Pending::OwnBind) => {
                session.pending.pop_front();
            }
            Some(Pending::Query(query)) if query.one_by_one => {}
            _ => unexpected(session, tag, out),
        },
        b'3' => match session.pending.front() {
            Some(Pending::Close { .. }) => {
                session.pending.pop_front();
                out.push(Action::ToClient(raw));
            }
            Some(Pending::OwnClose) => {
                session.pending.pop_front();
            }
            _ => unexpected(session, tag, out),
        },
        b't' => match session.pending.front() {
            Some(Pending::Describe { .. }) => out.push(Action::ToClient(raw)),
            Some(Pending::OwnDescribe { .. }) => {}
            _ => unexpected(session, tag, out),
        },
        b'n' => match session.pending.front() {
            Some(Pending::Describe { prepared, .. }) => {
                if let Some(prepared) = prepared {
                    let _first = prepared.signature.set(Vec::new());
                }
                session.pending.pop_front();
                out.push(Action::ToClient(raw));
            }
            Some(Pending::OwnDescribe { prepared, .. }) => {
                mark_checked(prepared);
                let _first = prepared.signature.set(Vec::new());
                session.pending.pop_front();
            }
            Some(Pending::Query(query)) if query.one_by_one => {}
            _ => unexpected(session, tag, out),
        },
        b's' => suspended(session, raw, out),
        b'G' => {
            session.copy_in = true;
            if let Some(Pending::Execute { .. }) = session.pending.front() {
                // In COPY the server ignores a Sync that came with the Execute; the client sends another behind it.
                while let Some(Pending::Sync) = session.pending.get(1) {
                    session.pending.remove(1);
                    session.unsynced = true;
                }
            }
            match session.blocked.as_ref().map(|blocked| blocked.message.tag) {
                // It came with the Execute, too: the server would ignore it.
                Some(b'S') => {
                    session.blocked = None;
                    session.unsynced = true;
                }
                Some(other) => {
                    return session.kill(
                        "08P01",
                        &format!("message {} during COPY", other.escape_ascii()),
                        out,
                    );
                }
                None => {}
            }
            if session.front_run().is_some() {
                out.push(Action::ToClient(raw));
            } else {
                unexpected(session, tag, out);
            }
        }
        b'H' | b'c' | b'V' => {
            if session.front_run().is_some() {
                out.push(Action::ToClient(raw));
            } else {
                unexpected(session, tag, out);
            }
        }
        other => unexpected(session, other, out),
    }
}

fn unexpected(session: &mut Session, tag: u8, out: &mut Vec<Action>) {
    let text = format!("unexpected message {} from the server", tag.escape_ascii());
    session.kill("08P01", &text, out);
}

// === speech ===

fn notice(session: &mut Session, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    if !session.protected() {
        out.push(Action::ToClient(raw));
        return;
    }
    let texts = front_texts(session);
    if let Some(reduced) = message::reduced(b'N', body, &texts, true) {
        out.push(Action::ToClient(reduced));
    }
}

fn front_texts(session: &Session) -> Texts {
    match session.pending.front() {
        Some(Pending::Query(query)) => query.texts.clone(),
        Some(
            Pending::Parse { texts, .. }
            | Pending::Bind { texts, .. }
            | Pending::Execute { texts, .. }
            | Pending::OwnParse { texts },
        ) => texts.clone(),
        _ => Texts::default(),
    }
}

fn error(session: &mut Session, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    let Ok(fields) = backend::Fields::decode(body) else {
        return unexpected(session, b'E', out);
    };
    let sqlstate = String::from_utf8_lossy(fields.sqlstate().unwrap_or(b"XX000")).into_owned();
    let fatal = matches!(fields.severity(), Some(b"FATAL" | b"PANIC"));
    let texts = front_texts(session);
    let own_words = if session.protected() || !texts.segments.is_empty() {
        message::reduced(b'E', body, &texts, session.protected()).unwrap_or_else(|| raw.clone())
    } else {
        raw
    };
    if fatal {
        out.push(Action::ToClient(own_words));
        session.on_disconnect(out);
        out.push(Action::Close {
            closing: Closing::Server,
            reason: format!("the server ended the session ({sqlstate})"),
        });
        return;
    }
    session.copy_in = false;
    let says_check = fields
        .get(b'M')
        .is_some_and(|text| text.windows(12).any(|window| window == b"\"WEIR-CHECK\""));
    // Whose error it is.
    match session.pending.front_mut() {
        Some(Pending::Query(query)) => {
            let words = query_error(query, &sqlstate, says_check, own_words);
            let mut undone = Vec::new();
            let now_us = session.now_us;
            let current = query.current;
            for part in query.parts.iter_mut().skip(current) {
                undone.push(std::mem::replace(&mut part.undo, crate::objects::Undo::Nothing));
                if let Some(mut run) = part.run.take() {
                    run.outcome.sqlstate = Some(sqlstate.clone());
                    finish(run, now_us, out);
                }
            }
            query.current = query.parts.len();
            if query.one_by_one && !query.synced {
                query.synced = true;
                out.push(Action::ToServer(message::sync()));
            }
            for undo in undone.into_iter().rev() {
                session.objects.undo(undo);
            }
            out.push(Action::ToClient(words));
        }
        Some(Pending::FunctionCall { sequence }) => {
            let sequence = *sequence;
            if let Some(mut run) = session.runs.remove(&sequence) {
                run.outcome.sqlstate = Some(sqlstate);
                finish(run, session.now_us, out);
            }
            out.push(Action::ToClient(own_words));
        }
        Some(Pending::OwnQuery { failed, purpose }) => {
            *failed = Some(sqlstate);
            if *purpose == OwnPurpose::Prepare {
                session.own_failed = Some(own_words);
            }
        }
        Some(Pending::Poison { refusal, as_query }) => {
            let words = if sqlstate == "42601" {
                message::refusal(refusal)
            } else {
                own_words
            };
            let as_query = *as_query;
            out.push(Action::ToClient(words));
            if !as_query {
                session.drop_until_sync(&sqlstate, out);
            }
        }
        // The client has its error already.
        Some(Pending::OwnFailure { as_query: true }) => {}
        Some(Pending::OwnFailure { as_query: false }) => {
            session.pending.pop_front();
        }
        Some(Pending::Sync | Pending::OwnSync) | None => out.push(Action::ToClient(own_words)),
        Some(Pending::Execute { sequence, .. }) => {
            let sequence = *sequence;
            let words = match session.runs.get(&sequence) {
                Some(run) => run_error(run, &sqlstate, says_check, own_words),
                None => own_words,
            };
            out.push(Action::ToClient(words));
            session.drop_until_sync(&sqlstate, out);
        }
        Some(
            Pending::Parse { .. }
            | Pending::Bind { .. }
            | Pending::Describe { .. }
            | Pending::ExecuteEmpty
            | Pending::Close { .. }
            | Pending::OwnParse { .. }
            | Pending::OwnBind
            | Pending::OwnDescribe { .. }
            | Pending::OwnExecute { .. }
            | Pending::OwnClose,
        ) => {
            // A check before a simple Query: the Query itself is answered with it.
            let for_query = session
                .blocked
                .as_ref()
                .is_some_and(|blocked| blocked.message.tag == b'Q')
                && session
                    .pending
                    .iter()
                    .any(|pending| matches!(pending, Pending::OwnSync));
            if for_query {
                session.own_failed = Some(own_words);
            } else {
                out.push(Action::ToClient(own_words));
            }
            session.drop_until_sync(&sqlstate, out);
        }
    }
}

fn query_error(query: &mut QueryRun, sqlstate: &str, says_check: bool, own_words: Bytes) -> Bytes {
    if sqlstate == "42601"
        && let Some(refusal) = query.poison.take()
    {
        return message::refusal(&refusal);
    }
    match query.parts.get(query.current).and_then(|part| part.run.as_ref()) {
        Some(run) => run_error(run, sqlstate, says_check, own_words),
        None => own_words,
    }
}

fn run_error(run: &Run, sqlstate: &str, says_check: bool, own_words: Bytes) -> Bytes {
    if let Some(refusal) = &run.stopping {
        return message::refusal(refusal);
    }
    if says_check
        && sqlstate == "22P02"
        && let Some(rule) = &run.plan().check_rule
    {
        return message::refusal(&refusals::row_outside_filter(rule));
    }
    own_words
}

// === the end of things ===

fn ready(session: &mut Session, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    let Ok(backend::BackendMessage::ReadyForQuery(status)) = backend::BackendMessage::decode(b'Z', body)
    else {
        return unexpected(session, b'Z', out);
    };
    session.copy_in = false;
    match session.pending.pop_front() {
        Some(Pending::Query(_) | Pending::Sync) if std::mem::take(&mut session.must_fail) => {
            session.status = status;
            match (status, session.pending.is_empty()) {
                (TransactionStatus::InTransaction, true) => {
                    out.push(Action::ToServer(message::query(
                        "WEIR refused a statement of this transaction",
                    )));
                    session.pending.push_back(Pending::OwnFailure { as_query: true });
                    return;
                }
                (TransactionStatus::InTransaction, false) => {
                    session.kill("57P01", "a refused statement cannot be taken back", out);
                    return;
                }
                (TransactionStatus::Idle | TransactionStatus::Failed, _) => out.push(Action::ToClient(raw)),
            }
        }
        Some(Pending::Query(_)) => {
            session.status = status;
            out.push(Action::ToClient(raw));
        }
        Some(
            Pending::Sync
            | Pending::FunctionCall { .. }
            | Pending::Poison { as_query: true, .. }
            | Pending::OwnFailure { as_query: true },
        ) => {
            session.status = status;
            out.push(Action::ToClient(raw));
        }
        Some(Pending::OwnQuery { purpose, failed }) => {
            session.status = status;
            match (purpose, failed) {
                (OwnPurpose::State, None) => session.state_was_read(out),
                (OwnPurpose::State, Some(sqlstate)) => {
                    let text = format!("cannot read the session's state ({sqlstate})");
                    session.kill("58000", &text, out);
                }
                (OwnPurpose::Catalog, None) => {
                    session.catalog_pending = false;
                    out.push(Action::CatalogRows(std::mem::take(&mut session.own_rows)));
                }
                // A failure was kept for the message that waits.
                (OwnPurpose::Prepare | OwnPurpose::CountBefore | OwnPurpose::CountAfter, _) => {}
                (OwnPurpose::Catalog, Some(sqlstate)) => {
                    let text = format!("cannot read the catalog ({sqlstate})");
                    session.kill("58000", &text, out);
                }
            }
            return;
        }
        Some(Pending::OwnSync) => {
            session.status = status;
            return;
        }
        Some(other) => {
            session.pending.push_front(other);
            return unexpected(session, b'Z', out);
        }
        None => return unexpected(session, b'Z', out),
    }
    if session.status == TransactionStatus::Idle {
        // Where nothing is protected nobody needs the definitions.
        if session.protected() && std::mem::take(&mut session.catalog_touched) {
            out.push(Action::RefreshCatalog);
        }
        session.affected = 0;
        if session.pending.is_empty() && !session.unsynced {
            session.wrote = false;
        }
        session.objects.end_transaction();
        end_closed_runs(session, out);
    }
    if session.touched {
        session.stale = true;
    }
}

/// Runs whose portals are gone will get no more rows: they end as they are.
fn end_closed_runs(session: &mut Session, out: &mut Vec<Action>) {
    if session.runs.is_empty() {
        return;
    }
    let mut open: Vec<u64> = session.objects.open_runs().collect();
    open.extend(session.pending.iter().filter_map(|pending| match pending {
        Pending::Execute { sequence, .. } | Pending::FunctionCall { sequence } => Some(*sequence),
        _ => None,
    }));
    let mut ended: Vec<u64> = session
        .runs
        .keys()
        .copied()
        .filter(|sequence| !open.contains(sequence))
        .collect();
    ended.sort_unstable();
    for sequence in ended {
        if let Some(mut run) = session.runs.remove(&sequence) {
            run.outcome.suspended = true;
            finish(run, session.now_us, out);
        }
    }
}

fn suspended(session: &mut Session, raw: Bytes, out: &mut Vec<Action>) {
    match session.pending.front() {
        Some(Pending::Execute { sequence, .. }) => {
            if let Some(run) = session.runs.get_mut(sequence) {
                run.outcome.suspended = true;
            }
            session.pending.pop_front();
            out.push(Action::ToClient(raw));
        }
        _ => unexpected(session, b's', out),
    }
}

fn complete(session: &mut Session, tag: u8, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    let mut affected_now = 0;
    let mut fetched = None;
    if counted_step(session, out) {
        return;
    }
    match session.pending.front_mut() {
        Some(Pending::Query(query)) => {
            let part = query.parts.get_mut(query.current);
            let run = part.and_then(|part| part.run.take());
            match run {
                Some(mut run) => {
                    if let Some(refusal) = run.stopping.clone() {
                        finish(run, session.now_us, out);
                        return stopped_too_late(session, refusal, out);
                    }
                    affected_now = end_run(&mut run, tag, body, raw, out);
                    fetched = fetched_rows(&run);
                    finish(run, session.now_us, out);
                }
                // An empty text, or what a rule of the database adds: passed on as it is.
                None => out.push(Action::ToClient(raw)),
            }
            if query.one_by_one {
                if query.counts_beside_tag {
                    query.step = Step::CountAfter;
                    send_step(query, out);
                    return;
                }
                query.current += 1;
                session.affected += affected_now;
                next_part(session, out);
                return;
            }
            query.current += 1;
        }
        Some(Pending::Execute { sequence, .. }) => {
            let sequence = *sequence;
            session.pending.pop_front();
            match session.runs.remove(&sequence) {
                Some(mut run) => {
                    if let Some(refusal) = run.stopping.clone() {
                        finish(run, session.now_us, out);
                        return stopped_too_late(session, refusal, out);
                    }
                    affected_now = end_run(&mut run, tag, body, raw, out);
                    if run.judged.changes_beside_tag || run.result.changes_beside_tag {
                        // The statistics behind it count it.
                        affected_now = 0;
                    }
                    fetched = fetched_rows(&run);
                    finish(run, session.now_us, out);
                }
                None => out.push(Action::ToClient(raw)),
            }
        }
        Some(Pending::ExecuteEmpty) => {
            session.pending.pop_front();
            out.push(Action::ToClient(raw));
        }
        Some(Pending::OwnExecute { purpose }) => {
            let purpose = *purpose;
            session.pending.pop_front();
            match purpose {
                OwnPurpose::State => session.state_was_read(out),
                OwnPurpose::CountBefore => session.changed_before = session.take_changed(),
                OwnPurpose::CountAfter => {
                    affected_now = session.take_changed().saturating_sub(session.changed_before);
                }
                OwnPurpose::Catalog | OwnPurpose::Prepare => {}
            }
        }
        Some(Pending::OwnQuery { .. }) => {}
        _ => unexpected(session, tag, out),
    }
    session.affected += affected_now;
    session.copy_in = false;
    // Rows of a FETCH count for the whole cursor.
    if let Some((name, rows)) = fetched
        && let Some(portal) = session.objects.portal_mut(name.as_bytes())
    {
        portal.rows_delivered += rows;
    }
}

/// A statement ended by itself before the cancel reached it. The client is told the refusal, and an open transaction
/// fails as after any error. Where something was written, or more was sent behind it, that would come too late: the
/// session ends.
fn stopped_too_late(session: &mut Session, refusal: Refusal, out: &mut Vec<Action>) {
    let failure = message::poison(&refusal);
    let wrote = session.wrote;
    let owed = session.pending.len();
    match session.pending.front_mut() {
        Some(Pending::Query(query)) if query.one_by_one => {
            query.poison = Some(refusal);
            out.push(Action::ToServer(message::parse(b"weir_refused", &failure, &[])));
            out.push(Action::ToServer(message::flush()));
        }
        Some(Pending::Query(query)) if !wrote && query.current + 1 == query.parts.len() => {
            query.current += 1;
            session.must_fail = true;
            out.push(Action::ToClient(message::refusal(&refusal)));
        }
        Some(Pending::Sync) if !wrote && owed == 1 => {
            session.must_fail = true;
            out.push(Action::ToClient(message::refusal(&refusal)));
        }
        None if !wrote => {
            out.push(Action::ToClient(message::refusal(&refusal)));
            out.push(Action::ToServer(message::parse(b"weir_refused", &failure, &[])));
            session.pending.push_back(Pending::OwnFailure { as_query: false });
            session.skipping = true;
        }
        Some(_) | None => session.kill("57P01", &refusal.to_string(), out),
    }
}

fn fetched_rows(run: &Run) -> Option<(String, u64)> {
    match run.judged.kind() {
        Some(sql_facts::StatementKind::Fetch {
            name,
            moves_only: false,
        }) => Some((name.clone(), run.outcome.rows_returned)),
        _ => None,
    }
}

/// Passes the tag on and says how many rows count against `maxAffectedRows`.
fn end_run(run: &mut Run, tag: u8, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) -> u64 {
    if tag == b'I' {
        out.push(Action::ToClient(raw));
        return 0;
    }
    let Ok(backend::BackendMessage::CommandComplete(complete)) = backend::BackendMessage::decode(b'C', body)
    else {
        out.push(Action::ToClient(raw));
        return 0;
    };
    let word = complete.command();
    let rows = complete.rows().unwrap_or(0);
    if let (Some(command), Some(count)) = (run.plan().count_as.clone(), run.wrapped_count) {
        run.outcome.rows_affected = count;
        run.outcome.rows_returned = 0;
        let tag = if command == "INSERT" {
            format!("INSERT 0 {count}")
        } else {
            format!("{command} {count}")
        };
        out.push(Action::ToClient(message::command_complete(&tag)));
        return if command == "INSERT" && !upserts(&run.judged) {
            0
        } else {
            count
        };
    }
    out.push(Action::ToClient(raw));
    match word {
        b"INSERT" => {
            run.outcome.rows_affected = rows;
            if upserts(&run.judged) { rows } else { 0 }
        }
        b"UPDATE" | b"DELETE" | b"MERGE" => {
            run.outcome.rows_affected = rows;
            rows
        }
        b"COPY" if run.judged.writes() => {
            run.outcome.rows_affected = rows;
            0
        }
        _ => 0,
    }
}

/// INSERT … ON CONFLICT DO UPDATE.
fn upserts(judged: &Judged) -> bool {
    judged.permit.facts().is_some_and(|facts| {
        facts
            .actions
            .iter()
            .any(|action| action.action == sql_facts::facts::Action::Update)
    })
}

/// The end of a question about statistics in a Query that goes one by one.
fn counted_step(session: &mut Session, out: &mut Vec<Action>) -> bool {
    if !matches!(session.pending.front(), Some(Pending::Query(query)) if query.counting()) {
        return false;
    }
    let changed = session.take_changed();
    let Some(Pending::Query(query)) = session.pending.front_mut() else {
        return false;
    };
    match query.step {
        Step::CountBefore => {
            query.changed_before = changed;
            query.step = Step::Statement;
            send_step(query, out);
        }
        Step::CountAfter | Step::Statement => {
            query.current += 1;
            query.step = Step::Statement;
            session.affected += changed.saturating_sub(query.changed_before);
            next_part(session, out);
        }
    }
    true
}

/// The next statement of a Query that goes one by one: what is over the limit may not commit.
fn next_part(session: &mut Session, out: &mut Vec<Action>) {
    let rows_max = session.world.policy.guardrails.max_affected_rows;
    let affected = session.affected;
    let Some(Pending::Query(query)) = session.pending.front_mut() else {
        return;
    };
    let commits = query.parts.get(query.current).is_none_or(|part| part.commits);
    if commits
        && let Some(rows_max) = rows_max
        && affected > rows_max
    {
        let refusal = refusals::too_many_changes(affected, rows_max, affected_rule());
        out.push(Action::ToServer(message::parse(
            b"weir_refused",
            &message::poison(&refusal),
            &[],
        )));
        out.push(Action::ToServer(message::flush()));
        query.poison = Some(refusal);
        return;
    }
    send_part(query, out);
}

// === rows ===

fn row(session: &mut Session, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    let ours = match session.pending.front() {
        Some(Pending::OwnQuery { .. } | Pending::OwnExecute { .. }) => true,
        Some(Pending::Query(query)) => query.counting(),
        _ => false,
    };
    if ours {
        if let Some(pair) = message::text_pair(body) {
            session.own_rows.push(pair);
        }
        return;
    }
    let Some(run) = session.front_run_mut() else {
        return unexpected(session, b'D', out);
    };
    if run.plan().count_as.is_some() {
        run.wrapped_count = message::first_count(body, &run.formats);
        return;
    }
    let bytes = if run.plan().is_plain() {
        raw
    } else {
        match message::masked_row(run.plan(), &run.formats, body) {
            Ok(row) => row,
            Err(reason) => {
                session.kill("58000", &format!("cannot mask a row: {reason}"), out);
                return;
            }
        }
    };
    match count_row(session, bytes.len(), out) {
        Counted::Deliver => out.push(Action::ToClient(bytes)),
        Counted::Drop => {}
    }
}

/// The beginning of a row of a plain result that is too long to be held; says where its rest goes.
pub(crate) fn long_row(session: &mut Session, prefix: Bytes, out: &mut Vec<Action>) -> Streaming {
    match count_row(session, prefix.len(), out) {
        Counted::Deliver => {
            out.push(Action::ToClient(prefix));
            Streaming::Forward
        }
        Counted::Drop => Streaming::Drop,
    }
}

/// Whether a row is delivered.
enum Counted {
    Deliver,
    Drop,
}

/// Counts one row or line of COPY against `maxReturnedRows`.
fn count_row(session: &mut Session, bytes: usize, out: &mut Vec<Action>) -> Counted {
    let Some(run) = session.front_run_mut() else {
        return Counted::Drop;
    };
    if run.stopping.is_some() {
        return Counted::Drop;
    }
    if let Some((rows_max, rule)) = run.judged.permit.limits().returned_rows_max.clone()
        && run.rows_before + run.outcome.rows_returned >= rows_max
    {
        session.stop_front(refusals::too_many_rows(rows_max, rule), out);
        return Counted::Drop;
    }
    run.outcome.rows_returned += 1;
    run.outcome.bytes_returned += bytes as u64;
    Counted::Deliver
}

fn copy_row(session: &mut Session, raw: Bytes, out: &mut Vec<Action>) {
    if session.front_run().is_none() {
        return unexpected(session, b'd', out);
    }
    match count_row(session, raw.len(), out) {
        Counted::Deliver => out.push(Action::ToClient(raw)),
        Counted::Drop => {}
    }
}

fn description(session: &mut Session, body: &Bytes, raw: Bytes, out: &mut Vec<Action>) {
    let plan: Option<Arc<Judged>> = match session.pending.front() {
        Some(Pending::Query(query)) if query.counting() => return,
        Some(Pending::Query(query)) => query
            .parts
            .get(query.current)
            .and_then(|part| part.run.as_ref())
            .map(|run| Arc::clone(&run.result)),
        Some(Pending::Describe { plan, .. }) => plan.clone(),
        Some(Pending::OwnDescribe {
            prepared,
            replaced: true,
        }) => {
            let _first = prepared.signature.set(message::signature(body));
            session.pending.pop_front();
            return;
        }
        Some(Pending::OwnDescribe { prepared, .. }) => prepared.judged.clone(),
        Some(Pending::OwnQuery { .. }) => return,
        Some(Pending::Execute { sequence, .. }) => {
            session.runs.get(sequence).map(|run| Arc::clone(&run.result))
        }
        _ => return unexpected(session, b'T', out),
    };
    let empty = ResultPlan::default();
    let result = plan.as_ref().map_or(&empty, |judged| &judged.result);
    let checked = match message::checked_description(result, body) {
        Ok(checked) => checked,
        Err(message::DescriptionError::Malformed) => return unexpected(session, b'T', out),
        Err(message::DescriptionError::RawColumn) => {
            let text = refusals::raw_column().to_string();
            return session.kill("57P01", &text, out);
        }
    };
    let described = checked.unwrap_or(raw);
    match session.pending.front() {
        Some(Pending::OwnDescribe { prepared, .. }) => {
            mark_checked(prepared);
            let _first = prepared.signature.set(message::signature(body));
            session.pending.pop_front();
        }
        Some(Pending::Describe { prepared, .. }) => {
            if let Some(prepared) = prepared {
                let _first = prepared.signature.set(message::signature(body));
            }
            session.pending.pop_front();
            if result.count_as.is_some() {
                out.push(Action::ToClient(message::no_data()));
            } else {
                out.push(Action::ToClient(described));
            }
        }
        _ => {
            if result.count_as.is_none() {
                out.push(Action::ToClient(described));
            }
        }
    }
}

/// The server has described a governed text, and no protected column stood in it raw.
fn mark_checked(prepared: &Prepared) {
    if let Some(judged) = &prepared.judged {
        judged.checked.store(true, Ordering::Relaxed);
    }
}
