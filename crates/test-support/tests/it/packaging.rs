//! What the charts hold and what the docs say of it, as text. What helm makes of them is tested with the cluster's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use test_support::workspace_root;

/// Role, API group, resources, names, verbs: as docs/rbac.md writes them.
type Right = (String, String, String, String, String);

fn read(path: &str) -> String {
    let path = workspace_root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn templates(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            templates(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Every role of the chart. Rules hold no template expression, so that lines with one can be left out.
fn roles() -> BTreeMap<String, Vec<Value>> {
    let mut files = Vec::new();
    templates(&workspace_root().join("charts/weir/templates"), &mut files);
    let mut roles = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for document in text.split("\n---\n") {
            let document: String = document
                .lines()
                .filter(|line| !line.contains("{{"))
                .flat_map(|line| [line, "\n"])
                .collect();
            let kind = ["ClusterRole", "Role"]
                .into_iter()
                .find(|kind| document.lines().any(|line| line == format!("kind: {kind}")));
            let Some(kind) = kind else { continue };
            let role: Value = serde_yaml::from_str(&document)
                .unwrap_or_else(|error| panic!("{}: {error}\n{document}", file.display()));
            let name = role["metadata"]["name"].as_str().unwrap();
            let rules = role["rules"].as_array().unwrap().clone();
            assert!(
                roles.insert(format!("{kind} {name}"), rules).is_none(),
                "{kind} {name} twice"
            );
        }
    }
    roles
}

fn list(value: &Value, of_none: &str) -> String {
    let items: Vec<&str> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| item.as_str().unwrap())
        .collect();
    match items.as_slice() {
        [] => of_none.to_owned(),
        [""] => "core".to_owned(),
        items => items.join(", "),
    }
}

fn rights_of_chart() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for (role, rules) in roles() {
        for rule in rules {
            rights.insert((
                role.clone(),
                list(&rule["apiGroups"], "none"),
                list(&rule["resources"], "none"),
                list(&rule["resourceNames"], "any"),
                list(&rule["verbs"], "none"),
            ));
        }
    }
    rights
}

fn rights_of_docs() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let mut role = String::new();
    for line in read("docs/rbac.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            role = title.to_owned();
        }
        let Some(row) = line.strip_prefix("| ") else {
            continue;
        };
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let [group, resources, names, verbs, why] = cells.as_slice() else {
            panic!("five columns, not {line}")
        };
        if *group == "API group" {
            continue;
        }
        assert!(
            why.len() >= 8 && why.ends_with('.'),
            "{role}: no reason in {line}"
        );
        rights.insert((
            role.clone(),
            (*group).to_owned(),
            (*resources).to_owned(),
            (*names).to_owned(),
            (*verbs).to_owned(),
        ));
    }
    rights
}

#[test]
fn every_right_has_its_reason_in_the_docs() {
    let (chart, docs) = (rights_of_chart(), rights_of_docs());
    assert!(chart.len() > 10, "only {} rights were found", chart.len());
    let unexplained: Vec<_> = chart.difference(&docs).collect();
    let gone: Vec<_> = docs.difference(&chart).collect();
    assert!(
        unexplained.is_empty() && gone.is_empty(),
        "in the chart, not in docs/rbac.md: {unexplained:#?}\nin docs/rbac.md, not in the chart: {gone:#?}"
    );
}

#[test]
fn no_role_of_all_namespaces_reaches_secrets_or_everything() {
    for (role, group, resources, names, verbs) in rights_of_chart() {
        assert!(
            ![&group, &resources, &names, &verbs]
                .iter()
                .any(|cell| cell.contains('*')),
            "{role}"
        );
        if role.starts_with("ClusterRole") {
            for forbidden in ["secrets", "pods/exec", "roles", "rolebindings", "clusterroles"] {
                assert!(
                    !resources.split(", ").any(|resource| resource == forbidden),
                    "{role} reaches {forbidden}"
                );
            }
        }
    }
}

#[test]
fn writing_policies_is_aggregated_to_no_role() {
    let text = read("charts/weir/templates/rbac-people.yaml");
    let aggregated: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("/aggregate-to-"))
        .collect();
    assert_eq!(
        aggregated,
        ["    rbac.authorization.k8s.io/aggregate-to-view: \"true\""]
    );
    let (view, admin) = text.split_once("\n---\n").unwrap();
    assert!(view.contains("aggregate-to-view") && view.contains("verbs: [get, list, watch]"));
    assert!(admin.contains("name: weir-policy-admin"));
}

/// A certificate made by Helm is another one at each rendering, and nothing would renew it.
#[test]
fn helm_makes_no_certificate() {
    let mut files = Vec::new();
    templates(&workspace_root().join("charts"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in [
            "genCA",
            "genSelfSignedCert",
            "genSignedCert",
            "genPrivateKey",
            "caBundle:",
            "randAlpha",
            "lookup ",
        ] {
            assert!(!text.contains(word), "{} says {word}", file.display());
        }
    }
}

#[test]
fn every_value_is_documented() {
    let text = read("charts/weir/values.yaml");
    let (mut comment, mut values) = (String::new(), 0);
    for line in text.lines() {
        if let Some(more) = line.trim_start().strip_prefix('#') {
            comment.push_str(more);
            continue;
        }
        // A key with a value, or with a list or map on its own line; sections have none. What is deeper than a section
        // belongs to the value above it, which is documented as a whole.
        if let Some((key, value)) = line.split_once(':')
            && !value.trim().is_empty()
            && !["requests", "limits"].contains(&key.trim())
        {
            values += 1;
            assert!(comment.contains(" -- "), "{} has no `# --` line", key.trim());
        }
        comment.clear();
    }
    assert!(values > 50, "only {values} values were found");
}
