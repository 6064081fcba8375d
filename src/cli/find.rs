//! Which instance a verb is for where none was named: the usual one, or the only one that runs or left its pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::listening::{socket_for, socket_of};
use super::source::has_pins;
use super::{Command, Instance, Named};
use crate::config;
use crate::control::{Client, ClientError};
use crate::dataplane::pinned;

/// How long the process may take to tell where its pins are.
const PATIENCE: Duration = Duration::from_secs(4);

/// The command with the instance that it is for.
///
/// # Errors
/// Several instances run, or left their pins, and none of them is the usual one.
pub fn find(mut command: Command) -> Result<Command> {
    let looks = !matches!(command, Command::Change { .. });
    let (instance, by_pins) = match &mut command {
        Command::Show(_, instance) | Command::Change { instance, .. } => (instance, false),
        Command::Top(_, instance) => {
            if instance.named == Named::Socket {
                // It may outlive the process that it asks now, which alone knows where the pins are.
                if let Ok(pin_dir) = pins_of(&instance.socket) {
                    (instance.pin_dir, instance.named) = (pin_dir, Named::Pins);
                }
            }
            (instance, false)
        }
        Command::Explain { instance, .. }
        | Command::Trace(_, instance)
        | Command::Capture { instance, .. } => (instance, true),
        _ => return Ok(command),
    };
    match instance.named {
        Named::No if !runs(instance) => only(instance, looks)?,
        Named::No => mention_others(instance),
        Named::Pins => instance.socket = socket_for(instance),
        Named::Socket if by_pins => {
            instance.pin_dir = pins_of(&instance.socket)?;
            instance.named = Named::Pins;
        }
        _ => {}
    }
    Ok(command)
}

/// Who named none may not know that there are several.
fn mention_others(instance: &Instance) {
    if let others @ [_, ..] = &others(&instance.socket)[..] {
        let names: Vec<String> = others.iter().map(|path| path.display().to_string()).collect();
        crate::log::notice(&format!(
            "this is of the instance at {}; others run too: --socket {}",
            instance.socket.display(),
            names.join(" or --socket ")
        ));
    }
}

/// Whatever else is wrong with it is for the command to say.
fn runs(instance: &Instance) -> bool {
    !matches!(Client::knock(&instance.socket), Err(ClientError::NoInstance(_)))
}

/// Makes it the only one that runs, if there is one. Only who looks may have to do with its pins.
fn only(instance: &mut Instance, looks: bool) -> Result<()> {
    match &others(&instance.socket)[..] {
        [] => only_left(instance)?,
        [socket] => {
            if looks {
                instance.pin_dir = pins_of(socket)?;
            } else {
                crate::log::notice(&format!("this is for the instance at {}", socket.display()));
            }
            instance.socket.clone_from(socket);
        }
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            bail!("several instances run: choose one by --socket {}", names.join(" or --socket "))
        }
    }
    Ok(())
}

/// Makes it the only one whose pins are here, if none runs and the usual one left none.
fn only_left(instance: &mut Instance) -> Result<()> {
    let found: Vec<PathBuf> = pinned().into_iter().map(|pinned| pinned.dir).collect();
    match &found[..] {
        several if several.contains(&instance.pin_dir) => instance.socket = socket_of(&instance.pin_dir),
        [] => {}
        [dir] => {
            instance.socket = socket_of(dir);
            instance.pin_dir.clone_from(dir);
        }
        several => {
            let names: Vec<String> = several.iter().map(|dir| dir.display().to_string()).collect();
            bail!(
                "no instance listens at {}, but there are pins: choose by --pin-dir {}",
                instance.socket.display(),
                names.join(" or --pin-dir ")
            )
        }
    }
    Ok(())
}

/// Where the instance that listens at a socket has its pins. Of one that does not answer: where they are by default.
fn pins_of(socket: &Path) -> Result<PathBuf> {
    let asking =
        || format!("could not ask the instance at {} for its pins (--pin-dir names them)", socket.display());
    let text = match Client::reader(socket, PATIENCE).and_then(|client| client.config()) {
        Err(error @ ClientError::Silent(..)) => return usual_pins(socket).ok_or(error).with_context(asking),
        answer => answer.with_context(asking)?,
    };
    Ok(config::parse(&text, Path::new("the running configuration")).with_context(asking)?.pin_dir)
}

/// The pins of an instance whose socket is where it is by default, if they are there.
pub(super) fn usual_pins(socket: &Path) -> Option<PathBuf> {
    let pin_dir = Path::new(config::DEFAULT_PIN_DIR).with_file_name(socket.file_stem()?);
    (config::default_socket(&pin_dir) == socket && has_pins(&pin_dir)).then_some(pin_dir)
}

/// The sockets beside a usual one that somebody listens at.
pub(super) fn others(usual: &Path) -> Vec<PathBuf> {
    let entries = usual.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let is_other = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "sock") && path != usual;
    let mut live: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_other)
        .filter(|path| Client::knock(path).is_ok())
        .collect();
    live.sort();
    live
}
