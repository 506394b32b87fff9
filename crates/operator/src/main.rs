//! `weir-operator`.

use std::process::ExitCode;

use operator::checks::Check;

fn main() -> anyhow::Result<ExitCode> {
    if let Some(check) = Check::from_arguments() {
        return check.run();
    }
    anyhow::bail!("the operator is not built yet")
}
