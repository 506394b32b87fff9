//! The policies under `deploy/examples` do with the shop what the demo says.

use std::collections::BTreeMap;

use sql_facts::{Overlay, SearchPath};
use test_support::{shared_postgres, shop, workspace_root};

use super::world::{World, read_catalog};
use crate::{Endpoint, Manifest, NoSecrets, PolicySet, Subject, bind, compile};

fn manifests(folder: &str) -> Vec<Manifest> {
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(workspace_root().join("deploy/examples").join(folder)).unwrap() {
        let path = entry.unwrap().path();
        manifests.push(Manifest {
            name: path.display().to_string(),
            text: std::fs::read_to_string(&path).unwrap(),
        });
    }
    manifests
}

fn examples() -> PolicySet {
    compile(&manifests("policies")).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn world() -> World {
    world_of(&examples(), "report-agent")
}

fn world_of(set: &PolicySet, account: &str) -> World {
    let db = shared_postgres().unwrap().database().unwrap();
    shop::load(&db).unwrap();
    let catalog = read_catalog(&db, 1);
    let database = set.for_database(&Endpoint::new("orders-db.shop.svc", 5432).unwrap());
    let database = database.for_name("shop").unwrap();
    let (bound, unresolved) = bind(&database, &catalog, None);
    World {
        db: std::sync::Arc::new(db),
        catalog,
        overlay: Overlay::default(),
        path: SearchPath(vec!["pg_catalog".to_owned(), "public".to_owned()]),
        subject: Subject {
            service_account: Some(account.to_owned()),
            claims: BTreeMap::from([("tenant".to_owned(), "north".to_owned())]),
            ..Subject::default()
        },
        bound,
        unresolved,
    }
}

#[test]
fn the_login_comes_from_the_manifest_beside_the_policies() {
    let set = examples();
    let database = set.for_database(&Endpoint::new("ORDERS-DB.shop.svc.", 5432).unwrap());
    let login = database.credentials().unwrap();
    let secret = |key| set.secret(key, &NoSecrets).unwrap();
    assert_eq!(secret(&login.username).expose(), b"orders_login");
    assert_eq!(secret(&login.password).expose(), b"demo-only");
}

#[test]
fn a_day_of_the_agent() {
    let world = world();
    assert_eq!(world.unresolved, []);
    let north = world.run("SELECT DISTINCT tenant_id FROM orders");
    assert_eq!(north, "north");
    for (sql, hidden) in [
        (
            "SELECT id, name, email, phone, birth_date FROM customers ORDER BY loyalty DESC, id LIMIT 3",
            "+49",
        ),
        (
            "SELECT upper(c.email) AS shouted, to_json(c)->>'phone' AS phone FROM customers c ORDER BY c.id LIMIT 2",
            "+49",
        ),
        (
            "COPY (SELECT id, email, phone FROM customers ORDER BY id LIMIT 2) TO STDOUT",
            "+49",
        ),
        ("SELECT * FROM contacts", "+49"),
    ] {
        let answer = world.run(sql);
        assert!(!answer.is_empty() && !answer.contains(hidden), "{sql}\n{answer}");
    }
    assert_eq!(
        world.run("SELECT count(*) AS found FROM customers WHERE phone LIKE '+49 30%'"),
        "0"
    );
    assert_eq!(world.run("SELECT DISTINCT tenant_id FROM contacts"), "north");
    for (sql, code) in [
        (
            "SELECT name, salary FROM payroll ORDER BY salary DESC LIMIT 3",
            10,
        ),
        ("DELETE FROM reports", 20),
        (
            "WITH gone AS (DELETE FROM reports WHERE true RETURNING id) SELECT count(*) FROM gone",
            20,
        ),
        ("DROP TABLE customers CASCADE", 10),
        ("TRUNCATE reports", 10),
        ("UPDATE orders SET total = 0 WHERE id = 1", 11),
        ("SELECT * FROM sales_by_city", 12),
        ("LISTEN secrets", 35),
        ("COPY products TO '/tmp/x'", 36),
        ("SELECT * FROM pg_stats", 14),
    ] {
        assert_eq!(world.code(sql), code, "{sql}: {:?}", world.decide(sql).err());
    }
    for sql in [
        "SELECT p.category, count(*) AS orders, sum(o.total) AS revenue FROM orders o JOIN products p ON p.id = o.product_id GROUP BY 1 ORDER BY 3 DESC LIMIT 3",
        "CREATE TEMP TABLE best AS SELECT c.city, count(DISTINCT c.id) AS customers, sum(o.total) AS revenue FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.city",
        "INSERT INTO reports (title, city, customers, revenue) VALUES ('a', 'b', 1, 2)",
        "SELECT title, city, customers, revenue FROM reports ORDER BY revenue DESC",
        "DELETE FROM reports WHERE id = 7",
        "LISTEN reports_done",
        "BEGIN",
        "SET search_path = public",
        "SHOW server_version",
        "SELECT 1",
        "SELECT relname FROM pg_class LIMIT 1",
    ] {
        assert_eq!(world.code(sql), 0, "{sql}: {:?}", world.decide(sql).err());
    }
}

/// The workloads beside the policies ask nothing that their policy refuses, and get no address to see.
#[test]
fn the_example_workloads_may_do_what_they_do() {
    // What selects them: not the agent's policy.
    let chosen: Vec<Manifest> = manifests("policies")
        .into_iter()
        .filter(|manifest| !manifest.name.ends_with("orders.yaml"))
        .chain(
            manifests("workloads")
                .into_iter()
                .filter(|manifest| manifest.name.ends_with("policy.yaml")),
        )
        .collect();
    let set = compile(&chosen).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let world = world_of(&set, "report-runner");
    assert_eq!(world.unresolved, []);
    let mut statements = 0;
    for manifest in manifests("workloads") {
        let pieces: Vec<&str> = manifest.text.split("--command \"").skip(1).collect();
        for piece in pieces {
            let (sql, _) = piece.split_once('"').unwrap();
            let answer = world.run(sql);
            assert_eq!(
                answer.matches('@').count(),
                answer.matches("***@").count(),
                "{sql}\n{answer}"
            );
            statements += 1;
        }
    }
    assert_eq!(statements, 4);
    let address = world.run("SELECT email FROM customers ORDER BY id LIMIT 1");
    assert!(address.contains("***"), "{address}");
    assert_ne!(world.code("SELECT * FROM payroll"), 0);
    assert_ne!(world.code("DELETE FROM reports WHERE id = 1"), 0);
}
