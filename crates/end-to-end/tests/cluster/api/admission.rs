//! What the chart puts into the API server, while no operator answers: the webhooks fail closed for those who opted in
//! and for nobody else.

use super::{Test, installed};
use anyhow::{Result, ensure};
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[(
    "without_operator_only_opted_in_pods_are_refused",
    without_operator_only_opted_in_pods_are_refused,
)];

fn without_operator_only_opted_in_pods_are_refused(release: Release) -> Result<()> {
    let server = installed(release)?;
    let said = |metadata: &str, spec: &str| {
        server.kubectl().try_with(
            &["create", "--dry-run=server", "-n", "default", "-f", "-"],
            &format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a{metadata}}}, spec: {{containers: [{{name: app, image: a}}]{spec}}}}}"),
        )
    };
    for annotation in ["", ", annotations: {weir.dev/inject: 'false'}"] {
        let said = said(annotation, "")?;
        ensure!(said.ok, "`{annotation}` should pass: {}", said.err);
    }
    for annotation in ["true", "yes", ""] {
        let said = said(&format!(", annotations: {{weir.dev/inject: '{annotation}'}}"), "")?;
        ensure!(
            !said.ok
                && said
                    .err
                    .contains("failed calling webhook \"annotated.pods.weir.dev\""),
            "`{annotation}` should wait for the operator: {}",
            said.err
        );
    }
    let fake = said(
        "",
        ", initContainers: [{name: weir-sidecar, image: a, restartPolicy: Always}]",
    )?;
    ensure!(
        !fake.ok && fake.err.contains("only the webhook makes weir-sidecar"),
        "a hand-written sidecar should be refused: {}",
        fake.err
    );
    Ok(())
}
