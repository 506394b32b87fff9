//! A catalog from a file of definitions, without a database.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sql_facts::{Catalog, Overlay, ParsedStatement, SearchPath, parse};

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
    let text = without_psql(&text);
    let parsed = parse(&text).with_context(|| format!("{}", file.display()))?;
    let mut problems = Vec::new();
    let mut path = path.clone();
    for statement in &parsed.statements {
        if let Err(error) = catalog.apply(statement, &path) {
            let line = text
                .get(..statement.span.start)
                .map_or(0, |before| before.matches('\n').count() + 1);
            problems.push(format!("{}:{line}: {error}", file.display()));
        }
        path = Catalog::path_after(statement, &path);
    }
    match problems.len() {
        0 => Ok(catalog),
        _ => bail!("{}", problems.join("\n")),
    }
}

/// What `pg_dump` writes for psql and not for the server becomes empty lines: commands that begin with a backslash, and
/// the data behind COPY … FROM stdin.
fn without_psql(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut data = false;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        let ends_data = data && bare == "\\.";
        if !data && !bare.starts_with('\\') {
            let copies = bare.len() > 4
                && bare
                    .get(..5)
                    .is_some_and(|word| word.eq_ignore_ascii_case("copy "));
            data = copies && bare.to_ascii_lowercase().ends_with("from stdin;");
            kept.push_str(line);
        } else if line.ends_with('\n') {
            kept.push('\n');
        }
        data &= !ends_data;
    }
    kept
}

/// The session's layer and path after a statement of a text, as the next one meets them.
pub(crate) fn after(
    statement: &ParsedStatement,
    catalog: &Catalog,
    overlay: &mut Overlay,
    path: &mut SearchPath,
) {
    // What cannot be applied leaves names unknown, and they are told as unknown.
    let _ = overlay.apply(catalog, statement, path);
    *path = Catalog::path_after(statement, path);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_psql_is_left_out_and_lines_keep_their_numbers() {
        let dump = "\\restrict x\nCREATE TABLE t (a int);\nCOPY public.t (a) FROM stdin;\n1\n\\N\n\\.\nCREATE TABLE u (b int);\n\\unrestrict x\n";
        let kept = without_psql(dump);
        assert_eq!(kept.lines().count(), dump.lines().count());
        assert_eq!(kept.lines().nth(6), Some("CREATE TABLE u (b int);"));
        assert!(!kept.contains('1') && !kept.contains('\\'));
    }

    #[test]
    fn a_search_path_is_split_as_the_server_does() {
        assert_eq!(search_path(None).0, ["public"]);
        assert_eq!(
            search_path(Some("Ward, \"My Schema\",public")).0,
            ["ward", "My Schema", "public"]
        );
    }
}
