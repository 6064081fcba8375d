//! The socket itself: it takes the place of one that nobody listens at, and goes with the one who made it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
};

/// What `sun_path` has room for, without the NUL at its end.
const LONGEST: usize = 107;

/// A socket's path, which is removed at the end if it still is ours.
pub(super) struct Place {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

/// Listens at a path where nobody else does. Only its owner may connect, from the first moment on.
pub(super) fn listen_at(path: &Path) -> Result<(UnixListener, Place)> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(dir)?;
    let _lock = lock(dir)?;
    ensure_free(path)?;
    // Of a name that was bound, but not renamed, whoever made it is dead, or this would not be its pid.
    let temporary = dir.join(format!(".{}.sock", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let listener = bound(&temporary, path);
    let made = listener.and_then(|listener| {
        fs::rename(&temporary, path)
            .with_context(|| format!("could not make the socket {}", path.display()))?;
        let metadata = fs::symlink_metadata(path)
            .with_context(|| format!("could not look at the socket {}", path.display()))?;
        Ok((listener, Place { path: path.to_owned(), id: (metadata.dev(), metadata.ino()) }))
    });
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made
}

fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mode = 0o755;
    DirBuilder::new()
        .mode(mode)
        .recursive(true)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode)))
        .with_context(|| format!("could not make the directory {} for the socket", dir.display()))
}

/// Of two that start at the same time one finds the other's socket. `None`: somebody else holds the directory, which whoever may
/// open it can do for ever; that must keep nobody from starting.
fn lock(dir: &Path) -> Result<Option<Flock<File>>> {
    const TRIES: usize = 50;
    let context = || format!("could not lock the directory {} to make the socket in it", dir.display());
    for _ in 0..TRIES {
        let file = File::open(dir).with_context(context)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => sleep(Duration::from_millis(20)),
            Err((_, errno)) => return Err(errno).with_context(context),
        }
    }
    Ok(None)
}

/// Nothing is there, or a socket that nobody listens at.
fn ensure_free(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("could not look at {shown}")),
    };
    ensure!(
        metadata.file_type().is_socket(),
        "{shown} is there and is no socket: remove it, or name another path with --socket"
    );
    match UnixStream::connect(path) {
        Ok(stream) => bail!(
            "another instance listens at {shown}{}: stop it, or name another path with --socket or another --pin-dir",
            process_of(&stream)
        ),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("could not find out whether anybody listens at {shown}"))
        }
    }
}

/// Who listens at the other end, as far as it is known.
fn process_of(stream: &UnixStream) -> String {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else { return String::new() };
    let name = fs::read_to_string(format!("/proc/{}/comm", peer.pid())).unwrap_or_default();
    format!(" (process {} {})", peer.pid(), name.trim()).replace(" )", ")")
}

/// A socket bound to a name that nobody knows, with the mode that it is to have before anybody can connect: until `listen`
/// nobody can.
fn bound(temporary: &Path, path: &Path) -> Result<UnixListener> {
    let context = || format!("could not make the socket {}", path.display());
    for path in [temporary, path] {
        ensure!(path.as_os_str().len() <= LONGEST, "the path of the socket is too long: {}", path.display());
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).with_context(context)?;
    let address = UnixAddr::new(temporary).with_context(context)?;
    bind(socket.as_raw_fd(), &address).with_context(context)?;
    fs::set_permissions(temporary, Permissions::from_mode(0o600)).with_context(context)?;
    listen(&socket, Backlog::new(64).with_context(context)?).with_context(context)?;
    Ok(UnixListener::from(socket))
}

impl Drop for Place {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}
