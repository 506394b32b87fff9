//! Rows: `DataRow` bodies in, `DataRow` messages out. Runs of cells that stay are copied as they are; nothing in them
//! is decoded.

use std::ops::Range;

use bytes::{BufMut, BytesMut};

use crate::token::{Format, ValueError, WireMask};

/// What happens to one cell of every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Delivered as it is.
    Keep,
    /// Taken out: Weir added the column.
    Strip,
    /// Masked.
    Mask(WireMask),
}

/// What happens to the rows of one result. Belongs to (statement, portal, result formats), never to the description
/// seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlan {
    cells: Vec<Cell>,
    plain: bool,
    masks: bool,
}

impl RowPlan {
    /// One cell for each column that the server sends, in order.
    pub fn new(cells: Vec<Cell>) -> Self {
        let plain = cells.iter().all(|cell| *cell == Cell::Keep);
        let masks = cells.iter().any(|cell| matches!(cell, Cell::Mask(_)));
        Self { cells, plain, masks }
    }

    /// Every cell stays: rows may go on without being written anew, if whoever does it counts the columns.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// A cell is masked, so the result formats matter.
    pub fn has_masks(&self) -> bool {
        self.masks
    }

    /// The cells, for the description of the result.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }
}

/// The result formats of a Bind: none (all text), one for all, or one each. A simple Query is all text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultFormats {
    codes: FormatCodes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FormatCodes {
    All(Format),
    Each(Vec<Format>),
}

impl ResultFormats {
    /// All columns as text.
    pub fn text() -> Self {
        Self {
            codes: FormatCodes::All(Format::Text),
        }
    }

    /// From a Bind's codes.
    ///
    /// # Errors
    /// [`RowError::UnknownFormat`] for a code other than 0 and 1.
    pub fn from_codes(codes: &[i16]) -> Result<Self, RowError> {
        let mut formats = codes.iter().map(|code| match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(RowError::UnknownFormat(*other)),
        });
        let codes = match codes.len() {
            0 => FormatCodes::All(Format::Text),
            1 => FormatCodes::All(formats.next().unwrap_or(Ok(Format::Text))?),
            _ => FormatCodes::Each(formats.collect::<Result<_, _>>()?),
        };
        Ok(Self { codes })
    }

    /// The format of a column, from 0.
    pub fn of(&self, column: usize) -> Option<Format> {
        match &self.codes {
            FormatCodes::All(format) => Some(*format),
            FormatCodes::Each(formats) => formats.get(column).copied(),
        }
    }
}

/// Proof that a row was written through its plan: the bytes of `out` that hold the message.
#[derive(Debug, PartialEq, Eq)]
pub struct MaskedRow {
    bytes: Range<usize>,
}

impl MaskedRow {
    /// Where the message stands in the buffer it was written to.
    pub fn bytes(&self) -> Range<usize> {
        self.bytes.clone()
    }
}

/// Why a row was not written. The row is not delivered and both connections end: what follows cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row has another number of columns than its plan.
    #[error("a row has {found} columns where {expected} were described")]
    ColumnCount {
        /// In the plan.
        expected: usize,
        /// In the row.
        found: usize,
    },
    /// A length points past the end, or bytes are left over.
    #[error("a row's lengths do not fit its size")]
    Malformed,
    /// A format code other than 0 and 1, or none for a masked column.
    #[error("unknown result format {0}")]
    UnknownFormat(i16),
    /// A masked column without a format.
    #[error("no result format is known for a masked column")]
    FormatMissing,
    /// A value that its mask cannot read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Above the protocol's limit.
    #[error("a masked row would be too long for the protocol")]
    TooLong,
}

/// Writes one row through its plan: a whole `DataRow` message, with type and length, to the end of `out`.
/// `data_row_body` is what follows the length. On error `out` is as it was.
///
/// # Errors
/// [`RowError`]; the caller ends the session.
pub fn mask_row(
    plan: &RowPlan,
    formats: &ResultFormats,
    data_row_body: &[u8],
    out: &mut BytesMut,
) -> Result<MaskedRow, RowError> {
    let start = out.len();
    match write_row(plan, formats, data_row_body, out) {
        Ok(()) => Ok(MaskedRow {
            bytes: start..out.len(),
        }),
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

const TYPE_AND_LENGTH: usize = 5;

fn write_row(
    plan: &RowPlan,
    formats: &ResultFormats,
    body: &[u8],
    out: &mut BytesMut,
) -> Result<(), RowError> {
    let start = out.len();
    let (count, cells_bytes) = body.split_first_chunk::<2>().ok_or(RowError::Malformed)?;
    // The protocol's Int16; the server never sends a negative one, which then cannot equal a plan's length either.
    let found = usize::from(u16::from_be_bytes(*count));
    if found != plan.cells.len() {
        return Err(RowError::ColumnCount {
            expected: plan.cells.len(),
            found,
        });
    }
    let kept = plan.cells.iter().filter(|cell| **cell != Cell::Strip).count();
    out.reserve(TYPE_AND_LENGTH.saturating_add(body.len()));
    out.put_u8(b'D');
    out.put_u32(0);
    out.put_u16(u16::try_from(kept).map_err(|_| RowError::TooLong)?);

    // `run` starts at the first byte not yet copied, `rest` at the next cell.
    let mut run = cells_bytes;
    let mut rest = cells_bytes;
    for (column, cell) in plan.cells.iter().enumerate() {
        let (value, after) = split_cell(rest)?;
        match cell {
            Cell::Keep => {}
            Cell::Strip => {
                copy_run(run, rest, out);
                run = after;
            }
            Cell::Mask(mask) => {
                if let Some(value) = value {
                    copy_run(run, rest, out);
                    let format = formats.of(column).ok_or(RowError::FormatMissing)?;
                    write_masked(mask, value, format, out)?;
                    run = after;
                }
            }
        }
        rest = after;
    }
    if !rest.is_empty() {
        return Err(RowError::Malformed);
    }
    copy_run(run, rest, out);

    let length = out.len().saturating_sub(start).saturating_sub(1);
    let length = i32::try_from(length).map_err(|_| RowError::TooLong)?;
    put_length(start.saturating_add(1), length, out)
}

/// Copies what stands before `rest` in `run` (`rest` is a tail of `run`).
fn copy_run(run: &[u8], rest: &[u8], out: &mut BytesMut) {
    let length = run.len().saturating_sub(rest.len());
    out.put_slice(run.get(..length).unwrap_or_default());
}

/// A cell's value (`None` is NULL) and what follows it.
fn split_cell(bytes: &[u8]) -> Result<(Option<&[u8]>, &[u8]), RowError> {
    let (length, after) = bytes.split_first_chunk::<4>().ok_or(RowError::Malformed)?;
    match i32::from_be_bytes(*length) {
        -1 => Ok((None, after)),
        length => {
            let length = usize::try_from(length).map_err(|_| RowError::Malformed)?;
            let (value, after) = after.split_at_checked(length).ok_or(RowError::Malformed)?;
            Ok((Some(value), after))
        }
    }
}

fn write_masked(mask: &WireMask, value: &[u8], format: Format, out: &mut BytesMut) -> Result<(), RowError> {
    let at = out.len();
    out.put_u32(0);
    let start = out.len();
    mask.write_token(value, format, out)?;
    let length = i32::try_from(out.len().saturating_sub(start)).map_err(|_| RowError::TooLong)?;
    put_length(at, length, out)
}

fn put_length(at: usize, length: i32, out: &mut BytesMut) -> Result<(), RowError> {
    let place = out.get_mut(at..).and_then(|tail| tail.first_chunk_mut::<4>());
    *place.ok_or(RowError::Malformed)? = length.to_be_bytes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mask::HashKey;
    use crate::token::TokenShape;

    type Value = Option<Vec<u8>>;

    fn hash() -> WireMask {
        WireMask::new(
            HashKey::new(&[7; 32]).unwrap(),
            TokenShape::Hex { length: Some(20) },
        )
    }

    fn body(values: &[Value]) -> Vec<u8> {
        let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                None => bytes.extend((-1_i32).to_be_bytes()),
                Some(value) => {
                    bytes.extend((value.len() as i32).to_be_bytes());
                    bytes.extend(value);
                }
            }
        }
        bytes
    }

    /// What the plan means, said without the writer's runs.
    fn expected(cells: &[Cell], values: &[Value]) -> Vec<Value> {
        cells
            .iter()
            .zip(values)
            .filter_map(|(cell, value)| match cell {
                Cell::Keep => Some(value.clone()),
                Cell::Strip => None,
                Cell::Mask(mask) => Some(value.as_ref().map(|value| {
                    let mut out = BytesMut::new();
                    mask.write_token(value, Format::Text, &mut out).unwrap();
                    out.to_vec()
                })),
            })
            .collect()
    }

    fn cells_and_values() -> impl Strategy<Value = Vec<(Cell, Value)>> {
        let cell = prop_oneof![Just(Cell::Keep), Just(Cell::Strip), Just(Cell::Mask(hash()))];
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
        prop::collection::vec((cell, value), 0..12)
    }

    proptest! {
        #[test]
        fn a_row_is_what_its_plan_says(pairs in cells_and_values()) {
            let (cells, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let wanted = body(&expected(&cells, &values));
            let mut out = BytesMut::from(&b"earlier"[..]);
            let row = mask_row(&RowPlan::new(cells), &ResultFormats::text(), &body(&values), &mut out).unwrap();
            prop_assert_eq!(row.bytes(), 7..out.len());
            prop_assert_eq!(&out[..8], b"earlierD");
            prop_assert_eq!(&out[8..12], &(wanted.len() as u32 + 4).to_be_bytes());
            prop_assert_eq!(&out[12..], &wanted[..]);
        }

        #[test]
        fn a_cut_lengthened_or_garbled_row_writes_nothing_or_a_whole_message(
            pairs in cells_and_values(),
            cut in any::<prop::sample::Index>(),
            garbage in prop::collection::vec(any::<u8>(), 1..6),
        ) {
            let (cells, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let whole = body(&values);
            let plan = RowPlan::new(cells);
            let short = &whole[..cut.index(whole.len())];
            let long = [whole.as_slice(), &garbage].concat();
            for bad in [short, &long] {
                let mut out = BytesMut::from(&b"earlier"[..]);
                prop_assert!(mask_row(&plan, &ResultFormats::text(), bad, &mut out).is_err());
                prop_assert_eq!(&out[..], b"earlier");
            }
            let mut changed = whole.clone();
            let at = cut.index(changed.len());
            changed[at] ^= garbage[0];
            let mut out = BytesMut::new();
            match mask_row(&plan, &ResultFormats::text(), &changed, &mut out) {
                Ok(_) => prop_assert_eq!(&out[1..5], &(out.len() as u32 - 1).to_be_bytes()),
                Err(_) => prop_assert!(out.is_empty()),
            }
        }
    }

    #[test]
    fn another_number_of_columns_is_refused() {
        let plan = RowPlan::new(vec![Cell::Keep, Cell::Mask(hash())]);
        for values in [vec![], vec![None], vec![None, None, None]] {
            let found = values.len();
            let error = mask_row(
                &plan,
                &ResultFormats::text(),
                &body(&values),
                &mut BytesMut::new(),
            );
            assert_eq!(error, Err(RowError::ColumnCount { expected: 2, found }));
        }
    }

    #[test]
    fn a_negative_length_is_not_null() {
        let mut bad = body(&[None]);
        bad[2..6].copy_from_slice(&(-2_i32).to_be_bytes());
        for cell in [Cell::Keep, Cell::Strip, Cell::Mask(hash())] {
            let plan = RowPlan::new(vec![cell]);
            assert_eq!(
                mask_row(&plan, &ResultFormats::text(), &bad, &mut BytesMut::new()),
                Err(RowError::Malformed)
            );
        }
    }

    #[test]
    fn each_masked_cell_takes_its_own_format() {
        let uuid = Cell::Mask(WireMask::new(HashKey::new(&[7; 32]).unwrap(), TokenShape::Uuid));
        let plan = RowPlan::new(vec![uuid.clone(), uuid]);
        let values = [
            Some(vec![0; 16]),
            Some(b"00000000-0000-0000-0000-000000000000".to_vec()),
        ];
        let mut out = BytesMut::new();
        mask_row(
            &plan,
            &ResultFormats::from_codes(&[1, 0]).unwrap(),
            &body(&values),
            &mut out,
        )
        .unwrap();
        let binary = hex::encode(&out[11..27]);
        let text = String::from_utf8(out[31..].to_vec()).unwrap().replace('-', "");
        assert_eq!(binary, text);
        // Formats that do not reach the column: no guess.
        let none = ResultFormats::from_codes(&[1, 0, 0]).unwrap().of(3);
        assert_eq!(none, None);
        assert_eq!(ResultFormats::from_codes(&[2]), Err(RowError::UnknownFormat(2)));
        assert_eq!(ResultFormats::from_codes(&[]).unwrap(), ResultFormats::text());
        assert_eq!(
            ResultFormats::from_codes(&[1]).unwrap().of(500),
            Some(Format::Binary)
        );
    }
}
