//! Messages of our own, appended to a buffer. A message that does not fit leaves the buffer as it was.

use bytes::{BufMut, BytesMut};

use super::backend::{Field, TransactionStatus};
use super::frontend::Target;
use super::{MESSAGE_LENGTH_MAX, WireError, tag};

/// Appends a message: type, length, and whatever `body` appends.
///
/// # Errors
/// What `body` says, or [`WireError::TooLongToWrite`].
pub fn message(
    out: &mut BytesMut,
    tag: u8,
    body: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = out.len();
    out.put_u8(tag);
    finish(out, start, body)
}

/// Appends a first packet: length, and whatever `body` appends.
fn packet(
    out: &mut BytesMut,
    body: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = out.len();
    finish(out, start, body)
}

fn finish(
    out: &mut BytesMut,
    start: usize,
    body: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let word = out.len();
    out.put_u32(0);
    let written = body(out).and_then(|()| {
        let length = u32::try_from(out.len() - word)
            .ok()
            .filter(|length| *length <= MESSAGE_LENGTH_MAX)
            .ok_or(WireError::TooLongToWrite { what: "a message" })?;
        if let Some(place) = out.get_mut(word..word + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    });
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// Appends a text and its NUL.
pub(super) fn cstr(out: &mut BytesMut, text: &[u8]) -> Result<(), WireError> {
    if memchr::memchr(0, text).is_some() {
        return Err(WireError::NulInText);
    }
    out.extend_from_slice(text);
    out.put_u8(0);
    Ok(())
}

/// Appends a value with its length; `None` is NULL.
pub(super) fn value(out: &mut BytesMut, value: Option<&[u8]>) -> Result<(), WireError> {
    match value {
        None => out.put_i32(-1),
        Some(bytes) => {
            let length =
                i32::try_from(bytes.len()).map_err(|_| WireError::TooLongToWrite { what: "a value" })?;
            out.put_i32(length);
            out.extend_from_slice(bytes);
        }
    }
    Ok(())
}

fn count(out: &mut BytesMut, length: usize, what: &'static str) -> Result<(), WireError> {
    out.put_u16(u16::try_from(length).map_err(|_| WireError::TooLongToWrite { what })?);
    Ok(())
}

fn formats(out: &mut BytesMut, formats: &[i16]) -> Result<(), WireError> {
    count(out, formats.len(), "a list of formats")?;
    for format in formats {
        out.put_i16(*format);
    }
    Ok(())
}

fn target(out: &mut BytesMut, target: Target<'_>) -> Result<(), WireError> {
    match target {
        Target::Statement(name) => {
            out.put_u8(b'S');
            cstr(out, name)
        }
        Target::Portal(name) => {
            out.put_u8(b'P');
            cstr(out, name)
        }
    }
}

/// Messages to a server.
pub mod frontend {
    use super::*;

    /// First packet: TLS is asked for.
    pub fn ssl_request(out: &mut BytesMut) {
        out.put_u32(8);
        out.put_u32(80_877_103);
    }

    /// First packet: cancel.
    ///
    /// # Errors
    /// [`WireError::TooLongToWrite`] for a key of more than 256 bytes.
    pub fn cancel_request(out: &mut BytesMut, process_id: u32, key: &[u8]) -> Result<(), WireError> {
        if key.len() > 256 {
            return Err(WireError::TooLongToWrite { what: "a cancel key" });
        }
        packet(out, |out| {
            out.put_u32(80_877_102);
            out.put_u32(process_id);
            out.extend_from_slice(key);
            Ok(())
        })
    }

    /// First packet: a session begins.
    ///
    /// # Errors
    /// [`WireError`] for a NUL, an empty name, or more than the server takes.
    pub fn startup<'p>(
        out: &mut BytesMut,
        version: u32,
        parameters: impl IntoIterator<Item = (&'p [u8], &'p [u8])>,
    ) -> Result<(), WireError> {
        let start = out.len();
        packet(out, |out| {
            out.put_u32(version);
            for (name, value) in parameters {
                if name.is_empty() {
                    return Err(WireError::BadValue {
                        what: "the length of a parameter's name",
                        value: 0,
                    });
                }
                cstr(out, name)?;
                cstr(out, value)?;
            }
            out.put_u8(0);
            Ok(())
        })?;
        let limit = usize::try_from(crate::postgres::STARTUP_LENGTH_MAX).unwrap_or(usize::MAX);
        if out.len() - start > limit {
            out.truncate(start);
            return Err(WireError::TooLongToWrite {
                what: "the first packet",
            });
        }
        Ok(())
    }

    /// `Q`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn query(out: &mut BytesMut, sql: &[u8]) -> Result<(), WireError> {
        message(out, tag::QUERY, |out| cstr(out, sql))
    }

    /// `P`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn parse(
        out: &mut BytesMut,
        name: &[u8],
        sql: &[u8],
        parameter_types: impl IntoIterator<Item = u32>,
    ) -> Result<(), WireError> {
        message(out, tag::PARSE, |out| {
            cstr(out, name)?;
            cstr(out, sql)?;
            let types: Vec<u32> = parameter_types.into_iter().collect();
            count(out, types.len(), "a list of parameter types")?;
            for oid in types {
                out.put_u32(oid);
            }
            Ok(())
        })
    }

    /// `B`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn bind<'v>(
        out: &mut BytesMut,
        portal: &[u8],
        statement: &[u8],
        parameter_formats: &[i16],
        parameters: impl IntoIterator<Item = Option<&'v [u8]>>,
        result_formats: &[i16],
    ) -> Result<(), WireError> {
        message(out, tag::BIND, |out| {
            cstr(out, portal)?;
            cstr(out, statement)?;
            formats(out, parameter_formats)?;
            let parameters: Vec<_> = parameters.into_iter().collect();
            count(out, parameters.len(), "a list of parameters")?;
            for parameter in parameters {
                value(out, parameter)?;
            }
            formats(out, result_formats)
        })
    }

    /// `D`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn describe(out: &mut BytesMut, what: Target<'_>) -> Result<(), WireError> {
        message(out, tag::DESCRIBE, |out| target(out, what))
    }

    /// `E`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn execute(out: &mut BytesMut, portal: &[u8], rows_max: i32) -> Result<(), WireError> {
        message(out, tag::EXECUTE, |out| {
            cstr(out, portal)?;
            out.put_i32(rows_max);
            Ok(())
        })
    }

    /// `C`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn close(out: &mut BytesMut, what: Target<'_>) -> Result<(), WireError> {
        message(out, tag::CLOSE, |out| target(out, what))
    }

    /// `S`
    pub fn sync(out: &mut BytesMut) {
        out.extend_from_slice(b"S\0\0\0\x04");
    }

    /// `H`
    pub fn flush(out: &mut BytesMut) {
        out.extend_from_slice(b"H\0\0\0\x04");
    }

    /// `X`
    pub fn terminate(out: &mut BytesMut) {
        out.extend_from_slice(b"X\0\0\0\x04");
    }

    /// `d`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn copy_data(out: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
        message(out, tag::COPY_DATA, |out| {
            out.extend_from_slice(data);
            Ok(())
        })
    }

    /// `c`
    pub fn copy_done(out: &mut BytesMut) {
        out.extend_from_slice(b"c\0\0\0\x04");
    }

    /// `f`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn copy_fail(out: &mut BytesMut, reason: &[u8]) -> Result<(), WireError> {
        message(out, tag::COPY_FAIL, |out| cstr(out, reason))
    }

    /// `p` with a password (cleartext or md5).
    ///
    /// # Errors
    /// [`WireError`].
    pub fn password(out: &mut BytesMut, password: &[u8]) -> Result<(), WireError> {
        message(out, tag::PASSWORD, |out| cstr(out, password))
    }

    /// `p` with the first SASL message.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn sasl_initial_response(out: &mut BytesMut, mechanism: &[u8], data: &[u8]) -> Result<(), WireError> {
        message(out, tag::PASSWORD, |out| {
            cstr(out, mechanism)?;
            value(out, Some(data))
        })
    }

    /// `p` with a later SASL message.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn sasl_response(out: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
        message(out, tag::PASSWORD, |out| {
            out.extend_from_slice(data);
            Ok(())
        })
    }
}

/// Messages to a client.
pub mod backend {
    use super::*;

    fn fields<'f>(
        out: &mut BytesMut,
        tag: u8,
        fields: impl IntoIterator<Item = (u8, &'f [u8])>,
    ) -> Result<(), WireError> {
        message(out, tag, |out| {
            for (code, text) in fields {
                if code == 0 {
                    return Err(WireError::BadValue {
                        what: "the letter of a field",
                        value: 0,
                    });
                }
                out.put_u8(code);
                cstr(out, text)?;
            }
            out.put_u8(0);
            Ok(())
        })
    }

    /// `E` with these fields (letter, text).
    ///
    /// # Errors
    /// [`WireError`].
    pub fn error_response<'f>(
        out: &mut BytesMut,
        parts: impl IntoIterator<Item = (u8, &'f [u8])>,
    ) -> Result<(), WireError> {
        fields(out, tag::ERROR_RESPONSE, parts)
    }

    /// `N` with these fields (letter, text).
    ///
    /// # Errors
    /// [`WireError`].
    pub fn notice_response<'f>(
        out: &mut BytesMut,
        parts: impl IntoIterator<Item = (u8, &'f [u8])>,
    ) -> Result<(), WireError> {
        fields(out, tag::NOTICE_RESPONSE, parts)
    }

    /// `R` 0
    pub fn authentication_ok(out: &mut BytesMut) {
        out.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
    }

    /// `R` 10
    ///
    /// # Errors
    /// [`WireError`].
    pub fn authentication_sasl<'m>(
        out: &mut BytesMut,
        mechanisms: impl IntoIterator<Item = &'m [u8]>,
    ) -> Result<(), WireError> {
        message(out, tag::AUTHENTICATION, |out| {
            out.put_i32(10);
            for mechanism in mechanisms {
                cstr(out, mechanism)?;
            }
            out.put_u8(0);
            Ok(())
        })
    }

    /// `S`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) -> Result<(), WireError> {
        message(out, tag::PARAMETER_STATUS, |out| {
            cstr(out, name)?;
            cstr(out, value)
        })
    }

    /// `K`
    ///
    /// # Errors
    /// [`WireError::TooLongToWrite`] for a key of more than 256 bytes.
    pub fn backend_key_data(out: &mut BytesMut, process_id: u32, key: &[u8]) -> Result<(), WireError> {
        if key.len() > 256 {
            return Err(WireError::TooLongToWrite { what: "a cancel key" });
        }
        message(out, tag::BACKEND_KEY_DATA, |out| {
            out.put_u32(process_id);
            out.extend_from_slice(key);
            Ok(())
        })
    }

    /// `v`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn negotiate_protocol_version<'n>(
        out: &mut BytesMut,
        newest: u32,
        unknown: impl IntoIterator<Item = &'n [u8]>,
    ) -> Result<(), WireError> {
        message(out, tag::NEGOTIATE_PROTOCOL_VERSION, |out| {
            out.put_u32(newest);
            let unknown: Vec<_> = unknown.into_iter().collect();
            let count = u32::try_from(unknown.len()).map_err(|_| WireError::TooLongToWrite {
                what: "a list of options",
            })?;
            out.put_u32(count);
            for name in unknown {
                cstr(out, name)?;
            }
            Ok(())
        })
    }

    /// `Z`
    pub fn ready_for_query(out: &mut BytesMut, status: TransactionStatus) {
        out.extend_from_slice(b"Z\0\0\0\x05");
        out.put_u8(status.byte());
    }

    /// `T`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn row_description<'f>(
        out: &mut BytesMut,
        fields: impl IntoIterator<Item = Field<'f>>,
    ) -> Result<(), WireError> {
        message(out, tag::ROW_DESCRIPTION, |out| {
            let fields: Vec<_> = fields.into_iter().collect();
            count(out, fields.len(), "a list of columns")?;
            for field in fields {
                cstr(out, field.name)?;
                out.put_u32(field.table_oid);
                out.put_i16(field.column);
                out.put_u32(field.type_oid);
                out.put_i16(field.type_size);
                out.put_i32(field.type_modifier);
                out.put_i16(field.format);
            }
            Ok(())
        })
    }

    /// `t`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn parameter_description(
        out: &mut BytesMut,
        types: impl IntoIterator<Item = u32>,
    ) -> Result<(), WireError> {
        message(out, tag::PARAMETER_DESCRIPTION, |out| {
            let types: Vec<_> = types.into_iter().collect();
            count(out, types.len(), "a list of parameter types")?;
            for oid in types {
                out.put_u32(oid);
            }
            Ok(())
        })
    }

    /// `D`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn data_row<'c>(
        out: &mut BytesMut,
        cells: impl IntoIterator<Item = Option<&'c [u8]>>,
    ) -> Result<(), WireError> {
        message(out, tag::DATA_ROW, |out| {
            let cells: Vec<_> = cells.into_iter().collect();
            count(out, cells.len(), "a row")?;
            for cell in cells {
                value(out, cell)?;
            }
            Ok(())
        })
    }

    /// `C`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn command_complete(out: &mut BytesMut, text: &[u8]) -> Result<(), WireError> {
        message(out, tag::COMMAND_COMPLETE, |out| cstr(out, text))
    }

    /// `n`
    pub fn no_data(out: &mut BytesMut) {
        out.extend_from_slice(b"n\0\0\0\x04");
    }

    /// `I`
    pub fn empty_query_response(out: &mut BytesMut) {
        out.extend_from_slice(b"I\0\0\0\x04");
    }

    /// `1`
    pub fn parse_complete(out: &mut BytesMut) {
        out.extend_from_slice(b"1\0\0\0\x04");
    }

    /// `2`
    pub fn bind_complete(out: &mut BytesMut) {
        out.extend_from_slice(b"2\0\0\0\x04");
    }

    /// `3`
    pub fn close_complete(out: &mut BytesMut) {
        out.extend_from_slice(b"3\0\0\0\x04");
    }

    /// `s`
    pub fn portal_suspended(out: &mut BytesMut) {
        out.extend_from_slice(b"s\0\0\0\x04");
    }

    /// `d`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn copy_data(out: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
        super::frontend::copy_data(out, data)
    }

    /// `c`
    pub fn copy_done(out: &mut BytesMut) {
        super::frontend::copy_done(out);
    }

    /// `A`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn notification(
        out: &mut BytesMut,
        process_id: i32,
        channel: &[u8],
        payload: &[u8],
    ) -> Result<(), WireError> {
        message(out, tag::NOTIFICATION_RESPONSE, |out| {
            out.put_i32(process_id);
            cstr(out, channel)?;
            cstr(out, payload)
        })
    }

    /// `V`
    ///
    /// # Errors
    /// [`WireError`].
    pub fn function_call_response(out: &mut BytesMut, result: Option<&[u8]>) -> Result<(), WireError> {
        message(out, tag::FUNCTION_CALL_RESPONSE, |out| value(out, result))
    }
}
