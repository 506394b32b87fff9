//! One place where applications connect, and the database behind it: what is in force there, and what its sessions share.

use std::sync::{Arc, Mutex, PoisonError};

use access_policy::Endpoint;
use arc_swap::ArcSwap;

use crate::databases::{Database, Databases};
use crate::fatal::{EndKind, Fatal};
use crate::policies::Policies;
use crate::policies::stream::too_old;
use crate::upstream::{HostPort, Roles};

/// Why nothing is served at a front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// No policies were loaded yet.
    NotLoaded,
    /// No policy names the endpoint.
    NoPolicy,
    /// The policies are too old.
    TooOld,
    /// The policies name what cannot be had (a Secret, a certificate).
    Unusable(String),
}

/// What holds at a front.
#[derive(Debug, Clone)]
pub enum InForce {
    /// These policies.
    Policies(Arc<Policies>),
    /// Nothing is let through.
    Closed {
        /// Why.
        why: Closed,
        /// Counts as [`Policies::generation`] does.
        generation: u64,
    },
}

/// One listener with its database.
#[derive(Debug)]
pub struct Front {
    /// Where applications connect.
    pub listen: HostPort,
    /// The database's name, as policies know it.
    pub endpoint: Endpoint,
    in_force: ArcSwap<InForce>,
    /// One change after the other, so that all databases follow the same one.
    changing: Mutex<()>,
    /// Databases used.
    pub databases: Databases,
    /// Which of the server's addresses takes writes.
    pub roles: Roles,
}

impl Front {
    /// Closed until policies are put in force.
    pub fn new(listen: HostPort, endpoint: Endpoint) -> Self {
        Self {
            listen,
            endpoint,
            in_force: ArcSwap::from_pointee(InForce::Closed {
                why: Closed::NotLoaded,
                generation: 0,
            }),
            changing: Mutex::default(),
            databases: Databases::default(),
            roles: Roles::default(),
        }
    }

    /// What holds now.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// The database, as records name it.
    pub fn name(&self) -> HostPort {
        HostPort {
            host: self.endpoint.host.clone(),
            port: self.endpoint.port,
        }
    }

    /// Policies in force, if there are any.
    pub fn policies(&self) -> Option<Arc<Policies>> {
        match &**self.in_force.load() {
            InForce::Policies(policies) => Some(Arc::clone(policies)),
            InForce::Closed { .. } => None,
        }
    }

    /// Policies for a new session.
    ///
    /// # Errors
    /// Nothing is served here, and why.
    pub fn admit(&self) -> Result<Arc<Policies>, Fatal> {
        let endpoint = &self.endpoint;
        match &**self.in_force.load() {
            InForce::Policies(policies) => Ok(Arc::clone(policies)),
            InForce::Closed { why, .. } => Err(match why {
                Closed::NotLoaded => Fatal::new(
                    EndKind::Refused,
                    "57P03",
                    format!("WEIR-094: the policies for {endpoint} are not loaded yet"),
                )
                .hint("try again in a moment; weir-sidecar's log says what it waits for"),
                Closed::TooOld => too_old(),
                Closed::NoPolicy => Fatal::new(
                    EndKind::Refused,
                    "28000",
                    format!("WEIR-092: no policy governs the database server {endpoint}, so nobody may use it here"),
                )
                .hint("write a DatabaseAccessPolicy that selects this pod and names that host and port, or restart the pod without weir.dev/inject"),
                Closed::Unusable(why) => Fatal::new(
                    EndKind::Refused,
                    "28000",
                    format!("WEIR-095: the policies for {endpoint} cannot be used: {why}"),
                )
                .hint("a Secret that a policy names is mounted when the pod is made: restart the pod once the Secret exists"),
            }),
        }
    }

    /// Puts something in force, for the next statement of open sessions too.
    pub fn put(&self, in_force: InForce) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_force.store(Arc::new(in_force));
        for database in self.databases.all() {
            self.bring_up_to_date(&database);
        }
    }

    /// Gives a database what is in force: it may have been made meanwhile.
    pub fn bring_up_to_date(&self, database: &Database) {
        match &**self.in_force.load() {
            InForce::Policies(policies) => database.take_policies(policies),
            InForce::Closed { generation, .. } => database.close(*generation),
        }
    }
}
