//! Proof that the printed text means the tree it was printed from, and the map from its places to the client's.
//!
//! Both trees are written out by their own `Debug`, which names every field of every node. Places in the text are
//! kept aside, everything else goes into a digest under a random key: equal digests mean equal trees, and the places
//! then stand side by side.

use std::collections::hash_map::RandomState;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher};

use pg_raw_parse::nodes::RawStmt;

use super::workshop::Windows;
use crate::plan::CannotGovern;

/// Parses `text` again, compares it with the tree it was printed from, and returns its position map.
pub(super) fn prove(
    printed: &RawStmt,
    text: &str,
    windows: &Windows,
) -> Result<Vec<(usize, usize)>, CannotGovern> {
    let again = pg_raw_parse::parse(text)
        .map_err(|error| impossible(&format!("its governed text does not parse: {error}")))?;
    let mut statements = again.iter();
    let (Some(second), None) = (statements.next(), statements.next()) else {
        return Err(impossible("its governed text is not one statement"));
    };
    let keys = (RandomState::new(), RandomState::new());
    let ours = outline(printed, &keys)?;
    let theirs = outline(second, &keys)?;
    if ours.digest != theirs.digest || ours.places.len() != theirs.places.len() {
        return Err(impossible("its governed text cannot be printed exactly"));
    }
    let mut positions: Vec<(usize, usize)> = theirs
        .places
        .iter()
        .zip(&ours.places)
        .filter_map(|(new, old)| {
            let new = usize::try_from(*new).ok()?;
            let old = usize::try_from(*old).ok().filter(|old| *old > 0)?;
            Some((new, windows.client_place(old)?))
        })
        .collect();
    positions.sort_unstable();
    positions.dedup_by_key(|(new, _)| *new);
    Ok(positions)
}

fn impossible(what: &str) -> CannotGovern {
    CannotGovern::Impossible(format!("this statement cannot be governed: {what}"))
}

fn outline(statement: &RawStmt, keys: &(RandomState, RandomState)) -> Result<Outline, CannotGovern> {
    let mut sink = Sink {
        first: keys.0.build_hasher(),
        second: keys.1.build_hasher(),
        places: Vec::new(),
        word: String::new(),
        state: State::Between,
    };
    write!(sink, "{:?}", statement.stmt()).map_err(|_| impossible("its tree cannot be written out"))?;
    sink.end_word();
    Ok(Outline {
        digest: (sink.first.finish(), sink.second.finish()),
        places: sink.places,
    })
}

struct Outline {
    digest: (u64, u64),
    places: Vec<i32>,
}

/// Where the sink stands in the `Debug` text.
enum State {
    /// Outside of words and strings.
    Between,
    /// In a name or number.
    Word,
    /// In a quoted string; `true` after a backslash.
    Quoted(bool),
    /// Behind the name of a place field: the next number is a place.
    Place,
}

struct Sink<H> {
    first: H,
    second: H,
    places: Vec<i32>,
    word: String,
    state: State,
}

impl<H: Hasher> Sink<H> {
    fn feed(&mut self, character: char) {
        self.first.write_u32(u32::from(character));
        self.second.write_u32(u32::from(character));
    }

    fn end_word(&mut self) {
        let word = std::mem::take(&mut self.word);
        for character in word.chars() {
            self.feed(character);
        }
        self.state = if is_place(&word) {
            State::Place
        } else {
            State::Between
        };
    }
}

fn is_place(word: &str) -> bool {
    matches!(
        word,
        "location"
            | "name_location"
            | "stmt_location"
            | "stmt_len"
            | "list_start"
            | "list_end"
            | "rexpr_list_start"
            | "rexpr_list_end"
    )
}

impl<H: Hasher> Write for Sink<H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match self.state {
                State::Quoted(true) => {
                    self.feed(character);
                    self.state = State::Quoted(false);
                }
                State::Quoted(false) => {
                    self.feed(character);
                    match character {
                        '\\' => self.state = State::Quoted(true),
                        '"' => self.state = State::Between,
                        _ => {}
                    }
                }
                State::Place => match character {
                    ':' | ' ' => self.feed(character),
                    '-' | '0'..='9' => self.word.push(character),
                    _ => {
                        // A place is a number; the number itself stays out of the digest.
                        let word = std::mem::take(&mut self.word);
                        self.places.push(word.parse().map_err(|_| fmt::Error)?);
                        self.feed(character);
                        self.state = if character == '"' {
                            State::Quoted(false)
                        } else {
                            State::Between
                        };
                    }
                },
                State::Between | State::Word => {
                    if character.is_ascii_alphanumeric() || character == '_' {
                        self.word.push(character);
                        self.state = State::Word;
                    } else {
                        if matches!(self.state, State::Word) {
                            self.end_word();
                        }
                        self.feed(character);
                        if character == '"' {
                            self.state = State::Quoted(false);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
