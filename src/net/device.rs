//! Settings of an interface that are files in sysfs and nowhere else.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const SYSFS: &str = "/sys";
const NOTHING: Option<&str> = None;

/// A setting of an interface, such as `gro_flush_timeout`; `None` where there is no such setting or interface.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn device_setting(interface: &str, name: &str) -> Result<Option<String>> {
    in_own_sysfs(|| match fs::read_to_string(path(interface, name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {name} of {interface}")),
    })
}

/// Gives it a value.
///
/// # Errors
/// Without CAP_SYS_ADMIN, and where there is no such setting or interface.
pub fn set_device_setting(interface: &str, name: &str, value: &str) -> Result<()> {
    in_own_sysfs(|| {
        fs::write(path(interface, name), value)
            .with_context(|| format!("could not set {name} of {interface} to {value}"))
    })
}

fn path(interface: &str, name: &str) -> PathBuf {
    Path::new(SYSFS).join("class/net").join(interface).join(name)
}

/// Runs code where /sys is a new mount, and so shows the devices of this thread's network namespace: those that the mount
/// of everybody shows are those of the namespace that it was made in. Nobody else sees the mount, and it goes with the thread.
fn in_own_sysfs<T: Send>(code: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).context("could not get mounts of its own")?;
        let hide = |at| mount(NOTHING, at, NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING);
        // What is mounted over another mount is seen where that is. The root of a chroot may be none.
        hide(SYSFS).or_else(|_| hide("/")).context("could not take its mounts out of others' sight")?;
        match mount(Some("sysfs"), SYSFS, Some("sysfs"), MsFlags::empty(), NOTHING) {
            // The one that is there is that of this namespace already.
            Ok(()) | Err(Errno::EBUSY) => code(),
            Err(error) => Err(error).context("could not mount a sysfs of this network namespace"),
        }
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{PAIR, in_namespace, ip};
    use super::*;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_settings_are_those_of_this_namespace() -> Result<()> {
        in_namespace(|| {
            ip(PAIR)?;
            assert_eq!(device_setting("near", "gro_flush_timeout")?.as_deref(), Some("0"));
            set_device_setting("near", "gro_flush_timeout", "1000")?;
            assert_eq!(device_setting("near", "gro_flush_timeout")?.as_deref(), Some("1000"));
            assert_eq!(device_setting("far", "gro_flush_timeout")?.as_deref(), Some("0"));
            assert_eq!(device_setting("near", "no_such_setting")?, None);
            // The first namespace has no such interface, and this process's /sys is what it was.
            assert!(!Path::new("/sys/class/net/near").exists());
            Ok(())
        })
    }
}
