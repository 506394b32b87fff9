use std::path::Path;
use test_support::{Auth, Postgres, PostgresOptions, Signal, shared_postgres, wait_for};

#[test]
fn each_test_has_a_database_of_its_own() {
    let server = shared_postgres().unwrap();
    let (one, two) = (server.database().unwrap(), server.database().unwrap());
    one.psql("create table t(a int); insert into t values (7)")
        .unwrap();
    assert_eq!(one.psql("select a from t").unwrap(), "7");
    assert!(format!("{:#}", two.psql("select a from t").unwrap_err()).contains("does not exist"));
}

#[tokio::test]
async fn passwords_are_asked_for_by_each_method() {
    for auth in [Auth::Scram, Auth::Md5, Auth::Password] {
        let server = Postgres::start(&PostgresOptions {
            auth,
            ..Default::default()
        })
        .unwrap();
        let db = server.database().unwrap();
        let client = db.connect().await.unwrap();
        assert_eq!(
            client
                .query_one("select 41 + 1", &[])
                .await
                .unwrap()
                .get::<_, i32>(0),
            42,
            "{auth:?}"
        );
        let wrong = db.config().password("wrong").connect(tokio_postgres::NoTls).await;
        assert!(wrong.is_err(), "{auth:?} must refuse a wrong password");
    }
}

#[test]
fn tls_is_offered_and_can_be_demanded() {
    let options = PostgresOptions {
        tls: true,
        tls_only: true,
        ..Default::default()
    };
    let server = Postgres::start(&options).unwrap();
    let ca = server.folder().join("client-ca.crt");
    std::fs::write(&ca, &server.certificates().unwrap().ca).unwrap();
    let psql = |mode: &str, ca: &Path| {
        std::process::Command::new(test_support::postgres_bin().unwrap().join("psql"))
            .args(["-XAtc", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"])
            .arg(format!(
                "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode={mode} sslrootcert={}",
                server.port(),
                ca.display()
            ))
            .output()
            .unwrap()
    };
    let full = psql("verify-full", &ca);
    assert_eq!(String::from_utf8_lossy(&full.stdout).trim(), "t", "{full:?}");
    assert!(!psql("disable", &ca).status.success());
}

#[test]
fn a_dropped_server_is_gone_and_a_killed_one_comes_back() {
    let mut server = Postgres::start(&PostgresOptions::default()).unwrap();
    server.psql("postgres", "create table kept(a int)").unwrap();
    server.process().stop(Signal::Quit, 10).unwrap();
    assert!(server.psql("postgres", "select 1").is_err());
    server.restart().unwrap();
    assert_eq!(server.psql("postgres", "select count(*) from kept").unwrap(), "0");
    let (pid, folder) = (server.process().id(), server.folder().to_owned());
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists());
}

#[test]
fn a_server_ends_with_the_process_that_started_it() {
    // This test starts itself again as the process that will be killed.
    const CHILD: &str = "WEIR_TEST_SUPPORT_CHILD";
    if let Some(note) = std::env::var_os(CHILD) {
        let mut server = Postgres::start(&PostgresOptions::default()).unwrap();
        let text = format!("{}\n{}", server.process().id(), server.folder().display());
        let part = Path::new(&note).with_extension("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, note).unwrap();
        loop {
            std::thread::park();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "postgres::a_server_ends_with_the_process_that_started_it",
            "--nocapture",
        ])
        .env(CHILD, &note)
        .spawn()
        .unwrap();
    let text = wait_for("the child's server", 60, || std::fs::read_to_string(&note).ok()).unwrap();
    let (pid, top) = text.split_once('\n').unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the server to end", 20, || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .unwrap();
    wait_for("its folder to go", 20, || {
        (!Path::new(top).exists()).then_some(())
    })
    .unwrap();
}
