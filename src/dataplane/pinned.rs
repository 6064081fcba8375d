//! Which instances have pins on this host, wherever those are, and whether or not their processes run.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::attach::{Attachment, program_on};
use super::directory::ipv4_of;
use super::inspect::walk;
use super::pin::LINK_PREFIX;
use super::tables::Tables;
use super::types::{lb_service, lb_service_flags};
use crate::model::{OnEmpty, Protocol};

/// A pin that each instance has.
const MARK: &str = "settings";
/// How many levels below the root of a bpffs a pin directory is looked for.
const DEPTH: usize = 2;

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

impl Pinned {
    /// What is in a directory.
    pub fn of(dir: &Path) -> Pinned {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let links: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(LINK_PREFIX))
            .map(|entry| entry.path())
            .collect();
        let mut pinned = Pinned { dir: dir.to_owned(), interfaces: Vec::new(), elsewhere: false };
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

    /// Whether it is at work, and no interface here has to do with it.
    pub fn is_only_elsewhere(&self) -> bool {
        self.interfaces.is_empty() && self.elsewhere
    }
}

/// Every pin directory of this user's in a bpffs that is mounted here, by path.
pub fn pinned() -> Vec<Pinned> {
    let mut found: Vec<Pinned> = directories().iter().map(|dir| Pinned::of(dir)).collect();
    found.sort_by(|one, other| one.dir.cmp(&other.dir));
    found
}

/// The pin directory of the instance whose program is on an interface.
pub fn pin_dir_of(ifindex: u32) -> Option<PathBuf> {
    search(
        || program_on(ifindex),
        |program| {
            let link = format!("{LINK_PREFIX}{ifindex}");
            // Another network namespace may have an interface of this number.
            let is_it = |dir: &PathBuf| matches!(Attachment::open(&dir.join(&link)), Ok(Some((link, on))) if link.ifindex == ifindex && on == program);
            directories().into_iter().find(is_it)
        },
    )
}

/// What is found for a program that another may take the place of in the meantime, as at a reload: then once more.
fn search<T>(now: impl Fn() -> Option<u32>, find: impl Fn(u32) -> Option<T>) -> Option<T> {
    let program = now()?;
    find(program).or_else(|| find(now().filter(|now| *now != program)?))
}

/// What becomes of new connections to each service while it has no backend for them.
pub fn on_empty(tables: &Tables) -> HashMap<(SocketAddrV4, Protocol), OnEmpty> {
    let rows = (1..tables.services.len()).filter_map(|index| tables.services.get(index));
    let fate = |row: lb_service| {
        let vip = SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port));
        let passes = u32::from(row.flags) & lb_service_flags::LB_SERVICE_PASS_EMPTY.0 != 0;
        Some(((vip, Protocol::from_number(row.proto)?), if passes { OnEmpty::Pass } else { OnEmpty::Drop }))
    };
    rows.filter_map(fate).collect()
}

fn directories() -> Vec<PathBuf> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    walk(|dir, depth| {
        // A bpffs may be mounted at several places.
        let is_new = fs::symlink_metadata(dir).is_ok_and(|known| seen.insert((known.dev(), known.ino())));
        if is_new && depth > 0 && is_pin_dir(dir) {
            found.push(dir.to_owned());
            return false;
        }
        is_new && depth < DEPTH
    });
    found
}

/// One that somebody else could have made up is not.
fn is_pin_dir(dir: &Path) -> bool {
    let is_own = fs::symlink_metadata(dir).is_ok_and(|dir| dir.uid() == nix::unistd::geteuid().as_raw());
    is_own && dir.join(MARK).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

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

    #[test]
    fn a_program_that_was_replaced_meanwhile_is_looked_for_again() {
        let of = |seen: &[u32], known: u32| {
            let mut seen = seen.to_vec();
            seen.reverse();
            let seen = RefCell::new(seen);
            search(|| seen.borrow_mut().pop(), |program| (program == known).then_some(program))
        };
        assert_eq!(of(&[7], 7), Some(7));
        assert_eq!(of(&[7, 8], 8), Some(8), "a reload");
        assert_eq!(of(&[7, 7], 8), None, "it is of no instance");
        assert_eq!(of(&[7], 8), None, "it is gone");
    }
}
