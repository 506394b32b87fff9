use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::backend::{Authentication, BackendMessage, CommandTag, Field, TransactionStatus};
use super::frontend::{Bind, BindNames, FrontendMessage, Parse, Target};
use super::startup::{FirstPacket, first_packet};
use super::*;

fn small_caps(whole_max: u32, above: Above) -> Arc<Caps> {
    Arc::new(Caps::all(Cap { whole_max, above }))
}

fn raw(tag: u8, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    write::message(&mut out, tag, |out| {
        out.extend_from_slice(body);
        Ok(())
    })
    .unwrap();
    out
}

/// Feeds `input` in pieces and joins what comes out: (tag, bytes on the wire, was too long).
fn frames(caps: &Arc<Caps>, pieces: &[&[u8]]) -> Result<Vec<(u8, Vec<u8>, bool)>, WireError> {
    let mut framer = Framer::new(caps.clone());
    let mut buffer = BytesMut::new();
    let mut seen: Vec<(u8, Vec<u8>, bool)> = Vec::new();
    let mut open = false;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = framer.next(&mut buffer)? {
            match frame {
                Frame::Whole(message) => {
                    assert!(!open);
                    seen.push((message.tag, message.raw.to_vec(), false));
                }
                Frame::Head { tag, prefix, .. } => {
                    assert!(!open);
                    open = true;
                    seen.push((tag, prefix.to_vec(), false));
                }
                Frame::Part { bytes, last } => {
                    assert!(open && !bytes.is_empty());
                    open = !last;
                    seen.last_mut().unwrap().1.extend_from_slice(&bytes);
                }
                Frame::TooLong { tag, .. } => seen.push((tag, Vec::new(), true)),
            }
        }
    }
    Ok(seen)
}

#[test]
fn lengths_outside_the_protocol_are_errors() {
    for word in [0_u32, 3, MESSAGE_LENGTH_MAX + 1, u32::MAX] {
        let mut buffer = BytesMut::new();
        buffer.put_u8(b'Q');
        buffer.put_u32(word);
        let error = Framer::new(Arc::new(Caps::default()))
            .next(&mut buffer)
            .unwrap_err();
        assert_eq!(
            error,
            WireError::BadLength {
                tag: b'Q',
                length: word
            }
        );
    }
}

#[test]
fn an_announced_length_takes_no_memory() {
    let mut buffer = BytesMut::new();
    buffer.put_u8(b'd');
    buffer.put_u32(MESSAGE_LENGTH_MAX);
    let before = buffer.capacity();
    let mut framer = Framer::new(Arc::new(Caps::default()));
    assert_eq!(framer.next(&mut buffer), Ok(None));
    assert_eq!(buffer.capacity(), before);
}

#[test]
fn a_statement_above_the_cap_is_announced_and_dropped() {
    let caps = Arc::new(Caps::client(100));
    let long = raw(b'Q', &vec![b'x'; 100 + 64 * 1024]);
    let sync = raw(b'S', b"");
    let mut joined = long.clone();
    joined.extend_from_slice(&sync);
    let seen = frames(&caps, &[&joined]).unwrap();
    assert_eq!(seen, vec![(b'Q', vec![], true), (b'S', sync.to_vec(), false)]);
    let pieces: Vec<&[u8]> = joined.chunks(1000).collect();
    assert_eq!(frames(&caps, &pieces).unwrap(), seen);
}

#[test]
fn login_refuses_what_is_long() {
    let mut buffer = raw(b'p', &vec![0; 70_000]);
    let error = Framer::new(Arc::new(Caps::client_login()))
        .next(&mut buffer)
        .unwrap_err();
    assert!(matches!(error, WireError::BadLength { tag: b'p', .. }));
}

#[test]
fn a_streamed_message_shows_its_names_first() {
    let mut message = BytesMut::new();
    let value = vec![7_u8; 200_000];
    write::frontend::bind(
        &mut message,
        b"portal",
        b"statement",
        &[1],
        [Some(&value[..])],
        &[0, 1],
    )
    .unwrap();
    let original = message.clone();
    let mut framer = Framer::new(Arc::new(Caps::default()));
    let Some(Frame::Head { tag, length, prefix }) = framer.next(&mut message).unwrap() else {
        panic!("no head");
    };
    assert_eq!(tag, b'B');
    let names = BindNames::decode_front(&prefix[5..]).unwrap();
    assert_eq!(
        (names.portal, names.statement),
        (&b"portal"[..], &b"statement"[..])
    );

    let mut out = BytesMut::new();
    rewrite::bind_head(&mut out, length, &prefix[5..], b"", b"another name").unwrap();
    while let Some(Frame::Part { bytes, last }) = framer.next(&mut message).unwrap() {
        out.extend_from_slice(&bytes);
        if last {
            break;
        }
    }
    let whole = Bind::decode(&original[5..]).unwrap();
    let mut expected = BytesMut::new();
    rewrite::bind(&mut expected, &whole, b"", b"another name").unwrap();
    assert_eq!(out, expected);
    let again = Bind::decode(&out[5..]).unwrap();
    assert_eq!(again.parameters().collect::<Vec<_>>(), vec![Some(&value[..])]);
    assert_eq!(again.result_formats.iter().collect::<Vec<_>>(), vec![0, 1]);
}

#[test]
fn a_nul_inside_a_text_is_refused() {
    assert!(FrontendMessage::decode(b'Q', b"select 1\0; drop table t\0").is_err());
    assert!(FrontendMessage::decode(b'P', b"name\0select\0 1\0\0\0").is_err());
    assert_eq!(
        FrontendMessage::decode(b'Q', b"select 1"),
        Err(WireError::Unterminated)
    );
    let mut out = BytesMut::from(&b"before"[..]);
    assert_eq!(
        write::frontend::query(&mut out, b"a\0b"),
        Err(WireError::NulInText)
    );
    assert_eq!(&out[..], b"before", "a failed write leaves the buffer as it was");
}

#[test]
fn unknown_types_are_refused() {
    for tag in [b'U', b'v', b'W', 0, 255] {
        assert_eq!(
            FrontendMessage::decode(tag, b""),
            Err(WireError::UnknownTag { tag })
        );
    }
    for tag in [b'Q', b'P', b'B', 0, 255] {
        assert_eq!(
            BackendMessage::decode(tag, b""),
            Err(WireError::UnknownTag { tag })
        );
    }
}

#[test]
fn a_run_forwards_partial_rows_and_counts_them() {
    let mut input = BytesMut::new();
    for _ in 0..3 {
        write::backend::data_row(&mut input, [Some(&b"abc"[..]), None]).unwrap();
    }
    let row = input.len() / 3;
    write::backend::command_complete(&mut input, b"SELECT 3").unwrap();
    let mut framer = Framer::new(Arc::new(Caps::server()));
    let mut buffer = BytesMut::from(&input[..row * 2 + 7]);
    let run = framer
        .next_run(&mut buffer, b'D', u64::MAX, true)
        .unwrap()
        .unwrap();
    assert_eq!((run.bytes.len(), run.started, run.completed), (row * 2 + 7, 3, 2));
    assert_eq!(framer.next_run(&mut buffer, b'D', u64::MAX, true).unwrap(), None);
    buffer.extend_from_slice(&input[row * 2 + 7..]);
    let run = framer
        .next_run(&mut buffer, b'D', u64::MAX, true)
        .unwrap()
        .unwrap();
    assert_eq!((run.bytes.len(), run.started, run.completed), (row - 7, 0, 1));
    assert_eq!(framer.next_run(&mut buffer, b'D', u64::MAX, true).unwrap(), None);
    let Some(Frame::Whole(message)) = framer.next(&mut buffer).unwrap() else {
        panic!("no CommandComplete");
    };
    let BackendMessage::CommandComplete(tag) = BackendMessage::decode(message.tag, message.body()).unwrap()
    else {
        panic!("no CommandComplete");
    };
    assert_eq!((tag.command(), tag.rows()), (&b"SELECT"[..], Some(3)));
}

#[test]
fn a_run_stops_at_its_limit_and_keeps_partial_rows_when_told() {
    let mut buffer = BytesMut::new();
    for _ in 0..5 {
        write::backend::data_row(&mut buffer, [Some(&b"abc"[..])]).unwrap();
    }
    let row = buffer.len() / 5;
    let mut framer = Framer::new(Arc::new(Caps::server()));
    let run = framer.next_run(&mut buffer, b'D', 2, true).unwrap().unwrap();
    assert_eq!((run.bytes.len(), run.completed), (row * 2, 2));
    buffer.truncate(row + 3);
    let run = framer
        .next_run(&mut buffer, b'D', u64::MAX, false)
        .unwrap()
        .unwrap();
    assert_eq!((run.bytes.len(), run.started, run.completed), (row, 1, 1));
    assert_eq!(buffer.len(), 3);
    assert!(framer.between_messages());
    assert_eq!(framer.next_run(&mut buffer, b'D', 0, true).unwrap(), None);
}

#[test]
fn command_tags() {
    let cases: [(&[u8], &[u8], Option<u64>); 6] = [
        (b"INSERT 0 12", b"INSERT", Some(12)),
        (b"SELECT 0", b"SELECT", Some(0)),
        (b"CREATE TABLE", b"CREATE TABLE", None),
        (b"BEGIN", b"BEGIN", None),
        (b"COPY 18446744073709551615", b"COPY", Some(u64::MAX)),
        (b"COPY 18446744073709551616", b"COPY 18446744073709551616", None),
    ];
    for (text, command, rows) in cases {
        let tag = CommandTag { text };
        assert_eq!((tag.command(), tag.rows()), (command, rows));
    }
}

#[test]
fn first_packets() {
    let mut buffer = BytesMut::new();
    write::frontend::ssl_request(&mut buffer);
    write::frontend::cancel_request(&mut buffer, 7, &[9; 32]).unwrap();
    write::frontend::startup(
        &mut buffer,
        startup::VERSION_3_2,
        [(&b"user"[..], &b"a"[..]), (b"user", b"b"), (b"_pq_.x", b"")],
    )
    .unwrap();
    assert_eq!(first_packet(&mut buffer).unwrap(), Some(FirstPacket::SslRequest));
    let Some(FirstPacket::Cancel(cancel)) = first_packet(&mut buffer).unwrap() else {
        panic!("no cancel");
    };
    assert_eq!((cancel.process_id, cancel.key.len()), (7, 32));
    let Some(FirstPacket::Startup(startup)) = first_packet(&mut buffer).unwrap() else {
        panic!("no startup");
    };
    assert_eq!((startup.major(), startup.minor()), (3, 2));
    assert_eq!(startup.parameter("user").unwrap().as_ref(), b"b");
    assert_eq!(startup.parameter("database"), None);
    assert!(buffer.is_empty());

    for bad in [&b"\0\0\0\x07"[..], &b"\0\0\x27\x15"[..], &b"\xff\xff\xff\xff"[..]] {
        assert!(first_packet(&mut BytesMut::from(bad)).is_err(), "{bad:?}");
    }
    // The largest that the server takes: 10,000 bytes and the length word.
    assert_eq!(first_packet(&mut BytesMut::from(&b"\0\0\x27\x14"[..])), Ok(None));
}

#[test]
fn authentication_requests() {
    let mut out = BytesMut::new();
    write::backend::authentication_sasl(&mut out, [&b"SCRAM-SHA-256-PLUS"[..], b"SCRAM-SHA-256"]).unwrap();
    let Authentication::Sasl(mechanisms) = Authentication::decode(&out[5..]).unwrap() else {
        panic!("not SASL");
    };
    assert_eq!(
        mechanisms.iter().collect::<Vec<_>>(),
        vec![&b"SCRAM-SHA-256-PLUS"[..], b"SCRAM-SHA-256"]
    );
    assert!(Authentication::decode(b"\0\0\0\x0aSCRAM").is_err());
    assert!(Authentication::decode(b"\0\0\0\x63").is_err());
}

#[test]
fn secrets_do_not_show() {
    let shown = format!("{:?}", FrontendMessage::decode(b'p', b"hunter2\0").unwrap());
    assert!(!shown.contains("104"), "{shown}");
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8..=255, 0..20)
}

fn cells() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    vec(proptest::option::of(vec(any::<u8>(), 0..30)), 0..6)
}

/// Well-formed messages back to back.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    vec((any::<u8>(), vec(any::<u8>(), 0..80)), 0..12).prop_map(|messages| {
        let mut out = BytesMut::new();
        for (tag, body) in messages {
            out.extend_from_slice(&raw(tag, &body));
        }
        out.to_vec()
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), tag in any::<u8>()) {
        if let Ok(message) = FrontendMessage::decode(tag, &bytes) {
            match message {
                FrontendMessage::Bind(bind) => {
                    prop_assert_eq!(bind.parameters().count(), usize::from(bind.parameter_count));
                }
                FrontendMessage::Parse(parse) => drop(parse.parameter_types().count()),
                _ => {}
            }
        }
        if let Ok(message) = BackendMessage::decode(tag, &bytes) {
            match message {
                BackendMessage::DataRow(row) => prop_assert_eq!(row.cells().count(), row.len()),
                BackendMessage::RowDescription(columns) => {
                    prop_assert_eq!(columns.fields().count(), columns.len());
                }
                BackendMessage::NegotiateProtocolVersion(version) => {
                    prop_assert_eq!(version.unknown().count() as u32, version.unknown_count);
                }
                _ => {}
            }
        }
        drop(frontend::SaslInitialResponse::decode(&bytes));
        drop(frontend::password(&bytes));
        drop(frontend::FunctionCall::function_of_front(&bytes));
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = first_packet(&mut buffer) {}
    }

    /// Fuzz of every type with a body of almost the right shape.
    #[test]
    fn every_known_type_survives_random_bodies(body in vec(prop_oneof![Just(0_u8), 0_u8..4, any::<u8>()], 0..120)) {
        for tag in 0..=255_u8 {
            drop(FrontendMessage::decode(tag, &body));
            drop(BackendMessage::decode(tag, &body));
        }
    }

    #[test]
    fn random_streams_never_panic(bytes in vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..400), cap in 0_u32..40) {
        for above in [Above::Stream, Above::Drain, Above::Refuse] {
            drop(frames(&small_caps(cap, above), &[&bytes]));
        }
    }

    #[test]
    fn a_split_at_any_byte_gives_the_same_frames(
        bytes in conversation(),
        cuts in vec(any::<prop::sample::Index>(), 0..5),
        cap in 0_u32..60,
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        pieces.push(&bytes[from..]);
        for above in [Above::Stream, Above::Drain] {
            let caps = small_caps(cap, above);
            let whole = frames(&caps, &[&bytes]).unwrap();
            let split = frames(&caps, &pieces).unwrap();
            prop_assert_eq!(&whole, &split);
            if above == Above::Stream {
                let joined: Vec<u8> = whole.into_iter().flat_map(|(_, bytes, _)| bytes).collect();
                prop_assert_eq!(&joined, &bytes, "nothing is lost or made up");
            }
        }
    }

    #[test]
    fn runs_and_frames_together_lose_nothing(
        bytes in conversation(),
        cut in any::<prop::sample::Index>(),
        wanted in any::<u8>(),
        partial in any::<bool>(),
        started_max in 1_u64..4,
    ) {
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        // Most conversations get runs only if the wanted type is one of theirs.
        let wanted = bytes.first().copied().unwrap_or(wanted);
        let mut framer = Framer::new(small_caps(30, Above::Stream));
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        let (mut started, mut completed) = (0, 0);
        for piece in [first, second] {
            buffer.extend_from_slice(piece);
            loop {
                if let Some(run) = framer.next_run(&mut buffer, wanted, started_max, partial).unwrap() {
                    prop_assert!(run.started <= started_max);
                    seen.extend_from_slice(&run.bytes);
                    started += run.started;
                    completed += run.completed;
                    continue;
                }
                match framer.next(&mut buffer).unwrap() {
                    None => break,
                    Some(Frame::Whole(message)) => seen.extend_from_slice(&message.raw),
                    Some(Frame::Head { prefix, tag, .. }) => {
                        started += u64::from(tag == wanted);
                        seen.extend_from_slice(&prefix);
                    }
                    Some(Frame::Part { bytes, .. }) => seen.extend_from_slice(&bytes),
                    Some(Frame::TooLong { .. }) => prop_assert!(false),
                }
            }
        }
        prop_assert_eq!(&seen, &bytes);
        prop_assert!(framer.between_messages());
        prop_assert!(completed <= started);
    }

    #[test]
    fn bind_roundtrip(
        portal in text(), statement in text(), formats in vec(0_i16..2, 0..4), values in cells(),
        results in vec(0_i16..2, 0..4), other in text(),
    ) {
        let mut out = BytesMut::new();
        write::frontend::bind(&mut out, &portal, &statement, &formats, values.iter().map(|v| v.as_deref()), &results).unwrap();
        let bind = Bind::decode(&out[5..]).unwrap();
        prop_assert_eq!(bind.portal, &portal[..]);
        prop_assert_eq!(bind.statement, &statement[..]);
        prop_assert_eq!(bind.parameter_formats.iter().collect::<Vec<_>>(), formats);
        prop_assert_eq!(bind.parameters().map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>(), values.clone());
        prop_assert_eq!(bind.result_formats.iter().collect::<Vec<_>>(), results.clone());
        let mut rewritten = BytesMut::new();
        rewrite::bind(&mut rewritten, &bind, &portal, &other).unwrap();
        let again = Bind::decode(&rewritten[5..]).unwrap();
        prop_assert_eq!(again.statement, &other[..]);
        prop_assert_eq!(again.parameters().map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>(), values);
        prop_assert_eq!(again.result_formats.iter().collect::<Vec<_>>(), results);
        // No prefix of a Bind is a Bind.
        for end in 5..out.len() {
            prop_assert!(Bind::decode(&out[5..end]).is_err());
        }
    }

    #[test]
    fn parse_roundtrip(name in text(), sql in text(), types in vec(any::<u32>(), 0..5)) {
        let mut out = BytesMut::new();
        write::frontend::parse(&mut out, &name, &sql, types.iter().copied()).unwrap();
        let parse = Parse::decode(&out[5..]).unwrap();
        prop_assert_eq!((parse.name, parse.sql), (&name[..], &sql[..]));
        prop_assert_eq!(parse.parameter_types().collect::<Vec<_>>(), types);
    }

    #[test]
    fn small_client_messages_roundtrip(name in text(), rows_max in any::<i32>()) {
        let mut out = BytesMut::new();
        write::frontend::describe(&mut out, Target::Portal(&name)).unwrap();
        prop_assert_eq!(FrontendMessage::decode(b'D', &out[5..]), Ok(FrontendMessage::Describe(Target::Portal(&name))));
        out.clear();
        write::frontend::close(&mut out, Target::Statement(&name)).unwrap();
        prop_assert_eq!(FrontendMessage::decode(b'C', &out[5..]), Ok(FrontendMessage::Close(Target::Statement(&name))));
        out.clear();
        write::frontend::execute(&mut out, &name, rows_max).unwrap();
        prop_assert_eq!(
            FrontendMessage::decode(b'E', &out[5..]),
            Ok(FrontendMessage::Execute(frontend::Execute { portal: &name, rows_max }))
        );
        out.clear();
        write::frontend::copy_fail(&mut out, &name).unwrap();
        prop_assert_eq!(FrontendMessage::decode(b'f', &out[5..]), Ok(FrontendMessage::CopyFail { message: &name }));
    }

    #[test]
    fn rows_roundtrip_and_lose_only_stripped_cells(values in cells(), stripped in any::<prop::sample::Index>()) {
        let mut out = BytesMut::new();
        write::backend::data_row(&mut out, values.iter().map(|v| v.as_deref())).unwrap();
        let BackendMessage::DataRow(row) = BackendMessage::decode(b'D', &out[5..]).unwrap() else { panic!() };
        prop_assert_eq!(row.cells().map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>(), values.clone());
        let gone = stripped.index(values.len().max(1));
        let mut shorter = BytesMut::new();
        rewrite::data_row(&mut shorter, &row, |index| index != gone).unwrap();
        let BackendMessage::DataRow(row) = BackendMessage::decode(b'D', &shorter[5..]).unwrap() else { panic!() };
        let mut expected = values;
        if gone < expected.len() {
            expected.remove(gone);
        }
        prop_assert_eq!(row.cells().map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn descriptions_are_rewritten(names in vec(text(), 0..5), oid in any::<u32>()) {
        let fields: Vec<Field<'_>> = names.iter().map(|name| Field {
            name, table_oid: 1, column: 2, type_oid: 25, type_size: -1, type_modifier: -1, format: 0,
        }).collect();
        let mut out = BytesMut::new();
        write::backend::row_description(&mut out, fields.iter().copied()).unwrap();
        let BackendMessage::RowDescription(columns) = BackendMessage::decode(b'T', &out[5..]).unwrap() else { panic!() };
        prop_assert_eq!(columns.fields().collect::<Vec<_>>(), fields.clone());
        let mut changed = BytesMut::new();
        rewrite::row_description(&mut changed, &columns, |index, _| match index {
            0 => rewrite::Column::Strip,
            1 => rewrite::Column::Origin { table_oid: oid, column: 9 },
            _ => rewrite::Column::Keep,
        }).unwrap();
        let BackendMessage::RowDescription(columns) = BackendMessage::decode(b'T', &changed[5..]).unwrap() else { panic!() };
        let mut expected = fields;
        if let Some(field) = expected.get_mut(1) {
            field.table_oid = oid;
            field.column = 9;
        }
        if !expected.is_empty() {
            expected.remove(0);
        }
        prop_assert_eq!(columns.fields().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn errors_roundtrip(parts in vec((1_u8..=255, text()), 0..6)) {
        let mut out = BytesMut::new();
        write::backend::error_response(&mut out, parts.iter().map(|(code, text)| (*code, &text[..]))).unwrap();
        let BackendMessage::ErrorResponse(fields) = BackendMessage::decode(b'E', &out[5..]).unwrap() else { panic!() };
        let seen: Vec<_> = fields.iter().map(|(code, text)| (code, text.to_vec())).collect();
        prop_assert_eq!(seen, parts);
    }

    #[test]
    fn startup_roundtrip(parameters in vec((vec(1_u8..=255, 1..20), text()), 0..6), rest in vec(any::<u8>(), 0..9)) {
        let mut out = BytesMut::new();
        write::frontend::startup(&mut out, startup::VERSION_3_0, parameters.iter().map(|(n, v)| (&n[..], &v[..]))).unwrap();
        let packet = out.clone();
        out.extend_from_slice(&rest);
        let Some(FirstPacket::Startup(message)) = first_packet(&mut out).unwrap() else { panic!() };
        prop_assert_eq!(&out[..], &rest[..], "what follows stays in the buffer");
        let seen: Vec<(Bytes, Bytes)> = parameters.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        prop_assert_eq!(message.parameters, seen);
        for end in 0..packet.len() {
            prop_assert_eq!(first_packet(&mut BytesMut::from(&packet[..end])), Ok(None));
        }
    }
}

#[test]
fn transaction_states() {
    for status in [
        TransactionStatus::Idle,
        TransactionStatus::InTransaction,
        TransactionStatus::Failed,
    ] {
        let mut out = BytesMut::new();
        write::backend::ready_for_query(&mut out, status);
        assert_eq!(
            BackendMessage::decode(b'Z', &out[5..]),
            Ok(BackendMessage::ReadyForQuery(status))
        );
    }
    assert!(BackendMessage::decode(b'Z', b"x").is_err());
}
