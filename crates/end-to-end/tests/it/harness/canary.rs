//! Canaries: values that no client of the governed sessions may ever see, whatever they are wrapped in.

/// Every secret text in the shop holds this word; nothing else does.
const WORD: &str = "canary";

/// Secret numbers (`customers.salary`, hidden `orders.amount`) and a secret day (`customers.born`), as text.
const NUMBERS: &[&str] = &[
    "7364501283349",
    "7364501283350",
    "881177",
    "1987-06-15",
    "1987-09-23",
];

/// The same salaries and amount as big-endian bytes, and the days as days since 2000.
fn binaries() -> Vec<Vec<u8>> {
    let mut found = vec![
        7_364_501_283_349_i64.to_be_bytes().to_vec(),
        7_364_501_283_350_i64.to_be_bytes().to_vec(),
    ];
    found.push([[0, 0, 0, 4].as_slice(), &881_177_i32.to_be_bytes()].concat());
    for days in [-4583_i32, -4483] {
        found.push([[0, 0, 0, 4].as_slice(), &days.to_be_bytes()].concat());
    }
    found
}

/// All spellings: as it is in any case, backwards, in hex, in base64 at each of the three alignments.
fn spellings() -> Vec<Vec<u8>> {
    let hex: String = WORD.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut found = vec![
        WORD.as_bytes().to_vec(),
        WORD.bytes().rev().collect(),
        hex.into_bytes(),
    ];
    found.extend(["y2fuyxj5", "nhbmfye", "jyw5hcn"].map(|text| text.as_bytes().to_vec()));
    found.extend(NUMBERS.iter().map(|text| text.as_bytes().to_vec()));
    found
}

/// What of a canary is in these bytes, with what stands around it.
pub(crate) fn find(bytes: &[u8]) -> Option<String> {
    let lower = bytes.to_ascii_lowercase();
    let hit =
        |haystack: &[u8], needle: &[u8]| haystack.windows(needle.len()).position(|window| window == needle);
    let text = spellings().iter().find_map(|needle| hit(&lower, needle));
    let binary = || binaries().iter().find_map(|needle| hit(bytes, needle));
    let at = text.or_else(binary)?;
    let from = at.saturating_sub(80);
    let to = bytes.len().min(at.saturating_add(80));
    Some(String::from_utf8_lossy(&bytes[from..to]).replace('\0', "."))
}

#[test]
fn canaries_are_found_in_every_spelling() {
    for seen in [
        &b"a Canary b"[..],
        b"yranac",
        b"\\x63616e617279",
        // base64 of canary, xcanary, xxcanary, in small letters as the search compares them.
        b"Y2FuYXJ5",
        b"eGNhbmFyeQ==",
        b"eHhjYW5hcnk=",
        b"x7364501283349",
        &7_364_501_283_349_i64.to_be_bytes(),
        &[0, 0, 0, 4, 0, 13, 114, 25],
    ] {
        assert!(find(seen).is_some(), "{}", String::from_utf8_lossy(seen));
    }
    assert_eq!(find(b"can ary 736450128"), None);
}
