//! What of a pod makes it impossible to govern it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::capture::Plan;
use crate::contract::{ADMIN_PORT, CA_MOUNT, CA_VOLUME, CONTAINER, TOKEN_AUDIENCE, VOLUME_PREFIX};
use crate::refusal::{Reason, Refusal};
use crate::settings::Settings;
use crate::{captured_before, host_aliases};

/// Below this the sidecar has no time to deliver what it has.
const GRACE_SECONDS_MIN: i64 = 5;

/// Whether the pod is a pod: all that comes later relies on it.
pub(crate) fn shape(pod: &Value) -> Result<(), Refusal> {
    let wrong = |message: String| Err(Refusal::new(Reason::Malformed, message, "correct the pod"));
    let Some(spec) = pod.get("spec").and_then(Value::as_object) else {
        return wrong("the pod has no spec".to_owned());
    };
    for key in ["metadata", "metadata/annotations", "metadata/labels"] {
        let member = pod.pointer(&format!("/{key}"));
        if member.is_some_and(|member| !member.is_object() && !member.is_null()) {
            return wrong(format!("{} is no object", key.replace('/', ".")));
        }
    }
    for key in [
        "containers",
        "initContainers",
        "ephemeralContainers",
        "volumes",
        "hostAliases",
    ] {
        let items = match spec.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(items)) => items,
            Some(_) => return wrong(format!("spec.{key} is no list")),
        };
        if let Some(index) = items.iter().position(|item| !item.is_object()) {
            return wrong(format!("spec.{key}[{index}] is no object"));
        }
        for (index, item) in items.iter().enumerate() {
            for inner in ["volumeMounts", "env", "envFrom", "ports"] {
                let list = item.get(inner);
                let good = list.is_none_or(|list| {
                    list.is_null()
                        || list
                            .as_array()
                            .is_some_and(|list| list.iter().all(Value::is_object))
                });
                if !good {
                    return wrong(format!("spec.{key}[{index}].{inner} is no list of objects"));
                }
            }
        }
    }
    if items(pod, "containers").next().is_none() {
        return wrong("the pod has no containers".to_owned());
    }
    Ok(())
}

/// Everything else, each reason once for each place.
pub(crate) fn pod(
    pod: &Value,
    plan: &Plan,
    settings: &Settings,
    refusals: &mut Vec<Refusal>,
    warnings: &mut Vec<String>,
) {
    whole(pod, refusals);
    users(pod, settings, refusals);
    names(pod, plan, refusals);
    tokens(pod, refusals);
    for container in applications(pod) {
        ports(container, plan, refusals);
        mounts(container, plan, refusals);
    }
    aliases(pod, plan, refusals);
    advise(pod, plan, settings, warnings);
}

/// The items of a list in the pod's spec.
pub(crate) fn items<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.get("spec")
        .and_then(|spec| spec.get(list))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The items of a list in a container.
pub(crate) fn inner<'a>(container: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    container
        .get(list)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The container's name.
pub(crate) fn name(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Every container but a sidecar among the init containers, which is replaced.
fn applications(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, "initContainers")
        .filter(|container| name(container) != CONTAINER)
        .chain(items(pod, "containers"))
}

fn whole(pod: &Value, refusals: &mut Vec<Refusal>) {
    let mut refuse = |reason, message: &str, mend: &str| refusals.push(Refusal::new(reason, message, mend));
    let spec = pod.get("spec");
    let says = |key: &str| spec.and_then(|spec| spec.get(key)).and_then(Value::as_bool) == Some(true);
    if says("hostNetwork") {
        refuse(
            Reason::HostNetwork,
            "the pod uses the node's network (hostNetwork: true), so its hosts entries and ports are the node's",
            "set hostNetwork: false",
        );
    }
    let os = pod.pointer("/spec/os/name").and_then(Value::as_str);
    let node = spec
        .and_then(|spec| spec.pointer("/nodeSelector"))
        .and_then(|selector| selector.get("kubernetes.io/os"))
        .and_then(Value::as_str);
    if os == Some("windows") || node == Some("windows") {
        refuse(
            Reason::Windows,
            "the pod is a Windows pod",
            "run it on Linux, or remove the annotation",
        );
    }
    let mirror = pod
        .pointer("/metadata/annotations")
        .is_some_and(|annotations| annotations.get("kubernetes.io/config.mirror").is_some());
    if mirror {
        refuse(
            Reason::StaticPod,
            "the pod is a static pod, which the kubelet runs from its own manifest",
            "run it by a Deployment or DaemonSet",
        );
    }
    for key in ["shareProcessNamespace", "hostPID"] {
        if says(key) {
            refuse(
                Reason::SharedProcesses,
                &format!("{key}: true lets other containers reach into the sidecar's process"),
                &format!("set {key}: false"),
            );
        }
    }
    if items(pod, "ephemeralContainers").next().is_some() {
        refuse(
            Reason::EphemeralContainers,
            "the pod is made with ephemeral containers",
            "add debug containers to the running pod",
        );
    }
}

fn users(pod: &Value, settings: &Settings, refusals: &mut Vec<Refusal>) {
    let taken = |holder: &Value| {
        holder
            .pointer("/securityContext/runAsUser")
            .and_then(Value::as_i64)
            == Some(settings.uid)
    };
    let mut refuse = |who: &str| {
        refusals.push(Refusal::new(
            Reason::TakenUser,
            format!("{who} runs as UID {}, which is the sidecar's", settings.uid),
            "set another securityContext.runAsUser",
        ));
    };
    if pod.get("spec").is_some_and(taken) {
        refuse("the pod");
    }
    for container in applications(pod) {
        if taken(container) {
            refuse(&format!("container {}", name(container)));
        }
    }
}

fn names(pod: &Value, plan: &Plan, refusals: &mut Vec<Refusal>) {
    if items(pod, "containers").any(|container| name(container) == CONTAINER) {
        refusals.push(Refusal::new(
            Reason::TakenName,
            format!("a container of the application is called {CONTAINER}"),
            "give it another name",
        ));
    }
    for container in applications(pod) {
        for mount in inner(container, "volumeMounts").chain(inner(container, "volumeDevices")) {
            let volume = name(mount);
            if volume.starts_with(VOLUME_PREFIX) && !is_ca_mount(mount) {
                refusals.push(Refusal::new(
                    Reason::TakenVolume,
                    format!("container {} mounts the volume {volume}", name(container)),
                    format!("volume names that begin with `{VOLUME_PREFIX}` are the sidecar's: give it another name"),
                ));
            } else if plan.needs_ca && hides(mount, &[CA_MOUNT, "/run/weir"]) {
                refusals.push(Refusal::new(
                    Reason::HidesCa,
                    format!(
                        "container {} has a mount of its own at {}",
                        name(container),
                        path(mount)
                    ),
                    format!(
                        "a policy shows its authority's certificate at {CA_MOUNT}: mount at another path"
                    ),
                ));
            }
        }
    }
}

/// Whoever has a token for our audience gets the pod's identity, as the sidecar does: its policies, and its word. Volumes
/// with our names are replaced and need no look.
fn tokens(pod: &Value, refusals: &mut Vec<Refusal>) {
    for volume in items(pod, "volumes").filter(|volume| !name(volume).starts_with(VOLUME_PREFIX)) {
        let audiences = volume
            .pointer("/projected/sources")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|source| source.pointer("/serviceAccountToken/audience")?.as_str());
        if audiences.into_iter().any(|audience| audience == TOKEN_AUDIENCE) {
            refusals.push(Refusal::new(
                Reason::TakenToken,
                format!("volume {} projects a token for {TOKEN_AUDIENCE}", name(volume)),
                "such a token is the sidecar's alone: take it out, or give it another audience",
            ));
        }
    }
}

/// Whether it is the one mount of ours that applications have.
pub(crate) fn is_ca_mount(mount: &Value) -> bool {
    name(mount) == CA_VOLUME
        && mount.get("mountPath").and_then(Value::as_str) == Some(CA_MOUNT)
        && mount.get("readOnly").and_then(Value::as_bool) == Some(true)
        && mount.get("subPath").is_none()
        && mount.get("subPathExpr").is_none()
}

fn ports(container: &Value, plan: &Plan, refusals: &mut Vec<Refusal>) {
    let mut told = BTreeSet::new();
    for port in inner(container, "ports") {
        let tcp = port
            .get("protocol")
            .and_then(Value::as_str)
            .is_none_or(|it| it == "TCP");
        let Some(number) = port.get("containerPort").and_then(Value::as_u64).filter(|_| tcp) else {
            continue;
        };
        let captured = plan.captured.iter().find(|it| u64::from(it.port) == number);
        let whose = match captured {
            Some(endpoint) => format!("the sidecar listens on {} for {}", endpoint.listen, endpoint.host),
            None if number == u64::from(ADMIN_PORT) => "the sidecar has its admin pages there".to_owned(),
            None => continue,
        };
        if told.insert(number) {
            refusals.push(Refusal::new(
                Reason::TakenPort,
                format!("container {} has the port {number}, and {whose}", name(container)),
                "let the container listen on another port, or narrow the policy's podSelector (a database does not \
                 need to be in front of itself)",
            ));
        }
    }
}

/// Files that lead a resolver. Whoever can replace them goes around the alias.
const LEADING: [&str; 4] = ["/etc", "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf"];

fn mounts(container: &Value, plan: &Plan, refusals: &mut Vec<Refusal>) {
    if !plan.aliases() {
        return;
    }
    for mount in inner(container, "volumeMounts") {
        let path = path(mount);
        if path == "/" || LEADING.contains(&path.as_str()) {
            refusals.push(Refusal::new(
                Reason::HidesHosts,
                format!(
                    "container {} mounts a volume at {path}, which hides the hosts file",
                    name(container)
                ),
                "mount single files below /etc, or use database.capture.mode: Env in the policy",
            ));
        }
    }
}

/// Whether the mount is at one of the paths or below.
fn hides(mount: &Value, paths: &[&str]) -> bool {
    let at = path(mount);
    !is_ca_mount(mount)
        && paths.iter().any(|path| {
            at.strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// The mount's path without what a path may hold and not mean.
fn path(mount: &Value) -> String {
    let text = mount.get("mountPath").and_then(Value::as_str).unwrap_or_default();
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn aliases(pod: &Value, plan: &Plan, refusals: &mut Vec<Refusal>) {
    let governed: BTreeSet<&str> = plan
        .captured
        .iter()
        .flat_map(|endpoint| endpoint.names.iter().map(String::as_str))
        .collect();
    for entry in foreign_aliases(pod, plan) {
        for host in inner(entry, "hostnames").filter_map(Value::as_str) {
            let canonical = host.trim_end_matches('.').to_ascii_lowercase();
            if governed.contains(canonical.as_str()) {
                refusals.push(Refusal::new(
                    Reason::OwnHostAlias,
                    format!("the pod has a hostAliases entry of its own for {host}, which a policy governs"),
                    "remove the entry",
                ));
            }
        }
    }
}

/// The pod's hosts entries but for those that are ours: of this pass, or of the pass that the annotation tells of.
pub(crate) fn foreign_aliases<'a>(pod: &'a Value, plan: &Plan) -> Vec<&'a Value> {
    let mut ours = host_aliases(&plan.captured);
    ours.extend(host_aliases(&captured_before(pod)));
    items(pod, "hostAliases")
        .filter(|entry| !ours.contains(entry))
        .collect()
}

fn advise(pod: &Value, plan: &Plan, settings: &Settings, warnings: &mut Vec<String>) {
    for endpoint in plan.captured.iter().filter(|endpoint| endpoint.port < 1024) {
        warnings.push(format!(
            "the sidecar must listen on port {} for {}: the node's containers need net.ipv4.ip_unprivileged_port_start \
             of {0} or less (containerd's default is 0)",
            endpoint.port, endpoint.host
        ));
    }
    if pod
        .pointer("/spec/resources")
        .is_some_and(|resources| !resources.is_null())
    {
        warnings.push(format!(
            "spec.resources bounds the sidecar too: leave room for its {} CPU and {} memory",
            settings.resources.cpu_request, settings.resources.memory_request
        ));
    }
    let grace = pod
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_i64);
    if let Some(grace) = grace.filter(|grace| *grace < GRACE_SECONDS_MIN) {
        warnings.push(format!(
            "terminationGracePeriodSeconds: {grace} leaves the sidecar no time to deliver its last receipts"
        ));
    }
}
