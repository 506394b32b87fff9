//! The shop: a throw-away PostgreSQL for all tests of the binary, and a database of its own for each test.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use test_support::{Postgres, PostgresOptions};

use super::client::Client;

/// The login that the sidecar uses, a plain role as an application has.
pub(crate) const ROLE: &str = "shop_app";

/// A copy of the shop, for one test.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Database {
    /// A fresh copy.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let port = server().port();
        let name = format!("shop_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut admin = Client::connect(port, &[("user", "postgres"), ("database", "postgres")]);
        admin.must(&format!("CREATE DATABASE {name} TEMPLATE shop OWNER {ROLE}"));
        Self { name, port }
    }

    /// Past the sidecar, as superuser: what is really there.
    pub(crate) fn direct(&self) -> Client {
        Client::connect(self.port, &[("user", "postgres"), ("database", &self.name)])
    }

    /// One text that changes when a row of the shop does.
    pub(crate) fn fingerprint(&self) -> String {
        let tables = ["customers", "orders", "payroll", "scratch", "people", "lines"];
        let parts = tables.map(|table| {
            format!("(SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM public.{table} t)")
        });
        let answer = self
            .direct()
            .must(&format!("SELECT concat_ws(',', {})", parts.join(", ")));
        answer.text(0, 0).expect("a text").to_owned()
    }
}

/// The port is the server's own, past every sidecar.
pub(crate) fn is_server(port: u16) -> bool {
    STARTED.get().is_none_or(|started| *started == port)
}

static STARTED: OnceLock<u16> = OnceLock::new();

/// Started once, with the shop as a template.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let settings = [
            ("max_connections", "200"),
            ("max_prepared_transactions", "10"),
            ("fsync", "off"),
        ];
        let settings = settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let server = Postgres::start(&PostgresOptions {
            settings,
            ..PostgresOptions::default()
        })
        .expect("a server");
        let port = server.port();
        STARTED.set(port).expect("it is set here only");
        let mut admin = Client::connect(port, &[("user", "postgres"), ("database", "postgres")]);
        admin.must(&format!("CREATE ROLE {ROLE} LOGIN"));
        admin.must("CREATE DATABASE shop");
        Client::connect(port, &[("user", "postgres"), ("database", "shop")])
            .must(include_str!("../shop.sql"));
        server
    })
}
