//! Snapshots of policies, as a stream or a kept file may hold them: nothing that no root signed is believed, and what a
//! snapshot holds is compiled or refused.

#![no_main]

use access_policy::{Manifest, compile};
use control_api::identity::Trust;
use control_api::proto::{OperatorMessage, SidecarMessage, SignedSnapshot, Snapshot};
use control_api::signed::verify;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let trust = Trust { roots: Vec::new(), capture_roots: Vec::new() };
    if let Ok(signed) = SignedSnapshot::decode(data) {
        assert!(verify(&signed, &trust, "uid").is_err());
    }
    let _ = OperatorMessage::decode(data);
    let _ = SidecarMessage::decode(data);
    if let Ok(snapshot) = Snapshot::decode(data) {
        let manifests: Vec<Manifest> = snapshot
            .policies
            .iter()
            .map(|policy| Manifest { name: policy.name.clone(), text: policy.manifest.clone() })
            .collect();
        let _ = compile(&manifests);
    }
});
