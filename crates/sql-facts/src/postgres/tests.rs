//! What `read` says of statements, against a small catalog.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::catalog::{Catalog, Column, Oid, Overlay, Persistence, Relation, RelationKind, SearchPath};
use crate::facts::{Action, OutputColumn, SessionEffect, Source, StatementKind};

/// Tables `t(id, name, email, amt)` with key id, `u(id, t_id, note)`, `s.t(id, x)`, view `v(id, email)`.
pub(super) struct World {
    catalog: Catalog,
    overlay: Overlay,
    path: SearchPath,
}

impl World {
    pub(super) fn new() -> Self {
        let mut catalog = Catalog::builtins(15).expect("the built-ins of PostgreSQL 15 are there");
        let overlay = Overlay::default();
        let path = SearchPath(vec!["pg_catalog".to_owned(), "public".to_owned()]);
        type Table<'t> = (Oid, &'t str, &'t str, RelationKind, &'t [(&'t str, &'t str)]);
        let tables: [Table<'_>; 5] = [
            (
                20001,
                "public",
                "t",
                RelationKind::Table,
                &[
                    ("id", "int4"),
                    ("name", "text"),
                    ("email", "text"),
                    ("amt", "numeric"),
                ],
            ),
            (
                20002,
                "public",
                "u",
                RelationKind::Table,
                &[("id", "int4"), ("t_id", "int4"), ("note", "text")],
            ),
            (
                20003,
                "s",
                "t",
                RelationKind::Table,
                &[("id", "int4"), ("x", "text")],
            ),
            (
                20004,
                "public",
                "v",
                RelationKind::View,
                &[("id", "int4"), ("email", "text")],
            ),
            (
                20005,
                "public",
                "Odd Name",
                RelationKind::Table,
                &[("Some Column", "text")],
            ),
        ];
        let mut relations = catalog.relations.as_ref().clone();
        let mut names = catalog.names.as_ref().clone();
        for (oid, schema, name, kind, columns) in tables {
            let view = CatalogView {
                catalog: &catalog,
                overlay: &overlay,
                path: &path,
            };
            let columns = columns
                .iter()
                .zip(1..)
                .map(|((column, type_name), number)| Column {
                    number,
                    name: (*column).to_owned(),
                    column_type: view
                        .resolve_type(Some("pg_catalog"), type_name, &[])
                        .expect("a built-in type"),
                    not_null: number == 1,
                    has_default: false,
                    default_code: Vec::new(),
                    generated_from: None,
                })
                .collect();
            let relation = Relation {
                oid,
                schema: schema.to_owned(),
                name: name.to_owned(),
                kind,
                persistence: Persistence::Permanent,
                columns,
                primary_key: vec![1],
                parents: Vec::new(),
                definition: None,
                security_invoker: false,
                before_row_triggers: false,
                triggers: Vec::new(),
                owned_by: None,
                ..relations
                    .values()
                    .next()
                    .map(|any| any.as_ref().clone())
                    .expect("system relations are there")
            };
            relations.insert(oid, Arc::new(relation));
            names
                .entry(schema.to_owned())
                .or_default()
                .insert(name.to_owned(), oid);
        }
        catalog.relations = Arc::new(relations);
        catalog.names = Arc::new(names);
        Self {
            catalog,
            overlay,
            path,
        }
    }

    pub(super) fn view(&self) -> CatalogView<'_> {
        CatalogView {
            catalog: &self.catalog,
            overlay: &self.overlay,
            path: &self.path,
        }
    }

    pub(super) fn read(&self, sql: &str) -> Result<StatementFacts, Unreadable> {
        let parsed = parse(sql)?;
        let [statement] = parsed.statements.as_slice() else {
            return Err(Unreadable::NotBuilt(format!(
                "{} statements",
                parsed.statements.len()
            )));
        };
        read(statement, self.view())
    }

    fn facts(&self, sql: &str) -> StatementFacts {
        self.read(sql)
            .unwrap_or_else(|error| unreachable!("{sql}: {error}"))
    }

    fn column(&self, relation: Oid, column: i16) -> String {
        let known = self
            .view()
            .relation(relation)
            .expect("a relation of the facts is in the catalog");
        let name = match column {
            0 => "*".to_owned(),
            number if number < 0 => format!("#{number}"),
            number => known
                .column_by_number(number)
                .expect("a column of the facts is in the catalog")
                .name
                .clone(),
        };
        let schema = if known.schema == "public" {
            String::new()
        } else {
            format!("{}.", known.schema)
        };
        format!("{schema}{}.{name}", known.name)
    }

    fn source(&self, source: &Source) -> String {
        let how = format!("{:?}", source.transformation);
        let how = how.get(..2).unwrap_or_default().to_lowercase();
        format!(
            "{}:{how}",
            self.column(source.column.relation, source.column.column)
        )
    }

    fn sources(&self, sources: &BTreeSet<Source>) -> String {
        sources
            .iter()
            .map(|source| self.source(source))
            .collect::<Vec<_>>()
            .join("+")
    }

    /// `Select t(id,name)` for each action.
    pub(super) fn actions(&self, sql: &str) -> Vec<String> {
        let facts = self.facts(sql);
        let mut lines: Vec<String> = facts
            .actions
            .iter()
            .map(|action| match action.relation {
                None => format!("{:?} ?{}", action.action, action.name),
                Some(oid) => {
                    let columns: Vec<String> = action
                        .columns
                        .iter()
                        .map(|column| {
                            let full = self.column(oid, *column);
                            full.rsplit_once('.')
                                .map_or(full.clone(), |(_, column)| column.to_owned())
                        })
                        .collect();
                    let name = action.name.strip_prefix("public.").unwrap_or(&action.name);
                    format!("{:?} {name}({})", action.action, columns.join(","))
                }
            })
            .collect();
        lines.sort();
        lines
    }

    /// `name=t.a:id+t.b:tr`, for each output column.
    fn outputs(&self, sql: &str) -> Vec<String> {
        let line = |output: &OutputColumn| match output.target {
            None => format!("{}={}", output.name, self.sources(&output.sources)),
            Some(target) => {
                format!(
                    "{}:={}",
                    self.column(target.relation, target.column),
                    self.sources(&output.sources)
                )
            }
        };
        self.facts(sql).output.iter().map(line).collect()
    }

    fn indirect(&self, sql: &str) -> String {
        self.sources(&self.facts(sql).indirect)
    }
}

fn case(world: &World, sql: &str, actions: &[&str], outputs: &[&str], indirect: &str) {
    assert_eq!(world.actions(sql), actions, "actions of {sql}");
    assert_eq!(world.outputs(sql), outputs, "outputs of {sql}");
    assert_eq!(world.indirect(sql), indirect, "indirect of {sql}");
}

#[test]
fn select_lists() {
    let world = World::new();
    case(&world, "SELECT 1, 'x' AS y", &[], &["?column?=", "y="], "");
    case(&world, "SELECT id FROM t", &["Select t(id)"], &["id=t.id:id"], "");
    case(
        &world,
        "SELECT * FROM u",
        &["Select u(id,t_id,note)"],
        &["id=u.id:id", "t_id=u.t_id:id", "note=u.note:id"],
        "",
    );
    case(
        &world,
        "SELECT a.id AS x, a.email || a.name FROM t a",
        &["Select t(id,name,email)"],
        &["x=t.id:id", "?column?=t.name:tr+t.email:tr"],
        "",
    );
    case(&world, "SELECT t FROM t", &["Select t(*)"], &["t=t.*:id"], "");
    case(
        &world,
        "SELECT (t).email FROM t",
        &["Select t(email)"],
        &["email=t.email:id"],
        "",
    );
    case(
        &world,
        "SELECT public.t.id FROM public.t",
        &["Select t(id)"],
        &["id=t.id:id"],
        "",
    );
    case(
        &world,
        "SELECT x FROM s.t",
        &["Select s.t(x)"],
        &["x=s.t.x:id"],
        "",
    );
    case(
        &world,
        "SELECT \"Some Column\" FROM \"Odd Name\"",
        &["Select Odd Name(Some Column)"],
        &["Some Column=Odd Name.Some Column:id"],
        "",
    );
    case(
        &world,
        "SELECT ctid FROM t",
        &["Select t(#-1)"],
        &["ctid=t.#-1:id"],
        "",
    );
    case(&world, "SELECT count(*) FROM t", &["Select t()"], &["count="], "");
    case(
        &world,
        "SELECT max(amt), lower(name)::text FROM t GROUP BY name",
        &["Select t(name,amt)"],
        &["max=t.amt:ag", "lower=t.name:tr"],
        "t.name:gr",
    );
    case(
        &world,
        "SELECT CASE WHEN amt > 0 THEN email ELSE name END FROM t",
        &["Select t(name,email,amt)"],
        &["name=t.name:tr+t.email:tr+t.amt:co"],
        "",
    );
    case(
        &world,
        "SELECT row_number() OVER (PARTITION BY name ORDER BY amt) FROM t",
        &["Select t(name,amt)"],
        &["row_number=t.name:wi+t.amt:wi"],
        "",
    );
    case(
        &world,
        "SELECT sum(amt) OVER w FROM t WINDOW w AS (ORDER BY id)",
        &["Select t(id,amt)"],
        &["sum=t.id:wi+t.amt:ag"],
        "",
    );
}

#[test]
fn joins_and_scopes() {
    let world = World::new();
    case(
        &world,
        "SELECT t.name, u.note FROM t JOIN u ON u.t_id = t.id WHERE t.amt > 1 ORDER BY u.id",
        &["Select t(id,name,amt)", "Select u(id,t_id,note)"],
        &["name=t.name:id", "note=u.note:id"],
        "t.id:jo+t.amt:fi+u.id:so+u.t_id:jo",
    );
    case(
        &world,
        "SELECT id FROM t JOIN u USING (id)",
        &["Select t(id)", "Select u(id)"],
        &["id=t.id:id"],
        "t.id:jo+u.id:jo",
    );
    case(
        &world,
        "SELECT * FROM t NATURAL JOIN s.t AS z",
        &["Select s.t(id,x)", "Select t(id,name,email,amt)"],
        &[
            "id=t.id:id",
            "name=t.name:id",
            "email=t.email:id",
            "amt=t.amt:id",
            "x=s.t.x:id",
        ],
        "t.id:jo+s.t.id:jo",
    );
    case(
        &world,
        "SELECT q.m FROM (SELECT email AS m, id FROM t) q WHERE q.id = 1",
        &["Select t(id,email)"],
        &["m=t.email:id"],
        "t.id:fi",
    );
    case(
        &world,
        "SELECT x.note FROM t, LATERAL (SELECT note FROM u WHERE u.t_id = t.id) x",
        &["Select t(id)", "Select u(t_id,note)"],
        &["note=u.note:id"],
        "t.id:fi+u.t_id:fi",
    );
    case(
        &world,
        "SELECT (SELECT max(note) FROM u WHERE t_id = t.id) FROM t",
        &["Select t(id)", "Select u(t_id,note)"],
        &["max=u.note:ag"],
        "t.id:fi+u.t_id:fi",
    );
    case(
        &world,
        "SELECT name FROM t WHERE EXISTS (SELECT 1 FROM u WHERE t_id = t.id)",
        &["Select t(id,name)", "Select u(t_id)"],
        &["name=t.name:id"],
        "t.id:fi+u.t_id:fi",
    );
    case(
        &world,
        "WITH t AS (SELECT note FROM u) SELECT * FROM t",
        &["Select u(note)"],
        &["note=u.note:id"],
        "",
    );
    case(
        &world,
        "WITH t AS (SELECT * FROM t) SELECT email FROM t",
        &["Select t(id,name,email,amt)"],
        &["email=t.email:id"],
        "",
    );
    case(
        &world,
        "WITH q(a, b) AS (SELECT id, email FROM t) SELECT b, a FROM q",
        &["Select t(id,email)"],
        &["b=t.email:id", "a=t.id:id"],
        "",
    );
    case(
        &world,
        "WITH RECURSIVE r(a, b, n) AS (SELECT name, email, 1 FROM t UNION ALL SELECT b, a, n + 1 FROM r WHERE n < 5) \
        SELECT a FROM r",
        &["Select t(name,email)"],
        &["a=t.name:id+t.email:id"],
        "",
    );
    case(
        &world,
        "WITH RECURSIVE a AS (SELECT * FROM b), b AS (SELECT email FROM t) SELECT * FROM a",
        &["Select t(email)"],
        &["email=t.email:id"],
        "",
    );
    case(
        &world,
        "SELECT name FROM t UNION SELECT note FROM u ORDER BY name LIMIT 3",
        &["Select t(name)", "Select u(note)"],
        &["name=t.name:id+u.note:id"],
        "t.name:so+u.note:so",
    );
    case(
        &world,
        "SELECT name FROM t EXCEPT SELECT note FROM u",
        &["Select t(name)", "Select u(note)"],
        &["name=t.name:id"],
        "u.note:fi",
    );
    case(
        &world,
        "VALUES (1, 2), ((SELECT email FROM t), 3)",
        &["Select t(email)"],
        &["column1=t.email:tr", "column2="],
        "",
    );
    case(
        &world,
        "SELECT j.id, j.email FROM (t CROSS JOIN u) AS j (id, n, email)",
        &["Select t(id,email)", "Select u()"],
        &["id=t.id:id", "email=t.email:id"],
        "",
    );
    case(&world, "SELECT x FROM (VALUES (1)) AS w (x)", &[], &["x="], "");
    case(
        &world,
        "SELECT g FROM generate_series(1, 3) AS g",
        &[],
        &["g="],
        "",
    );
    case(
        &world,
        "SELECT k, v FROM t, jsonb_each(to_jsonb(t)) AS e(k, v)",
        &["Select t(*)"],
        &["k=t.*:tr", "v=t.*:tr"],
        "",
    );
    case(
        &world,
        "SELECT email AS name FROM t ORDER BY name",
        &["Select t(email)"],
        &["name=t.email:id"],
        "t.email:so",
    );
    case(
        &world,
        "SELECT email AS name FROM t GROUP BY name, 1",
        &["Select t(name,email)"],
        &["name=t.email:id"],
        "t.name:gr+t.email:gr",
    );
    case(&world, "SELECT id FROM v", &["Select v(id)"], &["id=v.id:id"], "");
}

#[test]
fn writes() {
    let world = World::new();
    case(
        &world,
        "INSERT INTO u (id, note) SELECT id, email FROM t",
        &["Insert u(id,note)", "Select t(id,email)"],
        &["u.id:=t.id:id", "u.note:=t.email:id"],
        "",
    );
    case(
        &world,
        "INSERT INTO u VALUES (1, 2, 'x') RETURNING id, note AS n",
        &["Insert u(id,t_id,note)", "Select u(id,note)"],
        &["u.id:=", "u.t_id:=", "u.note:=", "id=u.id:id", "n=u.note:id"],
        "",
    );
    case(&world, "INSERT INTO u DEFAULT VALUES", &["Insert u()"], &[], "");
    case(
        &world,
        "INSERT INTO u AS x (id, note) SELECT id, email FROM t ON CONFLICT (id) DO UPDATE SET note = excluded.note || x.note WHERE x.t_id > 0",
        &[
            "Insert u(id,note)",
            "Select t(id,email)",
            "Select u(id,t_id,note)",
            "Update u(note)",
        ],
        &[
            "u.id:=t.id:id",
            "u.note:=t.email:id",
            "u.note:=t.email:tr+u.note:tr",
        ],
        "u.t_id:fi",
    );
    case(
        &world,
        "UPDATE t SET email = u.note, amt = 0 FROM u WHERE u.t_id = t.id RETURNING t.email",
        &["Select t(id,email)", "Select u(t_id,note)", "Update t(email,amt)"],
        &["t.email:=u.note:id", "t.amt:=", "email=t.email:id"],
        "t.id:fi+u.t_id:fi",
    );
    case(
        &world,
        "UPDATE t SET (name, email) = (SELECT note, id::text FROM u LIMIT 1)",
        &["Select u(id,note)", "Update t(name,email)"],
        &["t.name:=u.note:id", "t.email:=u.id:tr"],
        "",
    );
    case(
        &world,
        "DELETE FROM t USING u WHERE u.t_id = t.id",
        &["Delete t()", "Select t(id)", "Select u(t_id)"],
        &[],
        "t.id:fi+u.t_id:fi",
    );
    case(
        &world,
        "MERGE INTO t USING u ON u.t_id = t.id WHEN MATCHED AND u.note = 'x' THEN DELETE \
         WHEN MATCHED THEN UPDATE SET name = u.note WHEN NOT MATCHED THEN INSERT (id, name) VALUES (u.id, 'n')",
        &[
            "Delete t()",
            "Insert t(id,name)",
            "Select t(id)",
            "Select u(id,t_id,note)",
            "Update t(name)",
        ],
        &["t.name:=u.note:id", "t.id:=u.id:id", "t.name:="],
        "t.id:jo+u.t_id:jo+u.note:fi",
    );
    case(
        &world,
        "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING email) SELECT * FROM d",
        &["Delete t()", "Select t(id,email)"],
        &["email=t.email:id"],
        "t.id:fi",
    );
    assert!(
        world
            .facts("WITH d AS (DELETE FROM t WHERE id = 1 RETURNING email) SELECT * FROM d")
            .hidden_writes
    );
    assert!(world.facts("EXPLAIN ANALYZE DELETE FROM t").hidden_writes);
    assert!(!world.facts("EXPLAIN DELETE FROM t").hidden_writes);
    assert!(
        world
            .facts("COPY (DELETE FROM t RETURNING id) TO STDOUT")
            .hidden_writes
    );
    assert!(!world.facts("COPY t FROM STDIN").hidden_writes);
    assert!(!world.facts("DELETE FROM t").hidden_writes);
    assert!(world.facts("DELETE FROM t").writes_data);
    assert!(!world.facts("SELECT 1").writes_data);
    case(
        &world,
        "COPY u (id, note) FROM STDIN",
        &["Insert u(id,note)"],
        &["u.id:=", "u.note:="],
        "",
    );
    case(
        &world,
        "COPY u TO STDOUT",
        &["Select u(id,t_id,note)"],
        &["id=u.id:id", "t_id=u.t_id:id", "note=u.note:id"],
        "",
    );
    case(
        &world,
        "COPY (SELECT email FROM t) TO STDOUT",
        &["Select t(email)"],
        &["email=t.email:id"],
        "",
    );
}

#[test]
fn a_merge_restricts_by_its_on_or_by_its_when() {
    let world = World::new();
    let effective = |merge: &str| {
        let facts = world.facts(&format!("MERGE INTO t USING u ON {merge}"));
        let found = facts.effective_where.iter();
        found
            .map(|(_, action, effective)| (*action, *effective))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        effective("true WHEN MATCHED THEN DELETE"),
        [(Action::Delete, false)]
    );
    assert_eq!(
        effective("t.id = t.id WHEN MATCHED THEN UPDATE SET name = 'x'"),
        [(Action::Update, false)]
    );
    assert_eq!(
        effective("u.t_id = t.id WHEN MATCHED THEN DELETE"),
        [(Action::Delete, true)]
    );
    assert_eq!(
        effective("true WHEN MATCHED AND t.id = 1 THEN DELETE"),
        [(Action::Delete, true)]
    );
    assert_eq!(
        effective("u.t_id = t.id WHEN NOT MATCHED BY SOURCE THEN DELETE WHEN NOT MATCHED THEN DO NOTHING"),
        [(Action::Delete, false)]
    );
}

#[test]
fn where_that_restricts() {
    let world = World::new();
    let effective = |condition: &str| {
        let facts = world.facts(&format!("DELETE FROM t WHERE {condition}"));
        facts
            .effective_where
            .iter()
            .map(|(_, _, effective)| *effective)
            .collect::<Vec<_>>()
    };
    for condition in [
        "id = 1",
        "1 = id",
        "id = $1",
        "t.id > 3 AND true",
        "id IN (1, 2)",
        "id = ANY ($1)",
        "id BETWEEN 1 AND 2",
        "name LIKE 'a%'",
        "id = 1 OR name = 'x'",
        "NOT (id = 1)",
        "id IN (SELECT t_id FROM u)",
        "EXISTS (SELECT 1 FROM u WHERE u.t_id = t.id)",
        "NOT EXISTS (SELECT 1 FROM u WHERE u.t_id = t.id)",
        "name IS NULL",
        "(id = 1) IS TRUE",
        "id IS DISTINCT FROM 5",
        "(id, name) = (1, 'x')",
        "CURRENT OF c",
    ] {
        assert_eq!(effective(condition), [true], "{condition}");
    }
    for condition in [
        "true",
        "1 = 1",
        "id = id",
        "id IS NOT NULL",
        "id = id + 0",
        "id = 1 OR true",
        "id = 1 OR 1 = 1",
        "id = 1 OR id = id",
        "NOT (id IS NULL)",
        "id IN (id, 1)",
        "id IN (SELECT t.id)",
        "EXISTS (SELECT 1)",
        "EXISTS (SELECT 1 FROM u)",
        "'a' = 'a'",
        "(id = id) = true",
        "(id IS NOT NULL) IS TRUE",
        "id IS DISTINCT FROM NULL",
        "NOT (id = 1 AND id = id)",
        "amt = amt OR amt IS NULL",
        "$1",
    ] {
        assert_eq!(effective(condition), [false], "{condition}");
    }
    let joined = world.facts("UPDATE t SET name = 'x' FROM u WHERE u.t_id = t.id");
    assert_eq!(
        joined.effective_where,
        [(20001, crate::facts::Action::Update, true)]
    );
    let open = world.facts("UPDATE t SET name = 'x' FROM u WHERE u.id = 1");
    assert_eq!(
        open.effective_where,
        [(20001, crate::facts::Action::Update, false)]
    );
    assert_eq!(
        world.facts("DELETE FROM t").effective_where,
        [(20001, crate::facts::Action::Delete, false)]
    );
}

#[test]
fn definitions() {
    let world = World::new();
    let tag = |sql: &str| match world.facts(sql).kind {
        StatementKind::Ddl(tag) | StatementKind::Admin(tag) => tag,
        other => format!("{other:?}"),
    };
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "CREATE TABLE x (a int CHECK (a > 0) DEFAULT 1, b text REFERENCES t (id), PRIMARY KEY (a))",
            "CREATE TABLE",
            &["Ddl ?x", "Ddl t(id)"],
        ),
        ("CREATE TABLE x (LIKE t)", "CREATE TABLE", &["Ddl ?x", "Ddl t()"]),
        (
            "CREATE TABLE x () INHERITS (t)",
            "CREATE TABLE",
            &["Ddl ?x", "Ddl t()"],
        ),
        (
            "ALTER TABLE t ADD COLUMN z int DEFAULT 1",
            "ALTER TABLE",
            &["Ddl t()"],
        ),
        (
            "ALTER TABLE t ALTER COLUMN name TYPE text USING email",
            "ALTER TABLE",
            &["Ddl t(name)", "Select t(email)"],
        ),
        (
            "ALTER TABLE t ADD CHECK (email NOT LIKE 'a%')",
            "ALTER TABLE",
            &["Ddl t()", "Select t(email)"],
        ),
        (
            "ALTER TABLE t DROP COLUMN email",
            "ALTER TABLE",
            &["Ddl t(email)"],
        ),
        (
            "ALTER TABLE t RENAME COLUMN email TO mail",
            "ALTER TABLE",
            &["Ddl t(email)"],
        ),
        ("ALTER TABLE t RENAME TO x", "ALTER TABLE", &["Ddl t()"]),
        ("ALTER TABLE t SET SCHEMA s", "ALTER TABLE", &["Ddl t()"]),
        ("ALTER TABLE t OWNER TO bob", "ALTER TABLE", &["Ddl t()"]),
        (
            "CREATE INDEX ON t (lower(email)) INCLUDE (amt) WHERE name IS NULL",
            "CREATE INDEX",
            &["Ddl t()", "Select t(name,email,amt)"],
        ),
        (
            "CREATE STATISTICS x ON name, email FROM t",
            "CREATE STATISTICS",
            &["Ddl t()", "Select t(name,email)"],
        ),
        (
            "CREATE POLICY p ON t USING (id IN (SELECT t_id FROM u WHERE note = email))",
            "CREATE POLICY",
            &["Ddl t()", "Select t(id,email)", "Select u(t_id,note)"],
        ),
        (
            "CREATE TRIGGER x BEFORE UPDATE OF email ON t FOR EACH ROW WHEN (old.amt > 1) EXECUTE FUNCTION f()",
            "CREATE TRIGGER",
            &["Ddl t(email)", "Select t(amt)"],
        ),
        (
            "CREATE RULE r AS ON INSERT TO t DO ALSO INSERT INTO u (note) VALUES (new.email)",
            "CREATE RULE",
            &["Ddl t()", "Insert u(note)", "Select t(email)"],
        ),
        (
            "CREATE FUNCTION f(a int) RETURNS text BEGIN ATOMIC SELECT email FROM t WHERE id = a; END",
            "CREATE FUNCTION",
            &["Select t(id,email)"],
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN (SELECT max(id) FROM t)",
            "CREATE FUNCTION",
            &["Select t(id)"],
        ),
        (
            "CREATE DOMAIN d AS text CHECK (VALUE <> '')",
            "CREATE DOMAIN",
            &[],
        ),
        (
            "CREATE SEQUENCE q OWNED BY t.id",
            "CREATE SEQUENCE",
            &["Ddl ?q", "Ddl t(id)"],
        ),
        ("DROP TABLE t, s.t", "DROP TABLE", &["Ddl s.t()", "Ddl t()"]),
        ("DROP VIEW v", "DROP VIEW", &["Ddl v()"]),
        ("DROP TRIGGER x ON t", "DROP TRIGGER", &["Ddl t()"]),
        ("DROP FUNCTION f(int)", "DROP FUNCTION", &[]),
        ("COMMENT ON COLUMN t.email IS 'x'", "COMMENT", &["Ddl t(email)"]),
        ("GRANT SELECT ON t TO bob", "GRANT", &["Ddl t()"]),
        ("REVOKE EXECUTE ON FUNCTION f(int) FROM bob", "REVOKE", &[]),
        ("GRANT a TO b", "GRANT ROLE", &[]),
        ("CREATE ROLE a PASSWORD 'x'", "CREATE ROLE", &[]),
        ("ALTER SYSTEM SET work_mem = '1MB'", "ALTER SYSTEM", &[]),
        ("VACUUM (ANALYZE) t (email)", "VACUUM", &["Admin t(email)"]),
        ("REINDEX TABLE t", "REINDEX", &["Admin t()"]),
        ("CHECKPOINT", "CHECKPOINT", &[]),
        ("LOAD 'x'", "LOAD", &[]),
        ("CREATE EXTENSION x", "CREATE EXTENSION", &[]),
        (
            "CREATE PUBLICATION p FOR TABLE t (id) WHERE (amt > 1)",
            "CREATE PUBLICATION",
            &["Ddl t(id)", "Select t(amt)"],
        ),
        (
            "REFRESH MATERIALIZED VIEW v",
            "REFRESH MATERIALIZED VIEW",
            &["Ddl v()"],
        ),
        ("CREATE TYPE x AS (a int)", "CREATE TYPE", &["Ddl ?x"]),
        (
            "CREATE AGGREGATE a(int) (SFUNC = f, STYPE = int)",
            "CREATE AGGREGATE",
            &[],
        ),
    ];
    for (sql, expected, actions) in cases {
        assert_eq!(tag(sql), *expected, "{sql}");
        assert_eq!(world.actions(sql), *actions, "{sql}");
    }
    for sql in [
        "ALTER TABLE t ADD COLUMN z int",
        "CREATE INDEX ON t (id)",
        "COMMENT ON TABLE t IS 'x'",
        "CREATE TABLE x (LIKE t)",
    ] {
        assert!(world.facts(sql).only_adds, "{sql}");
    }
    for sql in [
        "ALTER TABLE t ADD COLUMN z int, DROP COLUMN email",
        "ALTER TABLE t RENAME TO x",
        "DROP TABLE t",
        "CREATE TABLE x () INHERITS (t)",
    ] {
        assert!(!world.facts(sql).only_adds, "{sql}");
    }
    for sql in [
        "CREATE TEMP TABLE x (a int)",
        "CREATE TABLE pg_temp.x (a int)",
        "CREATE TEMP TABLE x AS SELECT 1",
        "SELECT 1 INTO TEMP x",
    ] {
        assert!(world.facts(sql).creates_temporary, "{sql}");
    }
    assert!(!world.facts("CREATE TABLE x (a int)").creates_temporary);
    assert!(world.facts("LOAD 'x'").server_files);
    assert!(world.facts("COPY t FROM '/x'").server_files);
    assert!(world.facts("COPY t TO PROGRAM 'x'").server_programs);
}

#[test]
fn unknown_names_are_said() {
    let world = World::new();
    let unknown = |sql: &str| matches!(world.read(sql), Err(Unreadable::UnknownName(_)));
    assert!(unknown("SELECT nope FROM t"));
    assert!(unknown("SELECT id FROM t, u"));
    assert!(unknown("SELECT x.id FROM t"));
    assert!(unknown("SELECT * FROM nowhere"));
    assert!(unknown("UPDATE t SET nope = 1"));
    assert!(unknown(
        "SELECT u.id FROM t, (SELECT 1) AS q JOIN u ON t.id = u.id"
    ));
    assert!(unknown("SELECT * FROM t, (SELECT t.id) q"));
    assert_eq!(
        world.actions("SELECT a FROM nowhere.at_all"),
        ["Select ?nowhere.at_all"]
    );
}

#[test]
fn the_session_is_followed() {
    let world = World::new();
    let effects = |sql: &str| world.facts(sql).effects;
    let setting = |name: &str, values: Option<&[&str]>, local| SessionEffect::Setting {
        name: name.to_owned(),
        values: values.map(|values| values.iter().map(|value| (*value).to_owned()).collect()),
        local,
    };
    assert_eq!(
        effects("SET search_path = a, \"B\", 'c d'"),
        [setting("search_path", Some(&["a", "B", "c d"]), false)]
    );
    assert_eq!(
        effects("SET LOCAL Work_Mem TO '1MB'"),
        [setting("work_mem", Some(&["1MB"]), true)]
    );
    assert_eq!(
        effects("SET SCHEMA 'x'"),
        [setting("search_path", Some(&["x"]), false)]
    );
    assert_eq!(
        effects("SET ROLE alice"),
        [setting("role", Some(&["alice"]), false)]
    );
    assert_eq!(
        effects("SET SESSION AUTHORIZATION bob"),
        [setting("session_authorization", Some(&["bob"]), false)]
    );
    assert_eq!(effects("SET x.y TO DEFAULT"), [setting("x.y", None, false)]);
    assert_eq!(effects("RESET ROLE"), [setting("role", None, false)]);
    assert_eq!(effects("RESET ALL"), [SessionEffect::ResetAll]);
    assert_eq!(
        effects("SELECT set_config('search_path', 'x', false)"),
        [setting("search_path", Some(&["x"]), false)]
    );
    assert_eq!(
        effects("SELECT pg_catalog.set_config('role', $1, true)"),
        [SessionEffect::UnknownSetting]
    );
    assert_eq!(
        effects("SELECT set_config('role', 'x', true) FROM t"),
        [SessionEffect::UnknownSetting]
    );
    assert_eq!(
        effects("SELECT CASE WHEN $1 THEN set_config('role', 'x', true) END, lower('')"),
        [SessionEffect::UnknownSetting,]
    );
    assert_eq!(effects("EXPLAIN SELECT set_config('role', 'x', true)"), []);
    let kinds = [
        ("BEGIN", StatementKind::Begin),
        ("START TRANSACTION READ ONLY", StatementKind::Begin),
        ("COMMIT AND CHAIN", StatementKind::Commit { chain: true }),
        ("END", StatementKind::Commit { chain: false }),
        ("ABORT", StatementKind::Rollback { chain: false }),
        ("SAVEPOINT a", StatementKind::Savepoint("a".to_owned())),
        (
            "ROLLBACK TO SAVEPOINT a",
            StatementKind::RollbackTo("a".to_owned()),
        ),
        ("RELEASE a", StatementKind::Release("a".to_owned())),
        ("PREPARE TRANSACTION 'x'", StatementKind::TwoPhase),
        ("SET TRANSACTION READ ONLY", StatementKind::TransactionSetting),
        ("SET CONSTRAINTS ALL DEFERRED", StatementKind::TransactionSetting),
        ("SHOW search_path", StatementKind::Show),
        (
            "PREPARE p (int) AS SELECT id FROM t WHERE id = $1",
            StatementKind::Prepare("p".to_owned()),
        ),
        ("EXECUTE p(1)", StatementKind::Execute("p".to_owned())),
        ("DEALLOCATE ALL", StatementKind::Deallocate(None)),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT id FROM t",
            StatementKind::Declare {
                name: "c".to_owned(),
                hold: true,
            },
        ),
        (
            "FETCH 10 FROM c",
            StatementKind::Fetch {
                name: "c".to_owned(),
                moves_only: false,
            },
        ),
        (
            "MOVE c",
            StatementKind::Fetch {
                name: "c".to_owned(),
                moves_only: true,
            },
        ),
        ("CLOSE ALL", StatementKind::CloseCursor(None)),
        ("LISTEN jobs", StatementKind::Listen("jobs".to_owned())),
        ("UNLISTEN *", StatementKind::Unlisten(None)),
        ("NOTIFY jobs, 'x'", StatementKind::Notify("jobs".to_owned())),
        (
            "DISCARD ALL",
            StatementKind::Discard(crate::facts::DiscardTarget::All),
        ),
        ("LOCK TABLE t", StatementKind::Lock),
        ("TRUNCATE t, u", StatementKind::Truncate),
        ("DO 'x'", StatementKind::Call),
        (
            "EXPLAIN ANALYZE DELETE FROM t",
            StatementKind::Explain { analyze: true },
        ),
        (
            "EXPLAIN (ANALYZE off) DELETE FROM t",
            StatementKind::Explain { analyze: false },
        ),
        (
            "CREATE TABLE x AS SELECT email FROM t",
            StatementKind::CreateTableAs,
        ),
        ("SELECT email INTO x FROM t", StatementKind::CreateTableAs),
        ("CREATE VIEW x AS SELECT email FROM t", StatementKind::CreateView),
        (
            "COPY t FROM '/x'",
            StatementKind::CopyFrom(crate::facts::CopyTarget::File),
        ),
        (
            "COPY t TO PROGRAM 'x'",
            StatementKind::CopyTo(crate::facts::CopyTarget::Program),
        ),
    ];
    for (sql, kind) in kinds {
        assert_eq!(world.facts(sql).kind, kind, "{sql}");
    }
    assert_eq!(world.actions("EXPLAIN ANALYZE DELETE FROM t"), ["Delete t()"]);
    assert_eq!(world.actions("LOCK t IN ACCESS SHARE MODE"), ["Select t()"]);
    assert_eq!(
        world.outputs("CREATE TABLE x (a) AS SELECT email FROM t"),
        ["a=t.email:id"]
    );
}

/// Runs as the sidecar's judging threads do.
fn on_a_judging_thread(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(work)
        .expect("a thread can be started");
    assert!(thread.join().is_ok(), "a judging thread must not die");
}

#[test]
fn nesting_is_bounded() {
    on_a_judging_thread(|| {
        let world = World::new();
        let shapes: [(&str, &str, &str, &str); 17] = [
            ("SELECT 1", "+1", "", ""),
            ("SELECT ", "(", "1", ")"),
            ("SELECT ", "abs(", "1", ")"),
            ("SELECT ", "NOT ", "true", ""),
            ("SELECT ", "- ", "1", ""),
            ("SELECT ", "CASE WHEN true THEN ", "1", " END"),
            ("SELECT ", "(SELECT ", "1", ")"),
            ("SELECT ", "ARRAY[", "1", "]"),
            ("SELECT ", "coalesce(1, ", "1", ")"),
            ("SELECT ", "ROW(1, ", "1", ")"),
            ("SELECT 1", "::int", "", ""),
            ("SELECT * FROM ", "(SELECT * FROM ", "t", ") q"),
            ("SELECT 1 FROM t a0", " CROSS JOIN t", "", ""),
            ("SELECT 1", " UNION SELECT 1", "", ""),
            (
                "SELECT 1 FROM t WHERE ",
                "id IN (SELECT t_id FROM u WHERE ",
                "true",
                ")",
            ),
            ("", "WITH q AS (", "SELECT 1", ") SELECT 1"),
            ("SELECT ", "true AND (false OR ", "true", ")"),
        ];
        for (start, open, middle, close) in shapes {
            for depth in [900, 9_000, 100_000] {
                let sql = format!("{start}{}{middle}{}", open.repeat(depth), close.repeat(depth));
                let read = world.read(&sql);
                let fine = match &read {
                    Ok(_) | Err(Unreadable::TooComplex(_)) => true,
                    // Chains of the same table clash on its name, and nothing is said of deeper ones.
                    Err(Unreadable::UnknownName(_)) => depth < 10_000,
                    Err(Unreadable::Syntax { .. } | Unreadable::NotBuilt(_)) => false,
                };
                assert!(fine, "{start}{open} {depth}: {:?}", read.err());
            }
        }
    });
}

#[test]
fn what_the_library_cannot_walk_is_refused() {
    let world = World::new();
    for sql in [
        "SELECT E'\\xff'",
        "SELECT E'\\xc3'",
        "SELECT \"é\" FROM t",
        "CREATE STATISTICS x ON a, b FROM (SELECT 1) q",
        "CREATE STATISTICS x ON a, b FROM t JOIN u ON true",
        "GRANT EXECUTE ON FUNCTION f(int) TO bob",
        "GRANT USAGE ON SCHEMA a, b TO bob",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO bob",
        "SELECT U&'\\0441' UESCAPE '!'",
    ] {
        // Only that it answers.
        let _ = world.read(sql).map_err(|error| eprintln!("{sql}: {error}"));
    }
    let long = "é".repeat(100);
    let truncated = world
        .read(&format!("SELECT 1 AS \"{long}\""))
        .expect("a long name is cut as the server cuts it");
    assert_eq!(
        truncated.output.first().map(|column| column.name.clone()),
        Some("é".repeat(31))
    );
}

#[test]
fn calls_are_judged_by_their_types() {
    let world = World::new();
    let calls = |sql: &str| {
        let facts = world.facts(sql);
        let line = |call: &crate::facts::Call| {
            format!(
                "{}:{:?}:{:?}:{}",
                call.name,
                call.origin,
                call.class,
                if call.quiet { "quiet" } else { "loud" }
            )
        };
        facts.calls.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(calls("SELECT 1 FROM t WHERE id = 5"), ["=:BuiltIn:Open:quiet"]);
    assert_eq!(
        calls("SELECT 1 FROM t WHERE name = 'x'"),
        ["=:BuiltIn:Open:quiet"]
    );
    assert_eq!(calls("SELECT 1 FROM t WHERE id = $1"), ["=:BuiltIn:Open:quiet"]);
    assert_eq!(
        calls("SELECT 1 FROM t WHERE id IN (1, 2)"),
        ["=:BuiltIn:Open:quiet"]
    );
    assert_eq!(
        calls("SELECT 1 FROM t WHERE id + 1 = 5")
            .first()
            .map(String::as_str),
        Some("+:BuiltIn:Open:loud")
    );
    assert_eq!(
        calls("SELECT name::int FROM t"),
        ["pg_catalog.int4:BuiltIn:Open:loud"]
    );
    assert_eq!(calls("SELECT id::text FROM t"), ["text:BuiltIn:Open:quiet"]);
    assert_eq!(calls("SELECT nope(1)"), ["nope:Unknown:Unlisted:loud"]);
    assert_eq!(calls("SELECT lower(name) FROM t"), ["lower:BuiltIn:Open:quiet"]);
    assert_eq!(
        calls("SELECT 1 FROM t WHERE name ~ '^abc'"),
        ["~:BuiltIn:Open:quiet"]
    );
    assert_eq!(calls("SELECT 1 FROM t WHERE name ~ '('"), ["~:BuiltIn:Open:loud"]);
    assert_eq!(
        calls("SELECT pg_read_file('x')")
            .first()
            .map(|call| call.contains("Server")),
        Some(true)
    );
    for quiet in [
        "SELECT 1 FROM t WHERE lower(email) = 'x'",
        "SELECT 1 FROM t WHERE id = ANY ($1)",
        "SELECT 1 FROM t WHERE id = ANY (ARRAY[1, 2])",
        "SELECT 1 FROM t WHERE coalesce(name, 'x') = $1",
        "SELECT 1 FROM t WHERE length(name) > 3 AND (name || email) <> 'x'",
        "SELECT 1 FROM t JOIN u USING (id)",
        "SELECT 1 FROM t WHERE CASE WHEN id > 1 THEN name ELSE 'x' END = 'y'",
    ] {
        let loud: Vec<String> = calls(quiet)
            .into_iter()
            .filter(|call| call.ends_with("loud"))
            .collect();
        assert_eq!(loud, Vec::<String>::new(), "{quiet}");
    }
    assert!(calls("SELECT id BETWEEN 1 AND 2 FROM t").len() == 2);
    assert_eq!(calls("SELECT * FROM t NATURAL JOIN u").len(), 1);
    assert_eq!(
        calls("SELECT name AT TIME ZONE 'x' FROM t")
            .first()
            .map(|call| call.starts_with("pg_catalog.timezone")),
        Some(true)
    );
    assert_eq!(
        calls("SELECT nullif(id, 1), id IS DISTINCT FROM 3, name LIKE 'a', name SIMILAR TO 'x' FROM t").len(),
        5
    );
}
