//! Nodes are made by writing the SQL that holds them. All pieces of one statement are parsed together, behind white
//! space as long as the client's text: so a place in our own text is never mistaken for a place in the client's.

use std::ops::Range;

use pg_raw_parse::nodes::SelectStmt;
use pg_raw_parse::{Node, Owned, StmtList};

use crate::plan::CannotGovern;

/// Collects pieces of SQL before they are parsed.
pub(super) struct Workshop {
    text: String,
    windows: Windows,
    count: usize,
}

/// One piece, by the order in which it was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece(usize);

impl Workshop {
    pub(super) fn new(client_text_len: usize) -> Self {
        Self {
            text: " ".repeat(client_text_len + 1),
            windows: Windows {
                client_len: client_text_len,
                windows: Vec::new(),
            },
            count: 0,
        }
    }

    /// Orders a whole SELECT.
    pub(super) fn select(&mut self, sql: &str, client_place: i32) -> Piece {
        let start = self.text.len();
        self.text.push_str(sql);
        self.windows
            .windows
            .push((start..self.text.len(), usize::try_from(client_place).unwrap_or(0)));
        self.text.push(';');
        let piece = Piece(self.count);
        self.count += 1;
        piece
    }

    /// Orders one expression.
    pub(super) fn expression(&mut self, sql: &str, client_place: i32) -> Piece {
        self.select(&format!("SELECT {sql}"), client_place)
    }

    /// Parses everything that was ordered.
    pub(super) fn open(self) -> Result<Pieces, CannotGovern> {
        let tree = if self.count == 0 {
            None
        } else {
            let parsed = pg_raw_parse::parse(&self.text).map_err(|error| {
                CannotGovern::Impossible(format!("a mask or filter does not parse: {error}"))
            })?;
            let tree = parsed.into_inner();
            // One piece is one statement, or a mask or predicate broke out of its place.
            if tree.len() != self.count {
                return Err(CannotGovern::Impossible(
                    "a mask or filter holds more than one expression".to_owned(),
                ));
            }
            Some(tree)
        };
        Ok(Pieces {
            tree,
            windows: self.windows,
        })
    }
}

/// The parsed pieces.
pub(super) struct Pieces {
    tree: Option<Owned<StmtList>>,
    pub(super) windows: Windows,
}

impl Pieces {
    pub(super) fn node(&self, piece: Piece) -> Option<Node<'_>> {
        Some(self.tree.as_ref()?.get(piece.0)?.stmt())
    }

    pub(super) fn select(&self, piece: Piece) -> Result<&SelectStmt, CannotGovern> {
        match self.node(piece) {
            Some(Node::SelectStmt(select)) => Ok(select),
            _ => Err(CannotGovern::Impossible(
                "a mask or filter is not an expression".to_owned(),
            )),
        }
    }

    pub(super) fn expression(&self, piece: Piece) -> Result<Node<'_>, CannotGovern> {
        let mut targets = self.select(piece)?.target_list().iter();
        match (targets.next(), targets.next()) {
            (Some(target), None) => Ok(target.val()),
            _ => Err(CannotGovern::Impossible(
                "a mask or filter is not one expression".to_owned(),
            )),
        }
    }
}

/// Which places belong to which piece, and what in the client's text it stands for.
pub(super) struct Windows {
    client_len: usize,
    windows: Vec<(Range<usize>, usize)>,
}

impl Windows {
    /// The client's place for a place in a tree made of client's and our own nodes.
    pub(super) fn client_place(&self, place: usize) -> Option<usize> {
        if place <= self.client_len {
            return Some(place);
        }
        let index = self.windows.partition_point(|(window, _)| window.end < place);
        self.windows
            .get(index)
            .filter(|(window, _)| window.start <= place)
            .map(|(_, client)| *client)
    }
}

/// An identifier, always quoted: the printer leaves out what is not needed.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
