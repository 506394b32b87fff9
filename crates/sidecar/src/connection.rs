//! One client connection from its first byte to its last.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use receipts::{AuthFail, Body, Claim, Place, SessionId, Who};
use session_state::{Judge, Known, Session, SessionStart, World};
use tokio::net::TcpStream;
use wire_protocol::postgres::backend::TransactionStatus;
use wire_protocol::postgres::{Framer, write};

use crate::databases::Database;
use crate::fatal::{EndKind, Failure, Fatal};
use crate::login::{LoggedIn, LoginContext, ask, log_in};
use crate::metrics::Open;
use crate::policies::Policies;
use crate::pump::Pump;
use crate::recorder::{Identity, SessionRecorder};
use crate::sidecar::Shared;
use crate::spool::Entry;
use crate::startup::{LOGIN_TIMEOUT, Terms, Wish, receive, terms};
use crate::stream::{Leg, Stream, tune};
use crate::upstream::Login;

/// A client that is one too many has this long to hear it.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a connection to its end.
pub async fn serve(
    shared: Arc<Shared>,
    judge: Rc<RefCell<Judge>>,
    socket: TcpStream,
    peer: SocketAddr,
) -> EndKind {
    if let Err(error) = tune(&socket) {
        tracing::debug!(%error, "a socket cannot be tuned");
        return EndKind::Client;
    }
    let leg = Leg::new(Stream::Plain(socket));
    let start = tokio::time::timeout(LOGIN_TIMEOUT, open(&shared, &judge, leg));
    let mut drain = shared.drain.clone();
    let opened = tokio::select! {
        opened = start => opened,
        // Who has not logged in when the grace time is over will not.
        () = drain.reached(service_runtime::drain::Stage::Stopped) => return EndKind::Draining,
    };
    match opened {
        Ok(Opened::Session(pump)) => {
            tracing::info!(client = %peer, database = pump.database.name(), "session");
            shared.metrics.sessions.inc();
            let _open = Open::count(&shared.metrics.open_sessions);
            let kind = pump.run().await;
            tracing::info!(client = %peer, ?kind, "session ended");
            kind
        }
        Ok(Opened::Ended(kind)) => kind,
        Err(_) => {
            tracing::info!(client = %peer, "login took too long");
            EndKind::Limit
        }
    }
}

/// Tells a client that there are too many, where it expects an answer.
pub async fn turn_away(shared: &Shared, socket: TcpStream) -> EndKind {
    let told = async {
        let (leg, wish) = receive(Leg::new(Stream::Plain(socket)), &shared.tls_offer()).await;
        if let (Some(mut leg), Ok(Wish::Session(_))) = (leg, wish) {
            let fatal = Fatal::new(EndKind::Limit, "53300", "weir-sidecar has too many connections")
                .hint("raise --max-connections");
            let mut out = BytesMut::new();
            fatal.encode(&mut out);
            leg.send(out.freeze());
            leg.finish().await;
        }
    };
    // Whoever is slow is not waited for.
    let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, told).await;
    EndKind::Limit
}

enum Opened {
    Session(Box<Pump>),
    Ended(EndKind),
}

async fn open(shared: &Arc<Shared>, judge: &Rc<RefCell<Judge>>, leg: Leg) -> Opened {
    let (leg, wish) = receive(leg, &shared.tls_offer()).await;
    let Some(mut leg) = leg else {
        let kind = wish.err().map_or(EndKind::Client, |failure| failure.kind());
        return Opened::Ended(kind);
    };
    let opened = match wish {
        Ok(Wish::Nothing) => return Opened::Ended(EndKind::Client),
        Ok(Wish::Cancel(request)) => {
            // Whoever asks learns nothing: the connection is closed in any case, as the server does it.
            if let Some(target) = shared.cancels.find(&request) {
                shared.metrics.cancels.inc();
                if let Err(error) = target.cancel().await {
                    tracing::warn!(error, "a cancel request could not be passed on");
                }
            }
            leg.finish().await;
            return Opened::Ended(EndKind::Client);
        }
        Ok(Wish::Session(message)) => match terms(&message) {
            Ok(terms) => Ok(terms),
            Err(fatal) => Err(Failure::Fatal(fatal)),
        },
        Err(failure) => Err(failure),
    };
    let prepared = match opened {
        Ok(terms) => {
            let prepared = prepare(shared, &mut leg, &terms).await;
            if let Err(failure) = &prepared {
                record_failure(shared, &leg, &terms, failure);
            }
            prepared
        }
        Err(failure) => Err(failure),
    };
    match prepared {
        Ok(prepared) => Opened::Session(Box::new(prepared.into_pump(shared, judge, leg))),
        Err(failure) => {
            let kind = failure.kind();
            if let Failure::Fatal(fatal) = failure {
                shared.metrics.refused_session(&fatal);
                tracing::info!(
                    sqlstate = fatal.sqlstate,
                    message = fatal.message,
                    "connection refused"
                );
                let mut out = BytesMut::new();
                fatal.encode(&mut out);
                leg.send(out.freeze());
            }
            leg.finish().await;
            Opened::Ended(kind)
        }
    }
}

/// A login that failed leaves a record.
fn record_failure(shared: &Shared, client: &Leg, terms: &Terms, failure: &Failure) {
    let (sqlstate, reason) = match failure {
        Failure::ClientGone(_) => return,
        Failure::Fatal(fatal) => (Some(fatal.sqlstate.to_owned()), fatal.message.clone()),
        Failure::Told(_) => (None, "the database refused the login".to_owned()),
    };
    let (time_us, mono_us) = shared.spool.now();
    let name = terms.database_named.as_ref().unwrap_or(&terms.user);
    let body = Body::AuthFail(AuthFail {
        who: Arc::new(Who {
            user: Claim::claimed(String::from_utf8_lossy(&terms.user)),
            client_address: client.peer().map(|peer| peer.to_string()),
            ..Who::default()
        }),
        place: Arc::new(Place {
            engine: "postgresql".to_owned(),
            endpoint: shared.front.name().to_string(),
            database: Some(String::from_utf8_lossy(name).into_owned()),
        }),
        sqlstate,
        reason,
    });
    let entry = Entry {
        time_us,
        mono_us,
        session: None,
        body,
    };
    shared.spool.record(entry, None, shared.receipt_mode());
}

/// A session that is logged in and whose state is known.
struct Prepared {
    session: LoggedIn,
    database: Arc<Database>,
    world: Arc<World>,
    known: Known,
    login: Login,
    id: SessionId,
    identity: Identity,
}

async fn prepare(
    shared: &Arc<Shared>,
    client: &mut Leg,
    terms: &crate::startup::Terms,
) -> Result<Prepared, Failure> {
    shared.source.admit()?;
    let policies = shared.front.admit()?;
    let context = LoginContext {
        upstream: &policies.upstream,
        policy: &policies.policy,
        cancels: &shared.cancels,
        roles: &shared.front.roles,
        client_caps: &shared.login_caps,
        server_caps: &shared.server_caps,
    };
    let mut session = log_in(Some(client), terms, &context).await?;
    let login = policies.upstream.login.clone();
    let database = shared.front.databases.get(&session.database);
    let mut aside = Vec::new();
    let world = world(shared, &policies, &database, &login, &mut session, &mut aside).await?;
    let known = state(&mut session, &world, &mut aside).await?;
    for message in aside {
        client.send(message);
    }
    client
        .send_with(|out| {
            write::backend::ready_for_query(out, TransactionStatus::Idle);
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
    let mut id = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Fatal::new(EndKind::Limit, "53000", "no randomness"))?;
    Ok(Prepared {
        id: SessionId(id),
        identity: identity(shared, &policies, terms, client, &session),
        session,
        database,
        world,
        known,
        login,
    })
}

/// Who and where, for the session's receipts. What the client says of itself is marked so.
fn identity(
    shared: &Shared,
    policies: &Policies,
    terms: &Terms,
    client: &Leg,
    session: &LoggedIn,
) -> Identity {
    let claimed = |bytes: Option<&Bytes>| {
        bytes.map_or_else(Claim::absent, |bytes| {
            Claim::claimed(String::from_utf8_lossy(bytes))
        })
    };
    let asserted = |text: Option<&String>| text.map_or_else(Claim::absent, Claim::asserted);
    let subject = &shared.subject;
    let own = policies.upstream.login != Login::PassThrough;
    let application = terms
        .parameters
        .iter()
        .rev()
        .find(|(name, _)| name.as_ref() == b"application_name")
        .map(|(_, value)| value);
    let who = Who {
        workload: shared.workload(),
        // With the policy's own login the client's user name proves nothing; else it is the database's user.
        user: match &subject.user {
            Some(user) => Claim::asserted(user),
            None if own => claimed(Some(&terms.user)),
            None => Claim::absent(),
        },
        agent: asserted(subject.agent.as_ref()),
        application: claimed(application),
        // The server let it in under that name.
        database_user: Claim::verified(&session.user),
        client_address: client.peer().map(|peer| peer.to_string()),
        ..Who::default()
    };
    let place = Place {
        engine: "postgresql".to_owned(),
        endpoint: policies.upstream.name.to_string(),
        database: Some(session.database.clone()),
    };
    Identity {
        who: Arc::new(who),
        place: Arc::new(place),
    }
}

fn unreadable(what: &str, error: &str) -> Fatal {
    tracing::error!(what, error, "cannot be read; the session is refused");
    Fatal::new(
        EndKind::Unreadable,
        "58000",
        format!("{what} cannot be read, so nothing could be judged: {error}"),
    )
}

/// The session's own starting state, read on its own connection.
async fn state(session: &mut LoggedIn, world: &World, aside: &mut Vec<Bytes>) -> Result<Known, Fatal> {
    let failed = |error: &dyn std::fmt::Display| unreadable("the session's state", &error.to_string());
    let (leg, framer) = (&mut session.leg, &mut session.framer);
    let rows = ask(leg, framer, Session::start_sql(), aside)
        .await
        .map_err(|error| failed(&error))?;
    if let Some(known) = Known::at_start(&rows).map_err(|error| failed(&error))? {
        return Ok(known);
    }
    let rows = ask(leg, framer, &Session::state_sql(), aside)
        .await
        .map_err(|error| failed(&error))?;
    Known::from_rows(&world.catalog, &rows).map_err(|error| failed(&error))
}

/// The world of a database, read now if nobody has yet.
async fn world(
    shared: &Arc<Shared>,
    policies: &Arc<Policies>,
    database: &Arc<Database>,
    login: &Login,
    session: &mut LoggedIn,
    aside: &mut Vec<Bytes>,
) -> Result<Arc<World>, Failure> {
    let what = "the catalog of the database";
    if database.world().is_none() {
        match login {
            Login::Own(_) if shared.has_login() => {
                let read = shared.read_catalog(database, shared.started).await;
                read.map_err(|error| unreadable(what, &error))?;
            }
            Login::Own(_) | Login::PassThrough => {
                let _reading = database.reading.lock().await;
                if database.world().is_none() {
                    let asked = Instant::now();
                    let rows = ask(
                        &mut session.leg,
                        &mut session.framer,
                        sql_facts::Catalog::load_sql(),
                        aside,
                    )
                    .await
                    .map_err(|error| unreadable(what, &error.to_string()))?;
                    shared.metrics.catalog_reads.inc();
                    database
                        .take_catalog(session.server_major, &rows, asked, policies)
                        .map_err(|error| unreadable(what, &error))?;
                }
            }
        }
    }
    shared.front.bring_up_to_date(database);
    database.world().ok_or_else(|| {
        Fatal::new(
            EndKind::Refused,
            "28000",
            "WEIR-091: no policy lets this database be used",
        )
        .into()
    })
}

impl Prepared {
    fn into_pump(self, shared: &Arc<Shared>, judge: &Rc<RefCell<Judge>>, client: Leg) -> Pump {
        let LoggedIn {
            leg,
            framer,
            cancel,
            server_major,
            ..
        } = self.session;
        let session = Session::new(SessionStart {
            world: World::clone(&self.world),
            subject: Arc::clone(&shared.subject),
            // One subject for the whole process.
            subject_number: 1,
            known: self.known,
        });
        let records = SessionRecorder::begin(
            Arc::clone(&shared.spool),
            self.id,
            self.identity,
            self.world.policy.receipt_mode,
        );
        Pump {
            judge: Rc::clone(judge),
            client,
            client_framer: Framer::new(Arc::clone(&shared.client_caps)),
            server: leg,
            server_framer: framer,
            session,
            world: self.world,
            database: self.database,
            server_major,
            login: self.login,
            cancel,
            records,
            statement_max: shared.config.statement_max_bytes,
            shared: Arc::clone(shared),
        }
    }
}
