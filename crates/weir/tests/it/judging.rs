//! `weir explain` and `weir facts`: the same code that decides in the sidecar, on files.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{ends, weir};

const SCHEMA: &str = r"\restrict x
SET search_path = '';
CREATE TABLE public.customers (id int PRIMARY KEY, email text, tenant text);
CREATE TABLE public.orders (id int PRIMARY KEY, customer_id int, total numeric);
CREATE TABLE public.payroll (id int, salary numeric);
COPY public.payroll (id, salary) FROM stdin;
1	5
\.
\unrestrict x
";

const POLICY: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: orders}
spec:
  podSelector: {}
  database: {engine: PostgreSQL, host: orders-db.shop.svc, port: 5432}
  defaultAction: Deny
  access:
  - {name: read-sales, subjects: [{serviceAccount: report-agent}], actions: [Select], tables: [public.orders, public.customers]}
  masks:
  - {name: contact, columns: [public.customers.email], mask: {type: Email}}
  rowFilters:
  - {name: own-tenant, tables: [public.customers], predicate: "tenant = :claims.tenant"}
"#;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("schema.sql"), SCHEMA).unwrap();
        std::fs::create_dir(dir.path().join("policies")).unwrap();
        std::fs::write(dir.path().join("policies/orders.yaml"), policy).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn explain(&self, sql: &str, code: i32) -> Value {
        let (policies, schema) = (self.path("policies"), self.path("schema.sql"));
        let arguments = [
            "explain",
            "--policy",
            &policies,
            "--schema",
            &schema,
            "--as",
            "serviceAccount=report-agent",
            "--as",
            "claims.tenant=north",
            "--json",
            sql,
        ];
        serde_json::from_str(&ends(&arguments, code)).unwrap()
    }
}

#[test]
fn explain_tells_verdict_text_masks_and_lineage() {
    let files = Files::new(POLICY);
    let answer = files.explain("SELECT c.email, sum(o.total) AS total FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.id > 3 GROUP BY 1", 0);
    assert_eq!(
        (answer["verdict"].as_str(), answer["rule"].as_str()),
        (Some("permit"), Some("read-sales"))
    );
    let sql = answer["sql"].as_str().unwrap();
    assert!(
        sql.contains("'north'") && sql.contains("public.customers") && sql.contains("'***@'"),
        "{sql}"
    );
    assert_eq!(answer["columns"][0]["name"], "email");
    assert_eq!(answer["columns"][0]["mask"], "Email");
    assert_eq!(
        answer["columns"][0]["sources"][0]["column"],
        "public.customers.email"
    );
    assert_eq!(answer["columns"][1]["mask"], Value::Null);
    assert_eq!(
        answer["columns"][1]["sources"][0]["transformation"],
        "AGGREGATION"
    );
    assert_eq!(answer["reads"][0]["relation"], "public.customers");
    assert!(
        answer["filters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|filter| filter["column"] == "public.customers.id" && filter["transformation"] == "FILTER")
    );
    assert_eq!(answer["functions"][0], "sum");

    let answer = files.explain("SELECT salary FROM payroll", 1);
    assert_eq!(
        (answer["verdict"].as_str(), answer["sql"].clone()),
        (Some("refuse"), Value::Null)
    );
    assert!(answer["code"].as_str().unwrap().starts_with("WEIR-"));
    assert_eq!(answer["reads"][0]["relation"], "public.payroll");
    let answer = files.explain("SELEC 1", 1);
    assert_eq!(answer["verdict"], "refuse");
    // What one statement makes, the next one finds.
    let answers = files.explain(
        "CREATE TEMP TABLE mine AS SELECT email FROM customers; SELECT email FROM mine",
        0,
    );
    assert_eq!(answers[1]["columns"][0]["name"], "email");
}

#[test]
fn an_audit_policy_says_what_it_would_have_done() {
    let files = Files::new(&POLICY.replace("spec:\n", "spec:\n  mode: Audit\n"));
    let answer = files.explain("SELECT salary FROM payroll", 0);
    assert_eq!(
        (answer["verdict"].as_str(), answer["sql"].as_str()),
        (Some("audit"), Some("SELECT salary FROM payroll"))
    );
    assert!(answer["code"].is_string() && answer["reason"].is_string());
}

#[test]
fn a_wrong_policy_is_told_with_file_line_and_field() {
    let files = Files::new(&POLICY.replace("defaultAction", "defaultActoin"));
    let text = ends(&["explain", "--policy", &files.path("policies"), "SELECT 1"], 2);
    assert!(
        text.contains("orders.yaml:8:") && text.contains("defaultActoin"),
        "{text}"
    );
    ends(&["explain", "--policy", "/nowhere", "SELECT 1"], 3);
    ends(&["explain", "--policy", &files.path("schema.sql"), "SELECT 1"], 2);
    let files = Files::new(POLICY);
    ends(
        &[
            "explain",
            "--policy",
            &files.path("policies"),
            "--as",
            "nobody=x",
            "SELECT 1",
        ],
        3,
    );
    ends(
        &[
            "explain",
            "--policy",
            &files.path("policies"),
            "--engine",
            "mysql",
            "SELECT 1",
        ],
        3,
    );
    std::fs::write(
        files.path("schema.sql"),
        "CREATE TABLE t (a int);\nCREATE TABLE u (b nosuchtype);\n",
    )
    .unwrap();
    let (policies, schema) = (files.path("policies"), files.path("schema.sql"));
    let text = ends(
        &["explain", "--policy", &policies, "--schema", &schema, "SELECT 1"],
        3,
    );
    assert!(text.contains("schema.sql:2:"), "{text}");
}

/// One line out for each line in, in order, whatever is in it.
#[test]
fn facts_answers_every_line() {
    let files = Files::new(POLICY);
    let mut process = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args([
            "facts",
            "--engine",
            "postgresql",
            "--stdin-jsonl",
            "--schema",
            &files.path("schema.sql"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let deep = format!(
        "{{\"id\": 5, \"sql\": \"SELECT {}1{}\"}}",
        "(".repeat(100_000),
        ")".repeat(100_000)
    );
    let lines = [
        "{\"id\": 1, \"sql\": \"SELECT email FROM customers\"}",
        "not json",
        "",
        "{\"id\": [4]}",
        &deep,
        "{\"id\": \"six\", \"sql\": \"SELECT nothing FROM customers\"}",
        "{\"id\": 7, \"sql\": \"SELECT 1; INSERT INTO orders SELECT * FROM orders\"}",
        "{\"id\": 8, \"sql\": \"SELECT '\\u0000'\"}",
        "{\"id\": 9, \"sql\": \"\\ud800\"}",
        "{\"id\": 10, \"sql\": \"DELETE FROM orders WHERE id = 1\"}",
    ];
    let mut input = process.stdin.take().unwrap();
    let all = lines.join("\n");
    let writer = std::thread::spawn(move || input.write_all(all.as_bytes()).unwrap());
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), lines.len());
    assert_eq!(
        answers[0]["columns"][0]["sources"][0]["column"],
        "public.customers.email"
    );
    for (at, id) in [
        (1, Value::Null),
        (2, Value::Null),
        (3, Value::from(vec![4])),
        (4, Value::from(5)),
        (7, Value::from(8)),
    ] {
        assert_eq!(answers[at]["id"], id);
        assert!(answers[at]["error"].is_string(), "{}", answers[at]);
    }
    assert_eq!(answers[5]["error_kind"], "unknown-name");
    assert_eq!(answers[6]["statements"][1]["writes"][0]["action"], "insert");
    assert_eq!(answers[9]["kind"], "DELETE");
    let text = String::from_utf8(
        weir(&[
            "facts",
            "--schema",
            &files.path("schema.sql"),
            "SELECT email FROM customers",
        ])
        .stdout,
    )
    .unwrap();
    assert!(text.contains("identity public.customers.email"), "{text}");
    ends(&["facts", "SELECT * FROM nothing"], 1);
}
