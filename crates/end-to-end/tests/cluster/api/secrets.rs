//! Who writes a policy or a sink must be able to read the Secrets that it names.

use super::{Answers, Test, backstop, path_of};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "every_field_that_names_a_secret_is_asked_for",
        every_field_that_names_a_secret_is_asked_for,
    ),
    (
        "who_names_a_secret_must_be_able_to_read_it",
        who_names_a_secret_must_be_able_to_read_it,
    ),
];

/// All three may write policies and sinks. Alice may read the Secret `known`, carol all, bob none.
const PEOPLE: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: write, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-policy-admin}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: read-known, namespace: shop}
rules: [{apiGroups: [''], resources: [secrets], resourceNames: [known], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: read-known, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: read-known}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: read-all, namespace: shop}
rules: [{apiGroups: [''], resources: [secrets], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: read-all, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: read-all}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}]
";

fn policy(database: Value, masks: Value) -> Value {
    let mut whole = json!({"engine": "PostgreSQL", "host": "orders-db.shop.svc"});
    if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), database) {
        whole.extend(more);
    }
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"podSelector": {}, "database": whole, "masks": masks},
    })
}

fn mask(rule: &str, secret: &str) -> Value {
    json!({"name": rule, "columns": ["public.a.b"],
        "mask": {"type": "Hash", "keySecretRef": {"name": secret, "key": "k"}}})
}

fn sink(secret: &str) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink", "metadata": {"name": "marquez", "namespace": "shop"},
        "spec": {"openLineage": {"url": "https://marquez.example.com/", "tokenSecretRef": {"name": secret, "key": "k"}}},
    })
}

/// Every place where a spec can name a Secret, naming this one.
fn places(secret: &str) -> Vec<(&'static str, Value)> {
    vec![
        (
            "credentials",
            policy(json!({"credentials": {"secretRef": {"name": secret}}}), json!([])),
        ),
        (
            "authority",
            policy(
                json!({"tls": {"caSecretRef": {"name": secret, "key": "ca.crt"}}}),
                json!([]),
            ),
        ),
        (
            "certificate",
            policy(
                json!({"clientTLS": {"mode": "Serve", "certificateSecretRef": {"name": secret}},
                    "tls": {"mode": "Disable"}}),
                json!([]),
            ),
        ),
        (
            "second mask",
            policy(json!({}), json!([mask("one", "known"), mask("two", secret)])),
        ),
        ("sink", sink(secret)),
    ]
}

fn who_names_a_secret_must_be_able_to_read_it(release: Release) -> Result<()> {
    let server = backstop(release)?;
    let kubectl = server.kubectl();
    kubectl.apply("shop", PEOPLE)?;
    let mut answers = Answers::of(&server);
    let many = |count: usize| -> Value {
        (0..count)
            .map(|at| mask(&format!("m{at}"), &format!("s{}", at / 2)))
            .collect()
    };
    let mut cases = vec![
        (
            "no Secret",
            policy(json!({}), json!([])),
            vec!["alice", "bob", "carol"],
        ),
        (
            "twelve Secrets, each twice",
            policy(json!({}), many(24)),
            vec!["carol"],
        ),
        ("thirteen", policy(json!({}), many(25)), vec![]),
    ];
    cases.extend(
        places("known")
            .into_iter()
            .map(|(what, object)| (what, object, vec!["alice", "carol"])),
    );
    cases.extend(
        places("other")
            .into_iter()
            .map(|(what, object)| (what, object, vec!["carol"])),
    );
    for (what, object, may) in &cases {
        for user in ["alice", "bob", "carol"] {
            let words = match (*what, user) {
                ("thirteen", "carol") => "names more than 12 Secrets; keep several keys in one Secret",
                _ => "which you may not read; ask for the right to get it",
            };
            answers.expect(
                &format!("{user}, {what}: {object}"),
                &["create", &format!("--as={user}"), "--dry-run=server", "-f", "-"],
                Some(object),
                (!may.contains(&user)).then_some(words),
            )?;
        }
    }
    // Labels may change without the right, what the spec says may not: a host is where the password goes.
    let stored = policy(
        json!({"credentials": {"secretRef": {"name": "other"}}}),
        json!([]),
    );
    kubectl.apply("shop", &stored.to_string())?;
    let names = Some("the policy names the Secret other, which you may not read");
    for (user, patch, refused) in [
        ("bob", json!({"metadata": {"labels": {"a": "b"}}}), None),
        (
            "bob",
            json!({"metadata": {"finalizers": ["example.com/a"]}}),
            None,
        ),
        (
            "bob",
            json!({"spec": {"database": {"host": "evil.example.com"}}}),
            names,
        ),
        (
            "bob",
            json!({"spec": {"podSelector": {"matchLabels": {"app": "mine"}}}}),
            names,
        ),
        ("bob", json!({"spec": {"database": {"credentials": null}}}), None),
        (
            "carol",
            json!({"spec": {"database": {"host": "evil.example.com"}}}),
            None,
        ),
    ] {
        let patch = patch.to_string();
        answers.expect(
            &format!("{user}: {patch}"),
            &[
                "patch",
                &format!("--as={user}"),
                "-n",
                "shop",
                "dap",
                "orders",
                "--type=merge",
                "--dry-run=server",
                "-p",
                &patch,
            ],
            None,
            refused,
        )?;
    }
    answers.finish(40)
}

/// A field that comes later must not be forgotten here.
fn every_field_that_names_a_secret_is_asked_for(release: Release) -> Result<()> {
    fn walk(schema: &Value, found: &mut BTreeSet<String>) {
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            if name.to_lowercase().contains("secret") {
                found.insert(name.clone());
            }
            walk(child, found);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = schema.get(key) {
                walk(child, found);
            }
        }
    }
    let said = test_support::cluster::helm()?.helm(&[
        "template",
        "weir",
        &path_of("charts/weir")?,
        &format!("--kube-version={}.0", release.name()),
        "--show-only=templates/admission/secrets.yaml",
    ])?;
    for (plural, least) in [("databaseaccesspolicies", 4), ("lineagesinks", 1)] {
        let crd: Value = serde_yaml::from_str(&std::fs::read_to_string(path_of(&format!(
            "crds/{plural}.weir.dev.yaml"
        ))?)?)?;
        let spec = crd
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .context("a spec")?;
        let mut fields = BTreeSet::new();
        walk(spec, &mut fields);
        ensure!(fields.len() >= least, "only {fields:?}");
        let rule = said
            .split("\n---\n")
            .find(|it| it.contains(&format!("resources: [{plural}]")))
            .context("no rule for it")?;
        for field in fields {
            ensure!(
                rule.contains(&format!(".?{field}.")),
                "{plural}: {field} is not asked for"
            );
        }
    }
    Ok(())
}
