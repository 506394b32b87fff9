//! Message types by name. Some bytes mean one thing from the client and another from the server.

/// Client: simple query.
pub const QUERY: u8 = b'Q';
/// Client: parse.
pub const PARSE: u8 = b'P';
/// Client: bind.
pub const BIND: u8 = b'B';
/// Client: describe.
pub const DESCRIBE: u8 = b'D';
/// Client: execute.
pub const EXECUTE: u8 = b'E';
/// Client: close a statement or portal.
pub const CLOSE: u8 = b'C';
/// Client: flush.
pub const FLUSH: u8 = b'H';
/// Client: sync.
pub const SYNC: u8 = b'S';
/// Client: function call by OID.
pub const FUNCTION_CALL: u8 = b'F';
/// Client: good-bye.
pub const TERMINATE: u8 = b'X';
/// Client: password, SASL or GSS answer.
pub const PASSWORD: u8 = b'p';
/// Both: COPY data.
pub const COPY_DATA: u8 = b'd';
/// Both: COPY is complete.
pub const COPY_DONE: u8 = b'c';
/// Client: COPY is given up.
pub const COPY_FAIL: u8 = b'f';

/// Server: authentication request.
pub const AUTHENTICATION: u8 = b'R';
/// Server: cancel key.
pub const BACKEND_KEY_DATA: u8 = b'K';
/// Server: a setting's value.
pub const PARAMETER_STATUS: u8 = b'S';
/// Server: ready.
pub const READY_FOR_QUERY: u8 = b'Z';
/// Server: columns of a result.
pub const ROW_DESCRIPTION: u8 = b'T';
/// Server: types of parameters.
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// Server: one row.
pub const DATA_ROW: u8 = b'D';
/// Server: a statement ended.
pub const COMMAND_COMPLETE: u8 = b'C';
/// Server: an empty text.
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
/// Server: no columns.
pub const NO_DATA: u8 = b'n';
/// Server: parse done.
pub const PARSE_COMPLETE: u8 = b'1';
/// Server: bind done.
pub const BIND_COMPLETE: u8 = b'2';
/// Server: close done.
pub const CLOSE_COMPLETE: u8 = b'3';
/// Server: the row limit of Execute was reached.
pub const PORTAL_SUSPENDED: u8 = b's';
/// Server: send COPY data.
pub const COPY_IN_RESPONSE: u8 = b'G';
/// Server: COPY data follow.
pub const COPY_OUT_RESPONSE: u8 = b'H';
/// Server: COPY both ways (replication).
pub const COPY_BOTH_RESPONSE: u8 = b'W';
/// Server: error.
pub const ERROR_RESPONSE: u8 = b'E';
/// Server: notice.
pub const NOTICE_RESPONSE: u8 = b'N';
/// Server: NOTIFY of somebody.
pub const NOTIFICATION_RESPONSE: u8 = b'A';
/// Server: result of a function call.
pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
/// Server: an older protocol version is offered.
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';

/// A type as a person reads it: the letter, or its number where it is none.
pub fn name(tag: u8) -> String {
    if tag == 0 {
        "(first packet)".to_owned()
    } else if tag.is_ascii_graphic() {
        format!("'{}'", char::from(tag))
    } else {
        format!("0x{tag:02x}")
    }
}
