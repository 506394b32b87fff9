//! What `/metrics` says of statements that really ran.

use test_support::wait_for;
use tokio_postgres::{Config, NoTls};

use crate::harness::{Sidecar, Start, get, policy, server};

fn value(sidecar: &Sidecar, series: &str) -> f64 {
    let (_, page) = get(sidecar.admin, "/metrics").unwrap();
    page.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(0.0)
}

fn reach(sidecar: &Sidecar, series: &str, wanted: f64) {
    wait_for(series, 20, || (value(sidecar, series) == wanted).then_some(())).unwrap_or_else(|error| {
        let (_, page) = get(sidecar.admin, "/metrics").unwrap();
        panic!("{error}: not {wanted} in\n{page}")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_counted_by_rule_mask_and_code() {
    server()
        .psql(
            "shop",
            "create table if not exists counted(id int, email text, note text); truncate counted; \
             insert into counted values (1, 'a@x', 'n'), (2, 'b@x', 'n'), (3, null, 'n'); \
             grant all on counted to public",
        )
        .unwrap();
    let rules = "  masks:\n  - {name: contact, columns: [public.counted.email], mask: {type: Email}}\n  \
                 access:\n  - {name: no-delete, effect: Deny, actions: [Delete], tables: [public.counted]}\n";
    let sidecar = Start::with(policy("{mode: Disable}", "", rules)).start();
    assert_eq!(value(&sidecar, "weir_sidecar_open_sessions"), 0.0);
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(sidecar.port)
        .user("trust_user")
        .dbname("shop");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    reach(&sidecar, "weir_sidecar_open_sessions", 1.0);
    // 3 rows with one masked cell each, in both protocols; the id and the note are not masked.
    let rows = client.query("select * from counted", &[]).await.unwrap();
    assert_eq!(rows.len(), 3);
    client
        .simple_query("select email, upper(email) from counted where id = 1")
        .await
        .unwrap();
    client.simple_query("select id from counted").await.unwrap();
    reach(&sidecar, "weir_sidecar_masked_cells_total", 3.0 + 2.0);
    client.simple_query("delete from counted").await.unwrap_err();
    client
        .simple_query("select nothing from counted")
        .await
        .unwrap_err();
    let series = "weir_sidecar_verdicts_total{policy=\"test\",rule=\"no-delete\",verdict=\"Refuse\"}";
    reach(&sidecar, series, 1.0);
    reach(&sidecar, "weir_sidecar_statements_total{verdict=\"Refuse\"}", 2.0);
    // The sleep is the server's time, and is not counted as ours.
    client.simple_query("select pg_sleep(1.5)").await.unwrap();
    reach(&sidecar, "weir_sidecar_added_seconds_count", 6.0);
    let added = value(&sidecar, "weir_sidecar_added_seconds_sum");
    assert!(added > 0.0 && added < 1.4, "{added}");
    // Without a collector all receipts wait, and get older.
    wait_for("receipts on disk", 20, || {
        let age = value(&sidecar, "weir_sidecar_receipts_waiting_age_seconds");
        (age > 0.0 && value(&sidecar, "weir_sidecar_receipts_waiting") >= 7.0).then_some(())
    })
    .unwrap();
    assert!(value(&sidecar, "weir_sidecar_spool_bytes") > 0.0);
    assert_eq!(value(&sidecar, "weir_sidecar_bypass_connections_total"), 0.0);
    drop(client);
    reach(&sidecar, "weir_sidecar_open_sessions", 0.0);
    // Both refusals have their code.
    assert_eq!(
        value(&sidecar, "weir_sidecar_refusals_total{code=\"WEIR-005\"}"),
        1.0
    );
    let (_, page) = get(sidecar.admin, "/metrics").unwrap();
    assert_eq!(page.matches("weir_sidecar_refusals_total{").count(), 2, "{page}");
}
