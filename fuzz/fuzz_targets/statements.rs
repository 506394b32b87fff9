//! SQL under a policy that masks and filters: every text is read or refused, and what is permitted can be read again.

#![no_main]

use std::sync::LazyLock;

use access_policy::{
    BoundPolicy, Decision, DecisionContext, Endpoint, Manifest, SendAs, Subject, bind, compile, decide,
    decide_unreadable,
};
use libfuzzer_sys::fuzz_target;
use sql_facts::{Catalog, CatalogView, Overlay, SearchPath, parse, read};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, name text, email varchar(40), amt numeric, at timestamptz);
CREATE TABLE u (id int PRIMARY KEY, t_id int REFERENCES t (id), note text);
CREATE VIEW v AS SELECT id, email FROM t;";
const POLICY: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: fuzz, namespace: shop}
spec:
  podSelector: {}
  database: {engine: PostgreSQL, host: db}
  access:
  - {name: all, actions: [Select, Insert, Update, Delete], tables: ["public.*"]}
  masks:
  - {name: email, columns: [public.t.email], mask: {type: Partial, keepLast: 4}}
  - {name: at, columns: [public.t.at], mask: {type: DateTrunc, unit: Month}}
  rowFilters:
  - {name: own, tables: [public.t], predicate: "id < 100"}
  guardrails: {requireWhere: [Update, Delete], maxAffectedRows: 10}
"#;

struct World {
    catalog: Catalog,
    path: SearchPath,
    policy: BoundPolicy,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let path = SearchPath(vec!["public".to_owned()]);
    let mut catalog = Catalog::builtins(15).expect("built-ins");
    for statement in &parse(SCHEMA).expect("the schema").statements {
        catalog.apply(statement, &path).expect("applied");
    }
    let manifest = Manifest {
        name: "fuzz.yaml".to_owned(),
        text: POLICY.to_owned(),
    };
    let set = compile(&[manifest]).expect("a policy");
    let endpoint = Endpoint::new("db", 5432).expect("an endpoint");
    let (policy, unresolved) = bind(&set.for_database(&endpoint), &catalog, None);
    assert!(unresolved.is_empty());
    World { catalog, path, policy }
});

fuzz_target!(
    init: {
        // Reading catches panics of the grammar's own library: they are answers, not crashes.
        std::panic::set_hook(Box::new(|_| {}));
        LazyLock::force(&WORLD);
    },
    |data: &[u8]| {
    let Ok(sql) = std::str::from_utf8(data) else {
        return;
    };
    let overlay = Overlay::default();
    let (world, subject) = (&*WORLD, Subject::default());
    let view = CatalogView { catalog: &world.catalog, overlay: &overlay, path: &world.path };
    let context = DecisionContext { policy: &world.policy, subject: &subject, view };
    let parsed = match parse(sql) {
        Ok(parsed) => parsed,
        Err(reason) => {
            let Decision::Refuse(_) = decide_unreadable(sql, &reason, context) else {
                eprintln!("an unreadable text is permitted on a protected database");
                std::process::abort();
            };
            return;
        }
    };
    for statement in &parsed.statements {
        let Decision::Permit(permit) = decide(statement, context) else {
            continue;
        };
        if let SendAs::Governed(governed) = permit.send() {
            let again = parse(&governed.text).ok().filter(|parsed| parsed.statements.len() == 1);
            let read = again.and_then(|parsed| read(parsed.statements.first()?, view).ok());
            if read.is_none() {
                eprintln!("governed text that is not read: {}", governed.text);
                std::process::abort();
            }
        }
    }
});
