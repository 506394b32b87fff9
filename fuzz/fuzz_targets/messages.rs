//! Bytes of clients and servers: every message is decoded or refused, however the bytes are cut. The first byte says who
//! speaks and how the rest is cut.

#![no_main]

use std::sync::Arc;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use wire_protocol::postgres::frontend::FrontendMessage;
use wire_protocol::postgres::startup::first_packet;
use wire_protocol::postgres::{BackendMessage, Caps, Frame, Framer};

fn read(client: bool, message: &wire_protocol::postgres::Message) {
    if client {
        let _ = FrontendMessage::decode(message.tag, message.body());
        return;
    }
    match BackendMessage::decode(message.tag, message.body()) {
        Ok(BackendMessage::RowDescription(description)) => {
            assert_eq!(description.fields().count(), description.len());
        }
        Ok(BackendMessage::DataRow(row)) => assert_eq!(row.cells().count(), row.len()),
        _ => {}
    }
}

fn frames(client: bool, pieces: &[&[u8]]) -> (Vec<Frame>, bool) {
    let caps = if client { Caps::client(1 << 16) } else { Caps::server() };
    let mut framer = Framer::new(Arc::new(caps));
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match framer.next(&mut buffer) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    let client = how & 1 == 0;
    let mut startup = BytesMut::from(data);
    while let Ok(Some(_)) = first_packet(&mut startup) {}
    let (whole, understood) = frames(client, &[data]);
    for frame in &whole {
        if let Frame::Whole(message) = frame {
            read(client, message);
        }
    }
    // Cut elsewhere, the same messages come out.
    let cut = usize::from(how >> 1).min(data.len());
    let (left, right) = data.split_at(cut);
    let (pieces, again) = frames(client, &[left, right]);
    assert_eq!(understood, again);
    let complete = |frames: Vec<Frame>| -> Vec<Frame> {
        let whole = |frame: &Frame| matches!(frame, Frame::Whole(_) | Frame::TooLong { .. });
        frames.into_iter().filter(whole).collect()
    };
    assert_eq!(complete(whole), complete(pieces));
});
