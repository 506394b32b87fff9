//! A catalog from a file of definitions, without a database.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sql_facts::{Catalog, SearchPath, parse};

/// Stack of threads that read statements: trees of client text are walked by recursion up to a bound.
pub(crate) const STACK_BYTES: usize = 256 << 20;

/// Runs something that reads statements on a thread with a stack for it.
pub(crate) fn with_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("weir-judge".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .context("cannot start a thread")?;
        thread
            .join()
            .unwrap_or_else(|_| bail!("reading the statement failed: this is a bug in weir"))
    })
}

/// The built-ins of that server major and what the file defines.
pub(crate) fn catalog(schema: Option<&Path>, server_major: u16, path: &SearchPath) -> Result<Catalog> {
    let mut catalog = Catalog::builtins(server_major).with_context(|| {
        format!(
            "the built-ins of PostgreSQL {server_major} have not been reviewed; give another --server-major"
        )
    })?;
    let Some(file) = schema else {
        return Ok(catalog);
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = parse(&text).with_context(|| format!("{}", file.display()))?;
    let mut problems = Vec::new();
    for statement in &parsed.statements {
        if let Err(error) = catalog.apply(statement, path) {
            let line = text
                .get(..statement.span.start)
                .map_or(0, |before| before.matches('\n').count() + 1);
            problems.push(format!("{}:{line}: {error}", file.display()));
        }
    }
    match problems.len() {
        0 => Ok(catalog),
        _ => bail!("{}", problems.join("\n")),
    }
}

/// `a, b` as the server splits it; names are folded unless quoted.
pub(crate) fn search_path(text: Option<&str>) -> SearchPath {
    let Some(text) = text else {
        return SearchPath(vec!["public".to_owned()]);
    };
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    SearchPath(
        names
            .map(
                |name| match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
                    Some(quoted) => quoted.replace("\"\"", "\""),
                    None => name.to_ascii_lowercase(),
                },
            )
            .collect(),
    )
}
