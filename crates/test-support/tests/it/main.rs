//! The helpers themselves on a real server, and the rules of the house: arrows between rooms, licences.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

mod architecture;
mod dependencies;
mod packaging;
mod postgres;
mod shop;
