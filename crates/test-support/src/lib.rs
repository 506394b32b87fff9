//! What tests need from the world: throw-away PostgreSQL servers, our own binaries as processes, and waiting for a
//! condition instead of for a time.
//!
//! ```no_run
//! let server = test_support::shared_postgres().unwrap();     // one per test binary
//! let db = server.database().unwrap();                       // one per test
//! db.psql("create table t(a int); insert into t values (1)").unwrap();
//! assert_eq!(db.psql("select a from t").unwrap(), "1");
//! ```
//!
//! Everything started here ends with the process that started it, also when that process is killed: each child has
//! a watchdog that reads from a pipe only the test holds. Only recorded process ids are ever signalled.

pub mod authority;
mod binaries;
mod certificates;
pub mod cluster;
pub mod drivers;
pub mod metrics_page;
mod postgres;
mod process;
pub mod shop;
mod wait;

pub use binaries::{binary, binary_of_profile, target_folder, workspace_root};
pub use certificates::Certificates;
pub use postgres::{Auth, Database, Postgres, PostgresOptions, postgres_bin, server_owner, shared_postgres};
pub use process::{Process, Signal};
pub use wait::{free_port, wait_for, wait_for_async, wait_for_port};
