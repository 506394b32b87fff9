//! Moves bytes between a client, its server and the [`Session`] between them. One task for both directions: what is
//! read is framed, given to the session, and its actions are done in their order.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use session_state::{Action, ClientMessage, Judge, Session, World};
use tokio::time::Sleep;
use wire_protocol::postgres::{Caps, Frame, Framer, WireError};

use crate::cancels::CancelTarget;
use crate::recorder::Recorder;
use crate::stream::{Leg, WAITING_MAX};

/// Policy and catalog of the session's database.
pub trait Worlds {
    /// As they are now; cheap.
    fn current(&self) -> World;
    /// After definitions changed: a catalog read after this call began. `None`: the sidecar has no login of its own,
    /// the session reads it itself.
    ///
    /// # Errors
    /// Why it cannot be read, in words for the client.
    fn refreshed(&self) -> impl Future<Output = Result<Option<World>, String>>;
    /// The rows of the catalog that the session read itself.
    ///
    /// # Errors
    /// Why they are not understood, in words for the client.
    fn from_rows(&self, rows: Vec<(String, String)>) -> Result<World, String>;
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The client closed, or said good-bye.
    Client,
    /// The server closed.
    Server,
    /// Weir ended it, for this reason.
    Closed(String),
    /// The sidecar stops.
    Drained,
}

/// Everything one session needs.
pub struct Pump<R, W> {
    /// The client, after its login.
    pub client: Leg,
    /// The server, after its login.
    pub server: Leg,
    /// The machine between them.
    pub session: Session,
    /// Decisions of this thread.
    pub judge: Rc<RefCell<Judge>>,
    /// Records.
    pub recorder: R,
    /// Policy and catalog.
    pub worlds: W,
    /// For stopping a statement.
    pub cancel: CancelTarget,
    /// Caps for the client's messages.
    pub client_caps: Arc<Caps>,
    /// Caps for the server's messages.
    pub server_caps: Arc<Caps>,
    /// `--statement-max-bytes`.
    pub statement_max_bytes: usize,
    /// How long running work may go on while the sidecar drains.
    pub grace: Duration,
    /// The way to the end.
    pub drain: service_runtime::drain::Drain,
}

enum Event {
    ClientRead(usize),
    ServerRead(usize),
    /// The session's own time is over.
    Deadline,
    Draining,
    Broken(Side, io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl<R: Recorder, W: Worlds> Pump<R, W> {
    /// Runs until one side ends. Not cancel safe: dropping it drops both connections.
    pub async fn run(mut self) -> Ended {
        let ended = self.serve().await;
        // What is under way when a connection breaks is recorded as unknown.
        let mut actions = Vec::new();
        self.session.on_disconnect(&mut actions);
        for action in actions {
            if let Action::Record(record) = action {
                // It was counted as lost by whoever keeps records; nothing more can be done here.
                let _ = self.recorder.record(record);
            }
        }
        let Self {
            client, mut server, ..
        } = self;
        let goodbye = async {
            // The server takes a closed direction as the end of the session; nothing more is read from it.
            let _ = server.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
        client.finish().await;
        ended
    }

    async fn serve(&mut self) -> Ended {
        let begun = Instant::now();
        let mut from_client = Framer::new(Arc::clone(&self.client_caps));
        let mut from_server = Framer::new(Arc::clone(&self.server_caps));
        let mut timer: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(Duration::from_secs(3600)));
        let mut timer_for: Option<u64> = None;
        let mut draining_since: Option<Instant> = None;
        let mut wants_catalog = false;
        loop {
            // Everything that is here already, before anything is waited for.
            loop {
                let now_us = micros(begun);
                match self
                    .server_frames(&mut from_server, now_us, &mut wants_catalog)
                    .await
                {
                    Ok(()) => {}
                    Err(ended) => return ended,
                }
                if wants_catalog && self.session.is_idle() {
                    wants_catalog = false;
                    let mut actions = Vec::new();
                    self.session.ask_catalog(&mut actions);
                    if let Err(ended) = self.act(actions, &mut wants_catalog).await {
                        return ended;
                    }
                }
                if wants_catalog || !self.session.takes_client() || self.server.waiting() > WAITING_MAX {
                    break;
                }
                match self
                    .client_frame(&mut from_client, now_us, &mut wants_catalog)
                    .await
                {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(ended) => return ended,
                }
            }
            if self.drain.stage() >= service_runtime::drain::Stage::Draining {
                let since = *draining_since.get_or_insert_with(Instant::now);
                let over = since.elapsed() >= self.grace
                    || self.drain.stage() >= service_runtime::drain::Stage::Stopped;
                if self.session.is_idle() || over {
                    self.client.send(session_state::fatal(
                        "57P01",
                        "terminating connection because the sidecar stops",
                    ));
                    return Ended::Drained;
                }
            }
            // The earliest of the statement's own limit and the end of the grace.
            let deadline = self.session.deadline_us();
            let grace_end = draining_since.map(|since| {
                micros(begun).saturating_add(as_micros(self.grace.saturating_sub(since.elapsed())))
            });
            let next = [deadline, grace_end].into_iter().flatten().min();
            if next != timer_for {
                timer_for = next;
                if let Some(at) = next {
                    timer.as_mut().reset((begun + Duration::from_micros(at)).into());
                }
            }
            match self
                .wait(&mut timer, timer_for.is_some(), draining_since.is_some())
                .await
            {
                Event::ClientRead(0) => return Ended::Client,
                Event::ServerRead(0) => {
                    self.client.send(session_state::fatal(
                        "57P01",
                        "the database closed the connection",
                    ));
                    return Ended::Server;
                }
                Event::ClientRead(_) | Event::ServerRead(_) | Event::Draining => {}
                Event::Deadline => {
                    timer_for = None;
                    let mut actions = Vec::new();
                    self.session.on_timer(micros(begun), &mut actions);
                    if let Err(ended) = self.act(actions, &mut wants_catalog).await {
                        return ended;
                    }
                }
                Event::Broken(Side::Client, _) => return Ended::Client,
                Event::Broken(Side::Server, error) => {
                    let text = format!("the connection to the database broke: {error}");
                    self.client.send(session_state::fatal("57P01", &text));
                    return Ended::Server;
                }
            }
        }
    }

    /// Writes what is queued to both sides and waits for the next thing to happen.
    async fn wait(&mut self, timer: &mut Pin<Box<Sleep>>, timed: bool, draining: bool) -> Event {
        let takes_client =
            self.session.takes_client() && self.server.waiting() <= WAITING_MAX && !self.client.ended();
        let takes_server = self.client.waiting() <= WAITING_MAX;
        if self.client.waiting() == 0 && self.server.waiting() == 0 {
            self.client.forget_empty();
            self.server.forget_empty();
        }
        let mut drain = self.drain.clone();
        let mut drained =
            Box::pin(async move { drain.reached(service_runtime::drain::Stage::Draining).await });
        poll_fn(|context| {
            let mut wrote = false;
            for side in [Side::Server, Side::Client] {
                let leg = match side {
                    Side::Client => &mut self.client,
                    Side::Server => &mut self.server,
                };
                let before = leg.waiting();
                if let Poll::Ready(Err(error)) = leg.poll_flush(context) {
                    return Poll::Ready(Event::Broken(side, error));
                }
                // Room was made: what was not read for lack of it may be read now.
                wrote |= before > WAITING_MAX && leg.waiting() <= WAITING_MAX;
            }
            if wrote {
                context.waker().wake_by_ref();
            }
            if takes_server || self.client.waiting() <= WAITING_MAX {
                match self.server.poll_fill(context) {
                    Poll::Ready(Ok(count)) => return Poll::Ready(Event::ServerRead(count)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Event::Broken(Side::Server, error)),
                    Poll::Pending => {}
                }
            }
            if takes_client {
                match self.client.poll_fill(context) {
                    Poll::Ready(Ok(count)) => return Poll::Ready(Event::ClientRead(count)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Event::Broken(Side::Client, error)),
                    Poll::Pending => {}
                }
            }
            if timed && timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Deadline);
            }
            if !draining && drained.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Draining);
            }
            Poll::Pending
        })
        .await
    }

    /// All frames of the server that were read.
    async fn server_frames(
        &mut self,
        framer: &mut Framer,
        now_us: u64,
        wants_catalog: &mut bool,
    ) -> Result<(), Ended> {
        loop {
            if self.client.waiting() > WAITING_MAX {
                return Ok(());
            }
            let mut actions = Vec::new();
            // Rows that nobody has to look at go on as they came, a whole read at once.
            if self.session.rows_pass() {
                let mut passed = false;
                for tag in *b"Dd" {
                    let run = framer.next_run(&mut self.server.received, tag, u64::MAX, true);
                    if let Some(run) = run.map_err(|error| self.server_protocol(&error))? {
                        self.session.on_rows(run.bytes, run.started, &mut actions);
                        passed = true;
                    }
                }
                if passed {
                    self.act(actions, wants_catalog).await?;
                    continue;
                }
            }
            let frame = framer
                .next(&mut self.server.received)
                .map_err(|error| self.server_protocol(&error))?;
            match frame {
                None => return Ok(()),
                Some(Frame::Whole(message)) => {
                    let body = message.body_bytes();
                    let mut judge = self.judge.borrow_mut();
                    self.session
                        .on_server(message.tag, body, message.raw, now_us, &mut judge, &mut actions);
                }
                Some(Frame::Head { tag, prefix, .. }) => {
                    self.session.on_server_head(tag, prefix, now_us, &mut actions);
                }
                Some(Frame::Part { bytes, last }) => self.session.on_server_piece(bytes, last, &mut actions),
                Some(Frame::TooLong { tag, .. }) => {
                    return Err(self.broken(&format!(
                        "message {} of the database is too long",
                        tag.escape_ascii()
                    )));
                }
            }
            self.act(actions, wants_catalog).await?;
        }
    }

    /// One frame of the client; false where none is complete.
    async fn client_frame(
        &mut self,
        framer: &mut Framer,
        now_us: u64,
        wants_catalog: &mut bool,
    ) -> Result<bool, Ended> {
        let frame = match framer.next(&mut self.client.received) {
            Ok(frame) => frame,
            Err(error) => {
                let text = format!("protocol error: {error}");
                self.client.send(session_state::fatal("08P01", &text));
                return Err(Ended::Closed(text));
            }
        };
        let Some(frame) = frame else { return Ok(false) };
        let world = self.worlds.current();
        if !Arc::ptr_eq(&world.policy, &self.session.world().policy)
            || !Arc::ptr_eq(&world.catalog, &self.session.world().catalog)
        {
            self.session.set_world(world);
        }
        self.session.set_recording(self.recorder.refusal());
        let mut actions = Vec::new();
        match frame {
            Frame::Whole(message) => {
                let body = message.body_bytes();
                let message = ClientMessage {
                    tag: message.tag,
                    body,
                    raw: message.raw,
                    streamed: false,
                };
                self.session
                    .on_client(message, now_us, &mut self.judge.borrow_mut(), &mut actions);
            }
            Frame::Head { tag, prefix, .. } => {
                let mut body: Bytes = prefix.clone();
                drop(body.split_to(5.min(body.len())));
                let message = ClientMessage {
                    tag,
                    body,
                    raw: prefix,
                    streamed: true,
                };
                self.session
                    .on_client(message, now_us, &mut self.judge.borrow_mut(), &mut actions);
            }
            Frame::Part { bytes, last } => self.session.on_client_piece(bytes, last, &mut actions),
            Frame::TooLong { tag, .. } => {
                self.session
                    .on_client_too_long(tag, self.statement_max_bytes, &mut actions);
            }
        }
        self.act(actions, wants_catalog).await?;
        Ok(true)
    }

    /// Does what the session says, in its order.
    async fn act(&mut self, actions: Vec<Action>, wants_catalog: &mut bool) -> Result<(), Ended> {
        for action in actions {
            match action {
                Action::ToServer(bytes) => self.server.send(bytes),
                Action::ToClient(bytes) => self.client.send(bytes),
                Action::Record(record) => {
                    if let Err(reason) = self.recorder.record(record) {
                        let text = format!("the statement cannot be recorded, so it does not run: {reason}");
                        self.client.send(session_state::fatal("53100", &text));
                        return Err(Ended::Closed(text));
                    }
                }
                Action::Intent(record) => {
                    if let Err(reason) = self.recorder.intent(record).await {
                        let text = format!("the statement cannot be recorded, so it does not run: {reason}");
                        self.client.send(session_state::fatal("53100", &text));
                        return Err(Ended::Closed(text));
                    }
                }
                Action::Cancel => {
                    if let Err(reason) = self.cancel.cancel().await {
                        tracing::warn!(%reason, "cannot cancel a statement that is over its limit");
                        let text = "a statement over its limit could not be stopped".to_owned();
                        self.client.send(session_state::fatal("57P01", &text));
                        return Err(Ended::Closed(text));
                    }
                }
                Action::RefreshCatalog => match self.worlds.refreshed().await {
                    Ok(Some(world)) => self.session.set_world(world),
                    Ok(None) => *wants_catalog = true,
                    Err(reason) => return Err(self.broken(&format!("cannot read the catalog: {reason}"))),
                },
                Action::CatalogRows(rows) => match self.worlds.from_rows(rows) {
                    Ok(world) => self.session.set_world(world),
                    Err(reason) => return Err(self.broken(&format!("cannot read the catalog: {reason}"))),
                },
                Action::Close { reason } => return Err(Ended::Closed(reason)),
            }
        }
        Ok(())
    }

    fn server_protocol(&mut self, error: &WireError) -> Ended {
        self.broken(&format!("the database sent what is no message: {error}"))
    }

    fn broken(&mut self, text: &str) -> Ended {
        self.client.send(session_state::fatal("08P01", text));
        Ended::Closed(text.to_owned())
    }
}

fn micros(begun: Instant) -> u64 {
    as_micros(begun.elapsed())
}

fn as_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
