//! The messages that the session itself writes: our own questions, refusals, poisons, and the server's words and
//! descriptions in the form in which they may leave.

use access_policy::Refusal;
use bytes::{Bytes, BytesMut};
use row_masking::{Cell, ResultFormats, RowPlan};
use wire_protocol::postgres::backend::{DataRow, Fields, RowDescription, TransactionStatus};
use wire_protocol::postgres::frontend::{Bind, Target};
use wire_protocol::postgres::{WireError, rewrite, write};

use crate::objects::Signature;
use crate::pending::Texts;
use crate::result::ResultPlan;
use crate::speech;

const PROOF: &str = "our own short texts hold no NUL and fit a message";

fn made(build: impl FnOnce(&mut BytesMut) -> Result<(), WireError>) -> Bytes {
    let mut out = BytesMut::new();
    // A text of ours that cannot be written (a NUL in a rule's name) leaves an empty message, which is never valid:
    // `compile` refuses NUL in every name, so this is a proof, not a hope.
    build(&mut out).expect(PROOF);
    out.freeze()
}

// === to the server ===

/// `Query`
pub(crate) fn query(sql: &str) -> Bytes {
    made(|out| write::frontend::query(out, sql.as_bytes()))
}

/// `Parse`
pub(crate) fn parse(name: &[u8], sql: &str, types: &[u32]) -> Bytes {
    made(|out| write::frontend::parse(out, name, sql.as_bytes(), types.iter().copied()))
}

/// `Describe` of a statement.
pub(crate) fn describe_statement(name: &[u8]) -> Bytes {
    made(|out| write::frontend::describe(out, Target::Statement(name)))
}

/// `Close` of a statement.
pub(crate) fn close_statement(name: &[u8]) -> Bytes {
    made(|out| write::frontend::close(out, Target::Statement(name)))
}

/// `Flush`
pub(crate) fn flush() -> Bytes {
    Bytes::from_static(b"H\0\0\0\x04")
}

/// `Sync`
pub(crate) fn sync() -> Bytes {
    Bytes::from_static(b"S\0\0\0\x04")
}

/// A question of ours inside a pipeline: Parse, Bind, Execute, Close twice, Flush, under reserved names.
pub(crate) fn own_pipeline(sql: &str) -> Bytes {
    const NAME: &[u8] = b"weir_state";
    made(|out| {
        write::frontend::parse(out, NAME, sql.as_bytes(), [])?;
        write::frontend::bind(out, NAME, NAME, &[], [], &[])?;
        write::frontend::execute(out, NAME, 0)?;
        write::frontend::close(out, Target::Portal(NAME))?;
        write::frontend::close(out, Target::Statement(NAME))?;
        write::frontend::flush(out);
        Ok(())
    })
}

/// Asks what a text returns, without running it: Parse, Describe, Close, Sync under a reserved name.
pub(crate) fn own_check(sql: &str) -> Bytes {
    const NAME: &[u8] = b"weir_check";
    made(|out| {
        write::frontend::parse(out, NAME, sql.as_bytes(), [])?;
        write::frontend::describe(out, Target::Statement(NAME))?;
        write::frontend::close(out, Target::Statement(NAME))?;
        write::frontend::sync(out);
        Ok(())
    })
}

/// Describe of a statement, and Sync.
pub(crate) fn describe_and_sync(name: &[u8]) -> Bytes {
    made(|out| {
        write::frontend::describe(out, Target::Statement(name))?;
        write::frontend::sync(out);
        Ok(())
    })
}

/// One statement of a simple Query that goes one by one. The unnamed statement and portal are free: a simple Query
/// ends them anyway.
pub(crate) fn own_statement(sql: &str) -> Bytes {
    made(|out| {
        write::frontend::parse(out, b"", sql.as_bytes(), [])?;
        write::frontend::bind(out, b"", b"", &[], [], &[])?;
        write::frontend::describe(out, Target::Portal(b""))?;
        write::frontend::execute(out, b"", 0)?;
        write::frontend::flush(out);
        Ok(())
    })
}

/// A text that is no SQL, for the server to fail on (42601).
pub(crate) fn poison(refusal: &Refusal) -> String {
    let rule: String = refusal
        .rule
        .rule
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))
        .take(64)
        .collect();
    format!("{} refused by rule {rule}", refusal.code_text())
}

/// The same Bind with other result formats.
pub(crate) fn bind_with_formats(body: &[u8], formats: &[i16]) -> Option<Bytes> {
    let bind = Bind::decode(body).ok()?;
    let parameter_formats: Vec<i16> = bind.parameter_formats.iter().collect();
    let mut out = BytesMut::with_capacity(body.len() + 16);
    write::frontend::bind(
        &mut out,
        bind.portal,
        bind.statement,
        &parameter_formats,
        bind.parameters(),
        formats,
    )
    .ok()?;
    Some(out.freeze())
}

// === to the client ===

/// A refusal, as an ordinary error.
pub(crate) fn refusal(refusal: &Refusal) -> Bytes {
    if refusal.position.is_some() {
        // The grammar is the server's own, and so are its words.
        return error(
            b"ERROR",
            refusal.sqlstate,
            &refusal.reason,
            "",
            refusal.position.map(|at| at.get() as usize),
        );
    }
    error(
        b"ERROR",
        refusal.sqlstate,
        &refusal.to_string(),
        &refusal.hint,
        None,
    )
}

/// A refusal and the ReadyForQuery behind it.
pub(crate) fn refusal_and_ready(why: &Refusal) -> Bytes {
    let mut out = BytesMut::from(refusal(why).as_ref());
    write::backend::ready_for_query(&mut out, TransactionStatus::Idle);
    out.freeze()
}

/// `ReadyForQuery`
pub(crate) fn ready(status: TransactionStatus) -> Bytes {
    let mut out = BytesMut::new();
    write::backend::ready_for_query(&mut out, status);
    out.freeze()
}

/// FATAL: the session ends.
pub fn fatal(sqlstate: &str, text: &str) -> Bytes {
    error(b"FATAL", sqlstate, text, "", None)
}

fn error(severity: &'static [u8], sqlstate: &str, text: &str, hint: &str, position: Option<usize>) -> Bytes {
    let clean = |text: &str| text.replace('\0', "");
    let (text, hint) = (clean(text), clean(hint));
    let position = position.map(|position| position.to_string());
    made(|out| {
        let fields = [
            (b'S', severity),
            (b'V', severity),
            (b'C', sqlstate.as_bytes()),
            (b'M', text.as_bytes()),
        ]
        .into_iter()
        .chain((!hint.is_empty()).then_some((b'H', hint.as_bytes())))
        .chain(position.as_ref().map(|position| (b'P', position.as_bytes())));
        write::backend::error_response(out, fields)
    })
}

/// `CommandComplete`
pub(crate) fn command_complete(tag: &str) -> Bytes {
    made(|out| write::backend::command_complete(out, tag.as_bytes()))
}

/// `NoData`
pub(crate) fn no_data() -> Bytes {
    Bytes::from_static(b"n\0\0\0\x04")
}

/// The server's error or notice with only what may be shown, its position mapped. `protected`: reduce; else only
/// the position is mapped. `None` where the body is malformed.
pub(crate) fn reduced(tag: u8, body: &[u8], texts: &Texts, protected: bool) -> Option<Bytes> {
    let fields = Fields::decode(body).ok()?;
    let sqlstate = fields.sqlstate().unwrap_or(b"XX000");
    let position = fields
        .get(b'P')
        .and_then(|text| std::str::from_utf8(text).ok())
        .and_then(|text| text.parse::<usize>().ok())
        .map(|position| texts.map_position(position).to_string());
    // Code of the database raises any SQLSTATE with any text (`exec_stmt_raise` of pl_exec.c and its kin).
    let raised = fields
        .get(b'R')
        .is_none_or(|routine| routine.starts_with(b"exec_stmt"))
        || fields.get(b'F').is_none_or(|file| file.starts_with(b"pl"));
    let keeps_message = !protected || (speech::message_is_safe(sqlstate) && !raised);
    let plain = speech::plain_message(sqlstate);
    let mut out = BytesMut::with_capacity(body.len() + 16);
    let kept = fields.iter().filter_map(|(code, text)| match code {
        b'P' => position.as_ref().map(|position| (code, position.as_bytes())),
        b'M' if keeps_message => Some((code, text)),
        b'M' => Some((code, plain.as_bytes())),
        _ if !protected || speech::field_is_safe(code) => Some((code, text)),
        _ => None,
    });
    let written = match tag {
        b'N' => write::backend::notice_response(&mut out, kept),
        _ => write::backend::error_response(&mut out, kept),
    };
    written.ok()?;
    Some(out.freeze())
}

/// Why a description does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DescriptionError {
    /// Not a RowDescription.
    Malformed,
    /// A protected column stands in it raw.
    RawColumn,
}

/// Checks a description and writes it anew where columns are stripped or origins are written back; `None`: it goes
/// on as it is.
pub(crate) fn checked_description(plan: &ResultPlan, body: &[u8]) -> Result<Option<Bytes>, DescriptionError> {
    let description = RowDescription::decode(body).map_err(|_| DescriptionError::Malformed)?;
    for (index, field) in description.fields().enumerate() {
        let raw = field.table_oid != 0
            && plan.forbidden.contains(&(field.table_oid, field.column))
            && !plan.wire_masks.contains_key(&index);
        if raw {
            return Err(DescriptionError::RawColumn);
        }
    }
    if plan.strip.is_empty() && plan.origins.is_empty() {
        return Ok(None);
    }
    let mut out = BytesMut::with_capacity(body.len() + 5);
    rewrite::row_description(&mut out, &description, |index, field| {
        if plan.strip.contains(&index) {
            rewrite::Column::Strip
        } else {
            match plan.origins.get(&index) {
                Some((relation, column)) if field.table_oid == 0 => rewrite::Column::Origin {
                    table_oid: *relation,
                    column: *column,
                },
                _ => rewrite::Column::Keep,
            }
        }
    })
    .map_err(|_| DescriptionError::Malformed)?;
    Ok(Some(out.freeze()))
}

/// Name, type and modifier of each column.
pub(crate) fn signature(body: &[u8]) -> Signature {
    RowDescription::decode(body).map_or_else(
        |_| Vec::new(),
        |description| {
            description
                .fields()
                .map(|field| (field.name.to_vec(), field.type_oid, field.type_modifier))
                .collect()
        },
    )
}

/// The plan for rows of that many columns.
pub(crate) fn row_plan(plan: &ResultPlan, columns: usize) -> Option<RowPlan> {
    let last = plan.strip.iter().chain(plan.wire_masks.keys()).max().copied();
    if last.is_some_and(|last| last >= columns) {
        return None;
    }
    Some(RowPlan::new(
        (0..columns)
            .map(|index| match plan.wire_masks.get(&index) {
                _ if plan.strip.contains(&index) => Cell::Strip,
                Some(mask) => Cell::Mask(mask.clone()),
                None => Cell::Keep,
            })
            .collect(),
    ))
}

/// A row in the form in which it may leave.
pub(crate) fn masked_row(plan: &ResultPlan, formats: &[i16], body: &[u8]) -> Result<Bytes, String> {
    let columns = body
        .first_chunk::<2>()
        .map_or(0, |count| usize::from(u16::from_be_bytes(*count)));
    let row_plan =
        row_plan(plan, columns).ok_or_else(|| "the row has fewer columns than its plan".to_owned())?;
    let formats = ResultFormats::from_codes(formats).map_err(|error| error.to_string())?;
    let mut out = BytesMut::with_capacity(body.len() + 64);
    let _proof =
        row_masking::mask_row(&row_plan, &formats, body, &mut out).map_err(|error| error.to_string())?;
    Ok(out.freeze())
}

// === our own answers ===

/// The two text cells of a row of ours.
pub(crate) fn text_pair(body: &[u8]) -> Option<(String, String)> {
    let row = DataRow::decode(body).ok()?;
    let mut cells = row.cells();
    let kind = std::str::from_utf8(cells.next()??).ok()?.to_owned();
    let data = std::str::from_utf8(cells.next()??).ok()?.to_owned();
    Some((kind, data))
}

/// The count in the first cell (int8), in the format of the first column.
pub(crate) fn first_count(body: &[u8], formats: &[i16]) -> Option<u64> {
    let row = DataRow::decode(body).ok()?;
    let cell = row.cells().next()??;
    if formats.first() == Some(&1) {
        let value = i64::from_be_bytes(cell.try_into().ok()?);
        u64::try_from(value).ok()
    } else {
        std::str::from_utf8(cell).ok()?.parse().ok()
    }
}
