//! `xdp-lb detach`: removes everything of an instance that died.

use std::cell::Cell;
use std::path::Path;

use anyhow::Result;

use super::stdout::say;
use crate::daemon;

/// Removes it, and prints what was removed. What cannot be printed is removed all the same.
pub fn detach(interface: &str, pin_dir: &Path) -> Result<()> {
    let failed = Cell::new(None);
    daemon::detach(interface, pin_dir, &|text| {
        if let Err(error) = say(text) {
            failed.set(Some(error));
        }
    })?;
    failed.take().map_or(Ok(()), Err)
}
