//! PostgreSQL's lexical rules, for what the tree does not keep: where a statement really starts, and the text
//! without its literals. It assumes `standard_conforming_strings = on`; the session refuses the other setting where
//! something is protected.

use std::ops::Range;

/// What a piece of text is to the lexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Blanks.
    Space,
    /// `-- …` or `/* … */` (these nest).
    Comment,
    /// An identifier or keyword without quotes.
    Word,
    /// `"…"` or `U&"…"`.
    QuotedWord,
    /// Any literal in quotes: `'…'`, `E'…'`, `B'…'`, `X'…'`, `N'…'`, `U&'…'`, `$tag$…$tag$`.
    Text,
    /// A number.
    Number,
    /// `$1`.
    Parameter,
    /// Operators and punctuation; one byte each, or a whole run of operator characters.
    Symbol,
    /// A quote or comment that never ends.
    Unterminated,
}

/// One token: what it is and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: TokenKind,
    /// Its bytes in the text.
    pub(crate) span: Range<usize>,
}

/// Walks a text token by token. Tokens cover the text without holes.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    /// Starts at that byte of the text, which must be a boundary between tokens.
    pub(crate) fn new(text: &'a str, at: usize) -> Self {
        Self {
            bytes: text.as_bytes(),
            at,
        }
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes.get(self.at.checked_add(offset)?).copied()
    }

    /// Length of the run from `offset` on whose bytes satisfy `accept`.
    fn run(&self, offset: usize, accept: impl Fn(u8) -> bool) -> usize {
        self.bytes
            .iter()
            .skip(self.at + offset)
            .take_while(|byte| accept(**byte))
            .count()
    }

    /// Length of a quoted piece whose opening quote stands at `offset`, both quotes included.
    fn quoted(&self, offset: usize, quote: u8, backslash: bool) -> Option<usize> {
        let mut length = offset + 1;
        loop {
            let byte = self.byte(length)?;
            if byte == b'\\' && backslash {
                length += 2;
            } else if byte == quote {
                if self.byte(length + 1) == Some(quote) {
                    length += 2;
                } else {
                    return Some(length + 1);
                }
            } else {
                length += 1;
            }
        }
    }

    fn block_comment(&self) -> Option<usize> {
        let mut depth = 1_usize;
        let mut length = 2;
        loop {
            match (self.byte(length)?, self.byte(length + 1)) {
                (b'*', Some(b'/')) => {
                    depth -= 1;
                    length += 2;
                    if depth == 0 {
                        return Some(length);
                    }
                }
                (b'/', Some(b'*')) => {
                    depth += 1;
                    length += 2;
                }
                _ => length += 1,
            }
        }
    }

    /// Length of `$tag$ … $tag$` here; `None` if no such quote starts here, `Some(None)` if it never ends.
    fn dollar_quoted(&self) -> Option<Option<usize>> {
        let tag = self.run(1, is_tag);
        if self.byte(1).is_some_and(|byte| byte.is_ascii_digit()) || self.byte(1 + tag) != Some(b'$') {
            return None;
        }
        let opener = self.bytes.get(self.at..self.at + tag + 2)?;
        let body = self.bytes.get(self.at + tag + 2..)?;
        let end = find(body, opener).map(|found| tag + 2 + found + opener.len());
        Some(end)
    }

    fn number(&self) -> usize {
        if self.byte(0) == Some(b'0')
            && matches!(self.byte(1), Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B'))
            && self.run(2, |byte| byte.is_ascii_hexdigit() || byte == b'_') > 0
        {
            return 2 + self.run(2, |byte| byte.is_ascii_hexdigit() || byte == b'_');
        }
        let digits = |byte: u8| byte.is_ascii_digit() || byte == b'_';
        let mut length = self.run(0, digits);
        // `1..10` is two integers around `..` to the lexer.
        if self.byte(length) == Some(b'.') && self.byte(length + 1) != Some(b'.') {
            length += 1;
            length += self.run(length, digits);
        }
        if matches!(self.byte(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.byte(length + 1), Some(b'+' | b'-')));
            let exponent = self.run(length + 1 + sign, digits);
            if exponent > 0 {
                length += 1 + sign + exponent;
            }
        }
        length
    }

    /// Length of a run of operator characters: it ends where a comment begins.
    fn operator(&self) -> usize {
        let mut length = self.run(0, is_operator);
        for start in 0..length {
            let pair = (self.byte(start), self.byte(start + 1));
            if matches!(pair, (Some(b'-'), Some(b'-')) | (Some(b'/'), Some(b'*'))) {
                length = start;
                break;
            }
        }
        length.max(1)
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let first = self.byte(0)?;
        let rest = self.bytes.len() - self.at;
        let ended = |kind, length: Option<usize>| match length {
            Some(length) => (kind, length),
            None => (TokenKind::Unterminated, rest),
        };
        let (kind, length) = match (first, self.byte(1), self.byte(2)) {
            (b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b'\x0b', _, _) => {
                (TokenKind::Space, self.run(0, is_space))
            }
            (b'-', Some(b'-'), _) => (
                TokenKind::Comment,
                self.run(0, |byte| byte != b'\n' && byte != b'\r'),
            ),
            (b'/', Some(b'*'), _) => ended(TokenKind::Comment, self.block_comment()),
            (b'\'', _, _) => ended(TokenKind::Text, self.quoted(0, b'\'', false)),
            (b'e' | b'E', Some(b'\''), _) => ended(TokenKind::Text, self.quoted(1, b'\'', true)),
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\''), _) => {
                ended(TokenKind::Text, self.quoted(1, b'\'', false))
            }
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => ended(TokenKind::Text, self.quoted(2, b'\'', false)),
            (b'u' | b'U', Some(b'&'), Some(b'"')) => {
                ended(TokenKind::QuotedWord, self.quoted(2, b'"', false))
            }
            (b'"', _, _) => ended(TokenKind::QuotedWord, self.quoted(0, b'"', false)),
            (b'$', Some(digit), _) if digit.is_ascii_digit() => (
                TokenKind::Parameter,
                1 + self.run(1, |byte| byte.is_ascii_digit()),
            ),
            (b'$', _, _) => match self.dollar_quoted() {
                Some(end) => ended(TokenKind::Text, end),
                None => (TokenKind::Symbol, 1),
            },
            (b'.', Some(digit), _) if digit.is_ascii_digit() => (TokenKind::Number, self.number().max(1)),
            (digit, _, _) if digit.is_ascii_digit() => (TokenKind::Number, self.number().max(1)),
            (letter, _, _) if is_word_start(letter) => (
                TokenKind::Word,
                self.run(0, |byte| {
                    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
                }),
            ),
            (operator, _, _) if is_operator(operator) => (TokenKind::Symbol, self.operator()),
            _ => (TokenKind::Symbol, 1),
        };
        let length = length.clamp(1, rest);
        let span = self.at..self.at + length;
        self.at += length;
        Some(Token { kind, span })
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b'\x0b')
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_tag(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit()
}

fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len().max(1))
        .position(|window| window == needle)
}

/// Where the first token that is neither blank nor comment begins, from `start` on, before `end`.
pub(crate) fn first_token(text: &str, start: usize, end: usize) -> usize {
    Lexer::new(text, start)
        .find(|token| !matches!(token.kind, TokenKind::Space | TokenKind::Comment))
        .map_or(end, |token| token.span.start)
        .min(end)
}

/// The statement with every literal replaced by a parameter that no other place uses, without comments, blanks
/// reduced to one. `None` where the lexer meets something it does not understand.
pub(crate) fn without_literals(statement: &str) -> Option<String> {
    let mut highest = 0_u32;
    for token in Lexer::new(statement, 0) {
        match token.kind {
            TokenKind::Parameter => {
                let number: u32 = statement.get(token.span)?.get(1..)?.parse().ok()?;
                highest = highest.max(number);
            }
            TokenKind::Unterminated => return None,
            TokenKind::Space
            | TokenKind::Comment
            | TokenKind::Word
            | TokenKind::QuotedWord
            | TokenKind::Text
            | TokenKind::Number
            | TokenKind::Symbol => {}
        }
    }
    let mut text = String::with_capacity(statement.len().min(4096));
    let mut blank = false;
    for token in Lexer::new(statement, 0) {
        let piece = match token.kind {
            TokenKind::Space | TokenKind::Comment => {
                blank = true;
                continue;
            }
            TokenKind::Unterminated => return None,
            TokenKind::Text | TokenKind::Number => None,
            TokenKind::Word | TokenKind::QuotedWord | TokenKind::Parameter | TokenKind::Symbol => {
                Some(statement.get(token.span)?)
            }
        };
        if blank && !text.is_empty() {
            text.push(' ');
        }
        blank = false;
        match piece {
            Some(piece) => text.push_str(piece),
            None => {
                highest = highest.checked_add(1)?;
                text.push('$');
                text.push_str(&highest.to_string());
            }
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        without_literals(text).expect("a text without open quotes has a normal form")
    }

    #[test]
    fn literals_of_every_spelling_are_taken_out() {
        assert_eq!(
            normal("SELECT 'a''b', E'c\\'d', B'1', X'f', U&'x' FROM t"),
            "SELECT $1, $2, $3, $4, $5 FROM t"
        );
        assert_eq!(
            normal("SELECT $$it's$$, $t$ $$ $t$, 1, 1.5e-3, .5, 0xff, 1_000"),
            "SELECT $1, $2, $3, $4, $5, $6, $7"
        );
        assert_eq!(
            normal("SELECT a1, \"b 2\", $3 + 4 -- secret 5\n/* 6 /* 7 */ 8 */ FROM t9"),
            "SELECT a1, \"b 2\", $3 + $4 FROM t9"
        );
        assert_eq!(normal("SELECT 1--2\n+3"), "SELECT $1 +$2");
    }

    #[test]
    fn an_open_quote_has_no_normal_form() {
        for text in [
            "SELECT 'a",
            "SELECT \"a",
            "SELECT $$a",
            "SELECT /* a",
            "SELECT E'a\\'",
        ] {
            assert_eq!(without_literals(text), None, "{text}");
        }
    }

    #[test]
    fn tokens_cover_the_text() {
        let text = "SELECT é, 'ü', a->>'b' /* ☃ */ FROM \"☃\" WHERE a = $1;";
        let mut at = 0;
        for token in Lexer::new(text, 0) {
            assert_eq!(token.span.start, at);
            at = token.span.end;
        }
        assert_eq!(at, text.len());
    }
}
