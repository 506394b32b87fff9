//! A real database with its catalog, policies bound to it, and somebody who asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sql_facts::{Catalog, CatalogView, Overlay, SearchPath};
use test_support::{Database, shared_postgres};

use crate::{
    BoundPolicy, Decision, DecisionContext, Endpoint, Manifest, Permit, PolicySet, Refusal, SendAs, Subject,
    Unresolved, bind, compile, decide, decide_unreadable,
};

/// What the tests of bind and decide stand on.
pub(super) struct World {
    pub(super) db: Arc<Database<'static>>,
    pub(super) catalog: Catalog,
    pub(super) overlay: Overlay,
    pub(super) path: SearchPath,
    pub(super) subject: Subject,
    pub(super) bound: BoundPolicy,
    pub(super) unresolved: Vec<Unresolved>,
}

/// Manifests of several policies, each given by the lines of its spec.
pub(super) fn policies(specs: &[&str]) -> PolicySet {
    compile(&manifests(specs)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn manifests(specs: &[&str]) -> Vec<Manifest> {
    specs
        .iter()
        .enumerate()
        .map(|(index, spec)| Manifest {
            name: format!("{index}.yaml"),
            text: super::manifests::manifest(spec).replace("name: shop,", &format!("name: p{index},")),
        })
        .collect()
}

pub(super) fn read_catalog(db: &Database<'_>, version: u64) -> Catalog {
    let printed = db.psql(Catalog::load_sql()).expect("the catalog");
    let rows = printed.lines().filter_map(|line| line.split_once('|'));
    let major: u32 = db.psql("show server_version_num").unwrap().parse().unwrap();
    let major = u16::try_from(major / 10000).unwrap();
    Catalog::from_rows(major, version, rows).expect("rows that are understood")
}

type Prepared = (Arc<Database<'static>>, Catalog);

fn prepare(setup: &str) -> Prepared {
    let db = shared_postgres().unwrap().database().unwrap();
    db.psql(setup).unwrap_or_else(|error| panic!("{error:#}"));
    let catalog = read_catalog(&db, 1);
    (Arc::new(db), catalog)
}

impl World {
    /// A database that tests with the same setup share; they only look at it.
    pub(super) fn new(setup: &str, specs: &[&str]) -> Self {
        static SHARED: Mutex<Option<HashMap<String, Prepared>>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.get_or_insert_default();
        let (db, catalog) = shared
            .entry(setup.to_owned())
            .or_insert_with(|| prepare(setup))
            .clone();
        Self::with(db, catalog, specs)
    }

    /// A database of its own, for tests that change it.
    pub(super) fn own(setup: &str, specs: &[&str]) -> Self {
        let (db, catalog) = prepare(setup);
        Self::with(db, catalog, specs)
    }

    fn with(db: Arc<Database<'static>>, catalog: Catalog, specs: &[&str]) -> Self {
        let (bound, unresolved) = bind(&database(specs), &catalog, None);
        Self {
            db,
            catalog,
            overlay: Overlay::default(),
            path: SearchPath(vec!["pg_catalog".to_owned(), "public".to_owned()]),
            subject: Subject::default(),
            bound,
            unresolved,
        }
    }

    /// With a Secret manifest beside the policies.
    pub(super) fn with_secret(setup: &str, specs: &[&str], name: &str, key: &str, value: &str) -> Self {
        let mut world = Self::new(setup, specs);
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: store}}\nstringData: {{{key}: '{value}'}}"
        );
        let name = "secret.yaml".to_owned();
        let mut manifests = manifests(specs);
        manifests.push(Manifest { name, text });
        let set = compile(&manifests).unwrap();
        let endpoint = Endpoint::new("db.shop.svc", 5432).unwrap();
        (world.bound, world.unresolved) = bind(&set.for_database(&endpoint), &world.catalog, None);
        world
    }

    /// Other policies for the same database, keeping what was bound.
    pub(super) fn rebind(&mut self, specs: &[&str]) {
        self.catalog = read_catalog(&self.db, self.catalog.version + 1);
        let (bound, unresolved) = bind(&database(specs), &self.catalog, Some(&self.bound));
        self.bound = bound;
        self.unresolved = unresolved;
    }

    pub(super) fn with_claim(mut self, name: &str, value: &str) -> Self {
        self.subject.claims.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(super) fn in_group(mut self, group: &str) -> Self {
        self.subject.groups.insert(group.to_owned());
        self
    }

    pub(super) fn context(&self) -> DecisionContext<'_> {
        DecisionContext {
            policy: &self.bound,
            subject: &self.subject,
            view: CatalogView {
                catalog: &self.catalog,
                overlay: &self.overlay,
                path: &self.path,
            },
        }
    }

    /// Decides the only statement of a text.
    pub(super) fn decide(&self, sql: &str) -> Result<Permit, Refusal> {
        let decision = match sql_facts::parse(sql) {
            Ok(parsed) => {
                let [statement] = parsed.statements.as_slice() else {
                    panic!("{sql}: not one statement")
                };
                decide(statement, self.context())
            }
            Err(reason) => decide_unreadable(sql, &reason, self.context()),
        };
        match decision {
            Decision::Permit(permit) => Ok(permit),
            Decision::Refuse(refusal) => Err(refusal),
        }
    }

    /// The code of the refusal; 0 = permitted.
    pub(super) fn code(&self, sql: &str) -> u16 {
        self.decide(sql).map_or_else(|refusal| refusal.code.0, |_| 0)
    }

    /// The text that is sent.
    pub(super) fn sent(&self, sql: &str) -> String {
        match self.decide(sql) {
            Ok(permit) => match permit.send() {
                SendAs::AsWritten => sql.to_owned(),
                SendAs::Governed(governed) => governed.text.clone(),
            },
            Err(refusal) => panic!("{sql}: {refusal}"),
        }
    }

    /// What the server answers to the text that is sent.
    pub(super) fn run(&self, sql: &str) -> String {
        let sent = self.sent(sql);
        self.db
            .psql(&sent)
            .unwrap_or_else(|error| panic!("{sql}\n→ {sent}\n{error:#}"))
    }
}

fn database(specs: &[&str]) -> crate::DatabasePolicy {
    policies(specs).for_database(&Endpoint::new("db.shop.svc", 5432).unwrap())
}
