//! Text → trees, statement by statement.

use std::sync::Arc;

use super::lexer;
use super::{Parsed, ParsedStatement};
use crate::facts::Unreadable;

/// Longest text that is read, in bytes.
pub const TEXT_MAX_BYTES: usize = 32 << 20;
/// Deepest tree that is read: the bound of every walk in this crate.
pub const DEPTH_MAX: usize = 10_000;
/// In longer texts the position of a syntax error is not looked for.
const POSITION_TEXT_MAX_BYTES: usize = 64 << 10;

/// Parses a text. Needs a thread with a large stack (64 MiB): walks of the trees recurse, up to [`DEPTH_MAX`].
///
/// # Errors
/// [`Unreadable::Syntax`] where PostgreSQL's own grammar refuses, [`Unreadable::TooComplex`] past our limits.
pub fn parse(text: &str) -> Result<Parsed, Unreadable> {
    if text.len() > TEXT_MAX_BYTES {
        return Err(Unreadable::TooComplex(format!(
            "longer than {TEXT_MAX_BYTES} bytes"
        )));
    }
    if text.as_bytes().contains(&0) {
        return Err(Unreadable::Syntax {
            message: "the text holds a NUL byte".to_owned(),
            position: 0,
        });
    }
    let tree = match parse_tree(text) {
        Ok(tree) => Arc::new(tree.into_inner()),
        Err(Failure::TooComplex(message)) => return Err(Unreadable::TooComplex(message)),
        Err(Failure::Syntax(message)) => {
            let position = position_of(text, &message);
            return Err(Unreadable::Syntax { message, position });
        }
    };
    let shared: Arc<str> = Arc::from(text);
    let mut statements = Vec::new();
    for (index, raw) in tree.iter().enumerate() {
        let start = usize::try_from(raw.stmt_location).unwrap_or(0).min(text.len());
        let length = usize::try_from(raw.stmt_len).unwrap_or(0);
        let end = match length {
            0 => text.len(),
            length => start.saturating_add(length).min(text.len()),
        };
        let start = lexer::first_token(text, start, end);
        let kept = text.get(start..end).ok_or_else(|| Unreadable::Syntax {
            message: "a statement does not begin and end between characters".to_owned(),
            position: 0,
        })?;
        let end = start
            + kept
                .trim_end_matches([' ', '\t', '\n', '\r', '\x0c', '\x0b'])
                .len();
        statements.push(ParsedStatement {
            text: Arc::clone(&shared),
            span: start..end,
            tree: Arc::clone(&tree),
            index,
        });
    }
    Ok(Parsed { statements })
}

enum Failure {
    Syntax(String),
    TooComplex(String),
}

fn parse_tree(text: &str) -> Result<pg_raw_parse::ParseResult, Failure> {
    pg_raw_parse::parse(text).map_err(|error| {
        let message = match &error {
            pg_raw_parse::Error::Parse(inner) => inner.to_string(),
            pg_raw_parse::Error::PgError(inner) => inner.to_string(),
            pg_raw_parse::Error::StatementContainedNul(_) => "the text holds a NUL byte".to_owned(),
        };
        if message.contains("memory exhausted") || message.contains("stack depth limit") {
            Failure::TooComplex("nested too deep for the grammar".to_owned())
        } else {
            Failure::Syntax(message)
        }
    })
}

/// Where the parser stopped, in characters from 1; 0 where that is not known. The library keeps only the message,
/// which quotes the token; of several such tokens it is the first one whose prefix gives the same message, because
/// the grammar reads from left to right and stops at the first token that cannot follow.
fn position_of(text: &str, message: &str) -> usize {
    if text.len() > POSITION_TEXT_MAX_BYTES {
        return 0;
    }
    if message.ends_with("at end of input") {
        return text.chars().count() + 1;
    }
    let Some(near) = message
        .split_once("at or near \"")
        .and_then(|(_, near)| near.strip_suffix('"'))
        .filter(|near| !near.is_empty())
    else {
        return 0;
    };
    let places: Vec<usize> = text.match_indices(near).map(|(place, _)| place).collect();
    let reaches = |place: &usize| {
        text.get(..place + near.len())
            .is_some_and(|prefix| matches!(parse_tree(prefix), Err(Failure::Syntax(said)) if said == message))
    };
    let first = match places.len() {
        0 => return 0,
        1 => 0,
        _ => places.partition_point(|place| !reaches(place)),
    };
    let place = places.get(first).copied();
    place
        .and_then(|place| text.get(..place))
        .map_or(0, |before| before.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(text: &str) -> Vec<&str> {
        let parsed = parse(text).expect("the text is good SQL");
        parsed
            .statements
            .iter()
            .map(|statement| text.get(statement.span.clone()).expect("a span lies in its text"))
            .collect()
    }

    fn error(text: &str) -> Unreadable {
        parse(text).expect_err("the text is not good SQL")
    }

    #[test]
    fn statements_are_split_where_the_grammar_splits_them() {
        assert_eq!(spans(""), Vec::<&str>::new());
        assert_eq!(spans(" ; /* x */ ;"), Vec::<&str>::new());
        assert_eq!(spans("SELECT 1"), ["SELECT 1"]);
        assert_eq!(
            spans("-- first; one\n SELECT ';' ; /* b; */ SELECT $$;$$ ;; \n DELETE FROM t ; "),
            ["SELECT ';'", "SELECT $$;$$", "DELETE FROM t"]
        );
        assert_eq!(
            spans("COPY t FROM STDIN; DROP TABLE x"),
            ["COPY t FROM STDIN", "DROP TABLE x"]
        );
        assert_eq!(spans("SELECT 'é'; SELECT 'ü' "), ["SELECT 'é'", "SELECT 'ü'"]);
        assert_eq!(
            spans("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3"),
            [
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
                "SELECT 3"
            ]
        );
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let cases = [
            ("SELEC 1", 1),
            ("SELECT 1 FROM FROM t", 15),
            ("SELECT ')' , a) FROM t", 15),
            ("SELECT 'é' x y z", 14),
            ("SELECT (1", 10),
            ("SELECT 'abc", 8),
            ("SELECT 1; SELECT 2 2", 20),
        ];
        for (text, expected) in cases {
            match error(text) {
                Unreadable::Syntax { position, message } => {
                    assert_eq!(position, expected, "{text}: {message}")
                }
                other => assert_eq!(Unreadable::TooComplex(String::new()), other, "{text}"),
            }
        }
    }

    #[test]
    fn nul_and_length_are_bounded() {
        assert!(matches!(
            error("SELECT 1\0; DROP TABLE t"),
            Unreadable::Syntax { .. }
        ));
        let long = format!("SELECT '{}'", "x".repeat(TEXT_MAX_BYTES));
        assert!(matches!(error(&long), Unreadable::TooComplex(_)));
    }
}
