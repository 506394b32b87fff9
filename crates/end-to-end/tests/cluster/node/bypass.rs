//! A pod that goes around its alias: nothing stops the packets (that is what network policies are for), but it is seen.

use super::Test;
use super::weir::{self, masked};
use anyhow::Result;
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[(
    "going_around_the_alias_is_reported",
    going_around_the_alias_is_reported,
)];

fn going_around_the_alias_is_reported(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("around")?;
    shop.apply_workload("report")?;
    shop.wait_answer("deployment/report", "new", 0, 60, masked)?;
    shop.wait_condition("orders", "Enforced", "True Enforced")?;

    // With the address of the Service in place of its name, and the database's own login.
    let address = shop.run(&["get", "service", "orders-db", "-o", "jsonpath={.spec.clusterIP}"])?;
    let host = format!("PGHOST={address}");
    let around = [
        "env",
        &host,
        "PGUSER=report",
        "PGPASSWORD=report-secret",
        "python3",
        "-u",
        "/app/client.py",
        "loop",
    ];
    shop.apply_client(
        "around",
        r#"{weir.dev/inject: "true"}"#,
        "{weir-demo: shop}",
        &around,
    )?;
    shop.wait_answer("pod/around", "open", 0, 60, |answer| {
        answer["rows"][0][2] == "customer1@example.com"
    })?;

    shop.wait_condition("orders", "Enforced", "False Bypassed")?;
    let message = [
        "get",
        "dap",
        "orders",
        "-o",
        r#"jsonpath={.status.conditions[?(@.type=="Enforced")].message}"#,
    ];
    shop.wait(&message, 30, |out| out.contains("around"))?;
    shop.wait(
        &["get", "events", "-o", "jsonpath={.items[*].reason}"],
        60,
        |out| out.contains("Bypassed"),
    )?;
    Ok(())
}
