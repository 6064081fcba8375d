//! `--check-only`: would an instance work here? `check`: is a file right?

use std::path::Path;

use anyhow::Result;

use super::Command;
use super::stdout::say;
use crate::config::{self, Config};
use crate::net::Netlink;
use crate::preflight::{self, Finding, Level};

/// Prints everything that was looked at, a line each, and says whether an instance would start.
pub fn check(config: &Config) -> Result<bool> {
    let findings = preflight::check(&mut Netlink::open()?, config)?;
    let line = |finding: &Finding| format!("{:<8} {}: {finding}\n", finding.level.name(), finding.name);
    say(findings.iter().map(line).collect::<String>())?;
    Ok(findings.iter().all(|finding| finding.level < Level::Error))
}

/// Reads a configuration file, and says what is in it.
pub fn check_file(file: &Path) -> Result<()> {
    let config = config::read(file)?;
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    say(format!(
        "{} is right: {}, {}, {}\n",
        file.display(),
        plural(config.interfaces.len(), "interface"),
        plural(config.services.len(), "service"),
        plural(backends, "backend")
    ))
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
