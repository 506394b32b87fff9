//! `weir-collector` as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use collector::{Index, IngestAnswer, Log, verify_log};
use receipts::{
    Checkpoint, Completeness, Integrity, LogKey, SignedGroup, leaf_hash, root_of_range, verify_consistency,
};

use crate::Sidecar;

struct Collector {
    process: Child,
    address: String,
}

impl Collector {
    fn start(dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weir-collector"))
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.split(' ').nth(3).unwrap().trim_end_matches(',').to_owned();
        Self { process, address }
    }

    fn kill_9(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn terminate(mut self) {
        Command::new("kill")
            .arg(self.process.id().to_string())
            .status()
            .unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn exchange(address: &str, head: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let split = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = String::from_utf8_lossy(&answer[..split])
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    Ok((status, answer[split + 4..].to_vec()))
}

fn post(address: &str, groups: &[SignedGroup]) -> std::io::Result<(u16, Vec<u8>)> {
    let mut body = Vec::new();
    for group in groups {
        let bytes = group.encode();
        body.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&bytes);
    }
    exchange(address, "POST /v1/ingest", &body)
}

pub(crate) fn accepted(address: &str, groups: &[SignedGroup]) -> IngestAnswer {
    let (status, body) = post(address, groups).unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let answer: IngestAnswer = serde_json::from_slice(&body).unwrap();
    let key = LogKey::from_vkey(&answer.log_key).unwrap();
    let checkpoint = Checkpoint::verify(&answer.checkpoint, &key).unwrap();
    for (group, placed) in groups.iter().zip(&answer.groups) {
        let leaves: Vec<_> = group.events.iter().map(|event| leaf_hash(event)).collect();
        assert_eq!(
            root_of_range(&leaves, placed.index, checkpoint.size, &placed.proof),
            Some(checkpoint.root)
        );
    }
    answer
}

pub(crate) fn get(address: &str, page: &str) -> String {
    let (status, body) = exchange(address, &format!("GET {page}"), b"").unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 200, "{page}: {text}");
    text
}

#[test]
fn replay_reorder_fork_and_forgery() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start(dir.path());
    let address = &collector.address;
    let mut sidecar = Sidecar::new(1);
    let groups: Vec<SignedGroup> = [
        sidecar.open(),
        sidecar.reads(2),
        sidecar.reads(3),
        sidecar.reads(1),
    ]
    .into_iter()
    .collect();
    let first = accepted(address, &groups[..2]);
    // Sent again, also together with what is new: each group stays where it is.
    let again = accepted(address, &groups[..2]);
    assert_eq!(first.groups[0].index, again.groups[0].index);
    let checkpoint = |answer: &IngestAnswer| {
        Checkpoint::verify(&answer.checkpoint, &LogKey::from_vkey(&answer.log_key).unwrap()).unwrap()
    };
    assert_eq!(
        checkpoint(&first).size,
        checkpoint(&again).size,
        "nothing was added"
    );
    // A hole is told by the collector and filled when the rest arrives.
    let ahead = accepted(address, &groups[3..]);
    assert_eq!(
        ahead.groups[0].index,
        first.groups[1].index + 2 + 1,
        "the gap event stands before it"
    );
    assert!(get(address, "/v1/audit").contains("never arrived at the collector"));
    accepted(address, &groups[2..3]);
    // A second history of the same numbers.
    let mut other = Sidecar::new(1);
    let fork = [other.open(), other.reads(1)];
    let (status, body) = post(address, &fork[1..]).unwrap();
    assert_eq!(status, 409, "{}", String::from_utf8_lossy(&body));
    assert_eq!(std::fs::read_dir(dir.path().join("forks")).unwrap().count(), 1);
    // Altered, and signed by somebody else.
    let mut altered = sidecar.reads(1);
    altered.events[0][100] ^= 1;
    assert_eq!(post(address, &[altered]).unwrap().0, 422);
    let mut stolen = Sidecar::new(2).open();
    stolen.header.boot = sidecar.boot();
    assert_eq!(post(address, &[stolen]).unwrap().0, 422);
    assert_eq!(post(address, &[]).unwrap().0, 400);
    assert_eq!(exchange(address, "POST /v1/ingest", b"something").unwrap().0, 400);

    for page in [
        "/healthz",
        "/readyz",
        "/v1/status",
        "/checkpoint",
        "/log/key",
        "/tile/0/000.p/1",
        "/v1/receipt?index=2",
    ] {
        get(address, page);
    }
    let receipt: receipts::Receipt = serde_json::from_str(&get(address, "/v1/receipt?index=2")).unwrap();
    receipt.verify().unwrap();
    assert!(get(address, "/metrics").contains("weir_collector_refused_total{reason=\"Fork\"} 1"));
    let range = get(address, "/v1/range?from=1&to=100");
    let (_, report) = receipts::verify_range(range.as_bytes(), None).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
    collector.terminate();
    let report = verify_log(dir.path(), None).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
}

/// `kill -9` in the middle of ingest, several times: everything acknowledged is in the log, and the log only grew.
#[test]
fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::new(1);
    let mut unacknowledged = vec![sidecar.open()];
    let mut acknowledged: Vec<(u64, SignedGroup)> = Vec::new();
    let mut last: Option<Checkpoint> = None;
    for round in 0..4 {
        let collector = Collector::start(dir.path());
        let address = collector.address.clone();
        let (send, killed) = std::sync::mpsc::sync_channel(1);
        let mut killer = Some((send, collector));
        for step in 0.. {
            if step == 15 + round * 7 {
                // From another thread, so that it falls into the middle of a request.
                let (send, collector) = killer.take().unwrap();
                std::thread::spawn(move || {
                    collector.kill_9();
                    let _ = send.send(());
                });
            }
            let size = 1 + (step * 37 + round) % 120;
            if unacknowledged.is_empty() {
                unacknowledged.push(sidecar.reads(size));
            }
            match post(&address, &unacknowledged) {
                Ok((200, body)) => {
                    let answer: IngestAnswer = serde_json::from_slice(&body).unwrap();
                    let key = LogKey::from_vkey(&answer.log_key).unwrap();
                    let checkpoint = Checkpoint::verify(&answer.checkpoint, &key).unwrap();
                    let indexes = answer.groups.iter().map(|placed| placed.index);
                    acknowledged.extend(indexes.zip(unacknowledged.drain(..)));
                    last = Some(checkpoint);
                }
                Ok((status, body)) => panic!("{status}: {}", String::from_utf8_lossy(&body)),
                Err(_) => break,
            }
        }
        killed.recv().unwrap();
        let log = Log::open(dir.path()).unwrap();
        for (index, group) in &acknowledged {
            for (event, index) in group.events.iter().zip(*index..) {
                assert_eq!(log.entry(index).unwrap().as_ref(), Some(event), "entry {index}");
            }
        }
        if let Some(last) = &last {
            let mut log = log;
            let (size, note) = log.sign_checkpoint().unwrap();
            let now = Checkpoint::verify(&note, log.key()).unwrap();
            let proof = log.consistency(last.size, size).unwrap();
            assert!(verify_consistency(last.size, &last.root, size, &now.root, &proof));
        }
    }
    let collector = Collector::start(dir.path());
    unacknowledged.push(sidecar.reads(5));
    accepted(&collector.address, &unacknowledged);
    collector.terminate();
    let report = verify_log(dir.path(), None).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
    let kept = Index::open(&dir.path().join("index.sqlite"))
        .unwrap()
        .dump()
        .unwrap();
    assert_eq!(kept, crate::index_of(dir.path()).dump().unwrap());
}
