//! The definitions of our resources, as an API server takes and tells them.

use super::{Test, server};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_support::cluster::{Kubectl, Release};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("explain_tells_every_field", explain_tells_every_field),
    (
        "columns_tell_what_the_status_says",
        columns_tell_what_the_status_says,
    ),
    ("a_sink_stays_of_its_kind", a_sink_stays_of_its_kind),
];

/// Words without the line breaks of a terminal.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Explains a field and all below it: each child with its type and its own words.
fn explain(kubectl: &Kubectl, path: &str, schema: &Value, fields: &mut usize) -> Result<()> {
    let node = schema.get("items").unwrap_or(schema);
    let Some(children) = node.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };
    let told = kubectl.run(&["explain", path])?;
    ensure!(
        !told.contains("<no description>") && !told.contains("Auto-generated"),
        "{told}"
    );
    let told = words(&told);
    for (name, child) in children {
        // What each object has is Kubernetes' own.
        if path.contains('.') || name == "spec" || name == "status" {
            let text = child["description"].as_str().unwrap_or_default();
            ensure!(text.len() >= 5, "{path}.{name} has no description");
            ensure!(
                told.contains(&words(text)),
                "{path} does not say of {name}: {text}\n{told}"
            );
            *fields += 1;
            explain(kubectl, &format!("{path}.{name}"), child, fields)?;
        }
    }
    Ok(())
}

fn explain_tells_every_field(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    let version = kubectl.run(&["version"])?;
    ensure!(
        version.contains(&format!("Server Version: v{}.", release.name())),
        "another release: {version}"
    );
    let mut fields = 0;
    for (short, definition) in [
        ("dap", "databaseaccesspolicies.weir.dev"),
        ("lsink", "lineagesinks.weir.dev"),
    ] {
        // Discovery lags behind `Established` by a moment.
        kubectl.wait(&["explain", short], 20, |out| out.contains("FIELDS"))?;
        let stored: Value = serde_json::from_str(&kubectl.run(&["get", "crd", definition, "-o", "json"])?)?;
        let schema = &stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        explain(kubectl, short, schema, &mut fields)?;
    }
    ensure!(fields >= 100, "only {fields} fields");
    // The text that is named in the docs, as a reader meets it.
    let masks = words(&kubectl.run(&["explain", "dap.spec.masks"])?);
    for said in [
        "KIND: DatabaseAccessPolicy",
        "Of several masks on one column the strictest counts",
        "columnLabels <[]string>",
        "name <string> -required-",
    ] {
        ensure!(masks.contains(said), "`{said}` is not in: {masks}");
    }
    let kind = words(&kubectl.run(&["explain", "dap.spec.masks.mask.type"])?);
    ensure!(
        kind.contains("ENUM: Null Constant Partial Email DateTrunc Hash"),
        "{kind}"
    );
    Ok(())
}

/// Head and rows of a table, cell by cell. Columns are told apart by two blanks or more.
fn table(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    text.lines().map(cells).collect()
}

fn columns_tell_what_the_status_says(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    let policy = "{apiVersion: weir.dev/v1alpha1, kind: DatabaseAccessPolicy, metadata: {name: orders}, \
                  spec: {podSelector: {}, database: {engine: PostgreSQL, host: orders-db.shop.svc}}}";
    let sink =
        "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: out}, spec: {stdout: {}}}";
    kubectl.apply("default", policy)?;
    kubectl.apply("default", sink)?;
    let ready = json!({"type": "Ready", "status": "False", "reason": "Uninjected",
        "message": "1 of 3 pods runs without a sidecar", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    for (object, status) in [
        (
            "dap/orders",
            json!({"matchedPods": 3, "enforcedPods": 2, "conditions": [ready]}),
        ),
        (
            "lsink/out",
            json!({"delivered": 12, "lag": 4, "conditions": [ready]}),
        ),
    ] {
        let patch = json!({"status": status}).to_string();
        kubectl.run(&[
            "patch",
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
    }
    for (arguments, head, row) in [
        (
            ["get", "dap", "-o", "wide"],
            "NAME READY REASON MODE MATCHED ENFORCED AGE HOST MESSAGE",
            "orders False Uninjected Enforce 3 2 * orders-db.shop.svc 1 of 3 pods runs without a sidecar",
        ),
        (
            ["get", "dap", "-o", ""],
            "NAME READY REASON MODE MATCHED ENFORCED AGE",
            "orders False Uninjected Enforce 3 2 *",
        ),
        (
            ["get", "lsink", "-o", "wide"],
            "NAME READY REASON DELIVERED LAG AGE MESSAGE",
            "out False Uninjected 12 4 * 1 of 3 pods runs without a sidecar",
        ),
        (
            ["get", "lsink", "-o", ""],
            "NAME READY REASON DELIVERED LAG AGE",
            "out False Uninjected 12 4 *",
        ),
    ] {
        let said = kubectl.run(&arguments)?;
        let rows = table(&said);
        let first = rows.first().context("a head")?;
        ensure!(first.join(" ") == head, "{said}");
        let age = first.iter().position(|name| name == "AGE").context("AGE")?;
        let mut cells = rows.get(1).context("a row")?.clone();
        let shown = cells.get_mut(age).context("an age")?;
        ensure!(shown.ends_with('s'), "{said}");
        "*".clone_into(shown);
        ensure!(cells.join(" ") == row, "{said}");
    }
    // Both kinds under the category, and by their short names.
    let both = kubectl.run(&["get", "weir", "-o", "name"])?;
    ensure!(
        both.contains("databaseaccesspolicy.weir.dev/orders") && both.contains("lineagesink.weir.dev/out"),
        "{both}"
    );
    Ok(())
}

fn a_sink_stays_of_its_kind(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    let head = "apiVersion: weir.dev/v1alpha1\nkind: LineageSink\nmetadata: {name: out}\nspec:\n";
    kubectl.apply("default", &format!("{head}  stdout: {{}}\n"))?;
    let other = format!("{head}  openLineage: {{url: 'https://marquez.data.svc/api/v1/lineage'}}\n");
    let said = kubectl.try_with(&["apply", "-n", "default", "-f", "-"], &other)?;
    ensure!(
        !said.ok
            && said.err.contains("the kind of a sink cannot change")
            && said.err.contains("make another LineageSink"),
        "{}",
        said.err
    );
    Ok(())
}
