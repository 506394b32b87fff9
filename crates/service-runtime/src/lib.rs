//! `service-runtime`: what every long-running process of Weir has: logs, signals and draining, health, a metrics page.
//!
//! ```text
//!  SIGTERM, SIGINT ──► drain::Trigger ──► drain::Drain (each task listens)
//!  admin port: /healthz /readyz /metrics /status ◄── Health, Registry, a function that makes the status
//! ```
//!
//! It knows nothing of databases, policies or receipts.

pub mod admin;
pub mod drain;
pub mod health;
pub mod logs;
