//! One session after its login: reads both sides, lets `session-state` judge, does what it says. Both directions
//! are in one task: nothing is read from one side while too much waits to be written to the other.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use access_policy::RefusalCode;
use bytes::{Bytes, BytesMut};
use service_runtime::drain::Stage;
use session_state::{Action, ClientMessage, Closing, Description, Judge, Record, Session, World};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use wire_protocol::postgres::backend::Fields;
use wire_protocol::postgres::{Caps, Frame, Framer, tag, write};

use crate::cancels::CancelKey;
use crate::databases::Database;
use crate::fatal::{EndKind, Fatal};
use crate::metrics::Verdict;
use crate::recorder::{Recorder, SessionRecorder};
use crate::sidecar::Shared;
use crate::stream::{Leg, WAITING_MAX};
use crate::upstream::Login;

/// WEIR-005: a name that the catalog does not have.
const UNKNOWN_RELATION: RefusalCode = RefusalCode(5);
/// A catalog younger than that is not read again for an unknown name.
const STALE: Duration = Duration::from_secs(1);

/// Everything of one session.
pub struct Pump {
    /// What all sessions share.
    pub shared: Arc<Shared>,
    /// What sessions of this thread share.
    pub judge: Rc<RefCell<Judge>>,
    /// Towards the application.
    pub client: Leg,
    /// Cuts what it sends.
    pub client_framer: Framer,
    /// Towards the database.
    pub server: Leg,
    /// Cuts what it sends.
    pub server_framer: Framer,
    /// The machine.
    pub session: Session,
    /// The world the machine was given.
    pub world: Arc<World>,
    /// The database's catalog and policy.
    pub database: Arc<Database>,
    /// Major version of the server.
    pub server_major: u16,
    /// How this session logged in.
    pub login: Login,
    /// Cancel key.
    pub cancel: CancelKey,
    /// Receipts.
    pub records: SessionRecorder,
    /// Caps of the client, for the refusal of what is longer.
    pub statement_max: u32,
}

/// Why the loop ends.
enum End {
    /// The client is told nothing more.
    Quiet(EndKind),
    /// The client is told this.
    Tell(Fatal),
}

/// What the loop waited for.
enum Woken {
    Bytes,
    Timer,
    Cancelled,
    Drain(Stage),
    ClientError(io::Error),
    ServerError(io::Error),
}

/// State of the loop that is not the machine's.
struct Turn {
    actions: Vec<Action>,
    /// When the catalog was asked for: the machine wants it before the client's next message.
    catalog_wanted: Option<Instant>,
    /// Asked on this connection at that time.
    catalog_asked: Option<Instant>,
    /// The server has said FATAL: its closing is no surprise.
    server_said_fatal: bool,
    /// Our direction to the server is closed, because the client's is.
    half_closed: bool,
    /// Since then the session works; `None` while it waits for bytes.
    working_since: Option<Instant>,
    /// What it worked before that, since the last statement ended.
    worked: Duration,
    /// Told to end when idle, at the latest then.
    drain_until: Option<Instant>,
    /// A cancel request is on its way. Until the server has closed its connection, nothing new is sent: it could hit
    /// the wrong statement.
    cancelling: Option<JoinHandle<()>>,
    /// What waits for that.
    held: Vec<Bytes>,
}

impl Turn {
    /// The session waits from now on.
    fn pause(&mut self) {
        if let Some(since) = self.working_since.take() {
            self.worked += since.elapsed();
        }
    }

    /// What was worked since this was asked the last time: where several statements are under way, each gets what was
    /// worked until it ended, and their sum is exact.
    fn take_worked(&mut self) -> Duration {
        let now = Instant::now();
        let last = match &mut self.working_since {
            Some(since) => now.saturating_duration_since(std::mem::replace(since, now)),
            None => Duration::ZERO,
        };
        std::mem::take(&mut self.worked) + last
    }
}

impl Pump {
    /// Runs the session to its end.
    pub async fn run(mut self) -> EndKind {
        let mut turn = Turn {
            actions: Vec::new(),
            catalog_wanted: None,
            catalog_asked: None,
            server_said_fatal: false,
            half_closed: false,
            working_since: None,
            worked: Duration::ZERO,
            drain_until: None,
            cancelling: None,
            held: Vec::new(),
        };
        let end = self.turns(&mut turn).await;
        let mut actions = std::mem::take(&mut turn.actions);
        actions.clear();
        self.session.on_disconnect(&mut actions);
        for action in actions {
            match action {
                Action::Record(record) | Action::Intent(record) => {
                    self.count(&record, &mut turn);
                    // What cannot be kept is counted as lost by the spool.
                    let _ = self.records.record(record);
                }
                Action::ToServer(_)
                | Action::ToClient(_)
                | Action::Cancel
                | Action::RefreshCatalog
                | Action::CatalogRows(_)
                | Action::Close { .. } => {}
            }
        }
        let kind = match end {
            End::Quiet(kind) => kind,
            End::Tell(fatal) => {
                self.shared.metrics.refused_session(&fatal);
                let mut out = BytesMut::new();
                fatal.encode(&mut out);
                // Behind half a message nothing can be said any more.
                if self.server_framer.between_messages() {
                    self.client.send(out.freeze());
                }
                fatal.kind
            }
        };
        self.server
            .send_with(|out| {
                write::frontend::terminate(out);
                Ok::<(), std::convert::Infallible>(())
            })
            .unwrap_or_else(|never| match never {});
        let server = async {
            if !turn.half_closed {
                let _ = tokio::time::timeout(Duration::from_secs(1), self.server.shutdown()).await;
            }
        };
        tokio::join!(server, self.client.finish());
        self.records.end(match kind {
            EndKind::Client => "client",
            EndKind::DatabaseGone => "server",
            EndKind::Draining => "drain",
            EndKind::Refused => "refused",
            EndKind::Protocol
            | EndKind::ClientTls
            | EndKind::Unreachable
            | EndKind::Login
            | EndKind::Unreadable
            | EndKind::Limit
            | EndKind::Receipts => "error",
        });
        kind
    }

    async fn turns(&mut self, turn: &mut Turn) -> End {
        let shared = Arc::clone(&self.shared);
        let mut drain = shared.drain.clone();
        let mut sleep: Option<Pin<Box<Sleep>>> = None;
        loop {
            turn.working_since.get_or_insert_with(Instant::now);
            if let Some(end) = self.work(turn).await {
                return end;
            }
            // While the server answers a question of ours before a text can be judged, that text waits for Weir.
            if !self.session.is_answered() || self.session.takes_client() {
                turn.pause();
            }
            let deadline = self.next_deadline(turn);
            match (deadline, &mut sleep) {
                (None, sleep) => *sleep = None,
                (Some(at), Some(sleep)) if sleep.deadline().into_std() == at => {}
                (Some(at), sleep) => *sleep = Some(Box::pin(tokio::time::sleep_until(at.into()))),
            }
            let stage = if turn.drain_until.is_some() {
                Stage::Stopped
            } else {
                Stage::Draining
            };
            match self.wait(turn, &mut sleep, &mut drain, stage).await {
                Woken::Bytes => {}
                Woken::Cancelled => {
                    turn.cancelling = None;
                    for bytes in turn.held.drain(..) {
                        self.server.send(bytes);
                    }
                }
                Woken::Timer => {
                    let now = self.now_us();
                    self.session.on_timer(now, &mut turn.actions);
                    if turn.drain_until.is_some_and(|until| until <= Instant::now()) {
                        return End::Tell(Fatal::draining());
                    }
                }
                Woken::Drain(Stage::Stopped) => return End::Tell(Fatal::draining()),
                Woken::Drain(_) => turn.drain_until = Some(Instant::now() + shared.config.drain),
                Woken::ClientError(error) => {
                    tracing::debug!(%error, "the client's connection broke");
                    return End::Quiet(EndKind::Client);
                }
                Woken::ServerError(error) => {
                    tracing::debug!(%error, "the database's connection broke");
                    return self.server_gone(turn);
                }
            }
        }
    }

    fn server_gone(&self, turn: &Turn) -> End {
        if turn.half_closed {
            End::Quiet(EndKind::Client)
        } else if turn.server_said_fatal {
            End::Quiet(EndKind::DatabaseGone)
        } else {
            End::Tell(Fatal::database_gone())
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn next_deadline(&self, turn: &Turn) -> Option<Instant> {
        let statement = self
            .session
            .deadline_us()
            .map(|at| self.shared.started + Duration::from_micros(at));
        match (statement, turn.drain_until) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Handles all that was read, as far as it goes.
    async fn work(&mut self, turn: &mut Turn) -> Option<End> {
        loop {
            if let Some(end) = self.act(turn).await {
                return Some(end);
            }
            // What is known of the world is brought up to date before the client's next message.
            match self.step_world(turn).await {
                Ok(()) => {}
                Err(end) => return Some(end),
            }
            if let Some(end) = self.act(turn).await {
                return Some(end);
            }
            match self.step_server(turn) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(end) => return Some(end),
            }
            match self.step_client(turn) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(end) => return Some(end),
            }
            break;
        }
        if self.server.ended() {
            return Some(self.server_gone(turn));
        }
        if turn.drain_until.is_some() && self.session.is_idle() && self.session.takes_client() {
            return Some(End::Tell(Fatal::draining()));
        }
        if self.client.ended() && !turn.half_closed && self.session.takes_client() {
            // As the server would see it without us: what was sent is still answered.
            turn.half_closed = true;
            if self.server.shutdown().await.is_err() {
                return Some(End::Quiet(EndKind::Client));
            }
        }
        None
    }

    /// One frame (or run of rows) of the server. `false`: nothing more is there.
    fn step_server(&mut self, turn: &mut Turn) -> Result<bool, End> {
        if self.server.received.is_empty() {
            return Ok(false);
        }
        let failed = |error| End::Tell(Fatal::database_protocol(&error));
        if self.session.rows_pass() {
            for rows in [tag::DATA_ROW, tag::COPY_DATA] {
                let run = self
                    .server_framer
                    .next_run(&mut self.server.received, rows, u64::MAX, true)
                    .map_err(failed)?;
                if let Some(run) = run {
                    self.session.on_rows(run.bytes, run.completed, &mut turn.actions);
                    return Ok(true);
                }
            }
        }
        if self.server_framer.between_messages() {
            let caps = match self.session.is_answered() {
                true => &self.shared.own_answer_caps,
                false => &self.shared.server_caps,
            };
            self.server_framer.set_caps(Arc::clone(caps));
        }
        let Some(frame) = self
            .server_framer
            .next(&mut self.server.received)
            .map_err(failed)?
        else {
            return Ok(false);
        };
        let now = self.now_us();
        match frame {
            Frame::Whole(message) => {
                if message.tag == tag::ERROR_RESPONSE
                    && Fields::decode(message.body()).is_ok_and(|fields| fields.ends_session())
                {
                    turn.server_said_fatal = true;
                }
                let body = message.body_bytes();
                let mut judge = self.judge.borrow_mut();
                self.session
                    .on_server(message.tag, body, message.raw, now, &mut judge, &mut turn.actions);
            }
            Frame::Head { tag, prefix, .. } => {
                self.session.on_server_head(tag, prefix, now, &mut turn.actions);
            }
            Frame::Part { bytes, last } => self.session.on_server_piece(bytes, last, &mut turn.actions),
            Frame::TooLong { tag, length } => {
                return Err(failed(wire_protocol::postgres::WireError::BadLength {
                    tag,
                    length,
                }));
            }
        }
        Ok(true)
    }

    /// One frame of the client, if the machine takes one.
    fn step_client(&mut self, turn: &mut Turn) -> Result<bool, End> {
        if self.client.received.is_empty() || !self.session.takes_client() || turn.cancelling.is_some() {
            return Ok(false);
        }
        let frame = self
            .client_framer
            .next(&mut self.client.received)
            .map_err(|error| End::Tell(Fatal::protocol(&error)))?;
        let Some(frame) = frame else {
            return Ok(false);
        };
        let now = self.now_us();
        self.session.set_recording(self.records.refusal());
        let mut judge = self.judge.borrow_mut();
        let actions = &mut turn.actions;
        match frame {
            Frame::Whole(message) => {
                let client_message = ClientMessage {
                    tag: message.tag,
                    body: message.body_bytes(),
                    raw: message.raw,
                    streamed: false,
                };
                self.session.on_client(client_message, now, &mut judge, actions);
            }
            Frame::Head { tag, prefix, .. } => {
                let mut body = prefix.clone();
                drop(body.split_to(5.min(body.len())));
                let client_message = ClientMessage {
                    tag,
                    body,
                    raw: prefix,
                    streamed: true,
                };
                self.session.on_client(client_message, now, &mut judge, actions);
            }
            Frame::Part { bytes, last } => self.session.on_client_piece(bytes, last, actions),
            Frame::TooLong { tag, .. } => {
                let bytes_max = usize::try_from(self.statement_max).unwrap_or(usize::MAX);
                self.session.on_client_too_long(tag, bytes_max, actions);
            }
        }
        Ok(true)
    }

    /// Does what the machine said, in order.
    async fn act(&mut self, turn: &mut Turn) -> Option<End> {
        if turn.actions.is_empty() {
            return None;
        }
        let mut actions = std::mem::take(&mut turn.actions);
        for action in actions.drain(..) {
            match action {
                Action::ToServer(bytes) if turn.cancelling.is_some() => turn.held.push(bytes),
                Action::ToServer(bytes) => self.server.send(bytes),
                Action::ToClient(bytes) => self.client.send(bytes),
                Action::Record(record) => {
                    self.count(&record, turn);
                    if self.looks_stale(&record) {
                        turn.catalog_wanted = Some(Instant::now());
                    }
                    if let Err(reason) = self.records.record(record) {
                        return Some(not_recorded(&reason));
                    }
                }
                Action::Intent(record) => {
                    self.count(&record, turn);
                    if let Err(reason) = self.records.intent(record).await {
                        return Some(not_recorded(&reason));
                    }
                }
                Action::Cancel => turn.cancelling = Some(self.send_cancel()),
                Action::RefreshCatalog => turn.catalog_wanted = Some(Instant::now()),
                Action::CatalogRows(rows) => {
                    let asked = turn.catalog_asked.take().unwrap_or_else(Instant::now);
                    let Some(policies) = self.shared.front.policies() else {
                        return Some(End::Tell(no_policy_any_more()));
                    };
                    let taken = self
                        .database
                        .take_catalog(self.server_major, &rows, asked, &policies);
                    self.shared.metrics.catalog_reads.inc();
                    if let Err(error) = taken {
                        return Some(self.catalog_failed(&error));
                    }
                    if turn.catalog_wanted.is_some_and(|wanted| wanted <= asked) {
                        turn.catalog_wanted = None;
                    }
                }
                Action::Close { closing, reason } => {
                    tracing::debug!(reason, "the session is closed");
                    return Some(End::Quiet(match closing {
                        Closing::Client => EndKind::Client,
                        Closing::Server => EndKind::DatabaseGone,
                        Closing::Weir => EndKind::Refused,
                    }));
                }
            }
        }
        turn.actions = actions;
        None
    }

    /// A relation that is not known may have been made by somebody else since the catalog was read: the next statement
    /// shall know it.
    fn looks_stale(&self, record: &Record) -> bool {
        matches!(record, Record::Denied { refusal, .. } if refusal.code == UNKNOWN_RELATION)
            && self.database.older_than(STALE)
    }

    fn count(&self, record: &Record, turn: &mut Turn) {
        let metrics = &self.shared.metrics;
        match record {
            Record::Open { statement, .. } | Record::Intent { statement, .. } => {
                match statement.permit.verdict() {
                    access_policy::Verdict::Permit(rule) => metrics.decided(Verdict::Permit, rule),
                    access_policy::Verdict::WouldRefuse(refusal) => {
                        metrics.decided(Verdict::Audit, &refusal.rule);
                    }
                }
            }
            Record::Denied { refusal, .. } => {
                metrics.decided(Verdict::Refuse, &refusal.rule);
                metrics.refused(refusal.code);
                metrics.added(turn.take_worked());
            }
            Record::Outcome { rows_of, outcome, .. } => {
                if let Some(refusal) = &outcome.stopped {
                    metrics.refused(refusal.code);
                }
                metrics
                    .masked_cells
                    .inc_by(masked_cells(&rows_of.description, outcome.rows_returned));
                metrics.added(turn.take_worked());
            }
        }
    }

    fn catalog_failed(&self, error: &str) -> End {
        self.shared.metrics.catalog_failures.inc();
        tracing::error!(
            database = self.database.name(),
            error,
            "the catalog cannot be read"
        );
        End::Tell(Fatal::new(
            EndKind::Unreadable,
            "58000",
            "the definitions of the database cannot be read, so nothing can be judged",
        ))
    }

    /// Cancels what runs for this session. The request is a connection of its own; the session goes on meanwhile.
    fn send_cancel(&self) -> JoinHandle<()> {
        let target = self.cancel.target.clone();
        self.shared.metrics.cancels.inc();
        tokio::task::spawn_local(async move {
            if let Err(error) = target.cancel().await {
                tracing::warn!(error, "a statement could not be cancelled");
            }
        })
    }

    /// Gives the machine the newest world, and reads the catalog where it is wanted.
    async fn step_world(&mut self, turn: &mut Turn) -> Result<(), End> {
        if !self.session.takes_client() {
            return Ok(());
        }
        if self.client.received.is_empty() {
            // Other sessions wait to learn of changed definitions: they are read at once, and the answer to the one
            // who changed them does not wait for it.
            if turn.catalog_wanted.is_none() {
                return Ok(());
            }
            std::future::poll_fn(|context| {
                // What is wrong with the socket shows at the next wait.
                let _ = self.client.poll_flush(context);
                std::task::Poll::Ready(())
            })
            .await;
        }
        if self.session.is_idle() && turn.catalog_asked.is_none() {
            let poll = self.shared.config.catalog_poll;
            let own = self.login != Login::PassThrough && self.shared.has_login();
            let due = match turn.catalog_wanted {
                Some(wanted) => !self.database.read_since(wanted),
                // With a login of its own the sidecar polls by itself.
                None => !own && self.database.older_than(poll),
            };
            if due && own {
                let wanted = turn.catalog_wanted.unwrap_or_else(Instant::now);
                let read = self.shared.read_catalog(&self.database, wanted).await;
                read.map_err(|error| self.catalog_failed(&error))?;
            } else if due {
                turn.catalog_asked = Some(Instant::now());
                self.session.ask_catalog(&mut turn.actions);
                return Ok(());
            }
            turn.catalog_wanted = None;
        }
        match self.database.world() {
            Some(world) if Arc::ptr_eq(&world, &self.world) => {}
            Some(world) => {
                self.records.set_mode(world.policy.receipt_mode);
                self.session.set_world(World::clone(&world));
                self.world = world;
            }
            None => {
                return Err(End::Tell(no_policy_any_more()));
            }
        }
        Ok(())
    }

    /// Waits until something can go on. Writes and reads both sides meanwhile.
    async fn wait(
        &mut self,
        turn: &mut Turn,
        sleep: &mut Option<Pin<Box<Sleep>>>,
        drain: &mut service_runtime::drain::Drain,
        stage: Stage,
    ) -> Woken {
        let mut drained = pin!(drain.reached(stage));
        let (client, server) = (&mut self.client, &mut self.server);
        let takes_client = self.session.takes_client() && !turn.half_closed && turn.cancelling.is_none();
        std::future::poll_fn(|context| {
            if let Poll::Ready(Err(error)) = client.poll_flush(context) {
                return Poll::Ready(Woken::ClientError(error));
            }
            let flushed = server.poll_flush(context);
            if let Poll::Ready(Err(error)) = flushed
                && !turn.half_closed
            {
                return Poll::Ready(Woken::ServerError(error));
            }
            if let Some(sleep) = sleep
                && sleep.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Woken::Timer);
            }
            if drained.as_mut().poll(context).is_ready() {
                return Poll::Ready(Woken::Drain(stage));
            }
            if let Some(cancelling) = &mut turn.cancelling
                && Pin::new(cancelling).poll(context).is_ready()
            {
                return Poll::Ready(Woken::Cancelled);
            }
            let mut read = false;
            if !server.ended() && client.waiting() <= WAITING_MAX {
                match server.poll_fill(context) {
                    Poll::Ready(Ok(_)) => read = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Woken::ServerError(error)),
                    Poll::Pending => {}
                }
            }
            if takes_client && !client.ended() && server.waiting() <= WAITING_MAX {
                match client.poll_fill(context) {
                    Poll::Ready(Ok(_)) => read = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Woken::ClientError(error)),
                    Poll::Pending => {}
                }
            }
            if read {
                return Poll::Ready(Woken::Bytes);
            }
            client.forget_empty();
            server.forget_empty();
            Poll::Pending
        })
        .await
    }
}

/// Cells of the rows that left which stood under a mask, NULLs included.
fn masked_cells(description: &Description, rows: u64) -> u64 {
    let columns = description
        .output
        .iter()
        .filter(|column| column.mask.is_some() && column.target.is_none())
        .count();
    rows.saturating_mul(u64::try_from(columns).unwrap_or(u64::MAX))
}

fn no_policy_any_more() -> Fatal {
    Fatal::new(
        EndKind::Refused,
        "57P01",
        "WEIR-091: no policy lets this database be used any more",
    )
}

/// Nothing of what stands behind the record may go out.
fn not_recorded(reason: &str) -> End {
    End::Tell(Fatal::new(
        EndKind::Receipts,
        "53100",
        format!("the statement cannot be recorded, so it does not run: {reason}"),
    ))
}

/// Caps of a client after its login.
pub fn client_caps(statement_max: u32) -> Arc<Caps> {
    Arc::new(Caps::client(statement_max))
}
