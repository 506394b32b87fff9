//! No crate depends on another unless ARCHITECTURE.md draws the arrow.

use std::collections::{BTreeMap, BTreeSet};
use test_support::workspace_root;

/// These take values and return values: no sockets, no clock, no files.
const PURE: [&str; 6] = [
    "wire-protocol",
    "session-state",
    "row-masking",
    "sql-facts",
    "access-policy",
    "receipts",
];
const IMPURE_DEPENDENCIES: [&str; 14] = [
    "tokio",
    "mio",
    "async-std",
    "smol",
    "hyper",
    "axum",
    "tonic",
    "reqwest",
    "rusqlite",
    "tokio-postgres",
    "tokio-rustls",
    "socket2",
    "jiff",
    "chrono",
];

type Edges = BTreeMap<String, BTreeSet<String>>;

/// The arrows of the fenced block: `room → room, room`.
fn drawn(text: &str) -> Edges {
    let mut edges = Edges::new();
    for line in text.lines() {
        // Rooms are plain names; other drawings on the page have boxes, words or several arrows on a line.
        let Some((from, to)) = line.split_once(" →") else {
            continue;
        };
        let is_room =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let to: BTreeSet<String> = to
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect();
        if is_room(from) && to.iter().all(|name| is_room(name)) {
            assert!(
                edges.insert(from.to_owned(), to).is_none(),
                "ARCHITECTURE.md draws {from} twice"
            );
        }
    }
    assert!(
        edges.len() >= 6,
        "the block of arrows in ARCHITECTURE.md was not found"
    );
    edges
}

struct Room {
    normal: BTreeSet<String>,
    development: BTreeSet<String>,
    external: BTreeSet<String>,
    inherits_lints: bool,
}

/// Every room by the name of its folder, which is also its name in `[workspace.dependencies]`.
fn rooms() -> BTreeMap<String, Room> {
    let folder = workspace_root().join("crates");
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    let own: BTreeSet<String> = names.iter().cloned().collect();
    let mut rooms = BTreeMap::new();
    for name in names {
        let path = folder.join(&name).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let keys = |section: &str| -> BTreeSet<String> {
            let table = table.get(section).and_then(toml::Value::as_table);
            table.map(|t| t.keys().cloned().collect()).unwrap_or_default()
        };
        let mut normal: BTreeSet<String> = keys("dependencies");
        normal.extend(keys("build-dependencies"));
        if let Some(targets) = table.get("target").and_then(toml::Value::as_table) {
            for (cfg, target) in targets {
                assert!(
                    target.get("dependencies").is_none(),
                    "{name}: dependencies of {cfg} hide from this test"
                );
            }
        }
        let inherits_lints = table
            .get("lints")
            .and_then(|l| l.get("workspace"))
            .and_then(toml::Value::as_bool)
            == Some(true);
        let room = Room {
            external: normal.difference(&own).cloned().collect(),
            normal: normal.intersection(&own).cloned().collect(),
            development: keys("dev-dependencies").intersection(&own).cloned().collect(),
            inherits_lints,
        };
        rooms.insert(name, room);
    }
    rooms
}

/// Everything wrong with these rooms under this drawing.
fn problems(drawn: &Edges, rooms: &BTreeMap<String, Room>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, room) in rooms {
        let empty = BTreeSet::new();
        let allowed = drawn.get(name).unwrap_or(&empty);
        for other in room.normal.difference(allowed) {
            problems.push(format!(
                "{name} depends on {other}: ARCHITECTURE.md draws no such arrow"
            ));
        }
        // Tests may stand on the same arrows and on test-support.
        for other in room
            .development
            .iter()
            .filter(|other| *other != "test-support" && !allowed.contains(*other))
        {
            problems.push(format!(
                "the tests of {name} use {other}: ARCHITECTURE.md draws no such arrow"
            ));
        }
        if PURE.contains(&name.as_str()) {
            for dependency in &room.external {
                if IMPURE_DEPENDENCIES.contains(&dependency.as_str()) {
                    problems.push(format!("{name} is pure and must not depend on {dependency}"));
                }
            }
        }
        if !room.inherits_lints {
            problems.push(format!("{name} does not inherit the workspace's lints"));
        }
    }
    for name in drawn.keys().filter(|name| !rooms.contains_key(*name)) {
        problems.push(format!("ARCHITECTURE.md draws a room {name} that does not exist"));
    }
    for name in PURE.iter().filter(|name| !rooms.contains_key(**name)) {
        problems.push(format!("the pure room {name} does not exist"));
    }
    problems
}

fn architecture() -> Edges {
    drawn(&std::fs::read_to_string(workspace_root().join("ARCHITECTURE.md")).unwrap())
}

#[test]
fn every_dependency_is_drawn() {
    let problems = problems(&architecture(), &rooms());
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_drawing_has_no_circle() {
    // Rooms that depend only on rooms already placed are placed; a circle is what is left over.
    let mut left = architecture();
    loop {
        let before = left.len();
        let waiting: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, to| to.iter().any(|name| waiting.contains(name)));
        if left.is_empty() {
            return;
        }
        assert!(
            left.len() < before,
            "the arrows of ARCHITECTURE.md run in a circle among {:?}",
            left.keys()
        );
    }
}

#[test]
fn a_broken_rule_is_found() {
    let room = |normal: &[&str], development: &[&str], external: &[&str], inherits_lints| {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Room {
            normal: set(normal),
            development: set(development),
            external: set(external),
            inherits_lints,
        }
    };
    let mut rooms: BTreeMap<String, Room> = PURE
        .iter()
        .map(|name| ((*name).to_owned(), room(&[], &[], &["bytes"], true)))
        .collect();
    let mut drawn: Edges = PURE
        .iter()
        .map(|name| ((*name).to_owned(), BTreeSet::new()))
        .collect();
    assert_eq!(problems(&drawn, &rooms), Vec::<String>::new());

    rooms.insert(
        "receipts".into(),
        room(
            &["sql-facts"],
            &["test-support", "wire-protocol"],
            &["tokio"],
            false,
        ),
    );
    drawn.insert("attic".into(), BTreeSet::new());
    let found = problems(&drawn, &rooms).join("\n");
    for expected in [
        "receipts depends on sql-facts",
        "the tests of receipts use wire-protocol",
        "receipts is pure and must not depend on tokio",
        "receipts does not inherit",
        "a room attic that does not exist",
    ] {
        assert!(found.contains(expected), "{expected:?} is missing in:\n{found}");
    }
    assert!(!found.contains("test-support"));
}
