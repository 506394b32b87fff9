//! `docs/metrics.md` against what a program shows: each test that has a registry compares its page with the document.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::workspace_root;

/// One metric, as a page shows it or the document tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Names of its labels, but for those of the format.
    pub labels: BTreeSet<String>,
}

/// Metrics by name.
pub type Metrics = BTreeMap<String, Metric>;

/// What the document says under `## program`.
///
/// # Errors
/// The document, or a row of it, cannot be read.
pub fn documented(program: &str) -> Result<Metrics> {
    let text = std::fs::read_to_string(workspace_root().join("docs/metrics.md"))?;
    let (_, section) = text
        .split_once(&format!("\n## {program}\n"))
        .with_context(|| format!("docs/metrics.md has no section {program}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut found = Metrics::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, unit, meaning] = cells.as_slice() else {
            anyhow::bail!("no row of five cells: {row}");
        };
        let name = name.trim_matches('`').to_owned();
        ensure!(!meaning.is_empty(), "{name} has no meaning");
        ensure!(
            (*kind == "counter") == name.ends_with("_total"),
            "{name}: a counter, and only a counter, ends in _total"
        );
        for (word, of) in [("_seconds", "seconds"), ("_bytes", "bytes")] {
            ensure!(
                name.ends_with(word) == (*unit == of),
                "{name}: the unit is not {unit}"
            );
        }
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|label| !label.is_empty());
        let metric = Metric {
            kind: (*kind).to_owned(),
            labels: labels.collect(),
        };
        ensure!(
            found.insert(name.clone(), metric).is_none(),
            "{name} is there twice"
        );
    }
    Ok(found)
}

/// What a page shows. A family without a series is not on a page.
pub fn shown(page: &str) -> Metrics {
    let mut found = Metrics::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else {
                continue;
            };
            let total = if kind == "counter" { "_total" } else { "" };
            let metric = Metric {
                kind: kind.to_owned(),
                labels: BTreeSet::new(),
            };
            found.insert(format!("{name}{total}"), metric);
        } else if !line.starts_with('#')
            && let Some((name, rest)) = line.split_once('{')
            && let Some((labels, _)) = rest.rsplit_once('}')
        {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|name| found.contains_key(*name)))
                .unwrap_or(name);
            // The values in our tests hold neither commas nor quotes.
            let labels = labels
                .split(',')
                .filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()))
                .filter(|label| label != "le");
            if let Some(metric) = found.get_mut(name) {
                metric.labels.extend(labels);
            }
        }
    }
    found
}

/// Compares a page with the document, both ways.
///
/// # Errors
/// Every difference.
pub fn compare(program: &str, page: &str) -> Result<()> {
    let (documented, shown) = (documented(program)?, shown(page));
    let names: BTreeSet<&String> = documented.keys().chain(shown.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| documented.get(*name) != shown.get(*name))
        .map(|name| {
            format!(
                "{name}: documented {:?}, shown {:?}",
                documented.get(name),
                shown.get(name)
            )
        })
        .collect();
    ensure!(
        differences.is_empty(),
        "docs/metrics.md and {program} differ:\n{}",
        differences.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let page = "# HELP a_b x.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"2\"} 3\n\
                    # TYPE s_seconds histogram\ns_seconds_bucket{le=\"1\",z=\"q\"} 2\n# TYPE g gauge\ng 1\n# EOF\n";
        let shown = shown(page);
        let of = |name: &str| {
            let metric = shown.get(name).unwrap();
            (
                metric.kind.as_str(),
                metric.labels.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        };
        assert_eq!(of("a_b_total"), ("counter", vec!["x", "y"]));
        assert_eq!(of("s_seconds"), ("histogram", vec!["z"]));
        assert_eq!(of("g"), ("gauge", vec![]));
        assert_eq!(shown.len(), 3);
    }

    #[test]
    fn a_difference_is_named() {
        let error = compare("weir-collector", "# TYPE weir_new gauge\nweir_new 1\n").unwrap_err();
        assert!(error.to_string().contains("weir_new: documented None"), "{error}");
        assert!(
            error.to_string().contains("weir_sink_lag: documented Some"),
            "{error}"
        );
    }
}
