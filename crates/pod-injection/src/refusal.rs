//! Why a pod is refused.

use std::fmt;

/// Every reason there is. A closed list: it labels a metric and stands in the answer's `details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The annotation is neither `"true"` nor `"false"`.
    WrongAnnotation,
    /// The namespace's label means nothing.
    WrongNamespaceLabel,
    /// `"false"` where the namespace says `required`.
    InjectionRequired,
    /// No policy selects the pod.
    NoPolicy,
    /// A pod without containers, or lists that are none.
    Malformed,
    /// `hostNetwork`.
    HostNetwork,
    /// A Windows pod.
    Windows,
    /// A mirror of a static pod: the kubelet runs the manifest, whatever the API server says.
    StaticPod,
    /// Processes of one container are seen from another.
    SharedProcesses,
    /// A debug container in a pod that is only being made.
    EphemeralContainers,
    /// The sidecar's UID is used by another container.
    TakenUser,
    /// A container has the sidecar's name.
    TakenName,
    /// A volume of ours is used by another container.
    TakenVolume,
    /// A volume of the application holds a token with which the sidecar proves who it is.
    TakenToken,
    /// A container listens where the sidecar must.
    TakenPort,
    /// The pod has a hosts entry of its own for a governed name.
    OwnHostAlias,
    /// A mount hides the hosts file or what leads to it.
    HidesHosts,
    /// A mount stands where the capture CA's certificate is shown.
    HidesCa,
    /// TLS towards the application while its own login passes through.
    ServeWithoutCredentials,
    /// Capture by name of what is an address.
    AddressNeedsEnv,
    /// A host that cannot stand in a hosts file entry of Kubernetes.
    HostNotAliasable,
    /// One name would lead to two databases.
    SpellingCollides,
    /// More hosts than a pod can capture.
    TooManyHosts,
    /// A policy names what is no host.
    WrongHost,
    /// A policy names what cannot be a Secret.
    WrongSecretName,
    /// A variable whose value cannot be seen here.
    VariableNotLiteral,
    /// A variable that holds no URL or connection string.
    VariableUnreadable,
    /// A variable that leads to a database that the policy does not govern.
    VariableNamesOther,
    /// No container has one of the variables.
    VariableMissing,
}

impl Reason {
    /// All of them, for metrics that shall be there from the start and for the docs.
    pub const ALL: [Self; 29] = [
        Self::WrongAnnotation,
        Self::WrongNamespaceLabel,
        Self::InjectionRequired,
        Self::NoPolicy,
        Self::Malformed,
        Self::HostNetwork,
        Self::Windows,
        Self::StaticPod,
        Self::SharedProcesses,
        Self::EphemeralContainers,
        Self::TakenUser,
        Self::TakenName,
        Self::TakenVolume,
        Self::TakenToken,
        Self::TakenPort,
        Self::OwnHostAlias,
        Self::HidesHosts,
        Self::HidesCa,
        Self::ServeWithoutCredentials,
        Self::AddressNeedsEnv,
        Self::HostNotAliasable,
        Self::SpellingCollides,
        Self::TooManyHosts,
        Self::WrongHost,
        Self::WrongSecretName,
        Self::VariableNotLiteral,
        Self::VariableUnreadable,
        Self::VariableNamesOther,
        Self::VariableMissing,
    ];
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// One reason why a pod is refused, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub reason: Reason,
    /// What is so.
    pub message: String,
    /// What to do.
    pub mend: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}; {}", self.reason, self.message, self.mend)
    }
}
