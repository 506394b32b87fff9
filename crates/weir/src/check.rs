//! `weir check`: what is wrong with an installation, why it matters, and what to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use access_policy::{Manifest, check_files};
use anyhow::{Context, Result};
use crd_types::DatabaseAccessPolicy;
use crd_types::policy::{Engine, SecretKeyRef, TlsMode};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use pod_injection::contract::{PODS_WEBHOOKS, POLICIES_WEBHOOKS};
use serde::Serialize;
use serde_json::Value;
use sidecar::tls::Check;

use crate::cluster::{Cluster, Scope, block_on, explained};
use crate::operators::{Operators, leaf_is_late};
use crate::probe::{Answer, Login, Wish, probe};
use crate::table::{plain, print};

const DEFINITIONS: &str = "helm upgrade --install weir-crds charts/weir-crds";
const CHART: &str = "helm upgrade --install weir charts/weir";
/// Names that are printed; the count is always whole.
const NAMES_MAX: usize = 5;

/// The flags of `weir check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    scope: Scope,
    /// Manifests to check (DatabaseAccessPolicy, LineageSink, Secret): duplicate keys, unknown fields, and whatever the
    /// cluster would refuse. Other kinds are passed over
    #[arg(short = 'f', long = "file", value_name = "FILE", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Only the files: no cluster is asked
    #[arg(long, requires = "files")]
    offline: bool,
    /// JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Level {
    /// As it should be.
    Good,
    /// To be done.
    Bad,
    /// It could not be found out.
    Unknown,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self {
            level: Level::Good,
            what: what.into(),
            why: None,
            mend: None,
        }
    }

    fn bad(what: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            what: what.into(),
            why: Some(why.into()),
            mend: Some(mend.into()),
        }
    }

    fn unknown(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            level: Level::Unknown,
            what: what.into(),
            why: Some(why.into()),
            mend: None,
        }
    }
}

/// Runs it: 0 nothing is wrong, 1 something is, 2 nothing is known to be wrong but not all could be found out.
///
/// # Errors
/// Where a file cannot be read.
pub fn run(args: &Args) -> Result<u8> {
    let mut findings = files(&args.files, &args.scope.weir_namespace)?;
    if !args.offline {
        findings.extend(block_on(async { Ok(cluster(&args.scope).await) })?);
    }
    if args.json {
        print(&serde_json::to_string_pretty(&findings)?)?;
    } else {
        print(&text(&findings))?;
    }
    Ok(code(&findings))
}

fn code(findings: &[Finding]) -> u8 {
    let any = |level| findings.iter().any(|finding| finding.level == level);
    if any(Level::Bad) {
        1
    } else if any(Level::Unknown) {
        2
    } else {
        0
    }
}

fn text(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Good => "ok ",
            Level::Bad => "BAD",
            Level::Unknown => "?  ",
        };
        lines.push(format!("{mark} {}", plain(&finding.what)));
        if let Some(why) = &finding.why {
            lines.push(format!("      why:  {}", plain(why)));
        }
        if let Some(mend) = &finding.mend {
            lines.push(format!("      mend: {}", plain(mend)));
        }
    }
    lines.join("\n")
}

fn files(paths: &[PathBuf], weir_namespace: &str) -> Result<Vec<Finding>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let manifests = paths
        .iter()
        .map(|path| {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Manifest {
                name: path.display().to_string(),
                text,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let problems = check_files(&manifests, weir_namespace);
    if problems.is_empty() {
        return Ok(vec![Finding::good(format!(
            "files: {} read, no problem",
            manifests.len()
        ))]);
    }
    let bad = problems.iter().map(|problem| {
        Finding::bad(
            problem.to_string(),
            "the cluster would refuse it, or take something else than is written",
            "correct the file",
        )
    });
    Ok(bad.collect())
}

async fn cluster(scope: &Scope) -> Vec<Finding> {
    let cluster = match Cluster::connect(scope).await {
        Ok(cluster) => cluster,
        Err(error) => return vec![Finding::unknown("cluster", format!("{error:#}"))],
    };
    if let Err(error) = cluster.namespace_exists().await {
        return vec![Finding::unknown("cluster", format!("{error:#}"))];
    }
    let mut findings = definitions(&cluster).await;
    // Without them nothing below can be asked for. Who may not read them may still read policies.
    if findings.iter().any(|finding| finding.level == Level::Bad) {
        return findings;
    }
    findings.extend(webhooks(&cluster).await);
    findings.extend(workloads(&cluster).await);
    findings.extend(certificates(&cluster).await);
    match cluster.policies().await {
        Ok(policies) => {
            findings.extend(policies.iter().flat_map(policy));
            findings.extend(databases(&cluster, &policies).await);
        }
        Err(error) => findings.push(Finding::unknown("policies", format!("{error:#}"))),
    }
    findings
}

async fn definitions(cluster: &Cluster) -> Vec<Finding> {
    let ours = match crd_types::crds_yaml() {
        Ok(ours) => ours,
        Err(error) => return vec![Finding::unknown("definitions", error)],
    };
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
    let mut findings = Vec::new();
    for (_, yaml) in ours {
        let Ok(ours) = serde_yaml::from_str::<Value>(&yaml) else {
            continue;
        };
        let name = ours
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        findings.push(match api.get_opt(name).await {
            Ok(Some(stored)) => definition(name, &crd_types::lacks(&stored.data, &ours)),
            Ok(None) => Finding::bad(
                format!("definition {name} is not installed"),
                "the cluster does not know Weir's resources",
                DEFINITIONS,
            ),
            Err(error) => Finding::unknown(
                format!("definition {name}"),
                format!("{:#}", explained("customresourcedefinitions", error)),
            ),
        });
    }
    findings
}

fn definition(name: &str, missing: &[String]) -> Finding {
    if missing.is_empty() {
        return Finding::good(format!("definition {name}"));
    }
    Finding::bad(
        format!("definition {name} is older than this program"),
        format!("it lacks {}", some(missing, missing.len())),
        DEFINITIONS,
    )
}

async fn webhooks(cluster: &Cluster) -> Vec<Finding> {
    let mutating = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone())
        .get_opt(PODS_WEBHOOKS)
        .await
        .map(|found| {
            let hooks = found?.webhooks.into_iter().flatten();
            Some(bundles(hooks.map(|hook| hook.client_config)))
        });
    let validating = Api::<ValidatingWebhookConfiguration>::all(cluster.client.clone())
        .get_opt(POLICIES_WEBHOOKS)
        .await
        .map(|found| {
            let hooks = found?.webhooks.into_iter().flatten();
            Some(bundles(hooks.map(|hook| hook.client_config)))
        });
    vec![
        webhook(PODS_WEBHOOKS, "pods are made without a sidecar", mutating),
        webhook(POLICIES_WEBHOOKS, "wrong policies are not refused", validating),
    ]
}

/// How many webhooks there are, and how many of them have no `caBundle`.
fn bundles(configs: impl Iterator<Item = WebhookClientConfig>) -> (usize, usize) {
    configs.fold((0, 0), |(all, without), config| {
        let lacks = config.ca_bundle.is_none_or(|bundle| bundle.0.is_empty());
        (all + 1, without + usize::from(lacks))
    })
}

fn webhook(name: &str, absent: &str, found: kube::Result<Option<(usize, usize)>>) -> Finding {
    match found {
        Ok(Some((1.., 0))) => Finding::good(format!("webhook configuration {name}")),
        Ok(Some((1.., without))) => Finding::bad(
            format!("webhook configuration {name}: {without} without caBundle"),
            "the API server cannot trust the operator, so it refuses what this webhook judges",
            "see whether an operator runs and holds the lease: it writes the caBundle",
        ),
        Ok(Some((0, _)) | None) => Finding::bad(
            format!("webhook configuration {name} is not there"),
            absent,
            CHART,
        ),
        Err(error) => Finding::unknown(
            format!("webhook configuration {name}"),
            format!("{:#}", explained("webhook configurations", error)),
        ),
    }
}

async fn workloads(cluster: &Cluster) -> Vec<Finding> {
    let workloads = match cluster.workloads().await {
        Ok(workloads) => workloads,
        Err(error) => return vec![Finding::unknown("operator and collector", format!("{error:#}"))],
    };
    let namespace = &cluster.weir_namespace;
    workloads
        .iter()
        .map(|workload| match workload.wanted {
            _ if workload.is_ready() => {
                Finding::good(format!("{} ({} ready)", workload.name, workload.ready))
            }
            None => Finding::bad(
                format!("{} is not in namespace {namespace}", workload.name),
                "Weir is not installed there",
                format!("{CHART}   (or say where it is: --weir-namespace)"),
            ),
            Some(wanted) => Finding::bad(
                format!("{}: {} of {wanted} ready", workload.name, workload.ready),
                "policies, identities or receipts may wait",
                format!(
                    "kubectl -n {namespace} get pods; kubectl -n {namespace} logs -l app.kubernetes.io/component={}",
                    workload.name.trim_start_matches("weir-")
                ),
            ),
        })
        .collect()
}

/// Ends of certificates, as the operators tell them.
async fn certificates(cluster: &Cluster) -> Vec<Finding> {
    let now = jiff::Timestamp::now().as_second();
    let operators = Operators::ask(cluster).await;
    let mut findings: Vec<Finding> = operators
        .silent
        .iter()
        .map(|why| Finding::unknown("certificates that an operator tells of", why))
        .collect();
    let late: Vec<String> = operators
        .certificates
        .iter()
        .filter(|certificate| certificate.is_late(now))
        .map(|certificate| certificate.name.clone())
        .collect();
    if !late.is_empty() {
        findings.push(Finding::bad(
            format!("{} certificates should have been renewed by now", late.len()),
            some(&late, late.len()),
            format!(
                "kubectl -n {} logs -l app.kubernetes.io/part-of=weir (docs/identity.md)",
                cluster.weir_namespace
            ),
        ));
    } else if !operators.certificates.is_empty() {
        findings.push(Finding::good("certificates of operator and collector"));
    }
    if let Ok(pods) = cluster.injected_pods().await {
        let late: Vec<String> = pods
            .iter()
            .filter(|pod| {
                operators
                    .pod(pod.metadata.uid.as_deref())
                    .and_then(|told| told.certificate_not_after())
                    .is_some_and(|end| leaf_is_late(end, now))
            })
            .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
            .collect();
        if !late.is_empty() {
            findings.push(Finding::bad(
                format!("{} pods should have had a new certificate by now", late.len()),
                some(&late, late.len()),
                "see the log of their container weir-sidecar",
            ));
        }
    }
    findings
}

/// What the policy's status says, as the operator wrote it.
fn policy(policy: &DatabaseAccessPolicy) -> Vec<Finding> {
    let name = format!(
        "policy {}/{}",
        policy.namespace().unwrap_or_default(),
        policy.name_any()
    );
    let Some(status) = policy
        .status
        .as_ref()
        .filter(|status| status.observed_generation == policy.metadata.generation)
    else {
        return vec![Finding::bad(
            format!("{name}: the operator has not seen its current form"),
            "nobody knows whether it is enforced",
            "see whether an operator runs and holds the lease",
        )];
    };
    let mut findings = Vec::new();
    let count = |count: Option<i32>, names: &[String]| {
        count
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(names.len())
    };
    let uninjected = count(status.uninjected_pods_count, &status.uninjected_pods);
    if uninjected > 0 {
        findings.push(Finding::bad(
            format!("{name}: {uninjected} pods without a sidecar"),
            some(&status.uninjected_pods, uninjected),
            "annotate the pod template with weir.dev/inject: \"true\" and restart its workload",
        ));
    }
    let restart = count(status.restart_needed_pods_count, &status.restart_needed_pods);
    if restart > 0 {
        findings.push(Finding::bad(
            format!("{name}: {restart} pods made before the policy named this host, port or Secret"),
            some(&status.restart_needed_pods, restart),
            "kubectl rollout restart of their workloads",
        ));
    }
    for condition in &status.conditions {
        // `Ready` and `Enforced` repeat in their messages what is listed above.
        let wrong = match condition.type_.as_str() {
            "Accepted" => condition.status == "False",
            "Degraded" => condition.status == "True",
            "Enforced" => condition.status == "False" && condition.reason == "Bypassed",
            _ => false,
        };
        if wrong {
            findings.push(Finding::bad(
                format!("{name}: {}", condition.reason),
                condition.message.clone(),
                "kubectl describe dap has the details",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(name));
    }
    findings
}

fn some(names: &[String], count: usize) -> String {
    let shown = names
        .iter()
        .take(NAMES_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match count.saturating_sub(names.len().min(NAMES_MAX)) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// An endpoint and how policies want to reach it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    host: String,
    port: u16,
    wish: Wish,
}

/// `tls.mode` as the sidecar takes it.
fn check_of(mode: TlsMode) -> Option<Check> {
    match mode {
        TlsMode::Disable => None,
        TlsMode::Require => Some(Check::Nothing),
        TlsMode::VerifyCA => Some(Check::Authority),
        TlsMode::VerifyFull => Some(Check::AuthorityAndHost),
    }
}

async fn databases(cluster: &Cluster, policies: &[DatabaseAccessPolicy]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // With the policies that want it so, to say whose wish fails.
    let mut endpoints: BTreeMap<Endpoint, String> = BTreeMap::new();
    for policy in policies {
        let database = &policy.spec.database;
        match database.engine {
            Engine::PostgreSQL => {}
        }
        let namespace = policy.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", policy.name_any());
        let wish = match (check_of(database.tls.mode), &database.tls.ca_secret_ref) {
            (None, _) => Wish::Plain,
            (Some(check), Some(reference)) if check != Check::Nothing => {
                match authority(cluster, &namespace, reference).await {
                    Ok(ca) => Wish::Tls { check, ca: Some(ca) },
                    Err(why) => {
                        findings.push(Finding::unknown(
                            format!("policy {name}: whether its database's certificate is right"),
                            why,
                        ));
                        Wish::Tls {
                            check: Check::Nothing,
                            ca: None,
                        }
                    }
                }
            }
            (Some(check), _) => Wish::Tls { check, ca: None },
        };
        let others = database
            .other_endpoints
            .iter()
            .map(|other| (other.host.clone(), other.port));
        for (host, port) in std::iter::once((database.host.clone(), database.port)).chain(others) {
            endpoints
                .entry(Endpoint {
                    host,
                    port,
                    wish: wish.clone(),
                })
                .or_insert_with(|| name.clone());
        }
    }
    if !endpoints.is_empty() {
        eprintln!("asking {} database endpoints from here …", endpoints.len());
    }
    let answers = futures_util::future::join_all(
        endpoints
            .keys()
            .map(|endpoint| probe(&endpoint.host, endpoint.port, &endpoint.wish)),
    )
    .await;
    // One endpoint with several wishes has one answer to logins.
    let mut told = std::collections::BTreeSet::new();
    for ((endpoint, policy), answer) in endpoints.iter().zip(answers) {
        if told.insert((&endpoint.host, endpoint.port)) {
            findings.push(database(&endpoint.host, endpoint.port, &answer));
        }
        if let Some(why) = &answer.wish_fails {
            findings.push(wish_fails(endpoint, policy, why));
        }
    }
    findings
}

/// A connection as the policy wants it fails, for everybody: sidecars do it with the same code.
fn wish_fails(endpoint: &Endpoint, policy: &str, why: &str) -> Finding {
    Finding::bad(
        format!(
            "policy {policy}: TLS to {}:{} fails as its tls says",
            endpoint.host, endpoint.port
        ),
        format!("{why}; from here, as from a pod: sidecars refuse each connection"),
        "correct spec.database.tls (mode, caSecretRef), the host, or the server's certificate",
    )
}

/// The authority's certificate, PEM.
async fn authority(cluster: &Cluster, namespace: &str, reference: &SecretKeyRef) -> Result<Vec<u8>, String> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let secret = api
        .get_opt(&reference.name)
        .await
        .map_err(|error| format!("{:#}", explained("secrets", error)))?
        .ok_or_else(|| format!("there is no secret {namespace}/{}", reference.name))?;
    let value = secret.data.unwrap_or_default().remove(&reference.key);
    value.map(|value| value.0).ok_or_else(|| {
        format!(
            "secret {namespace}/{} has no key {}",
            reference.name, reference.key
        )
    })
}

fn database(host: &str, port: u16, answer: &Answer) -> Finding {
    let mend = "let only governed pods reach it: a NetworkPolicy, or pg_hba.conf";
    match &answer.login {
        Login::Unreachable(_) => Finding::good(format!("database {host}:{port} is not reachable from here")),
        Login::Accepted {
            without_password: true,
        } => Finding::bad(
            format!("database {host}:{port} lets in without Weir, and without a password"),
            "it is reachable from here, and its pg_hba.conf trusts this address",
            mend,
        ),
        Login::Accepted {
            without_password: false,
        } => Finding::bad(
            format!("database {host}:{port} accepts logins without Weir"),
            "it is reachable from here, and asks for a password as it asks anybody",
            mend,
        ),
        Login::Refused(words) => Finding::good(format!(
            "database {host}:{port} is reachable from here, and refuses logins, with TLS and without ({words})"
        )),
        Login::Unreadable => Finding::unknown(
            format!("database {host}:{port} is reachable from here without Weir"),
            "what answers does not speak PostgreSQL",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes_put_what_is_wrong_before_what_is_unknown() {
        let unknown = || Finding::unknown("a", "b");
        assert_eq!(code(&[Finding::good("a")]), 0);
        assert_eq!(code(&[Finding::good("a"), unknown()]), 2);
        assert_eq!(code(&[unknown(), Finding::bad("a", "b", "c")]), 1);
    }

    #[test]
    fn a_duplicate_key_in_a_file_is_named_with_its_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("orders.yaml");
        let head = "apiVersion: weir.dev/v1alpha1\nkind: DatabaseAccessPolicy\nmetadata: {name: orders, namespace: shop}\nspec:\n  podSelector: {}\n  database: {engine: PostgreSQL, host: db}\n";
        std::fs::write(&path, head).expect("written");
        let findings = files(std::slice::from_ref(&path), "weir-system").expect("read");
        assert_eq!(code(&findings), 0, "{findings:?}");
        std::fs::write(
            &path,
            format!("{head}  defaultAction: Deny\n  defaultAction: Allow\n"),
        )
        .expect("written");
        let findings = files(&[path], "weir-system").expect("read");
        assert_eq!(code(&findings), 1);
        assert!(text(&findings).contains("orders.yaml:8"), "{}", text(&findings));
    }

    fn policy_with(status: &Value) -> DatabaseAccessPolicy {
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
            "metadata": {"namespace": "shop", "name": "orders", "generation": 2},
            "spec": {"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "db"}},
            "status": status,
        }))
        .expect("a policy")
    }

    #[test]
    fn pods_that_miss_a_sidecar_or_a_restart_are_named() {
        let findings = policy(&policy_with(&json!({"observedGeneration": 2,
            "uninjectedPods": ["old"], "uninjectedPodsCount": 9,
            "restartNeededPods": ["report"], "restartNeededPodsCount": 1})));
        let text = text(&findings);
        assert_eq!(findings.len(), 2);
        assert!(
            text.contains("9 pods without a sidecar") && text.contains("old and 8 more"),
            "{text}"
        );
        assert!(text.contains("why:  report\n"), "{text}");
        assert_eq!(code(&policy(&policy_with(&json!({"observedGeneration": 2})))), 0);
        assert_eq!(code(&policy(&policy_with(&json!({"observedGeneration": 1})))), 1);
    }

    #[test]
    fn webhooks_need_a_bundle_each() {
        assert_eq!(webhook("w", "", Ok(Some((2, 0)))).level, Level::Good);
        assert_eq!(webhook("w", "", Ok(Some((2, 1)))).level, Level::Bad);
        assert_eq!(webhook("w", "", Ok(Some((0, 0)))).level, Level::Bad);
        assert_eq!(webhook("w", "", Ok(None)).level, Level::Bad);
    }
}
