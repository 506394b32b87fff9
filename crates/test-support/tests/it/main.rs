//! The helpers themselves, on a real server.

mod postgres;
