//! What needs more of the cluster than policies and pods.

mod admission;
pub(crate) mod identity;
mod load;
