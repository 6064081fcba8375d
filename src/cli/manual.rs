//! `xdp-lb completions` and `xdp-lb man`: what shells and readers need to know of the command line.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::args::Args;
use super::stdout::say;

/// Prints the completions of a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "xdp-lb", &mut text);
    if shell == Shell::Bash {
        text = with_one_name(&text);
    }
    say(text)
}

/// clap_complete 4.6 calls the commands below one whose name has a hyphen otherwise where it looks for them than where it
/// completes them, so that it never would.
fn with_one_name(script: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(script).replace("xdp__subcmd__lb", "xdp__lb").into_bytes()
}

/// Prints the manual page of a verb, or of the whole; with a directory writes all of them there.
pub fn manual(verb: &[String], dir: Option<&Path>) -> Result<()> {
    let mut command = Args::command();
    if let Some(dir) = dir {
        let context = || format!("could not write the manual pages to {}", dir.display());
        fs::create_dir_all(dir).with_context(context)?;
        return clap_mangen::generate_to(command, dir).with_context(context);
    }
    command.build();
    let page = verb.iter().try_fold(&command, |command, word| command.find_subcommand(word));
    let page = page.with_context(|| format!("there is no command {}", verb.join(" ")))?;
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone()).render(&mut text).context("could not write the manual page")?;
    say(text)
}
