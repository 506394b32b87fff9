//! Manifests, right and wrong, through `compile`.

use crate::policy::{Effect, MaskSpec, SubjectPattern, TargetSession};
use crate::{Endpoint, Manifest, NoSecrets, PolicySet, Problem, SecretKey, compile};

/// A policy with these lines in its spec, in place of or beside the usual ones.
pub(super) fn manifest(spec: &str) -> String {
    let has = |key: &str| spec.lines().any(|line| line.starts_with(&format!("{key}:")));
    let mut text = "apiVersion: weir.dev/v1alpha1\nkind: DatabaseAccessPolicy\n\
                    metadata: {name: shop, namespace: store}\nspec:\n"
        .to_owned();
    if !has("podSelector") {
        text.push_str("  podSelector: {}\n");
    }
    if !has("database") {
        text.push_str("  database: {engine: PostgreSQL, host: db.shop.svc}\n");
    }
    for line in spec.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn compile_one(text: &str) -> Result<PolicySet, Vec<Problem>> {
    compile(&[Manifest {
        name: "shop.yaml".to_owned(),
        text: text.to_owned(),
    }])
}

/// (spec, field, part of the message)
const WRONG: &[(&str, &str, &str)] = &[
    // Shape.
    ("mask: []", "spec.mask", "did you mean \"masks\""),
    (
        "defaultAktion: Deny",
        "spec.defaultAktion",
        "did you mean \"defaultAction\"",
    ),
    ("rowfilters: []", "spec.rowfilters", "did you mean \"rowFilters\""),
    ("xyzzy: 1", "spec.xyzzy", "known are"),
    ("mode: Enforce\nmode: Audit", "spec.mode", "is given twice"),
    ("mode: enforced", "spec.mode", "did you mean \"Enforce\""),
    ("mode: [Enforce]", "spec.mode", "must be text, not a list"),
    ("defaultAction: yes", "spec.defaultAction", "put it in quotes"),
    ("access: {}", "spec.access", "must be a list, not a map"),
    ("mode:", "spec.mode", "must be text, not nothing"),
    ("guardrails:", "spec.guardrails", "has no value"),
    ("podSelector: all", "spec.podSelector", "must be a map, not text"),
    (
        "podSelector: {matchLabel: {app: a}}",
        "spec.podSelector.matchLabel",
        "did you mean \"matchLabels\"",
    ),
    (
        "podSelector: {matchLabels: {app: 1}}",
        "spec.podSelector.matchLabels.app",
        "put it in quotes",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Contains, values: [b]}]}",
        "spec.podSelector.matchExpressions[0].operator",
        "known are In",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: In}]}",
        "spec.podSelector.matchExpressions[0]",
        "In needs values",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        "spec.podSelector.matchExpressions[0]",
        "takes no values",
    ),
    // What later versions bring.
    ("identity: {issuers: []}", "spec.identity", "not in this version"),
    ("approvals: []", "spec.approvals", "not in this version"),
    ("budgets: []", "spec.budgets", "not in this version"),
    (
        "receipts: {capture: Shape}",
        "spec.receipts.capture",
        "not in this version",
    ),
    (
        "receipts: {rowLedger: [public.t]}",
        "spec.receipts.rowLedger",
        "not in this version",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {mode: Redirect}}",
        "spec.database.capture.mode",
        "Redirect is not in this version",
    ),
    // How applications and servers are met.
    (
        "database: {engine: PostgreSQL, host: a, clientTLS: {mode: Serve}}",
        "spec.database.clientTLS",
        "add credentials",
    ),
    (
        "database: {engine: PostgreSQL, host: a, clientTLS: {certificateSecretRef: {name: a}}}",
        "spec.database.clientTLS.certificateSecretRef",
        "set mode: Serve",
    ),
    (
        "database: {engine: PostgreSQL, host: a, clientTLS: {mode: serve}}",
        "spec.database.clientTLS.mode",
        "did you mean \"Serve\"",
    ),
    (
        "database: {engine: PostgreSQL, host: a, clientTls: {mode: Plain}}",
        "spec.database.clientTls",
        "did you mean \"clientTLS\"",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {mode: Env}}",
        "spec.database.capture.env",
        "needs hostVariables or urlVariables",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {mode: Env, env: {portVariables: [PGPORT]}}}",
        "spec.database.capture.env",
        "needs hostVariables or urlVariables",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {env: {hostVariables: [PGHOST]}}}",
        "spec.database.capture.env",
        "set mode: Env",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {mode: Env, env: {hostVariables: [PGHOST, PGHOST]}}}",
        "spec.database.capture.env.hostVariables[1]",
        "is named twice",
    ),
    (
        "database: {engine: PostgreSQL, host: a, capture: {mode: Env, env: {hostVariables: ['$PGHOST']}}}",
        "spec.database.capture.env.hostVariables[0]",
        "is not the name of a variable",
    ),
    (
        "database: {engine: PostgreSQL, host: a, targetSession: Primary}",
        "spec.database.targetSession",
        "known are Any, ReadWrite",
    ),
    (
        "database: {engine: MySQL, host: a}",
        "spec.database.engine",
        "MySQL is not in this version",
    ),
    // Database.
    ("database: {host: a}", "spec.database.engine", "is required"),
    (
        "database: {engine: PostgreSQL}",
        "spec.database.host",
        "is required",
    ),
    (
        "database: {engine: Postgres, host: a}",
        "spec.database.engine",
        "did you mean \"PostgreSQL\"",
    ),
    (
        "database: {engine: PostgreSQL, host: ''}",
        "spec.database.host",
        "must not be empty",
    ),
    (
        "database: {engine: PostgreSQL, host: 'a:5432'}",
        "spec.database.host",
        "must not hold a port",
    ),
    (
        "database: {engine: PostgreSQL, host: 'postgres://a'}",
        "spec.database.host",
        "not a URL",
    ),
    (
        "database: {engine: PostgreSQL, host: 'a b'}",
        "spec.database.host",
        "is not a host name",
    ),
    (
        "database: {engine: PostgreSQL, host: a..b}",
        "spec.database.host",
        "is not a host name",
    ),
    (
        "database: {engine: PostgreSQL, host: a, port: 70000}",
        "spec.database.port",
        "from 1 to 65535",
    ),
    (
        "database: {engine: PostgreSQL, host: a, port: '5432'}",
        "spec.database.port",
        "must be a whole number, not text",
    ),
    (
        "database: {engine: PostgreSQL, host: a, port: 1.5}",
        "spec.database.port",
        "not a number with a fraction",
    ),
    (
        "database: {engine: PostgreSQL, host: a, otherEndpoints: [{host: A., port: 5432}]}",
        "spec.database.otherEndpoints[0].host",
        "a:5432 is named twice",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: verify-full}}",
        "spec.database.tls.mode",
        "did you mean \"VerifyFull\"",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: Require, caSecretRef: {name: a, key: b}}}",
        "spec.database.tls.caSecretRef",
        "has no use",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {caSecretRef: {name: a}}}",
        "spec.database.tls.caSecretRef.key",
        "is required",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: Disable}, credentials: {secretRef: {name: a}}}",
        "spec.database.credentials",
        "would send the password",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: Disable}, credentials: {secretRef: {name: a}, transport: AnyTLS}}",
        "spec.database.credentials",
        "would send the password",
    ),
    (
        "database: {engine: PostgreSQL, host: a, credentials: {secretRef: {}}}",
        "spec.database.credentials.secretRef.name",
        "is required",
    ),
    // Access.
    (
        "access: [{actions: [Select]}]",
        "spec.access[0].name",
        "is required",
    ),
    ("access: [{name: a}]", "spec.access[0].actions", "is required"),
    (
        "access: [{name: a, actions: []}]",
        "spec.access[0].actions",
        "must not be empty",
    ),
    (
        "access: [{name: a, actions: [select]}]",
        "spec.access[0].actions[0]",
        "did you mean \"Select\"",
    ),
    (
        "access: [{name: a, actions: [Select, Select]}]",
        "spec.access[0].actions[1]",
        "is given twice",
    ),
    (
        "access: [{name: a, actions: [Select]}, {name: a, actions: [Insert]}]",
        "spec.access[1].name",
        "given twice",
    ),
    (
        "access: [{name: ' a', actions: [Select]}]",
        "spec.access[0].name",
        "blank",
    ),
    (
        "access: [{name: a, effect: Permit, actions: [Select]}]",
        "spec.access[0].effect",
        "known are Allow, Deny",
    ),
    (
        "access: [{name: a, actions: [Select], tables: [orders]}]",
        "spec.access[0].tables[0]",
        "write schema.orders",
    ),
    (
        "access: [{name: a, actions: [Select], tables: ['*']}]",
        "spec.access[0].tables[0]",
        "where a name is expected",
    ),
    (
        "access: [{name: a, actions: [Select], tables: [a.b.c]}]",
        "spec.access[0].tables[0]",
        "too many parts",
    ),
    (
        "access: [{name: a, actions: [Select], tables: [a.b.*]}]",
        "spec.access[0].tables[0]",
        "every relation of a schema",
    ),
    (
        "access: [{name: a, actions: [Select], tables: ['a.\"b']}]",
        "spec.access[0].tables[0]",
        "quote that does not end",
    ),
    (
        "access: [{name: a, actions: [Select], tables: ['a.b-c']}]",
        "spec.access[0].tables[0]",
        "where a dot or the end",
    ),
    (
        "access: [{name: a, actions: [Select], tables: ['a.1b']}]",
        "spec.access[0].tables[0]",
        "needs \"quotes\"",
    ),
    (
        "access: [{name: a, actions: [Select], columns: [a.b]}]",
        "spec.access[0].columns[0]",
        "schema.table.column",
    ),
    (
        "access: [{name: a, actions: [Delete], columns: [a.b.c]}]",
        "spec.access[0].columns",
        "narrows Select",
    ),
    (
        "access: [{name: a, actions: [Select], tables: [a.t], columns: [a.u.c]}]",
        "spec.access[0].columns[0]",
        "of a table that the rule does not name",
    ),
    (
        "access: [{name: a, actions: [Select], subjects: [{}]}]",
        "spec.access[0].subjects[0]",
        "exactly one of",
    ),
    (
        "access: [{name: a, actions: [Select], subjects: [{user: u, group: g}]}]",
        "spec.access[0].subjects[0]",
        "exactly one of",
    ),
    (
        "access: [{name: a, actions: [Select], subjects: [{serviceaccount: u}]}]",
        "spec.access[0].subjects[0].serviceaccount",
        "did you mean \"serviceAccount\"",
    ),
    // Classifications.
    (
        "classifications: [{label: a}]",
        "spec.classifications[0].columns",
        "is required",
    ),
    (
        "classifications: [{label: 'a.*', columns: [a.b.c]}]",
        "spec.classifications[0].label",
        "is a name",
    ),
    (
        "classifications: [{label: 'a b', columns: [a.b.c]}]",
        "spec.classifications[0].label",
        "blanks",
    ),
    (
        "classifications: [{label: a, columns: ['a.b.*']}]",
        "spec.classifications[0].columns[0]",
        "does not stand for columns",
    ),
    (
        "classifications: [{label: a, columns: [a.b.c]}, {label: a, columns: [a.b.d]}]",
        "spec.classifications[1].label",
        "given twice",
    ),
    // Masks.
    (
        "masks: [{name: m, mask: {type: 'Null'}}]",
        "spec.masks[0]",
        "needs columns or columnLabels",
    ),
    (
        "masks: [{name: m, columns: [a.b.c]}]",
        "spec.masks[0].mask",
        "is required",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {}}]",
        "spec.masks[0].mask.type",
        "is required",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Null}}]",
        "spec.masks[0].mask.type",
        "must be text, not nothing",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Partiel, keepLast: 1}}]",
        "spec.masks[0].mask.type",
        "did you mean \"Partial\"",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Partial}}]",
        "spec.masks[0].mask.keepLast",
        "is required by mask Partial",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Partial, keepLast: -1}}]",
        "spec.masks[0].mask.keepLast",
        "from 0 to 1000",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Constant}}]",
        "spec.masks[0].mask.value",
        "is required by mask Constant",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Constant, value: 0}}]",
        "spec.masks[0].mask.value",
        "put it in quotes",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: DateTrunc}}]",
        "spec.masks[0].mask.unit",
        "is required by mask DateTrunc",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: DateTrunc, unit: Week}}]",
        "spec.masks[0].mask.unit",
        "known are Year",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Hash}}]",
        "spec.masks[0].mask.keySecretRef",
        "is required by mask Hash",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Email, keepLast: 2}}]",
        "spec.masks[0].mask.keepLast",
        "belongs to mask Partial; leave it out",
    ),
    (
        "masks: [{name: m, columnLabels: [pii.*], mask: {type: Email}}]",
        "spec.masks[0].columnLabels[0]",
        "no policy of this database",
    ),
    (
        "masks: [{name: m, columnLabels: ['*.pii'], mask: {type: Email}}]",
        "spec.masks[0].columnLabels[0]",
        "at the end only",
    ),
    (
        "masks: [{name: m, columns: [customers.email], mask: {type: Email}}]",
        "spec.masks[0].columns[0]",
        "too few parts",
    ),
    (
        "masks: [{name: m, columns: [d.a.b.c], mask: {type: Email}}]",
        "spec.masks[0].columns[0]",
        "too many parts",
    ),
    // Row filters.
    (
        "rowFilters: [{name: f, tables: [], predicate: 'a = 1'}]",
        "spec.rowFilters[0].tables",
        "must not be empty",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b]}]",
        "spec.rowFilters[0].predicate",
        "is required",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'tenant ='}]",
        "spec.rowFilters[0].predicate",
        "is not one condition in SQL",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a) OR (b'}]",
        "spec.rowFilters[0].predicate",
        "is not one condition",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = 1 LIMIT 1'}]",
        "spec.rowFilters[0].predicate",
        "is not one condition",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = 1; DROP TABLE t'}]",
        "spec.rowFilters[0].predicate",
        "more than one statement",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = $1'}]",
        "spec.rowFilters[0].predicate",
        "use :claims.NAME",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = :tenant'}]",
        "spec.rowFilters[0].predicate",
        "only :claims.NAME",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = :claims'}]",
        "spec.rowFilters[0].predicate",
        "without the name",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'lower(a) = :claims.x'}]",
        "spec.rowFilters[0].predicate",
        "does not tell the type",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a = 1 -- c'}]",
        "spec.rowFilters[0].predicate",
        "comment",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: \"a = 'x\"}]",
        "spec.rowFilters[0].predicate",
        "does not end",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: \"a = E'x'\"}]",
        "spec.rowFilters[0].predicate",
        "plain literal",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: 'a IN (SELECT 1)'}]",
        "spec.rowFilters[0].predicate",
        "not built yet",
    ),
    (
        "rowFilters: [{name: f, tables: [a.b], predicate: ''}]",
        "spec.rowFilters[0].predicate",
        "must not be empty",
    ),
    (
        "rowFilters: [{name: f, tables: [b], predicate: 'a = 1'}]",
        "spec.rowFilters[0].tables[0]",
        "names no schema",
    ),
    // Guardrails.
    (
        "guardrails: {requireWhere: [Insert]}",
        "spec.guardrails.requireWhere[0]",
        "known are Update, Delete",
    ),
    (
        "guardrails: {requireWhere: true}",
        "spec.guardrails.requireWhere",
        "must be a list",
    ),
    (
        "guardrails: {maxAffectedRows: -1}",
        "spec.guardrails.maxAffectedRows",
        "it must be from 0",
    ),
    (
        "guardrails: {maxReturnedRows: 0}",
        "spec.guardrails.maxReturnedRows",
        "it must be from 1",
    ),
    (
        "guardrails: {statementTimeoutSeconds: 30s}",
        "spec.guardrails.statementTimeoutSeconds",
        "must be a whole number",
    ),
    (
        "guardrails: {statementTimeout: 30}",
        "spec.guardrails.statementTimeout",
        "did you mean \"statementTimeoutSeconds\"",
    ),
    (
        "guardrails: {functions: {userDefined: Ask}}",
        "spec.guardrails.functions.userDefined",
        "known are",
    ),
    (
        "guardrails: {functions: {deny: ['*_raw']}}",
        "spec.guardrails.functions.deny[0]",
        "at the end only",
    ),
    (
        "guardrails: {channels: ['']}",
        "spec.guardrails.channels[0]",
        "must not be empty",
    ),
    (
        "guardrails: {serverAccess: {file: Allow}}",
        "spec.guardrails.serverAccess.file",
        "did you mean \"files\"",
    ),
    ("receipts: {mode: Lax}", "spec.receipts.mode", "known are"),
    ("receipts: Durable", "spec.receipts", "must be a map"),
];

#[test]
fn a_session_that_writes_is_wanted_at_the_host_and_not_at_its_replicas() {
    let text = manifest(
        "database: {engine: PostgreSQL, host: a, otherEndpoints: [{host: a-ro, port: 5432}], targetSession: ReadWrite}",
    );
    let set = compile_one(&text).unwrap();
    for (host, target) in [("a", TargetSession::ReadWrite), ("a-ro", TargetSession::Any)] {
        let endpoint = Endpoint::new(host, 5432).unwrap();
        assert_eq!(
            set.for_database(&endpoint).target_session(&endpoint),
            target,
            "{host}"
        );
    }
}

#[test]
fn every_wrong_field_is_named_with_its_place_and_its_mend() {
    assert!(WRONG.len() >= 60);
    let mut failures = Vec::new();
    for (spec, field, message) in WRONG {
        let text = manifest(spec);
        let Err(problems) = compile_one(&text) else {
            failures.push(format!("accepted: {spec}"));
            continue;
        };
        let right = problems.iter().any(|problem| {
            problem.field == *field
                && problem.message.contains(message)
                && problem.file == "shop.yaml"
                && (1..=text.lines().count()).contains(&problem.line)
                && problem.column >= 1
        });
        if !right {
            failures.push(format!("{spec}: {problems:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn places_are_those_of_the_value() {
    let text = manifest(
        "masks:\n- name: a\n  columns: [public.t.c]\n  mask: {type: Email}\n- name: b\n  columns:\n  - public.t\n  mask: {type: Email}",
    );
    let problems = compile_one(&text).unwrap_err();
    let [problem] = problems.as_slice() else {
        panic!("{problems:#?}")
    };
    let line = text.lines().nth(problem.line - 1).unwrap();
    assert_eq!(line.get(problem.column - 1..), Some("public.t"), "{problem}");
    assert_eq!(
        problem.to_string(),
        "shop.yaml:13:7: spec.masks[1].columns[0]: \"public.t\" has too few parts; a column is written schema.table.column"
    );
}

#[test]
fn all_problems_of_all_files_are_told() {
    let files = [
        ("a.yaml", manifest("mode: x\nbudgets: []")),
        ("b.yaml", "a: [".to_owned()),
        (
            "c.yaml",
            "kind: Pod\napiVersion: v1\n---\nkind: DatabaseAccesPolicy\n".to_owned(),
        ),
    ];
    let files = files.map(|(name, text)| Manifest {
        name: name.to_owned(),
        text,
    });
    let problems = compile(&files).unwrap_err();
    let count = |file: &str| problems.iter().filter(|problem| problem.file == file).count();
    assert_eq!(
        (count("a.yaml"), count("b.yaml"), count("c.yaml")),
        (2, 1, 2),
        "{problems:#?}"
    );
    assert!(
        problems
            .iter()
            .any(|problem| problem.message.contains("did you mean \"DatabaseAccessPolicy\""))
    );
}

#[test]
fn documents_are_held_to_their_frame() {
    for (text, field, message) in [
        ("apiVersion: v1\nkind: List\nitems: []", "kind", "known are"),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: LineageSink",
            "kind",
            "keep it out of this folder",
        ),
        (
            "kind: DatabaseAccessPolicy\nmetadata: {name: a}\nspec: {}",
            "apiVersion",
            "is required",
        ),
        (
            "apiVersion: weir.dev/v1\nkind: DatabaseAccessPolicy\nmetadata: {name: a}\nspec: {}",
            "apiVersion",
            "this version reads",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {}",
            "metadata.name",
            "is required",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: A_b}",
            "metadata.name",
            "lower-case",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: '***'}",
            "data.k",
            "not base64",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringdata: {k: v}",
            "stringdata",
            "did you mean \"stringData\"",
        ),
        ("text", "kind", "is required"),
    ] {
        let problems = compile_one(text).unwrap_err();
        let found = problems.iter().find(|problem| problem.field == field);
        let found = found.unwrap_or_else(|| panic!("{text}: {problems:#?}"));
        assert!(found.message.contains(message), "{text}: {found}");
    }
}

#[test]
fn two_of_a_name_and_two_minds_about_one_database_are_told() {
    let twice = format!("{}---\n{}", manifest(""), manifest("mode: Audit"));
    let problems = compile_one(&twice).unwrap_err();
    assert!(
        problems.iter().any(|problem| problem.field == "metadata.name"),
        "{problems:#?}"
    );
    let other = |spec: &str| manifest(spec).replace("name: shop,", "name: other,");
    let host = "database: {engine: PostgreSQL, host: DB.shop.svc., tls: ";
    for (left, right, field) in [
        ("{mode: VerifyFull}}", "{mode: VerifyCA}}", "spec.database.tls"),
        (
            "{mode: VerifyFull}, credentials: {secretRef: {name: a}}}",
            "{mode: VerifyFull}, credentials: {secretRef: {name: b}}}",
            "spec.database.credentials",
        ),
    ] {
        let text = format!(
            "{}---\n{}",
            manifest(&format!("{host}{left}")),
            other(&format!("{host}{right}"))
        );
        let problems = compile_one(&text).unwrap_err();
        let [problem] = problems.as_slice() else {
            panic!("{problems:#?}")
        };
        assert_eq!(problem.field, field);
        assert!(problem.message.contains("store/shop"), "{problem}");
    }
}

#[test]
fn a_whole_policy_means_what_it_says() {
    let text = manifest(
        "mode: Enforce\n\
         podSelector: {matchLabels: {app: report-agent}}\n\
         database:\n  engine: PostgreSQL\n  host: Orders-DB.shop.svc.\n  port: 5433\n  \
         otherEndpoints: [{host: '[::1]'}]\n  name: orders\n  \
         tls: {mode: VerifyFull, caSecretRef: {name: orders-ca, key: ca.crt}}\n  \
         credentials: {secretRef: {name: orders-login}}\n\
         classifications:\n- {label: pii.email, columns: ['ward.\"Person\".\"E Mail\"']}\n\
         access:\n- {name: read, subjects: [{serviceAccount: report-agent}], actions: [Select], tables: [Public.Orders, ward.*]}\n\
         - {name: no-ddl, effect: Deny, actions: [DDL]}\n\
         masks:\n- {name: contact, columnLabels: [pii.*], mask: {type: Partial, keepLast: 4}, exceptSubjects: [{group: leads}]}\n\
         rowFilters:\n- {name: own, tables: [public.orders], predicate: 'tenant_id = :claims.tenant'}\n\
         guardrails: {requireWhere: [Update, Delete], maxAffectedRows: 0, functions: {deny: ['dblink*']}, channels: ['jobs_*'], serverAccess: {files: Allow}}\n\
         receipts: {mode: Strict}",
    );
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: orders-login, namespace: store}\n\
                  data: {username: d2Vpcg==}\nstringData: {password: hunter2}\n";
    let set = compile_one(&format!("{text}{secret}")).unwrap();
    let endpoint = Endpoint::new("orders-db.shop.svc", 5433).unwrap();
    let six = Endpoint::new("::1", 5432).unwrap();
    assert_eq!(
        set.endpoints().into_iter().collect::<Vec<_>>(),
        [six.clone(), endpoint]
    );
    assert_eq!(
        set.databases(),
        [Endpoint::new("orders-db.shop.svc", 5433).unwrap()]
    );
    let database = set.for_database(&six);
    assert_eq!(database.names().collect::<Vec<_>>(), ["store/shop"]);
    assert!(database.for_name("other").is_none());
    assert!(database.for_name("orders").is_some());
    let policy = &database.policies[0];
    assert!(policy.access[0].tables[0].matches("public", "orders"));
    assert!(policy.access[0].tables[1].matches("ward", "Person"));
    assert_eq!(policy.access[1].effect, Effect::Deny);
    assert_eq!(policy.classifications[0].1.column, "E Mail");
    assert_eq!(
        policy.masks[0].mask,
        MaskSpec::Partial {
            keep_first: 0,
            keep_last: 4
        }
    );
    assert_eq!(
        policy.masks[0].except,
        [SubjectPattern::Group("leads".to_owned())]
    );
    assert_eq!(
        policy.row_filters[0].predicate.claims().collect::<Vec<_>>(),
        ["tenant"]
    );
    assert_eq!(policy.guardrails.max_affected_rows, Some(0));
    let login = database.credentials().unwrap();
    let bytes = set.secret(&login.username, &NoSecrets).unwrap();
    assert_eq!(bytes.expose(), b"weir");
    let printed = format!("{set:?} {bytes:?}");
    assert!(
        !printed.contains("hunter2") && !printed.contains("119, 101"),
        "{printed}"
    );
    let absent = SecretKey {
        key: "absent".to_owned(),
        ..login.username
    };
    assert!(set.secret(&absent, &NoSecrets).is_none());
}

#[test]
fn policies_that_share_an_endpoint_are_one_database() {
    let policy = |name: &str, hosts: &[&str]| {
        let others: Vec<String> = hosts
            .iter()
            .skip(1)
            .map(|host| format!("{{host: {host}}}"))
            .collect();
        manifest(&format!(
            "database: {{engine: PostgreSQL, host: {}, otherEndpoints: [{}]}}",
            hosts[0],
            others.join(", ")
        ))
        .replace("name: shop,", &format!("name: {name},"))
    };
    let text = [
        policy("one", &["a", "b"]),
        policy("two", &["B.", "c"]),
        policy("three", &["d"]),
    ]
    .join("---\n");
    let set = compile_one(&text).unwrap();
    let names = |host: &str| -> Vec<String> {
        let database = set.for_database(&Endpoint::new(host, 5432).unwrap());
        database.names().map(str::to_owned).collect()
    };
    assert_eq!(names("a"), ["store/one", "store/two"]);
    assert_eq!(names("c"), ["store/one", "store/two"]);
    assert_eq!(names("d"), ["store/three"]);
    assert!(names("e").is_empty());
    assert_eq!(set.databases().len(), 2);
}

#[test]
fn hostile_yaml_is_bounded() {
    let deep = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let large = format!("# {}\n", "x".repeat(5 << 20));
    for text in [deep.as_str(), bomb, large.as_str(), "a: \u{0}", "\t- x"] {
        assert!(compile_one(text).is_err());
    }
}
