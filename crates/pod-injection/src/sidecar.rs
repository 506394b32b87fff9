//! The sidecar itself: container, volumes, annotations. Every field that the API server would add by default is
//! written, so that a second pass finds what it would write.

use serde_json::{Value, json};

use crate::capture::Plan;
use crate::checks::{foreign_aliases, inner, is_ca_mount, items, name};
use crate::contract::{
    self, ADMIN_PORT, CA_DIR, CA_MOUNT, CA_VOLUME, CONTAINER, Captured, IDENTITY_DIR, Injected, SECRETS_DIR,
    SPOOL_DIR, TOKEN_AUDIENCE, TOKEN_DIR, TOKEN_FILE, VOLUME_PREFIX,
};
use crate::edit::Editor;
use crate::quantity::{nanos, whole};
use crate::settings::Settings;
use crate::{Context, host_aliases};

/// How long a token of the pod is valid; the kubelet renews it at 80 %.
const TOKEN_SECONDS: u32 = 3600;
/// The startup probe waits: a sidecar without a policy is not broken, and a crash loop would only make it slower.
const STARTUP_FAILURES_MAX: i32 = i32::MAX;
/// What the container's own logs may take of the node's disk, beside the spool.
const LOG_BYTES: u64 = 256 << 20;
/// Longest name of a volume.
const LABEL_BYTES_MAX: usize = 63;

/// Puts the sidecar into a pod that was found good.
pub(crate) fn put(editor: &mut Editor, plan: &Plan, context: &Context<'_>) {
    let settings = context.settings;
    let pod = editor.pod().clone();
    let mut others: Vec<Value> = items(&pod, "initContainers")
        .filter(|container| name(container) != CONTAINER)
        .cloned()
        .collect();
    let shape = Shape::of(&others, &pod);
    let place = others
        .iter()
        .take_while(|container| {
            settings
                .network_proxies
                .iter()
                .any(|proxy| proxy == name(container))
        })
        .count();
    others.insert(place, container(plan, context, &shape));
    editor.set_list("/spec", "initContainers", others);

    let mut all: Vec<Value> = items(&pod, "volumes")
        .filter(|volume| !name(volume).starts_with(VOLUME_PREFIX))
        .cloned()
        .collect();
    all.extend(volumes(plan, settings));
    editor.set_list("/spec", "volumes", all);

    let mut hosts: Vec<Value> = foreign_aliases(&pod, plan).into_iter().cloned().collect();
    hosts.extend(host_aliases(&plan.captured));
    editor.set_list("/spec", "hostAliases", hosts);

    for list in ["initContainers", "containers"] {
        let containers: Vec<Value> = items(editor.pod(), list).cloned().collect();
        for (index, container) in containers.iter().enumerate() {
            if name(container) != CONTAINER {
                let mut mounts: Vec<Value> = inner(container, "volumeMounts")
                    .filter(|mount| !is_ca_mount(mount) || plan.needs_ca)
                    .cloned()
                    .collect();
                if plan.needs_ca && !mounts.iter().any(is_ca_mount) {
                    mounts.push(json!({"name": CA_VOLUME, "mountPath": CA_MOUNT, "readOnly": true}));
                }
                editor.set_list(&format!("/spec/{list}/{index}"), "volumeMounts", mounts);
            }
        }
    }
    annotate(editor, &pod, plan, context);
}

/// What of the rest of the pod decides about the sidecar's resources.
struct Shape {
    /// All other containers have CPU and memory requests equal to their limits.
    guaranteed: bool,
    /// Some other container has a limit on the node's disk. The sum of the limits then bounds the pod.
    disk_limited: bool,
}

impl Shape {
    fn of(init: &[Value], pod: &Value) -> Self {
        let containers = || init.iter().chain(items(pod, "containers"));
        Self {
            guaranteed: containers().all(guaranteed),
            disk_limited: containers()
                .any(|container| container.pointer("/resources/limits/ephemeral-storage").is_some()),
        }
    }
}

fn guaranteed(container: &Value) -> bool {
    ["cpu", "memory"].iter().all(|resource| {
        let amount = |kind: &str| {
            let value = container.pointer(&format!("/resources/{kind}/{resource}"))?;
            nanos(
                &value
                    .as_str()
                    .map_or_else(|| value.to_string(), ToOwned::to_owned),
            )
        };
        let limit = amount("limits");
        limit.is_some_and(|limit| limit > 0)
            && (container
                .pointer(&format!("/resources/requests/{resource}"))
                .is_none()
                || amount("requests") == limit)
    })
}

fn container(plan: &Plan, context: &Context<'_>, shape: &Shape) -> Value {
    let settings = context.settings;
    let mut mounts = vec![
        json!({"name": "weir-token", "mountPath": TOKEN_DIR, "readOnly": true}),
        json!({"name": "weir-identity", "mountPath": IDENTITY_DIR}),
        json!({"name": "weir-spool", "mountPath": SPOOL_DIR}),
        json!({"name": CA_VOLUME, "mountPath": CA_DIR}),
    ];
    for secret in &plan.secrets {
        let at = format!("{SECRETS_DIR}/{secret}");
        mounts.push(json!({"name": secret_volume(secret), "mountPath": at, "readOnly": true}));
    }
    let probe = |path: &str, period: i32, failures: i32| {
        json!({
            "httpGet": {"path": path, "port": "weir-admin", "scheme": "HTTP"},
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "successThreshold": 1,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "env": environment(&plan.captured, context),
        "ports": [{"name": "weir-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        "resources": resources(settings, shape),
        "startupProbe": probe("/readyz", 1, STARTUP_FAILURES_MAX),
        "readinessProbe": probe("/readyz", 10, 3),
        "livenessProbe": probe("/healthz", 10, 3),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": settings.uid,
            "runAsGroup": settings.uid,
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

fn environment(captured: &[Captured], context: &Context<'_>) -> Vec<Value> {
    let value = |name: &str, value: String| json!({"name": name, "value": value});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    vec![
        value(contract::ENV_OPERATOR, context.settings.operator.clone()),
        value(contract::ENV_TRUST_BUNDLE, context.trust_bundle.to_owned()),
        value(contract::ENV_CAPTURED, json(captured)),
        field(contract::ENV_POD_NAME, "metadata.name"),
        field(contract::ENV_POD_NAMESPACE, "metadata.namespace"),
        field(contract::ENV_POD_UID, "metadata.uid"),
        field(contract::ENV_POD_IP, "status.podIP"),
        value(contract::ENV_ADMIN_PORT, ADMIN_PORT.to_string()),
        value(contract::ENV_TOKEN_FILE, format!("{TOKEN_DIR}/{TOKEN_FILE}")),
        value(contract::ENV_IDENTITY_DIR, IDENTITY_DIR.to_owned()),
        value(contract::ENV_SPOOL_DIR, SPOOL_DIR.to_owned()),
        value(
            contract::ENV_SPOOL_BYTES_MAX,
            (spool_bytes(context.settings) / 5 * 4).to_string(),
        ),
        value(contract::ENV_SECRETS_DIR, SECRETS_DIR.to_owned()),
        value(contract::ENV_CA_DIR, CA_DIR.to_owned()),
    ]
}

fn resources(settings: &Settings, shape: &Shape) -> Value {
    let its = &settings.resources;
    let (cpu, memory) = if shape.guaranteed {
        (&its.cpu_limit, &its.memory_limit)
    } else {
        (&its.cpu_request, &its.memory_request)
    };
    let mut requests = json!({"cpu": cpu, "memory": memory});
    let mut limits = json!({"cpu": its.cpu_limit, "memory": its.memory_limit});
    if shape.disk_limited {
        // The kubelet evicts a pod by the sum of these limits, and the spool counts.
        let bytes = spool_bytes(settings).saturating_add(LOG_BYTES);
        for (list, amount) in [(&mut requests, "0".to_owned()), (&mut limits, bytes.to_string())] {
            if let Some(list) = list.as_object_mut() {
                list.insert("ephemeral-storage".to_owned(), json!(amount));
            }
        }
    }
    json!({"requests": requests, "limits": limits})
}

fn spool_bytes(settings: &Settings) -> u64 {
    whole(&settings.spool_size).unwrap_or_default()
}

fn volumes(plan: &Plan, settings: &Settings) -> Vec<Value> {
    let mut volumes = vec![
        json!({
            "name": "weir-token",
            "projected": {
                "defaultMode": 0o644,
                "sources": [{"serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": TOKEN_FILE,
                }}],
            },
        }),
        // Whoever the sidecar runs as may write into an emptyDir (its mode is 0777), and only the sidecar mounts them.
        json!({"name": "weir-identity", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        json!({"name": "weir-spool", "emptyDir": {"sizeLimit": settings.spool_size}}),
        json!({"name": CA_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
    ];
    for secret in &plan.secrets {
        volumes.push(json!({
            "name": secret_volume(secret),
            "secret": {"secretName": secret, "optional": true, "defaultMode": 0o644},
        }));
    }
    volumes
}

/// The volume of a Secret. What is no name of a volume (a dot, too long) is told apart by a hash; so is what looks like
/// such a hash.
fn secret_volume(secret: &str) -> String {
    let plain = format!("{VOLUME_PREFIX}secret-{secret}");
    if plain.len() <= LABEL_BYTES_MAX && !secret.contains('.') && !secret.starts_with("h-") {
        return plain;
    }
    // FNV-1a: stable over versions of Rust, and nobody gains by a collision within one namespace but a refused pod.
    let hash = secret.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{VOLUME_PREFIX}secret-h-{hash:016x}")
}

fn annotate(editor: &mut Editor, pod: &Value, plan: &Plan, context: &Context<'_>) {
    let annotations = pod.pointer("/metadata/annotations");
    let first = items(pod, "containers")
        .map(name)
        .next()
        .unwrap_or_default()
        .to_owned();
    let at = "/metadata/annotations";
    for key in [
        "kubectl.kubernetes.io/default-container",
        "kubectl.kubernetes.io/default-logs-container",
    ] {
        let unset = annotations.is_none_or(|annotations| annotations.get(key).is_none());
        if unset && !first.is_empty() {
            editor.set(at, key, json!(first));
        }
    }
    let injected = Injected {
        version: context.version.to_owned(),
        image: context.settings.image.clone(),
    };
    editor.set(at, contract::CAPTURED, json!(json(&plan.captured)));
    editor.set(at, contract::INJECTED, json!(json(&injected)));
    editor.set("/metadata/labels", contract::INJECTED_LABEL, json!("true"));
}

/// JSON text of something of our own, whose keys are strings: it cannot fail.
fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_of_a_secret_is_a_name_and_its_own() {
        assert_eq!(secret_volume("orders-login"), "weir-secret-orders-login");
        let long = "a".repeat(60);
        let names = [
            secret_volume(&long),
            secret_volume("a.b"),
            secret_volume("h-0"),
            secret_volume("a-b"),
        ];
        for name in &names {
            assert!(name.len() <= 63 && !name.contains('.'), "{name}");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1);
        }
        assert_eq!(secret_volume("a.b"), secret_volume("a.b"));
    }
}
