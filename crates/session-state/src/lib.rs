//! `session-state`: all that is delicate about one PostgreSQL connection, without a socket.
//!
//! ```text
//!              ┌───────────────────────── Session ─────────────────────────┐
//!  client ───► │ client: judge, send, hold, refuse      server: match with  │ ◄─── server
//!  messages    │ objects: statements, portals           what is owed, check,│      messages
//!              │ state: what is known of the settings   mask, reduce        │
//!              └──────────────────────────┬─────────────────────────────────┘
//!                                         ▼
//!                 Vec<Action>: to server, to client, record, cancel, close
//! ```
//!
//! Pure: no clock (the time is an argument), no socket, no task. The sidecar reads bytes, frames them, gives them
//! here and does what the [`Action`]s say, in their order. What is sent to the server is either the client's own
//! message after a [`access_policy::Permit`] for what it does, or a message of ours.

mod client;
mod describe;
mod judge;
mod message;
mod objects;
mod pending;
mod record;
mod refusals;
mod result;
mod server;
mod session;
mod speech;
mod state;
#[cfg(test)]
mod tests;

pub use describe::{Description, OutputDescription};
pub use judge::{Judge, Judged};
pub use message::fatal;
pub use pending::ClientMessage;
pub use record::{Outcome, Record};
pub use result::ResultPlan;
pub use session::{Action, Closing, Session, SessionStart, World, without_jit};
pub use state::{Known, Settings, StateUnreadable};
pub use wire_protocol::postgres::backend::TransactionStatus;
