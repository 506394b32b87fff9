//! The lists of `deny.toml`, for machines without cargo-deny.

use std::collections::BTreeSet;
use std::process::Command;
use test_support::workspace_root;

fn list(table: &toml::Table, section: &str, key: &str, field: Option<&str>) -> BTreeSet<String> {
    let items = table
        .get(section)
        .and_then(|s| s.get(key))
        .and_then(toml::Value::as_array)
        .unwrap();
    let text = |item: &toml::Value| match field {
        Some(field) => item.get(field).and_then(toml::Value::as_str).map(str::to_owned),
        None => item.as_str().map(str::to_owned),
    };
    items.iter().map(|item| text(item).unwrap()).collect()
}

/// Whether a licence expression can be met with the allowed licences: all parts of an AND, one of an OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words: Vec<String> = Vec::new();
    for word in spaced.split_whitespace() {
        // `X WITH exception` is one licence.
        let joins = word == "WITH" || words.last().is_some_and(|last| last.ends_with(" WITH"));
        match words.last_mut() {
            Some(last) if joins => *last = format!("{last} {word}"),
            _ => words.push(word.to_owned()),
        }
    }
    let mut words = words.into_iter().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words = std::iter::Peekable<std::vec::IntoIter<String>>;

fn any_of(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if(|word| word == "OR").is_some() {
        met = all_of(words, allowed) || met;
    }
    met
}

fn all_of(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if(|word| word == "AND").is_some() {
        met = one(words, allowed) && met;
    }
    met
}

fn one(words: &mut Words, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some(word) if word == "(" => {
            let met = any_of(words, allowed);
            let closed = words.next().is_some_and(|word| word == ")");
            met && closed
        }
        Some(word) => allowed.contains(&word),
        None => false,
    }
}

#[test]
fn licence_expressions_are_read() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "A WITH b".to_owned()].into();
    for yes in [
        "MIT",
        "GPL OR MIT",
        "MIT/GPL",
        "MIT AND (GPL OR ISC)",
        "A WITH b",
        "(GPL AND MIT) OR ISC",
    ] {
        assert!(is_allowed(yes, &allowed), "{yes}");
    }
    for no in [
        "GPL",
        "MIT AND GPL",
        "",
        "A",
        "MIT ISC",
        "(MIT",
        "ISC AND (GPL OR A)",
    ] {
        assert!(!is_allowed(no, &allowed), "{no}");
    }
}

#[test]
fn licences_and_banned_crates_are_as_deny_toml_says() {
    let text = std::fs::read_to_string(workspace_root().join("deny.toml")).unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let allowed = list(&deny, "licenses", "allow", None);
    let banned = list(&deny, "bans", "deny", Some("crate"));

    let tree = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace_root())
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}|{l}|{r}"])
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let lines: BTreeSet<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.len() > 50, "cargo tree printed only {} lines", lines.len());
    let mut problems = Vec::new();
    for line in lines {
        let mut fields = line.split('|');
        let (package, licence) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let name = package.split(' ').next().unwrap_or("");
        if banned.contains(name) {
            problems.push(format!("{name} is banned"));
        }
        // A crate from the registry has only its name and version here; ours say the folder, others a URL.
        if package.contains("(http") || package.contains("(git") {
            problems.push(format!("{package} does not come from the registry"));
        }
        if !is_allowed(licence, &allowed) {
            problems.push(format!("{package}: the licence {licence:?} is not in deny.toml"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
