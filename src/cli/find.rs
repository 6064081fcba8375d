//! Which instance a verb is for where none was named: the usual one, or the only one that runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Command, Instance, Named};
use crate::config;
use crate::control::{Client, ClientError};

/// The command with the instance that it is for.
///
/// # Errors
/// Several instances run, and none of them is the usual one.
pub fn find(mut command: Command) -> Result<Command> {
    let (instance, by_pins) = match &mut command {
        Command::Show(_, instance) | Command::Top(_, instance) | Command::Change { instance, .. } => {
            (instance, false)
        }
        Command::Explain { instance, .. }
        | Command::Trace(_, instance)
        | Command::Capture { instance, .. } => (instance, true),
        _ => return Ok(command),
    };
    match instance.named {
        Named::No if !runs(instance) => only(instance)?,
        Named::Socket if by_pins => instance.pin_dir = pins_of(&instance.socket)?,
        _ => {}
    }
    Ok(command)
}

/// Whatever else is wrong with it is for the command to say.
fn runs(instance: &Instance) -> bool {
    !matches!(Client::connect(&instance.socket), Err(ClientError::NoInstance(_)))
}

/// Makes it the only one that runs, if there is one.
fn only(instance: &mut Instance) -> Result<()> {
    match &others(&instance.socket)[..] {
        [] => {}
        [socket] => {
            instance.pin_dir = pins_of(socket)?;
            instance.socket.clone_from(socket);
        }
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            bail!("several instances run: choose one by --socket {}", names.join(" or --socket "))
        }
    }
    Ok(())
}

/// Where the instance that listens at a socket has its pins.
fn pins_of(socket: &Path) -> Result<PathBuf> {
    let asking = || format!("could not ask the instance at {} for its pins", socket.display());
    let text = Client::connect(socket).and_then(|client| client.config()).with_context(asking)?;
    Ok(config::parse(&text, Path::new("the running configuration")).with_context(asking)?.pin_dir)
}

/// The sockets beside a usual one that somebody listens at.
pub(super) fn others(usual: &Path) -> Vec<PathBuf> {
    let entries = usual.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let is_other = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "sock") && path != usual;
    let mut live: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_other)
        .filter(|path| Client::connect(path).is_ok())
        .collect();
    live.sort();
    live
}
