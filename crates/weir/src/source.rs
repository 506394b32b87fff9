//! Where receipts are read from: a running collector, a collector's folder, or a sidecar's spool folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use collector::{AuditFilter, AuditRow, Direction, Index, Lineage, Log, PlacedGroup, Status};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use sidecar::spool::{Item, walk};

const ANSWER_BYTES_MAX: usize = 1 << 30;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where to read receipts.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SourceArgs {
    /// A running collector
    #[arg(long, env = "WEIR_COLLECTOR", value_name = "URL", conflicts_with_all = ["data_dir"])]
    pub collector: Option<String>,
    /// A collector's folder, also while it runs
    #[arg(long, env = "WEIR_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// A sidecar's spool folder, also while it runs; the default where nothing else is given
    #[arg(long, env = "WEIR_SPOOL_DIR", value_name = "DIR", conflicts_with_all = ["collector", "data_dir"])]
    pub spool_dir: Option<PathBuf>,
}

/// A place where receipts are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Collector(String),
    Data(PathBuf),
    Spool(PathBuf),
}

impl SourceArgs {
    /// Whether a place was given.
    pub(crate) fn is_given(&self) -> bool {
        self.collector.is_some() || self.data_dir.is_some() || self.spool_dir.is_some()
    }

    /// Whether this machine has a spool folder (or several).
    pub(crate) fn has_spool(&self) -> bool {
        spool_parent()
            .ok()
            .and_then(|parent| std::fs::read_dir(parent).ok())
            .is_some_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()))
    }

    /// The place given, else the one spool folder of this machine's sidecar.
    pub(crate) fn source(&self) -> Result<Source> {
        if let Some(url) = &self.collector {
            return Ok(Source::Collector(url.trim_end_matches('/').to_owned()));
        }
        if let Some(dir) = &self.data_dir {
            return Ok(Source::Data(dir.clone()));
        }
        if let Some(dir) = &self.spool_dir {
            return Ok(Source::Spool(dir.clone()));
        }
        let parent = spool_parent()?;
        let mut found: Vec<PathBuf> = match std::fs::read_dir(&parent) {
            Ok(entries) => entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.is_dir())
                .collect(),
            Err(_) => Vec::new(),
        };
        found.sort();
        match found.as_slice() {
            [only] => Ok(Source::Spool(only.clone())),
            [] => bail!(
                "no receipts in {}: give --collector, --data-dir or --spool-dir",
                parent.display()
            ),
            several => {
                let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                bail!(
                    "several sidecars keep receipts here; give one with --spool-dir:\n  {}",
                    names.join("\n  ")
                )
            }
        }
    }
}

/// Where sidecars keep their spool folders, one for each port.
fn spool_parent() -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if let Some(state) = std::env::var_os("XDG_STATE_HOME").filter(|state| !state.is_empty()) {
        return Ok(Path::new(&state).join("weir/spool"));
    }
    if root {
        return Ok(PathBuf::from("/var/lib/weir/spool"));
    }
    let home = std::env::var_os("HOME").context("no HOME: give --spool-dir")?;
    Ok(Path::new(&home).join(".local/state/weir/spool"))
}

impl Source {
    pub(crate) fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        match self {
            Self::Collector(url) => {
                let question = query(&[
                    ("object", filter.object.clone()),
                    ("actor", filter.actor.clone()),
                    ("run", filter.run.clone()),
                    ("since_us", filter.since_us.map(|since| since.to_string())),
                    ("verdict", filter.verdict.map(|verdict| verdict.name().to_owned())),
                    ("limit", filter.limit.map(|limit| limit.to_string())),
                ]);
                get_json(&format!("{url}/v1/audit{question}"))
            }
            Self::Data(_) | Self::Spool(_) => Ok(self.index()?.audit(filter)?),
        }
    }

    pub(crate) fn lineage(&self, name: &str, direction: Direction) -> Result<Lineage> {
        match self {
            Self::Collector(url) => {
                let word = match direction {
                    Direction::Upstream => "upstream",
                    Direction::Downstream => "downstream",
                };
                let question = query(&[
                    ("name", Some(name.to_owned())),
                    ("direction", Some(word.to_owned())),
                ]);
                get_json(&format!("{url}/v1/lineage{question}"))
            }
            Self::Data(_) | Self::Spool(_) => Ok(self.index()?.lineage(name, direction)?),
        }
    }

    pub(crate) fn status(&self) -> Result<Option<Status>> {
        match self {
            Self::Collector(url) => get_json(&format!("{url}/v1/status")).map(Some),
            Self::Data(dir) => {
                let log = Log::open_to_read(dir)?;
                Ok(Some(collector::status_of(&log, &self.index()?)?))
            }
            Self::Spool(_) => Ok(None),
        }
    }

    /// An index of a folder: the collector's own where it has one that is up to date, else one made for this question.
    fn index(&self) -> Result<Index> {
        match self {
            Self::Collector(_) => bail!("a running collector keeps its index to itself"),
            Self::Data(dir) => {
                let log = Log::open_to_read(dir)?;
                if let Ok(index) = Index::open_to_read(&dir.join("index.sqlite"))
                    && index.next().is_ok_and(|next| next >= log.size())
                {
                    return Ok(index);
                }
                let mut index = Index::in_memory()?;
                index.catch_up(&log)?;
                Ok(index)
            }
            Self::Spool(dir) => {
                let (mut groups, mut unsigned, mut at) = (Vec::new(), Vec::new(), 0);
                walk(dir, |item| match item {
                    Item::Group(group) => {
                        let placed = PlacedGroup {
                            index: at,
                            group: Arc::new(group),
                        };
                        at = placed.end();
                        groups.push(placed);
                    }
                    Item::Unsigned(event) => unsigned.push(event),
                    Item::Segment { .. } | Item::Orphan(_) | Item::Mark(_) | Item::Torn { .. } => {}
                })
                .with_context(|| format!("cannot read the spool folder {}", dir.display()))?;
                let mut index = Index::in_memory()?;
                index.add(&groups)?;
                // Events that were recovered are told by their successor; only a running process has others.
                if sidecar::spool::is_live(dir) {
                    for (event, index_at) in unsigned.iter().zip(at..) {
                        index.add_unsigned(index_at, event)?;
                    }
                }
                Ok(index)
            }
        }
    }
}

fn query(pairs: &[(&str, Option<String>)]) -> String {
    let given: Vec<String> = pairs
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", percent_encoded(value.as_ref()?))))
        .collect();
    if given.is_empty() {
        String::new()
    } else {
        format!("?{}", given.join("&"))
    }
}

pub(crate) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

pub(crate) fn get_json<T: DeserializeOwned>(url: &str) -> Result<T> {
    serde_json::from_str(&get_text(url)?).with_context(|| format!("{url} gave something else than asked for"))
}

pub(crate) fn get_text(url: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exchange = async {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let response = client.get(url.parse()?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .to_bytes();
        let text = String::from_utf8(body.to_vec()).context("the answer is not text")?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok::<_, anyhow::Error>(text)
    };
    runtime
        .block_on(async {
            tokio::time::timeout(TIMEOUT, exchange)
                .await
                .context("no answer in time")?
        })
        .with_context(|| format!("cannot ask the collector at {url}"))
}
