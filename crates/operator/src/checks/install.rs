//! Does the API server reach the webhook? A dry run of a policy that only the webhook can refuse tells.

use std::time::Duration;

use crd_types::DatabaseAccessPolicy;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Finding, client};

/// The schema keeps unknown fields, so that the webhook can refuse them by name: nobody else refuses this one.
const UNKNOWN_FIELD: &str = "weirInstallCheck";
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn look(namespace: &str, wait: Duration) -> Finding {
    let client = match client().await {
        Ok(client) => client,
        Err(finding) => return finding,
    };
    let resource = ApiResource::erase::<DatabaseAccessPolicy>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let probe = probe(&resource);
    let params = PostParams {
        dry_run: true,
        field_manager: Some("weir-install-check".to_owned()),
    };
    let deadline = Instant::now() + wait;
    loop {
        let answer = judge(api.create(&params, &probe).await.map(|_| ()));
        let problem = match answer {
            Answer::Refused => {
                return Finding::Good(
                    "the API server reaches the webhook, and the webhook judges policies".to_owned(),
                );
            }
            Answer::Final(problem) => return Finding::Bad(problem),
            Answer::NotYet(problem) => problem,
        };
        if Instant::now() + PAUSE > deadline {
            return Finding::Bad(format!(
                "the webhook does not answer, for {} seconds now: {problem}\n\
                 Is the operator ready? kubectl -n {namespace} get pods\n\
                 Can the API server reach port 9443 of its pods? Private clusters need a firewall rule for it.",
                wait.as_secs()
            ));
        }
        sleep(PAUSE).await;
    }
}

fn probe(resource: &ApiResource) -> DynamicObject {
    DynamicObject::new("weir-install-check", resource).data(json!({
        "spec": {
            "podSelector": {},
            "database": {"engine": "PostgreSQL", "host": "weir-install-check.invalid"},
            UNKNOWN_FIELD: true,
        },
    }))
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// By the webhook, as it must be.
    Refused,
    /// Waiting will not help.
    Final(String),
    /// Waiting may help.
    NotYet(String),
}

fn judge(answer: Result<(), kube::Error>) -> Answer {
    match answer {
        Ok(()) => Answer::NotYet(
            "a policy with an unknown field was taken: the validating webhook is not in place".to_owned(),
        ),
        Err(kube::Error::Api(status)) => match status.code {
            // Our own words come back only from our own webhook.
            400..500
                if status.message.contains(UNKNOWN_FIELD) && status.message.contains("admission webhook") =>
            {
                Answer::Refused
            }
            403 => Answer::Final(format!("may not try: {}", status.message)),
            404 => Answer::Final(format!(
                "the cluster does not know DatabaseAccessPolicy: install the chart weir-crds first ({})",
                status.message
            )),
            _ => Answer::NotYet(status.message.clone()),
        },
        Err(error) => Answer::NotYet(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> Answer {
        let mut status = Status::failure(message, "");
        status.code = code;
        judge(Err(kube::Error::Api(Box::new(status))))
    }

    #[test]
    fn only_the_webhooks_own_refusal_counts() {
        let ours = "admission webhook \"policies.weir.dev\" denied the request: spec.weirInstallCheck: unknown field";
        assert_eq!(refused(422, ours), Answer::Refused);
        assert_eq!(refused(400, ours), Answer::Refused);
        // kubectl-style strict validation names the field too, and is not the webhook.
        assert!(matches!(
            refused(
                400,
                "strict decoding error: unknown field \"spec.weirInstallCheck\""
            ),
            Answer::NotYet(_)
        ));
        assert!(matches!(
            refused(500, "failed calling webhook: connection refused"),
            Answer::NotYet(_)
        ));
        assert!(matches!(judge(Ok(())), Answer::NotYet(_)));
        assert!(matches!(refused(403, "forbidden"), Answer::Final(_)));
        assert!(matches!(refused(404, "not found"), Answer::Final(text) if text.contains("weir-crds")));
    }

    /// Or the schema would refuse it before the webhook is asked.
    #[test]
    fn the_probe_is_right_but_for_the_unknown_field() {
        let mut probe = probe(&ApiResource::erase::<DatabaseAccessPolicy>(&()));
        let spec = probe.data["spec"].as_object_mut().expect("spec");
        assert_eq!(spec.remove(UNKNOWN_FIELD), Some(json!(true)));
        serde_json::from_value::<crd_types::DatabaseAccessPolicySpec>(probe.data["spec"].clone())
            .expect("a policy");
    }
}
