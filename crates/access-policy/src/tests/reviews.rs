//! What admission says, of every manifest under `tests/manifests` and of policies that may surprise.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use test_support::workspace_root;

use super::manifests::manifest;
use crate::{Manifest, Review, check_files, compile, review, review_sink};

fn object(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

/// The object as the API server sends it: with all that it adds.
fn stored(text: &str) -> Value {
    let mut object = object(text);
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.insert("uid".to_owned(), json!("6f6b"));
    metadata.insert("generation".to_owned(), json!(1));
    metadata.insert("creationTimestamp".to_owned(), Value::Null);
    metadata.insert(
        "managedFields".to_owned(),
        json!([{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {".": {}}}}]),
    );
    metadata.insert("aFieldOfLater".to_owned(), json!({"a": [1.5]}));
    object["status"] = json!({"conditions": [], "matchedPods": 1});
    object
}

fn reviewed(object: &Value) -> Review {
    if object["kind"] == "LineageSink" {
        review_sink(object, "weir-system")
    } else {
        review(object, &[])
    }
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = workspace_root().join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

fn header<'t>(text: &'t str, key: &str) -> &'t str {
    let start = format!("# {key}: ");
    text.lines().find_map(|line| line.strip_prefix(&start)).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_wrong_manifest_is_refused_with_what_to_do() {
    let files = files("tests/manifests/wrong");
    assert!(files.len() >= 80, "{}", files.len());
    let mut failures = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let (field, says) = (header(&text, "field"), header(&text, "says"));
        let review = reviewed(&stored(&text));
        let right = review
            .problems
            .iter()
            .any(|problem| problem.field == field && problem.message.contains(says));
        if !right {
            failures.push(format!("{}: {:#?}", name(&path), review.problems));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// `weir check -f` says what admission would say, and where in the file.
#[test]
fn files_are_told_what_admission_would_say() {
    let manifest = |path: &Path| Manifest {
        name: name(path),
        text: std::fs::read_to_string(path).unwrap(),
    };
    let mut failures = Vec::new();
    for path in files("tests/manifests/wrong") {
        let manifest = manifest(&path);
        let (field, says) = (header(&manifest.text, "field"), header(&manifest.text, "says"));
        let problems = check_files(std::slice::from_ref(&manifest), "weir-system");
        let right = problems
            .iter()
            .any(|problem| problem.field == field && problem.message.contains(says) && problem.line > 1);
        if !right {
            failures.push(format!("{}: {problems:#?}", manifest.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let right: Vec<Manifest> = files("tests/manifests/right")
        .iter()
        .map(|path| manifest(path))
        .collect();
    let problems = check_files(&right, "weir-system");
    let open: Vec<_> = problems
        .iter()
        .filter(|problem| problem.file != "warns-of-a-label-of-nothing.yaml")
        .collect();
    assert!(open.is_empty(), "{open:#?}");
    // What is not ours is passed over, what is nearly ours is not.
    let other = |text: &str| Manifest {
        name: "other.yaml".to_owned(),
        text: text.to_owned(),
    };
    let deployment = other("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {x: [1.5]}");
    assert_eq!(check_files(&[deployment], "weir-system"), []);
    let misspelt = other("apiVersion: weir.dev/v1alpha1\nkind: LineageSinks\nmetadata: {name: a}");
    let problems = check_files(&[misspelt], "weir-system");
    assert!(
        problems[0].message.contains("did you mean \"LineageSink\"?"),
        "{problems:?}"
    );
}

#[test]
fn every_right_manifest_and_example_is_accepted() {
    let mut seen = 0;
    for path in files("tests/manifests/right")
        .into_iter()
        .chain(files("deploy/examples/policies"))
    {
        let text = std::fs::read_to_string(&path).unwrap();
        let object = stored(&text);
        if object["kind"] == "Secret" {
            continue;
        }
        seen += 1;
        let review = reviewed(&object);
        assert_eq!(review.problems, [], "{}", path.display());
        if path.starts_with(workspace_root().join("tests")) {
            let said = text.lines().filter_map(|line| line.strip_prefix("# warns: "));
            let said: Vec<&str> = said.collect();
            let told = review.warnings.iter().zip(&said);
            assert!(
                review.warnings.len() == said.len()
                    && told.into_iter().all(|(warning, said)| warning.contains(said)),
                "{}: {:?}",
                path.display(),
                review.warnings
            );
        }
    }
    assert!(seen >= 20, "{seen}");
}

/// What the webhook lets in, the sidecar and the operator's reconciler compile, with all that the API server added.
#[test]
fn what_is_accepted_compiles_as_json() {
    for path in files("tests/manifests/right") {
        let mut object = stored(&std::fs::read_to_string(&path).unwrap());
        // Another policy may bring the label: the warning says that nothing is in force until then.
        let whole = name(&path) != "warns-of-a-label-of-nothing.yaml";
        if whole && object["kind"] == "DatabaseAccessPolicy" {
            object["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("aFieldOfLater");
            let manifest = Manifest {
                name: name(&path),
                text: object.to_string(),
            };
            compile(&[manifest]).unwrap_or_else(|problems| panic!("{problems:#?}"));
        }
    }
}

/// (spec, part of the one warning beside those of the frame)
const SURPRISING: &[(&str, &str)] = &[
    ("mode: Audit", "spec.mode: Audit"),
    ("podSelector: {}", "selects every pod"),
    ("podSelector: {matchLabels: {}}", "selects every pod"),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: Disable}}",
        "in the clear",
    ),
    (
        "database: {engine: PostgreSQL, host: a, tls: {mode: Require}}",
        "does not check who answers",
    ),
    (
        "database: {engine: PostgreSQL, host: a, port: 3306}",
        "usually a port of MySQL",
    ),
    (
        "database: {engine: PostgreSQL, host: shop-mysql.shop.svc}",
        "looks like mysql",
    ),
    (
        "access: [{name: read, actions: [Select], tables: [a.b]}, {name: not, effect: Deny, actions: [Select], tables: ['a.*']}]",
        "read never allows anything, because not denies all of it",
    ),
    (
        "access: [{name: read, actions: [Select]}, {name: not, effect: Deny, actions: [Select, Insert]}]",
        "read never allows anything",
    ),
    (
        "access: [{name: read, actions: [Select], subjects: [{group: g}]}]",
        "read holds for nobody",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Email}, exceptSubjects: [{group: g}]}]",
        "excepts nobody",
    ),
    (
        "masks: [{name: m, columns: [a.b.customer_id], mask: {type: 'Null'}}]",
        "a.b.customer_id looks like a key",
    ),
    (
        "masks: [{name: m, columns: [a.b.c], mask: {type: Email}}, {name: o, columns: [a.b.c], mask: {type: 'Null'}}]",
        "m never shows, because mask o",
    ),
    (
        "defaultAction: Allow\nmasks: [{name: m, columns: [a.b.c], mask: {type: Email}}]",
        "Allow lets pass what no rule denies",
    ),
    (
        "guardrails: {functions: {userDefined: Allow}}\nmasks: [{name: m, columns: [a.b.c], mask: {type: Email}}]",
        "code that is not seen",
    ),
    ("guardrails: {maxAffectedRows: 0}", "refuses every UPDATE"),
];

fn policy(spec: &str) -> Value {
    let mut spec = spec.to_owned();
    if !spec.contains("podSelector:") {
        spec.push_str("\npodSelector: {matchLabels: {app: a}}");
    }
    object(&manifest(&spec))
}

#[test]
fn what_may_surprise_is_told_once() {
    for (spec, words) in SURPRISING {
        let review = review(&policy(spec), &[]);
        assert_eq!(review.problems, [], "{spec}");
        let told: Vec<_> = review
            .warnings
            .iter()
            .filter(|warning| warning.contains(words))
            .collect();
        assert_eq!(told.len(), 1, "{spec}: {:?}", review.warnings);
        assert_eq!(review.warnings.len(), 1, "{spec}: {:?}", review.warnings);
        assert!(
            review
                .warnings
                .iter()
                .all(|warning| warning.chars().count() <= 256),
            "{spec}"
        );
    }
}

#[test]
fn what_is_usual_is_not_warned_of() {
    for spec in [
        "mode: Enforce",
        "access: [{name: read, actions: [Select, Insert]}, {name: not, effect: Deny, actions: [Select]}]",
        "access: [{name: read, actions: [Select]}, {name: not, effect: Deny, actions: [Select], subjects: [{serviceAccount: s}]}]",
        "access: [{name: read, actions: [Select], tables: ['a.*']}, {name: not, effect: Deny, actions: [Select], tables: [a.b]}]",
        "access: [{name: read, actions: [Select], tables: [a.b]}, {name: not, effect: Deny, actions: [Select], columns: [a.b.c]}]",
        "masks: [{name: m, columns: [a.b.c, a.b.d], mask: {type: Email}}, {name: o, columns: [a.b.c], mask: {type: 'Null'}}]",
        "masks: [{name: m, columns: [a.b.c], mask: {type: Email}}, {name: o, columns: [a.b.c], mask: {type: 'Null'}, exceptSubjects: [{serviceAccount: s}]}]",
        "masks: [{name: m, columns: [a.b.paid], mask: {type: 'Null'}}]",
    ] {
        let review = review(&policy(spec), &[]);
        assert_eq!((review.problems, review.warnings), (vec![], vec![]), "{spec}");
    }
}

fn other(spec: &str, name: &str) -> Value {
    let mut other = policy(spec);
    other["metadata"]["name"] = json!(name);
    other
}

#[test]
fn others_count_where_a_pod_may_meet_both() {
    let plain = policy("database: {engine: PostgreSQL, host: a, tls: {mode: Disable}}");
    let verified = other(
        "database: {engine: PostgreSQL, host: A., tls: {mode: VerifyFull}}",
        "x",
    );
    let problems = review(&plain, &[&verified]).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].field, "spec.database.tls");
    assert!(
        problems[0].message.contains("differs from policy store/x"),
        "{problems:?}"
    );
    // What is left out agrees with anything; nor do pods of other labels or namespaces, or the policy's own past count.
    let mut elsewhere = verified.clone();
    elsewhere["metadata"]["namespace"] = json!("elsewhere");
    let mut other_pods = verified.clone();
    other_pods["spec"]["podSelector"] = json!({"matchLabels": {"app": "b"}});
    let mut before = verified.clone();
    before["metadata"]["name"] = plain["metadata"]["name"].clone();
    let silent = other("database: {engine: PostgreSQL, host: a}", "y");
    for other in [&elsewhere, &other_pods, &before, &silent] {
        assert_eq!(review(&plain, &[other]).problems, [], "{other}");
    }
}

#[test]
fn a_label_of_another_policy_is_known() {
    let masks = policy("masks: [{name: m, columnLabels: ['pii.*'], mask: {type: Email}}]");
    let alone = review(&masks, &[]);
    assert!(
        alone.warnings[0].contains("no policy of this database classifies"),
        "{alone:?}"
    );
    // Policies come one after another: nothing is refused for what the next one may bring.
    assert_eq!(alone.problems, []);
    let labels = other(
        "classifications: [{label: pii.email, columns: [a.b.c]}]",
        "labels",
    );
    assert_eq!(review(&masks, &[&labels]), Review::default());
}

#[test]
fn a_value_is_repeated_and_a_generated_name_is_a_name() {
    let mut policy = policy("mode: Enforced");
    policy["metadata"] = json!({"generateName": "shop-", "namespace": "store"});
    let problems = review(&policy, &[]).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].value.as_deref(), Some("\"Enforced\""));
    assert!(
        problems[0].to_string().contains("did you mean \"Enforce\"?"),
        "{}",
        problems[0]
    );
}
