use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::detach_pinned_link;
use super::load::Profile;
use super::record::RECORD;
use super::tables::TABLE_NAMES;

/// The prefix of the pins that are links; the rest of the name is the interface's index.
pub(super) const LINK_PREFIX: &str = "link_";

/// The prefix of the pins that are programs; the rest of the name is the profile.
pub(super) const PROGRAM_PREFIX: &str = "program_";

pub(super) const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const ONLY_OWNER: u32 = 0o700;

/// The directory in a bpffs that holds everything one instance pins, locked against a second instance. What was pinned goes
/// away with [`PinDir::detach`] and [`PinDir::remove`]; a drop alone leaves it, as a crash would.
pub struct PinDir {
    path: PathBuf,
    /// The lock goes when this is closed.
    lock: Flock<File>,
    /// Where a bpffs had to be mounted first.
    mounted: Option<PathBuf>,
    /// Whether there were pins of an instance that died.
    leftovers: bool,
}

impl PinDir {
    /// Makes the directory (mode 0700) or takes over the one of a dead instance, whose links are detached and whose pins
    /// are removed. Errors name the path, and what to do where there is no bpffs or another instance is running.
    pub fn acquire(path: &Path) -> Result<PinDir> {
        let mounted = ensure_bpffs(path)?;
        let lock = loop {
            match make(path)? {
                Some(lock) => break lock,
                // A finishing instance removed it between our making and locking it.
                None => continue,
            }
        };
        let mut dir = PinDir { path: path.to_owned(), lock, mounted, leftovers: false };
        dir.leftovers = dir.clear()? > 0;
        dir.lock
            .set_permissions(Permissions::from_mode(ONLY_OWNER))
            .with_context(|| format!("could not take {} out of others' reach", path.display()))?;
        Ok(dir)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a bpffs was mounted because there was none.
    pub fn mounted(&self) -> Option<&Path> {
        self.mounted.as_deref()
    }

    /// Whether the pins of a dead instance were removed.
    pub fn had_leftovers(&self) -> bool {
        self.leftovers
    }

    /// Detaches every link and removes every pin but the record of what was changed on this host.
    pub fn detach(&self) -> Result<()> {
        self.clear().map(drop)
    }

    /// Removes the directory with what is left in it, and unmounts the bpffs that was `mounted` for it unless others pinned
    /// something there meanwhile.
    pub fn remove(self, mounted: Option<&Path>) -> Result<()> {
        self.clear()?;
        let record = self.path.join(RECORD);
        match std::fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("could not remove the pin {}", record.display()));
            }
            _ => {}
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("could not remove {}", self.path.display()));
            }
            _ => {}
        }
        mounted.map_or(Ok(()), unmount_unused)
    }

    /// Links first: a pinned map or program that goes away harms nothing, an interface that still runs it might. A link that
    /// cannot be detached does not keep the others.
    fn clear(&self) -> Result<usize> {
        let mut pins = self.pins()?;
        pins.retain(|name| name != RECORD);
        pins.sort_by_key(|name| !name.starts_with(LINK_PREFIX));
        let mut failed = None;
        for name in &pins {
            let pin = self.path.join(name);
            let removed = if name.starts_with(LINK_PREFIX) { detach_pinned_link(&pin) } else { Ok(()) }
                .and_then(|()| {
                    std::fs::remove_file(&pin)
                        .with_context(|| format!("could not remove the pin {}", pin.display()))
                });
            failed = failed.or(removed.err());
        }
        failed.map_or(Ok(pins.len()), Err)
    }

    /// The names in the directory. An error if one of them cannot be ours: then it is somebody else's directory.
    fn pins(&self) -> Result<Vec<String>> {
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
}

/// Whether this program pins under such a name.
pub(super) fn is_ours(name: &str) -> bool {
    let link =
        name.strip_prefix(LINK_PREFIX).is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
    let program = name
        .strip_prefix(PROGRAM_PREFIX)
        .is_some_and(|profile| Profile::ALL.iter().any(|known| known.name() == profile));
    link || program || name == RECORD || TABLE_NAMES.contains(&name)
}

/// Makes and locks the directory. `None` if it was removed meanwhile.
fn make(path: &Path) -> Result<Option<Flock<File>>> {
    match DirBuilder::new().mode(ONLY_OWNER).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error)
                .with_context(|| format!("could not make the pin directory {}", path.display()));
        }
        _ => {}
    }
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(|| format!("could not look at {}", path.display()))?,
    };
    ensure!(found.is_dir(), "{} is not a directory: remove it, or choose another --pin-dir", path.display());
    ensure!(
        found.uid() == nix::unistd::geteuid().as_raw(),
        "{} belongs to user {}: remove it, or choose another --pin-dir",
        path.display(),
        found.uid()
    );
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "another xdp-lb is running with the pin directory {}: stop it, or give this one its own --pin-dir",
            path.display()
        ),
        Err((_, error)) => return Err(error).with_context(|| format!("could not lock {}", path.display())),
    };
    let locked = lock.metadata().with_context(|| format!("could not look at {}", path.display()))?;
    match path.symlink_metadata() {
        Ok(now) if now.ino() == locked.ino() => Ok(Some(lock)),
        _ => Ok(None),
    }
}

/// Unmounts the bpffs that was mounted, unless somebody else pinned something there. Some kernels put two files into each.
fn unmount_unused(mounted: &Path) -> Result<()> {
    const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];
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
    let is_bpffs = |at: &Path| match statfs(at) {
        Ok(found) => Ok(found.filesystem_type() == BPF_FS_MAGIC),
        Err(error) => Err(error)
            .with_context(|| format!("could not look at {}, which is to hold the pins", at.display())),
    };
    if is_bpffs(parent)? {
        return Ok(None);
    }
    if parent != Path::new(DEFAULT_BPFFS) {
        bail!(
            "{} is not in a bpffs, where maps and programs can be pinned: mount one (mount -t bpf bpf {}) or choose a \
             --pin-dir below {DEFAULT_BPFFS}",
            parent.display(),
            parent.display()
        );
    }
    mount(Some("bpf"), parent, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("could not mount a bpffs at {DEFAULT_BPFFS}, where none is"))?;
    Ok(Some(parent.to_owned()))
}
