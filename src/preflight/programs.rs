use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Finding, Scene};
use crate::config::Config;
use crate::dataplane::{PEER, PROGRAM, pins_of, program_name, program_on, xdp_link_on};
use crate::net::{Link, XdpAttached, XdpOnLink};

const NAME: &str = "program";
/// How long the kernel may take to release the links of a process that was killed.
const RELEASE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(20);

pub(super) fn check(scene: &Scene, config: &Config) -> Vec<Finding> {
    let deadline = Instant::now() + RELEASE;
    let finding = |link: &Link| {
        let occupant = link.xdp.and_then(|xdp| settled(link, xdp, deadline));
        match occupant {
            None => Finding::ok(NAME, &format!("{} has no XDP program", link.name)),
            Some(occupant) => occupant.judge(&config.pin_dir),
        }
    };
    scene.shown().into_iter().map(finding).collect()
}

/// Who is there. One of ours that nothing pins may be that of a process that was killed a moment ago: it has until then to go.
fn settled(link: &Link, xdp: XdpOnLink, deadline: Instant) -> Option<Occupant<'_>> {
    loop {
        let occupant = Occupant {
            interface: &link.name,
            xdp: XdpOnLink { program: program_on(link.index)?, ..xdp },
            name: program_name(xdp.program),
            pins: pins_of(xdp.program),
            link: xdp_link_on(link.index),
        };
        let may_go = occupant.name.as_deref() == Some(PROGRAM) && occupant.pins.is_empty();
        if !may_go || Instant::now() >= deadline {
            return Some(occupant);
        }
        sleep(STEP);
    }
}

/// The program that is on an interface.
struct Occupant<'a> {
    interface: &'a str,
    xdp: XdpOnLink,
    /// `None` where it may not be seen.
    name: Option<String>,
    pins: Vec<PathBuf>,
    link: Option<u32>,
}

impl Occupant<'_> {
    fn judge(&self, pin_dir: &Path) -> Finding {
        let (interface, id) = (self.interface, self.xdp.program);
        let ours = self.name.as_deref() == Some(PROGRAM);
        // Its name is told to few, its pins to whoever may read them.
        let may_be_ours = ours || self.name.is_none();
        if may_be_ours && self.pins.iter().any(|pin| pin.parent() == Some(pin_dir)) {
            // Whether it still runs, the lock says.
            let message = format!("{interface} has the program of the instance with these pins");
            return Finding::ok(NAME, &message);
        }
        if ours {
            let pinned = match self.pins.first().and_then(|pin| pin.parent()) {
                Some(dir) => format!(", pinned in {}", dir.display()),
                None => String::new(),
            };
            let message = format!("{interface} already has another xdp-lb (program id {id}{pinned})");
            let fix = match self.pins.first().and_then(|pin| pin.parent()) {
                Some(dir) => format!(
                    "stop that one; if it is dead: xdp-lb detach {interface} --pin-dir {}",
                    dir.display()
                ),
                None => "stop that one".to_owned(),
            };
            return Finding::error(NAME, &message, &fix);
        }
        let name = self.name.as_deref().unwrap_or("no name to be seen");
        let pinned = match self.pins.first() {
            Some(pin) => format!(", pinned as {}", pin.display()),
            None => String::new(),
        };
        let message = format!("{interface} already has another XDP program ({name}, id {id}{pinned})");
        Finding::error(NAME, &message, &self.removal())
    }

    /// How to get rid of it: by its link if it has one, and that by its pin.
    fn removal(&self) -> String {
        let interface = self.interface;
        if self.name.as_deref() == Some(PEER) {
            return format!("xdp-lb veth-peer {interface} --remove");
        }
        match (self.link, self.pins.is_empty()) {
            (Some(_), false) => {
                let pins: Vec<String> = self.pins.iter().map(|pin| pin.display().to_string()).collect();
                format!("stop what attached it, then rm {}", pins.join(" "))
            }
            (Some(link), true) => format!("stop what attached it, or: bpftool link detach id {link}"),
            (None, _) => {
                let mode = match self.xdp.mode {
                    XdpAttached::Native => "xdpdrv",
                    XdpAttached::Skb => "xdpgeneric",
                    XdpAttached::Offloaded => "xdpoffload",
                };
                format!("ip link set dev {interface} {mode} off")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    fn judged(name: &str, pins: &[&str], link: Option<u32>) -> (Level, String) {
        let occupant = Occupant {
            interface: "eth0",
            xdp: XdpOnLink { program: 42, mode: XdpAttached::Skb },
            name: Some(name.into()),
            pins: pins.iter().map(PathBuf::from).collect(),
            link,
        };
        let finding = occupant.judge(Path::new("/sys/fs/bpf/xdp_lb"));
        (finding.level, finding.to_string())
    }

    #[test]
    fn who_is_there_and_how_to_remove_it() {
        let ours = judged("xdp_lb", &["/sys/fs/bpf/xdp_lb/link_2"], Some(7));
        assert_eq!(ours.0, Level::Ok, "{}", ours.1);
        for (name, pins, link, words) in [
            (
                "xdp_lb",
                &["/sys/fs/bpf/b/link_2"][..],
                Some(7),
                &["another xdp-lb", "xdp-lb detach eth0 --pin-dir /sys/fs/bpf/b"][..],
            ),
            ("xdp_lb", &[], Some(7), &["another xdp-lb", "stop that one"]),
            ("xdp_peer", &[], None, &["xdp_peer", "xdp-lb veth-peer eth0 --remove"]),
            (
                "katran",
                &["/sys/fs/bpf/k"],
                Some(7),
                &["(katran, id 42, pinned as /sys/fs/bpf/k)", "rm /sys/fs/bpf/k"],
            ),
            ("katran", &[], Some(7), &["katran", "bpftool link detach id 7"]),
            ("katran", &[], None, &["katran", "ip link set dev eth0 xdpgeneric off"]),
            ("katran", &["/sys/fs/bpf/k"], None, &["/sys/fs/bpf/k)", "ip link set dev eth0 xdpgeneric off"]),
        ] {
            let (level, text) = judged(name, pins, link);
            assert_eq!(level, Level::Error, "{text}");
            for word in words {
                assert!(text.contains(word), "no {word:?} in {text}");
            }
        }
    }
}
