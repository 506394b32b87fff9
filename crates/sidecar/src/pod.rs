//! What a pod's sidecar is told by its environment (written by the webhook; the names are in `pod-injection`).

use std::net::{AddrParseError, IpAddr};
use std::path::PathBuf;

use access_policy::Endpoint;
use control_api::identity::Trust;
use pod_injection::contract::{
    self, Captured, ENV_ADMIN_PORT, ENV_CA_DIR, ENV_CAPTURED, ENV_IDENTITY_DIR, ENV_OPERATOR, ENV_POD_IP,
    ENV_POD_NAME, ENV_POD_NAMESPACE, ENV_POD_UID, ENV_SPOOL_BYTES_MAX, ENV_TOKEN_FILE, ENV_TRUST_BUNDLE,
};

use crate::config::ConfigError;
use crate::upstream::HostPort;

/// What a sidecar in a pod knows of itself.
#[derive(Debug, Clone)]
pub struct Pod {
    /// `host:port` of the operator's gRPC port.
    pub operator: String,
    /// Roots that count at the start.
    pub bootstrap: Trust,
    /// Endpoints with their listeners.
    pub captured: Vec<CapturedEndpoint>,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// UID.
    pub uid: String,
    /// Where the admin pages are.
    pub admin: HostPort,
    /// Pod-bound token.
    pub token_file: PathBuf,
    /// Folder in memory for key and certificate.
    pub identity_dir: PathBuf,
    /// Folder that the application sees, for the capture CA's certificate.
    pub ca_dir: Option<PathBuf>,
    /// Cap of the spool.
    pub spool_bytes_max: Option<u64>,
}

/// One governed endpoint that was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedEndpoint {
    /// As policies name it.
    pub endpoint: Endpoint,
    /// Where we listen for it.
    pub listen: HostPort,
}

impl Pod {
    /// Reads the environment. `None`: this is no pod of an operator.
    ///
    /// # Errors
    /// Parts that are missing or no such thing.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        if given(ENV_OPERATOR).is_none() && given(ENV_CAPTURED).is_none() {
            return Ok(None);
        }
        let needed = |name: &'static str| given(name).ok_or_else(|| wrong(name, "is needed in a pod"));
        let captured: Vec<Captured> = serde_json::from_str(&needed(ENV_CAPTURED)?)
            .map_err(|error| wrong(ENV_CAPTURED, error.to_string()))?;
        let captured = captured
            .iter()
            .map(|one| {
                Ok(CapturedEndpoint {
                    endpoint: Endpoint::new(&one.host, one.port)
                        .map_err(|error| wrong(ENV_CAPTURED, format!("the host {error}")))?,
                    listen: one
                        .listen
                        .parse()
                        .map_err(|error: String| wrong(ENV_CAPTURED, error))?,
                })
            })
            .collect::<Result<Vec<_>, ConfigError>>()?;
        let ip: IpAddr = needed(ENV_POD_IP)?
            .parse()
            .map_err(|error: AddrParseError| wrong(ENV_POD_IP, error.to_string()))?;
        let port = match given(ENV_ADMIN_PORT) {
            Some(text) => text
                .parse()
                .map_err(|_| wrong(ENV_ADMIN_PORT, format!("`{text}` is no port")))?,
            None => contract::ADMIN_PORT,
        };
        Ok(Some(Self {
            operator: needed(ENV_OPERATOR)?,
            bootstrap: Trust::from_pem(&needed(ENV_TRUST_BUNDLE)?)
                .map_err(|error| wrong(ENV_TRUST_BUNDLE, error.to_string()))?,
            captured,
            name: needed(ENV_POD_NAME)?,
            namespace: needed(ENV_POD_NAMESPACE)?,
            uid: needed(ENV_POD_UID)?,
            admin: HostPort {
                host: ip.to_string(),
                port,
            },
            token_file: needed(ENV_TOKEN_FILE)?.into(),
            identity_dir: needed(ENV_IDENTITY_DIR)?.into(),
            ca_dir: given(ENV_CA_DIR).map(Into::into),
            spool_bytes_max: given(ENV_SPOOL_BYTES_MAX)
                .map(|text| {
                    text.parse()
                        .map_err(|_| wrong(ENV_SPOOL_BYTES_MAX, format!("`{text}` is no number of bytes")))
                })
                .transpose()?,
        }))
    }

    /// `host:port` of each, as the operator is told.
    pub fn captured_names(&self) -> Vec<String> {
        self.captured.iter().map(|one| one.endpoint.to_string()).collect()
    }
}

fn wrong(name: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Environment {
        name,
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn environment() -> BTreeMap<&'static str, String> {
        let root = rcgen::generate_simple_self_signed(vec!["root".to_owned()]).unwrap();
        BTreeMap::from([
            (ENV_OPERATOR, "weir-operator.weir-system.svc:9443".to_owned()),
            (ENV_TRUST_BUNDLE, root.cert.pem()),
            (
                ENV_CAPTURED,
                r#"[{"host":"Orders-DB.shop.svc.","port":5432,"listen":"127.0.0.2:5432","names":["orders-db"]}]"#
                    .to_owned(),
            ),
            (ENV_POD_NAME, "report-1".to_owned()),
            (ENV_POD_NAMESPACE, "shop".to_owned()),
            (ENV_POD_UID, "u-1".to_owned()),
            (ENV_POD_IP, "fd00::7".to_owned()),
            (ENV_TOKEN_FILE, "/t/token".to_owned()),
            (ENV_IDENTITY_DIR, "/i".to_owned()),
            (ENV_SPOOL_BYTES_MAX, "1000".to_owned()),
        ])
    }

    #[test]
    fn the_environment_of_a_pod_is_read() {
        let all = environment();
        let pod = Pod::read(|name| all.get(name).cloned()).unwrap().unwrap();
        assert_eq!(pod.captured_names(), ["orders-db.shop.svc:5432"]);
        assert_eq!(pod.captured[0].listen.to_string(), "127.0.0.2:5432");
        assert_eq!(pod.admin.to_string(), "[fd00::7]:15090");
        assert_eq!(pod.spool_bytes_max, Some(1000));
        assert!(Pod::read(|_| None).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for name in [
            ENV_OPERATOR,
            ENV_TRUST_BUNDLE,
            ENV_CAPTURED,
            ENV_POD_UID,
            ENV_POD_IP,
            ENV_TOKEN_FILE,
            ENV_IDENTITY_DIR,
        ] {
            let mut all = environment();
            all.remove(name);
            let error = Pod::read(|name| all.get(name).cloned()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        for (name, value) in [
            (ENV_CAPTURED, "[{}]"),
            (ENV_POD_IP, "x"),
            (ENV_SPOOL_BYTES_MAX, "1Gi"),
            (ENV_TRUST_BUNDLE, "no certificate"),
        ] {
            let mut all = environment();
            all.insert(name, value.to_owned());
            let error = Pod::read(|name| all.get(name).cloned()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
