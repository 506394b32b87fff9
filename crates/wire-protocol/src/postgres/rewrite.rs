//! Messages with other names or columns. What stays is copied once, into the output.

use bytes::{BufMut, BytesMut};

use super::backend::{DataRow, Field, RowDescription};
use super::frontend::{Bind, BindNames, Parse};
use super::write::{self, cstr, message};
use super::{MESSAGE_LENGTH_MAX, Reader, WireError, tag};

/// A Bind for another portal and statement; parameters and formats stay.
///
/// # Errors
/// [`WireError`].
pub fn bind(out: &mut BytesMut, bind: &Bind<'_>, portal: &[u8], statement: &[u8]) -> Result<(), WireError> {
    message(out, tag::BIND, |out| {
        cstr(out, portal)?;
        cstr(out, statement)?;
        out.extend_from_slice(bind.after_names);
        Ok(())
    })
}

/// The front of a streamed Bind for another portal and statement: a header with the new length, the new names, and
/// what follows the names in `front` (the body's first bytes, without the header). The parts after it go out as they
/// are. `length` is that of the body, from [`super::Frame::Head`].
///
/// # Errors
/// [`WireError`], also where the names do not end within `front`.
pub fn bind_head(
    out: &mut BytesMut,
    length: u32,
    front: &[u8],
    portal: &[u8],
    statement: &[u8],
) -> Result<(), WireError> {
    let names = BindNames::decode_front(front)?;
    let mut reader = Reader::new(front);
    let old = names.portal.len() + names.statement.len() + 2;
    reader.take(old, "the names")?;
    let too_long = WireError::TooLongToWrite { what: "a message" };
    let new = u32::try_from(portal.len() + statement.len() + 2).map_err(|_| too_long.clone())?;
    let old = u32::try_from(old).map_err(|_| too_long.clone())?;
    let total = length
        .checked_sub(old)
        .and_then(|rest| rest.checked_add(new))
        .and_then(|body| body.checked_add(4))
        .filter(|total| *total <= MESSAGE_LENGTH_MAX)
        .ok_or(too_long)?;
    let start = out.len();
    out.put_u8(tag::BIND);
    out.put_u32(total);
    let written = cstr(out, portal).and_then(|()| cstr(out, statement));
    if written.is_err() {
        out.truncate(start);
        return written;
    }
    out.extend_from_slice(reader.rest());
    Ok(())
}

/// A Parse with another name or text; parameter types stay.
///
/// # Errors
/// [`WireError`].
pub fn parse(out: &mut BytesMut, parse: &Parse<'_>, name: &[u8], sql: &[u8]) -> Result<(), WireError> {
    write::frontend::parse(out, name, sql, parse.parameter_types())
}

/// What becomes of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// As it is.
    Keep,
    /// Left out.
    Strip,
    /// With this origin in place of the server's.
    Origin {
        /// Relation; 0 = none.
        table_oid: u32,
        /// Column number; 0 = none.
        column: i16,
    },
}

/// A RowDescription with some columns left out or their origin replaced.
///
/// # Errors
/// [`WireError`].
pub fn row_description(
    out: &mut BytesMut,
    description: &RowDescription<'_>,
    mut change: impl FnMut(usize, &Field<'_>) -> Column,
) -> Result<(), WireError> {
    write::backend::row_description(
        out,
        description
            .fields()
            .enumerate()
            .filter_map(|(index, field)| match change(index, &field) {
                Column::Keep => Some(field),
                Column::Strip => None,
                Column::Origin { table_oid, column } => Some(Field {
                    table_oid,
                    column,
                    ..field
                }),
            }),
    )
}

/// A DataRow without the columns for which `keep` says no.
///
/// # Errors
/// [`WireError`].
pub fn data_row(
    out: &mut BytesMut,
    row: &DataRow<'_>,
    mut keep: impl FnMut(usize) -> bool,
) -> Result<(), WireError> {
    message(out, tag::DATA_ROW, |out| {
        let place = out.len();
        out.put_u16(0);
        let mut kept = 0_u16;
        for (index, cell) in row.cells().enumerate() {
            if keep(index) {
                write::value(out, cell)?;
                // No more than the row has, whose count is a u16.
                kept = kept.saturating_add(1);
            }
        }
        if let Some(place) = out.get_mut(place..place + 2) {
            place.copy_from_slice(&kept.to_be_bytes());
        }
        Ok(())
    })
}
