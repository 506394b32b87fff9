//! The one cursor over message bodies.

use super::WireError;

/// Reads a body from front to back. Nothing outside the slice can be reached: each step splits off what it takes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not taken yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] with `what`.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::Truncated { what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated { what })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// Two bytes, signed.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn i16(&mut self, what: &'static str) -> Result<i16, WireError> {
        self.array(what).map(i16::from_be_bytes)
    }

    /// Two bytes, unsigned: counts are, in the server, too.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn i32(&mut self, what: &'static str) -> Result<i32, WireError> {
        self.array(what).map(i32::from_be_bytes)
    }

    /// Four bytes, unsigned.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// The text up to the next NUL, without it.
    ///
    /// # Errors
    /// [`WireError::Unterminated`].
    pub fn cstr(&mut self) -> Result<&'a [u8], WireError> {
        let end = memchr::memchr(0, self.rest).ok_or(WireError::Unterminated)?;
        let text = self.take(end, "a text")?;
        self.u8("the end of a text")?;
        Ok(text)
    }

    /// A value with its length in front; length -1 is NULL.
    ///
    /// # Errors
    /// [`WireError::Truncated`], or [`WireError::BadValue`] for another negative length.
    pub fn value(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, WireError> {
        match self.i32(what)? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| WireError::BadValue {
                    what,
                    value: length.into(),
                })?;
                self.take(length, what).map(Some)
            }
        }
    }

    /// A count of two bytes and as many two-byte values (format codes).
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn formats(&mut self, what: &'static str) -> Result<Formats<'a>, WireError> {
        let count = self.u16(what)?;
        self.take(usize::from(count) * 2, what)
            .map(|bytes| Formats { bytes })
    }

    /// Ends the reading: nothing may be left.
    ///
    /// # Errors
    /// [`WireError::TrailingBytes`].
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::TrailingBytes {
                count: self.rest.len(),
            })
        }
    }
}

/// Format codes of a Bind, FunctionCall or Copy…Response: 0 is text, 1 is binary, others are the server's to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats<'a> {
    bytes: &'a [u8],
}

impl<'a> Formats<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len() / 2
    }
    /// None: everything is text.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// The codes in order.
    pub fn iter(&self) -> impl Iterator<Item = i16> + 'a {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        pairs.iter().map(|pair| i16::from_be_bytes(*pair))
    }
    /// The code of column `index`, by the rule of Bind: none = text, one = for all. `None` where the codes do not
    /// reach that column (the server refuses such a Bind).
    pub fn of(&self, index: usize) -> Option<i16> {
        match self.len() {
            0 => Some(0),
            1 => self.iter().next(),
            _ => self.iter().nth(index),
        }
    }
}
