//! (policy, matched pods, what their sidecars say) → status. Pure; the clock comes in.

use access_policy::Endpoint;
use control_api::proto;
use crd_types::policy::UnresolvedName;
use crd_types::sink::LineageSinkStatus;
use crd_types::{Condition, DatabaseAccessPolicyStatus, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::world::{Pod, Policy, Sink};

/// Names beside a count.
const NAMES_MAX: usize = 20;
/// Names within a message.
const NAMES_IN_MESSAGE: usize = 5;
/// A bypass counts for this long after it was last seen.
const BYPASS_COUNTS: SignedDuration = SignedDuration::from_mins(15);
/// Lost receipts of a pod that is gone are said for this long.
pub const LOSS_COUNTS: SignedDuration = SignedDuration::from_hours(1);

/// A pod that the policy selects, and what its sidecar said last (nothing: it has no stream).
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its sidecar's word.
    pub report: Option<&'a proto::PodReport>,
}

/// All that decides.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Running pods that it selects.
    pub pods: &'a [Seen<'a>],
    /// Pods that are gone and left receipts behind.
    pub losses: usize,
    /// Now.
    pub now: Timestamp,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What is written.
    pub status: DatabaseAccessPolicyStatus,
    /// Selected pods that went around their sidecar.
    pub bypassed: Vec<String>,
    /// Receipts that wait in the pods' sidecars.
    pub receipts_waiting: u64,
}

/// How one pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Enforces,
    Uninjected,
    NotCaptured,
    NotConnected,
    /// Has not answered for this generation.
    Waiting,
    /// Answered no.
    Refuses {
        reason: String,
        message: String,
    },
}

/// Computes the status. `lastTransitionTime` is kept where a condition's status is as before.
pub fn status(question: &Question<'_>) -> Answer {
    let Question {
        policy,
        pods,
        losses,
        now,
    } = *question;
    let counts = Counts::new(policy, pods, now);
    let accepted = match &policy.compiled {
        Ok(_) => (True, "Compiled", "the policy compiles".to_owned()),
        Err(problem) => (False, "Invalid", problem.clone()),
    };
    let degraded = degraded(policy, &counts, losses, now);
    let missing = counts.missing(policy);
    let enforced = if policy.compiled.is_err() {
        (
            False,
            "Invalid",
            "the policy does not compile: see condition Accepted".to_owned(),
        )
    } else if counts.matched == 0 {
        (
            Unknown,
            "NoPods",
            "no running pod of this namespace is selected by spec.podSelector".to_owned(),
        )
    } else if policy.audits {
        (
            False,
            "AuditMode",
            "the policy decides and records only; set spec.mode to Enforce to make it count".to_owned(),
        )
    } else if let Some(missing) = &missing {
        (False, missing.0, missing.1.clone())
    } else {
        (
            True,
            "Enforced",
            format!(
                "{} enforce generation {}",
                all_pods(counts.matched),
                policy.generation
            ),
        )
    };
    let ready = if accepted.0 == False {
        (False, accepted.1, accepted.2.clone())
    } else if let Some((reason, message)) = missing {
        (False, reason, message)
    } else if degraded.0 == True {
        (False, degraded.1, degraded.2.clone())
    } else if counts.matched == 0 {
        (True, "NoPods", enforced.2.clone())
    } else if policy.audits {
        (True, "AuditMode", enforced.2.clone())
    } else {
        (True, "Enforced", enforced.2.clone())
    };
    let before = &policy.status.conditions;
    let conditions = [
        ("Accepted", accepted),
        ("Ready", ready),
        ("Enforced", enforced),
        ("Degraded", degraded),
    ]
    .into_iter()
    .map(|(type_, (truth, reason, message))| {
        condition(before, type_, truth, reason, message, policy.generation, now)
    })
    .collect();
    Answer {
        status: DatabaseAccessPolicyStatus {
            observed_generation: Some(policy.generation),
            conditions,
            matched_pods: Some(number(counts.matched)),
            enforced_pods: Some(number(counts.enforced)),
            uninjected_pods_count: Some(number(counts.uninjected.len())),
            uninjected_pods: first(&counts.uninjected),
            restart_needed_pods_count: Some(number(counts.not_captured.len())),
            restart_needed_pods: first(&counts.not_captured),
            unresolved: counts.unresolved.iter().take(NAMES_MAX).cloned().collect(),
        },
        bypassed: counts.bypassed.into_iter().map(|(pod, _)| pod).collect(),
        receipts_waiting: counts.receipts_waiting,
    }
}

/// The status of a sink, from what the collector said last (nothing: it has no stream), or what keeps the operator from
/// handing the sink over.
pub fn sink_status(sink: &Sink, reported: Option<&proto::SinkStatus>, now: Timestamp) -> LineageSinkStatus {
    let known = reported.filter(|status| status.generation == sink.generation);
    let (truth, reason, message) = match (&sink.typed, known) {
        (Err(error), _) => (False, "Invalid".to_owned(), error.clone()),
        (Ok(_), Some(status)) => (
            if status.ready { True } else { False },
            reason_of(&status.reason, "Failing"),
            status.message.clone(),
        ),
        (Ok(_), None) => (
            Unknown,
            "NotConnected".to_owned(),
            "the collector has not reported this generation of the sink".to_owned(),
        ),
    };
    // Counters of an older generation are still the sink's counters.
    let before = &sink.status;
    let counter = |now: Option<u64>, before: Option<i64>| {
        now.map_or(before, |now| Some(i64::try_from(now).unwrap_or(i64::MAX)))
    };
    LineageSinkStatus {
        observed_generation: Some(sink.generation),
        conditions: vec![condition(
            &before.conditions,
            "Ready",
            truth,
            &reason,
            message,
            sink.generation,
            now,
        )],
        delivered: counter(reported.map(|status| status.delivered), before.delivered),
        failed: counter(reported.map(|status| status.failed), before.failed),
        lag: counter(reported.map(|status| status.lag), before.lag),
        last_error: match reported {
            Some(status) if status.last_error.is_empty() => None,
            Some(status) => Some(cut(&status.last_error)),
            None => before.last_error.clone(),
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}
use Truth::{False, True, Unknown};

fn condition(
    before: &[Condition],
    type_: &str,
    truth: Truth,
    reason: &str,
    message: String,
    generation: i64,
    now: Timestamp,
) -> Condition {
    let status = match truth {
        True => "True",
        False => "False",
        Unknown => "Unknown",
    };
    let since = before
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == status)
        .map_or_else(
            // The API server keeps whole seconds: what is compared with it must too.
            || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            |condition| condition.last_transition_time.clone(),
        );
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(&message),
        observed_generation: Some(generation),
        last_transition_time: since,
    }
}

/// A reason from outside, if the API server would take it.
fn reason_of(reason: &str, otherwise: &str) -> String {
    let starts = reason.starts_with(|letter: char| letter.is_ascii_alphabetic());
    let fits = reason.len() <= 128 && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if starts && fits { reason } else { otherwise }.to_owned()
}

/// Messages are bounded: they come from peers too.
fn cut(message: &str) -> String {
    const MAX: usize = 1000;
    if message.len() <= MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MAX);
    format!("{}…", message.get(..end).unwrap_or_default())
}

#[derive(Debug, Default)]
struct Counts {
    matched: usize,
    enforced: usize,
    uninjected: Vec<String>,
    not_captured: Vec<String>,
    not_connected: Vec<String>,
    waiting: Vec<String>,
    refusing: Vec<(String, String, String)>,
    bypassed: Vec<(String, String)>,
    unresolved: Vec<UnresolvedName>,
    dropped: u64,
    receipts_waiting: u64,
}

impl Counts {
    fn new(policy: &Policy, pods: &[Seen<'_>], now: Timestamp) -> Self {
        let mut counts = Self::default();
        let endpoints = policy.compiled.as_deref().unwrap_or_default();
        let mut pods: Vec<&Seen<'_>> = pods.iter().filter(|seen| seen.pod.counts()).collect();
        pods.sort_by(|a, b| a.pod.name.cmp(&b.pod.name));
        for seen in pods {
            let name = seen.pod.name.clone();
            counts.matched += 1;
            match standing(policy, endpoints, seen) {
                Standing::Enforces => counts.enforced += 1,
                Standing::Uninjected => counts.uninjected.push(name.clone()),
                Standing::NotCaptured => counts.not_captured.push(name.clone()),
                Standing::NotConnected => counts.not_connected.push(name.clone()),
                Standing::Waiting => counts.waiting.push(name.clone()),
                Standing::Refuses { reason, message } => {
                    counts.refusing.push((name.clone(), reason, message));
                }
            }
            let Some(report) = seen.report.and_then(|report| report.report.as_ref()) else {
                continue;
            };
            counts.receipts_waiting = counts.receipts_waiting.saturating_add(report.receipts_waiting);
            counts.dropped = counts.dropped.saturating_add(report.receipts_dropped);
            for unresolved in report.unresolved.iter().filter(|one| one.policy == policy.name) {
                counts.unresolved.push(UnresolvedName {
                    field: unresolved.field.clone(),
                    name: unresolved.name.clone(),
                    database: Some(unresolved.database.clone()).filter(|name| !name.is_empty()),
                });
            }
            let bypass = report.bypasses.iter().find(|bypass| {
                let seen = Timestamp::from_second(bypass.last_seen).unwrap_or(now);
                now.duration_since(seen) < BYPASS_COUNTS
                    && endpoints
                        .iter()
                        .any(|endpoint| format!("{}:{}", endpoint.host, endpoint.port) == bypass.endpoint)
            });
            if let Some(bypass) = bypass {
                counts
                    .bypassed
                    .push((name, format!("{} ({})", bypass.endpoint, bypass.address)));
            }
        }
        counts.unresolved.sort();
        counts.unresolved.dedup();
        counts
    }

    /// Why not every selected pod enforces the policy, and what to do: the gravest first.
    fn missing(&self, policy: &Policy) -> Option<(&'static str, String)> {
        let matched = self.matched;
        if let Some((_, endpoint)) = self.bypassed.first() {
            let names: Vec<String> = self.bypassed.iter().map(|(pod, _)| pod.clone()).collect();
            return Some((
                "Bypassed",
                format!(
                    "{} reached {endpoint} around the sidecar within the last 15 minutes: {}; let it use the \
                     host's name, and keep the database's password from it with spec.database.credentials",
                    of(names.len(), matched),
                    list(&names)
                ),
            ));
        }
        if !self.uninjected.is_empty() {
            return Some((
                "Uninjected",
                format!(
                    "{} without a sidecar: {}; put the annotation weir.dev/inject: \"true\" on the pod \
                     template and restart",
                    run(self.uninjected.len(), matched),
                    list(&self.uninjected)
                ),
            ));
        }
        if !self.not_captured.is_empty() {
            return Some((
                "NotCaptured",
                format!(
                    "{} made before this policy named a host, a port or a Secret: {}; restart them \
                     (kubectl rollout restart)",
                    were(self.not_captured.len(), matched),
                    list(&self.not_captured)
                ),
            ));
        }
        if let Some((pod, reason, message)) = self.refusing.first() {
            let reason = match reason.as_str() {
                "Invalid" => "Invalid",
                "SecretMissing" => "SecretMissing",
                _ => "Refused",
            };
            return Some((
                reason,
                format!(
                    "{} of {matched} pods cannot enforce it; {pod}: {message}",
                    self.refusing.len()
                ),
            ));
        }
        if !self.not_connected.is_empty() {
            return Some((
                "NotConnected",
                format!(
                    "the sidecars of {} of {matched} pods have no stream to the operator (they enforce what they \
                     got last): {}",
                    self.not_connected.len(),
                    list(&self.not_connected)
                ),
            ));
        }
        if !self.waiting.is_empty() {
            return Some((
                "Waiting",
                format!(
                    "{} of {matched} pods enforce generation {}; no answer yet from: {}",
                    self.enforced,
                    policy.generation,
                    list(&self.waiting)
                ),
            ));
        }
        None
    }
}

fn standing(policy: &Policy, endpoints: &[Endpoint], seen: &Seen<'_>) -> Standing {
    if !seen.pod.injected {
        return Standing::Uninjected;
    }
    let captures = |endpoint: &Endpoint| {
        seen.pod.captured.as_ref().is_none_or(|captured| {
            captured
                .iter()
                .any(|one| one.port == endpoint.port && one.host == endpoint.host)
        })
    };
    if !endpoints.iter().all(captures) {
        return Standing::NotCaptured;
    }
    let Some(report) = seen.report else {
        return Standing::NotConnected;
    };
    let ack = report
        .policies
        .iter()
        .find(|ack| ack.policy == policy.name && ack.generation == policy.generation);
    match ack {
        None => Standing::Waiting,
        Some(ack) if ack.reason.is_empty() => Standing::Enforces,
        Some(ack) if ack.reason == "NotCaptured" => Standing::NotCaptured,
        Some(ack) => Standing::Refuses {
            reason: ack.reason.clone(),
            message: ack.message.clone(),
        },
    }
}

fn degraded(
    policy: &Policy,
    counts: &Counts,
    losses: usize,
    now: Timestamp,
) -> (Truth, &'static str, String) {
    if let Some(first) = counts.unresolved.first() {
        let database = first
            .database
            .as_ref()
            .map(|name| format!(" of database {name}"))
            .unwrap_or_default();
        let more = counts.unresolved.len().saturating_sub(1);
        return (
            True,
            "UnresolvedNames",
            format!(
                "{} names {}{database}, which does not exist{}",
                first.field,
                first.name,
                if more > 0 {
                    format!(" (and {more} more: status.unresolved)")
                } else {
                    String::new()
                }
            ),
        );
    }
    if losses > 0 {
        return (
            True,
            "ReceiptsLost",
            format!(
                "{losses} pods ended without delivering all receipts; a signed gap stands in the log (weir audit)"
            ),
        );
    }
    if counts.dropped > 0 {
        return (
            True,
            "ReceiptsLost",
            format!(
                "{} events were dropped by sidecars whose spool was full; the log holds a signed gap",
                counts.dropped
            ),
        );
    }
    // Who held the lease before may have known of losses that we were not told.
    let earlier = policy.status.conditions.iter().find(|condition| {
        condition.type_ == "Degraded" && condition.status == "True" && condition.reason == "ReceiptsLost"
    });
    match earlier {
        Some(earlier) if now.duration_since(earlier.last_transition_time.0) < LOSS_COUNTS => {
            (True, "ReceiptsLost", earlier.message.clone())
        }
        _ => (
            False,
            "AsExpected",
            "no unresolved names and no lost receipts".to_owned(),
        ),
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn first(names: &[String]) -> Vec<String> {
    names.iter().take(NAMES_MAX).cloned().collect()
}

fn list(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(NAMES_IN_MESSAGE)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > NAMES_IN_MESSAGE {
        text.push_str(&format!(
            " and {} more",
            names.len().saturating_sub(NAMES_IN_MESSAGE)
        ));
    }
    text
}

fn all_pods(matched: usize) -> String {
    match matched {
        1 => "the selected pod and its sidecar".to_owned(),
        _ => format!("all {matched} selected pods"),
    }
}

fn of(count: usize, matched: usize) -> String {
    format!("{count} of {matched} pods")
}

fn run(count: usize, matched: usize) -> String {
    format!(
        "{} {}",
        of(count, matched),
        if count == 1 { "runs" } else { "run" }
    )
}

fn were(count: usize, matched: usize) -> String {
    format!(
        "{} {}",
        of(count, matched),
        if count == 1 { "was" } else { "were" }
    )
}
