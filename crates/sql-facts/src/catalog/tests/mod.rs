//! The catalog against real servers: they know what is true.

mod apply;
mod clients;
mod lists;
mod load;
mod quiet;

use test_support::{Database, shared_postgres};

use super::*;

/// A database of its own for one test, on the newest installed server.
fn database() -> Database<'static> {
    shared_postgres()
        .expect("a server")
        .database()
        .expect("a database")
}

fn major(db: &Database<'_>) -> u16 {
    let version: u32 = db
        .psql("show server_version_num")
        .expect("a version")
        .parse()
        .expect("a number");
    u16::try_from(version / 10000).expect("a small number")
}

/// What psql printed, as (kind, JSON).
fn rows(printed: &str) -> impl Iterator<Item = (&str, &str)> {
    printed.lines().filter_map(|line| line.split_once('|'))
}

fn catalog(db: &Database<'_>) -> Catalog {
    let printed = db.psql(Catalog::load_sql()).expect("the catalog");
    Catalog::from_rows(major(db), 1, rows(&printed)).expect("rows that are understood")
}

/// Runs the setup in one session and transaction, and reads its layer there.
fn overlay(db: &Database<'_>, catalog: &Catalog, setup: &str) -> Overlay {
    let printed = db
        .psql(&format!("{setup}; {}", Overlay::load_sql()))
        .expect("the layer");
    Overlay::from_rows(catalog, rows(&printed)).expect("rows that are understood")
}

fn path(schemas: &[&str]) -> SearchPath {
    SearchPath(schemas.iter().map(|schema| (*schema).to_owned()).collect())
}
