//! `pod-injection`: a pod and the policies that select it → the patch that puts the sidecar in front, or a refusal
//! with its reason. Front verb: `inject`.
//!
//! ```text
//!  pod (raw JSON) ─┐
//!  policies        ├─inject──► Untouched | Patch(operations, warnings) | Refusal(reason, message, mend)
//!  Settings        ┘
//! ```
//!
//! Pure. It works on raw JSON, because a typed pod forgets fields that are newer than it. What the sidecar finds in its
//! container is said in [`contract`], which the sidecar's own options repeat.

pub mod contract;
mod settings;

pub use settings::{Resources, Settings};
