//! What injection builds on: a pod runs, and sees its host aliases and a token made for another audience.

use super::Test;
use anyhow::{Result, ensure};
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[("aliases_and_tokens_are_seen", aliases_and_tokens_are_seen)];

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: seen}
spec:
  restartPolicy: Never
  hostAliases: [{ip: 127.0.0.1, hostnames: [db.example.test]}]
  containers:
  - name: seen
    image: weir.test/python-client:1
    command: [python3, -c]
    args:
    - |
      import base64, json, socket
      claims = open("/tokens/token").read().split(".")[1]
      claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
      print(socket.gethostbyname("db.example.test"), claims["aud"], claims["sub"])
    volumeMounts: [{name: tokens, mountPath: /tokens}]
  volumes:
  - name: tokens
    projected: {sources: [{serviceAccountToken: {path: token, audience: weir.dev/test, expirationSeconds: 600}}]}
"#;

fn aliases_and_tokens_are_seen(node: &Node) -> Result<()> {
    node.import_images(test_support::binary("weir")?.parent().unwrap_or("/".as_ref()))?;
    let kubectl = node.kubectl();
    let namespace = "pods-see";
    kubectl.namespace(namespace)?;
    kubectl.wait(&["get", "serviceaccount", "default", "-n", namespace], 30, |_| {
        true
    })?;
    kubectl.apply(namespace, POD)?;
    let phase = [
        "get",
        "pod",
        "seen",
        "-n",
        namespace,
        "-o",
        "jsonpath={.status.phase}",
    ];
    let phase = kubectl.wait(&phase, 60, |out| out == "Succeeded" || out == "Failed")?;
    let log = kubectl.run(&["logs", "seen", "-n", namespace])?;
    ensure!(phase == "Succeeded", "{phase}: {log}");
    ensure!(
        log.trim() == "127.0.0.1 ['weir.dev/test'] system:serviceaccount:pods-see:default",
        "{log}"
    );
    kubectl.drop_namespace(namespace);
    Ok(())
}
