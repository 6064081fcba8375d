//! `--check-only`: would an instance work here? `check`: is a file right?

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;

use super::Command;
use crate::config::{self, Config};
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

/// Reads a configuration file, and says what is in it.
pub fn check_file(file: &Path) -> Result<()> {
    let config = config::read(file)?;
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let _ = writeln!(
        std::io::stdout(),
        "{} is right: {}, {}, {}",
        file.display(),
        plural(config.interfaces.len(), "interface"),
        plural(config.services.len(), "service"),
        plural(backends, "backend")
    );
    Ok(())
}

/// Reads the file that a command names: [`Command::RunFile`] becomes [`Command::Run`] or [`Command::Check`].
pub fn load(command: Command) -> Result<Command> {
    let Command::RunFile { file, check_only } = command else { return Ok(command) };
    let config = Box::new(config::read(&file)?);
    Ok(match check_only {
        true => Command::Check(config),
        false => Command::Run { config, file: Some(file) },
    })
}
