//! The policies that the API server itself enforces on pods, each rule by what would get around it. No webhook is asked
//! here, and RBAC gives the user everything about pods, so only these policies can refuse.

use super::{Answers, Test, backstop};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_support::cluster::{ApiServer, Release};

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "debug_containers_stay_out_of_the_sidecar",
        debug_containers_stay_out_of_the_sidecar,
    ),
    (
        "installed_again_it_takes_injected_pods",
        installed_again_it_takes_injected_pods,
    ),
    (
        "live_pods_keep_what_was_injected",
        live_pods_keep_what_was_injected,
    ),
    ("nobody_enters_the_sidecar", nobody_enters_the_sidecar),
    ("opting_in_needs_a_sidecar", opting_in_needs_a_sidecar),
    (
        "other_containers_stay_out_of_the_sidecar",
        other_containers_stay_out_of_the_sidecar,
    ),
    (
        "the_sidecar_is_as_the_webhook_makes_it",
        the_sidecar_is_as_the_webhook_makes_it,
    ),
];

const PEOPLE: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pods}
rules:
- apiGroups: ['']
  resources: [pods, pods/exec, pods/attach, pods/ephemeralcontainers, pods/status, pods/resize]
  verbs: ['*']
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pods}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: dev}]
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: gvisor}
handler: runsc
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Namespace
metadata: {name: enabled, labels: {weir.dev/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: required, labels: {weir.dev/inject: required}}
---
apiVersion: v1
kind: Namespace
metadata: {name: mistyped, labels: {weir.dev/inject: 'yes'}}
---
apiVersion: v1
kind: Namespace
metadata: {name: restricted, labels: {pod-security.kubernetes.io/enforce: restricted}}
";

pub(super) fn server(release: Release) -> Result<ApiServer> {
    let server = backstop(release)?;
    server.kubectl().apply("default", PEOPLE)?;
    Ok(server)
}

/// The golden pod `plain`, as the webhook makes it.
fn injected(namespace: &str) -> Result<Value> {
    let path = test_support::workspace_root().join("crates/pod-injection/tests/pods/plain.patched.yaml");
    let mut pod: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    pod["metadata"]["namespace"] = json!(namespace);
    // An API server alone runs without the plugin that fills this in, before any webhook.
    pod["spec"]["serviceAccountName"] = json!("default");
    Ok(pod)
}

/// A pod that nobody injected.
fn plain(namespace: &str, annotation: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "report", "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    });
    if let Some(annotation) = annotation {
        pod["metadata"]["annotations"] = json!({"weir.dev/inject": annotation});
    }
    pod
}

fn opting_in_needs_a_sidecar(release: Release) -> Result<()> {
    let server = server(release)?;
    let mut answers = Answers::of(&server);
    let missing = Some("has no weir-sidecar in front");
    let mistyped = Some("must be \"true\" or \"false\"");
    for (namespace, annotation, refused) in [
        ("plain", None, None),
        ("plain", Some("false"), None),
        ("plain", Some("true"), missing),
        ("plain", Some("yes"), mistyped),
        ("plain", Some("True"), mistyped),
        ("plain", Some("False"), mistyped),
        ("plain", Some(""), mistyped),
        ("enabled", None, missing),
        ("enabled", Some("true"), missing),
        ("enabled", Some("false"), None),
        ("required", None, missing),
        (
            "required",
            Some("false"),
            Some("the namespace requires injection"),
        ),
        ("mistyped", None, missing),
        ("kube-system", Some("true"), None),
        ("weir-system", Some("true"), None),
    ] {
        answers.pod(
            &format!("{annotation:?} in {namespace}"),
            &plain(namespace, annotation),
            refused,
        )?;
    }
    for namespace in ["plain", "enabled", "required"] {
        answers.pod(namespace, &injected(namespace)?, None)?;
    }
    // Pod Security: the application's own container must be clean too.
    let mut restricted = injected("restricted")?;
    restricted["spec"]["containers"][0]["securityContext"] = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    answers.pod("an injected pod under Pod Security restricted", &restricted, None)?;
    restricted["spec"]["initContainers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    answers.pod("the same, loosened", &restricted, Some("violates PodSecurity"))?;
    answers.finish(20)
}

/// One change of an injected pod, and with which words it is refused.
type Change = (&'static str, fn(&mut Value), Option<&'static str>);

fn changed(release: Release, changes: &[Change]) -> Result<()> {
    let server = server(release)?;
    let mut answers = Answers::of(&server);
    for (what, change, refused) in changes {
        let mut pod = injected("plain")?;
        change(&mut pod);
        answers.pod(what, &pod, *refused)?;
    }
    answers.finish(changes.len())
}

fn sidecar(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["initContainers"][0]
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

fn in_front(pod: &mut Value, name: &str) {
    if let Value::Array(items) = &mut pod["spec"]["initContainers"] {
        items.insert(0, json!({"name": name, "image": "a"}));
    }
}

fn the_sidecar_is_as_the_webhook_makes_it(release: Release) -> Result<()> {
    let bare = Some("no command, args, envFrom, lifecycle or exec probe");
    let variables = Some("variables of Weir alone");
    changed(
        release,
        &[
            (
                "an init container in front",
                |pod| in_front(pod, "first"),
                Some("has no weir-sidecar in front"),
            ),
            (
                "a network proxy in front",
                |pod| in_front(pod, "istio-proxy"),
                None,
            ),
            (
                "an init container behind",
                |pod| {
                    push(
                        &mut pod["spec"]["initContainers"],
                        json!({"name": "x", "image": "a"}),
                    )
                },
                None,
            ),
            (
                "only proxies",
                |pod| pod["spec"]["initContainers"] = json!([{"name": "istio-proxy", "image": "a"}]),
                Some("has no weir-sidecar in front"),
            ),
            (
                "a sidecar that nobody asked for",
                |pod| pod["metadata"]["annotations"]["weir.dev/inject"] = json!("false"),
                Some("only the webhook makes weir-sidecar"),
            ),
            (
                "a sidecar without an annotation",
                |pod| pod["metadata"]["annotations"] = json!({}),
                Some("only the webhook makes weir-sidecar"),
            ),
            (
                "an application of that name",
                |pod| pod["spec"] = json!({"containers": [{"name": "weir-sidecar", "image": "a"}]}),
                Some("has no weir-sidecar in front"),
            ),
            (
                "a container behind of that name, the real one in front renamed",
                |pod| {
                    sidecar(pod)["name"] = json!("weir-sidecar2");
                    push(
                        &mut pod["spec"]["containers"],
                        json!({"name": "weir-sidecar", "image": "a"}),
                    );
                },
                Some("has no weir-sidecar in front"),
            ),
            (
                "not a native sidecar",
                |pod| {
                    if let Some(sidecar) = sidecar(pod).as_object_mut() {
                        sidecar.retain(|key, _| key != "restartPolicy" && !key.ends_with("Probe"));
                    }
                },
                Some("restartPolicy Always"),
            ),
            (
                "another user",
                |pod| sidecar(pod)["securityContext"]["runAsUser"] = json!(1000),
                Some("run as UID 15090"),
            ),
            (
                "no user",
                |pod| sidecar(pod)["securityContext"] = json!({"runAsNonRoot": true}),
                Some("run as UID 15090"),
            ),
            (
                "privileged",
                |pod| {
                    sidecar(pod)["securityContext"]["privileged"] = json!(true);
                    sidecar(pod)["securityContext"]["allowPrivilegeEscalation"] = json!(true);
                },
                Some("without privileges"),
            ),
            (
                "another image",
                |pod| sidecar(pod)["image"] = json!("evil"),
                Some("not evil"),
            ),
            (
                "an image whose name begins as ours",
                |pod| sidecar(pod)["image"] = json!("registry.example.com/weir:1.0.0-evil"),
                Some("weir:1.0.0-evil"),
            ),
            (
                "an empty image",
                |pod| sidecar(pod)["image"] = json!(""),
                Some(""),
            ),
            (
                "an image that was",
                |pod| sidecar(pod)["image"] = json!("registry.example.com/weir:0.9.0"),
                None,
            ),
            ("command", |pod| sidecar(pod)["command"] = json!(["sh"]), bare),
            (
                "args",
                |pod| sidecar(pod)["args"] = json!(["--policy-dir=/tmp"]),
                bare,
            ),
            (
                "envFrom",
                |pod| sidecar(pod)["envFrom"] = json!([{"secretRef": {"name": "x"}}]),
                bare,
            ),
            (
                "lifecycle",
                |pod| sidecar(pod)["lifecycle"] = json!({"preStop": {"exec": {"command": ["x"]}}}),
                bare,
            ),
            (
                "a probe that runs a program in it",
                |pod| sidecar(pod)["livenessProbe"] = json!({"exec": {"command": ["sh", "-c", "kill 1"]}}),
                bare,
            ),
            (
                "a startup probe that does",
                |pod| sidecar(pod)["startupProbe"] = json!({"exec": {"command": ["sh"]}}),
                bare,
            ),
            (
                "a readiness probe that does",
                |pod| sidecar(pod)["readinessProbe"] = json!({"exec": {"command": ["sh"]}}),
                bare,
            ),
            (
                "a foreign variable",
                |pod| {
                    push(
                        &mut sidecar(pod)["env"],
                        json!({"name": "LD_PRELOAD", "value": "/x"}),
                    )
                },
                variables,
            ),
            (
                "policies from a folder",
                |pod| {
                    push(
                        &mut sidecar(pod)["env"],
                        json!({"name": "WEIR_POLICY_DIR", "value": "/x"}),
                    )
                },
                variables,
            ),
            (
                "a settings file",
                |pod| {
                    push(
                        &mut sidecar(pod)["env"],
                        json!({"name": "WEIR_CONFIG", "value": "/x"}),
                    )
                },
                variables,
            ),
            (
                "open to the network",
                |pod| {
                    push(
                        &mut sidecar(pod)["env"],
                        json!({"name": "WEIR_ALLOW_REMOTE_CLIENTS", "value": "true"}),
                    )
                },
                variables,
            ),
            (
                "another operator",
                |pod| sidecar(pod)["env"][0]["value"] = json!("evil:9444"),
                Some("WEIR_OPERATOR must be"),
            ),
            (
                "another operator, by reference",
                |pod| {
                    sidecar(pod)["env"][0] = json!({"name": "WEIR_OPERATOR",
                    "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}});
                },
                Some("WEIR_OPERATOR must be"),
            ),
            (
                "a second operator",
                |pod| {
                    push(
                        &mut sidecar(pod)["env"],
                        json!({"name": "WEIR_OPERATOR", "value": "evil:9444"}),
                    )
                },
                Some("WEIR_OPERATOR must be"),
            ),
            (
                "another way to the operator",
                |pod| {
                    push(
                        &mut pod["spec"]["hostAliases"],
                        json!({"ip": "10.0.0.9", "hostnames": ["weir-operator.weir-system.svc"]}),
                    );
                },
                Some("must not name the operator"),
            ),
            (
                "a foreign volume",
                |pod| {
                    push(
                        &mut pod["spec"]["volumes"],
                        json!({"name": "data", "emptyDir": {}}),
                    );
                    push(
                        &mut sidecar(pod)["volumeMounts"],
                        json!({"name": "data", "mountPath": "/x"}),
                    );
                },
                Some("mount volumes of Weir alone"),
            ),
            (
                "the spool on the node",
                |pod| pod["spec"]["volumes"][2] = json!({"name": "weir-spool", "hostPath": {"path": "/x"}}),
                Some("must be the sidecar's"),
            ),
            (
                "the spool on a disk that outlives the pod",
                |pod| {
                    pod["spec"]["volumes"][2] =
                        json!({"name": "weir-spool", "persistentVolumeClaim": {"claimName": "x"}});
                },
                Some("must be the sidecar's"),
            ),
            (
                "no label",
                |pod| pod["metadata"]["labels"] = json!({}),
                Some("has the label weir.dev/injected"),
            ),
            (
                "the label says no",
                |pod| pod["metadata"]["labels"]["weir.dev/injected"] = json!("false"),
                Some("has the label weir.dev/injected"),
            ),
        ],
    )
}

fn other_containers_stay_out_of_the_sidecar(release: Release) -> Result<()> {
    fn mount(list: &mut Value, volume: &str, path: &str, read_only: bool) {
        push(
            list,
            json!({"name": volume, "mountPath": path, "readOnly": read_only}),
        );
    }
    fn init(pod: &mut Value, more: Value) {
        let mut container = json!({"name": "x", "image": "a"});
        if let (Some(to), Some(more)) = (container.as_object_mut(), more.as_object()) {
            to.extend(more.clone());
        }
        push(&mut pod["spec"]["initContainers"], container);
    }
    let volumes = Some("no other container may mount");
    let user = Some("no other container of a pod with weir-sidecar may run as UID");
    let shared = Some("must not have shareProcessNamespace");
    changed(
        release,
        &[
            (
                "a mount of the key",
                |pod| {
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-identity",
                        "/k",
                        true,
                    )
                },
                volumes,
            ),
            (
                "a mount of the receipts",
                |pod| {
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-spool",
                        "/k",
                        false,
                    )
                },
                volumes,
            ),
            (
                "a mount of the login",
                |pod| {
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-secret-orders-login",
                        "/k",
                        true,
                    )
                },
                volumes,
            ),
            (
                "a mount of the token by an init container",
                |pod| {
                    init(
                        pod,
                        json!({"volumeMounts": [{"name": "weir-token", "mountPath": "/k"}]}),
                    )
                },
                volumes,
            ),
            (
                "a mount of the token by a proxy in front",
                |pod| {
                    in_front(pod, "istio-proxy");
                    mount(
                        &mut pod["spec"]["initContainers"][0]["volumeMounts"],
                        "weir-token",
                        "/k",
                        true,
                    );
                },
                volumes,
            ),
            (
                "the authority's certificate",
                |pod| {
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-ca",
                        "/var/run/weir",
                        true,
                    )
                },
                None,
            ),
            (
                "the authority's certificate, to be written",
                |pod| {
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-ca",
                        "/var/run/weir",
                        false,
                    )
                },
                volumes,
            ),
            (
                "a token of its own for the pod's identity",
                |pod| {
                    let token =
                        json!({"serviceAccountToken": {"audience": "weir.dev/identity", "path": "t"}});
                    push(
                        &mut pod["spec"]["volumes"],
                        json!({"name": "mine", "projected": {"sources": [token]}}),
                    );
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "mine",
                        "/k",
                        true,
                    );
                },
                Some("no volume but weir-token may project a token"),
            ),
            (
                "such a token where the authority's certificate is",
                |pod| {
                    for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
                        if volume["name"] == "weir-ca" {
                            let token = json!({"serviceAccountToken": {"audience": "weir.dev/identity", "path": "t"}});
                            *volume = json!({"name": "weir-ca", "projected": {"sources": [token]}});
                        }
                    }
                },
                Some("no volume but weir-token may project a token"),
            ),
            (
                "a token for somebody else",
                |pod| {
                    let token = json!({"serviceAccountToken": {"audience": "vault", "path": "t"}});
                    push(
                        &mut pod["spec"]["volumes"],
                        json!({"name": "mine", "projected": {"sources": [token]}}),
                    );
                },
                None,
            ),
            (
                "the sidecar's user",
                |pod| pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 15090}),
                user,
            ),
            (
                "the sidecar's user by an init container",
                |pod| init(pod, json!({"securityContext": {"runAsUser": 15090}})),
                user,
            ),
            (
                "the sidecar's user for the pod",
                |pod| pod["spec"]["securityContext"] = json!({"runAsUser": 15090}),
                user,
            ),
            (
                "another user",
                |pod| pod["spec"]["securityContext"] = json!({"runAsUser": 1000}),
                None,
            ),
            (
                "shared processes",
                |pod| pod["spec"]["shareProcessNamespace"] = json!(true),
                shared,
            ),
            (
                "not shared",
                |pod| pod["spec"]["shareProcessNamespace"] = json!(false),
                None,
            ),
            (
                "the node's processes",
                |pod| pod["spec"]["hostPID"] = json!(true),
                shared,
            ),
            (
                "the node's network",
                |pod| {
                    pod["spec"]["hostNetwork"] = json!(true);
                    sidecar(pod)["ports"] = json!([]);
                    if let Some(sidecar) = sidecar(pod).as_object_mut() {
                        sidecar.retain(|key, _| !key.ends_with("Probe"));
                    }
                },
                shared,
            ),
            (
                "nothing of ours, all of that",
                |pod| {
                    *pod = plain("plain", None);
                    pod["spec"]["shareProcessNamespace"] = json!(true);
                    pod["spec"]["securityContext"] = json!({"runAsUser": 15090});
                    pod["spec"]["volumes"] = json!([{"name": "weir-data", "hostPath": {"path": "/x"}}]);
                    mount(
                        &mut pod["spec"]["containers"][0]["volumeMounts"],
                        "weir-data",
                        "/k",
                        false,
                    );
                },
                None,
            ),
        ],
    )
}

/// A pod that is there, named so.
fn kept(server: &ApiServer, name: &str, mut pod: Value) -> Result<Value> {
    pod["metadata"]["name"] = json!(name);
    let said = server
        .kubectl()
        .try_with(&["create", "-o", "json", "-f", "-"], &pod.to_string())?;
    ensure!(said.ok, "{}", said.err);
    Ok(serde_json::from_str(&said.out)?)
}

fn live_pods_keep_what_was_injected(release: Release) -> Result<()> {
    let server = server(release)?;
    let live = kept(&server, "live", injected("plain")?)?;
    kept(&server, "free", plain("plain", None))?;
    let mut answers = Answers::of(&server);
    let image = |image: &str| json!({"spec": {"initContainers": [{"name": "weir-sidecar", "image": image}]}});
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let annotations = |annotations: Value| json!({"metadata": {"annotations": annotations}});
    let (runs, made, labelled) = (
        Some("cannot change while the pod runs"),
        Some("say how the pod was made"),
        Some("says how the pod was made"),
    );
    for (pod, patch, refused) in [
        ("live", image("evil"), runs),
        ("live", image("registry.example.com/weir:0.9.0"), runs),
        (
            "live",
            json!({"spec": {"containers": [{"name": "app", "image": "b"}]}}),
            None,
        ),
        ("live", annotations(json!({"weir.dev/captured": "[]"})), made),
        ("live", annotations(json!({"weir.dev/captured": null})), made),
        ("live", annotations(json!({"weir.dev/injected": null})), made),
        ("live", annotations(json!({"other": "x"})), None),
        ("live", labels(json!({"other": "x"})), None),
        ("live", labels(json!({"weir.dev/injected": null})), labelled),
        ("live", labels(json!({"weir.dev/injected": "false"})), labelled),
        ("free", labels(json!({"weir.dev/injected": "true"})), labelled),
        ("free", annotations(json!({"weir.dev/captured": "[]"})), made),
        ("free", labels(json!({"other": "x"})), None),
        (
            "free",
            json!({"spec": {"containers": [{"name": "app", "image": "b"}]}}),
            None,
        ),
        // What was injected cannot be taken away: the API server itself holds that.
        (
            "live",
            json!({"spec": {"initContainers": [{"name": "weir-sidecar", "$patch": "delete"}]}}),
            Some(""),
        ),
        ("live", json!({"spec": {"hostAliases": null}}), Some("")),
    ] {
        let patch = patch.to_string();
        for (subresource, also) in [("", true), ("--subresource=status", patch.contains("metadata"))] {
            if !also {
                continue;
            }
            let mut arguments = vec![
                "patch",
                "--as=dev",
                "-n",
                "plain",
                "pod",
                pod,
                "--dry-run=server",
                "-p",
                &patch,
            ];
            if !subresource.is_empty() {
                arguments.push(subresource);
            }
            answers.expect(&format!("{pod} {patch} {subresource}"), &arguments, None, refused)?;
        }
    }
    // The same by PUT, as a whole object.
    let mut swapped = live.clone();
    sidecar(&mut swapped)["image"] = json!("evil");
    answers.expect(
        "PUT",
        &["replace", "--as=dev", "--dry-run=server", "-f", "-"],
        Some(&swapped),
        runs,
    )?;
    answers.expect(
        "PUT unchanged",
        &["replace", "--as=dev", "--dry-run=server", "-f", "-"],
        Some(&live),
        None,
    )?;
    answers.finish(25)
}

fn debug_containers_stay_out_of_the_sidecar(release: Release) -> Result<()> {
    let server = server(release)?;
    let live = kept(&server, "live", injected("plain")?)?;
    let free = kept(&server, "free", plain("plain", None))?;
    let mut answers = Answers::of(&server);
    let target = Some("must not target weir-sidecar");
    for (pod, with, refused) in [
        (&live, json!({}), None),
        (&live, json!({"targetContainerName": "app"}), None),
        (&live, json!({"targetContainerName": "weir-sidecar"}), target),
        (
            &live,
            json!({"securityContext": {"runAsUser": 15090}}),
            Some("must not run as UID 15090"),
        ),
        (&live, json!({"securityContext": {"runAsUser": 0}}), None),
        (
            &live,
            json!({"volumeMounts": [{"name": "weir-identity", "mountPath": "/k"}]}),
            Some("must not mount the volumes"),
        ),
        (&free, json!({"securityContext": {"runAsUser": 15090}}), None),
    ] {
        let mut debugger = json!({"name": "debug", "image": "busybox", "terminationMessagePolicy": "File",
            "imagePullPolicy": "Always"});
        debugger
            .as_object_mut()
            .context("a container")?
            .extend(with.as_object().cloned().unwrap_or_default());
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        // kubectl debug sends a PATCH of this kind; the whole object by PUT could leave out what shows the sidecar.
        let patch = json!({"spec": {"ephemeralContainers": [debugger]}}).to_string();
        answers.expect(
            &format!("PATCH {name} {debugger}"),
            &[
                "patch",
                "--as=dev",
                "-n",
                "plain",
                "pod",
                name,
                "--subresource=ephemeralcontainers",
                "--dry-run=server",
                "-p",
                &patch,
            ],
            None,
            refused,
        )?;
        for without_inits in [false, true] {
            let mut put = pod.clone();
            put["spec"]["ephemeralContainers"] = json!([debugger]);
            if without_inits {
                put["spec"]["initContainers"] = json!([]);
            }
            let path = format!("/api/v1/namespaces/plain/pods/{name}/ephemeralcontainers?dryRun=All");
            answers.expect(
                &format!("PUT {name} {debugger}, init containers left out: {without_inits}"),
                &["replace", "--as=dev", "--raw", &path, "-f", "-"],
                Some(&put),
                refused,
            )?;
        }
    }
    // kubectl itself.
    let debug = ["debug", "--as=dev", "-n", "plain", "live", "--image=busybox"];
    for (more, refused) in [("--target=weir-sidecar", target), ("--target=app", None)] {
        answers.expect(more, &[&debug[..], &[more]].concat(), None, refused)?;
    }
    answers.finish(20)
}

fn nobody_enters_the_sidecar(release: Release) -> Result<()> {
    let server = server(release)?;
    kept(&server, "live", injected("plain")?)?;
    kept(&server, "free", plain("plain", None))?;
    let mut answers = Answers::of(&server);
    let refused = "nobody may exec into weir-sidecar";
    // Where it is allowed the request fails later: no node runs the pod.
    let later = "does not have a host assigned";
    for what in ["exec", "attach"] {
        for user in ["dev", "admin"] {
            let impersonated = format!("--as={user}");
            let group = if user == "admin" {
                "--as-group=system:masters"
            } else {
                "--as-group=people"
            };
            for (container, words) in [
                ("container=weir-sidecar&", refused),
                ("container=app&", later),
                ("", later),
            ] {
                let path =
                    format!("/api/v1/namespaces/plain/pods/live/{what}?{container}stdout=true&command=id");
                answers.expect(
                    &format!("{user}: POST {path}"),
                    &["create", &impersonated, group, "--raw", &path, "-f", "-"],
                    Some(&json!({})),
                    Some(words),
                )?;
                answers.expect(
                    &format!("{user}: GET {path}"),
                    &["get", &impersonated, group, "--raw", &path],
                    None,
                    Some(words),
                )?;
            }
        }
    }
    // kubectl itself, with the container that the annotation names as default, and with ours.
    for (more, words) in [(&["-c", "weir-sidecar"][..], refused), (&[], later)] {
        let exec = [&["exec", "--as=dev", "-n", "plain", "live"], more, &["--", "id"]].concat();
        answers.expect(&exec.join(" "), &exec, None, Some(words))?;
    }
    answers.finish(26)
}

/// A policy with a parameter of a built-in kind does not come back before the API server restarts
/// (kubernetes/kubernetes#130887).
fn installed_again_it_takes_injected_pods(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    kubectl.helm(&["uninstall", "weir", "--namespace=weir-system", "--no-hooks"])?;
    let create = ["create", "--as=dev", "--dry-run=server", "-f", "-"];
    let opted_in = plain("plain", Some("true")).to_string();
    test_support::wait_for("the policies to be gone", 30, || {
        kubectl.try_with(&create, &opted_in).ok()?.ok.then_some(())
    })?;
    super::install_backstop(&server)?;
    let mut evil = injected("plain")?;
    sidecar(&mut evil)["image"] = json!("evil");
    let evil_text = evil.to_string();
    test_support::wait_for("the policies to be back", 30, || {
        (!kubectl.try_with(&create, &evil_text).ok()?.ok).then_some(())
    })?;
    let mut answers = Answers::of(&server);
    answers.pod("an injected pod", &injected("plain")?, None)?;
    answers.pod("with another image", &evil, Some("not evil"))?;
    answers.finish(2)
}
