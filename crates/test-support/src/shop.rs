//! The small shop of `tests/shop`.

use crate::binaries::workspace_root;
use crate::postgres::Database;
use anyhow::Result;

/// Makes the shop's tables in an empty database and fills them.
pub fn load(database: &Database<'_>) -> Result<()> {
    let folder = workspace_root().join("tests/shop");
    for file in ["schema.sql", "shop.sql"] {
        database.psql_file(&folder.join(file))?;
    }
    Ok(())
}
