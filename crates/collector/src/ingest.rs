//! Takes groups in: checks each one's signature and place in its chain, appends what is new, signs a checkpoint and
//! answers with proofs. One thread does this; what arrives meanwhile shares the next fdatasync.
//!
//! - A group that is already there is answered with where it is: sending twice is harmless.
//! - A group that leaves numbers out is taken, and an event of the collector's own says which are missing.
//! - A group that tells numbers otherwise than the log does is a second history: it is refused and kept as evidence.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use receipts::{
    Body, BootId, ChainClose, ChainOpen, ChainPeer, ChainWriter, Claim, Digest, EventHeader, Gap, GapChain,
    PreviousBoot, SignedGroup, SigningKey, sign_group,
};
use serde::{Deserialize, Serialize};

use control_api::peer::PodIdentity;

use crate::index::{Index, IndexError, KnownChain, OpenChain, POD_GONE};
use crate::log::{Log, LogError};

/// Answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestAnswer {
    /// Key of the log.
    pub log_key: String,
    /// Checkpoint that covers the groups.
    pub checkpoint: String,
    /// Proof from the size that the sender has seen.
    pub consistency: Vec<Digest>,
    /// Where each group is.
    pub groups: Vec<Placed>,
}

/// Where a group is in the log, and the proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The process.
    pub boot: BootId,
    /// Its first number.
    pub first_seq: u64,
    /// Log index of its first event.
    pub index: u64,
    /// Leads from its events to the checkpoint's root.
    pub proof: Vec<Digest>,
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Not groups, or not validly signed.
    #[error("group {first_seq} of {boot}: {what}")]
    BadGroup {
        /// The process it says.
        boot: BootId,
        /// Its first number.
        first_seq: u64,
        /// What is wrong.
        what: String,
    },
    /// The log has these numbers with other events.
    #[error("group {first_seq} of {boot} is a second history of numbers that the log already has")]
    Fork {
        /// The process.
        boot: BootId,
        /// Its first number.
        first_seq: u64,
    },
    /// The sender has seen more than is here.
    #[error("the sender has seen {seen} entries of this log, it has {size}")]
    SeenMore {
        /// What it says.
        seen: u64,
        /// What there is.
        size: u64,
    },
    /// The chain is another pod's.
    #[error("the chain {boot} is delivered by another pod")]
    OtherPod {
        /// The process.
        boot: BootId,
    },
    /// The log cannot be written.
    #[error("the log cannot be written: {0}")]
    Log(String),
    /// The index cannot be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Groups in order.
    pub groups: Vec<SignedGroup>,
    /// Size of the log that the sender has verified; 0 for none.
    pub seen_size: u64,
    /// Who sends, from its verified certificate; `None` where nobody is asked for one.
    pub pod: Option<PodIdentity>,
}

/// The one who writes the log.
#[derive(Debug)]
pub struct Ingest {
    log: Arc<RwLock<Log>>,
    index: Index,
    key: SigningKey,
    own: ChainWriter,
    started: Instant,
    /// Own groups that are signed and not in the log yet.
    own_waiting: Vec<SignedGroup>,
    chains: HashMap<BootId, KnownChain>,
    told_holes: HashSet<(BootId, u64)>,
    /// Pods that were named since the last append.
    new_pods: HashMap<BootId, String>,
}

enum Check {
    /// It is there already.
    There(u64),
    /// It is to be appended.
    New,
}

impl Ingest {
    /// Brings the index up to the log and opens the collector's own chain.
    ///
    /// # Errors
    /// [`IngestError`]
    pub fn start(log: Arc<RwLock<Log>>, mut index: Index) -> Result<Self, IngestError> {
        let mut seed = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| IngestError::Log("no random bytes".to_owned()))?;
        let key = SigningKey::from_seed(&seed).map_err(|problem| IngestError::Log(problem.to_string()))?;
        index.catch_up(&read(&log))?;
        let previous = index.open_collector_chains()?;
        let own = ChainWriter::new(key.boot());
        let mut ingest = Self {
            log,
            index,
            key,
            own,
            started: Instant::now(),
            own_waiting: Vec::new(),
            chains: HashMap::new(),
            told_holes: HashSet::new(),
            new_pods: HashMap::new(),
        };
        let open = ChainOpen {
            program: concat!("weir-collector ", env!("CARGO_PKG_VERSION")).to_owned(),
            key: ingest.key.public(),
            workload: Claim::absent(),
            listen: None,
            receipt_mode: None,
            previous: previous
                .into_iter()
                .map(|(boot, seq, head)| PreviousBoot { boot, seq, head })
                .collect(),
        };
        ingest.say(Body::ChainOpen(open))?;
        ingest.flush()?;
        Ok(ingest)
    }

    /// Takes requests in. The answers are in the order of the requests; when one is given, what it acknowledges is on
    /// disk. Afterwards call [`Ingest::update_index`].
    pub fn take(&mut self, requests: Vec<Request>) -> Vec<Result<IngestAnswer, IngestError>> {
        let mut append: Vec<SignedGroup> = Vec::new();
        // For each request: its groups as (boot, first_seq, events, where it is or its place in `append`).
        let mut plans = Vec::new();
        let mut in_batch: HashMap<(BootId, u64), (usize, Digest)> = HashMap::new();
        for request in requests {
            let mut planned = Vec::new();
            let mut failed = None;
            for group in request.groups {
                let (boot, first, count) = (
                    group.header.boot,
                    group.header.first_seq,
                    group.events.len() as u64,
                );
                if let Some((slot, root)) = in_batch.get(&(boot, first))
                    && *root == group.header.root
                {
                    planned.push((boot, first, count, Err(*slot)));
                    continue;
                }
                let checked = self
                    .check_pod(request.pod.as_ref(), &group)
                    .and_then(|()| self.check(&group));
                match checked {
                    Ok(Check::There(index)) => planned.push((boot, first, count, Ok(index))),
                    Ok(Check::New) => {
                        in_batch.insert((boot, first), (append.len(), group.header.root));
                        planned.push((boot, first, count, Err(append.len())));
                        append.push(group);
                    }
                    Err(error) => {
                        if let IngestError::Fork { .. } = error {
                            self.keep_evidence(&group);
                        }
                        failed = Some(error);
                        break;
                    }
                }
            }
            plans.push((planned, request.seen_size, failed));
        }
        let own = self.own_waiting.len();
        let indexes = if own + append.len() > 0 {
            let all: Vec<SignedGroup> = self.own_waiting.iter().cloned().chain(append).collect();
            match write(&self.log).append(all) {
                Ok(indexes) => {
                    self.own_waiting.clear();
                    indexes
                }
                Err(error) => {
                    tracing::error!(%error, "cannot append to the log");
                    // What was thought to be appended is not: ask the index again.
                    self.chains.clear();
                    let text = error.to_string();
                    return plans
                        .into_iter()
                        .map(|(_, _, failed)| Err(failed.unwrap_or_else(|| IngestError::Log(text.clone()))))
                        .collect();
                }
            }
        } else {
            Vec::new()
        };
        let signed = write(&self.log).sign_checkpoint();
        let log = read(&self.log);
        plans
            .into_iter()
            .map(|(planned, seen, failed)| {
                if let Some(error) = failed {
                    return Err(error);
                }
                let (size, checkpoint) = signed
                    .as_ref()
                    .map_err(|error| IngestError::Log(error.to_string()))?;
                if seen > *size {
                    return Err(IngestError::SeenMore { seen, size: *size });
                }
                let mut groups = Vec::new();
                for (boot, first_seq, count, place) in planned {
                    let index = match place {
                        Ok(index) => index,
                        Err(slot) => indexes.get(own + slot).copied().unwrap_or_default(),
                    };
                    let proof = log
                        .range_proof(index, index + count, *size)
                        .map_err(|error| IngestError::Log(error.to_string()))?;
                    groups.push(Placed {
                        boot,
                        first_seq,
                        index,
                        proof,
                    });
                }
                Ok(IngestAnswer {
                    log_key: log.key().to_vkey(),
                    checkpoint: checkpoint.clone(),
                    consistency: log
                        .consistency(seen, *size)
                        .map_err(|error| IngestError::Log(error.to_string()))?,
                    groups,
                })
            })
            .collect()
    }

    /// A chain is told by the pod that told it first. The collector's own chain says which one that is, on disk together
    /// with the first group.
    fn check_pod(&mut self, pod: Option<&PodIdentity>, group: &SignedGroup) -> Result<(), IngestError> {
        let Some(pod) = pod else { return Ok(()) };
        let boot = group.header.boot;
        let known = match self.new_pods.get(&boot) {
            Some(uid) => Some(uid.clone()),
            None => self.index.pod_of(&boot)?.map(|known| known.uid),
        };
        match known {
            Some(uid) if uid == pod.pod_uid => Ok(()),
            Some(_) => Err(IngestError::OtherPod { boot }),
            // Our own chain, or one that was taken before pods had names: nobody can claim it now.
            None if self.index.chain(&boot)?.is_some() => Err(IngestError::OtherPod { boot }),
            None => {
                // Whoever cannot sign for a chain shall not get it by being first.
                group.verify().map_err(|problem| IngestError::BadGroup {
                    boot,
                    first_seq: group.header.first_seq,
                    what: problem.to_string(),
                })?;
                self.say(Body::ChainPeer(ChainPeer {
                    boot,
                    peer: pod.uri(),
                }))?;
                self.new_pods.insert(boot, pod.pod_uid.clone());
                Ok(())
            }
        }
    }

    /// Ends the chains of a gone pod that have no end: a signed gap says that nobody knows what came after. Once only,
    /// also over restarts, because the index knows from the log which chains were ended so.
    ///
    /// # Errors
    /// [`IngestError`]
    pub(crate) fn end_chains_of(&mut self, uids: &HashSet<String>) -> Result<Vec<OpenChain>, IngestError> {
        self.update_index()?;
        let mut ended = Vec::new();
        for chain in self.index.open_pod_chains()? {
            if !uids.contains(&chain.pod.uid) {
                continue;
            }
            self.say(Body::Gap(Gap {
                chain: GapChain::Process,
                boot: chain.boot,
                from: Some(chain.next_seq),
                to: None,
                count: None,
                from_us: None,
                to_us: None,
                reason: format!(
                    "{POD_GONE} (a pod of {}, UID {})",
                    chain.pod.workload, chain.pod.uid
                ),
            }))?;
            ended.push(chain);
        }
        if !ended.is_empty() {
            self.flush()?;
        }
        Ok(ended)
    }

    fn check(&mut self, group: &SignedGroup) -> Result<Check, IngestError> {
        let header = &group.header;
        let bad = |what: &dyn std::fmt::Display| IngestError::BadGroup {
            boot: header.boot,
            first_seq: header.first_seq,
            what: what.to_string(),
        };
        let leaves = group.verify().map_err(|problem| bad(&problem))?;
        let mut prev = None;
        let mut first_prev = Digest::ZERO;
        for ((event, leaf), seq) in group.events.iter().zip(&leaves).zip(header.first_seq..) {
            let event: EventHeader = serde_json::from_slice(event).map_err(|error| bad(&error))?;
            if event.proxy.boot != header.boot || event.proxy.seq != seq {
                return Err(bad(&format!("event {seq} names another place")));
            }
            match prev {
                None => first_prev = event.proxy.prev,
                Some(prev) if prev != event.proxy.prev => {
                    return Err(bad(&format!(
                        "event {seq} does not follow from the one before it"
                    )));
                }
                Some(_) => {}
            }
            prev = Some(*leaf);
        }
        let last_leaf = prev.unwrap_or(Digest::ZERO);
        let known = match self.chains.get(&header.boot) {
            Some(known) => known.clone(),
            None => self.index.chain(&header.boot)?.unwrap_or(KnownChain {
                next_seq: 0,
                last_leaf: Digest::ZERO,
            }),
        };
        let fork = IngestError::Fork {
            boot: header.boot,
            first_seq: header.first_seq,
        };
        if header.first_seq < known.next_seq {
            return match self.index.group(&header.boot, header.first_seq)? {
                Some((count, index, root)) if count == header.count && root == header.root => {
                    Ok(Check::There(index))
                }
                Some(_) => Err(fork),
                None if self
                    .index
                    .overlaps(&header.boot, header.first_seq, header.last_seq())? =>
                {
                    Err(fork)
                }
                // Numbers that were missing arrive late.
                None if header.last_seq() < known.next_seq => Ok(Check::New),
                None => Err(fork),
            };
        }
        if header.first_seq == known.next_seq {
            if first_prev != known.last_leaf {
                return Err(fork);
            }
        } else if self.told_holes.insert((header.boot, known.next_seq)) {
            self.say(Body::Gap(Gap {
                chain: GapChain::Process,
                boot: header.boot,
                from: Some(known.next_seq),
                to: Some(header.first_seq - 1),
                count: Some(header.first_seq - known.next_seq),
                from_us: None,
                to_us: None,
                reason: "never arrived at the collector".to_owned(),
            }))?;
        }
        self.chains.insert(
            header.boot,
            KnownChain {
                next_seq: header.last_seq() + 1,
                last_leaf,
            },
        );
        Ok(Check::New)
    }

    /// Signs an event of the collector's own; it goes into the log with the next append.
    fn say(&mut self, body: Body) -> Result<(), IngestError> {
        let mono_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let event = self.own.link(now_us(), mono_us, None, None, body);
        let header = sign_group(&self.key, event.seq, &[event.leaf])
            .map_err(|problem| IngestError::Log(problem.to_string()))?;
        self.own_waiting.push(SignedGroup {
            header,
            events: vec![event.bytes],
        });
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IngestError> {
        let log_error = |error: LogError| IngestError::Log(error.to_string());
        {
            let mut log = write(&self.log);
            log.append(self.own_waiting.clone()).map_err(log_error)?;
            self.own_waiting.clear();
            log.sign_checkpoint().map_err(log_error)?;
            log.write_checkpoint().map_err(log_error)?;
        }
        self.update_index()
    }

    /// Brings the index up to the log.
    ///
    /// # Errors
    /// [`IngestError::Index`]
    pub fn update_index(&mut self) -> Result<(), IngestError> {
        self.index.catch_up(&read(&self.log))?;
        if self.own_waiting.is_empty() {
            // What they say is in the index now.
            self.new_pods.clear();
        }
        Ok(())
    }

    /// Writes the last checkpoint to its file.
    ///
    /// # Errors
    /// [`IngestError::Log`]
    pub fn write_checkpoint(&self) -> Result<(), IngestError> {
        read(&self.log)
            .write_checkpoint()
            .map_err(|error| IngestError::Log(error.to_string()))
    }

    /// Ends the collector's own chain.
    ///
    /// # Errors
    /// [`IngestError`]
    pub fn close(&mut self, reason: &str) -> Result<(), IngestError> {
        self.say(Body::ChainClose(ChainClose {
            reason: reason.to_owned(),
        }))?;
        self.flush()?;
        write(&self.log)
            .seal_all()
            .map_err(|error| IngestError::Log(error.to_string()))
    }

    /// A second history is evidence: it is kept as it came, at most 100 files.
    fn keep_evidence(&self, group: &SignedGroup) {
        let dir = read(&self.log).dir().join("forks");
        let header = &group.header;
        tracing::error!(boot = %header.boot, first_seq = header.first_seq, "a second history of one process arrived");
        let kept = std::fs::create_dir_all(&dir).and_then(|()| {
            if std::fs::read_dir(&dir)?.count() >= 100 {
                return Ok(());
            }
            let path = dir.join(format!(
                "{}-{}-{}.group",
                header.boot, header.first_seq, header.root
            ));
            std::fs::File::create(path)?.write_all(&group.encode())
        });
        if let Err(error) = kept {
            tracing::error!(%error, "cannot keep it");
        }
    }
}

fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_micros()).ok())
        .unwrap_or(0)
}

/// The log's data is valid at any point where its lock is free.
pub(crate) fn read(log: &RwLock<Log>) -> RwLockReadGuard<'_, Log> {
    log.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(log: &RwLock<Log>) -> RwLockWriteGuard<'_, Log> {
    log.write().unwrap_or_else(PoisonError::into_inner)
}
