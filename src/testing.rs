//! For tests against the real kernel that pin something.

use std::path::Path;
use std::thread::spawn;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a thread with a network namespace and a bpffs of its own, which nobody else sees.
pub(crate) fn in_own_bpffs(test: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces");
        let none = None::<&str>;
        // In a plain chroot there is nothing to make private.
        let _ = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
        let dir = tempfile::tempdir().expect("a directory");
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
        test(dir.path());
        umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmounting");
    };
    if let Err(panic) = spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}
