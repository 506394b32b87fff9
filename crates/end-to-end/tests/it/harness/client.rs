//! A client that speaks the protocol by hand, so that it can do what no driver does; it keeps every byte it was sent.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::canary;

/// Longest wait for an answer before the test fails.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One session.
pub(crate) struct Client {
    stream: TcpStream,
    port: u16,
    received: Vec<u8>,
    at: usize,
    /// What ReadyForQuery said last.
    pub(crate) status: u8,
    /// Process and key of BackendKeyData.
    pub(crate) cancel_key: Vec<u8>,
}

/// One message: its type and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) table: u32,
    pub(crate) number: i16,
    pub(crate) type_oid: u32,
    pub(crate) modifier: i32,
    pub(crate) format: i16,
}

/// What an error or a notice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) fields: BTreeMap<char, String>,
}

impl Report {
    pub(crate) fn field(&self, name: char) -> &str {
        self.fields.get(&name).map_or("", String::as_str)
    }
    pub(crate) fn sqlstate(&self) -> &str {
        self.field('C')
    }
    pub(crate) fn message(&self) -> &str {
        self.field('M')
    }
    pub(crate) fn severity(&self) -> Severity {
        match self.field('V') {
            "FATAL" | "PANIC" => Severity::Fatal,
            _ => Severity::Error,
        }
    }
    /// Said by Weir, with a code.
    pub(crate) fn is_refusal(&self) -> bool {
        self.message().starts_with("WEIR-")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Error,
    Fatal,
}

/// Everything between a request and the next ReadyForQuery.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Option<Vec<u8>>>>,
    pub(crate) tags: Vec<String>,
    pub(crate) errors: Vec<Report>,
    pub(crate) notices: Vec<Report>,
    pub(crate) copied: Vec<u8>,
    /// Types of all messages, in order.
    pub(crate) kinds: String,
    pub(crate) function_result: Option<Vec<u8>>,
    /// The connection ended instead of a ReadyForQuery.
    pub(crate) ended: bool,
}

impl Answer {
    pub(crate) fn text(&self, row: usize, column: usize) -> Option<&str> {
        let value = self.rows.get(row)?.get(column)?.as_deref()?;
        std::str::from_utf8(value).ok()
    }
    /// All rows as text; NULL is `~`, columns are split by `|`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let cell = |cell: &Option<Vec<u8>>| {
            cell.as_deref()
                .map_or("~".into(), |cell| String::from_utf8_lossy(cell).into_owned())
        };
        self.rows
            .iter()
            .map(|row| row.iter().map(cell).collect::<Vec<_>>().join("|"))
            .collect()
    }
    pub(crate) fn error(&self) -> Option<&Report> {
        self.errors.first()
    }
    pub(crate) fn is_refused(&self) -> bool {
        self.error().is_some_and(Report::is_refusal)
    }
    /// Fails the test unless Weir refused it, as an error of the session and with 42501.
    pub(crate) fn refused(&self) -> &Report {
        let error = self.error().unwrap_or_else(|| panic!("not refused: {self:?}"));
        assert!(error.is_refusal(), "an error, but no refusal: {error:?}");
        assert_eq!(error.sqlstate(), "42501", "{error:?}");
        assert_eq!(error.severity(), Severity::Error, "{error:?}");
        assert!(
            self.rows.is_empty() || !self.tags.is_empty(),
            "rows before a refusal: {self:?}"
        );
        error
    }
}

impl Client {
    /// A session, or a failed test.
    pub(crate) fn connect(port: u16, parameters: &[(&str, &str)]) -> Self {
        Self::try_connect(port, parameters).unwrap_or_else(|error| panic!("cannot connect: {error:?}"))
    }

    /// A session, or what the server said instead.
    pub(crate) fn try_connect(port: u16, parameters: &[(&str, &str)]) -> Result<Self, Box<Answer>> {
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in parameters {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        let mut client = Self::open(port);
        client.send_raw(&[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat());
        let answer = client.until_ready();
        if answer.ended || !answer.errors.is_empty() {
            Err(Box::new(answer))
        } else {
            Ok(client)
        }
    }

    /// A bare connection.
    pub(crate) fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("a socket option");
        stream
            .set_write_timeout(Some(ANSWER_MAX))
            .expect("a socket option");
        Self {
            stream,
            port,
            received: Vec::new(),
            at: 0,
            status: 0,
            cancel_key: Vec::new(),
        }
    }

    /// A simple Query and its answer.
    pub(crate) fn query(&mut self, sql: &str) -> Answer {
        self.send(&query(sql));
        self.until_ready()
    }

    /// The same, where the caller looks for canaries itself.
    pub(crate) fn query_unchecked(&mut self, sql: &str) -> Answer {
        self.send(&query(sql));
        self.answer()
    }

    /// A simple Query that must succeed.
    pub(crate) fn must(&mut self, sql: &str) -> Answer {
        let answer = self.query(sql);
        assert!(
            answer.errors.is_empty() && !answer.ended,
            "{sql}: {:?}",
            answer.errors
        );
        answer
    }

    /// One number.
    pub(crate) fn number(&mut self, sql: &str) -> i64 {
        let answer = self.must(sql);
        answer
            .text(0, 0)
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no number: {answer:?}"))
    }

    /// Parse, Bind, Describe, Execute, Sync of an unnamed statement, all results in one format.
    pub(crate) fn extended(&mut self, sql: &str, parameters: &[Option<&str>], format: i16) -> Answer {
        self.send(&unnamed(sql, parameters, format));
        self.until_ready()
    }

    /// The same without parameters, where the caller looks for canaries itself.
    pub(crate) fn extended_unchecked(&mut self, sql: &str, format: i16) -> Answer {
        self.send(&unnamed(sql, &[], format));
        self.answer()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.send_raw(bytes);
    }

    /// Sends what it can: the other side may close while we still write.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// No more from us; the other side may still answer.
    pub(crate) fn stop_writing(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Everything up to the next ReadyForQuery, or to the end of the connection.
    pub(crate) fn until_ready(&mut self) -> Answer {
        let answer = self.answer();
        self.assert_clean();
        answer
    }

    fn answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        loop {
            let Some(message) = self.next() else {
                answer.ended = true;
                break;
            };
            if add(&mut answer, &message) {
                self.status = message.body.first().copied().unwrap_or_default();
                break;
            }
            if message.kind == b'K' {
                self.cancel_key = message.body;
            } else if message.kind == b'G' {
                break;
            }
        }
        answer
    }

    /// The next message; `None` when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Message> {
        while self.received.len() < self.at + 5 {
            self.read()?;
        }
        let header = &self.received[self.at..self.at + 5];
        let kind = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        assert!(length >= 4, "a length of {length}");
        while self.received.len() < self.at + 1 + length {
            self.read()?;
        }
        let body = self.received[self.at + 5..self.at + 1 + length].to_vec();
        self.at += 1 + length;
        Some(Message { kind, body })
    }

    /// Waits until the other side closes; what it says before is kept.
    pub(crate) fn until_ended(&mut self) -> Answer {
        let mut answer = Answer::default();
        while let Some(message) = self.next() {
            add(&mut answer, &message);
        }
        answer.ended = true;
        self.assert_clean();
        answer
    }

    /// Every byte that came so far.
    pub(crate) fn received(&self) -> &[u8] {
        &self.received
    }

    /// Fails the test if a canary came through.
    pub(crate) fn assert_clean(&self) {
        if self.is_governed() {
            let seen = canary::find(&self.received);
            assert_eq!(seen, None, "a protected value left");
        }
    }

    /// One byte that is no message (the answer to an SSLRequest).
    pub(crate) fn next_byte(&mut self) -> Option<u8> {
        while self.received.len() <= self.at {
            self.read()?;
        }
        self.at += 1;
        Some(self.received[self.at - 1])
    }

    /// Bytes came that are no whole message.
    pub(crate) fn has_half_a_message(&self) -> bool {
        self.received.len() > self.at
    }

    /// Everything up to the end of the connection, message or not.
    pub(crate) fn next_raw_until_ended(&mut self) -> Vec<u8> {
        while self.read().is_some() {}
        self.received.clone()
    }

    fn read(&mut self) -> Option<()> {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) => None,
            Ok(count) => {
                self.received.extend(&chunk[..count]);
                Some(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!(
                "no answer: {error}; so far {:?}",
                String::from_utf8_lossy(&self.received[self.at..])
            ),
        }
    }

    /// Sessions straight to the server see what is there.
    fn is_governed(&self) -> bool {
        !super::database::is_server(self.port)
    }
}

/// Adds a message; true at ReadyForQuery.
fn add(answer: &mut Answer, message: &Message) -> bool {
    answer.kinds.push(char::from(message.kind));
    match message.kind {
        b'T' => answer.columns = columns(&message.body),
        b'D' => answer.rows.push(cells(&message.body)),
        b'C' => answer.tags.push(
            String::from_utf8_lossy(&message.body)
                .trim_end_matches('\0')
                .to_owned(),
        ),
        b'E' => answer.errors.push(report(&message.body)),
        b'N' => answer.notices.push(report(&message.body)),
        b'd' => answer.copied.extend(&message.body),
        b'V' => answer.function_result = message.body.get(4..).map(<[u8]>::to_vec),
        b'Z' => return true,
        _ => {}
    }
    false
}

fn columns(body: &[u8]) -> Vec<Column> {
    let mut rest = &body[2..];
    let mut found = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let fixed = &rest[end + 1..end + 19];
        let int = |at: usize| i32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let short = |at: usize| i16::from_be_bytes([fixed[at], fixed[at + 1]]);
        found.push(Column {
            name,
            table: int(0) as u32,
            number: short(4),
            type_oid: int(6) as u32,
            modifier: int(12),
            format: short(16),
        });
        rest = &rest[end + 19..];
    }
    found
}

fn cells(body: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut rest = &body[2..];
    let mut found = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                found.push(Some(after[..length].to_vec()));
                rest = &after[length..];
            }
            Err(_) => {
                found.push(None);
                rest = after;
            }
        }
    }
    assert_eq!(found.len(), usize::from(u16::from_be_bytes([body[0], body[1]])));
    found
}

fn report(body: &[u8]) -> Report {
    let fields = body.split(|byte| *byte == 0).filter_map(|field| {
        let (name, value) = field.split_first()?;
        Some((char::from(*name), String::from_utf8_lossy(value).into_owned()))
    });
    Report {
        fields: fields.collect(),
    }
}

fn unnamed(sql: &str, parameters: &[Option<&str>], format: i16) -> Vec<u8> {
    let portal = [
        parse("", sql),
        bind("", "", parameters, &[format]),
        describe_portal(""),
    ]
    .concat();
    [portal, execute("", 0), sync()].concat()
}

/// A message of any kind.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(
        b'P',
        &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat(),
    )
}

/// Parameters as text.
pub(crate) fn bind(
    portal: &str,
    statement: &str,
    parameters: &[Option<&str>],
    result_formats: &[i16],
) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.extend((parameters.len() as u16).to_be_bytes());
    for parameter in parameters {
        match parameter {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(text) => {
                body.extend((text.len() as u32).to_be_bytes());
                body.extend(text.as_bytes());
            }
        }
    }
    body.extend((result_formats.len() as u16).to_be_bytes());
    for format in result_formats {
        body.extend(format.to_be_bytes());
    }
    message(b'B', &body)
}

pub(crate) fn describe_portal(portal: &str) -> Vec<u8> {
    message(b'D', &[b"P", portal.as_bytes(), b"\0"].concat())
}

pub(crate) fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    message(
        b'E',
        &[portal.as_bytes(), b"\0", &rows_max.to_be_bytes()].concat(),
    )
}

pub(crate) fn sync() -> Vec<u8> {
    message(b'S', &[])
}

pub(crate) fn flush() -> Vec<u8> {
    message(b'H', &[])
}

/// The fast path: a function by OID, arguments and result as text.
pub(crate) fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend(0_u16.to_be_bytes());
    body.extend((arguments.len() as u16).to_be_bytes());
    for argument in arguments {
        body.extend((argument.len() as u32).to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend(0_u16.to_be_bytes());
    message(b'F', &body)
}

pub(crate) fn copy_data(bytes: &[u8]) -> Vec<u8> {
    message(b'd', bytes)
}

pub(crate) fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

pub(crate) fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &[reason.as_bytes(), b"\0"].concat())
}
