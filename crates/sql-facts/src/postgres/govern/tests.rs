//! Every governed text here is run on a real server, because only it knows what a text means.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use row_masking::{Mask, MaskForm};
use test_support::{Database, shared_postgres};

use crate::catalog::{Catalog, CatalogView, Overlay, SearchPath};
use crate::plan::{ColumnMask, Governed, Plan, RelationPlan, RowFilter};
use crate::postgres::{govern, parse, read};

mod oracle;
mod printing;
mod statements;

/// A database with its catalog and what is governed in it.
struct World {
    db: Database<'static>,
    catalog: Catalog,
    overlay: Overlay,
    path: SearchPath,
    plan: Plan,
}

impl World {
    fn new(setup: &str) -> Self {
        let db = shared_postgres().unwrap().database().unwrap();
        db.psql(setup).unwrap();
        let rows = db
            .psql(&format!(
                "select kind || chr(9) || json from ({}) q(kind, json)",
                Catalog::load_sql()
            ))
            .unwrap();
        let rows = rows.lines().filter_map(|line| line.split_once('\t'));
        let catalog = Catalog::from_rows(15, 1, rows).unwrap();
        let path = SearchPath(vec!["pg_catalog".to_owned(), "public".to_owned()]);
        Self {
            db,
            catalog,
            overlay: Overlay::default(),
            path,
            plan: Plan::default(),
        }
    }

    fn view(&self) -> CatalogView<'_> {
        CatalogView {
            catalog: &self.catalog,
            overlay: &self.overlay,
            path: &self.path,
        }
    }

    fn entry(&mut self, table: &str) -> (u32, &mut RelationPlan) {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        let view = CatalogView {
            catalog: &self.catalog,
            overlay: &self.overlay,
            path: &self.path,
        };
        let oid = view.resolve_relation(Some(schema), name).unwrap().oid;
        (oid, self.plan.relations.entry(oid).or_default())
    }

    fn filter(&mut self, table: &str, predicate: &str) {
        let filter = RowFilter {
            rule: format!("filter-{table}"),
            predicate: predicate.to_owned(),
        };
        self.entry(table).1.filters.push(filter);
    }

    fn mask(&mut self, table: &str, column: &str, mask: &Mask) {
        let oid = self.entry(table).0;
        let (number, kind) = {
            let column = self.view().relation(oid).unwrap().column(column).unwrap();
            (column.number, column.column_type.clone())
        };
        let mask = match row_masking::form(mask, &kind).unwrap() {
            MaskForm::Sql(mask) => ColumnMask::Sql(mask),
            MaskForm::Wire(mask) => ColumnMask::Wire(mask),
        };
        self.entry(table).1.masks.insert(number, mask);
    }

    /// Governs the only statement of a text.
    fn try_govern(&self, sql: &str) -> Result<Governed, String> {
        let parsed = parse(sql).map_err(|error| format!("parse: {error}"))?;
        let [statement] = parsed.statements.as_slice() else {
            return Err("not one statement".to_owned());
        };
        let facts = read(statement, self.view()).map_err(|error| format!("read: {error}"))?;
        govern(statement, &facts, &self.plan, self.view()).map_err(|error| error.to_string())
    }

    fn govern(&self, sql: &str) -> Governed {
        self.try_govern(sql)
            .unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    /// Runs the governed text.
    fn run(&self, sql: &str) -> String {
        let governed = self.govern(sql);
        self.db
            .psql(&governed.text)
            .unwrap_or_else(|error| panic!("{sql}\n→ {}\n{error:#}", governed.text))
    }

    /// Runs governed texts in one session, with other statements between (those that start with `!`).
    fn session(&self, statements: &[&str]) -> String {
        let mut script = String::new();
        for statement in statements {
            match statement.strip_prefix('!') {
                Some(plain) => script.push_str(plain),
                None => script.push_str(&self.govern(statement).text),
            }
            script.push_str(";\n");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("session.sql");
        std::fs::write(&file, script.clone()).unwrap();
        self.db
            .psql_file(&file)
            .unwrap_or_else(|error| panic!("{script}\n{error:#}"))
    }
}

/// The outcome of each statement of a script: its rows, sorted, or its SQLSTATE.
fn outcomes(db: &Database<'_>, before: &str, statements: &[String]) -> BTreeMap<usize, String> {
    let mut script = format!("\\set ON_ERROR_STOP 0\n{before}\n");
    for (index, statement) in statements.iter().enumerate() {
        let _ = write!(
            script,
            "\\echo @@{index}\n{statement};\n\\echo @@state :SQLSTATE\n"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let text = db.psql_file(&file).unwrap();
    let mut found = BTreeMap::new();
    for part in text.split("@@").skip(1).collect::<Vec<_>>().chunks(2) {
        let [rows, state] = part else { continue };
        let (index, rows) = rows.split_once('\n').unwrap_or((rows, ""));
        let mut rows: Vec<&str> = rows.lines().collect();
        rows.sort_unstable();
        found.insert(
            index.trim().parse().unwrap(),
            format!("{}{}", state.trim(), rows.join("\n")),
        );
    }
    found
}
