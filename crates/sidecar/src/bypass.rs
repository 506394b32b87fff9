//! Watches for connections of the pod that go around the sidecar: an alias cannot catch an address written as a number, a
//! name with a final dot, or a DNS client of the application's own.
//!
//! All containers of a pod share one network namespace, so `/proc/net/tcp` and `tcp6` list the application's sockets too.
//! A connection to an address of a governed database that is not the sidecar's own is a bypass.
//!
//! Which are our own: those whose inode is under `/proc/self/fd`. The user id in the list is no proof of that: another
//! container may run as our UID where nothing forbids it. It only proves the contrary, at once: no socket of ours has
//! another UID. With our UID, what is missing among our descriptors may just have been opened or closed between the two
//! looks; it counts if it is there, and still not ours, when looked at once more.
//!
//! A connection that begins and ends between two looks is not seen: this is a watch, not a fence.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_api::client::now;
use control_api::proto;

use crate::front::{Closed, Front, InForce};
use crate::metrics::Metrics;
use crate::upstream::{HostPort, Resolve};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Names are resolved again after that.
const RESOLVE: Duration = Duration::from_secs(30);
/// The resolver has this long.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// An address that a name had counts that long: connections outlive answers of DNS.
const ADDRESS_COUNTS: Duration = Duration::from_secs(3600);
/// Addresses watched for one database.
const ADDRESSES_MAX: usize = 64;
/// Connections to governed addresses taken from one look, and remembered.
const CONNECTIONS_MAX: usize = 4096;
/// Addresses reported.
const REPORTED_MAX: usize = 64;
/// While a bypass lasts, the report is made newer only in these steps, seconds.
const SEEN_STEP: i64 = 60;
/// Longest line of the list; they are 150 to 190 bytes long.
const LINE_MAX: u64 = 1024;
/// Most lines read in one look.
const LINES_MAX: usize = 1_000_000;

/// State numbers of the kernel (`include/net/tcp_states.h`): a connection that stands, one that is being made.
const ESTABLISHED: u8 = 0x01;
const SYN_SENT: u8 = 0x02;

/// One line of `/proc/net/tcp{,6}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Near end.
    pub local: SocketAddr,
    /// Far end. An IPv4 address mapped into IPv6 is an IPv4 address here.
    pub remote: SocketAddr,
    /// As the kernel numbers it.
    pub state: u8,
    /// Owner.
    pub uid: u32,
    /// Of the socket.
    pub inode: u64,
}

impl Connection {
    /// Reads a line. `None`: it is none (the heading, for example).
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        words.next()?.strip_suffix(':')?;
        let local = address(words.next()?)?;
        let remote = address(words.next()?)?;
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        // Queues, timer, retransmits.
        let mut words = words.skip(3);
        let uid = words.next()?.parse().ok()?;
        // Timeout.
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self {
            local,
            remote,
            state,
            uid,
            inode,
        })
    }

    /// Bytes go out, or are about to.
    fn is_open(&self) -> bool {
        matches!(self.state, ESTABLISHED | SYN_SENT)
    }
}

/// `0100007F:1538`: words of 32 bits in the machine's order, each printed as a number; then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok().filter(|_| port.len() == 4)?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Connections that are open to one of these addresses. Lines that are too long end the reading.
///
/// # Errors
/// From the reader.
pub fn connections_to(
    reader: impl Read,
    addresses: &BTreeSet<SocketAddr>,
    found: &mut Vec<Connection>,
) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    for _ in 0..LINES_MAX {
        line.clear();
        let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if read == 0 || found.len() >= CONNECTIONS_MAX {
            break;
        }
        let connection = std::str::from_utf8(&line).ok().and_then(Connection::parse);
        found.extend(connection.filter(|one| one.is_open() && addresses.contains(&one.remote)));
    }
    Ok(())
}

/// What the kernel says now.
fn look(addresses: &BTreeSet<SocketAddr>) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match File::open(path) {
            Ok(file) => connections_to(file, addresses, &mut found)?,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Inodes of our sockets.
fn own_sockets(into: &mut HashSet<u64>) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let inode: Option<u64> = target
            .to_str()
            .and_then(|target| target.strip_prefix("socket:["))
            .and_then(|rest| rest.strip_suffix(']'))
            .and_then(|inode| inode.parse().ok());
        into.extend(inode);
    }
    Ok(())
}

/// The UID that sockets of ours get: that of file accesses, the last of the line.
fn own_uid() -> io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("Uid:")?
                .split_ascii_whitespace()
                .nth(3)?
                .parse()
                .ok()
        })
        .ok_or_else(|| io::Error::other("/proc/self/status has no line Uid"))
}

/// Connections to these addresses that are not ours.
fn foreign(addresses: &BTreeSet<SocketAddr>) -> io::Result<Vec<Connection>> {
    let uid = own_uid()?;
    let mut own = HashSet::new();
    own_sockets(&mut own)?;
    let first = look(addresses)?;
    own_sockets(&mut own)?;
    let mut foreign: Vec<Connection> = first
        .into_iter()
        .filter(|one| !own.contains(&one.inode))
        .collect();
    if foreign.iter().any(|one| one.uid == uid) {
        let still: HashSet<u64> = look(addresses)?.iter().map(|one| one.inode).collect();
        own_sockets(&mut own)?;
        foreign.retain(|one| one.uid != uid || (still.contains(&one.inode) && !own.contains(&one.inode)));
    }
    Ok(foreign)
}

/// What was seen at one address.
#[derive(Debug, Clone)]
struct Seen {
    endpoint: String,
    connections: u64,
    last_seen: i64,
}

/// Bypasses since the process began.
#[derive(Debug, Default)]
struct State {
    by_address: BTreeMap<SocketAddr, Seen>,
    /// Counted already and still there.
    counted: HashSet<(SocketAddr, u64)>,
}

impl State {
    /// Takes a look's connections; `endpoint` says whose an address is. Gives the new ones by address.
    fn take(
        &mut self,
        connections: &[Connection],
        endpoint: impl Fn(&SocketAddr) -> Option<String>,
        now: i64,
    ) -> BTreeMap<SocketAddr, u64> {
        let key = |one: &Connection| (one.local, one.inode);
        let there: HashSet<_> = connections.iter().map(key).collect();
        self.counted.retain(|one| there.contains(one));
        let mut new = BTreeMap::new();
        for connection in connections {
            let Some(endpoint) = endpoint(&connection.remote) else {
                continue;
            };
            let is_new = self.counted.insert(key(connection));
            if is_new {
                *new.entry(connection.remote).or_default() += 1;
            }
            if !self.by_address.contains_key(&connection.remote) && self.by_address.len() >= REPORTED_MAX {
                let oldest = self.by_address.iter().min_by_key(|(_, seen)| seen.last_seen);
                if let Some(oldest) = oldest.map(|(address, _)| *address) {
                    self.by_address.remove(&oldest);
                }
            }
            let seen = self.by_address.entry(connection.remote).or_insert(Seen {
                endpoint,
                connections: 0,
                last_seen: now,
            });
            seen.connections += u64::from(is_new);
            if is_new || now >= seen.last_seen + SEEN_STEP {
                seen.last_seen = now;
            }
        }
        new
    }
}

/// The watch over the databases of a pod.
#[derive(Debug)]
pub struct BypassWatch {
    fronts: Vec<Arc<Front>>,
    metrics: Metrics,
    state: Mutex<State>,
}

/// Addresses of one database, and when a name gave them.
#[derive(Debug, Default)]
struct Addresses {
    resolved: Option<Instant>,
    known: BTreeMap<SocketAddr, Instant>,
}

impl BypassWatch {
    /// Over the databases of these fronts.
    pub fn new(fronts: Vec<Arc<Front>>, metrics: Metrics) -> Self {
        Self {
            fronts,
            metrics,
            state: Mutex::default(),
        }
    }

    /// What was seen, for the operator.
    pub fn report(&self) -> Vec<proto::Bypass> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(address, seen): (&SocketAddr, &Seen)| proto::Bypass {
            address: address.to_string(),
            endpoint: seen.endpoint.clone(),
            connections: seen.connections,
            last_seen: seen.last_seen,
        };
        state.by_address.iter().map(of).collect()
    }

    /// Looks again and again, until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut addresses: Vec<Addresses> = self.fronts.iter().map(|_| Addresses::default()).collect();
        let mut failed = false;
        loop {
            ticks.tick().await;
            let mut governed = BTreeMap::new();
            for (front, known) in self.fronts.iter().zip(&mut addresses) {
                if is_governed(front) {
                    known.bring_up_to_date(front).await;
                    let endpoint = front.endpoint.to_string();
                    governed.extend(known.known.keys().map(|address| (*address, endpoint.clone())));
                }
            }
            if governed.is_empty() {
                continue;
            }
            let watched = governed.keys().copied().collect();
            let looked = tokio::task::spawn_blocking(move || foreign(&watched)).await;
            match looked {
                Ok(Ok(connections)) => {
                    failed = false;
                    self.take(&connections, &governed);
                }
                Ok(Err(error)) if !failed => {
                    failed = true;
                    tracing::error!(%error, "connections that go around the sidecar cannot be looked for");
                }
                Ok(Err(_)) => {}
                Err(error) => tracing::error!(%error, "a look for connections failed"),
            }
        }
    }

    fn take(&self, connections: &[Connection], governed: &BTreeMap<SocketAddr, String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new = state.take(connections, |address| governed.get(address).cloned(), now());
        for (address, count) in new {
            self.metrics.bypasses.inc_by(count);
            let endpoint = governed.get(&address).map(String::as_str);
            tracing::warn!(
                %address, endpoint, connections = count,
                "the application went around the sidecar: what it does there is not governed and not recorded"
            );
        }
    }
}

/// A policy is meant to hold there.
fn is_governed(front: &Front) -> bool {
    match &*front.in_force() {
        InForce::Policies(_)
        | InForce::Closed {
            why: Closed::TooOld | Closed::Unusable(_),
            ..
        } => true,
        InForce::Closed {
            why: Closed::NotLoaded | Closed::NoPolicy,
            ..
        } => false,
    }
}

impl Addresses {
    async fn bring_up_to_date(&mut self, front: &Front) {
        if self.resolved.is_some_and(|at| at.elapsed() < RESOLVE) {
            return;
        }
        let name = front.name();
        let asked = tokio::time::timeout(RESOLVE_TIMEOUT, Resolve::WithoutHostsFile.addresses(&name)).await;
        match asked {
            Ok(Ok(found)) => self.take(&found, front, Instant::now()),
            // What is known stays watched. Who connects to the database meets the same failure, and says so.
            Ok(Err(_)) | Err(_) => tracing::debug!(host = name.host, "the name cannot be resolved now"),
        }
        self.resolved = Some(Instant::now());
    }

    fn take(&mut self, found: &[SocketAddr], front: &Front, now: Instant) {
        self.known
            .retain(|_, at| now.saturating_duration_since(*at) < ADDRESS_COUNTS);
        for address in found.iter().take(ADDRESSES_MAX) {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            // A name that leads to ourselves is no way around.
            let own = HostPort {
                host: address.ip().to_string(),
                port: address.port(),
            };
            if own != front.listen {
                self.known.insert(address, now);
            }
        }
        while self.known.len() > ADDRESSES_MAX
            && let Some((oldest, _)) = self.known.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = *oldest;
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(address: SocketAddr) -> String {
        let words: Vec<[u8; 4]> = match address.ip() {
            IpAddr::V4(ip) => vec![ip.octets()],
            IpAddr::V6(ip) => ip
                .octets()
                .chunks(4)
                .map(|word| word.try_into().unwrap())
                .collect(),
        };
        let words: String = words
            .into_iter()
            .map(|word| format!("{:08X}", u32::from_ne_bytes(word)))
            .collect();
        format!("{words}:{:04X}", address.port())
    }

    /// As the kernel prints it (`get_tcp4_sock` in `net/ipv4/tcp_ipv4.c`).
    fn print(index: usize, connection: &Connection) -> String {
        format!(
            "{index:4}: {} {} {:02X} 00000000:00000000 00:00000000 00000000 {:5} {:8} {} 1 0000000043b0adc3 20 4 30 10 -1\n",
            hex(connection.local),
            hex(connection.remote),
            connection.state,
            connection.uid,
            0,
            connection.inode,
        )
    }

    fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = |(ip, port): ([u8; 4], u16)| SocketAddr::new(Ipv4Addr::from(ip).into(), port);
        // Beyond the mapped ones, which are read as IPv4.
        let v6 = |(ip, port): ([u8; 16], u16)| SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), port);
        let mapped = |address: &SocketAddr| address.ip().to_canonical().is_ipv4();
        prop_oneof![
            (
                any::<([u8; 4], u16)>().prop_map(v4),
                any::<([u8; 4], u16)>().prop_map(v4)
            ),
            (
                any::<([u8; 16], u16)>().prop_map(v6),
                any::<([u8; 16], u16)>().prop_map(v6)
            )
                .prop_filter("mapped", move |(one, other)| !mapped(one) && !mapped(other)),
        ]
    }

    fn connection() -> impl Strategy<Value = Connection> {
        (ends(), 0_u8..16, any::<u32>(), any::<u64>()).prop_map(|((local, remote), state, uid, inode)| {
            Connection {
                local,
                remote,
                state,
                uid,
                inode,
            }
        })
    }

    proptest! {
        #[test]
        fn what_the_kernel_prints_is_read(connection in connection(), index in 0..100_000_usize) {
            prop_assert_eq!(Connection::parse(&print(index, &connection)), Some(connection));
        }

        #[test]
        fn just_the_open_ones_to_those_addresses_are_found(
            connections in proptest::collection::vec(connection(), 0..50),
            watched in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let addresses: BTreeSet<SocketAddr> = if connections.is_empty() {
                BTreeSet::new()
            } else {
                watched.iter().map(|index| index.get(&connections).remote).collect()
            };
            let mut text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n".to_owned();
            for (index, connection) in connections.iter().enumerate() {
                text.push_str(&print(index, connection));
            }
            let mut found = Vec::new();
            connections_to(text.as_bytes(), &addresses, &mut found).unwrap();
            let expected: Vec<Connection> = connections
                .into_iter()
                .filter(|one| (one.state == 1 || one.state == 2) && addresses.contains(&one.remote))
                .collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..4000), text in ".{0,200}") {
            let mut found = Vec::new();
            connections_to(bytes.as_slice(), &BTreeSet::new(), &mut found).unwrap();
            prop_assert!(found.is_empty());
            let _ = Connection::parse(&text);
        }
    }

    #[test]
    fn an_address_mapped_into_ipv6_is_the_ipv4_address() {
        let line = "   3: 0000000000000000FFFF00000200000A:9C40 0000000000000000FFFF00000100007F:1538 01 \
                    00000000:00000000 00:00000000 00000000  1000        0 77 1 0 20 4 30 10 -1";
        let connection = Connection::parse(line).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(connection.remote, "127.0.0.1:5432".parse().unwrap());
            assert_eq!(connection.local, "10.0.0.2:40000".parse().unwrap());
        }
        assert_eq!((connection.uid, connection.inode), (1000, 77));
    }

    #[test]
    fn memory_is_bounded_whatever_is_listed() {
        let one = Connection {
            local: "10.0.0.2:1".parse().unwrap(),
            remote: "10.0.0.1:5432".parse().unwrap(),
            state: ESTABLISHED,
            uid: 1,
            inode: 1,
        };
        let text: String = (0..3 * CONNECTIONS_MAX).map(|index| print(index, &one)).collect();
        let addresses = BTreeSet::from([one.remote]);
        let mut found = Vec::new();
        connections_to(text.as_bytes(), &addresses, &mut found).unwrap();
        assert_eq!(found.len(), CONNECTIONS_MAX);
        // A line without an end is read in pieces.
        found.clear();
        connections_to(io::repeat(b'x').take(1 << 20), &addresses, &mut found).unwrap();
        assert!(found.is_empty());
    }

    #[test]
    fn our_own_sockets_are_not_foreign_and_those_of_a_child_are() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _own = std::net::TcpStream::connect(address).unwrap();
        let addresses = BTreeSet::from([address]);
        assert_eq!(look(&addresses).unwrap().len(), 1);
        assert_eq!(foreign(&addresses).unwrap(), []);
        // The same user, another process.
        let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r line", address.port());
        let mut child = std::process::Command::new("bash")
            .args(["-c", &connect])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let found = test_support::wait_for("the child's connection", 20, || {
            let found = foreign(&addresses).unwrap();
            (!found.is_empty()).then_some(found)
        })
        .unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uid, own_uid().unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        test_support::wait_for("its end", 20, || {
            foreign(&addresses).unwrap().is_empty().then_some(())
        })
        .unwrap();
    }

    #[test]
    fn each_connection_counts_once_and_keeps_the_report_fresh() {
        let connection = |inode| Connection {
            local: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1000 + inode as u16),
            remote: "10.0.0.1:5432".parse().unwrap(),
            state: ESTABLISHED,
            uid: 1,
            inode,
        };
        let endpoint = |_: &SocketAddr| Some("db:5432".to_owned());
        let mut state = State::default();
        let address: SocketAddr = "10.0.0.1:5432".parse().unwrap();
        assert_eq!(
            state.take(&[connection(1), connection(2)], endpoint, 100)[&address],
            2
        );
        assert!(
            state
                .take(&[connection(1), connection(2)], endpoint, 130)
                .is_empty()
        );
        assert_eq!(state.by_address[&address].last_seen, 100);
        state.take(&[connection(1)], endpoint, 160);
        assert_eq!(state.by_address[&address].last_seen, 160);
        // A new one, and one that comes back under the same numbers.
        assert_eq!(
            state.take(&[connection(1), connection(2)], endpoint, 161)[&address],
            1
        );
        let seen = &state.by_address[&address];
        assert_eq!((seen.connections, seen.last_seen), (3, 161));
        state.take(&[], endpoint, 500);
        assert!(state.counted.is_empty());
        assert_eq!(state.by_address[&address].last_seen, 161);
    }

    #[test]
    fn the_report_is_bounded() {
        let mut state = State::default();
        for index in 0..1000_u16 {
            let connection = Connection {
                local: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1),
                remote: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), index),
                state: ESTABLISHED,
                uid: 1,
                inode: u64::from(index),
            };
            state.take(&[connection], |_| Some("db".to_owned()), i64::from(index));
        }
        assert_eq!(state.by_address.len(), REPORTED_MAX);
        // The newest stay.
        assert_eq!(
            state.by_address.values().map(|seen| seen.last_seen).max(),
            Some(999)
        );
        assert_eq!(state.counted.len(), 1);
    }
}
