//! Definitions (DDL) and administration.

use pg_raw_parse::Node;

use super::{Lower, Lowered, refuse};
use crate::form::Statement;

impl Lower {
    pub(super) fn definition(&mut self, node: Node<'_>) -> Lowered<Statement> {
        Err(refuse(node, "a statement"))
    }
}
