//! The machine: one message of the client or of the server in, a list of [`Action`]s out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use access_policy::{BoundPolicy, DecisionContext, Refusal, Subject};
use bytes::Bytes;
use sql_facts::{Catalog, CatalogView, Overlay};

use crate::judge::{Basis, Judge, Judged};
use crate::objects::{Objects, Undo};
use crate::pending::{Blocked, ClientMessage, OwnPurpose, Pending, Run, Stage};
use crate::record::Record;
use crate::state::{Known, SETTINGS_SQL};
use crate::{client, message, server};
use wire_protocol::postgres::backend::TransactionStatus;

/// Names that begin so are ours; clients may not use them for statements and portals.
pub(crate) const RESERVED_PREFIX: &[u8] = b"weir_";

/// What the sidecar shall do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send to the server.
    ToServer(Bytes),
    /// Send to the client.
    ToClient(Bytes),
    /// Record; need not be waited for.
    Record(Record),
    /// Record, and do nothing of what follows before it is durable (or acknowledged). If that fails, close.
    Intent(Record),
    /// Cancel what the server runs for this session.
    Cancel,
    /// Definitions changed: read the shared catalog again, and give the session the new one before the client's next
    /// message.
    RefreshCatalog,
    /// The rows of [`Catalog::load_sql`], as [`Session::ask_catalog`] asked for them.
    CatalogRows(Vec<(String, String)>),
    /// Close both sides after everything before it was sent. The client was told already.
    Close {
        /// Whose doing it is.
        closing: Closing,
        /// For the log.
        reason: String,
    },
}

/// Whose doing the end of a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The client said good-bye.
    Client,
    /// The server ended it (FATAL).
    Server,
    /// Weir ended it.
    Weir,
}

/// Policy and catalog as they are now. The sidecar gives new ones whenever they change.
#[derive(Debug, Clone)]
pub struct World {
    /// Policy.
    pub policy: Arc<BoundPolicy>,
    /// Shared catalog.
    pub catalog: Arc<Catalog>,
}

/// What a session starts with.
#[derive(Debug)]
pub struct SessionStart {
    /// Policy and catalog.
    pub world: World,
    /// Who.
    pub subject: Arc<Subject>,
    /// A number that equal subjects share.
    pub subject_number: u64,
    /// Settings and overlay, read on this connection before the client's first ReadyForQuery.
    pub known: Known,
}

/// One client connection and its server connection, after login.
#[derive(Debug)]
pub struct Session {
    pub(crate) world: World,
    pub(crate) subject: Arc<Subject>,
    pub(crate) subject_number: u64,
    pub(crate) known: Known,
    /// `known` may be wrong.
    pub(crate) stale: bool,
    /// State was changed in a transaction that may still be taken back.
    pub(crate) touched: bool,
    /// Definitions were changed since the catalog was read.
    pub(crate) catalog_touched: bool,
    pub(crate) objects: Objects,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) runs: HashMap<u64, Run>,
    pub(crate) status: TransactionStatus,
    /// Messages of the extended protocol were sent since the last Sync.
    pub(crate) unsynced: bool,
    /// Everything up to the next Sync is dropped: the server does the same after an error.
    pub(crate) skipping: bool,
    /// The body of a dropped or forwarded long message is being streamed.
    pub(crate) streaming: Streaming,
    /// The same for a long message of the server.
    pub(crate) server_streaming: Streaming,
    /// Nothing new may run, because it cannot be recorded.
    pub(crate) cannot_record: Option<Refusal>,
    pub(crate) blocked: Option<Blocked>,
    pub(crate) own_rows: Vec<(String, String)>,
    /// The error (of the server, reduced) that a message of ours met on behalf of the message that waits.
    pub(crate) own_failed: Option<Bytes>,
    /// The Query that waits was described.
    pub(crate) check_done: bool,
    /// The catalog is being read on this connection.
    pub(crate) catalog_pending: bool,
    pub(crate) sequence: u64,
    /// Rows changed in the open transaction, by tag.
    pub(crate) affected: u64,
    /// Something was written since the session was idle.
    pub(crate) wrote: bool,
    /// The next ReadyForQuery inside a transaction is answered by a failure of ours, as above.
    pub(crate) must_fail: bool,
    /// Rows changed before the statement that is counted by statistics.
    pub(crate) changed_before: u64,
    /// The server takes COPY data.
    pub(crate) copy_in: bool,
    pub(crate) closed: bool,
    pub(crate) now_us: u64,
}

/// Where the rest of a long message of the client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streaming {
    Nothing,
    Forward,
    Drop,
}

/// A question of our own to an idle session, for which the server compiles nothing: the plan of a catalog question
/// looks costly, and compiling it takes seconds where reading takes milliseconds (tried on 15). The setting ends with
/// the Query.
pub fn without_jit(sql: &str) -> String {
    format!("SET LOCAL jit = off; {sql}")
}

impl Session {
    /// A session that has just logged in: the server has said ReadyForQuery and owes nothing.
    pub fn new(start: SessionStart) -> Self {
        Self {
            world: start.world,
            subject: start.subject,
            subject_number: start.subject_number,
            known: start.known,
            stale: false,
            touched: false,
            catalog_touched: false,
            objects: Objects::default(),
            pending: VecDeque::new(),
            runs: HashMap::new(),
            status: TransactionStatus::Idle,
            unsynced: false,
            skipping: false,
            streaming: Streaming::Nothing,
            server_streaming: Streaming::Nothing,
            cannot_record: None,
            blocked: None,
            own_rows: Vec::new(),
            own_failed: None,
            check_done: false,
            catalog_pending: false,
            sequence: 0,
            affected: 0,
            wrote: false,
            must_fail: false,
            changed_before: 0,
            copy_in: false,
            closed: false,
            now_us: 0,
        }
    }

    /// The statement that asks for what [`Known::at_start`] needs: cheap, for every new connection pays for it.
    pub fn start_sql() -> &'static str {
        SETTINGS_SQL
    }

    /// The statement that asks for everything [`Known::from_rows`] needs.
    pub fn state_sql() -> String {
        format!("({SETTINGS_SQL}) UNION ALL ({})", Overlay::load_sql())
    }

    /// Policy or catalog changed; holds from the next statement on.
    pub fn set_world(&mut self, world: World) {
        self.world = world;
    }

    /// The world it judges by now.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// From here on every new statement is refused with this, because it cannot be recorded (`None`: it can again).
    pub fn set_recording(&mut self, cannot_record: Option<Refusal>) {
        self.cannot_record = cannot_record;
    }

    /// Whether the next message of the client may be given. While it may not, the sidecar does not read from it.
    pub fn takes_client(&self) -> bool {
        self.blocked.is_none() && !self.catalog_pending && !self.closed
    }

    /// Reads the shared catalog on this connection, where the sidecar has no login of its own: only while
    /// [`Self::is_idle`] says so. The rows come as [`Action::CatalogRows`]; the client waits.
    pub fn ask_catalog(&mut self, out: &mut Vec<Action>) {
        self.own_rows.clear();
        self.catalog_pending = true;
        out.push(Action::ToServer(message::query(
            &without_jit(Catalog::load_sql()),
        )));
        self.pending.push_back(Pending::OwnQuery {
            purpose: OwnPurpose::Catalog,
            failed: None,
        });
    }

    /// Nothing is under way and no transaction is open: the session may be ended without loss.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && !self.unsynced && self.status == TransactionStatus::Idle
    }

    /// When the running statement must be stopped, on the clock of `now_us`.
    pub fn deadline_us(&self) -> Option<u64> {
        let run = self.running()?;
        if run.stopping.is_some() {
            return None;
        }
        let (seconds, _) = run.judged.permit.limits().timeout_seconds.as_ref()?;
        Some(
            run.sent_us
                .saturating_add(u64::from(*seconds).saturating_mul(1_000_000)),
        )
    }

    /// The time is `now_us`; stops the running statement if its time is over.
    pub fn on_timer(&mut self, now_us: u64, out: &mut Vec<Action>) {
        self.now_us = now_us;
        if self.deadline_us().is_some_and(|deadline| deadline <= now_us) {
            let rule = self
                .running()
                .and_then(|run| run.judged.permit.limits().timeout_seconds.clone());
            if let Some((seconds, rule)) = rule {
                let refusal = crate::refusals::timeout(seconds, rule);
                if let Some(run) = self.running_mut() {
                    run.stopping = Some(refusal);
                    out.push(Action::Cancel);
                }
            }
        }
    }

    /// A whole message of the client.
    pub fn on_client(
        &mut self,
        message: ClientMessage,
        now_us: u64,
        judge: &mut Judge,
        out: &mut Vec<Action>,
    ) {
        self.now_us = now_us;
        if self.closed {
            return;
        }
        client::handle(self, message, judge, out);
        // What it waits for may be there already.
        self.progress(judge, out);
    }

    /// A piece of the body of a streamed message of the client.
    pub fn on_client_piece(&mut self, bytes: Bytes, last: bool, out: &mut Vec<Action>) {
        if self.streaming == Streaming::Forward {
            out.push(Action::ToServer(bytes));
        }
        if last {
            self.streaming = Streaming::Nothing;
        }
    }

    /// A message of the client that is longer than the cap for texts; its bytes are drained by the sidecar.
    pub fn on_client_too_long(&mut self, tag: u8, bytes_max: usize, out: &mut Vec<Action>) {
        client::too_long(self, tag, bytes_max, out);
    }

    /// A whole message of the server.
    pub fn on_server(
        &mut self,
        tag: u8,
        body: Bytes,
        raw: Bytes,
        now_us: u64,
        judge: &mut Judge,
        out: &mut Vec<Action>,
    ) {
        self.now_us = now_us;
        if self.closed {
            return;
        }
        server::handle(self, tag, &body, raw, out);
        self.progress(judge, out);
    }

    /// The beginning (header and first bytes) of a message of the server that is too long to be held. Rows of a
    /// plain result, COPY data and results of FunctionCalls are streamed; anything else ends the session.
    pub fn on_server_head(&mut self, tag: u8, prefix: Bytes, now_us: u64, out: &mut Vec<Action>) {
        self.now_us = now_us;
        if self.closed {
            return;
        }
        self.server_streaming = Streaming::Drop;
        match (tag, self.front_run()) {
            (b'D' | b'd', Some(run)) if run.plan().is_plain() => {
                self.server_streaming = server::long_row(self, prefix, out);
            }
            (b'V', Some(_)) => {
                self.server_streaming = Streaming::Forward;
                out.push(Action::ToClient(prefix));
            }
            (b'D', Some(_)) => {
                self.kill("54000", "a row is too long to be masked", out);
            }
            _ => {
                let text = format!("message {} of the server is too long", tag.escape_ascii());
                self.kill("08P01", &text, out);
            }
        }
    }

    /// A piece of the message that [`Self::on_server_head`] began.
    pub fn on_server_piece(&mut self, bytes: Bytes, last: bool, out: &mut Vec<Action>) {
        if self.server_streaming == Streaming::Forward {
            if let Some(run) = self.front_run_mut() {
                run.outcome.bytes_returned += bytes.len() as u64;
            }
            out.push(Action::ToClient(bytes));
        }
        if last {
            self.server_streaming = Streaming::Nothing;
        }
    }

    /// What comes next answers a question of our own: its rows are needed whole, however long they are.
    pub fn is_answered(&self) -> bool {
        matches!(
            self.pending.front(),
            Some(Pending::OwnExecute { .. } | Pending::OwnQuery { .. })
        )
    }

    /// Rows (DataRow or CopyData) may be forwarded as they come, without looking at each.
    pub fn rows_pass(&self) -> bool {
        if matches!(self.pending.front(), Some(Pending::Query(query)) if query.counting()) {
            return false;
        }
        match self.front_run() {
            Some(run) => {
                run.plan().is_plain()
                    && run.stopping.is_none()
                    && run.judged.permit.limits().returned_rows_max.is_none()
            }
            None => false,
        }
    }

    /// `count` rows that pass, or a part of one (`count` 0): only after [`Self::rows_pass`] said so.
    pub fn on_rows(&mut self, bytes: Bytes, count: u64, out: &mut Vec<Action>) {
        if let Some(run) = self.front_run_mut() {
            run.outcome.rows_returned += count;
            run.outcome.bytes_returned += bytes.len() as u64;
            out.push(Action::ToClient(bytes));
        }
    }

    /// The connection to the server or the client is gone: what was under way ends as unknown.
    pub fn on_disconnect(&mut self, out: &mut Vec<Action>) {
        self.closed = true;
        self.blocked = None;
        let mut sequences: Vec<u64> = self.runs.keys().copied().collect();
        sequences.sort_unstable();
        for sequence in sequences {
            if let Some(mut run) = self.runs.remove(&sequence) {
                run.outcome.unknown = !run.outcome.suspended;
                finish(run, self.now_us, out);
            }
        }
        for pending in std::mem::take(&mut self.pending) {
            if let Pending::Query(query) = pending {
                for (index, part) in query.parts.into_iter().enumerate() {
                    if let Some(mut run) = part.run
                        && index >= query.current
                    {
                        run.outcome.unknown = true;
                        finish(run, self.now_us, out);
                    }
                }
            }
        }
    }

    // === within the crate ===

    pub(crate) fn basis(&self) -> Basis {
        Basis {
            policy: self.world.policy.generation,
            catalog: self.world.catalog.version,
            overlay: self.known.overlay_number,
            path: Arc::clone(&self.known.path),
            subject: self.subject_number,
        }
    }

    pub(crate) fn context(&self) -> DecisionContext<'_> {
        DecisionContext {
            policy: &self.world.policy,
            subject: &self.subject,
            view: CatalogView {
                catalog: &self.world.catalog,
                overlay: &self.known.overlay,
                path: &self.known.path,
            },
        }
    }

    pub(crate) fn protected(&self) -> bool {
        self.world.policy.protected
    }

    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn new_run(&mut self, judged: &Arc<Judged>, result: &Arc<Judged>, formats: Arc<[i16]>) -> Run {
        let sequence = self.next_sequence();
        Run {
            sequence,
            judged: Arc::clone(judged),
            result: Arc::clone(result),
            formats,
            outcome: crate::record::Outcome::default(),
            sent_us: self.now_us,
            rows_before: 0,
            stopping: None,
            wrapped_count: None,
        }
    }

    /// The run that the server answers now.
    pub(crate) fn front_run(&self) -> Option<&Run> {
        match self.pending.front()? {
            Pending::Query(query) => query.parts.get(query.current)?.run.as_ref(),
            Pending::Execute { sequence, .. } | Pending::FunctionCall { sequence } => self.runs.get(sequence),
            _ => None,
        }
    }

    pub(crate) fn front_run_mut(&mut self) -> Option<&mut Run> {
        match self.pending.front_mut()? {
            Pending::Query(query) => query.parts.get_mut(query.current)?.run.as_mut(),
            Pending::Execute { sequence, .. } | Pending::FunctionCall { sequence } => {
                self.runs.get_mut(sequence)
            }
            _ => None,
        }
    }

    /// The first run that has no answer yet. The server keeps the answers to Parse, Bind and Describe back until it
    /// has run the Execute behind them, so what runs need not stand in front.
    fn running(&self) -> Option<&Run> {
        self.pending.iter().find_map(|pending| match pending {
            Pending::Query(query) => query.parts.get(query.current)?.run.as_ref(),
            Pending::Execute { sequence, .. } | Pending::FunctionCall { sequence } => self.runs.get(sequence),
            _ => None,
        })
    }

    fn running_mut(&mut self) -> Option<&mut Run> {
        let runs = &mut self.runs;
        let found = self.pending.iter_mut().find_map(|pending| match pending {
            Pending::Query(query) => {
                let part = query.parts.get_mut(query.current)?;
                part.run.as_mut().map(Ok)
            }
            Pending::Execute { sequence, .. } | Pending::FunctionCall { sequence } => {
                runs.contains_key(sequence).then_some(Err(*sequence))
            }
            _ => None,
        })?;
        match found {
            Ok(run) => Some(run),
            Err(sequence) => runs.get_mut(&sequence),
        }
    }

    /// Announces a statement to the recorder before its bytes go out.
    pub(crate) fn announce(run: &Run, out: &mut Vec<Action>) {
        let (sequence, statement) = (run.sequence, Arc::clone(&run.judged));
        if run.judged.writes() || run.result.writes() {
            let rows_of = Arc::clone(&run.result);
            out.push(Action::Intent(Record::Intent {
                sequence,
                statement,
                rows_of,
            }));
        } else {
            out.push(Action::Record(Record::Open { sequence, statement }));
        }
    }

    /// Cancels what runs; its rows are dropped from here on and its error is replaced by the refusal.
    pub(crate) fn stop_front(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        if let Some(run) = self.front_run_mut()
            && run.stopping.is_none()
        {
            run.stopping = Some(refusal);
            out.push(Action::Cancel);
        }
    }

    /// Ends the session at once: the client gets FATAL, what was under way is unknown.
    pub(crate) fn kill(&mut self, sqlstate: &str, text: &str, out: &mut Vec<Action>) {
        if self.closed {
            return;
        }
        out.push(Action::ToClient(message::fatal(sqlstate, text)));
        self.on_disconnect(out);
        out.push(Action::Close {
            closing: Closing::Weir,
            reason: text.to_owned(),
        });
    }

    /// Holds a message of the client until the state was read back (or only all answers are there).
    pub(crate) fn block(&mut self, message: ClientMessage, stage: Stage, out: &mut Vec<Action>) {
        if self.unsynced && !self.pending.is_empty() {
            out.push(Action::ToServer(message::flush()));
        }
        self.blocked = Some(Blocked { message, stage });
    }

    /// Goes on with a message that waits, as far as what it waits for has come.
    pub(crate) fn progress(&mut self, judge: &mut Judge, out: &mut Vec<Action>) {
        // Each round either waits or handles one message; a handled message may block again only on new knowledge.
        for _ in 0..4 {
            let Some(blocked) = self.blocked.as_ref() else {
                return;
            };
            if self.closed {
                return;
            }
            match blocked.stage {
                Stage::RepliesThenState | Stage::Replies if !self.pending.is_empty() => return,
                Stage::RepliesThenState if self.status == TransactionStatus::Failed || self.skipping => {
                    // Nothing can be read in a failed transaction; the server refuses whatever depends on it.
                    self.resume(judge, out);
                }
                Stage::RepliesThenState => {
                    self.ask_state(out);
                    if let Some(blocked) = self.blocked.as_mut() {
                        blocked.stage = Stage::State;
                    }
                    return;
                }
                Stage::State => {
                    if self.stale {
                        return;
                    }
                    self.resume(judge, out);
                }
                Stage::Replies => self.resume(judge, out),
            }
        }
    }

    fn resume(&mut self, judge: &mut Judge, out: &mut Vec<Action>) {
        let Some(blocked) = self.blocked.take() else {
            return;
        };
        match self.own_failed.take() {
            // Its own Parse would have met the same error.
            Some(words) if blocked.message.tag == b'Q' => {
                self.check_done = false;
                out.push(Action::ToClient(words));
                out.push(Action::ToClient(message::ready(self.status)));
            }
            Some(_) | None => client::handle(self, blocked.message, judge, out),
        }
    }

    /// Asks the server for the session's state: a simple Query after ReadyForQuery, else inside the pipeline.
    fn ask_state(&mut self, out: &mut Vec<Action>) {
        self.own_rows.clear();
        let sql = Self::state_sql();
        if self.unsynced {
            out.push(Action::ToServer(message::own_pipeline(&sql)));
            self.push_own_pipeline(OwnPurpose::State);
        } else {
            // Inside a block it would outlive our question.
            let sql = match self.status {
                TransactionStatus::Idle => without_jit(&sql),
                TransactionStatus::InTransaction | TransactionStatus::Failed => sql,
            };
            out.push(Action::ToServer(message::query(&sql)));
            self.pending.push_back(Pending::OwnQuery {
                purpose: OwnPurpose::State,
                failed: None,
            });
        }
    }

    /// The answers to [`message::own_pipeline`].
    pub(crate) fn push_own_pipeline(&mut self, purpose: OwnPurpose) {
        self.pending.push_back(Pending::OwnParse {
            texts: crate::pending::Texts::default(),
        });
        self.pending.push_back(Pending::OwnBind);
        self.pending.push_back(Pending::OwnExecute { purpose });
        self.pending.push_back(Pending::OwnClose);
        self.pending.push_back(Pending::OwnClose);
    }

    /// The number in our own answer.
    pub(crate) fn take_changed(&mut self) -> u64 {
        std::mem::take(&mut self.own_rows)
            .pop()
            .and_then(|(_, count)| count.parse().ok())
            .unwrap_or(u64::MAX)
    }

    /// Our own question was answered.
    pub(crate) fn state_was_read(&mut self, out: &mut Vec<Action>) {
        match Known::from_rows(&self.world.catalog, &std::mem::take(&mut self.own_rows)) {
            Ok(known) => {
                self.known = known;
                self.stale = false;
                if self.status == TransactionStatus::Idle && !self.unsynced {
                    self.touched = false;
                }
            }
            Err(error) => self.kill("58000", &error.to_string(), out),
        }
    }

    /// Statements were taken back or are gone: everything up to (not including) the next Sync is forgotten.
    pub(crate) fn drop_until_sync(&mut self, sqlstate: &str, out: &mut Vec<Action>) {
        let mut undone: Vec<Undo> = Vec::new();
        let mut found = false;
        while let Some(front) = self.pending.front() {
            if matches!(front, Pending::Sync | Pending::OwnSync) {
                found = true;
                break;
            }
            match self.pending.pop_front() {
                Some(Pending::Parse { undo, .. } | Pending::Bind { undo, .. } | Pending::Close { undo }) => {
                    undone.push(undo);
                }
                Some(Pending::Execute { sequence, undo, .. }) => {
                    undone.push(undo);
                    if let Some(mut run) = self.runs.remove(&sequence) {
                        run.outcome.sqlstate = Some(sqlstate.to_owned());
                        finish(run, self.now_us, out);
                    }
                }
                Some(Pending::FunctionCall { sequence }) => {
                    if let Some(mut run) = self.runs.remove(&sequence) {
                        run.outcome.sqlstate = Some(sqlstate.to_owned());
                        finish(run, self.now_us, out);
                    }
                }
                Some(Pending::Query(query)) => {
                    for part in query.parts {
                        undone.push(part.undo);
                        if let Some(mut run) = part.run {
                            run.outcome.sqlstate = Some(sqlstate.to_owned());
                            finish(run, self.now_us, out);
                        }
                    }
                }
                _ => {}
            }
        }
        for undo in undone.into_iter().rev() {
            self.objects.undo(undo);
        }
        if !found {
            self.skipping = true;
        }
    }
}

/// Records the end of a run.
pub(crate) fn finish(mut run: Run, now_us: u64, out: &mut Vec<Action>) {
    run.outcome.duration_us = now_us.saturating_sub(run.sent_us);
    if let Some(refusal) = run.stopping.take() {
        run.outcome.stopped = Some(refusal);
    }
    out.push(Action::Record(Record::Outcome {
        sequence: run.sequence,
        statement: run.judged,
        rows_of: run.result,
        outcome: run.outcome,
    }));
}
