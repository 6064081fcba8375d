//! Looking at what is there, without changing anything: XDP programs of others, pins, and what the kernel can do.
#![allow(unsafe_code)] // libbpf-rs cannot open a pin without knowing what it is, nor ask for features

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use libbpf_rs::query::{LinkInfo, LinkInfoIter, LinkTypeInfo};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::program_on;
use super::pin::{DEFAULT_BPFFS, is_ours};

/// More directories than this in a bpffs are not searched.
const MAX_DIRECTORIES: usize = 10_000;

/// The id of the link that holds a program on an interface; `None` if it was attached without a link, or without the
/// rights to see it.
pub fn xdp_link_on(ifindex: u32) -> Option<u32> {
    let program = program_on(ifindex)?;
    // The links of all network namespaces are listed, and in each an interface may have this number.
    let here = |link: &LinkInfo| {
        link.prog_id == program && matches!(&link.info, LinkTypeInfo::Xdp(xdp) if xdp.ifindex == ifindex)
    };
    LinkInfoIter::default().find(here).map(|link| link.id)
}

/// Where a program, or a link that holds it, is pinned: in every bpffs that is mounted here.
pub fn pins_of(program: u32) -> Vec<PathBuf> {
    let mut pins = Vec::new();
    walk(|directory, _| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let paths = files.map(|entry| entry.path());
        pins.extend(paths.filter(|path| program_behind(path) == Some(program)));
        true
    });
    pins.sort();
    pins.dedup();
    pins
}

/// Goes through the directories of every bpffs that is mounted here, each before those in it, and into those of which `enter`
/// says so, given how far below the mount it is.
pub(super) fn walk(mut enter: impl FnMut(&Path, usize) -> bool) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut to_search: Vec<(PathBuf, usize)> = bpffs_mounts(&mounts).into_iter().map(|at| (at, 0)).collect();
    // What is at several places is met at the first one that was mounted.
    to_search.reverse();
    for _ in 0..MAX_DIRECTORIES {
        let Some((directory, depth)) = to_search.pop() else { return };
        if enter(&directory, depth) {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            to_search.extend(below.map(|entry| (entry.path(), depth + 1)));
        }
    }
}

/// The mount points of type bpf. Spaces and the like are escaped there.
fn bpffs_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (start, end) = line.split_once(" - ")?;
        let point = start.split(' ').nth(4)?;
        (end.split(' ').next()? == "bpf").then(|| PathBuf::from(point.replace("\\040", " ")))
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The id of the program that a pin is of, by itself or by a link.
pub(super) fn program_behind(pin: &Path) -> Option<u32> {
    let path = CString::new(pin.as_os_str().as_bytes()).ok()?;
    // SAFETY: a C string that outlives the call.
    let object = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if object < 0 {
        return None;
    }
    // SAFETY: a new descriptor that nobody else owns.
    let object = unsafe { OwnedFd::from_raw_fd(object) };
    // The kernel fills the information of whatever it is: its kind must be known before.
    let kind = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd())).ok()?;
    match kind.to_string_lossy().as_ref() {
        "anon_inode:bpf-prog" => program_id(&object),
        "anon_inode:bpf-link" | "anon_inode:bpf_link" => {
            Some(LinkInfo::from_fd(object.as_fd()).ok()?.prog_id)
        }
        _ => None,
    }
}

fn program_id(program: &OwnedFd) -> Option<u32> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of_val(&info) as u32;
    // SAFETY: a live descriptor of a program, and a struct of the size that is told, which outlives the call.
    let result =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut size) };
    (result == 0).then_some(info.id)
}

/// What a pin directory is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinDirState {
    /// Not there, or empty.
    Free,
    /// Of an instance that runs no more.
    Leftovers,
    /// The bpffs that is to hold it is not mounted yet, and can be.
    ToBeMounted,
    /// It would not lie in a bpffs, but in this directory.
    NoBpffs(PathBuf),
    /// The directory that it would lie in is not there; whether it would be in a bpffs.
    NoParent(PathBuf, bool),
    /// It is a symbolic link.
    Symlink,
    /// It is a file.
    NotADirectory,
    /// It belongs to the user with this id.
    Foreign(u32),
    /// It holds something with this name.
    NotOurs(String),
    /// Another instance runs with it; its process, where that is to be seen.
    Running(Option<u32>),
    /// It could not be looked at, for this reason.
    Unknown(String),
}

impl PinDirState {
    /// Looks at a directory. An instance that starts in this very moment may find its lock held.
    pub fn of(path: &Path) -> PinDirState {
        match look_at(path) {
            Ok(state) => state,
            Err(error) => PinDirState::Unknown(error.to_string()),
        }
    }
}

fn look_at(path: &Path) -> Result<PinDirState, std::io::Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let parent_fs = match statfs(parent) {
        Err(Errno::ENOENT) => return Ok(PinDirState::NoParent(parent.to_owned(), is_below_bpffs(parent))),
        found => found?,
    };
    if parent_fs.filesystem_type() != BPF_FS_MAGIC {
        return Ok(match parent == Path::new(DEFAULT_BPFFS) {
            true => PinDirState::ToBeMounted,
            false => PinDirState::NoBpffs(parent.to_owned()),
        });
    }
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(PinDirState::Free),
        found => found?,
    };
    if found.is_symlink() {
        return Ok(PinDirState::Symlink);
    }
    if !found.is_dir() {
        return Ok(PinDirState::NotADirectory);
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(PinDirState::Foreign(found.uid()));
    }
    // Shared, so that two that only look do not disturb each other.
    if let Err((_, Errno::EWOULDBLOCK)) = Flock::lock(File::open(path)?, FlockArg::LockSharedNonblock) {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        return Ok(PinDirState::Running(holder(&locks, found.dev(), found.ino())));
    }
    let mut state = PinDirState::Free;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !is_ours(&name) {
            return Ok(PinDirState::NotOurs(name));
        }
        state = PinDirState::Leftovers;
    }
    Ok(state)
}

/// Whether the nearest directory above a path that is there is in a bpffs.
fn is_below_bpffs(path: &Path) -> bool {
    let found = path.ancestors().skip(1).find_map(|above| statfs(above).ok());
    found.is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The process that holds the lock of a file, from /proc/locks: `1: FLOCK ADVISORY WRITE 4711 00:1d:9 0 EOF`.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let line = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    line.filter(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file.as_str()))
        .find_map(|words| words.get(4)?.parse().ok())
}

/// What the programs need of the kernel beyond its release: the name of each, and whether it is there. Needs the rights to
/// load a program. `Err` where the kernel does not say.
pub fn kernel_features() -> Result<Vec<(&'static str, bool)>, std::io::Error> {
    const HELPERS: [(&str, libbpf_sys::bpf_func_id); 5] = [
        ("bpf_loop", libbpf_sys::BPF_FUNC_loop),
        ("bpf_xdp_load_bytes", libbpf_sys::BPF_FUNC_xdp_load_bytes),
        ("bpf_fib_lookup", libbpf_sys::BPF_FUNC_fib_lookup),
        ("bpf_redirect", libbpf_sys::BPF_FUNC_redirect),
        ("bpf_jiffies64", libbpf_sys::BPF_FUNC_jiffies64),
    ];
    let answer = |result: i32| match result {
        0 | 1 => Ok(result == 1),
        error => Err(std::io::Error::from_raw_os_error(-error)),
    };
    let xdp = libbpf_sys::BPF_PROG_TYPE_XDP;
    // SAFETY: no options are passed.
    let programs = answer(unsafe { libbpf_sys::libbpf_probe_bpf_prog_type(xdp, std::ptr::null()) })?;
    let mut features = vec![("XDP programs", programs)];
    for (name, helper) in HELPERS.into_iter().filter(|_| programs) {
        // SAFETY: the same.
        let there = answer(unsafe { libbpf_sys::libbpf_probe_bpf_helper(xdp, helper, std::ptr::null()) })?;
        features.push((name, there));
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};

    use super::super::attach::pin;
    use super::super::skeleton::peer::XdpPeerSkelBuilder;
    use super::*;
    use crate::testing::in_own_bpffs;

    #[test]
    fn mounts_of_bpffs_are_found() {
        let mountinfo = "31 23 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
                         32 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                         33 23 0:29 / /run/my\\040pins rw - bpf none rw\n";
        assert_eq!(bpffs_mounts(mountinfo), [Path::new("/sys/fs/bpf"), Path::new("/run/my pins")]);
    }

    #[test]
    fn the_process_behind_a_lock_is_found() {
        let locks =
            "1: POSIX  ADVISORY  WRITE 17 00:1d:9 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 00:1d:9 0 EOF\n";
        assert_eq!(holder(locks, nix::sys::stat::makedev(0, 0x1d), 9), Some(4711));
        assert_eq!(holder(locks, nix::sys::stat::makedev(0, 0x1d), 10), None);
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_pins_are_found() {
        in_own_bpffs(|bpffs| {
            let mut object = MaybeUninit::uninit();
            let skeleton = XdpPeerSkelBuilder::default().open(&mut object).expect("a program");
            let loaded = skeleton.load().expect("a program that loads");
            let ids = [&loaded.progs.xdp_peer, &loaded.progs.lb_clock].map(|program| {
                program_id(&program.as_fd().try_clone_to_owned().expect("a descriptor")).expect("an id")
            });
            let pins = [bpffs.join("below/peer"), bpffs.join("clock")];
            fs::create_dir(bpffs.join("below")).expect("a directory");
            pin(loaded.progs.xdp_peer.as_fd(), &pins[0]).expect("a pin");
            pin(loaded.progs.lb_clock.as_fd(), &pins[1]).expect("a pin");
            assert_eq!(pins_of(ids[0]), [pins[0].clone()]);
            assert_eq!(pins_of(ids[1]), [pins[1].clone()]);
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_this_kernel_has_what_it_takes() {
        let features = kernel_features().expect("a kernel that tells");
        assert!(features.len() == 6 && features.iter().all(|(_, there)| *there), "{features:?}");
    }
}
