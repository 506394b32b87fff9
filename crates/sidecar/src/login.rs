//! From the client's first packet to a session at the database that is ready, and that the client knows nothing of
//! yet: the last ReadyForQuery is kept back until the session's state was read.
//!
//! Two ways: the client's own messages pass through (its password never stays here), or the sidecar logs in with the
//! policy's credentials and the client is let in.

use std::sync::Arc;

use access_policy::DatabasePolicy;
use access_policy::policy::TargetSession;
use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use wire_protocol::postgres::backend::{
    Authentication, BackendKeyData, BackendMessage, Fields, TransactionStatus,
};
use wire_protocol::postgres::frontend::SaslInitialResponse;
use wire_protocol::postgres::startup::VERSION_3_0;
use wire_protocol::postgres::{Caps, Frame, Framer, Message, WireError, tag, write};

use crate::cancels::{CancelKey, CancelTarget, Cancels};
use crate::fatal::{EndKind, Failure, Fatal};
use crate::startup::Terms;
use crate::stream::Leg;
use crate::upstream::{
    Connection, Credentials, Login, Role, Roles, SharedUpstream, connect, connect_to, no_primary,
};

/// A session at the database, ready and idle.
#[derive(Debug)]
pub struct LoggedIn {
    /// The connection.
    pub leg: Leg,
    /// Cuts what the server sends.
    pub framer: Framer,
    /// Our cancel key; it ends with the session.
    pub cancel: CancelKey,
    /// `server_version`, major.
    pub server_major: u16,
    /// User at the database.
    pub user: String,
    /// Database.
    pub database: String,
}

/// What every login needs.
#[derive(Debug)]
pub struct LoginContext<'a> {
    /// Where to.
    pub upstream: &'a SharedUpstream,
    /// Which databases.
    pub policy: &'a DatabasePolicy,
    /// Cancel keys.
    pub cancels: &'a Cancels,
    /// Where to look for the server that takes writes.
    pub roles: &'a Roles,
    /// Caps of a client that logs in.
    pub client_caps: &'a Arc<Caps>,
    /// Caps of a server.
    pub server_caps: &'a Arc<Caps>,
}

/// Logs in. What the client is to know of it waits in its leg, without the ReadyForQuery. Without a client, only the
/// policy's credentials can log in.
///
/// # Errors
/// Why not.
pub async fn log_in(
    client: Option<&mut Leg>,
    terms: &Terms,
    context: &LoginContext<'_>,
) -> Result<LoggedIn, Failure> {
    let upstream = context.upstream;
    let text = |bytes: &Bytes, what: &str| {
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            Fatal::new(
                EndKind::Protocol,
                "22021",
                format!("the {what} name is not UTF-8"),
            )
        })
    };
    let client_user = text(&terms.user, "user")?;
    let user = match &upstream.login {
        Login::PassThrough => client_user.clone(),
        Login::Own(credentials) => credentials.username.clone(),
    };
    let allowed = context.policy.database_names();
    let mut allowed_names = allowed.iter();
    let database = match (&terms.database_named, allowed_names.next(), allowed_names.next()) {
        (Some(named), ..) => text(named, "database")?,
        // The only database that policies name, where the login is the policy's too.
        (None, Some(only), None) if matches!(upstream.login, Login::Own(_)) => (*only).to_owned(),
        (None, ..) => client_user.clone(),
    };
    if context.policy.for_name(&database).is_none() {
        let names: Vec<&str> = allowed.into_iter().collect();
        return Err(Fatal::new(
            EndKind::Refused,
            "28000",
            format!(
                "WEIR-091: no policy lets the database \"{database}\" of {} be used",
                upstream.name
            ),
        )
        .hint(format!("connect to {}", names.join(" or ")))
        .into());
    }

    let names = Names { user, database };
    match upstream.target {
        TargetSession::Any => {
            let connection = connect(upstream).await?;
            let mut greeting = Greeting::told_at_once();
            let reached = converse(client, terms, context, &names, connection, &mut greeting).await?;
            Ok(reached.session)
        }
        TargetSession::ReadWrite => at_primary(client, terms, context, &names).await,
    }
}

/// Who logs in where.
struct Names {
    user: String,
    database: String,
}

/// What the client was told of a login that is not over.
struct Greeting {
    /// Kept back while the server may turn out to be the wrong one; `None`: nothing is.
    held: Option<Vec<Bytes>>,
    /// The client was asked for its password: that cannot be done again.
    asked: bool,
    told_version: bool,
}

impl Greeting {
    fn told_at_once() -> Self {
        Self {
            held: None,
            asked: false,
            told_version: false,
        }
    }

    fn kept_back() -> Self {
        Self {
            held: Some(Vec::new()),
            ..Self::told_at_once()
        }
    }

    /// What is held goes to the client, and all that comes.
    fn release(&mut self, client: Option<&mut Leg>) {
        let held = self.held.take().unwrap_or_default();
        if let Some(client) = client {
            for message in held {
                client.send(message);
            }
        }
    }
}

/// A session, and whether its server follows another one, where that was said.
struct Reached {
    session: LoggedIn,
    standby: Option<bool>,
}

/// Logs in at the address that takes writes. As long as the client was not asked for its password, a standby is just
/// passed over. A password cannot be asked for twice (libpq refuses a second SCRAM): then the client hears that it came to a
/// standby, and its next connection begins elsewhere.
async fn at_primary(
    mut client: Option<&mut Leg>,
    terms: &Terms,
    context: &LoginContext<'_>,
    names: &Names,
) -> Result<LoggedIn, Failure> {
    let upstream = context.upstream;
    let mut addresses = upstream.addresses().await?;
    context.roles.order(&mut addresses);
    let mut passed = Vec::new();
    for address in addresses {
        let mut greeting = Greeting::kept_back();
        let connection = match connect_to(upstream, address).await {
            Ok(connection) => connection,
            Err(fatal) => {
                passed.push(fatal.message);
                continue;
            }
        };
        let reached = converse(
            client.as_deref_mut(),
            terms,
            context,
            names,
            connection,
            &mut greeting,
        )
        .await;
        let mut reached = match reached {
            Ok(reached) => reached,
            // It starts, stops or broke: not this one, now.
            Err(Failure::Fatal(fatal))
                if !greeting.asked && (fatal.sqlstate == "57P03" || fatal.kind == EndKind::DatabaseGone) =>
            {
                passed.push(format!("{address}: {}", fatal.message));
                continue;
            }
            Err(failure) => {
                greeting.release(client);
                return Err(failure);
            }
        };
        if !reached.is_standby().await? {
            context.roles.note(address, Role::Primary);
            greeting.release(client);
            return Ok(reached.session);
        }
        context.roles.note(address, Role::Standby);
        tracing::debug!(%address, "a standby is passed over");
        let mut leg = reached.session.leg;
        leg.send_with(|out| {
            write::frontend::terminate(out);
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        // Whatever goes wrong with its end: it is not used.
        let _ = leg.shutdown().await;
        if greeting.asked {
            return Err(Fatal::new(
                EndKind::Unreachable,
                "57P03",
                format!(
                    "{address} does not take writes, and targetSession is ReadWrite; the next connection begins at \
                     another address of {}",
                    upstream.name
                ),
            )
            .hint("connect again; with `credentials` in the policy weir-sidecar finds the right address by itself")
            .into());
        }
        passed.push(format!("{address} is a standby"));
    }
    Err(no_primary(upstream, &passed).into())
}

impl Reached {
    async fn is_standby(&mut self) -> Result<bool, Failure> {
        if let Some(standby) = self.standby {
            return Ok(standby);
        }
        // Servers before 14 do not say it by themselves.
        let sql = "select 'standby', pg_catalog.pg_is_in_recovery()::pg_catalog.text";
        let session = &mut self.session;
        let rows = ask(&mut session.leg, &mut session.framer, sql, &mut Vec::new())
            .await
            .map_err(|error| login_failed(&error.to_string()))?;
        Ok(rows.iter().any(|(_, standby)| standby == "true"))
    }
}

/// One login over one connection.
async fn converse(
    client: Option<&mut Leg>,
    terms: &Terms,
    context: &LoginContext<'_>,
    names: &Names,
    connection: Connection,
    greeting: &mut Greeting,
) -> Result<Reached, Failure> {
    let upstream = context.upstream;
    let Connection {
        leg,
        address,
        binding,
    } = connection;
    let mut login = Conversation {
        client,
        greeting,
        leg,
        framer: Framer::new(Arc::clone(context.server_caps)),
        terms,
        context,
        negotiated: terms.version,
        key: None,
        server_version: None,
        standby: None,
        target: |process_id, key| CancelTarget {
            upstream: Arc::clone(upstream),
            address,
            process_id,
            key,
        },
    };
    login
        .leg
        .send(terms.startup(names.user.as_bytes(), names.database.as_bytes())?);
    match &upstream.login {
        Login::PassThrough => login.pass_through().await?,
        Login::Own(credentials) => login.with(credentials, binding).await?,
    }
    let Some(cancel) = login.key else {
        return Err(login_failed("the server gave no cancel key").into());
    };
    let server_major = login
        .server_version
        .as_deref()
        .and_then(major_of)
        .ok_or_else(|| login_failed("the server does not say its version"))?;
    Ok(Reached {
        standby: login.standby,
        session: LoggedIn {
            leg: login.leg,
            framer: login.framer,
            cancel,
            server_major,
            user: names.user.clone(),
            database: names.database.clone(),
        },
    })
}

/// `15.14 (Debian 15.14-0+deb12u1)` → 15.
fn major_of(version: &str) -> Option<u16> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn login_not_now() -> Fatal {
    Fatal::new(EndKind::Login, "57P03", "it is starting up or shutting down")
}

fn login_failed(why: &str) -> Fatal {
    Fatal::new(
        EndKind::Login,
        "08004",
        format!("login at the database failed: {why}"),
    )
}

struct Conversation<'a, 't, T> {
    client: Option<&'a mut Leg>,
    greeting: &'t mut Greeting,
    leg: Leg,
    framer: Framer,
    terms: &'t Terms,
    context: &'t LoginContext<'t>,
    /// Version that both sides use.
    negotiated: u32,
    key: Option<CancelKey>,
    server_version: Option<String>,
    /// What the server says of itself (since version 14).
    standby: Option<bool>,
    target: T,
}

/// What the client has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Nothing,
    Anything,
    /// The choice of a SASL mechanism; `stripped`: the server offered channel binding and the client was not told.
    Mechanism {
        stripped: bool,
    },
}

impl<T: Fn(u32, Bytes) -> CancelTarget> Conversation<'_, '_, T> {
    /// Queues a message for the client.
    fn tell(&mut self, raw: &Bytes) {
        match (&mut self.greeting.held, self.client.as_deref_mut()) {
            (_, None) => {}
            (Some(held), Some(_)) => held.push(raw.clone()),
            (None, Some(client)) => client.send(raw.clone()),
        }
    }

    fn tell_with(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), WireError>) -> Result<(), Fatal> {
        let mut out = BytesMut::new();
        write(&mut out).map_err(|error| Fatal::protocol(&error))?;
        self.tell(&out.freeze());
        Ok(())
    }

    /// One of both sides uses TLS that the other does not see.
    fn on_tls(&self) -> bool {
        let client = self
            .client
            .as_ref()
            .is_some_and(|client| client.stream().is_encrypted());
        client || self.leg.stream().is_encrypted()
    }

    /// The next message of the server.
    async fn server_message(&mut self) -> Result<Message, Failure> {
        next_message(&mut self.leg, &mut self.framer).await
    }

    /// What both ways do alike with a message: `false` where it is another one.
    fn common(&mut self, message: &Message) -> Result<bool, Failure> {
        let decoded = match message.tag {
            tag::NEGOTIATE_PROTOCOL_VERSION
            | tag::PARAMETER_STATUS
            | tag::BACKEND_KEY_DATA
            | tag::NOTICE_RESPONSE
            | tag::ERROR_RESPONSE => BackendMessage::decode(message.tag, message.body()),
            _ => return Ok(false),
        };
        match decoded.map_err(|error| Fatal::database_protocol(&error))? {
            BackendMessage::NegotiateProtocolVersion(offer) => {
                // An answer to what we asked, not to what the client asked: `tell_version` speaks for both.
                let offered = VERSION_3_0 | offer.minor();
                if offered > self.negotiated || offer.unknown_count > 0 {
                    return Err(login_failed("the server negotiates what was not asked").into());
                }
                self.negotiated = if offer.minor() >= 2 { offered } else { VERSION_3_0 };
            }
            BackendMessage::ParameterStatus { name, value } => {
                match name {
                    b"server_version" => {
                        self.server_version = Some(String::from_utf8_lossy(value).into_owned());
                    }
                    b"in_hot_standby" => self.standby = Some(value == b"on"),
                    _ => {}
                }
                self.tell(&message.raw);
            }
            BackendMessage::BackendKeyData(BackendKeyData { process_id, key }) => {
                let target = (self.target)(process_id, Bytes::copy_from_slice(key));
                let own = self
                    .context
                    .cancels
                    .register(target, self.negotiated)
                    .map_err(|error| Fatal::new(EndKind::Limit, "53000", error))?;
                self.tell_with(|out| write::backend::backend_key_data(out, own.process_id(), own.key()))?;
                self.key = Some(own);
            }
            BackendMessage::NoticeResponse(_) => {
                self.tell_version()?;
                self.tell(&message.raw);
            }
            BackendMessage::ErrorResponse(fields) => {
                return Err(self.server_refused(message, &fields));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn server_refused(&mut self, message: &Message, fields: &Fields<'_>) -> Failure {
        match &self.context.upstream.login {
            Login::PassThrough
                if self.greeting.held.is_some() && fields.sqlstate() == Some(b"57P03".as_slice()) =>
            {
                login_not_now().into()
            }
            Login::PassThrough => {
                // The client's own login: it gets the server's own words.
                self.tell(&message.raw);
                Failure::Told(EndKind::Login)
            }
            Login::Own(_) => {
                let state = fields.sqlstate().unwrap_or_default();
                let text = fields.get(b'M').unwrap_or_default();
                tracing::warn!(
                    upstream = %self.context.upstream.name,
                    sqlstate = %String::from_utf8_lossy(state),
                    message = %String::from_utf8_lossy(text),
                    "the database refuses the policy's login"
                );
                // A missing database or too many connections is the client's to know, the rest is the log's.
                let (sqlstate, why) = match state {
                    b"3D000" => ("3D000", "the database does not exist".to_owned()),
                    b"53300" => ("53300", "the database has too many connections".to_owned()),
                    b"57P03" => ("57P03", "the database is starting up or shutting down".to_owned()),
                    other => (
                        "08004",
                        format!(
                            "it refuses the policy's credentials ({})",
                            String::from_utf8_lossy(other)
                        ),
                    ),
                };
                Fatal::new(
                    EndKind::Login,
                    sqlstate,
                    format!("login at the database failed: {why}"),
                )
                .into()
            }
        }
    }

    /// Tells the client the version, once, where it is not what the client asked for.
    fn tell_version(&mut self) -> Result<(), Fatal> {
        if self.greeting.told_version {
            return Ok(());
        }
        self.greeting.told_version = true;
        if self.negotiated == self.terms.asked && self.terms.unknown.is_empty() {
            return Ok(());
        }
        let (terms, newest) = (self.terms, self.negotiated);
        let unknown = terms.unknown.iter().map(AsRef::as_ref);
        self.tell_with(|out| write::backend::negotiate_protocol_version(out, newest, unknown))
    }

    /// ReadyForQuery, as it must be after a login.
    fn ready(message: &Message) -> Result<(), Fatal> {
        match BackendMessage::decode(message.tag, message.body()) {
            Ok(BackendMessage::ReadyForQuery(TransactionStatus::Idle)) => Ok(()),
            Ok(_) => Err(login_failed("the server is not ready after the login")),
            Err(error) => Err(Fatal::database_protocol(&error)),
        }
    }

    async fn pass_through(&mut self) -> Result<(), Failure> {
        let mut client_framer = Framer::new(Arc::clone(self.context.client_caps));
        let mut answer = Answer::Nothing;
        let mut authenticated = false;
        loop {
            self.leg.flush().await.map_err(|_| Fatal::database_gone())?;
            if answer != Answer::Nothing {
                self.greeting.asked = true;
                self.greeting.release(self.client.as_deref_mut());
            }
            let Some(client) = self.client.as_deref_mut() else {
                return Err(login_failed("nobody can answer for the client").into());
            };
            client.flush().await.map_err(Failure::ClientGone)?;
            let message = if answer == Answer::Nothing {
                self.server_message().await?
            } else {
                // The server may end the wait (its own timeout), the client may answer or go.
                let server = next_message(&mut self.leg, &mut self.framer);
                let client = next_client_message(client, &mut client_framer);
                let from_client = tokio::select! {
                    message = server => Ok(message?),
                    message = client => Err(message?),
                };
                match from_client {
                    Ok(message) => message,
                    Err(message) => {
                        self.client_answer(&message, answer)?;
                        answer = Answer::Nothing;
                        self.leg.send(message.raw);
                        continue;
                    }
                }
            };
            if self.common(&message)? {
                continue;
            }
            match message.tag {
                tag::AUTHENTICATION if !authenticated => {
                    self.tell_version()?;
                    (answer, authenticated) = self.authentication(&message)?;
                }
                tag::READY_FOR_QUERY if authenticated => return Ok(Self::ready(&message)?),
                tag => return Err(Fatal::database_protocol(&WireError::UnknownTag { tag }).into()),
            }
        }
    }

    /// Passes a request for authentication on: what it asks of the client, and whether it says that all is done.
    fn authentication(&mut self, message: &Message) -> Result<(Answer, bool), Failure> {
        let request =
            Authentication::decode(message.body()).map_err(|error| Fatal::database_protocol(&error))?;
        let answer = match request {
            Authentication::Ok => {
                self.tell(&message.raw);
                return Ok((Answer::Nothing, true));
            }
            Authentication::Sasl(mechanisms) => {
                // Channel binding ties the login to one TLS leg; here there are two, or one that the other end of
                // the login does not see.
                let two_legs = self.on_tls();
                let plus = SCRAM_SHA_256_PLUS.as_bytes();
                let stripped = two_legs && mechanisms.iter().any(|name| name == plus);
                if !stripped {
                    self.tell(&message.raw);
                    return Ok((Answer::Mechanism { stripped }, false));
                }
                let kept: Vec<&[u8]> = mechanisms.iter().filter(|name| *name != plus).collect();
                if kept.is_empty() {
                    return Err(binding_impossible("the server offers SCRAM-SHA-256-PLUS only").into());
                }
                self.tell_with(|out| write::backend::authentication_sasl(out, kept))?;
                return Ok((Answer::Mechanism { stripped }, false));
            }
            Authentication::SaslFinal(_) => Answer::Nothing,
            Authentication::KerberosV5
            | Authentication::CleartextPassword
            | Authentication::Md5Password { .. }
            | Authentication::Gss
            | Authentication::GssContinue(_)
            | Authentication::Sspi
            | Authentication::SaslContinue(_) => Answer::Anything,
        };
        self.tell(&message.raw);
        Ok((answer, false))
    }

    /// Looks at what the client answers.
    fn client_answer(&self, message: &Message, answer: Answer) -> Result<(), Failure> {
        if message.tag == tag::TERMINATE {
            return Err(Failure::client_closed());
        }
        if message.tag != tag::PASSWORD {
            let error = WireError::UnknownTag { tag: message.tag };
            return Err(Fatal::protocol(&error).into());
        }
        if let Answer::Mechanism { stripped } = answer {
            let initial =
                SaslInitialResponse::decode(message.body()).map_err(|error| Fatal::protocol(&error))?;
            let two_legs = self.on_tls();
            if two_legs && initial.mechanism == SCRAM_SHA_256_PLUS.as_bytes() {
                return Err(binding_impossible("the client requires it").into());
            }
            // RFC 5802, section 6: `y` = "I could bind, and you did not offer it". The server did.
            if stripped && initial.data.is_some_and(|data| data.starts_with(b"y")) {
                return Err(binding_impossible(
                    "the client uses TLS and could bind its login to it, which the server would take for a downgrade attack",
                )
                .into());
            }
        }
        Ok(())
    }

    async fn with(&mut self, credentials: &Credentials, binding: Option<Vec<u8>>) -> Result<(), Failure> {
        let mut scram: Option<ScramSha256> = None;
        let mut proved = false;
        let mut authenticated = false;
        loop {
            self.leg.flush().await.map_err(|_| Fatal::database_gone())?;
            let message = self.server_message().await?;
            if self.common(&message)? {
                continue;
            }
            match message.tag {
                tag::AUTHENTICATION if !authenticated => {
                    let request = Authentication::decode(message.body())
                        .map_err(|error| Fatal::database_protocol(&error))?;
                    match request {
                        Authentication::Ok => {
                            if scram.is_some() && !proved {
                                return Err(login_failed(
                                    "the server did not prove that it knows the password",
                                )
                                .into());
                            }
                            authenticated = true;
                            self.tell_version()?;
                            self.tell_with(|out| {
                                write::backend::authentication_ok(out);
                                Ok(())
                            })?;
                        }
                        other => {
                            self.answer(other, credentials, binding.as_deref(), &mut scram, &mut proved)?
                        }
                    }
                }
                tag::READY_FOR_QUERY if authenticated => return Ok(Self::ready(&message)?),
                tag => return Err(Fatal::database_protocol(&WireError::UnknownTag { tag }).into()),
            }
        }
    }

    fn answer(
        &mut self,
        request: Authentication<'_>,
        credentials: &Credentials,
        binding: Option<&[u8]>,
        scram: &mut Option<ScramSha256>,
        proved: &mut bool,
    ) -> Result<(), Fatal> {
        let failed = |error: std::io::Error| login_failed(&error.to_string());
        let sent = match request {
            Authentication::CleartextPassword => self
                .leg
                .send_with(|out| write::frontend::password(out, &credentials.password)),
            Authentication::Md5Password { salt } => {
                let answer = md5_hash(credentials.username.as_bytes(), &credentials.password, salt);
                self.leg
                    .send_with(|out| write::frontend::password(out, answer.as_bytes()))
            }
            Authentication::Sasl(mechanisms) => {
                let offered = |name: &str| mechanisms.iter().any(|offered| offered == name.as_bytes());
                let (mechanism, channel) = match binding {
                    Some(binding) if offered(SCRAM_SHA_256_PLUS) => (
                        SCRAM_SHA_256_PLUS,
                        ChannelBinding::tls_server_end_point(binding.to_vec()),
                    ),
                    Some(_) if offered(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
                    None if offered(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
                    Some(_) | None => {
                        return Err(login_failed(
                            "the server offers no login with a password (SCRAM-SHA-256)",
                        ));
                    }
                };
                let state = ScramSha256::new(&credentials.password, channel);
                let sent = self.leg.send_with(|out| {
                    write::frontend::sasl_initial_response(out, mechanism.as_bytes(), state.message())
                });
                *scram = Some(state);
                sent
            }
            Authentication::SaslContinue(data) => {
                let state = scram.as_mut().ok_or_else(|| login_failed("SASL out of order"))?;
                state.update(data).map_err(failed)?;
                self.leg
                    .send_with(|out| write::frontend::sasl_response(out, state.message()))
            }
            Authentication::SaslFinal(data) => {
                let state = scram.as_mut().ok_or_else(|| login_failed("SASL out of order"))?;
                state.finish(data).map_err(failed)?;
                *proved = true;
                Ok(())
            }
            Authentication::Ok
            | Authentication::KerberosV5
            | Authentication::Gss
            | Authentication::GssContinue(_)
            | Authentication::Sspi => {
                return Err(login_failed(
                    "the server asks for a login without a password, which `credentials` cannot give",
                ));
            }
        };
        sent.map_err(|error| Fatal::protocol(&error))
    }
}

fn binding_impossible(why: &str) -> Fatal {
    Fatal::new(
        EndKind::Login,
        "28000",
        format!("channel binding cannot pass through weir-sidecar: {why}"),
    )
    .hint("set channel_binding=disable and sslmode=disable towards the sidecar, or let it log in by itself (credentials in the policy)")
}

async fn next_message(leg: &mut Leg, framer: &mut Framer) -> Result<Message, Failure> {
    loop {
        match framer.next(&mut leg.received) {
            Ok(Some(Frame::Whole(message))) => return Ok(message),
            Ok(Some(Frame::Head { tag, length, .. } | Frame::TooLong { tag, length })) => {
                return Err(Fatal::database_protocol(&WireError::BadLength { tag, length }).into());
            }
            Ok(Some(Frame::Part { .. })) => {
                return Err(Fatal::database_gone().into());
            }
            Ok(None) => {}
            Err(error) => return Err(Fatal::database_protocol(&error).into()),
        }
        match leg.fill().await {
            Ok(0) | Err(_) => return Err(Fatal::database_gone().into()),
            Ok(_) => {}
        }
    }
}

async fn next_client_message(leg: &mut Leg, framer: &mut Framer) -> Result<Message, Failure> {
    loop {
        match framer.next(&mut leg.received) {
            Ok(Some(Frame::Whole(message))) => return Ok(message),
            Ok(Some(Frame::Head { tag, length, .. } | Frame::TooLong { tag, length })) => {
                return Err(Fatal::protocol(&WireError::BadLength { tag, length }).into());
            }
            Ok(Some(Frame::Part { .. })) => return Err(Failure::client_closed()),
            Ok(None) => {}
            Err(error) => return Err(Fatal::protocol(&error).into()),
        }
        match leg.fill().await {
            Ok(0) => return Err(Failure::client_closed()),
            Ok(_) => {}
            Err(error) => return Err(Failure::ClientGone(error)),
        }
    }
}

/// What can go wrong with a question of our own.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The connection is gone or speaks nonsense.
    #[error("{0}")]
    Connection(String),
    /// The server refused it.
    #[error("{sqlstate}: {message}")]
    Server {
        /// SQLSTATE.
        sqlstate: String,
        /// For the log.
        message: String,
    },
    /// The answer is not what we asked for.
    #[error("the answer is not understood: {0}")]
    Answer(String),
}

/// Longest answer to one question of ours.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Asks a simple Query of our own on an idle connection and gives its rows of two text cells. What the server says
/// by itself meanwhile (ParameterStatus and the like) goes to `aside`.
///
/// # Errors
/// [`QueryError`].
pub async fn ask(
    leg: &mut Leg,
    framer: &mut Framer,
    sql: &str,
    aside: &mut Vec<Bytes>,
) -> Result<Vec<(String, String)>, QueryError> {
    let mut out = BytesMut::new();
    write::frontend::query(&mut out, session_state::without_jit(sql).as_bytes())
        .map_err(|error| QueryError::Answer(error.to_string()))?;
    leg.send(out.freeze());
    leg.flush()
        .await
        .map_err(|error| QueryError::Connection(error.to_string()))?;
    let mut rows = Vec::new();
    let mut size = 0_usize;
    let mut failed = None;
    loop {
        // A long row (a view's definition) may come in pieces.
        let (tag, body) = whole(leg, framer).await?;
        let message =
            BackendMessage::decode(tag, &body).map_err(|error| QueryError::Connection(error.to_string()))?;
        match message {
            BackendMessage::RowDescription(_) | BackendMessage::CommandComplete(_) => {}
            BackendMessage::DataRow(row) => {
                size += body.len();
                if size > ANSWER_BYTES_MAX {
                    return Err(QueryError::Answer("it is too long".to_owned()));
                }
                let mut cells = row.cells().map(|cell| {
                    cell.and_then(|bytes| std::str::from_utf8(bytes).ok())
                        .map(str::to_owned)
                        .ok_or_else(|| QueryError::Answer("a cell is NULL or not UTF-8".to_owned()))
                });
                match (cells.next(), cells.next(), cells.next()) {
                    (Some(first), Some(second), None) => rows.push((first?, second?)),
                    _ => return Err(QueryError::Answer("a row has not two cells".to_owned())),
                }
            }
            BackendMessage::ErrorResponse(fields) => {
                let field = |code| String::from_utf8_lossy(fields.get(code).unwrap_or_default()).into_owned();
                failed = Some(QueryError::Server {
                    sqlstate: field(b'C'),
                    message: field(b'M'),
                });
                if fields.ends_session() {
                    break;
                }
            }
            BackendMessage::NoticeResponse(_) => {}
            BackendMessage::ParameterStatus { .. } | BackendMessage::NotificationResponse { .. } => {
                aside.push(encoded(tag, &body)?);
            }
            BackendMessage::ReadyForQuery(TransactionStatus::Idle) => break,
            _ => return Err(QueryError::Connection("an unexpected message".to_owned())),
        }
    }
    match failed {
        None => Ok(rows),
        Some(error) => Err(error),
    }
}

fn encoded(tag: u8, body: &[u8]) -> Result<Bytes, QueryError> {
    let mut out = BytesMut::new();
    write::message(&mut out, tag, |out| {
        out.extend_from_slice(body);
        Ok(())
    })
    .map_err(|error| QueryError::Answer(error.to_string()))?;
    Ok(out.freeze())
}

/// A message, put together if it came in pieces.
async fn whole(leg: &mut Leg, framer: &mut Framer) -> Result<(u8, Bytes), QueryError> {
    let mut open: Option<(u8, BytesMut)> = None;
    loop {
        let frame = framer
            .next(&mut leg.received)
            .map_err(|error| QueryError::Connection(error.to_string()))?;
        match (frame, &mut open) {
            (Some(Frame::Whole(message)), None) => return Ok((message.tag, message.body_bytes())),
            (Some(Frame::Head { tag, prefix, .. }), None) => {
                open = Some((tag, BytesMut::from(prefix.get(5..).unwrap_or_default())));
            }
            (Some(Frame::Part { bytes, last }), Some((tag, body))) => {
                if body.len() + bytes.len() > ANSWER_BYTES_MAX {
                    return Err(QueryError::Answer("it is too long".to_owned()));
                }
                body.extend_from_slice(&bytes);
                if last {
                    return Ok((*tag, std::mem::take(body).freeze()));
                }
            }
            (Some(_), _) => return Err(QueryError::Connection("a message in disorder".to_owned())),
            (None, _) => match leg.fill().await {
                Ok(0) => {
                    return Err(QueryError::Connection(
                        "the database closed the connection".to_owned(),
                    ));
                }
                Ok(_) => {}
                Err(error) => return Err(QueryError::Connection(error.to_string())),
            },
        }
    }
}

/// A session of the sidecar's own, with the policy's credentials, to read a database's catalog.
///
/// # Errors
/// Why not.
pub async fn log_in_for_catalog(context: &LoginContext<'_>, database: &str) -> Result<LoggedIn, Failure> {
    let Login::Own(credentials) = &context.upstream.login else {
        return Err(login_failed("the sidecar has no login of its own").into());
    };
    let terms = Terms {
        version: VERSION_3_0,
        asked: VERSION_3_0,
        unknown: Vec::new(),
        parameters: vec![
            (
                Bytes::from_static(b"application_name"),
                Bytes::from_static(b"weir-sidecar"),
            ),
            (
                Bytes::from_static(b"client_encoding"),
                Bytes::from_static(b"UTF8"),
            ),
        ],
        user: Bytes::copy_from_slice(credentials.username.as_bytes()),
        database_named: Some(Bytes::copy_from_slice(database.as_bytes())),
    };
    log_in(None, &terms, context).await
}
