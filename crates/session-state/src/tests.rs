//! Conversations with a [`Session`]: what the client and the server say, and what goes out.

use std::sync::Arc;

use access_policy::{Endpoint, Manifest, Subject};
use bytes::{Bytes, BytesMut};
use sql_facts::{Catalog, SearchPath};
use wire_protocol::postgres::backend::{Fields, TransactionStatus};
use wire_protocol::postgres::frontend::Target;
use wire_protocol::postgres::{BackendMessage, Caps, Frame, Framer, FrontendMessage, write};

use crate::{Action, ClientMessage, Judge, Known, Record, Session, SessionStart, World};

const DENY: &str = "
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: strict}
spec:
  podSelector: {}
  database: {engine: PostgreSQL, host: db.example, port: 5432}
  defaultAction: Deny
";

const ALLOW: &str = "
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: open}
spec:
  podSelector: {}
  database: {engine: PostgreSQL, host: db.example, port: 5432}
  defaultAction: Allow
";

struct Talk {
    session: Session,
    judge: Judge,
    to_server: Vec<Frame>,
    to_client: Vec<Frame>,
    records: Vec<&'static str>,
    closed: bool,
}

fn session_row() -> (String, String) {
    (
        "session".to_owned(),
        r#"[["pg_catalog","public"],null]"#.to_owned(),
    )
}

fn settings_row() -> (String, String) {
    let settings = r#"{"path":["pg_catalog","public"],"search_path":"public","role":"app","session_user":"app",
        "encoding":"UTF8","standard_conforming_strings":"on","transform_null_equals":"off","bytea_output":"hex",
        "temp_schema":null}"#;
    ("settings".to_owned(), settings.to_owned())
}

impl Talk {
    fn under(policy: &str) -> Self {
        let manifest = Manifest {
            name: "policy.yaml".to_owned(),
            text: policy.to_owned(),
        };
        let set = access_policy::compile(&[manifest]).expect("the test's policy compiles");
        let endpoint = Endpoint::new("db.example", 5432).expect("a host");
        let catalog = Catalog::builtins(15).expect("15 is reviewed");
        let (policy, _) = access_policy::bind(&set.for_database(&endpoint), &catalog, None);
        let known = Known::from_rows(&catalog, &[settings_row(), session_row()]).expect("a row of settings");
        assert_eq!(
            known.path.as_ref(),
            &SearchPath(vec!["pg_catalog".into(), "public".into()])
        );
        let world = World {
            policy: Arc::new(policy),
            catalog: Arc::new(catalog),
        };
        let start = SessionStart {
            world,
            subject: Arc::new(Subject::default()),
            subject_number: 0,
            known,
        };
        Self {
            session: Session::new(start),
            judge: Judge::default(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            records: Vec::new(),
            closed: false,
        }
    }

    fn take(&mut self, actions: Vec<Action>) {
        let mut server = BytesMut::new();
        let mut client = BytesMut::new();
        for action in actions {
            match action {
                Action::ToServer(bytes) => server.extend_from_slice(&bytes),
                Action::ToClient(bytes) => client.extend_from_slice(&bytes),
                Action::Record(record) | Action::Intent(record) => self.records.push(match record {
                    Record::Open { .. } => "open",
                    Record::Intent { .. } => "intent",
                    Record::Outcome { .. } => "outcome",
                    Record::Denied { .. } => "denied",
                }),
                Action::Close { .. } => self.closed = true,
                Action::Cancel | Action::RefreshCatalog | Action::CatalogRows(_) => {}
            }
        }
        let cut = |mut bytes: BytesMut, caps: Caps| {
            let mut framer = Framer::new(Arc::new(caps));
            let mut frames = Vec::new();
            while let Some(frame) = framer.next(&mut bytes).expect("whole messages") {
                frames.push(frame);
            }
            frames
        };
        self.to_server.extend(cut(server, Caps::default()));
        self.to_client.extend(cut(client, Caps::server()));
    }

    fn client(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        let mut framer = Framer::new(Arc::new(Caps::default()));
        while let Some(Frame::Whole(message)) = framer.next(&mut bytes).expect("whole messages") {
            assert!(self.session.takes_client(), "the session waits");
            let mut out = Vec::new();
            let body = message.body_bytes();
            let message = ClientMessage {
                tag: message.tag,
                body,
                raw: message.raw,
                streamed: false,
            };
            self.session.on_client(message, 0, &mut self.judge, &mut out);
            self.take(out);
        }
    }

    fn server(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        let mut framer = Framer::new(Arc::new(Caps::server()));
        while let Some(Frame::Whole(message)) = framer.next(&mut bytes).expect("whole messages") {
            let mut out = Vec::new();
            let body: Bytes = message.body_bytes();
            self.session
                .on_server(message.tag, body, message.raw, 0, &mut self.judge, &mut out);
            self.take(out);
        }
    }

    /// What went to the server since the last call: type bytes, and the text of Query and Parse.
    fn sent(&mut self) -> Vec<String> {
        let frames = std::mem::take(&mut self.to_server);
        frames
            .iter()
            .map(|frame| {
                let Frame::Whole(message) = frame else {
                    panic!("a long message")
                };
                match FrontendMessage::decode(message.tag, message.body()).expect("a message") {
                    FrontendMessage::Query { sql } => format!("Q {}", String::from_utf8_lossy(sql)),
                    FrontendMessage::Parse(parse) => format!(
                        "P {} {}",
                        String::from_utf8_lossy(parse.name),
                        String::from_utf8_lossy(parse.sql)
                    ),
                    _ => char::from(message.tag).to_string(),
                }
            })
            .collect()
    }

    /// What went to the client since the last call: type bytes, SQLSTATE of errors, status of ReadyForQuery.
    fn answered(&mut self) -> Vec<String> {
        let frames = std::mem::take(&mut self.to_client);
        frames
            .iter()
            .map(|frame| {
                let Frame::Whole(message) = frame else {
                    panic!("a long message")
                };
                match BackendMessage::decode(message.tag, message.body()).expect("a message") {
                    BackendMessage::ErrorResponse(fields) => error_text(&fields),
                    BackendMessage::ReadyForQuery(status) => format!("Z{}", char::from(status.byte())),
                    _ => char::from(message.tag).to_string(),
                }
            })
            .collect()
    }
}

fn error_text(fields: &Fields<'_>) -> String {
    let text = |code| String::from_utf8_lossy(fields.get(code).unwrap_or_default()).into_owned();
    let own = text(b'M').split(':').next().unwrap_or_default().to_owned();
    if own.starts_with("WEIR-") {
        format!("E{} weir", text(b'C'))
    } else {
        format!("E{}", text(b'C'))
    }
}

fn query(sql: &str) -> impl FnOnce(&mut BytesMut) + '_ {
    move |out| write::frontend::query(out, sql.as_bytes()).expect("a text")
}

fn parse(out: &mut BytesMut, name: &str, sql: &str) {
    write::frontend::parse(out, name.as_bytes(), sql.as_bytes(), []).expect("a text");
}

fn bind_and_execute(out: &mut BytesMut, name: &str) {
    write::frontend::bind(out, b"", name.as_bytes(), &[], [], &[]).expect("names");
    write::frontend::execute(out, b"", 0).expect("a name");
}

fn error(out: &mut BytesMut, sqlstate: &str) {
    let fields = [
        (b'S', "ERROR"),
        (b'V', "ERROR"),
        (b'C', sqlstate),
        (b'M', "no"),
        (b'R', "r"),
        (b'F', "f.c"),
    ];
    write::backend::error_response(out, fields.iter().map(|(code, text)| (*code, text.as_bytes())))
        .expect("fields");
}

fn ready(out: &mut BytesMut, status: TransactionStatus) {
    write::backend::ready_for_query(out, status);
}

fn complete(out: &mut BytesMut, tag: &str) {
    write::backend::command_complete(out, tag.as_bytes()).expect("a tag");
}

#[test]
fn a_refused_query_is_answered_alone_where_nothing_is_open() {
    let mut talk = Talk::under(DENY);
    talk.client(query("DROP TABLE public.orders"));
    assert!(talk.sent().is_empty());
    assert_eq!(talk.answered(), ["E42501 weir", "ZI"]);
    assert_eq!(talk.records, ["denied"]);
    talk.client(query("SELECT 1"));
    assert_eq!(talk.sent(), ["Q SELECT 1"]);
}

#[test]
fn a_refused_query_makes_the_server_fail_inside_a_transaction() {
    let mut talk = Talk::under(DENY);
    talk.client(query("BEGIN"));
    talk.server(|out| {
        complete(out, "BEGIN");
        ready(out, TransactionStatus::InTransaction);
    });
    talk.client(query("DROP TABLE public.orders"));
    let sent = talk.sent();
    assert!(
        sent.last().is_some_and(|text| text.starts_with("Q WEIR-")),
        "{sent:?}"
    );
    talk.answered();
    talk.server(|out| {
        error(out, "42601");
        ready(out, TransactionStatus::Failed);
    });
    assert_eq!(talk.answered(), ["E42501 weir", "ZE"]);
}

#[test]
fn a_refusal_in_a_pipeline_drops_what_follows_up_to_the_sync() {
    let mut talk = Talk::under(DENY);
    talk.client(|out| {
        parse(out, "", "SELECT 1");
        bind_and_execute(out, "");
        parse(out, "", "DROP TABLE public.orders");
        bind_and_execute(out, "");
        write::frontend::sync(out);
    });
    let sent = talk.sent();
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert_eq!(
        sent.get(..3),
        Some(&["P  SELECT 1".to_owned(), "B".to_owned(), "E".to_owned()][..])
    );
    assert!(
        sent.get(3).is_some_and(|text| text.starts_with("P  WEIR-")),
        "{sent:?}"
    );
    assert_eq!(sent.get(4).map(String::as_str), Some("S"));
    assert!(
        talk.answered().is_empty(),
        "no answer of ours overtakes the server's"
    );
    talk.server(|out| {
        write::backend::parse_complete(out);
        write::backend::bind_complete(out);
        complete(out, "SELECT 1");
        error(out, "42601");
        ready(out, TransactionStatus::Idle);
    });
    assert_eq!(talk.answered(), ["1", "2", "C", "E42501 weir", "ZI"]);
}

#[test]
fn an_earlier_error_of_the_pipeline_is_the_servers_own() {
    let mut talk = Talk::under(DENY);
    talk.client(|out| {
        parse(out, "", "SELECT 1");
        bind_and_execute(out, "");
        parse(out, "", "DROP TABLE public.orders");
        write::frontend::sync(out);
    });
    talk.sent();
    talk.server(|out| {
        write::backend::parse_complete(out);
        error(out, "42601");
        ready(out, TransactionStatus::Idle);
    });
    assert_eq!(
        talk.answered(),
        ["1", "E42601", "ZI"],
        "a 42601 that answers another message is not replaced"
    );
}

#[test]
fn a_failed_second_parse_keeps_the_first_statement() {
    let mut talk = Talk::under(DENY);
    talk.client(|out| {
        parse(out, "s", "SELECT 1");
        write::frontend::sync(out);
    });
    talk.server(|out| {
        write::backend::parse_complete(out);
        ready(out, TransactionStatus::Idle);
    });
    talk.client(|out| {
        parse(out, "s", "SELECT 2");
        write::frontend::sync(out);
    });
    talk.server(|out| {
        error(out, "42P05");
        ready(out, TransactionStatus::Idle);
    });
    let first = talk.session.objects.statement(b"s").expect("the first one");
    assert_eq!(first.text.as_ref(), "SELECT 1");
}

#[test]
fn a_statement_that_nobody_prepared_is_not_bound() {
    let mut talk = Talk::under(DENY);
    talk.client(|out| {
        bind_and_execute(out, "ghost");
        write::frontend::sync(out);
    });
    assert_eq!(talk.sent(), ["S"]);
    assert_eq!(talk.answered(), ["E26000 weir"]);
}

#[test]
fn reserved_names_are_refused() {
    let mut talk = Talk::under(ALLOW);
    talk.client(|out| {
        parse(out, "weir_state", "SELECT 1");
        write::frontend::sync(out);
    });
    assert_eq!(talk.sent(), ["S"]);
    assert_eq!(talk.answered(), ["E42939 weir"]);
}

#[test]
fn an_answer_that_nobody_waits_for_ends_the_session() {
    let mut talk = Talk::under(ALLOW);
    talk.server(|out| complete(out, "SELECT 1"));
    assert!(talk.closed);
    assert_eq!(talk.answered(), ["E08P01"]);
}

#[test]
fn a_setting_that_decides_meaning_is_read_back_before_the_next_text() {
    let mut talk = Talk::under(DENY);
    talk.client(query("SET search_path = pg_catalog"));
    talk.server(|out| {
        complete(out, "SET");
        ready(out, TransactionStatus::Idle);
    });
    talk.sent();
    talk.answered();
    talk.client(query("SELECT 1 + 1"));
    let sent = talk.sent();
    assert!(
        sent.first()
            .is_some_and(|text| text.starts_with("Q SET LOCAL jit = off; (SELECT 'settings'")),
        "{sent:?}"
    );
    assert!(!talk.session.takes_client());
    talk.server(|out| {
        for (kind, data) in [settings_row(), session_row()] {
            write::backend::data_row(out, [Some(kind.as_bytes()), Some(data.as_bytes())]).expect("cells");
        }
        complete(out, "SELECT 1");
        ready(out, TransactionStatus::Idle);
    });
    assert_eq!(talk.sent(), ["Q SELECT 1 + 1"]);
    assert!(
        talk.answered().is_empty(),
        "our own question is answered to nobody"
    );
}

/// EXECUTE names no setting itself.
#[test]
fn what_an_executed_statement_sets_is_read_back() {
    let mut talk = Talk::under(DENY);
    let done = |talk: &mut Talk, tag: &str| {
        talk.server(|out| {
            complete(out, tag);
            ready(out, TransactionStatus::Idle);
        });
        talk.answered();
    };
    let read_back = |talk: &mut Talk, sql: &str| {
        talk.client(query(sql));
        let sent = talk.sent();
        let asked = sent
            .first()
            .is_some_and(|text| text.starts_with("Q SET LOCAL jit = off; (SELECT 'settings'"));
        assert!(asked, "before {sql}: {sent:?}");
        talk.server(|out| {
            for (kind, data) in [settings_row(), session_row()] {
                write::backend::data_row(out, [Some(kind.as_bytes()), Some(data.as_bytes())]).expect("cells");
            }
            complete(out, "SELECT 1");
            ready(out, TransactionStatus::Idle);
        });
        assert_eq!(talk.sent(), [format!("Q {sql}")]);
    };
    talk.client(query("PREPARE p AS SELECT set_config('search_path', 'x', false)"));
    talk.sent();
    done(&mut talk, "PREPARE");
    read_back(&mut talk, "EXECUTE p");
    done(&mut talk, "SELECT 1");
    read_back(&mut talk, "SELECT 1 + 1");
    done(&mut talk, "SELECT 1");
    // In one Query nobody knows what the second statement will meet.
    talk.client(query("EXECUTE p; SELECT 1 + 1"));
    assert_eq!(talk.sent(), Vec::<String>::new());
    assert!(
        talk.answered()
            .first()
            .is_some_and(|answer| answer.starts_with('E'))
    );
}

#[test]
fn a_plain_setting_is_not_read_back() {
    let mut talk = Talk::under(DENY);
    talk.client(query("SET application_name = 'x'"));
    talk.server(|out| {
        complete(out, "SET");
        ready(out, TransactionStatus::Idle);
    });
    talk.sent();
    talk.client(query("SELECT 1 + 1"));
    assert_eq!(talk.sent(), ["Q SELECT 1 + 1"]);
}

#[test]
fn close_of_a_statement_reaches_the_server() {
    let mut talk = Talk::under(ALLOW);
    talk.client(|out| {
        parse(out, "s", "SELECT 1");
        write::frontend::close(out, Target::Statement(b"s")).expect("a name");
        write::frontend::sync(out);
    });
    assert_eq!(talk.sent(), ["P s SELECT 1", "C", "S"]);
    talk.server(|out| {
        write::backend::parse_complete(out);
        write::backend::close_complete(out);
        ready(out, TransactionStatus::Idle);
    });
    assert_eq!(talk.answered(), ["1", "3", "ZI"]);
    assert!(talk.session.objects.statement(b"s").is_none());
}

#[test]
fn error_texts_are_reduced_where_something_is_protected() {
    let mut talk = Talk::under(DENY);
    talk.client(query("SELECT 1"));
    talk.server(|out| {
        let fields = [
            (b'S', "ERROR"),
            (b'V', "ERROR"),
            (b'C', "23505"),
            (b'M', "duplicate key 078-05-1120"),
            (b'D', "Key (ssn)=(078-05-1120) already exists."),
            (b'n', "people_ssn_key"),
            (b'R', "r"),
            (b'F', "nbtinsert.c"),
        ];
        write::backend::error_response(out, fields.iter().map(|(code, text)| (*code, text.as_bytes())))
            .expect("fields");
        ready(out, TransactionStatus::Idle);
    });
    let Some(Frame::Whole(message)) = talk.to_client.first() else {
        panic!("an error")
    };
    let text = String::from_utf8_lossy(&message.raw);
    assert!(!text.contains("078-05"), "{text}");
    assert!(text.contains("people_ssn_key"), "{text}");
}

#[test]
fn a_statement_under_way_ends_as_unknown_when_the_connection_breaks() {
    let mut talk = Talk::under(ALLOW);
    talk.client(query("SELECT 1"));
    let mut out = Vec::new();
    talk.session.on_disconnect(&mut out);
    let unknown = out
        .iter()
        .any(|action| matches!(action, Action::Record(Record::Outcome { outcome, .. }) if outcome.unknown));
    assert!(unknown);
}
