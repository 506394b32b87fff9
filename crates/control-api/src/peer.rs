//! Who somebody is, read from a certificate that was verified already.
//!
//! A leaf names its holder in exactly one URI (SPIFFE, X.509-SVID section 2).

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// DNS name in every certificate of the operator. Clients verify this name, whatever address they dialled.
pub const OPERATOR_NAME: &str = "operator.weir.internal";
/// DNS name in every certificate of the collector.
pub const COLLECTOR_NAME: &str = "collector.weir.internal";

/// Who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A pod.
    Pod(PodIdentity),
    /// A replica of the operator.
    Operator,
    /// The collector.
    Collector,
}

/// A pod, as the operator proved it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// UID of the pod.
    pub pod_uid: String,
}

impl PodIdentity {
    /// `spiffe://TD/ns/NS/sa/SA/pod/UID`: what the leaf says.
    pub fn uri(&self) -> String {
        format!("{}/pod/{}", self.workload(), self.pod_uid)
    }

    /// `spiffe://TD/ns/NS/sa/SA`: the workload, without the pod.
    pub fn workload(&self) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// `spiffe://TD/weir/operator`
pub fn operator_uri(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/weir/operator")
}

/// `spiffe://TD/weir/collector`
pub fn collector_uri(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/weir/collector")
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// None or several.
    #[error("the certificate has {0} URIs, not one")]
    Uris(usize),
    /// Another form.
    #[error("`{0}` names neither a pod nor a part of Weir")]
    Form(String),
}

/// Reads who a certificate is for. Does not verify it: that was done in the handshake.
///
/// # Errors
/// [`PeerProblem`]
pub fn read_peer(certificate: &CertificateDer<'_>) -> Result<Peer, PeerProblem> {
    let (rest, parsed) =
        x509_parser::parse_x509_certificate(certificate.as_ref()).map_err(|_| PeerProblem::Unreadable)?;
    if !rest.is_empty() {
        return Err(PeerProblem::Unreadable);
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| PeerProblem::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| names.value.general_names.iter())
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] => read_uri(uri),
        other => Err(PeerProblem::Uris(other.len())),
    }
}

/// Reads the URI of a leaf.
///
/// # Errors
/// [`PeerProblem::Form`]
pub fn read_uri(uri: &str) -> Result<Peer, PeerProblem> {
    let form = || PeerProblem::Form(uri.to_owned());
    let rest = uri.strip_prefix("spiffe://").ok_or_else(form)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 253
            && part != "."
            && part != ".."
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    if !parts.iter().all(|part| plain(part)) {
        return Err(form());
    }
    match parts.as_slice() {
        [_, "weir", "operator"] => Ok(Peer::Operator),
        [_, "weir", "collector"] => Ok(Peer::Collector),
        [
            trust_domain,
            "ns",
            namespace,
            "sa",
            service_account,
            "pod",
            pod_uid,
        ] => Ok(Peer::Pod(PodIdentity {
            trust_domain: (*trust_domain).to_owned(),
            namespace: (*namespace).to_owned(),
            service_account: (*service_account).to_owned(),
            pod_uid: (*pod_uid).to_owned(),
        })),
        _ => Err(form()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_whole_or_not_at_all() {
        let pod = PodIdentity {
            trust_domain: "cluster.local".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "report-agent".to_owned(),
            pod_uid: "9f0c".to_owned(),
        };
        assert_eq!(read_uri(&pod.uri()), Ok(Peer::Pod(pod)));
        assert_eq!(read_uri(&operator_uri("td")), Ok(Peer::Operator));
        assert_eq!(read_uri(&collector_uri("td")), Ok(Peer::Collector));
        for wrong in [
            "",
            "spiffe://",
            "spiffe://td",
            "https://td/weir/operator",
            "spiffe://td/weir/operator/",
            "spiffe://td/weir/operator/x",
            "spiffe:///weir/operator",
            "spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/pod/",
            "spiffe://td/ns/a/sa/b/pod/c/d",
            "spiffe://td/ns/../sa/b/pod/c",
            "spiffe://td/ns/a%2f/sa/b/pod/c",
            "spiffe://td/ns//sa/b/pod/c",
            "SPIFFE://td/weir/operator",
        ] {
            assert!(read_uri(wrong).is_err(), "{wrong}");
        }
    }
}
