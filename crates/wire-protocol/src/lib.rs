//! `wire-protocol`: bytes ↔ messages, through one cursor that cannot over-read.
//!
//! ```text
//!  read data (BytesMut) ──Framer──► Frame (zero-copy slices) ──decode──► typed views that borrow
//!                                                              write ◄── messages of our own, rewritten ones
//! ```
//!
//! Pure: no socket, no clock, no tokio. It knows how messages are laid out; it does not know which may come when
//! (`session-state` does), nor what SQL means.

pub mod postgres;
