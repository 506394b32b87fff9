//! Who logs in how, over which TLS.

use crate::harness::{Start, credentials, policy};

const PLAIN: &str = "{mode: Disable}";
const REQUIRE: &str = "{mode: Require}";
const VERIFY_CA: &str = "{mode: VerifyCA, caSecretRef: {name: ca, key: ca.crt}}";
const VERIFY_FULL: &str = "{mode: VerifyFull, caSecretRef: {name: ca, key: ca.crt}}";

const USERS: [&str; 4] = ["scram_user", "md5_user", "clear_user", "trust_user"];
const WHO: &str = "select current_user";

#[test]
fn passwords_pass_through_without_tls() {
    let sidecar = Start::with(policy(PLAIN, "", "")).start();
    for user in USERS {
        assert_eq!(sidecar.query(&format!("user={user} dbname=shop"), WHO), user);
    }
    let error = sidecar.error("user=scram_user password=wrong dbname=shop", WHO);
    // PGPASSWORD is overruled by the connection string.
    assert!(error.contains("password authentication failed"), "{error}");
}

#[test]
fn passwords_pass_through_to_tls() {
    for tls in [REQUIRE, VERIFY_CA, VERIFY_FULL] {
        let sidecar = Start::with(policy(tls, "", "")).start();
        for user in USERS {
            assert_eq!(sidecar.query(&format!("user={user} dbname=shop"), WHO), user);
        }
        let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        assert_eq!(sidecar.query("user=trust_user dbname=shop", encrypted), "t");
        // The client has no TLS, so libpq itself says that it cannot bind; nothing hangs.
        let error = sidecar.error("user=scram_user dbname=shop channel_binding=require", WHO);
        assert!(error.contains("channel binding required"), "{error}");
    }
}

#[test]
fn tls_on_both_sides_and_channel_binding() {
    let sidecar = Start::with(policy(VERIFY_FULL, "", ""))
        .flags(&["--client-tls", "serve"])
        .start();
    for user in ["md5_user", "clear_user", "trust_user"] {
        let who = sidecar.query(&format!("user={user} dbname=shop sslmode=require"), WHO);
        assert_eq!(who, user);
    }
    // A client that does not bind gets in.
    let who = sidecar.query(
        "user=scram_user dbname=shop sslmode=require channel_binding=disable",
        WHO,
    );
    assert_eq!(who, "scram_user");
    // One that could bind would look like an attack to the server: it is told why.
    let error = sidecar.error("user=scram_user dbname=shop sslmode=require", WHO);
    assert!(
        error.contains("channel binding cannot pass through weir-sidecar"),
        "{error}"
    );
    // One that must bind says so itself, or is told.
    let error = sidecar.error(
        "user=scram_user dbname=shop sslmode=require channel_binding=require",
        WHO,
    );
    assert!(error.contains("channel binding"), "{error}");
}

#[test]
fn tls_to_the_client_only() {
    let sidecar = Start::with(policy(PLAIN, "", ""))
        .flags(&["--client-tls", "serve"])
        .start();
    for user in USERS {
        let who = sidecar.query(&format!("user={user} dbname=shop sslmode=require"), WHO);
        assert_eq!(who, user);
    }
    assert_eq!(
        sidecar.query("user=trust_user dbname=shop sslmode=disable", WHO),
        "trust_user"
    );
    let error = sidecar.error(
        "user=scram_user dbname=shop sslmode=require channel_binding=require",
        WHO,
    );
    assert!(error.contains("channel binding"), "{error}");
}

#[test]
fn a_given_certificate_is_served() {
    let certificates = test_support::Certificates::new(&["127.0.0.1"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    certificates.write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let sidecar = Start::with(policy(PLAIN, "", ""))
        .flags(&["--client-tls", "serve"])
        .flags(&[
            "--client-tls-certificate",
            &path("tls.crt"),
            "--client-tls-key",
            &path("tls.key"),
        ])
        .start();
    let verified = format!(
        "user=trust_user dbname=shop sslmode=verify-full sslrootcert={}",
        path("ca.crt")
    );
    assert_eq!(sidecar.query(&verified, WHO), "trust_user");
}

#[test]
fn the_servers_certificate_is_checked() {
    // An authority that did not sign it.
    let other = test_support::Certificates::new(&["localhost"]).unwrap();
    for (tls, refused) in [
        ("{mode: Require}", false),
        (
            "{mode: VerifyCA, caSecretRef: {name: wrong-ca, key: ca.crt}}",
            true,
        ),
        (
            "{mode: VerifyFull, caSecretRef: {name: wrong-ca, key: ca.crt}}",
            true,
        ),
    ] {
        let manifest = format!(
            "{}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: wrong-ca}}\nstringData:\n  ca.crt: |\n{}",
            policy(tls, "", ""),
            other
                .ca
                .lines()
                .map(|line| format!("    {line}\n"))
                .collect::<String>()
        );
        let sidecar = Start::with(manifest).start();
        if refused {
            let error = sidecar.error("user=trust_user dbname=shop", WHO);
            assert!(error.contains("no TLS with the database"), "{error}");
        } else {
            assert_eq!(sidecar.query("user=trust_user dbname=shop", WHO), "trust_user");
        }
    }
}

#[test]
fn the_name_in_the_servers_certificate_is_checked() {
    // The certificate is for localhost and 127.0.0.1.
    let named = |mode: &str| {
        policy(
            &format!("{{mode: {mode}, caSecretRef: {{name: ca, key: ca.crt}}}}"),
            "",
            "",
        )
        .replace("host: localhost", "host: elsewhere.example")
    };
    let sidecar = Start::with(named("VerifyCA")).start();
    assert_eq!(sidecar.query("user=trust_user dbname=shop", WHO), "trust_user");
    let sidecar = Start::with(named("VerifyFull")).start();
    let error = sidecar.error("user=trust_user dbname=shop", WHO);
    assert!(error.contains("no TLS with the database"), "{error}");
}

#[test]
fn the_policys_login_is_used() {
    for tls in [PLAIN, VERIFY_FULL] {
        for user in ["scram_user", "md5_user", "clear_user"] {
            let sidecar = Start::with(policy(tls, &credentials(), ""))
                .login(user, "secret")
                .start();
            // The client names another user and gives no password.
            let who = sidecar.query("user=somebody password='' dbname=shop", WHO);
            assert_eq!(who, user, "{tls}");
        }
    }
}

#[test]
fn the_policys_wrong_password_is_not_the_clients_fault() {
    let sidecar = Start::with(policy(PLAIN, &credentials(), ""))
        .login("scram_user", "wrong")
        .start();
    let error = sidecar.error("user=somebody dbname=shop", WHO);
    assert!(
        error.contains("refuses the policy's credentials (28P01)"),
        "{error}"
    );
    assert!(
        !error.contains("scram_user"),
        "the client learns no user name: {error}"
    );
}

#[test]
fn databases() {
    let only = "    name: shop\n".to_owned() + &credentials();
    let sidecar = Start::with(policy(PLAIN, &only, ""))
        .login("scram_user", "secret")
        .start();
    let which = "select current_database()";
    assert_eq!(sidecar.query("user=x dbname=shop", which), "shop");
    // libpq sends no database where none is given but by a service; psql names the user.
    let error = sidecar.error("user=x dbname=other", which);
    assert!(error.contains("WEIR-091"), "{error}");
    let through = Start::with(policy(PLAIN, "    name: shop\n", "")).start();
    assert_eq!(through.query("user=scram_user dbname=shop", which), "shop");
    let error = through.error("user=scram_user dbname=other", which);
    assert!(error.contains("WEIR-091"), "{error}");
}

#[test]
fn credentials_need_loopback() {
    let start = || Start::with(policy(PLAIN, &credentials(), "")).login("scram_user", "secret");
    let said = start().listen("0.0.0.0").refused();
    assert!(said.contains("must be on loopback"), "{said}");
    let sidecar = start()
        .listen("0.0.0.0")
        .flags(&["--allow-remote-clients"])
        .start();
    assert!(sidecar.process.log().contains("--allow-remote-clients"));
    assert_eq!(sidecar.query("user=x dbname=shop", WHO), "scram_user");
}
