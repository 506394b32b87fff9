//! `helm uninstall`: not while pods depend on it, and not for ever.

use super::Test;
use super::weir::{self, SYSTEM, masked};
use anyhow::{Result, ensure};
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] =
    &[("it_is_guarded_and_can_be_undone", it_is_guarded_and_can_be_undone)];

fn it_is_guarded_and_can_be_undone(node: &Node) -> Result<()> {
    let weir = weir::alone(node)?;
    let shop = weir.shop("removal")?;
    shop.apply_workload("worker")?;
    shop.wait_answer("pod/worker-0", "new", 0, 60, masked)?;

    let said = weir
        .kubectl
        .try_helm(&["uninstall", "weir", "-n", SYSTEM, "--timeout", "120s"])?;
    let told = format!("{}{}", said.out, said.err);
    ensure!(!said.ok, "it was uninstalled under a pod with a sidecar: {told}");
    for wanted in [
        "kubectl -n removal rollout restart statefulset/worker",
        "helm uninstall --no-hooks",
        "helm rollback weir ",
    ] {
        ensure!(told.contains(wanted), "it does not say `{wanted}`: {told}");
    }
    // Nothing is gone, and helm goes on as it says.
    let revision = weir.revision()?;
    ensure!(
        told.contains(&format!("helm rollback weir {revision} -n {SYSTEM}")),
        "{told}"
    );
    weir.kubectl
        .helm(&["rollback", "weir", &revision, "-n", SYSTEM, "--wait"])?;
    weir.install(&[])?;
    let seen = shop.answered("pod/worker-0")?;
    shop.wait_answer("pod/worker-0", "new", seen, 30, masked)?;
    weir.kubectl
        .run(&["get", "mutatingwebhookconfiguration", "weir-pods"])?;

    shop.run(&["delete", "statefulset", "worker", "--wait=true"])?;
    // Those of other tests, too, whose namespaces are ending.
    let injected = ["get", "pods", "-A", "-l", "weir.dev/injected=true", "-o", "name"];
    weir.kubectl.wait(&injected, 120, str::is_empty)?;
    weir.kubectl
        .helm(&["uninstall", "weir", "-n", SYSTEM, "--wait", "--timeout", "120s"])?;
    // Nothing of it stands in the way of pods any more.
    let ask = ["python3", "-u", "/app/client.py", "once", "select 1"];
    let asks = weir::client("after", r#"{weir.dev/inject: "true"}"#, "{weir-demo: shop}", &ask);
    // The API server forgets admission policies within a second or two.
    shop.wait_for_apply(&asks)?;

    // And it can come back: an API server that saw its policies go must take them again.
    weir.install(&[])?;
    shop.apply_workload("worker")?;
    shop.wait_answer("pod/worker-0", "new", 0, 90, masked)?;
    Ok(())
}
