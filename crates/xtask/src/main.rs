//! Generators of committed files, and what is measured or compared rather than tested.
//!
//! ```text
//! cargo run -p xtask -- builtins HOST:PORT...    what each server major has built in
//! cargo run -p xtask -- bench [SECONDS]          pgbench direct, through pgbouncer, through the sidecar
//! cargo run -p xtask -- regress [SCRIPT...]      PostgreSQL's regression scripts, direct and through the sidecar
//! ```

mod bench;
mod builtins;
mod regress;
mod through_sidecar;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("builtins") => builtins::generate(&arguments.collect::<Vec<_>>()),
        Some("bench") => bench::run(arguments.next().as_deref()),
        Some("regress") => regress::run(&arguments.collect::<Vec<_>>()),
        Some(other) => bail!("unknown command `{other}`"),
        None => bail!("which command? builtins HOST:PORT..., bench [SECONDS], regress [SCRIPT...]"),
    }
}
