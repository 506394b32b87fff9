//! The index: SQLite over what the log says. Nobody trusts it: it is a pure function of the log and can be made anew
//! from it; two indexes of one log have the same canonical dump.

use std::fmt::Write as _;
use std::path::Path;

use receipts::{
    Action, ActionStart, Body, BootId, Digest, Event, OutcomeStatus, ReadEvent, SessionId, TransactionState,
    Verdict, Who, leaf_hash, read_event,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter};
use serde::{Deserialize, Serialize};

use crate::log::PlacedGroup;

/// Counts up when the tables change; an index of another number is made anew.
const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (boot BLOB NOT NULL, first_seq INTEGER NOT NULL, count INTEGER NOT NULL, idx INTEGER NOT NULL,
  root BLOB NOT NULL, PRIMARY KEY (boot, first_seq)) WITHOUT ROWID;
CREATE TABLE chains (boot BLOB PRIMARY KEY, next_seq INTEGER NOT NULL, last_leaf BLOB NOT NULL, program TEXT,
  closed INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE peers (boot BLOB PRIMARY KEY, pod TEXT NOT NULL, namespace TEXT NOT NULL, workload TEXT NOT NULL,
  lost INTEGER) WITHOUT ROWID;
CREATE INDEX peers_pod ON peers (pod);
CREATE TABLE events (idx INTEGER NOT NULL, part INTEGER NOT NULL, kind TEXT NOT NULL, time_us INTEGER NOT NULL,
  boot BLOB NOT NULL, seq INTEGER NOT NULL, session BLOB, statement INTEGER,
  workload TEXT, user TEXT, agent TEXT, run TEXT, application TEXT, database_user TEXT, assurance TEXT,
  endpoint TEXT, database TEXT, command TEXT, text TEXT, policy TEXT, rule TEXT, code TEXT, verdict TEXT,
  reason TEXT, status TEXT, sqlstate TEXT, rows_returned INTEGER, rows_affected INTEGER, bytes INTEGER,
  duration_us INTEGER, masked TEXT, txn INTEGER, PRIMARY KEY (idx, part)) WITHOUT ROWID;
CREATE INDEX events_time ON events (time_us);
CREATE INDEX events_session ON events (session, statement);
CREATE INDEX events_run ON events (run) WHERE run IS NOT NULL;
CREATE INDEX events_verdict ON events (verdict) WHERE verdict <> 'permit';
CREATE TABLE touches (idx INTEGER NOT NULL, part INTEGER NOT NULL, relation TEXT NOT NULL, action TEXT NOT NULL,
  columns TEXT NOT NULL, PRIMARY KEY (relation, idx, part, action)) WITHOUT ROWID;
CREATE INDEX touches_idx ON touches (idx, part);
CREATE TABLE edges (source TEXT NOT NULL, target TEXT NOT NULL, transformation TEXT NOT NULL, mask TEXT NOT NULL,
  idx INTEGER NOT NULL, session BLOB, txn INTEGER, time_us INTEGER NOT NULL,
  PRIMARY KEY (source, target, transformation, mask, idx)) WITHOUT ROWID;
CREATE INDEX edges_target ON edges (target);
CREATE TABLE transactions (session BLOB NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (session, number)) WITHOUT ROWID;
";

/// Tables of the canonical dump, with the order of their rows.
const DUMP: [(&str, &str); 8] = [
    ("meta", "name"),
    ("groups", "boot, first_seq"),
    ("chains", "boot"),
    ("peers", "boot"),
    ("events", "idx, part"),
    ("touches", "relation, idx, part, action"),
    ("edges", "source, target, transformation, mask, idx"),
    ("transactions", "session, number"),
];

/// Why the index does not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite.
    #[error("the index: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] crate::LogError),
    /// A question that is not one.
    #[error("{0}")]
    BadQuestion(String),
}

/// The index.
#[derive(Debug)]
pub struct Index {
    pub(crate) connection: Connection,
}

/// Which events an audit shows. Everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditFilter {
    /// Relation, with or without its schema, or `schema.relation.column`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub object: Option<String>,
    /// Person, agent, workload, application or database role; `*` stands for anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// Run of an agent or job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<String>,
    /// Microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_us: Option<i64>,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verdict: Option<Verdict>,
    /// At most so many, the latest; 1000 if not given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<u32>,
}

/// One line of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Log index, or place in the spool folder.
    pub index: u64,
    /// Kind of the event.
    pub kind: String,
    /// Microseconds since 1970-01-01 UTC.
    pub time_us: i64,
    /// Recording process.
    pub boot: String,
    /// Its number there.
    pub seq: u64,
    /// Client session.
    pub session: Option<String>,
    /// Statement within the session.
    pub statement: Option<u64>,
    /// Pod or service account.
    pub workload: Option<String>,
    /// Person.
    pub user: Option<String>,
    /// AI agent.
    pub agent: Option<String>,
    /// Its run.
    pub run: Option<String>,
    /// Application, as it calls itself.
    pub application: Option<String>,
    /// Role the database sees.
    pub database_user: Option<String>,
    /// How sure each of these is, in the order workload, user, agent, run, database_user.
    pub assurance: Option<String>,
    /// Database server.
    pub endpoint: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// Command.
    pub command: Option<String>,
    /// Text without literals.
    pub text: Option<String>,
    /// Relations touched: `action relation`.
    pub objects: Vec<String>,
    /// Policy that decided.
    pub policy: Option<String>,
    /// Rule that decided.
    pub rule: Option<String>,
    /// Code of a refusal.
    pub code: Option<String>,
    /// What was decided.
    pub verdict: Option<String>,
    /// Why, for refusals.
    pub reason: Option<String>,
    /// How it ended.
    pub status: Option<String>,
    /// SQLSTATE.
    pub sqlstate: Option<String>,
    /// Rows delivered.
    pub rows_returned: Option<u64>,
    /// Rows changed.
    pub rows_affected: Option<u64>,
    /// Bytes delivered.
    pub bytes: Option<u64>,
    /// Microseconds.
    pub duration_us: Option<u64>,
    /// Masked result columns, `name: mask`.
    pub masked: Option<String>,
    /// State of its transaction, where known.
    pub transaction: Option<String>,
}

/// The pod that delivers a chain, from its verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainPod {
    /// UID of the pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// SPIFFE ID without the pod.
    pub workload: String,
}

/// A chain without an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenChain {
    pub(crate) boot: BootId,
    pub(crate) next_seq: u64,
    pub(crate) pod: ChainPod,
}

/// Begins the reason of the gap that stands for the end of a gone pod's chain.
pub(crate) const POD_GONE: &str = "pod gone without closing its chain";

/// What the index knows of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownChain {
    pub(crate) next_seq: u64,
    pub(crate) last_leaf: Digest,
}

impl Index {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let connection = Connection::open(path)?;
        // Losing the last commits costs nothing: they are read from the log again.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA busy_timeout = 5000;",
        )?;
        Self::prepare(connection)
    }

    /// Opens the file to ask it, beside the collector that writes it.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn open_to_read(path: &Path) -> Result<Self, IndexError> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.execute_batch("PRAGMA busy_timeout = 5000;")?;
        Ok(Self { connection })
    }

    /// An index for one question, in memory.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn in_memory() -> Result<Self, IndexError> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, IndexError> {
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            let transaction = connection.transaction()?;
            for (table, _) in DUMP {
                transaction.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
            }
            transaction.execute_batch(SCHEMA)?;
            transaction.execute("INSERT INTO meta VALUES ('next', 0)", [])?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(Self { connection })
    }

    /// Log index after the last entry that is in it.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn next(&self) -> Result<u64, IndexError> {
        Ok(self
            .connection
            .query_row("SELECT value FROM meta WHERE name = 'next'", [], |row| row.get(0))?)
    }

    /// Adds groups that follow on what is in it.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn add(&mut self, groups: &[PlacedGroup]) -> Result<(), IndexError> {
        let transaction = self.connection.transaction()?;
        for placed in groups {
            add_group(&transaction, placed)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Adds one event without a group, for a folder whose last events are not signed yet.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn add_unsigned(&mut self, index: u64, bytes: &[u8]) -> Result<(), IndexError> {
        let transaction = self.connection.transaction()?;
        add_event(&transaction, index, 0, bytes)?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes everything into the one file and closes it.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn close(self) -> Result<(), IndexError> {
        self.connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE;")?;
        self.connection.close().map_err(|(_, error)| error)?;
        Ok(())
    }

    /// Adds what the log has beyond it.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn catch_up(&mut self, log: &crate::Log) -> Result<(), IndexError> {
        loop {
            let next = self.next()?;
            if next >= log.size() {
                return Ok(());
            }
            let mut batch = Vec::new();
            log.each_group(next, next.saturating_add(4096), |placed| {
                batch.push(placed.clone())
            })?;
            self.add(&batch)?;
        }
    }

    pub(crate) fn chain(&self, boot: &BootId) -> Result<Option<KnownChain>, IndexError> {
        let found = self
            .connection
            .prepare_cached("SELECT next_seq, last_leaf FROM chains WHERE boot = ?1")?
            .query_row(params![boot.0], |row| {
                let leaf: Vec<u8> = row.get(1)?;
                Ok(KnownChain {
                    next_seq: row.get(0)?,
                    last_leaf: Digest::from_slice(&leaf).unwrap_or(Digest::ZERO),
                })
            })
            .optional()?;
        Ok(found)
    }

    /// The pod that delivers a chain, where one was seen.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn pod_of(&self, boot: &BootId) -> Result<Option<ChainPod>, IndexError> {
        Ok(self
            .connection
            .prepare_cached("SELECT pod, namespace, workload FROM peers WHERE boot = ?1")?
            .query_row(params![boot.0], |row| {
                Ok(ChainPod {
                    uid: row.get(0)?,
                    namespace: row.get(1)?,
                    workload: row.get(2)?,
                })
            })
            .optional()?)
    }

    /// Chains that pods delivered and that have neither an end nor a gap in its place.
    pub(crate) fn open_pod_chains(&self) -> Result<Vec<OpenChain>, IndexError> {
        self.pod_chains("c.closed = 0 AND p.lost IS NULL", 0)
    }

    /// Chains of gone pods that were ended by a gap, since that time.
    pub(crate) fn lost_chains(&self, since_us: i64) -> Result<Vec<OpenChain>, IndexError> {
        self.pod_chains(
            "EXISTS (SELECT 1 FROM events e WHERE e.idx = p.lost AND e.time_us >= ?1)",
            since_us,
        )
    }

    fn pod_chains(&self, condition: &str, since: i64) -> Result<Vec<OpenChain>, IndexError> {
        let mut statement = self.connection.prepare(&format!(
            "SELECT p.boot, c.next_seq, p.pod, p.namespace, p.workload FROM peers p JOIN chains c ON c.boot = p.boot
             WHERE {condition} AND ?1 IS NOT NULL ORDER BY p.boot"
        ))?;
        let rows = statement.query_map(params![since], |row| {
            let boot: Vec<u8> = row.get(0)?;
            Ok(OpenChain {
                boot: BootId::from_slice(&boot).unwrap_or(BootId([0; 16])),
                next_seq: row.get(1)?,
                pod: ChainPod {
                    uid: row.get(2)?,
                    namespace: row.get(3)?,
                    workload: row.get(4)?,
                },
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The stored group that starts there: (count, index, root).
    pub(crate) fn group(
        &self,
        boot: &BootId,
        first_seq: u64,
    ) -> Result<Option<(u16, u64, Digest)>, IndexError> {
        let found = self
            .connection
            .prepare_cached("SELECT count, idx, root FROM groups WHERE boot = ?1 AND first_seq = ?2")?
            .query_row(params![boot.0, first_seq], |row| {
                let root: Vec<u8> = row.get(2)?;
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    Digest::from_slice(&root).unwrap_or(Digest::ZERO),
                ))
            })
            .optional()?;
        Ok(found)
    }

    /// Whether any stored group has one of these numbers.
    pub(crate) fn overlaps(&self, boot: &BootId, first_seq: u64, last_seq: u64) -> Result<bool, IndexError> {
        let found: bool = self.connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM groups WHERE boot = ?1 AND first_seq <= ?3 AND first_seq + count > ?2)",
            params![boot.0, first_seq, last_seq],
            |row| row.get(0),
        )?;
        Ok(found)
    }

    /// Chains of collectors that were not closed: boot, last number, last leaf.
    pub(crate) fn open_collector_chains(&self) -> Result<Vec<(BootId, u64, Digest)>, IndexError> {
        let mut statement = self.connection.prepare(
            "SELECT boot, next_seq, last_leaf FROM chains WHERE program LIKE 'weir-collector%' AND closed = 0 ORDER BY boot",
        )?;
        let rows = statement.query_map([], |row| {
            let (boot, next, leaf): (Vec<u8>, u64, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(BootId::from_slice(&boot)
                .zip(Digest::from_slice(&leaf))
                .map(|(boot, leaf)| (boot, next.saturating_sub(1), leaf)))
        })?;
        Ok(rows
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// The canonical dump: every row of every table, in a fixed order.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn dump(&self) -> Result<String, IndexError> {
        let mut text = String::new();
        for (table, order) in DUMP {
            let mut statement = self
                .connection
                .prepare(&format!("SELECT * FROM {table} ORDER BY {order}"))?;
            let width = statement.column_count();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                text.push_str(table);
                for column in 0..width {
                    let value: rusqlite::types::Value = row.get(column)?;
                    let _ = match value {
                        rusqlite::types::Value::Null => write!(text, "|-"),
                        rusqlite::types::Value::Integer(number) => write!(text, "|{number}"),
                        rusqlite::types::Value::Real(number) => write!(text, "|{number}"),
                        rusqlite::types::Value::Text(value) => write!(text, "|{value:?}"),
                        rusqlite::types::Value::Blob(value) => write!(text, "|{}", hex::encode(value)),
                    };
                }
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// What happened, the latest last.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, IndexError> {
        let mut wanted = vec![
            "e.kind IN ('db.action', 'db.deny', 'db.outcome_unknown', 'auth.fail', 'gap', 'policy.change')"
                .to_owned(),
        ];
        let mut values: Vec<rusqlite::types::Value> = Vec::new();
        if let Some(object) = &filter.object {
            let (relation, column) = split_object(object);
            let mut tests = Vec::new();
            for (relation, column) in [(object.as_str(), None), (relation, column)] {
                let mut test = if relation.contains('.') {
                    values.push(relation.to_owned().into());
                    format!("t.relation = ?{}", values.len())
                } else {
                    values.push(relation.to_owned().into());
                    values.push(format!("%.{}", escape_like(relation)).into());
                    format!(
                        "(t.relation = ?{} OR t.relation LIKE ?{} ESCAPE '\\')",
                        values.len() - 1,
                        values.len()
                    )
                };
                if let Some(column) = column {
                    values.push(column.to_owned().into());
                    let _ = write!(
                        test,
                        " AND EXISTS (SELECT 1 FROM json_each(t.columns) WHERE value IN (?{}, '*'))",
                        values.len()
                    );
                }
                tests.push(format!("({test})"));
                if column.is_none() && relation == object && !object.contains('.') {
                    break;
                }
            }
            wanted.push(format!(
                "EXISTS (SELECT 1 FROM touches t WHERE t.idx = e.idx AND t.part = e.part AND ({}))",
                tests.join(" OR ")
            ));
        }
        if let Some(actor) = &filter.actor {
            values.push(glob(actor).into());
            let number = values.len();
            let tests: Vec<String> = ["user", "agent", "workload", "application", "database_user"]
                .iter()
                .map(|column| format!("e.{column} GLOB ?{number}"))
                .collect();
            wanted.push(format!("({})", tests.join(" OR ")));
        }
        if let Some(run) = &filter.run {
            values.push(run.clone().into());
            wanted.push(format!("e.run = ?{}", values.len()));
        }
        if let Some(since) = filter.since_us {
            values.push(since.into());
            wanted.push(format!("e.time_us >= ?{}", values.len()));
        }
        if let Some(verdict) = filter.verdict {
            values.push(verdict.name().to_owned().into());
            wanted.push(format!("e.verdict = ?{}", values.len()));
        }
        values.push(i64::from(filter.limit.unwrap_or(1000)).into());
        let sql = format!(
            "SELECT e.idx, e.kind, e.time_us, e.boot, e.seq, e.session, e.statement, e.workload, e.user, e.agent, e.run,
               e.application, e.database_user, e.assurance, e.endpoint, e.database, e.command, e.text, e.policy, e.rule,
               e.code, e.verdict, e.reason, e.status, e.sqlstate, e.rows_returned, e.rows_affected, e.bytes,
               e.duration_us, e.masked,
               (SELECT x.state FROM transactions x WHERE x.session = e.session AND x.number = e.txn),
               (SELECT json_group_array(t.action || ' ' || t.relation ORDER BY t.action, t.relation)
                  FROM touches t WHERE t.idx = e.idx AND t.part = e.part)
             FROM events e WHERE {} ORDER BY e.idx DESC, e.part DESC LIMIT ?{}",
            wanted.join(" AND "),
            values.len()
        );
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map(params_from_iter(values), |row| {
            let boot: Vec<u8> = row.get(3)?;
            let session: Option<Vec<u8>> = row.get(5)?;
            let objects: Option<String> = row.get(31)?;
            Ok(AuditRow {
                index: row.get(0)?,
                kind: row.get(1)?,
                time_us: row.get(2)?,
                boot: hex::encode(boot),
                seq: row.get(4)?,
                session: session.map(hex::encode),
                statement: row.get(6)?,
                workload: row.get(7)?,
                user: row.get(8)?,
                agent: row.get(9)?,
                run: row.get(10)?,
                application: row.get(11)?,
                database_user: row.get(12)?,
                assurance: row.get(13)?,
                endpoint: row.get(14)?,
                database: row.get(15)?,
                command: row.get(16)?,
                text: row.get(17)?,
                policy: row.get(18)?,
                rule: row.get(19)?,
                code: row.get(20)?,
                verdict: row.get(21)?,
                reason: row.get(22)?,
                status: row.get(23)?,
                sqlstate: row.get(24)?,
                rows_returned: row.get(25)?,
                rows_affected: row.get(26)?,
                bytes: row.get(27)?,
                duration_us: row.get(28)?,
                masked: row.get(29)?,
                transaction: row.get(30)?,
                objects: objects
                    .and_then(|text| serde_json::from_str(&text).ok())
                    .unwrap_or_default(),
            })
        })?;
        let mut rows: Vec<AuditRow> = rows.collect::<Result<_, _>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// Log indexes `[from, to)` of the events between two times.
    ///
    /// # Errors
    /// [`IndexError::Sqlite`]
    pub fn between(&self, from_us: i64, to_us: i64) -> Result<Option<(u64, u64)>, IndexError> {
        Ok(self.connection.query_row(
            "SELECT min(idx), max(idx) FROM events WHERE time_us >= ?1 AND time_us < ?2",
            params![from_us, to_us],
            |row| {
                let (from, to): (Option<u64>, Option<u64>) = (row.get(0)?, row.get(1)?);
                Ok(from.zip(to).map(|(from, to)| (from, to + 1)))
            },
        )?)
    }
}

fn add_group(transaction: &Transaction<'_>, placed: &PlacedGroup) -> Result<(), IndexError> {
    let header = &placed.group.header;
    let next: u64 =
        transaction.query_row("SELECT value FROM meta WHERE name = 'next'", [], |row| row.get(0))?;
    if placed.end() <= next {
        return Ok(());
    }
    transaction
        .prepare_cached("INSERT OR REPLACE INTO groups VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            header.boot.0,
            header.first_seq,
            header.count,
            placed.index,
            header.root.0
        ])?;
    let last = placed
        .group
        .events
        .last()
        .map_or(Digest::ZERO, |event| leaf_hash(event));
    // A group that fills an earlier hole does not move the chain's end.
    transaction
        .prepare_cached(
            "INSERT INTO chains (boot, next_seq, last_leaf) VALUES (?1, ?2, ?3) ON CONFLICT (boot) DO UPDATE
             SET next_seq = excluded.next_seq, last_leaf = excluded.last_leaf WHERE excluded.next_seq > next_seq",
        )?
        .execute(params![header.boot.0, header.last_seq() + 1, last.0])?;
    for (event, index) in placed.group.events.iter().zip(placed.index..) {
        add_event(transaction, index, 0, event)?;
    }
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'next'")?
        .execute(params![placed.end()])?;
    Ok(())
}

/// Columns of `events` that depend on the kind.
#[derive(Default)]
struct Row<'a> {
    session: Option<SessionId>,
    statement: Option<u64>,
    who: Option<&'a Who>,
    place: Option<&'a receipts::Place>,
    what: Option<&'a receipts::What>,
    rule: Option<&'a receipts::Rule>,
    outcome: Option<&'a receipts::Outcome>,
    reason: Option<String>,
    sqlstate: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of_start(start: &'a ActionStart) -> Self {
        Self {
            statement: Some(start.statement.0),
            who: Some(&start.who),
            place: Some(&start.place),
            what: Some(&start.what),
            rule: Some(&start.rule),
            reason: start.rule.reason.clone(),
            ..Self::default()
        }
    }
}

fn add_event(transaction: &Transaction<'_>, index: u64, part: u32, bytes: &[u8]) -> Result<(), IndexError> {
    let event = match read_event(bytes) {
        Ok(ReadEvent::Known(event)) => event,
        Ok(ReadEvent::Unknown(header)) => {
            transaction.execute(
                "INSERT OR REPLACE INTO events (idx, part, kind, time_us, boot, seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![index, part, header.kind, header.time_us, header.proxy.boot.0, header.proxy.seq],
            )?;
            return Ok(());
        }
        // Not an event: `weir verify` says so; there is nothing to look up.
        Err(_) => return Ok(()),
    };
    let Event {
        time_us,
        proxy,
        session,
        body,
        ..
    } = &*event;
    let session = session.map(|link| link.id);
    let mut row = match body {
        Body::Intent(intent) => Row::of_start(&intent.start),
        Body::Action(action) => Row {
            outcome: Some(&action.outcome),
            ..Row::of_start(&action.start)
        },
        Body::Deny(deny) => Row {
            sqlstate: Some(&deny.sqlstate),
            ..Row::of_start(&deny.start)
        },
        Body::SessionOpen(open) => Row {
            who: Some(&open.who),
            place: Some(&open.place),
            ..Row::default()
        },
        Body::AuthFail(fail) => Row {
            who: Some(&fail.who),
            place: Some(&fail.place),
            reason: Some(fail.reason.clone()),
            sqlstate: fail.sqlstate.as_deref(),
            ..Row::default()
        },
        Body::OutcomeUnknown(unknown) => Row {
            session: Some(unknown.of_session),
            statement: Some(unknown.statement.0),
            who: unknown.who.as_deref(),
            place: unknown.place.as_deref(),
            reason: Some("the recording process ended while it ran".to_owned()),
            ..Row::default()
        },
        Body::Gap(gap) => Row {
            reason: Some(gap_in_words(gap)),
            ..Row::default()
        },
        Body::SessionClose(close) => Row {
            reason: Some(close.reason.clone()),
            ..Row::default()
        },
        Body::ChainClose(close) => Row {
            reason: Some(close.reason.clone()),
            ..Row::default()
        },
        Body::PolicyChange(change) => Row {
            reason: Some(policies_in_words(change)),
            ..Row::default()
        },
        Body::ChainPeer(peer) => Row {
            reason: Some(format!("{} is delivered by {}", peer.boot, peer.peer)),
            ..Row::default()
        },
        Body::ChainBind(bind) => Row {
            reason: Some(format!("{} says that this chain is its", bind.peer)),
            ..Row::default()
        },
        Body::ChainOpen(_) | Body::Recovered(_) => Row::default(),
    };
    row.session = row.session.or(session);
    insert_row(transaction, index, part, &event, &row)?;
    match body {
        Body::ChainOpen(open) => {
            transaction.execute(
                "UPDATE chains SET program = ?2 WHERE boot = ?1",
                params![proxy.boot.0, open.program],
            )?;
        }
        Body::ChainClose(_) => {
            transaction.execute(
                "UPDATE chains SET closed = 1 WHERE boot = ?1",
                params![proxy.boot.0],
            )?;
        }
        Body::Action(action) => add_action(transaction, index, part, *time_us, session, action)?,
        Body::Intent(intent) => add_touches(transaction, index, part, &intent.start)?,
        Body::Deny(deny) => add_touches(transaction, index, part, &deny.start)?,
        Body::Recovered(recovered) => add_event(transaction, index, part + 1, recovered.event.as_bytes())?,
        // Only the collector's word counts: a sidecar that says so of itself, or of another, binds nothing.
        Body::ChainPeer(peer) if is_collector(transaction, &proxy.boot)? => {
            if let Some(pod) = read_pod(&peer.peer) {
                transaction.execute(
                    "INSERT OR IGNORE INTO peers VALUES (?1, ?2, ?3, ?4, NULL)",
                    params![peer.boot.0, pod.uid, pod.namespace, pod.workload],
                )?;
            }
        }
        Body::Gap(gap) if gap.reason.starts_with(POD_GONE) && is_collector(transaction, &proxy.boot)? => {
            transaction.execute(
                "UPDATE peers SET lost = ?2 WHERE boot = ?1 AND lost IS NULL",
                params![gap.boot.0, index],
            )?;
        }
        Body::SessionOpen(_)
        | Body::SessionClose(_)
        | Body::AuthFail(_)
        | Body::OutcomeUnknown(_)
        | Body::Gap(_)
        | Body::ChainPeer(_)
        | Body::ChainBind(_)
        | Body::PolicyChange(_) => {}
    }
    Ok(())
}

/// A sidecar can call itself anything: whatever a pod delivers is no collector.
fn is_collector(transaction: &Transaction<'_>, boot: &BootId) -> Result<bool, IndexError> {
    Ok(transaction
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM chains WHERE boot = ?1 AND program LIKE 'weir-collector%')
               AND NOT EXISTS (SELECT 1 FROM peers WHERE boot = ?1)",
        )?
        .query_row(params![boot.0], |row| row.get(0))?)
}

fn read_pod(uri: &str) -> Option<ChainPod> {
    match control_api::peer::read_uri(uri) {
        Ok(control_api::peer::Peer::Pod(pod)) => Some(ChainPod {
            workload: pod.workload(),
            namespace: pod.namespace,
            uid: pod.pod_uid,
        }),
        Ok(control_api::peer::Peer::Operator | control_api::peer::Peer::Collector) | Err(_) => None,
    }
}

fn gap_in_words(gap: &receipts::Gap) -> String {
    match (gap.from, gap.to, gap.count) {
        (Some(from), None, None) => format!("events {from}.. of {}: {}", gap.boot, gap.reason),
        (Some(from), Some(to), _) => format!("events {from}..={to} of {}: {}", gap.boot, gap.reason),
        (_, _, Some(count)) => format!("{count} events of {}: {}", gap.boot, gap.reason),
        _ => format!("{}: {}", gap.boot, gap.reason),
    }
}

fn policies_in_words(change: &receipts::PolicyChange) -> String {
    let names: Vec<&str> = change
        .policies
        .iter()
        .map(|policy| policy.name.as_str())
        .collect();
    format!("generation {}: {}", change.generation, names.join(", "))
}

fn insert_row(
    transaction: &Transaction<'_>,
    index: u64,
    part: u32,
    event: &Event,
    row: &Row<'_>,
) -> Result<(), IndexError> {
    // A sidecar's word for itself proves nothing: the workload is verified where the delivering pod's certificate said it.
    let proved: Option<String> = transaction
        .prepare_cached("SELECT workload FROM peers WHERE boot = ?1")?
        .query_row(params![event.proxy.boot.0], |row| row.get(0))
        .optional()?;
    let who = row.who.map(|who| {
        let mut who = who.clone();
        match proved {
            Some(workload) => who.workload = receipts::Claim::verified(workload),
            None if who.workload.assurance == receipts::Assurance::Verified => {
                who.workload.assurance = receipts::Assurance::Asserted;
            }
            None => {}
        }
        who
    });
    let who = who.as_ref();
    let claim = |claim: fn(&Who) -> &receipts::Claim| who.and_then(|who| claim(who).value.clone());
    let assurance = who.map(|who| {
        let marks: Vec<&str> = [&who.workload, &who.user, &who.agent, &who.run, &who.database_user]
            .iter()
            .map(|claim| match claim.assurance {
                receipts::Assurance::Verified => "verified",
                receipts::Assurance::Asserted => "asserted",
                receipts::Assurance::Claimed => "claimed",
                receipts::Assurance::Absent => "absent",
            })
            .collect();
        marks.join(" ")
    });
    let masked: Option<String> = row.what.and_then(|what| {
        let masks: Vec<String> = what
            .output
            .iter()
            .filter_map(|column| Some(format!("{}: {}", column.name, column.mask.as_ref()?)))
            .collect();
        (!masks.is_empty()).then(|| masks.join(", "))
    });
    let status = row.outcome.map(|outcome| match outcome.status {
        OutcomeStatus::Ok => "ok",
        OutcomeStatus::Error => "error",
        OutcomeStatus::Stopped => "stopped",
        OutcomeStatus::Partial => "partial",
        OutcomeStatus::Lost => "lost",
    });
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,
               ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)",
        )?
        .execute(params![
            index,
            part,
            event.body.kind(),
            event.time_us,
            event.proxy.boot.0,
            event.proxy.seq,
            row.session.map(|session| session.0),
            row.statement,
            claim(|who| &who.workload),
            claim(|who| &who.user),
            claim(|who| &who.agent),
            claim(|who| &who.run),
            claim(|who| &who.application),
            claim(|who| &who.database_user),
            assurance,
            row.place.map(|place| place.endpoint.as_str()),
            row.place.and_then(|place| place.database.as_deref()),
            row.what.map(|what| what.command.as_str()),
            row.what.map(|what| what.text.as_str()),
            row.rule.map(|rule| rule.policy.as_str()),
            row.rule.map(|rule| rule.rule.as_str()),
            row.rule.and_then(|rule| rule.code.as_deref()),
            row.rule.map(|rule| rule.verdict.name()),
            row.reason,
            status,
            row.sqlstate.or(row.outcome.and_then(|outcome| outcome.sqlstate.as_deref())),
            row.outcome.map(|outcome| outcome.rows_returned),
            row.outcome.and_then(|outcome| outcome.rows_affected),
            row.outcome.map(|outcome| outcome.bytes),
            row.outcome.map(|outcome| outcome.duration_us),
            masked,
            row.outcome.and_then(|outcome| outcome.transaction).map(|transaction| transaction.number),
        ])?;
    Ok(())
}

fn add_touches(
    transaction: &Transaction<'_>,
    index: u64,
    part: u32,
    start: &ActionStart,
) -> Result<(), IndexError> {
    for relation in &start.what.relations {
        let columns = serde_json::to_string(&relation.columns).unwrap_or_default();
        transaction
            .prepare_cached("INSERT OR REPLACE INTO touches VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                index,
                part,
                relation.name,
                action_name(relation.action),
                columns
            ])?;
    }
    Ok(())
}

fn action_name(action: receipts::RelationAction) -> &'static str {
    use receipts::RelationAction as A;
    match action {
        A::Select => "select",
        A::Insert => "insert",
        A::Update => "update",
        A::Delete => "delete",
        A::Truncate => "truncate",
        A::Ddl => "ddl",
        A::Call => "call",
        A::Admin => "admin",
    }
}

fn add_action(
    transaction: &Transaction<'_>,
    index: u64,
    part: u32,
    time_us: i64,
    session: Option<SessionId>,
    action: &Action,
) -> Result<(), IndexError> {
    add_touches(transaction, index, part, &action.start)?;
    if let (Some(session), Some(of)) = (session, action.outcome.transaction) {
        let state = match of.state {
            TransactionState::Open => "open",
            TransactionState::Failed => "failed",
            TransactionState::Committed => "committed",
            TransactionState::RolledBack => "rolled_back",
            TransactionState::Unknown => "unknown",
        };
        transaction
            .prepare_cached("INSERT OR REPLACE INTO transactions VALUES (?1, ?2, ?3)")?
            .execute(params![session.0, of.number, state])?;
    }
    match action.outcome.status {
        OutcomeStatus::Ok | OutcomeStatus::Partial | OutcomeStatus::Stopped => {}
        // A failed statement moved nothing; of a lost one nobody knows, and its receipt says so.
        OutcomeStatus::Error | OutcomeStatus::Lost => return Ok(()),
    }
    let number = action.outcome.transaction.map(|of| of.number);
    for edge in crate::lineage::edges_of(session, action) {
        transaction
            .prepare_cached("INSERT OR IGNORE INTO edges VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![
                edge.source,
                edge.target,
                edge.transformation,
                edge.mask,
                index,
                session.map(|session| session.0),
                number,
                time_us
            ])?;
    }
    Ok(())
}

/// `a.b.c` is relation `a.b` and column `c`; anything shorter has no column.
fn split_object(object: &str) -> (&str, Option<&str>) {
    match object.rsplit_once('.') {
        Some((relation, column)) => (relation, Some(column)),
        None => (object, None),
    }
}

fn escape_like(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// Only `*` is special.
fn glob(text: &str) -> String {
    text.replace('[', "[[]").replace('?', "[?]")
}
