//! The instance itself: its process, its pins, its programs, its addresses.

use std::fs;
use std::path::Path;

use super::{Leftover, Patient, State, command};
use crate::config::default_socket;
use crate::dataplane::PinDirState;
use crate::preflight::privileges::Rights;
use crate::preflight::{Finding, Remedy, Scene, pins};

const NAME: &str = "instance";

pub(super) fn check(patient: &Patient, rights: &Rights) -> Vec<Finding> {
    let dir = &patient.config.pin_dir;
    let pins = PinDirState::of(dir);
    let mut findings = bpffs(patient, &pins, rights);
    let interface = patient.config.interfaces.first().map(String::as_str);
    // What is pinned there may be at work elsewhere: then that is said.
    let is_left = patient.left.iter().any(|left| left.dir == *dir);
    findings.extend((!is_left).then(|| judge(dir, &patient.state, &pins, interface)));
    findings.extend(patient.left.iter().map(left));
    // Of these `judge` has spoken.
    findings.push(match &pins {
        PinDirState::Running(_) => Finding::ok("pins", &format!("{} is that of an instance", dir.display())),
        PinDirState::Foreign(0) if !nix::unistd::geteuid().is_root() => Finding::error(
            "pins",
            &format!("{} may be looked at by root only", dir.display()),
            &format!("sudo {}", patient.command("doctor")),
        ),
        _ if matches!(patient.state, State::Runs) => {
            let message = format!("{} is no more what the process made it", dir.display());
            Finding::warning(
                "pins",
                &message,
                "leave it to the process: it makes its pins anew within seconds",
            )
        }
        _ => pins::check(&patient.config, rights).remove(0),
    });
    findings
}

/// The command that removes what an instance left. Where no interface is left any will do.
fn detach(interface: Option<&str>, dir: &Path) -> String {
    command(&format!("detach {}", interface.unwrap_or("lo")), dir, &default_socket(dir))
}

/// What another instance left than the one that is looked at.
fn left(left: &Leftover) -> Finding {
    let shown = left.dir.display();
    let interfaces = match &left.interfaces[..] {
        [] if left.elsewhere => "in another network namespace".to_owned(),
        [] => "on no interface any more".to_owned(),
        names => format!("on {}", names.join(", ")),
    };
    let message = format!("no process runs for what is pinned in {shown}, {interfaces}");
    let removal = detach(left.interfaces.first().map(String::as_str), &left.dir);
    let fix = match left.interfaces.is_empty() && left.elsewhere {
        true => {
            // `ip netns exec` would hide the pins.
            let there = command("doctor", &left.dir, &default_socket(&left.dir));
            format!("look at it there: nsenter --net=/run/netns/NAME {there}")
        }
        false => format!("start it again: it is taken over; or remove it: {removal}"),
    };
    Finding::warning(NAME, &message, &fix)
}

fn judge(dir: &Path, state: &State, pins: &PinDirState, interface: Option<&str>) -> Finding {
    let shown = dir.display();
    let process = match pins {
        PinDirState::Running(Some(process)) => format!(" (process {process})"),
        _ => String::new(),
    };
    match state {
        State::Runs => Finding::ok(NAME, &format!("it runs with the pins in {shown}{process}")),
        State::Silent(message, fix) => Finding::error(NAME, message, fix),
        State::Dead => Finding::warning(
            NAME,
            &format!(
                "no process runs for what is pinned in {shown}: it goes on, but nobody checks backends or follows the network"
            ),
            &format!("start it again: it is taken over; or remove it: {}", detach(interface, dir)),
        ),
        State::None => match pins {
            PinDirState::Running(_) => Finding::ok(
                NAME,
                &format!("the one with the pins in {shown}{process} has nothing to do with this interface"),
            ),
            PinDirState::Leftovers => {
                Finding::ok(NAME, &format!("what one left in {shown} has nothing to do with this interface"))
            }
            _ => Finding::ok(NAME, &format!("no instance runs with the pins in {shown}")),
        },
    }
}

/// Whether there is a place for pins. A start would mount one; one that the system mounts outlives what starts.
fn bpffs(patient: &Patient, pins: &PinDirState, rights: &Rights) -> Vec<Finding> {
    const NAME: &str = "bpffs";
    let dir = &patient.config.pin_dir;
    let parent = dir.parent().unwrap_or(dir);
    let shown = parent.display();
    let is_known = fs::read_to_string("/proc/filesystems").is_ok_and(|kinds| kinds.contains("\tbpf\n"));
    let none = format!("there is no bpffs at {shown}");
    vec![match pins {
        PinDirState::ToBeMounted | PinDirState::NoBpffs(_) if !is_known => Finding::error(
            NAME,
            &format!("{none}, and the kernel has none"),
            "run a kernel with CONFIG_BPF_SYSCALL=y",
        ),
        PinDirState::ToBeMounted if rights.can_mount() => {
            Finding::mendable(NAME, &none, Remedy::MountBpffs(parent.to_owned()))
        }
        PinDirState::ToBeMounted => {
            Finding::error(NAME, &none, &Remedy::MountBpffs(parent.to_owned()).to_string())
        }
        PinDirState::NoBpffs(_) => Finding::error(NAME, &none, &pins::elsewhere(dir)),
        PinDirState::NoParent(..) if !is_known => Finding::error(
            NAME,
            &format!("there is no directory {shown}, and the kernel has no bpffs"),
            "run a kernel with CONFIG_BPF_SYSCALL=y",
        ),
        PinDirState::NoParent(_, true) => {
            Finding::ok(NAME, &format!("{shown} would be in a bpffs, if it were there"))
        }
        PinDirState::NoParent(..) => Finding::error(
            NAME,
            &format!("there is no directory {shown}, nor a bpffs above it"),
            &pins::elsewhere(dir),
        ),
        PinDirState::Unknown(why) => Finding::error(
            NAME,
            &format!("could not look at {}: {why}", dir.display()),
            &format!("sudo {}", patient.command("doctor")),
        ),
        _ => Finding::ok(NAME, &format!("{shown} is a bpffs")),
    }]
}

/// What is on the interfaces, given what a start would say of it: to an instance that is there, no program is a fault.
pub(super) fn programs(scene: &Scene, patient: &Patient, found: Vec<Finding>) -> Vec<Finding> {
    if !patient.is_there() {
        return found;
    }
    let judge = |(link, finding): (&crate::net::Link, Finding)| match link.xdp {
        Some(_) => finding,
        None => Finding::warning(
            "program",
            &format!("the program is not on {}: what arrives there is not balanced", link.name),
            match patient.state {
                State::Runs => "wait a second: it is put there again; the log says what keeps it from that",
                _ => "start the instance again",
            },
        ),
    };
    scene.shown().into_iter().zip(found).map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_PIN_DIR;
    use crate::preflight::Level;

    #[test]
    fn an_instance_is_judged_by_its_process_and_pins() {
        let dir = Path::new("/sys/fs/bpf/xdp_lb");
        let level = |state: State, pins: PinDirState| judge(dir, &state, &pins, None).level;
        assert_eq!(level(State::Runs, PinDirState::Running(Some(7))), Level::Ok);
        assert_eq!(level(State::Dead, PinDirState::Leftovers), Level::Warning);
        assert_eq!(level(State::None, PinDirState::Free), Level::Ok);
        assert_eq!(level(State::None, PinDirState::Running(None)), Level::Ok);
        let silent = State::Silent("it does not answer".into(), "restart it".into());
        assert_eq!(level(silent, PinDirState::Running(None)), Level::Error);
        let runs = judge(dir, &State::Runs, &PinDirState::Running(Some(7)), None);
        assert!(runs.message.contains("(process 7)"), "{}", runs.message);
    }

    #[test]
    fn what_was_left_is_removed_by_a_command_that_works() {
        let fix = |dir: &str, interface| {
            judge(Path::new(dir), &State::Dead, &PinDirState::Leftovers, interface).fix.unwrap_or_default()
        };
        assert!(fix(DEFAULT_PIN_DIR, Some("eth0")).ends_with(": xdp-lb detach eth0"));
        assert!(fix("/sys/fs/bpf/b", Some("eth0")).ends_with(": xdp-lb detach eth0 --pin-dir /sys/fs/bpf/b"));
        let of = |interfaces: &[&str], elsewhere| {
            let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
            left(&Leftover { dir: "/sys/fs/bpf/b".into(), interfaces, elsewhere })
        };
        let two = of(&["eth0", "eth1"], false);
        assert_eq!(two.message, "no process runs for what is pinned in /sys/fs/bpf/b, on eth0, eth1");
        assert!(two.fix.unwrap_or_default().ends_with(": xdp-lb detach eth0 --pin-dir /sys/fs/bpf/b"));
        assert!(
            of(&[], false).fix.unwrap_or_default().ends_with(": xdp-lb detach lo --pin-dir /sys/fs/bpf/b")
        );
        assert!(!of(&[], true).fix.unwrap_or_default().contains("detach"), "it is another's");
    }
}
