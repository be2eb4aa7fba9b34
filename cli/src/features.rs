//! `husk features`: what this runtime supports, for its callers.

use anyhow::Result;
use husk_sandbox::bundle::features;

use crate::answer;

pub(crate) fn features() -> Result<u8> {
    answer::json(&features::document())?;
    Ok(0)
}
