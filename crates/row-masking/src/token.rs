//! Tokens: HMAC-SHA-256 of a value, in the value's own type, alike in text and in binary format.

use bytes::{BufMut, BytesMut};

use crate::mask::HashKey;

/// How a value is written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Format code 0.
    Text,
    /// Format code 1.
    Binary,
}

/// A mask made on the bytes of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireMask {
    key: HashKey,
    shape: TokenShape,
}

/// What a token looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenShape {
    /// text and varchar(n): 64 hexadecimal digits, cut to n.
    Hex { length: Option<usize> },
    /// bpchar(n): the same, filled with blanks up to n. Trailing blanks of the value do not count.
    PaddedHex { length: Option<usize> },
    /// bytea: the 32 bytes.
    Bytes,
    /// uuid: 16 bytes of it, marked as version 8 (RFC 9562: custom).
    Uuid,
}

impl TokenShape {
    /// Fewest digits of a token: 64 bits.
    pub(crate) const HEX_MIN: usize = 16;
}

/// A value that does not have the form of its type. Its row is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Neither canonical text nor 16 bytes.
    #[error("a value to be masked is no uuid")]
    NotUuid,
    /// Neither the hex nor the escape form.
    #[error("a value to be masked is no bytea")]
    NotBytea,
}

impl WireMask {
    pub(crate) fn new(key: HashKey, shape: TokenShape) -> Self {
        Self { key, shape }
    }

    /// Writes the token of `value` (never NULL: NULL stays NULL) to `out`, in the format of `value`. Nothing is
    /// written on error.
    ///
    /// # Errors
    /// [`ValueError`] if the value does not have the form of its type.
    pub fn write_token(&self, value: &[u8], format: Format, out: &mut BytesMut) -> Result<(), ValueError> {
        match self.shape {
            TokenShape::Hex { length } => {
                self.write_hex(value, length.unwrap_or(HEX_DIGITS), out);
                Ok(())
            }
            TokenShape::PaddedHex { length } => {
                let blanks = value.iter().rev().take_while(|byte| **byte == b' ').count();
                let trimmed = value
                    .get(..value.len().saturating_sub(blanks))
                    .unwrap_or_default();
                let length = length.unwrap_or(HEX_DIGITS);
                self.write_hex(trimmed, length, out);
                out.put_bytes(b' ', length.saturating_sub(HEX_DIGITS));
                Ok(())
            }
            TokenShape::Bytes => match format {
                Format::Binary => {
                    out.put_slice(self.key.digest(value).as_ref());
                    Ok(())
                }
                Format::Text => {
                    let decoded = bytea_bytes(value).ok_or(ValueError::NotBytea)?;
                    // The hex form is read by every client, whatever bytea_output says.
                    out.put_slice(b"\\x");
                    self.write_hex(&decoded, HEX_DIGITS, out);
                    Ok(())
                }
            },
            TokenShape::Uuid => {
                let value = match format {
                    Format::Binary => <[u8; 16]>::try_from(value).ok(),
                    Format::Text => uuid_bytes(value),
                };
                let token = uuid_token(self.key.digest(&value.ok_or(ValueError::NotUuid)?).as_ref());
                match format {
                    Format::Binary => out.put_slice(&token),
                    Format::Text => {
                        for (at, byte) in token.iter().enumerate() {
                            if matches!(at, 4 | 6 | 8 | 10) {
                                out.put_u8(b'-');
                            }
                            put_hex(*byte, out);
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// `length` digits at most.
    fn write_hex(&self, value: &[u8], length: usize, out: &mut BytesMut) {
        let start = out.len();
        for byte in self.key.digest(value).as_ref() {
            put_hex(*byte, out);
        }
        out.truncate(out.len().min(start.saturating_add(length)));
    }
}

const HEX_DIGITS: usize = 64;

fn put_hex(byte: u8, out: &mut BytesMut) {
    for nibble in [byte >> 4, byte & 15] {
        out.put_u8(if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + nibble - 10
        });
    }
}

fn uuid_token(digest: &[u8]) -> [u8; 16] {
    let mut token = [0; 16];
    for ((at, to), from) in token.iter_mut().enumerate().zip(digest) {
        *to = match at {
            6 => (from & 0x0f) | 0x80,
            8 => (from & 0x3f) | 0x80,
            _ => *from,
        };
    }
    token
}

/// The server writes uuids with hyphens and small letters; policies may write capitals.
pub(crate) fn uuid_bytes(text: &[u8]) -> Option<[u8; 16]> {
    let hyphens = [8, 13, 18, 23];
    if text.len() != 36 || !hyphens.iter().all(|at| text.get(*at) == Some(&b'-')) {
        return None;
    }
    let digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'-').collect();
    hex::decode(digits).ok()?.try_into().ok()
}

/// Both output forms of bytea: `\x00ff`, and with `bytea_output = escape` `\000\377` and `\\`.
fn bytea_bytes(text: &[u8]) -> Option<Vec<u8>> {
    // In the escape form a backslash is never followed by x.
    if let Some(digits) = text.strip_prefix(b"\\x") {
        return hex::decode(digits).ok();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first != b'\\' {
            bytes.push(*first);
            rest = after;
        } else if let Some(after) = after.strip_prefix(b"\\") {
            bytes.push(b'\\');
            rest = after;
        } else {
            let (digits, after) = after.split_at_checked(3)?;
            let mut byte: u8 = 0;
            for digit in digits {
                let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
                byte = byte.checked_mul(8)?.checked_add(digit)?;
            }
            bytes.push(byte);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(shape: TokenShape, value: &[u8], format: Format) -> Result<Vec<u8>, ValueError> {
        // The key and data of test case 1 of RFC 4231.
        let mask = WireMask::new(HashKey::new(&[0x0b; 20]).unwrap(), shape);
        let mut out = BytesMut::from(&b"before"[..]);
        mask.write_token(value, format, &mut out)
            .map(|()| out.strip_prefix(b"before").unwrap().to_vec())
    }

    const RFC_4231: &str = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7";

    #[test]
    fn text_tokens_are_the_hex_of_the_hmac_cut_to_the_column() {
        for format in [Format::Text, Format::Binary] {
            let whole = token(TokenShape::Hex { length: None }, b"Hi There", format).unwrap();
            assert_eq!(whole, RFC_4231.as_bytes());
            let cut = token(TokenShape::Hex { length: Some(16) }, b"Hi There", format).unwrap();
            assert_eq!(cut, RFC_4231.as_bytes()[..16]);
            let long = token(TokenShape::Hex { length: Some(100) }, b"Hi There", format).unwrap();
            assert_eq!(long, RFC_4231.as_bytes());
        }
    }

    #[test]
    fn a_bpchar_token_fills_the_column_and_ignores_trailing_blanks() {
        let padded = token(
            TokenShape::PaddedHex { length: Some(70) },
            b"Hi There      ",
            Format::Text,
        )
        .unwrap();
        assert_eq!(padded, format!("{RFC_4231}      ").as_bytes());
        let cut = token(
            TokenShape::PaddedHex { length: Some(20) },
            b"Hi There            ",
            Format::Binary,
        )
        .unwrap();
        assert_eq!(cut, RFC_4231.as_bytes()[..20]);
    }

    #[test]
    fn a_bytea_token_is_the_same_value_in_hex_escape_and_binary() {
        let value = b"Hi There".as_slice();
        let binary = token(TokenShape::Bytes, value, Format::Binary).unwrap();
        assert_eq!(hex::encode(&binary), RFC_4231);
        let expected = format!("\\x{RFC_4231}").into_bytes();
        assert_eq!(
            token(TokenShape::Bytes, b"\\x4869205468657265", Format::Text).unwrap(),
            expected
        );
        assert_eq!(
            token(TokenShape::Bytes, b"Hi There", Format::Text).unwrap(),
            expected
        );
        let odd = token(TokenShape::Bytes, b"\x00\\a\xff", Format::Binary).unwrap();
        let odd_text = format!("\\x{}", hex::encode(odd)).into_bytes();
        assert_eq!(
            token(TokenShape::Bytes, b"\\000\\\\a\\377", Format::Text).unwrap(),
            odd_text
        );
        assert_eq!(
            token(TokenShape::Bytes, b"\\x005c61ff", Format::Text).unwrap(),
            odd_text
        );
        for bad in [&b"\\xzz"[..], b"\\x0", b"\\400", b"\\09", b"\\", b"\\8aa"] {
            assert_eq!(
                token(TokenShape::Bytes, bad, Format::Text),
                Err(ValueError::NotBytea)
            );
        }
    }

    #[test]
    fn a_uuid_token_is_a_uuid_and_the_same_in_both_formats() {
        let text = b"00112233-4455-6677-8899-aabbccddeeff";
        let binary = hex::decode("00112233445566778899aabbccddeeff").unwrap();
        let from_text = token(TokenShape::Uuid, text, Format::Text).unwrap();
        let from_binary = token(TokenShape::Uuid, &binary, Format::Binary).unwrap();
        assert_eq!(uuid_bytes(&from_text).unwrap().as_slice(), from_binary);
        assert_eq!(from_text.get(14), Some(&b'8'));
        for bad in [
            &b"x"[..],
            b"00112233445566778899aabbccddeeff",
            b"00112233-4455-6677-8899-aabbccddee-f",
        ] {
            assert_eq!(
                token(TokenShape::Uuid, bad, Format::Text),
                Err(ValueError::NotUuid)
            );
        }
        assert_eq!(
            token(TokenShape::Uuid, &[0; 15], Format::Binary),
            Err(ValueError::NotUuid)
        );
    }
}
