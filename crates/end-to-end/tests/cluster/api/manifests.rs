//! Every manifest under `tests/manifests`, sent in all four ways by the tools themselves: the wrong ones are refused with
//! what is to be done, the right ones are taken with the warnings that they name.
//!
//! Each file says in its first lines what is expected: `field` and `says` are the webhook's words. What the definition
//! itself refuses never gets there: then `api` holds the API server's words, or those of our rule in it, and
//! `server-side` those of its merge, which looks at types before all else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use test_support::cluster::{Kubectl, Release, Said};

use super::{Test, governed};

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "every_wrong_manifest_is_refused_in_all_four_ways",
        every_wrong_manifest_is_refused_in_all_four_ways,
    ),
    (
        "every_right_manifest_is_taken_in_all_four_ways",
        every_right_manifest_is_taken_in_all_four_ways,
    ),
];

/// kubectl's three ways; Helm is the fourth.
const KUBECTL: [&str; 3] = ["apply", SERVER_SIDE, "apply --validate=false"];
const SERVER_SIDE: &str = "apply --server-side";
/// Programs that run at once: Helm computes most of its time, and machines have few cores.
const AT_ONCE: usize = 3;

/// A manifest, with what its first lines say.
struct Manifest {
    name: String,
    path: PathBuf,
    text: String,
}

impl Manifest {
    fn header(&self, key: &str) -> Option<&str> {
        self.headers(key).next()
    }

    fn headers<'m>(&'m self, key: &str) -> impl Iterator<Item = &'m str> {
        let start = format!("# {key}: ");
        let lines = self.text.lines();
        lines.filter_map(move |line| line.strip_prefix(&start))
    }

    /// Field and words of the refusal. Server-side apply reads types before the definition's rules, in words of its own.
    fn refusal(&self, way: &str) -> Result<(&str, &str)> {
        let field = self.header("field").context("`field`")?;
        match self.header("refused by").context("`refused by`")? {
            "webhook" => Ok((field, self.header("says").context("`says`")?)),
            "schema" | "rule" => {
                if let (SERVER_SIDE, Some(says)) = (way, self.header("server-side")) {
                    return Ok((self.header("server-side field").unwrap_or(field), says));
                }
                let says = self.header("api").context("`api`")?;
                Ok((self.header("api field").unwrap_or(field), says))
            }
            other => bail!("refused by {other}?"),
        }
    }
}

fn manifests(folder: &str) -> Result<Vec<Manifest>> {
    let folder = test_support::workspace_root()
        .join("tests/manifests")
        .join(folder);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path)?;
        ensure!(
            text.contains(&format!("metadata: {{name: {name},")),
            "{name} is called otherwise inside"
        );
        found.push(Manifest { name, path, text });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// What kubectl said of each object. One call holds all files; every error names its file or its object.
fn by_manifest(err: &str, manifests: &[Manifest]) -> BTreeMap<String, String> {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut of = None;
    for line in err.lines() {
        let named = manifests.iter().find(|manifest| {
            let name = &manifest.name;
            line.contains(&format!("/{name}.yaml\"")) || line.contains(&format!(" \"{name}\" is invalid"))
        });
        if let Some(named) = named {
            of = Some(named.name.clone());
        } else if line.starts_with("Error from server")
            || line.starts_with("The ")
            || line.starts_with("error:")
        {
            of = None;
        }
        if let Some(name) = &of {
            let told = told.entry(name.clone()).or_default();
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

fn send(kubectl: &Kubectl, way: &str, path: &str) -> Result<Said> {
    let mut arguments: Vec<&str> = way.split(' ').collect();
    arguments.extend(["-f", path]);
    kubectl.try_run(&arguments)
}

/// A chart that holds one manifest, installed.
fn helm(kubectl: &Kubectl, folder: &Path, manifest: &Manifest) -> Result<Said> {
    let chart = folder.join("charts").join(&manifest.name);
    std::fs::create_dir_all(chart.join("templates"))?;
    let about = format!("apiVersion: v2\nname: {}\nversion: 0.1.0\n", manifest.name);
    std::fs::write(chart.join("Chart.yaml"), about)?;
    std::fs::write(chart.join("templates/manifest.yaml"), &manifest.text)?;
    let chart = chart.to_str().context("text")?;
    kubectl.try_helm(&["install", &manifest.name, chart, "--namespace=shop"])
}

/// Runs `one` for each, a few at a time; collects what they complain of.
fn each<T: Sync>(items: &[T], one: impl Fn(&T) -> Result<()> + Sync) -> Vec<String> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let complaints = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    if let Err(error) = one(item) {
                        complaints.lock().expect("no panic").push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    complaints.into_inner().expect("no panic")
}

fn refused_as_it_should(way: &str, manifest: &Manifest, told: &str) -> Result<()> {
    let (field, says) = manifest.refusal(way)?;
    ensure!(
        told.contains(field) && told.contains(says),
        "{way}: {}: `{field}` and `{says}` are not in: {}",
        manifest.name,
        if told.is_empty() {
            "(nothing was said)"
        } else {
            told.trim()
        },
    );
    Ok(())
}

fn every_wrong_manifest_is_refused_in_all_four_ways(release: Release) -> Result<()> {
    let governed = governed(release)?;
    let kubectl = governed.server.kubectl();
    kubectl.namespace("shop")?;
    let wrong = manifests("wrong")?;
    ensure!(wrong.len() >= 80, "only {} manifests", wrong.len());
    let folder = test_support::workspace_root().join("tests/manifests/wrong");
    let folder = folder.to_str().context("text")?;
    let mut complaints = Vec::new();
    for way in KUBECTL.into_iter().filter(|way| *way != SERVER_SIDE) {
        let said = send(kubectl, way, folder)?;
        ensure!(!said.ok && said.out.is_empty(), "{way} took: {}", said.out);
        let told = by_manifest(&said.err, &wrong);
        for manifest in &wrong {
            let told = told.get(&manifest.name).map(String::as_str).unwrap_or_default();
            let right = refused_as_it_should(way, manifest, told);
            complaints.extend(right.err().map(|error| format!("{error:#}")));
        }
    }
    // Here not every error names its file.
    complaints.extend(each(&wrong, |manifest| {
        let said = send(kubectl, SERVER_SIDE, manifest.path.to_str().context("text")?)?;
        ensure!(!said.ok, "{SERVER_SIDE} took {}", manifest.name);
        refused_as_it_should(SERVER_SIDE, manifest, &said.err)
    }));
    complaints.extend(each(&wrong, |manifest| {
        let said = helm(kubectl, governed.server.folder(), manifest)?;
        ensure!(!said.ok, "helm took {}", manifest.name);
        refused_as_it_should("helm", manifest, &said.err)
    }));
    let stored = kubectl.run(&["get", "weir", "-A", "-o", "name"])?;
    ensure!(stored.is_empty(), "stored nevertheless: {stored}");
    ensure!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    Ok(())
}

/// Taken, with its warnings and no others.
fn taken_as_it_should(way: &str, manifest: &Manifest, said: &Said) -> Result<()> {
    let name = &manifest.name;
    ensure!(said.ok, "{way}: {name}: {}", said.err);
    for words in manifest.headers("warns") {
        ensure!(
            said.err.contains(words),
            "{way}: {name}: no warning `{words}` in: {}",
            said.err
        );
    }
    if way != "helm" {
        let warnings = said.err.matches("Warning: ").count();
        ensure!(
            warnings == manifest.headers("warns").count(),
            "{way}: {name}: {}",
            said.err
        );
    }
    Ok(())
}

fn every_right_manifest_is_taken_in_all_four_ways(release: Release) -> Result<()> {
    let governed = governed(release)?;
    let kubectl = governed.server.kubectl();
    kubectl.namespace("shop")?;
    let right = manifests("right")?;
    let complaints = each(&right, |manifest| {
        let path = manifest.path.to_str().context("text")?;
        for way in KUBECTL {
            let said = send(kubectl, way, path)?;
            taken_as_it_should(way, manifest, &said)?;
            kubectl.run(&["delete", "--ignore-not-found", "-f", path])?;
        }
        let said = helm(kubectl, governed.server.folder(), manifest)?;
        taken_as_it_should("helm", manifest, &said)
    });
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}
