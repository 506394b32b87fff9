//! What a statement may reach on the server's machine, as far as its tree and its words tell. For texts that could not
//! be read, because a name in them is not known.

use pg_raw_parse::Node;

use super::ParsedStatement;
use super::lexer::{Lexer, TokenKind};

/// See [`reach`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// COPY with a file or a program, or LOAD.
    pub files_or_programs: bool,
    /// Every name in the text, lower case where it stands without quotes: a function's is among them.
    pub names: Vec<String>,
    /// A name is spelt with escapes.
    pub escaped_name: bool,
}

/// COPY and LOAD are statements of their own, never part of another, so the top of the tree tells; functions are
/// among the words.
pub fn reach(statement: &ParsedStatement) -> Reach {
    let mut reach = Reach {
        files_or_programs: match statement.node() {
            Node::CopyStmt(copy) => copy.filename().is_some() || copy.is_program,
            Node::LoadStmt(_) => true,
            _ => false,
        },
        ..Reach::default()
    };
    for token in Lexer::new(statement.sql(), 0) {
        let piece = statement.sql().get(token.span).unwrap_or_default();
        match token.kind {
            TokenKind::Word => reach.names.push(piece.to_ascii_lowercase()),
            TokenKind::QuotedWord => match piece.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                Some(name) => reach.names.push(name.replace("\"\"", "\"")),
                None => reach.escaped_name = true,
            },
            TokenKind::Unterminated => reach.escaped_name = true,
            TokenKind::Space
            | TokenKind::Comment
            | TokenKind::Text
            | TokenKind::Number
            | TokenKind::Parameter
            | TokenKind::Symbol => {}
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reach {
        let parsed = crate::parse(text).expect("a text the grammar accepts");
        reach(parsed.statements.first().expect("a statement"))
    }

    #[test]
    fn only_copy_with_a_file_and_load_reach_files() {
        for text in [
            "COPY t TO '/tmp/x'",
            "COPY t FROM PROGRAM 'id'",
            "LOAD 'x'",
            "/* x */ copy t from '/x'",
        ] {
            assert!(of(text).files_or_programs, "{text}");
        }
        for text in ["COPY t TO STDOUT", "COPY t FROM STDIN", "SELECT * FROM copy_load"] {
            assert!(!of(text).files_or_programs, "{text}");
        }
    }

    #[test]
    fn names_are_found_however_they_are_quoted() {
        for text in [
            "SELECT Pg_Read_File('x')",
            "SELECT pg_catalog.\"pg_read_file\"('x')",
        ] {
            assert!(of(text).names.iter().any(|name| name == "pg_read_file"), "{text}");
        }
        assert!(of("SELECT U&\"pg_read\\005ffile\"('x')").escaped_name);
    }
}
