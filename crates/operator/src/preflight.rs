//! Before anything is watched: are our definitions there, are they not older than we are, and may we do what we must?

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

/// How the definitions are installed.
const INSTALL: &str =
    "helm upgrade --install weir-crds charts/weir-crds   (or: kubectl apply --server-side -f crds/)";

/// What the operator must be allowed to do: verb, group, resource, and whether in its own namespace only.
const RIGHTS: &[(&str, &str, &str, bool)] = &[
    ("list", "weir.dev", "databaseaccesspolicies", false),
    ("watch", "weir.dev", "databaseaccesspolicies", false),
    ("patch", "weir.dev", "databaseaccesspolicies/status", false),
    ("list", "weir.dev", "lineagesinks", false),
    ("watch", "weir.dev", "lineagesinks", false),
    ("patch", "weir.dev", "lineagesinks/status", false),
    ("list", "", "pods", false),
    ("watch", "", "pods", false),
    ("list", "", "namespaces", false),
    ("watch", "", "namespaces", false),
    ("create", "events.k8s.io", "events", false),
    ("patch", "events.k8s.io", "events", false),
    ("create", "authentication.k8s.io", "tokenreviews", false),
    ("get", "coordination.k8s.io", "leases", true),
    ("create", "coordination.k8s.io", "leases", true),
    ("patch", "coordination.k8s.io", "leases", true),
    ("create", "", "secrets", true),
];

/// Why the operator does not start. Its text is one screen: what is missing, and the command that mends it.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The API server does not answer.
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
    /// A definition is not there.
    #[error("the custom resource definition {0} is not installed; install it and start again:\n  {INSTALL}")]
    NoDefinition(String),
    /// A definition lacks what this operator knows.
    #[error(
        "the custom resource definition {name} is older than this operator: it lacks {}; upgrade it first:\n  {INSTALL}",
        missing.join(", ")
    )]
    OldDefinition {
        /// Which.
        name: String,
        /// Paths that are not in it (the first ten).
        missing: Vec<String>,
    },
    /// Rights are missing.
    #[error(
        "the operator's service account lacks rights:\n{}\nthey come with the chart: helm upgrade --install weir charts/weir",
        .0.iter().map(|right| format!("  {right}")).collect::<Vec<_>>().join("\n")
    )]
    NoRight(Vec<String>),
}

/// Checks all of it.
///
/// # Errors
/// [`Refused`]
pub async fn check(client: &Client, namespace: &str) -> Result<(), Refused> {
    let missing =
        futures_util::future::try_join_all(RIGHTS.iter().map(|right| allowed(client, namespace, *right)))
            .await?;
    let missing: Vec<String> = missing.into_iter().flatten().collect();
    if !missing.is_empty() {
        return Err(Refused::NoRight(missing));
    }
    let ours = crd_types::crds_yaml().map_err(Refused::Unreachable)?;
    for (_, yaml) in ours {
        let ours: Value =
            serde_yaml::from_str(&yaml).map_err(|error| Refused::Unreachable(error.to_string()))?;
        definition(client, &ours).await?;
    }
    Ok(())
}

async fn allowed(
    client: &Client,
    namespace: &str,
    (verb, group, resource, own): (&str, &str, &str, bool),
) -> Result<Option<String>, Refused> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(str::to_owned),
                namespace: own.then(|| namespace.to_owned()),
                // Rights on the lease are for this one alone (but for making it, which cannot be).
                name: (resource == "leases" && verb != "create").then(|| crate::lease::NAME.to_owned()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews
        .create(&PostParams::default(), &review)
        .await
        .map_err(|error| Refused::Unreachable(error.to_string()))?;
    if answer.status.is_some_and(|status| status.allowed) {
        return Ok(None);
    }
    let group = if group.is_empty() {
        String::new()
    } else {
        format!(".{group}")
    };
    let subresource = subresource.map(|name| format!("/{name}")).unwrap_or_default();
    let place = if own {
        format!("in namespace {namespace}")
    } else {
        "in all namespaces".to_owned()
    };
    Ok(Some(format!("{verb} {resource}{subresource}{group} {place}")))
}

async fn definition(client: &Client, ours: &Value) -> Result<(), Refused> {
    let name = ours
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    let stored = match api.get_opt(name).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return Err(Refused::NoDefinition(name.to_owned())),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(Refused::NoRight(vec![format!(
                "get customresourcedefinitions.apiextensions.k8s.io {name}"
            )]));
        }
        Err(error) => return Err(Refused::Unreachable(error.to_string())),
    };
    let missing = crd_types::lacks(&stored.data, ours);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Refused::OldDefinition {
            name: name.to_owned(),
            missing: missing.into_iter().take(10).collect(),
        })
    }
}
