//! `husk features`: what this runtime supports, for its callers.

use anyhow::Result;
use husk_sandbox::bundle::features;

use crate::failure::print_out;

pub(crate) fn features() -> Result<u8> {
    print_out(&format!("{}\n", serde_json::to_string_pretty(&features::document())?))?;
    Ok(0)
}
