//! Generators of committed files.
//!
//! ```text
//! cargo run -p xtask -- builtins HOST:PORT...    what each server major has built in
//! ```

mod builtins;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("builtins") => builtins::generate(&arguments.collect::<Vec<_>>()),
        Some(other) => bail!("unknown command `{other}`"),
        None => bail!("which command? builtins HOST:PORT..."),
    }
}
