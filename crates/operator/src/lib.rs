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
pub mod checks;
pub mod webhook;
