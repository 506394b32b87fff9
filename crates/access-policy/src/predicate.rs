//! Row filter predicates: SQL with `:claims.NAME`, cut into tokens so that claims and column names can be put in.

use crate::names::always_quoted;

/// One token of a predicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// Blanks.
    Space(String),
    /// An identifier or keyword without quotes, in lower case.
    Word(String),
    /// An identifier in quotes, without them.
    Quoted(String),
    /// A string literal or number, as written.
    Literal(String),
    /// An operator or punctuation.
    Symbol(String),
    /// `:claims.NAME`
    Claim {
        /// Name behind the dot.
        name: String,
        /// Where its type comes from.
        typing: Typing,
    },
}

/// Where the type of a claim comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Typing {
    /// The column it is compared with.
    Column(String),
    /// A cast behind it.
    Cast,
}

/// A predicate that the grammar accepts as one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predicate {
    tokens: Vec<Token>,
}

impl Predicate {
    /// Reads a predicate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = tokens(text)?;
        type_claims(&mut tokens)?;
        let predicate = Self { tokens };
        let sample = predicate.render(|_, _| Some("NULL".to_owned()), |_| None)?;
        accepted_by_grammar(&sample)?;
        if predicate
            .tokens
            .iter()
            .any(|token| matches!(token, Token::Word(word) if word == "select"))
        {
            return Err(
                "sub-queries in row filters are not built yet; compare the table's own columns".to_owned(),
            );
        }
        Ok(predicate)
    }

    /// Stands for a predicate that did not parse, until its problem is told.
    pub(crate) fn nothing() -> Self {
        Self {
            tokens: vec![Token::Word("false".to_owned())],
        }
    }

    /// Names of the claims it needs.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter_map(|token| match token {
            Token::Claim { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }

    /// Prints it. `claim` gives the SQL literal of a claim; `column` a new name for an identifier.
    ///
    /// # Errors
    /// The name of a claim for which there is no literal.
    pub(crate) fn render(
        &self,
        mut claim: impl FnMut(&str, &Typing) -> Option<String>,
        mut column: impl FnMut(&str) -> Option<String>,
    ) -> Result<String, String> {
        let mut text = String::new();
        for (at, token) in self.tokens.iter().enumerate() {
            match token {
                Token::Space(_) => text.push(' '),
                Token::Word(word) => match column(word) {
                    Some(name) if !self.is_called(at) => text.push_str(&always_quoted(&name)),
                    _ => text.push_str(word),
                },
                Token::Quoted(word) => {
                    let name = column(word).filter(|_| !self.is_called(at));
                    text.push_str(&always_quoted(name.as_deref().unwrap_or(word)));
                }
                Token::Literal(piece) | Token::Symbol(piece) => text.push_str(piece),
                Token::Claim { name, typing } => {
                    text.push_str(&claim(name, typing).ok_or_else(|| name.clone())?);
                }
            }
        }
        Ok(text)
    }

    /// The identifier at that token is the name of a function, or part of a dotted name or type.
    fn is_called(&self, at: usize) -> bool {
        let symbol = |token: Option<&Token>, texts: &[&str]| matches!(token, Some(Token::Symbol(symbol)) if texts.contains(&symbol.as_str()));
        let after = self
            .tokens
            .iter()
            .skip(at + 1)
            .find(|token| !matches!(token, Token::Space(_)));
        let before = self
            .tokens
            .iter()
            .take(at)
            .rev()
            .find(|token| !matches!(token, Token::Space(_)));
        symbol(after, &["(", "."]) || symbol(before, &[".", "::"])
    }
}

/// The one place that asks the grammar: as a condition, with and without parentheses, so that neither
/// `a) OR (b` nor `a LIMIT 1` passes.
fn accepted_by_grammar(condition: &str) -> Result<(), String> {
    for text in [
        format!("SELECT 1 WHERE {condition}"),
        format!("SELECT 1 WHERE ({condition})"),
    ] {
        match sql_facts::parse(&text) {
            Ok(parsed) if parsed.statements.len() == 1 => {}
            Ok(_) => return Err("is more than one statement".to_owned()),
            Err(reason) => return Err(format!("is not one condition in SQL: {reason}")),
        }
    }
    Ok(())
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before_colon = matches!(tokens.last(), Some(Token::Symbol(symbol)) if symbol.ends_with(':'));
        let (token, length) = if first.is_whitespace() {
            let length = run(rest, char::is_whitespace);
            (Token::Space(" ".to_owned()), length)
        } else if rest.starts_with("--") || rest.starts_with("/*") {
            return Err("holds a comment; leave it out".to_owned());
        } else if first == '\'' {
            let length = quoted_length(rest, '\'').ok_or("holds a quote that does not end")?;
            let literal = rest.get(..length).unwrap_or_default();
            if literal.contains('\\') {
                return Err("holds a backslash in a literal; its meaning depends on a setting".to_owned());
            }
            (Token::Literal(literal.to_owned()), length)
        } else if first == '"' {
            let length = quoted_length(rest, '"').ok_or("holds a quote that does not end")?;
            let inner = rest.get(1..length.saturating_sub(1)).unwrap_or_default();
            (Token::Quoted(inner.replace("\"\"", "\"")), length)
        } else if first == '$' {
            return Err(
                "holds a `$`: parameters and dollar quotes have no meaning here; use :claims.NAME".to_owned(),
            );
        } else if first == ';' {
            return Err("is more than one statement".to_owned());
        } else if first == ':' && rest.starts_with("::") {
            (Token::Symbol("::".to_owned()), 2)
        } else if first == ':' && !before_colon && rest.chars().nth(1).is_some_and(char::is_alphabetic) {
            claim(rest)?
        } else if first.is_ascii_digit() {
            let length = run(rest, |letter| {
                letter.is_ascii_alphanumeric() || letter == '.' || letter == '_'
            });
            (
                Token::Literal(rest.get(..length).unwrap_or_default().to_owned()),
                length,
            )
        } else if first.is_alphabetic() || first == '_' {
            let length = run(rest, |letter| {
                letter.is_alphanumeric() || letter == '_' || letter == '$'
            });
            let word = rest.get(..length).unwrap_or_default();
            let special = ["e", "b", "x", "n", "u&"].contains(&word.to_ascii_lowercase().as_str());
            let next = rest.get(length..).unwrap_or_default();
            if special && next.starts_with('\'') || word.eq_ignore_ascii_case("u") && next.starts_with('&') {
                return Err("holds a literal with a prefix; write it as a plain literal".to_owned());
            }
            (Token::Word(word.to_ascii_lowercase()), length)
        } else if is_operator(first) {
            let length = run(rest, is_operator);
            let symbol = rest.get(..length).unwrap_or_default();
            if symbol.contains("--") || symbol.contains("/*") {
                return Err("holds a comment; leave it out".to_owned());
            }
            (Token::Symbol(symbol.to_owned()), length)
        } else {
            (Token::Symbol(first.to_string()), first.len_utf8())
        };
        tokens.push(token);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(tokens)
}

fn claim(rest: &str) -> Result<(Token, usize), String> {
    let word = run(rest.get(1..).unwrap_or_default(), |letter| {
        letter.is_alphanumeric() || letter == '_'
    });
    let head = rest.get(1..=word).unwrap_or_default();
    let after = rest.get(1 + word..).unwrap_or_default();
    if head != "claims" {
        return Err(format!("holds `:{head}`; only :claims.NAME has a meaning"));
    }
    let name_length = run(after.strip_prefix('.').unwrap_or_default(), |letter| {
        letter.is_alphanumeric() || letter == '_' || letter == '-'
    });
    let name = after.get(1..=name_length).unwrap_or_default();
    if name.is_empty() {
        return Err("holds `:claims` without the name of a claim; write :claims.NAME".to_owned());
    }
    let token = Token::Claim {
        name: name.to_owned(),
        typing: Typing::Cast,
    };
    Ok((token, 1 + word + 1 + name_length))
}

fn run(text: &str, accept: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !accept(letter)).unwrap_or(text.len())
}

fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text.get(at..)?.find(quote)? + 1;
        if !text.get(at..)?.starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

fn is_operator(letter: char) -> bool {
    "+-*/<>=~!@#%^&|`?".contains(letter)
}

/// Finds for each claim the column it is compared with, or the cast behind it.
fn type_claims(tokens: &mut [Token]) -> Result<(), String> {
    let solid: Vec<(usize, Token)> = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| !matches!(token, Token::Space(_)))
        .map(|(at, token)| (at, token.clone()))
        .collect();
    for (position, (at, token)) in solid.iter().enumerate() {
        let Token::Claim { name, .. } = token else {
            continue;
        };
        let after: Vec<&Token> = solid.iter().skip(position + 1).map(|(_, token)| token).collect();
        let before: Vec<&Token> = solid
            .iter()
            .take(position)
            .rev()
            .map(|(_, token)| token)
            .collect();
        let found = if is_symbol(after.first(), &["::"]) {
            Typing::Cast
        } else if let Some(column) = compared_before(&before).or_else(|| compared_after(&after)) {
            Typing::Column(column)
        } else {
            return Err(format!(
                "does not tell the type of :claims.{name}; compare it with a column (tenant = :claims.{name}) or write \
                 :claims.{name}::text"
            ));
        };
        if let Some(Token::Claim { typing, .. }) = tokens.get_mut(*at) {
            *typing = found;
        }
    }
    Ok(())
}

fn is_symbol(token: Option<&&Token>, texts: &[&str]) -> bool {
    matches!(token, Some(Token::Symbol(symbol)) if texts.contains(&symbol.as_str()))
}

fn is_word(token: Option<&&Token>, words: &[&str]) -> bool {
    matches!(token, Some(Token::Word(word)) if words.contains(&word.as_str()))
}

const COMPARISONS: [&str; 7] = ["=", "<>", "!=", "<", ">", "<=", ">="];
const BOUNDARIES: [&str; 3] = ["and", "or", "not"];

/// `column = ` or `column IN (…, ` read backwards.
fn compared_before(before: &[&Token]) -> Option<String> {
    let mut index = 0;
    if is_symbol(before.first(), &COMPARISONS) {
        index = 1;
    } else {
        loop {
            match before.get(index)? {
                Token::Symbol(symbol) if symbol == "," || symbol == "(" => {}
                Token::Claim { .. } | Token::Literal(_) => {}
                Token::Word(word) if word == "in" => break,
                _ => return None,
            }
            index += 1;
        }
        index += 1;
        if is_word(before.get(index), &["not"]) {
            index += 1;
        }
    }
    let boundary = before.get(index + 1);
    let open = boundary.is_none() || is_symbol(boundary, &["("]) || is_word(boundary, &BOUNDARIES);
    identifier(before.get(index)?).filter(|_| open)
}

/// ` = column` read forwards.
fn compared_after(after: &[&Token]) -> Option<String> {
    if !is_symbol(after.first(), &COMPARISONS) {
        return None;
    }
    let boundary = after.get(2);
    let open = boundary.is_none() || is_symbol(boundary, &[")"]) || is_word(boundary, &BOUNDARIES);
    identifier(after.get(1)?).filter(|_| open)
}

fn identifier(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.clone()),
        Token::Quoted(name) => Some(name.clone()),
        _ => None,
    }
}
