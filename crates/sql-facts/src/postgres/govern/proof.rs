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
        block: Vec::with_capacity(BLOCK),
        word: Vec::new(),
        state: State::Between,
    };
    write!(sink, "{:?}", statement.stmt()).map_err(|_| impossible("its tree cannot be written out"))?;
    sink.end_word();
    sink.flush();
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

/// Bytes that go into the digest at once.
const BLOCK: usize = 4096;

struct Sink<H> {
    first: H,
    second: H,
    places: Vec<i32>,
    block: Vec<u8>,
    word: Vec<u8>,
    state: State,
}

impl<H: Hasher> Sink<H> {
    fn feed(&mut self, byte: u8) {
        self.block.push(byte);
        if self.block.len() >= BLOCK {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.first.write(&self.block);
        self.second.write(&self.block);
        self.block.clear();
    }

    fn end_word(&mut self) {
        self.state = if is_place(&self.word) {
            State::Place
        } else {
            State::Between
        };
        self.block.append(&mut self.word);
    }
}

fn is_place(word: &[u8]) -> bool {
    matches!(
        word,
        b"location"
            | b"name_location"
            | b"stmt_location"
            | b"stmt_len"
            | b"list_start"
            | b"list_end"
            | b"rexpr_list_start"
            | b"rexpr_list_end"
    )
}

impl<H: Hasher> Write for Sink<H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match self.state {
                State::Quoted(true) => {
                    self.feed(byte);
                    self.state = State::Quoted(false);
                }
                State::Quoted(false) => {
                    self.feed(byte);
                    match byte {
                        b'\\' => self.state = State::Quoted(true),
                        b'"' => self.state = State::Between,
                        _ => {}
                    }
                }
                State::Place => match byte {
                    b':' | b' ' => self.feed(byte),
                    b'-' | b'0'..=b'9' => self.word.push(byte),
                    _ => {
                        // A place is a number; the number itself stays out of the digest.
                        let place = std::str::from_utf8(&self.word)
                            .ok()
                            .and_then(|word| word.parse().ok());
                        self.places.push(place.ok_or(fmt::Error)?);
                        self.word.clear();
                        self.feed(byte);
                        self.state = if byte == b'"' {
                            State::Quoted(false)
                        } else {
                            State::Between
                        };
                    }
                },
                State::Between | State::Word => {
                    if byte.is_ascii_alphanumeric() || byte == b'_' {
                        self.word.push(byte);
                        self.state = State::Word;
                    } else {
                        if matches!(self.state, State::Word) {
                            self.end_word();
                        }
                        // Behind the name of a place comes its colon.
                        self.feed(byte);
                        if byte == b'"' {
                            self.state = State::Quoted(false);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
