//! Refusals that the session itself makes; all others come from `access-policy`. Each code has a page under
//! `docs/refusals/`.

use access_policy::{Refusal, RefusalCode, RuleRef};

fn own(code: u16, sqlstate: &'static str, rule: &str, reason: String, hint: &str) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(code),
        sqlstate,
        rule: RuleRef {
            policy: "weir".to_owned(),
            rule: rule.to_owned(),
        },
        reason,
        hint: hint.to_owned(),
    }
}

/// WEIR-101: a text longer than the cap.
pub(crate) fn text_too_long(bytes_max: usize) -> Refusal {
    own(
        101,
        "54000",
        "statement-max-bytes",
        format!("the statement is longer than {bytes_max} bytes"),
        "send values as parameters, or start the sidecar with a larger --statement-max-bytes",
    )
}

/// WEIR-102: a text that cannot be read as the server would read it.
pub(crate) fn text_unreadable(reason: &str) -> Refusal {
    own(
        102,
        "42501",
        "readable-text",
        reason.to_owned(),
        "set client_encoding to UTF8 and standard_conforming_strings to on",
    )
}

/// WEIR-103: a name of ours.
pub(crate) fn reserved_name() -> Refusal {
    own(
        103,
        "42939",
        "reserved-names",
        "names of statements and portals that begin with weir_ are reserved".to_owned(),
        "use another name",
    )
}

/// WEIR-104: a statement that this session did not prepare through Weir.
pub(crate) fn unknown_statement(name: &[u8]) -> Refusal {
    own(
        104,
        "26000",
        "known-statements",
        format!(
            "prepared statement \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
        "prepare it again",
    )
}

/// WEIR-105: a portal or cursor that this session did not open through Weir.
pub(crate) fn unknown_portal(name: &[u8]) -> Refusal {
    own(
        105,
        "34000",
        "known-cursors",
        format!(
            "portal or cursor \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
        "declare or bind it again",
    )
}

/// WEIR-106: a later statement of the same text depends on something that cannot be foretold.
pub(crate) fn cannot_foretell(what: &str) -> Refusal {
    own(
        106,
        "42501",
        "foreseeable-state",
        format!("what this statement means depends on {what} earlier in the same message"),
        "send the statements one by one",
    )
}

/// WEIR-107: the policy changed while a portal was open.
pub(crate) fn policy_changed() -> Refusal {
    own(
        107,
        "42501",
        "policy-change",
        "the policy changed after this statement was bound, and decides otherwise now".to_owned(),
        "run the statement again",
    )
}

/// WEIR-108: a prepared statement means something else now.
pub(crate) fn plan_changed() -> Refusal {
    own(
        108,
        "0A000",
        "prepared-statements",
        "cached plan must not change result type".to_owned(),
        "prepare the statement again",
    )
}

/// WEIR-110: `maxReturnedRows`.
pub(crate) fn too_many_rows(rows_max: u64, rule: RuleRef) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(110),
        sqlstate: "54000",
        reason: format!("the statement returns more than {rows_max} rows"),
        hint: "narrow the condition, or add LIMIT".to_owned(),
        rule,
    }
}

/// WEIR-111: `maxAffectedRows`.
pub(crate) fn too_many_changes(rows: u64, rows_max: u64, rule: RuleRef) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(111),
        sqlstate: "54000",
        reason: format!("the transaction changes {rows} rows, more than {rows_max}"),
        hint: "nothing was committed; change fewer rows in one transaction".to_owned(),
        rule,
    }
}

/// WEIR-112: `statementTimeoutSeconds`.
pub(crate) fn timeout(seconds: u32, rule: RuleRef) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(112),
        sqlstate: "57014",
        reason: format!("the statement ran longer than {seconds} seconds"),
        hint: "narrow the statement, or ask for a longer statementTimeoutSeconds".to_owned(),
        rule,
    }
}

/// WEIR-114: a row that the filter does not accept would be written.
pub(crate) fn row_outside_filter(rule: &str) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(114),
        sqlstate: "42501",
        rule: RuleRef {
            policy: String::new(),
            rule: rule.to_owned(),
        },
        reason: "a row would be written that the row filter does not accept".to_owned(),
        hint: "write only rows that you may read".to_owned(),
    }
}

/// WEIR-120: the wire check found a protected column where it must not be.
pub(crate) fn raw_column() -> Refusal {
    own(
        120,
        "57P01",
        "wire-check",
        "the server's answer names a protected column where it must not be: no row was delivered".to_owned(),
        "please report this statement; the policy holds",
    )
}

/// WEIR-121: a message that is not served.
pub(crate) fn not_served(what: &str) -> Refusal {
    own(
        121,
        "0A000",
        "served-messages",
        format!("{what} is not served"),
        "",
    )
}
