//! What needs more of the cluster than policies and pods.

mod admission;
mod identity;
mod load;
