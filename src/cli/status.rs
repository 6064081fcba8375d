//! `xdp-lb status`: what an instance does, read from what it pinned.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::dataplane::{Clock, Sweeper, Tables};
use crate::metrics::{Snapshot, render};

/// Prints the figures of the instance whose pins are in `pin_dir`, whether its process still runs or not.
pub fn status(pin_dir: &Path, json: bool) -> Result<()> {
    let tables = Tables::open(pin_dir).with_context(|| {
        format!(
            "no instance has its pins in {}: is one running? (--pin-dir names another place)",
            pin_dir.display()
        )
    })?;
    let settings = tables.settings()?;
    let now = Clock::load()?.now(settings.clock_shift)?;
    let census = Sweeper::new(tables.walked(), settings, now).count();
    let snapshot = Snapshot::take(&tables, &census)?;
    let text = match json {
        true => {
            serde_json::to_string_pretty(&snapshot).context("could not write the figures as JSON")? + "\n"
        }
        false => render(&snapshot, None),
    };
    // A reader that has seen enough is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
