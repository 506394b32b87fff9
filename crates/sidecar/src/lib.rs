//! `sidecar`: the proxy. It moves bytes and owns what sessions share.
//!
//! ```text
//!  control thread: config ─ policies (a folder, or the operator's stream) ─ admin pages ─ accept
//!                                                          │ one connection each, in turn
//!  worker thread (one for each core) ◄─────────────────────┘
//!     startup ─► login ─► state and catalog ─► pump { client ◄─► Session ◄─► database }
//!                                               │
//!                                               └─► recorder ─► spool
//! ```
//!
//! What a message means, what may run and what may be shown is not decided here: `session-state` does.

pub mod bypass;
pub mod cancels;
pub mod capture;
pub mod config;
pub mod connection;
pub mod databases;
pub mod fatal;
pub mod front;
pub mod login;
pub mod metrics;
pub mod pod;
pub mod policies;
pub mod pump;
pub mod recorder;
pub mod rewound;
pub mod sidecar;
pub mod spool;
pub mod startup;
pub mod stream;
pub mod tls;
pub mod upstream;
