//! `--check-only`: would an instance work here?

use std::io::Write as _;

use anyhow::Result;

use crate::config::Config;
use crate::net::Netlink;
use crate::preflight::{self, Level};

/// Prints everything that was looked at, a line each, and says whether an instance would start.
pub fn check(config: &Config) -> Result<bool> {
    let findings = preflight::check(&mut Netlink::open()?, config)?;
    let mut out = std::io::stdout();
    for finding in &findings {
        // A reader that has seen enough is no error.
        let _ = writeln!(out, "{:<8} {}: {finding}", finding.level.name(), finding.name);
    }
    Ok(findings.iter().all(|finding| finding.level < Level::Error))
}
