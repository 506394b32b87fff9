//! What the server says by itself, reduced: error and notice texts repeat rows, keys and values that no mask saw.
//!
//! Where something is protected, SQLSTATE, severity, (mapped) position, and the names of constraint, table, schema,
//! column and data type stay. The message stays only for the SQLSTATEs of a closed list, whose messages repeat
//! nothing but the client's own text and names. Detail, hint, context, internal query and routine go.

/// Whether the server's message for that SQLSTATE may be shown (PostgreSQL `errcodes.txt`; reviewed by hand: names
/// and the client's own text only).
pub(crate) fn message_is_safe(sqlstate: &[u8]) -> bool {
    match sqlstate {
        // Cast and arithmetic errors quote values; only these of class 22 do not.
        b"22012" | b"22003" | b"22001" | b"2201B" | b"22025" | b"22P05" | b"22021" => {
            matches!(sqlstate, b"22012" | b"22001")
        }
        // Class 42: names and syntax. 42P10, 42846 and the rest name columns and types.
        [b'4', b'2', ..] => true,
        // Transactions, cursors, prepared statements, locks, cancel, limits, resources, shutdown, connection.
        [b'2', b'5', ..]
        | [b'2', b'6', ..]
        | [b'3', b'4', ..]
        | [b'3', b'D', ..]
        | [b'3', b'F', ..]
        | [b'3', b'B', ..]
        | [b'2', b'8', ..]
        | [b'0', b'A', ..]
        | [b'0', b'8', ..]
        | [b'2', b'4', ..]
        | [b'5', b'3', ..]
        | [b'5', b'4', ..]
        | [b'5', b'7', ..] => true,
        b"40001" | b"40P01" | b"55P03" | b"55000" | b"55006" => true,
        // Successful completion notices: "relation already exists, skipping" names the client's own relation.
        b"00000" => true,
        b"01000" | b"01003" => false,
        _ => false,
    }
}

/// What is said in place of a message that is not shown.
pub(crate) fn plain_message(sqlstate: &[u8]) -> &'static str {
    match sqlstate {
        b"23502" => "null value violates a not-null constraint",
        b"23503" => "statement violates a foreign key constraint",
        b"23505" => "duplicate key value violates a unique constraint",
        b"23514" => "new row violates a check constraint",
        b"23P01" => "conflicting key value violates an exclusion constraint",
        b"44000" => "new row violates the check option of a view",
        b"22P02" => "invalid input syntax",
        b"22P03" => "invalid binary representation",
        b"22003" => "value out of range",
        b"22007" => "invalid date or time format",
        b"22008" => "date or time value out of range",
        b"22023" => "invalid parameter value",
        b"22025" => "invalid escape sequence",
        b"2201B" => "invalid regular expression",
        b"21000" => "more than one row where one was expected",
        b"P0001" => "an exception was raised by code of the database",
        [b'2', b'2', ..] => "a value cannot be processed",
        [b'2', b'3', ..] => "statement violates a constraint",
        [b'0', b'1', ..] | b"00000" => "the server sent a notice",
        _ => "the server refused the statement",
    }
}

/// Whether a field of an error or notice may be shown as it is (protocol documentation, "Error and Notice Message
/// Fields").
pub(crate) fn field_is_safe(field: u8) -> bool {
    // S, V severity; C SQLSTATE; P position (mapped by the caller); s, t, c, d, n names.
    matches!(
        field,
        b'S' | b'V' | b'C' | b'P' | b's' | b't' | b'c' | b'd' | b'n'
    )
}
