//! `operator`: reconciles the custom resources, injects the sidecar, issues identities, streams policies.
//!
//! ```text
//!  API server ──watch──► world (policies, sinks, pods, namespaces) ──► snapshots for each pod ──► streams ──► sidecars
//!      ▲                    │                                                              ▲            │ ack, report
//!      └──status, Events── status (holder of the lease) ◄──────── reports of all replicas ─┴── streams ◄┘
//!  API server ──admission──► admission (pods: pod-injection; policies: access-policy)
//!  pods ──CSR, token──► identity ──► ca
//! ```

pub mod ca;
pub mod certificates;
pub mod checks;
pub mod events;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod peers;
pub mod preflight;
pub mod reports;
pub mod run;
pub mod settings;
pub mod sinks;
pub mod snapshots;
pub mod status;
pub mod streams;
pub mod view;
pub mod watches;
pub mod webhook;
pub mod world;
pub mod writer;
