//! Receipts, checkpoints and exported ranges, as somebody hands them in: they are verified or refused.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use receipts::{Checkpoint, LogKey, SignedGroup, read_event, read_group_line, verify_range};

static KEY: LazyLock<Option<LogKey>> =
    LazyLock::new(|| LogKey::from_vkey("weir.dev/log+00000000+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="));

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    if let Ok(group) = SignedGroup::decode(&mut rest) {
        let read = data.len() - rest.len();
        assert_eq!(group.encode(), &data[..read]);
        let _ = group.verify();
        let _ = group.receipt(0).map(|receipt| receipt.verify());
    }
    let _ = read_event(data);
    let _ = verify_range(data, KEY.as_ref());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = read_group_line(text);
        if let Some(key) = LogKey::from_vkey(text) {
            assert_eq!(LogKey::from_vkey(&key.to_vkey()), Some(key));
        }
        if let Some(key) = &*KEY {
            let _ = Checkpoint::verify(text, key);
        }
    }
});
