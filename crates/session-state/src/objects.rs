//! Prepared statements, portals and cursors: SQL and protocol share one name space for statements and one for
//! portals, so there is one table of each.
//!
//! A message is taken as successful when it is sent; what it changed is kept as an [`Undo`] beside the reply it
//! waits for and taken back if it failed (the server then keeps what it had: a failed second Parse keeps the old
//! statement).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::judge::{Basis, Judged};

/// `NAMEDATALEN - 1` of the server: longer names are cut.
const NAME_BYTES_MAX: usize = 63;

/// A statement that the server has prepared, or will have.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The client's text: for SQL PREPARE the whole PREPARE.
    pub text: Arc<str>,
    /// The decision; `None` for an empty text.
    pub judged: Option<Arc<Judged>>,
    /// What the decision rested on.
    pub basis: Basis,
    /// Parameter types of the Parse message, as sent.
    pub parameter_types: Vec<u32>,
    /// Made by SQL PREPARE.
    pub by_sql: bool,
    /// Names, types and modifiers of its result, once the server described it.
    pub signature: OnceLock<Signature>,
    /// For a statement that was prepared again: the one before it, whose result the client knows.
    pub before: Option<Arc<Prepared>>,
}

/// Name, type and type modifier of each result column; empty for a statement without a result.
pub(crate) type Signature = Vec<(Vec<u8>, u32, i32)>;

impl Prepared {
    /// The result is not the one that the client knows.
    pub(crate) fn result_moved(&self) -> bool {
        match (
            self.before.as_ref().and_then(|before| before.signature.get()),
            self.signature.get(),
        ) {
            (Some(before), Some(now)) => before != now,
            (Some(_) | None, Some(_) | None) => false,
        }
    }
}

/// An open portal or cursor.
#[derive(Debug, Clone)]
pub(crate) struct Portal {
    /// The statement it was bound from (for a cursor: the DECLARE).
    pub prepared: Arc<Prepared>,
    /// Result formats of the Bind: none, one, or one for each column.
    pub formats: Arc<[i16]>,
    /// Number of the run, once it was executed.
    pub run: Option<u64>,
    /// Survives the end of its transaction.
    pub hold: bool,
    /// Rows that its FETCHes delivered so far.
    pub rows_delivered: u64,
}

/// How to take back what a message that failed did not do.
#[derive(Debug)]
pub(crate) enum Undo {
    /// Nothing.
    Nothing,
    /// Put this statement back under that name (`None`: there was none).
    Statement(Box<[u8]>, Option<Arc<Prepared>>),
    /// Put this portal back.
    Portal(Box<[u8]>, Option<Portal>),
    /// Put everything back (DEALLOCATE ALL, DISCARD ALL, CLOSE ALL).
    All(Box<Objects>),
}

/// Both tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    statements: HashMap<Box<[u8]>, Arc<Prepared>>,
    portals: HashMap<Box<[u8]>, Portal>,
}

fn key(name: &[u8]) -> &[u8] {
    name.get(..NAME_BYTES_MAX).unwrap_or(name)
}

impl Objects {
    /// The statement of that name.
    pub(crate) fn statement(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.statements.get(key(name))
    }
    /// The portal of that name.
    pub(crate) fn portal(&self, name: &[u8]) -> Option<&Portal> {
        self.portals.get(key(name))
    }
    /// The portal of that name.
    pub(crate) fn portal_mut(&mut self, name: &[u8]) -> Option<&mut Portal> {
        self.portals.get_mut(key(name))
    }
    /// Sets a statement.
    pub(crate) fn set_statement(&mut self, name: &[u8], prepared: Arc<Prepared>) -> Undo {
        let name: Box<[u8]> = Box::from(key(name));
        let before = self.statements.insert(name.clone(), prepared);
        Undo::Statement(name, before)
    }
    /// Removes a statement.
    pub(crate) fn remove_statement(&mut self, name: &[u8]) -> Undo {
        let before = self.statements.remove(key(name));
        Undo::Statement(Box::from(key(name)), before)
    }
    /// Sets a portal.
    pub(crate) fn set_portal(&mut self, name: &[u8], portal: Portal) -> Undo {
        let name: Box<[u8]> = Box::from(key(name));
        let before = self.portals.insert(name.clone(), portal);
        Undo::Portal(name, before)
    }
    /// Removes a portal.
    pub(crate) fn remove_portal(&mut self, name: &[u8]) -> Undo {
        let before = self.portals.remove(key(name));
        Undo::Portal(Box::from(key(name)), before)
    }
    /// Removes all statements (DEALLOCATE ALL).
    pub(crate) fn remove_statements(&mut self) -> Undo {
        let before = self.clone();
        self.statements.clear();
        Undo::All(Box::new(before))
    }
    /// Removes all statements and portals (DISCARD ALL).
    pub(crate) fn remove_all(&mut self) -> Undo {
        let before = std::mem::take(self);
        Undo::All(Box::new(before))
    }
    /// Removes all cursors and portals (CLOSE ALL).
    pub(crate) fn remove_portals(&mut self) -> Undo {
        let before = self.clone();
        self.portals.clear();
        Undo::All(Box::new(before))
    }
    /// A transaction ended: portals that do not hold are gone.
    pub(crate) fn end_transaction(&mut self) {
        if !self.portals.is_empty() {
            self.portals.retain(|_, portal| portal.hold);
        }
    }
    /// Numbers of the runs whose portals are still open.
    pub(crate) fn open_runs(&self) -> impl Iterator<Item = u64> + '_ {
        self.portals.values().filter_map(|portal| portal.run)
    }
    /// Takes a change back.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::Statement(name, Some(before)) => {
                self.statements.insert(name, before);
            }
            Undo::Statement(name, None) => {
                self.statements.remove(&name);
            }
            Undo::Portal(name, Some(before)) => {
                self.portals.insert(name, before);
            }
            Undo::Portal(name, None) => {
                self.portals.remove(&name);
            }
            Undo::All(before) => *self = *before,
        }
    }
}
