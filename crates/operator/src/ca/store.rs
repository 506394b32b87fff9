//! The roots in a Secret of Weir's own namespace: made by whichever replica is first, watched by all, rotated by the
//! holder of the lease alone.
//!
//! The Secret belongs to nobody, so that it outlives an uninstall: whoever installs again finds the roots that pods and
//! applications know. Deleting it while operators run changes nothing: the holder of the lease writes it back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_api::client::now;
use control_api::identity::certificates_to_pem;
use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::watch;

use super::{Authority, CaProblem, Kind, Lifetimes, Root};

/// Name of the Secret.
pub const SECRET: &str = "weir-ca";
/// Annotation on it: `now` makes new roots. Removed when they are made.
pub const ROTATE: &str = "weir.dev/rotate";

/// Keys of one root in the Secret.
struct Keys {
    certificate: &'static str,
    private: &'static str,
    previous: &'static str,
    previous_until: &'static str,
    bridge: &'static str,
}

const IDENTITY: Keys = Keys {
    certificate: "root.crt",
    private: "root.key",
    previous: "previous-root.crt",
    previous_until: "previous-root.until",
    bridge: "bridge-root.crt",
};
const CAPTURE: Keys = Keys {
    certificate: "capture.crt",
    private: "capture.key",
    previous: "previous-capture.crt",
    previous_until: "previous-capture.until",
    bridge: "bridge-capture.crt",
};

/// Which Secret, and how long things live.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Weir's own.
    pub namespace: String,
    /// [`SECRET`] but in tests.
    pub secret: String,
    /// `spiffe://DOMAIN/…`
    pub trust_domain: String,
    /// How long things live.
    pub lifetimes: Lifetimes,
    /// How often the clock is looked at.
    pub check_every: Duration,
}

impl StoreConfig {
    /// As in production.
    pub fn new(namespace: &str, trust_domain: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: SECRET.to_owned(),
            trust_domain: trust_domain.to_owned(),
            lifetimes: Lifetimes::default(),
            check_every: Duration::from_secs(30),
        }
    }
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum StoreProblem {
    /// The API server.
    #[error("cannot read or write the secret `{secret}`: {error}")]
    Api {
        /// Its name.
        secret: String,
        /// What it says.
        error: Box<kube::Error>,
    },
    /// What is stored, or making it.
    #[error("secret `{secret}`: {problem}")]
    Ca {
        /// Its name.
        secret: String,
        /// What is wrong.
        problem: CaProblem,
    },
}

/// The authority, kept in step with the Secret.
pub struct Store {
    api: Api<Secret>,
    config: StoreConfig,
    sender: watch::Sender<Arc<Authority>>,
    /// As the API server has it; `None`: it is gone.
    stored: Option<Secret>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Reads the roots, or makes them if there are none.
    ///
    /// # Errors
    /// [`StoreProblem`]. A Secret that cannot be used is never overwritten: pods trust what it held.
    pub async fn open(client: Client, config: StoreConfig) -> Result<Self, StoreProblem> {
        let api: Api<Secret> = Api::namespaced(client, &config.namespace);
        let problem = |problem| StoreProblem::Ca {
            secret: config.secret.clone(),
            problem,
        };
        let failed = |error| StoreProblem::Api {
            secret: config.secret.clone(),
            error: Box::new(error),
        };
        let stored = match api.get_opt(&config.secret).await.map_err(failed)? {
            Some(stored) => stored,
            None => {
                let time = now();
                let roots = Root::new(Kind::Identity, time, &config.lifetimes).map_err(problem)?;
                let capture = Root::new(Kind::Capture, time, &config.lifetimes).map_err(problem)?;
                let secret = write(None, &config, &roots, &capture);
                match api.create(&PostParams::default(), &secret).await {
                    Ok(stored) => {
                        tracing::info!(secret = config.secret, "roots made");
                        stored
                    }
                    // Another replica was first.
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        api.get(&config.secret).await.map_err(failed)?
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        };
        let (roots, capture) = read(&stored).map_err(problem)?;
        let authority =
            Authority::new(roots, capture, &config.trust_domain, config.lifetimes, now()).map_err(problem)?;
        Ok(Self {
            api,
            sender: watch::channel(Arc::new(authority)).0,
            config,
            stored: Some(stored),
        })
    }

    /// What signs now, and every change of it.
    pub fn authority(&self) -> watch::Receiver<Arc<Authority>> {
        self.sender.subscribe()
    }

    /// Watches and rotates until the task is dropped.
    pub async fn run(mut self, is_leader: watch::Receiver<bool>) {
        let selected = watcher::Config::default().fields(&format!("metadata.name={}", self.config.secret));
        let mut events = watcher::watcher(self.api.clone(), selected)
            .default_backoff()
            .boxed();
        let mut seen = false;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => seen = false,
                    Some(Ok(Event::InitApply(secret) | Event::Apply(secret))) => {
                        seen = true;
                        self.take(secret);
                    }
                    Some(Ok(Event::InitDone)) if seen => {}
                    Some(Ok(Event::InitDone | Event::Delete(_))) => self.stored = None,
                    Some(Err(error)) => tracing::warn!(%error, secret = self.config.secret, "cannot watch the roots"),
                    // A watcher has no end.
                    None => return,
                },
                () = tokio::time::sleep(self.config.check_every) => {}
            }
            self.keep_issuers();
            if *is_leader.borrow() {
                self.lead().await;
            }
        }
    }

    fn take(&mut self, secret: Secret) {
        match read(&secret) {
            Ok((roots, capture)) => {
                self.stored = Some(secret);
                self.switch(roots, capture);
            }
            // What we hold still works; what a restart would do is said loudly.
            Err(problem) => {
                tracing::error!(%problem, secret = self.config.secret, "the stored roots cannot be used")
            }
        }
    }

    /// Goes on with these roots; new intermediates only if the roots are new.
    fn switch(&self, roots: Root, capture: Root) {
        let current = self.sender.borrow().clone();
        if *current.root() == roots && *current.capture_root() == capture {
            return;
        }
        tracing::info!(root = ?roots, "roots changed");
        self.renew(roots, capture);
    }

    fn keep_issuers(&self) {
        let current = self.sender.borrow().clone();
        if current.issuers_due(now()) {
            self.renew(current.root().clone(), current.capture_root().clone());
        }
    }

    fn renew(&self, roots: Root, capture: Root) {
        match Authority::new(
            roots,
            capture,
            &self.config.trust_domain,
            self.config.lifetimes,
            now(),
        ) {
            Ok(authority) => {
                self.sender.send_replace(Arc::new(authority));
            }
            Err(problem) => tracing::error!(%problem, "cannot make intermediates"),
        }
    }

    /// One step of the holder of the lease. What fails is tried again at the next look at the clock.
    async fn lead(&mut self) {
        let current = self.sender.borrow().clone();
        let Some(stored) = &self.stored else {
            let secret = write(None, &self.config, current.root(), current.capture_root());
            match self.api.create(&PostParams::default(), &secret).await {
                Ok(stored) => {
                    tracing::warn!(
                        secret = self.config.secret,
                        "the roots were deleted; written back"
                    );
                    self.stored = Some(stored);
                }
                Err(error) => tracing::warn!(%error, "cannot write the roots back"),
            }
            return;
        };
        let asked = asked(stored);
        let step = next(
            current.root(),
            current.capture_root(),
            asked,
            now(),
            &self.config.lifetimes,
        );
        let (roots, capture) = match step {
            Ok(Some(step)) => step,
            Ok(None) => return,
            Err(problem) => {
                tracing::error!(%problem, "cannot make new roots");
                return;
            }
        };
        // With the version that was read: two writers cannot both win.
        let secret = write(Some(stored), &self.config, &roots, &capture);
        match self
            .api
            .replace(&self.config.secret, &PostParams::default(), &secret)
            .await
        {
            Ok(stored) => {
                self.stored = Some(stored);
                self.switch(roots, capture);
            }
            Err(error) => tracing::warn!(%error, "cannot store the new roots"),
        }
    }
}

fn asked(secret: &Secret) -> bool {
    let annotations = secret.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(ROTATE))
        .is_some_and(|value| value == "now")
}

/// What the roots should be now, if something else: ended ones go, due ones get a successor. Never two steps of one root
/// at once, because a third root in the bundle would have no place.
fn next(
    roots: &Root,
    capture: &Root,
    asked: bool,
    now: i64,
    lifetimes: &Lifetimes,
) -> Result<Option<(Root, Root)>, CaProblem> {
    let step = |root: &Root, kind| -> Result<Option<Root>, CaProblem> {
        if let Some(without) = root.without_ended(now) {
            return Ok(Some(without));
        }
        if root.previous.is_none() && (asked || root.due(now)) {
            return root.rotate(kind, now, lifetimes).map(Some);
        }
        Ok(None)
    };
    let (new_roots, new_capture) = (step(roots, Kind::Identity)?, step(capture, Kind::Capture)?);
    if new_roots.is_none() && new_capture.is_none() {
        return Ok(None);
    }
    Ok(Some((
        new_roots.unwrap_or_else(|| roots.clone()),
        new_capture.unwrap_or_else(|| capture.clone()),
    )))
}

fn write(old: Option<&Secret>, config: &StoreConfig, roots: &Root, capture: &Root) -> Secret {
    let mut data = BTreeMap::new();
    for (keys, root) in [(&IDENTITY, roots), (&CAPTURE, capture)] {
        let mut put = |key: &str, value: String| data.insert(key.to_owned(), ByteString(value.into_bytes()));
        put(keys.certificate, root.certificate_pem());
        put(keys.private, root.key_pem().to_owned());
        if let Some(previous) = &root.previous {
            put(
                keys.previous,
                certificates_to_pem(std::slice::from_ref(&previous.certificate)),
            );
            put(keys.previous_until, previous.until.to_string());
        }
        if let Some(bridge) = &root.bridge {
            put(keys.bridge, certificates_to_pem(std::slice::from_ref(bridge)));
        }
    }
    let mut metadata = old.map_or_else(
        || ObjectMeta {
            name: Some(config.secret.clone()),
            namespace: Some(config.namespace.clone()),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), "weir".to_owned()),
                ("app.kubernetes.io/component".to_owned(), "ca".to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        |old| old.metadata.clone(),
    );
    // Done only if both have a new root: else the wish waits until the roots before are gone.
    if roots.previous.is_some()
        && capture.previous.is_some()
        && let Some(annotations) = &mut metadata.annotations
    {
        annotations.remove(ROTATE);
    }
    Secret {
        metadata,
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn read(secret: &Secret) -> Result<(Root, Root), CaProblem> {
    let one = |keys: &Keys| -> Result<Root, CaProblem> {
        let stored = |key: &'static str, why: &str| CaProblem::Stored {
            key,
            why: why.to_owned(),
        };
        let text = |key: &'static str| -> Result<Option<&str>, CaProblem> {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value
                .map(|value| std::str::from_utf8(&value.0).map_err(|_| stored(key, "it is no text")))
                .transpose()
        };
        let must = |key| text(key)?.ok_or_else(|| stored(key, "it is missing"));
        let previous = match text(keys.previous)? {
            Some(pem) => {
                let until = must(keys.previous_until)?
                    .trim()
                    .parse()
                    .map_err(|_| stored(keys.previous_until, "it is no number of seconds"))?;
                Some((pem, until))
            }
            None => None,
        };
        Root::from_pem(
            keys.certificate,
            must(keys.certificate)?,
            must(keys.private)?,
            previous,
            text(keys.bridge)?,
        )
    };
    Ok((one(&IDENTITY)?, one(&CAPTURE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn pair(now: i64) -> (Root, Root) {
        let lifetimes = Lifetimes::default();
        (
            Root::new(Kind::Identity, now, &lifetimes).unwrap(),
            Root::new(Kind::Capture, now, &lifetimes).unwrap(),
        )
    }

    #[test]
    fn the_secret_is_read_as_it_was_written() {
        let start = now();
        let config = StoreConfig::new("weir-system", "td");
        let (roots, capture) = pair(start);
        let secret = write(None, &config, &roots, &capture);
        assert_eq!(read(&secret).unwrap(), (roots.clone(), capture.clone()));
        let lifetimes = Lifetimes::default();
        let (roots, capture) = next(&roots, &capture, true, start, &lifetimes).unwrap().unwrap();
        assert!(roots.previous.is_some() && roots.bridge.is_some());
        let mut asked_for = secret;
        asked_for.metadata.annotations = Some(BTreeMap::from([(ROTATE.to_owned(), "now".to_owned())]));
        assert!(asked(&asked_for));
        let secret = write(Some(&asked_for), &config, &roots, &capture);
        assert!(!asked(&secret));
        assert_eq!(read(&secret).unwrap(), (roots, capture));
        // Nothing of the key in what may be logged.
        let (debug, key) = (format!("{:?}", read(&secret).unwrap()), "PRIVATE");
        assert!(!debug.contains(key), "{debug}");
    }

    #[test]
    fn a_secret_that_makes_no_sense_is_refused_by_key() {
        let config = StoreConfig::new("weir-system", "td");
        let (roots, capture) = pair(now());
        let (other, _) = pair(now());
        let good = write(None, &config, &roots, &capture);
        for (key, value) in [
            ("root.crt", None),
            ("root.key", None),
            ("capture.key", None),
            ("root.crt", Some("x")),
            ("root.key", Some(other.key_pem())),
            ("root.key", Some("x")),
            ("previous-root.crt", Some("x")),
        ] {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec())),
                None => data.remove(key),
            };
            assert!(read(&secret).is_err(), "{key}: {value:?}");
        }
    }

    #[test]
    fn a_year_of_roots() {
        let lifetimes = Lifetimes::default();
        let start = 1_800_000_000;
        let (mut roots, mut capture) = pair(start);
        let first = roots.certificate.clone();
        let mut changes = Vec::new();
        for day in 0..400 {
            let time = start + day * DAY;
            while let Some((new_roots, new_capture)) =
                next(&roots, &capture, false, time, &lifetimes).unwrap()
            {
                changes.push((day, new_roots.previous.is_some()));
                (roots, capture) = (new_roots, new_capture);
            }
            assert!(!roots.due(time), "day {day}");
        }
        // Rotated at two thirds, the old one gone a day and an hour later; the next one as far on.
        assert_eq!(changes, [(244, true), (246, false)]);
        assert_ne!(roots.certificate, first);
        assert_eq!(roots.trusted().len(), 1);
        assert!(
            roots.bridge.is_some(),
            "who knows only the first root still follows"
        );
    }

    #[test]
    fn a_second_wish_waits_for_the_root_before() {
        let lifetimes = Lifetimes::default();
        let start = 1_800_000_000;
        let (roots, capture) = pair(start);
        let (roots, capture) = next(&roots, &capture, true, start, &lifetimes).unwrap().unwrap();
        assert!(
            next(&roots, &capture, true, start + 60, &lifetimes)
                .unwrap()
                .is_none()
        );
        let later = start + 2 * DAY;
        let (roots, capture) = next(&roots, &capture, true, later, &lifetimes).unwrap().unwrap();
        assert_eq!(roots.trusted().len(), 1);
        let (roots, _) = next(&roots, &capture, true, later, &lifetimes).unwrap().unwrap();
        assert_eq!(roots.trusted().len(), 2);
    }
}
