//! A pod's word for a chain of receipts: right, and wrong in each way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking; clippy knows only functions marked #[test] as tests"
)]

use control_api::BIND_CONTEXT;
use control_api::client::now;
use control_api::identity::{Identity, Trust};
use control_api::signed::{sign_bytes, verify_bind};
use test_support::authority::{Authority, Leaf, Signer};

const BOOT: [u8; 16] = [7; 16];
const DAY: i64 = 24 * 3600;

fn trust(authority: &Authority) -> Trust {
    Trust::from_pem(&authority.root_pem()).unwrap()
}

fn signed(leaf: &Leaf, context: &[u8]) -> Vec<u8> {
    let identity = Identity::from_der(leaf.chain.clone(), leaf.key.clone());
    sign_bytes(context, &BOOT, &identity).unwrap()
}

#[test]
fn a_chain_is_the_pods_that_signed_for_it_under_the_root() {
    let authority = Authority::new("td").unwrap();
    let other = Authority::new("td").unwrap();
    let leaf = authority.pod("shop", "report", "u-1").unwrap();
    let signature = signed(&leaf, BIND_CONTEXT);
    let check = |boot: &[u8], chain: &[Vec<u8>], signature: &[u8], trust: Option<&Trust>, at: i64| {
        verify_bind(boot, chain, signature, trust, at).map(|pod| pod.uri())
    };
    let roots = trust(&authority);
    let pod = Ok("spiffe://td/ns/shop/sa/report/pod/u-1".to_owned());
    assert_eq!(check(&BOOT, &leaf.chain, &signature, Some(&roots), now()), pod);
    // Without roots the certificates say what they say, under whatever root.
    assert_eq!(check(&BOOT, &leaf.chain, &signature, None, now()), pod);
    let forged = other.pod("shop", "report", "u-1").unwrap();
    let by_forged = signed(&forged, BIND_CONTEXT);
    assert_eq!(check(&BOOT, &forged.chain, &by_forged, None, now()), pod);

    for (what, result) in [
        (
            "another chain",
            check(&[8; 16], &leaf.chain, &signature, Some(&roots), now()),
        ),
        (
            "another pod's signature",
            check(&BOOT, &leaf.chain, &by_forged, Some(&roots), now()),
        ),
        (
            "another root",
            check(&BOOT, &forged.chain, &by_forged, Some(&roots), now()),
        ),
        (
            "no issuer",
            check(
                &BOOT,
                leaf.chain.get(..1).unwrap(),
                &signature,
                Some(&roots),
                now(),
            ),
        ),
        ("no certificate", check(&BOOT, &[], &signature, None, now())),
        (
            "a certificate that ended",
            check(&BOOT, &leaf.chain, &signature, Some(&roots), now() + 2 * DAY),
        ),
        (
            "a certificate of later",
            check(&BOOT, &leaf.chain, &signature, Some(&roots), now() - 2 * DAY),
        ),
        (
            "a signature over something else",
            check(
                &BOOT,
                &leaf.chain,
                &signed(&leaf, b"weir.snapshot.v1\0"),
                Some(&roots),
                now(),
            ),
        ),
    ] {
        assert!(result.is_err(), "{what}: {result:?}");
    }
    // The control plane signs for no chain, though its certificate leads to the same root.
    let operator = authority.operator().unwrap();
    let by_operator = signed(&operator, BIND_CONTEXT);
    assert!(check(&BOOT, &operator.chain, &by_operator, Some(&roots), now()).is_err());
    let spec = authority.spec("spiffe://td/elsewhere", None, Signer::Pods);
    let nameless = authority.issue(&spec).unwrap();
    let by_nameless = signed(&nameless, BIND_CONTEXT);
    assert!(check(&BOOT, &nameless.chain, &by_nameless, Some(&roots), now()).is_err());
}
