//! Where an instance listens whose pins are known.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::default_socket;
use crate::dataplane::PinDirState;

/// The socket of the instance that has its pins there: the one by default, unless its process listens elsewhere.
pub(super) fn socket_of(pin_dir: &Path) -> PathBuf {
    let elsewhere = match PinDirState::of(pin_dir) {
        PinDirState::Running(Some(process)) => of_process(process),
        _ => None,
    };
    elsewhere.unwrap_or_else(|| default_socket(pin_dir))
}

/// The Unix socket that a process listens at (proc_net_unix in the kernel's documentation of /proc).
fn of_process(process: u32) -> Option<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let own: HashSet<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).ok()?;
    listening(&table)
        .find(|(inode, _)| own.contains(&format!("socket:[{inode}]")))
        .map(|(_, path)| path.into())
}

/// Inode and path of those of a table that listen, and have a path.
fn listening(table: &str) -> impl Iterator<Item = (&str, &str)> {
    /// `__SO_ACCEPTCON` of linux/net.h.
    const LISTENS: u32 = 1 << 16;
    // Num RefCount Protocol Flags Type St Inode Path
    table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.splitn(7, ' ').collect();
        let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
        let (inode, path) = words.get(6)?.trim_start().split_once(' ')?;
        (flags & LISTENS != 0 && path.starts_with('/')).then_some((inode, path))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_those_that_listen_at_a_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff8881: 00000002 00000000 00010000 0001 01 20817 /run/own.sock\n\
            ffff8882: 00000003 00000000 00000000 0001 03 20818 /run/connected.sock\n\
            ffff8883: 00000002 00000000 00010000 0001 01 20819 @abstract\n\
            ffff8884: 00000002 00000000 00010000 0001 01 20820\n\
            ffff8885: 00000002 00000000 00010000 0005 01 20821 /run/with space\n";
        let all: Vec<_> = listening(table).collect();
        assert_eq!(all, [("20817", "/run/own.sock"), ("20821", "/run/with space")]);
    }

    #[test]
    fn that_of_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let own = of_process(std::process::id());
        // Other tests of this process listen too.
        assert!(own.is_some());
        let table = fs::read_to_string("/proc/self/net/unix").unwrap();
        assert!(listening(&table).any(|(_, known)| Path::new(known) == path));
    }
}
