//! The key under which a decision about a text is remembered for texts that differ in their literals only.

use super::lexer::{Lexer, TokenKind};

/// A text with its literals replaced by their kinds. Two texts with the same key read alike: where the value of a
/// literal matters to reading (an ordinal, a word for a truth value), it is part of the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StatementKey(Box<str>);

/// Longest text that gets a key, in bytes.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The key of a text of one statement. `None`, so that nothing is remembered by shape, where the text holds anything
/// whose end only the server's own lexer knows for sure: comments, `E''`, `U&`, dollar quotes, a backslash inside
/// quotes, a byte beyond ASCII outside of quotes, more than one statement, prefixed literals.
pub fn statement_key(text: &str) -> Option<StatementKey> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut key = String::with_capacity(text.len());
    let mut blank = false;
    let mut ended = false;
    // Behind BY and DISTINCT a bare number is an ordinal.
    let mut ordinals = false;
    for token in Lexer::new(text, 0) {
        let piece = text.get(token.span.clone())?;
        if token.kind != TokenKind::Space && ended {
            return None;
        }
        match token.kind {
            TokenKind::Comment | TokenKind::Unterminated | TokenKind::Parameter => return None,
            TokenKind::Space => {
                blank = true;
                continue;
            }
            TokenKind::Word
            | TokenKind::QuotedWord
            | TokenKind::Text
            | TokenKind::Number
            | TokenKind::Symbol => {}
        }
        if blank && !key.is_empty() {
            key.push(' ');
        }
        blank = false;
        match token.kind {
            TokenKind::Word => {
                if !piece.is_ascii() {
                    return None;
                }
                let is = |words: &[&str]| words.iter().any(|word| piece.eq_ignore_ascii_case(word));
                if is(&["by", "distinct"]) {
                    ordinals = true;
                } else if is(&[
                    "from",
                    "where",
                    "having",
                    "window",
                    "union",
                    "intersect",
                    "except",
                    "limit",
                    "offset",
                    "fetch",
                    "for",
                    "values",
                    "returning",
                    "set",
                ]) {
                    ordinals = false;
                }
                key.push_str(piece);
            }
            TokenKind::QuotedWord => {
                if !piece.starts_with('"') || piece.contains('\\') {
                    return None;
                }
                key.push_str(piece);
            }
            TokenKind::Text => {
                if !piece.starts_with('\'') || piece.contains('\\') {
                    return None;
                }
                if is_truth_word(piece) {
                    key.push_str(piece);
                } else {
                    // No text holds this byte outside of quotes, so it cannot be confused with one.
                    key.push_str("\u{1}t");
                }
            }
            TokenKind::Number if ordinals => key.push_str(piece),
            // int4 literals, and everything else by its length class: the type of a constant depends on it.
            TokenKind::Number => match piece.parse::<i32>() {
                Ok(_) => key.push_str("\u{1}i"),
                Err(_) => key.push_str(piece),
            },
            TokenKind::Symbol => {
                if !piece.is_ascii() {
                    return None;
                }
                ended = piece == ";";
                if ended {
                    continue;
                }
                key.push_str(piece);
            }
            TokenKind::Space | TokenKind::Comment | TokenKind::Unterminated | TokenKind::Parameter => {}
        }
    }
    if key.bytes().any(|byte| byte == 0) {
        return None;
    }
    Some(StatementKey(key.into_boxed_str()))
}

/// Spellings of boolean constants (`src/backend/utils/adt/bool.c`, `parse_bool`), which a condition may fold.
fn is_truth_word(literal: &str) -> bool {
    let word = literal.trim_matches('\'').trim();
    word.len() <= 5
        && ["true", "false", "yes", "no", "on", "off", "1", "0"]
            .iter()
            .any(|name| {
                name.get(..word.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(word))
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_that_do_not_matter_share_a_key() {
        let key = |text: &str| statement_key(text).expect("a plain text has a key");
        assert_eq!(
            key("SELECT a FROM t WHERE id = 5 AND name = 'ann'"),
            key("SELECT a FROM t  WHERE id = 70123 AND name = 'it''s bob';")
        );
        assert_eq!(
            key("INSERT INTO t VALUES (1, -2, 'x x')"),
            key("INSERT INTO t VALUES (7, -8, 'zed')")
        );
    }

    #[test]
    fn literals_that_matter_keep_their_value() {
        let differ = |one: &str, other: &str| assert_ne!(statement_key(one), statement_key(other), "{one}");
        differ("SELECT a, b FROM t ORDER BY 1", "SELECT a, b FROM t ORDER BY 2");
        differ(
            "SELECT a, b FROM t GROUP BY 1, 2",
            "SELECT a, b FROM t GROUP BY 1, 1",
        );
        differ(
            "SELECT DISTINCT ON (1) a, b FROM t",
            "SELECT DISTINCT ON (2) a, b FROM t",
        );
        differ("DELETE FROM t WHERE 't'", "DELETE FROM t WHERE 'f'");
        differ("SELECT f(2147483647)", "SELECT f(2147483648)");
        differ("SELECT 1", "SELECT '1'");
        differ("SELECT 'x'", "SELECT \"x\"");
        differ("SELECT a FROM t", "SELECT A FROM t");
    }

    #[test]
    fn what_another_lexer_might_read_otherwise_has_no_key() {
        for text in [
            "SELECT 1 -- x",
            "SELECT /* x */ 1",
            "SELECT E'a'",
            "SELECT U&'a'",
            "SELECT B'1'",
            "SELECT $$a$$",
            "SELECT 'a\\'",
            "SELECT 1; SELECT 2",
            "SELECT \u{a0}1",
            "SELECT $1",
            "SELECT 'open",
        ] {
            assert_eq!(statement_key(text), None, "{text}");
        }
    }
}
