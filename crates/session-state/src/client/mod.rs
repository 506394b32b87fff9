//! Messages of the client: judged, then sent, held or refused.

mod affected;
mod extended;
mod query;
mod texts;

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

pub(crate) use affected::affected_rule;
use affected::*;
use extended::*;
use query::*;
pub(crate) use query::{send_part, send_step};
use texts::*;

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
