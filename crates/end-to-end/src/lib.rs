//! `end-to-end`: the attack suite. It has no code of its own: its one test binary builds `weir-sidecar`, starts it in
//! front of a real PostgreSQL, and tries to get past it with raw protocol messages and with real drivers.
//!
//! ```text
//!  raw client ─┐                                   ┌─ every byte is searched for canaries
//!  psql        ├──► tap ──► weir-sidecar ──► PostgreSQL (throw-away, canaries in masked columns and hidden rows)
//!  drivers    ─┘
//! ```
