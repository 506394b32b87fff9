//! An AI agent's day: what it asks, and what comes of it.

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// What must come of a statement. The demo fails when it does not: a demo that shows something else is a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Runs,
    /// Runs, and this text, which stands in the row as stored, is not in the answer.
    Without(&'static str),
    Refused,
}

struct Act {
    says: &'static str,
    sql: &'static str,
    outcome: Outcome,
}

const DAY: [Act; 13] = [
    Act {
        says: "What sold best?",
        sql: "SELECT p.category, count(*) AS orders, sum(o.total) AS revenue\n\
              FROM orders o JOIN products p ON p.id = o.product_id GROUP BY 1 ORDER BY 3 DESC LIMIT 3",
        outcome: Outcome::Runs,
    },
    Act {
        says: "Whose orders are these? (a row filter: only the agent's own tenant)",
        sql: "SELECT tenant_id, count(*) FROM orders GROUP BY tenant_id",
        outcome: Outcome::Without("south"),
    },
    Act {
        says: "The best customers, please. (masks)",
        sql: "SELECT id, name, email, phone, birth_date FROM customers ORDER BY loyalty DESC, id LIMIT 3",
        outcome: Outcome::Without("+49 30"),
    },
    Act {
        says: "The same through an expression, a whole row and JSON.",
        sql: "SELECT upper(c.email) AS shouted, to_json(c)->>'phone' AS phone FROM customers c ORDER BY c.id LIMIT 2",
        outcome: Outcome::Without("+49 30"),
    },
    Act {
        says: "Guessing by a predicate finds nothing.",
        sql: "SELECT count(*) AS found FROM customers WHERE phone LIKE '+49 30%'",
        outcome: Outcome::Runs,
    },
    Act {
        says: "Out as COPY.",
        sql: "COPY (SELECT id, email, phone FROM customers ORDER BY id LIMIT 2) TO STDOUT",
        outcome: Outcome::Without("+49 30"),
    },
    Act {
        says: "What do people earn? (no rule allows it)",
        sql: "SELECT name, salary FROM payroll ORDER BY salary DESC LIMIT 3",
        outcome: Outcome::Refused,
    },
    Act {
        says: "Tidying up. (DELETE without WHERE)",
        sql: "DELETE FROM reports",
        outcome: Outcome::Refused,
    },
    Act {
        says: "... nor hidden in another statement.",
        sql: "WITH gone AS (DELETE FROM reports WHERE true RETURNING id) SELECT count(*) FROM gone",
        outcome: Outcome::Refused,
    },
    Act {
        says: "A better schema. (DDL)",
        sql: "DROP TABLE customers CASCADE",
        outcome: Outcome::Refused,
    },
    Act {
        says: "Notes for later, in a temporary table.",
        sql: "CREATE TEMP TABLE best AS\n  SELECT c.city, count(DISTINCT c.id) AS customers, sum(o.total) AS revenue\n  \
              FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.city",
        outcome: Outcome::Runs,
    },
    Act {
        says: "The report is written from them.",
        sql: "INSERT INTO reports (title, city, customers, revenue)\n  \
              SELECT 'revenue by city', city, customers, revenue FROM best ORDER BY revenue DESC LIMIT 3",
        outcome: Outcome::Runs,
    },
    Act {
        says: "What did I write?",
        sql: "SELECT title, city, customers, revenue FROM reports ORDER BY revenue DESC",
        outcome: Outcome::Runs,
    },
];

/// Asked twice as one prepared statement: the second answer must be masked like the first.
const PREPARED: &str = "SELECT email FROM customers WHERE id = $1";

pub(super) async fn play(port: u16, database: &str) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user("agent")
        .dbname(database)
        .application_name("report-agent");
    let (client, connection) = config
        .connect(NoTls)
        .await
        .context("cannot connect through the sidecar")?;
    let connection = tokio::spawn(connection);
    for act in &DAY {
        play_act(&client, act).await?;
    }

    println!("\n-- The same statement twice, prepared once: the second answer is masked like the first.");
    println!("{PREPARED}");
    let statement = client.prepare(PREPARED).await?;
    for id in [1_i32, 2] {
        let row = client.query_one(&statement, &[&id]).await?;
        let email: &str = row.try_get(0)?;
        println!("   ${id} → {email}");
        ensure!(
            !email.contains('.') || email.contains('*'),
            "the demo got an e-mail address in clear: {email}"
        );
    }
    drop(client);
    connection.await?.context("the connection ended badly")?;
    Ok(())
}

async fn play_act(client: &Client, act: &Act) -> Result<()> {
    println!("\n-- {}\n{};", act.says, act.sql);
    let answer = match act.sql.starts_with("COPY") {
        true => copy(client, act.sql).await,
        false => client
            .simple_query(act.sql)
            .await
            .map(|messages| table(&messages)),
    };
    match (answer, act.outcome) {
        (Ok(text), Outcome::Runs) => print!("{text}"),
        (Ok(text), Outcome::Without(secret)) => {
            print!("{text}");
            ensure!(
                !text.contains(secret),
                "the demo got {secret:?}, which its policy hides"
            );
        }
        (Ok(text), Outcome::Refused) => {
            print!("{text}");
            anyhow::bail!("the demo's policy was to refuse this, and it ran");
        }
        (Err(error), Outcome::Refused) => {
            let db = error.as_db_error().context("not an error of the database")?;
            println!("   refused [{}] {}", db.code().code(), db.message());
            for more in [db.detail(), db.hint()].into_iter().flatten() {
                println!("   {more}");
            }
        }
        (Err(error), Outcome::Runs | Outcome::Without(_)) => {
            let text = error.as_db_error().map_or(error.to_string(), |db| {
                format!(
                    "{}: {} {}",
                    db.code().code(),
                    db.message(),
                    db.hint().unwrap_or_default()
                )
            });
            anyhow::bail!("the demo's policy was to let this run, and it was answered: {text}");
        }
    }
    Ok(())
}

async fn copy(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    use futures_util::TryStreamExt;
    let blocks: Vec<_> = client.copy_out(sql).await?.try_collect().await?;
    let bytes: Vec<u8> = blocks.into_iter().flatten().collect();
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| format!("   {line}\n"))
        .collect())
}

/// Rows under their names, columns aligned; or what the statement did.
fn table(messages: &[SimpleQueryMessage]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut out = String::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                rows.push(columns.iter().map(|column| column.name().to_owned()).collect());
            }
            SimpleQueryMessage::Row(row) => {
                let cell = |at: usize| row.try_get(at).ok().flatten().unwrap_or("NULL").to_owned();
                rows.push((0..row.len()).map(cell).collect());
            }
            SimpleQueryMessage::CommandComplete(count) if rows.is_empty() => {
                out.push_str(&format!("   done, {count} rows\n"));
            }
            _ => {} // the enum is open; nothing else is shown
        }
    }
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(&format!("   {}\n", cells.join("  ").trim_end()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{DATABASE, server::Server, tests::TestPlace};

    /// Without the sidecar every act runs, and shows what it is to hide: what the demo shows is the policy's doing.
    #[tokio::test]
    async fn without_a_policy_everything_runs() {
        let test = TestPlace::new();
        let place = &test.place;
        let server = Server::start(&place.folder, &mut place.processes()).unwrap();
        server.load_shop(DATABASE).unwrap();
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(server.socket())
            .port(server.port())
            .user("postgres")
            .dbname(DATABASE);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        for act in &DAY {
            if act.outcome == Outcome::Refused {
                client
                    .batch_execute(&format!("BEGIN; {}; ROLLBACK", act.sql))
                    .await
                    .unwrap();
                continue;
            }
            let text = match act.sql.starts_with("COPY") {
                true => copy(&client, act.sql).await.unwrap(),
                false => table(&client.simple_query(act.sql).await.unwrap()),
            };
            if let Outcome::Without(secret) = act.outcome {
                assert!(text.contains(secret), "{}\n{text}", act.sql);
            }
        }
        assert_eq!(place.processes().stop().unwrap(), 1);
    }
}
