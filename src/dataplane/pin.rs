use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::Attachment;
use super::load::Profile;
use super::record::RECORD;
use super::tables::TABLE_NAMES;

/// The prefix of the pins that are links; the rest of the name is the interface's index.
pub(super) const LINK_PREFIX: &str = "link_";

/// The prefix of the pins that are programs; the rest of the name is the profile.
pub(super) const PROGRAM_PREFIX: &str = "program_";

pub(super) const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const ONLY_OWNER: u32 = 0o700;

/// The prefix of a pin that is about to take the place of another, by a rename.
const NEW_PREFIX: &str = "new_";

/// Another instance runs with the same pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The directory.
    pub path: PathBuf,
    /// The other's process, if it can be seen from here.
    pub process: Option<u32>,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "another xdp-lb is running with the pin directory {}{}: stop it, or give this one its own --pin-dir",
            self.path.display(),
            self.process.map_or(String::new(), |process| format!(" (process {process})"))
        )
    }
}

impl std::error::Error for Busy {}

/// The directory in a bpffs that holds everything one instance pins, locked against a second instance. What was pinned goes
/// away with [`PinDir::detach`] and [`PinDir::remove`]; a drop alone leaves it, as a crash would.
pub struct PinDir {
    path: PathBuf,
    /// The lock goes when this is closed.
    lock: Flock<File>,
    /// Where a bpffs had to be mounted first.
    mounted: Option<PathBuf>,
}

impl PinDir {
    /// Makes the directory (mode 0700), or takes hold of the one of a dead instance with all that is in it. Errors name the
    /// path, and what to do where there is no bpffs or another instance is running.
    pub fn acquire(path: &Path) -> Result<PinDir> {
        let mounted = ensure_bpffs(path)?;
        let lock = loop {
            match DirBuilder::new().mode(ONLY_OWNER).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error)
                        .with_context(|| format!("could not make the pin directory {}", path.display()));
                }
                _ => {}
            }
            match lock(path)? {
                Some(lock) => break lock,
                // A finishing instance removed it between our making and locking it.
                None => continue,
            }
        };
        let dir = PinDir { path: path.to_owned(), lock, mounted };
        dir.pins()?;
        dir.lock
            .set_permissions(Permissions::from_mode(ONLY_OWNER))
            .with_context(|| format!("could not take {} out of others' reach", path.display()))?;
        Ok(dir)
    }

    /// Takes hold of the directory of a dead instance; `None` if there is no such directory.
    pub fn open(path: &Path) -> Result<Option<PinDir>> {
        let Some(lock) = lock(path)? else { return Ok(None) };
        let dir = PinDir { path: path.to_owned(), lock, mounted: None };
        dir.pins()?;
        Ok(Some(dir))
    }

    /// The interfaces that a pinned link still runs a program on.
    pub fn interfaces(&self) -> Result<Vec<u32>> {
        let mut interfaces = Vec::new();
        for name in self.pins()?.iter().filter(|name| name.starts_with(LINK_PREFIX)) {
            let link = Attachment::open(&self.path.join(name))?;
            interfaces.extend(link.map(|(link, _)| link.ifindex));
        }
        Ok(interfaces)
    }

    /// Whether a pinned link had an interface that is gone.
    pub fn has_lost_interfaces(&self) -> Result<bool> {
        let links = self.pins()?.iter().filter(|name| name.starts_with(LINK_PREFIX)).count();
        Ok(links > self.interfaces()?.len())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a bpffs was mounted because there was none.
    pub fn mounted(&self) -> Option<&Path> {
        self.mounted.as_deref()
    }

    /// Whether the directory is still where it was: somebody may have removed it, or unmounted the bpffs.
    pub fn is_intact(&self) -> bool {
        match (self.path.symlink_metadata(), self.lock.metadata()) {
            (Ok(there), Ok(locked)) => same(&there, &locked),
            _ => false,
        }
    }

    /// Detaches every pinned link and removes every pin but the record of what was changed on this host.
    /// Returns how many pins there were. One that is at this path now, but is not the one that is held, is another's.
    pub fn detach(&self) -> Result<usize> {
        if self.is_intact() { self.clear(|_| true) } else { Ok(0) }
    }

    /// Removes the directory with what is left in it, and unmounts the bpffs that was `mounted` for it unless others pinned
    /// something there meanwhile.
    pub fn remove(self, mounted: Option<&Path>) -> Result<()> {
        if self.is_intact() {
            self.clear(|_| true)?;
            remove_file(&self.path.join(RECORD))?;
            match std::fs::remove_dir(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("could not remove {}", self.path.display()));
                }
                _ => {}
            }
        }
        mounted.map_or(Ok(()), unmount_unused)
    }

    /// Links first: a pinned map or program that goes away harms nothing, an interface that still runs it might. A link that
    /// cannot be detached does not keep the others.
    pub(super) fn clear(&self, is: impl Fn(&str) -> bool) -> Result<usize> {
        let mut pins = self.pins()?;
        pins.retain(|name| name != RECORD && is(name));
        pins.sort_by_key(|name| !name.starts_with(LINK_PREFIX));
        let mut failed = None;
        for name in &pins {
            let pin = self.path.join(name);
            let detached = if name.starts_with(LINK_PREFIX) { detach_pinned_link(&pin) } else { Ok(()) };
            failed = failed.or(detached.and_then(|()| remove_file(&pin)).err());
        }
        failed.map_or(Ok(pins.len()), Err)
    }

    /// The names in the directory. An error if one of them cannot be ours: then it is somebody else's directory.
    pub(super) fn pins(&self) -> Result<Vec<String>> {
        let listing = || format!("could not list {}", self.path.display());
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(listing)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(listing)?.file_name().to_string_lossy().into_owned();
            ensure!(
                is_ours(&name),
                "{} holds {name}, which is not ours: choose a --pin-dir that nothing else uses",
                self.path.display()
            );
            names.push(name);
        }
        Ok(names)
    }

    /// Pins something under a name, in one step where there is such a pin already: whoever looks finds one of the two.
    pub(super) fn replace(&self, name: &str, pin: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let new = self.path.join(format!("{NEW_PREFIX}{name}"));
        remove_file(&new)?;
        pin(&new)?;
        std::fs::rename(&new, self.path.join(name))
            .with_context(|| format!("could not rename the pin {} to {name}", new.display()))
    }

    /// Removes a pin, if it is there.
    pub(super) fn unpin(&self, name: &str) -> Result<()> {
        remove_file(&self.path.join(name))
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove the pin {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Detaches the link pinned at a path at once; the removal of the pin alone would leave that to a worker of the kernel.
fn detach_pinned_link(path: &Path) -> Result<()> {
    let Some((link, _)) = Attachment::open(path)? else { return Ok(()) };
    link.detach().with_context(|| format!("could not detach the link {}", path.display()))
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Whether this program pins under such a name.
pub(super) fn is_ours(name: &str) -> bool {
    let name = name.strip_prefix(NEW_PREFIX).unwrap_or(name);
    let link =
        name.strip_prefix(LINK_PREFIX).is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
    let program = name
        .strip_prefix(PROGRAM_PREFIX)
        .is_some_and(|profile| Profile::ALL.iter().any(|known| known.name() == profile));
    link || program || name == RECORD || TABLE_NAMES.contains(&name)
}

/// Locks the directory. `None` if there is none, or it was removed meanwhile.
fn lock(path: &Path) -> Result<Option<Flock<File>>> {
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(|| format!("could not look at {}", path.display()))?,
    };
    ensure!(
        found.is_dir(),
        "{} is {}, not a directory: remove it (rm {}), or choose another --pin-dir",
        path.display(),
        if found.is_symlink() { "a symbolic link" } else { "something else" },
        path.display()
    );
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("could not open {}", path.display()))?,
    };
    let opened = file.metadata().with_context(|| format!("could not look at {}", path.display()))?;
    ensure!(
        opened.uid() == nix::unistd::geteuid().as_raw(),
        "{} belongs to user {}, who could change what is in it: remove it (rm -r {}), or choose another --pin-dir",
        path.display(),
        opened.uid(),
        path.display()
    );
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => {
            return Err(Busy { path: path.to_owned(), process: holder(&opened) }.into());
        }
        Err((_, error)) => return Err(error).with_context(|| format!("could not lock {}", path.display())),
    };
    // Still the same?
    match path.symlink_metadata() {
        Ok(now) if same(&now, &opened) => Ok(Some(lock)),
        _ => Ok(None),
    }
}

/// The process that has a directory locked, if it can be seen from here.
fn holder(dir: &Metadata) -> Option<u32> {
    let (major, minor) = (nix::sys::stat::major(dir.dev()), nix::sys::stat::minor(dir.dev()));
    let name = format!("{major:02x}:{minor:02x}:{}", dir.ino());
    // 1: FLOCK  ADVISORY  WRITE 4711 00:1f:123 0 EOF
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&name.as_str()))?;
    line.get(4)?.parse().ok().filter(|pid| *pid != 0)
}

/// Unmounts the bpffs that was mounted, unless somebody else pinned something there. Some kernels put two files into each.
fn unmount_unused(mounted: &Path) -> Result<()> {
    const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];
    if !is_bpffs(mounted)? {
        return Ok(());
    }
    let unused = std::fs::read_dir(mounted).is_ok_and(|mut entries| {
        entries
            .all(|entry| entry.is_ok_and(|entry| KERNELS.iter().any(|kernels| entry.file_name() == *kernels)))
    });
    if unused {
        umount2(mounted, MntFlags::MNT_DETACH)
            .with_context(|| format!("could not unmount the bpffs at {}", mounted.display()))?;
    }
    Ok(())
}

/// Sees that the directory would lie in a bpffs, mounting one at its usual place if there is none. Returns where.
fn ensure_bpffs(path: &Path) -> Result<Option<PathBuf>> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if is_bpffs(parent)? {
        return Ok(None);
    }
    if parent != Path::new(DEFAULT_BPFFS) {
        bail!(
            "{} is not in a bpffs, where maps and programs can be pinned: choose a --pin-dir in one, such as {}",
            parent.display(),
            usual_place(path).display()
        );
    }
    mount_bpffs(parent)?;
    Ok(Some(parent.to_owned()))
}

/// Without it whoever likes may make files there: the kernel's default is 01777.
const BPFFS_OPTIONS: &str = "mode=0700";

/// Mounts a bpffs that only its owner may use.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_bpffs(at: &Path) -> Result<()> {
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), Some(BPFFS_OPTIONS))
        .with_context(|| format!("could not mount a bpffs at {}, where none is", at.display()))
}

/// A pin directory of the same name where a start mounts a bpffs itself, if there is none.
pub fn usual_place(pin_dir: &Path) -> PathBuf {
    Path::new(DEFAULT_BPFFS).join(pin_dir.file_name().unwrap_or_else(|| "xdp_lb".as_ref()))
}

/// The command that does the same as [`mount_bpffs`].
pub fn bpffs_command(at: &Path) -> String {
    format!("mount -t bpf -o {BPFFS_OPTIONS} bpf {}", at.display())
}

fn is_bpffs(at: &Path) -> Result<bool> {
    let found = statfs(at)
        .with_context(|| format!("could not look at {}, which is to hold the pins", at.display()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}
