use std::fs;
use std::path::Path;

use super::Finding;
use super::privileges::Rights;
use crate::config::Config;
use crate::dataplane::{PinDirState, bpffs_command, usual_place};

const NAME: &str = "pins";

pub(super) fn check(config: &Config, rights: &Rights) -> Vec<Finding> {
    let has_bpffs = fs::read_to_string("/proc/filesystems").is_ok_and(|kinds| kinds.contains("\tbpf\n"));
    vec![judge(&config.pin_dir, PinDirState::of(&config.pin_dir), has_bpffs && rights.can_mount())]
}

fn judge(dir: &Path, state: PinDirState, can_mount: bool) -> Finding {
    let shown = dir.display();
    let in_dir = dir.parent().unwrap_or(dir);
    let parent = in_dir.display();
    let error = |message: String, fix: &str| Finding::error(NAME, &message, fix);
    let removed = |command: &str| format!("{command} {shown}, or choose another --pin-dir");
    match state {
        PinDirState::Free => Finding::ok(NAME, &format!("{shown} is free")),
        PinDirState::Leftovers => {
            Finding::ok(NAME, &format!("{shown} was left by an instance before: it is taken over"))
        }
        PinDirState::ToBeMounted if can_mount => {
            Finding::ok(NAME, &format!("{parent} has no bpffs: one is mounted there while it runs"))
        }
        PinDirState::ToBeMounted => error(
            format!("{parent} is not in a bpffs, and one cannot be mounted without CAP_SYS_ADMIN"),
            &format!("sudo {}", bpffs_command(in_dir)),
        ),
        PinDirState::NoBpffs(parent) => error(
            format!("{} is not in a bpffs, where maps and programs can be pinned", parent.display()),
            &elsewhere(dir),
        ),
        PinDirState::NoParent(parent, in_bpffs) => error(
            format!("there is no directory {}, in which the pins are to be", parent.display()),
            &if in_bpffs { format!("mkdir -p {}", parent.display()) } else { elsewhere(dir) },
        ),
        PinDirState::Symlink => error(format!("{shown} is a symbolic link, not a directory"), &removed("rm")),
        PinDirState::NotADirectory => error(format!("{shown} is not a directory"), &removed("rm")),
        PinDirState::Foreign(user) => error(
            format!("{shown} belongs to user {user}, who could change what is in it"),
            &removed("rm -r"),
        ),
        PinDirState::NotOurs(name) => error(
            format!("{shown} holds {name}, which is not ours"),
            "choose a --pin-dir that nothing else uses",
        ),
        PinDirState::Running(process) => {
            let process = process.map_or(String::new(), |process| format!(" (process {process})"));
            let message = format!("another xdp-lb is running with the pin directory {shown}{process}");
            Finding::error("instance", &message, "stop it, or give this one its own --pin-dir")
        }
        PinDirState::Unknown(why) => error(
            format!("could not look at {shown}, which is to hold the pins: {why}"),
            "run it as root (sudo xdp-lb ...), or choose a --pin-dir below /sys/fs/bpf",
        ),
    }
}

/// Where pins could be: a bpffs over a directory of other use would hide what is in it.
pub(super) fn elsewhere(dir: &Path) -> String {
    format!("choose a --pin-dir in a bpffs, such as {}", usual_place(dir).display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn a_bpffs_that_cannot_be_mounted_is_an_error() {
        let dir = Path::new("/sys/fs/bpf/xdp_lb");
        assert_eq!(judge(dir, PinDirState::ToBeMounted, true).level, Level::Ok);
        let error = judge(dir, PinDirState::ToBeMounted, false);
        assert_eq!(error.level, Level::Error);
        assert_eq!(error.fix.as_deref(), Some("sudo mount -t bpf -o mode=0700 bpf /sys/fs/bpf"));
    }

    #[test]
    fn nothing_is_mounted_over_what_is_there() {
        let judged = |dir: &str, state| judge(Path::new(dir), state, true).fix;
        let fix = judged("/etc/pins", PinDirState::NoBpffs("/etc".into()));
        assert_eq!(fix.as_deref(), Some("choose a --pin-dir in a bpffs, such as /sys/fs/bpf/pins"));
        assert_eq!(judged("/nowhere/pins", PinDirState::NoParent("/nowhere".into(), false)), fix);
        let below = judged("/sys/fs/bpf/a/pins", PinDirState::NoParent("/sys/fs/bpf/a".into(), true));
        assert_eq!(below.as_deref(), Some("mkdir -p /sys/fs/bpf/a"));
    }
}
