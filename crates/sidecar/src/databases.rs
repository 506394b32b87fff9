//! What sessions of one database share: the catalog, and the policy bound to it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use access_policy::{Unresolved, bind};
use arc_swap::ArcSwapOption;
use session_state::World;
use sql_facts::Catalog;

use crate::policies::Policies;

/// Versions are unique in the process: decisions are remembered for all databases together.
static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

fn next_version() -> u64 {
    NEXT_VERSION.fetch_add(1, Ordering::Relaxed)
}

/// All databases of the server that were used.
#[derive(Debug, Default)]
pub struct Databases {
    by_name: Mutex<BTreeMap<String, Arc<Database>>>,
}

impl Databases {
    /// The database of that name. Only for names that the server has let somebody log in to.
    pub fn get(&self, name: &str) -> Arc<Database> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(by_name.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Database {
                name: name.to_owned(),
                world: ArcSwapOption::empty(),
                state: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
            })
        }))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Database>> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.values().cloned().collect()
    }
}

/// One database.
#[derive(Debug)]
pub struct Database {
    name: String,
    /// What sessions judge by; empty before the first catalog, and where no policy lets the database be used.
    world: ArcSwapOption<World>,
    state: Mutex<State>,
    /// Held while the catalog is read, so that it is read once for many.
    pub reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    read_at: Option<Instant>,
    /// Of the rows that made the catalog.
    digest: u64,
    catalog: Option<Arc<Catalog>>,
    /// The newest that were given; `world` is bound by these. `None`: nothing is let through.
    policies: Option<Arc<Policies>>,
    /// Of `policies`, or of their end.
    generation: u64,
    unresolved: Vec<Unresolved>,
}

impl State {
    /// Keeps the policies if they are newer than those it has.
    fn newer_policies(&mut self, policies: &Arc<Policies>) -> bool {
        let newer = self.generation < policies.generation;
        if newer {
            self.policies = Some(Arc::clone(policies));
            self.generation = policies.generation;
        }
        newer
    }
}

impl Database {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What sessions judge by now.
    pub fn world(&self) -> Option<Arc<World>> {
        self.world.load_full()
    }

    /// Names that policies use and this database does not have.
    pub fn unresolved(&self) -> Vec<Unresolved> {
        self.lock().unresolved.clone()
    }

    /// The catalog was read longer ago than that, or never.
    pub fn older_than(&self, age: Duration) -> bool {
        self.lock().read_at.is_none_or(|at| at.elapsed() > age)
    }

    /// The catalog was read at or after that time.
    pub fn read_since(&self, time: Instant) -> bool {
        self.lock().read_at.is_some_and(|at| at >= time)
    }

    /// Takes a catalog that was asked for at `asked`, and binds the policies to it.
    ///
    /// # Errors
    /// Rows that are not understood.
    pub fn take_catalog(
        &self,
        server_major: u16,
        rows: &[(String, String)],
        asked: Instant,
        policies: &Arc<Policies>,
    ) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        (server_major, rows).hash(&mut hasher);
        let digest = hasher.finish();
        let mut state = self.lock();
        // While the catalog was read, newer policies may have come, or a newer catalog.
        let newer = state.newer_policies(policies);
        if state.read_at.is_some_and(|at| at > asked) {
            if newer {
                self.publish(&mut state);
            }
            return Ok(());
        }
        if state.catalog.is_none() || state.digest != digest {
            let rows = rows.iter().map(|(kind, row)| (kind.as_str(), row.as_str()));
            let catalog =
                Catalog::from_rows(server_major, next_version(), rows).map_err(|error| error.to_string())?;
            state.catalog = Some(Arc::new(catalog));
            state.digest = digest;
            self.publish(&mut state);
        } else if newer {
            self.publish(&mut state);
        }
        state.read_at = Some(asked);
        Ok(())
    }

    /// Binds new policies to the catalog that is known.
    pub fn take_policies(&self, policies: &Arc<Policies>) {
        let mut state = self.lock();
        if state.newer_policies(policies) {
            self.publish(&mut state);
        }
    }

    /// Nothing is let through any more, until newer policies come.
    pub fn close(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation < generation {
            state.generation = generation;
            state.policies = None;
            state.unresolved.clear();
            self.world.store(None);
        }
    }

    fn publish(&self, state: &mut State) {
        let (Some(catalog), Some(policies)) = (&state.catalog, &state.policies) else {
            return;
        };
        let Some(policy) = policies.policy.for_name(&self.name) else {
            self.world.store(None);
            return;
        };
        let previous = self.world.load();
        let (mut bound, unresolved) = bind(&policy, catalog, previous.as_ref().map(|world| &*world.policy));
        bound.generation = next_version();
        for name in &unresolved {
            if !state.unresolved.contains(name) {
                tracing::warn!(
                    database = self.name,
                    policy = name.policy,
                    field = name.field,
                    name = name.name,
                    was_bound = name.was_bound,
                    "the database has no such name; what it names is closed"
                );
            }
        }
        state.unresolved = unresolved;
        self.world.store(Some(Arc::new(World {
            policy: Arc::new(bound),
            catalog: Arc::clone(catalog),
        })));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is complete before the guard goes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
