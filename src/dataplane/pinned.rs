//! Which instances have pins on this host, wherever those are, and whether or not their processes run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::attach::{Attachment, program_on};
use super::inspect::bpffs_mounts;
use super::pin::LINK_PREFIX;

/// A pin that each instance has.
const MARK: &str = "settings";
/// How many levels below the root of a bpffs a pin directory is looked for.
const DEPTH: usize = 2;
/// More directories than this are not searched.
const MAX_DIRECTORIES: usize = 10_000;

/// What an instance has pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its pin directory.
    pub dir: PathBuf,
    /// The interfaces of this network namespace that run its program.
    pub interfaces: Vec<u32>,
    /// Whether its program runs in another network namespace.
    pub elsewhere: bool,
}

/// Every pin directory of this user's in a bpffs that is mounted here, by path.
pub fn pinned() -> Vec<Pinned> {
    let mut found: Vec<Pinned> = directories().into_iter().map(look_at).collect();
    found.sort_by(|one, other| one.dir.cmp(&other.dir));
    found
}

/// The pin directory of the instance whose program is on an interface.
pub fn pin_dir_of(ifindex: u32) -> Option<PathBuf> {
    let program = program_on(ifindex)?;
    let link = format!("{LINK_PREFIX}{ifindex}");
    // Another network namespace may have an interface of this number.
    let is_it = |dir: &PathBuf| matches!(Attachment::open(&dir.join(&link)), Ok(Some((link, on))) if link.ifindex == ifindex && on == program);
    directories().into_iter().find(is_it)
}

fn look_at(dir: PathBuf) -> Pinned {
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
    let links: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(LINK_PREFIX))
        .map(|entry| entry.path())
        .collect();
    let mut pinned = Pinned { dir, interfaces: Vec::new(), elsewhere: false };
    for link in links {
        let Ok(Some((link, program))) = Attachment::open(&link) else { continue };
        match program_on(link.ifindex) == Some(program) {
            true => pinned.interfaces.push(link.ifindex),
            // An interface that is gone has no number any more.
            false => pinned.elsewhere |= link.ifindex != 0,
        }
    }
    pinned.interfaces.sort_unstable();
    pinned
}

fn directories() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut to_search: Vec<(PathBuf, usize)> = bpffs_mounts(&mounts).into_iter().map(|at| (at, 0)).collect();
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some((dir, depth)) = to_search.pop() {
        // A bpffs may be mounted at several places.
        let is_new = fs::symlink_metadata(&dir).is_ok_and(|known| seen.insert((known.dev(), known.ino())));
        if !is_new || seen.len() > MAX_DIRECTORIES {
            continue;
        }
        if depth > 0 && is_pin_dir(&dir) {
            found.push(dir);
            continue;
        }
        if depth == DEPTH {
            continue;
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        to_search.extend(below.map(|entry| (entry.path(), depth + 1)));
    }
    found
}

/// One that somebody else could have made up is not.
fn is_pin_dir(dir: &Path) -> bool {
    let is_own = fs::symlink_metadata(dir).is_ok_and(|dir| dir.uid() == nix::unistd::geteuid().as_raw());
    is_own && dir.join(MARK).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_own_bpffs;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_directories_are_found_two_levels_deep() {
        in_own_bpffs(|bpffs| {
            for dir in ["others", "a/b/c"] {
                fs::create_dir_all(bpffs.join(dir)).expect("a directory");
            }
            // A directory will do as a mark, and needs no map.
            for dir in ["one", "group/two", "a/b/c/three"] {
                fs::create_dir_all(bpffs.join(dir).join(MARK)).expect("a directory");
            }
            let found: Vec<PathBuf> = pinned().into_iter().map(|pinned| pinned.dir).collect();
            let own: Vec<&PathBuf> = found.iter().filter(|dir| dir.starts_with(bpffs)).collect();
            assert_eq!(own, [&bpffs.join("group/two"), &bpffs.join("one")]);
        });
    }
}
