//! Where an instance listens whose pins are known.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::{Instance, Named};
use crate::config::default_socket;
use crate::control::Client;
use crate::dataplane::PinDirState;

/// The socket of the instance that has its pins there: the one by default, unless its process listens elsewhere.
pub(super) fn socket_of(pin_dir: &Path) -> PathBuf {
    let usual = default_socket(pin_dir);
    let elsewhere = match PinDirState::of(pin_dir) {
        PinDirState::Running(Some(process)) if Client::knock(&usual).is_err() => of_process(process),
        _ => None,
    };
    elsewhere.unwrap_or(usual)
}

/// The same of an instance that was named: its socket, if that was named too.
pub(super) fn socket_for(instance: &Instance) -> PathBuf {
    let is_usual = instance.socket == default_socket(&instance.pin_dir);
    match instance.named {
        Named::Pins if is_usual => socket_of(&instance.pin_dir),
        _ => instance.socket.clone(),
    }
}

/// The Unix socket that a process listens at. The kernel knows it by the name that it was bound to; it got its own in the same
/// directory afterwards. So only sockets that the kernel does not know by their names are asked whose they are.
fn of_process(process: u32) -> Option<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let own: HashSet<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).ok()?;
    let all: Vec<(&str, &Path)> = listening(&table).collect();
    let (_, bound) = all.iter().find(|(inode, _)| own.contains(&format!("socket:[{inode}]")))?;
    let entries = fs::read_dir(bound.parent()?).ok()?.flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let mut unknown =
        sockets.map(|entry| entry.path()).filter(|path| all.iter().all(|(_, known)| known != path));
    unknown.find(|path| matches!(Client::knock(path), Ok(Some(listener)) if listener == process))
}

/// Inode and path of those of a table that listen, and have a path: Num RefCount Protocol Flags Type St Inode Path (proc(5)).
fn listening(table: &str) -> impl Iterator<Item = (&str, &Path)> {
    /// `__SO_ACCEPTCON` of linux/net.h.
    const LISTENS: u32 = 1 << 16;
    table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.splitn(7, ' ').collect();
        let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
        let (inode, path) = words.get(6)?.trim_start().split_once(' ')?;
        (flags & LISTENS != 0 && path.starts_with('/')).then_some((inode, Path::new(path)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_listen_at_a_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff8881: 00000002 00000000 00010000 0001 01 20817 /run/own.sock\n\
            ffff8882: 00000003 00000000 00000000 0001 03 20818 /run/connected.sock\n\
            ffff8883: 00000002 00000000 00010000 0001 01 20819 @abstract\n\
            ffff8884: 00000002 00000000 00010000 0001 01 20820\n\
            ffff8885: 00000002 00000000 00010000 0005 01    21 /run/with space\n";
        let all: Vec<_> = listening(table).collect();
        assert_eq!(all, [("20817", Path::new("/run/own.sock")), ("21", Path::new("/run/with space"))]);
    }
}
