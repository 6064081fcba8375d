use super::{Finding, Scene};
use crate::config::{Config, XdpMode};
use crate::dataplane::driver_of;
use crate::net::Link;

const NAME: &str = "interface";
/// The largest MTU of a veth's far end for a program without fragments in native mode: a page, less headroom (256), Ethernet
/// header (14) and the end of a socket buffer (320).
const VETH_PEER_MTU: u32 = 4096 - 256 - 14 - 320;

/// About the largest MTU with a program in native mode, without multi-buffer: what fits into the driver's buffers.
const DRIVER_MTU: [(&str, u32); 7] = [
    ("bnxt_en", 3500),
    ("ena", 3498),
    ("i40e", 3046),
    ("ice", 3046),
    ("ixgbe", 3050),
    ("mlx5_core", 3498),
    ("virtio_net", 3506),
];

/// Kinds of interfaces that no kernel runs a program on in native mode.
pub(super) const SKB_ONLY: [&str; 7] = ["bridge", "dummy", "ifb", "macvlan", "macvtap", "vlan", "vxlan"];

pub(super) fn check(scene: &Scene, config: &Config) -> Vec<Finding> {
    let missing = scene.shown_missing().map(|name| no_such_interface(scene, name));
    let mut findings: Vec<Finding> = missing.collect();
    for link in scene.shown() {
        let unusable = unusable(link);
        if unusable.is_none() {
            findings.push(carrier(link));
            findings.extend(mode(config, link));
            findings.extend(mtu(scene, config, link));
        }
        findings.extend(unusable);
    }
    findings
}

fn no_such_interface(scene: &Scene, name: &str) -> Finding {
    let names: Vec<&str> =
        scene.links.values().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
    Finding::error(
        NAME,
        &format!("there is no interface {name}; there are: {}", names.join(", ")),
        "name the one that faces the clients",
    )
}

fn unusable(link: &Link) -> Option<Finding> {
    let name = &link.name;
    if link.loopback {
        let message = format!("{name} is the loopback interface");
        return Some(Finding::error(NAME, &message, "name the one that faces the clients"));
    }
    if !link.ethernet {
        let message = format!("{name} is not an Ethernet interface, so it carries no frames to balance");
        return Some(Finding::error(NAME, &message, "use an Ethernet interface"));
    }
    if !link.up {
        let message = format!("interface {name} is down");
        return Some(Finding::error(NAME, &message, &format!("ip link set {name} up")));
    }
    None
}

/// One without a carrier may get it later, so this keeps nobody from starting.
fn carrier(link: &Link) -> Finding {
    let name = &link.name;
    if link.running {
        return Finding::ok(NAME, &format!("{name} is an Ethernet interface, up"));
    }
    let far_end = if link.kind.as_deref() == Some("veth") {
        "its far end is down"
    } else {
        "no cable, or its far end is down"
    };
    Finding::warning(
        NAME,
        &format!("{name} is up, but has no carrier: no packet gets in or out"),
        &format!("{far_end}: set that up (ip link shows it: NO-CARRIER)"),
    )
}

/// Not every kind of interface has a native mode.
fn mode(config: &Config, link: &Link) -> Option<Finding> {
    let kind = link.kind.as_deref().filter(|kind| SKB_ONLY.contains(kind))?;
    let message = format!("{} is of the kind {kind}, which has no native mode", link.name);
    match config.xdp_mode {
        XdpMode::Native => Some(Finding::error(NAME, &message, "--xdp-mode auto")),
        XdpMode::Auto => Some(Finding::ok(NAME, &format!("{message}: it gets SKB mode, which is slower"))),
        XdpMode::Skb => None,
    }
}

/// Above a certain MTU the driver refuses native mode.
fn mtu(scene: &Scene, config: &Config, link: &Link) -> Option<Finding> {
    if config.xdp_mode == XdpMode::Skb || link.xdp.is_some() {
        return None;
    }
    let limit = MtuLimit::of(scene, link).filter(MtuLimit::is_exceeded)?;
    Some(match (config.xdp_mode, limit.is_certain) {
        (XdpMode::Native, true) => Finding::error("mtu", &limit.message, &limit.fix),
        (_, true) => {
            let message = format!("{}: it gets SKB mode, which is slower", limit.message);
            Finding::warning("mtu", &message, &limit.fix)
        }
        (_, false) => Finding::warning("mtu", &format!("{}: it may refuse", limit.message), &limit.fix),
    })
}

/// The MTU that an interface has, and the largest one that native mode takes.
pub(super) struct MtuLimit {
    mtu: u32,
    most: u32,
    /// The driver's version and settings may matter too: it has the last word then.
    is_certain: bool,
    /// Both, for people.
    pub(super) message: String,
    /// The command that makes it small enough.
    pub(super) fix: String,
}

impl MtuLimit {
    /// `None` where it is not known.
    pub(super) fn of(scene: &Scene, link: &Link) -> Option<MtuLimit> {
        let name = &link.name;
        if link.kind.as_deref() == Some("veth") {
            let (far, most) = (scene.far_ends.get(&link.index)?, VETH_PEER_MTU);
            let mtu = far.link()?.mtu;
            let fix = far.command(|interface| format!("ip link set {interface} mtu {most}"));
            let message =
                format!("the far end of {name} has an MTU of {mtu}, native mode takes {most} at most");
            return Some(MtuLimit { mtu, most, is_certain: true, message, fix });
        }
        let driver = driver_of(name).ok().flatten()?;
        let (_, most) = *DRIVER_MTU.iter().find(|(known, _)| *known == driver)?;
        let mtu = link.mtu;
        let message = format!(
            "{name} has an MTU of {mtu}, native mode takes about {most} at most with the driver {driver}"
        );
        Some(MtuLimit {
            mtu,
            most,
            is_certain: false,
            message,
            fix: format!("ip link set {name} mtu {most}"),
        })
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.mtu > self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;
    use crate::preflight::backends::tests::config;

    fn link(ethernet: bool, up: bool) -> Link {
        Link { up, running: up, ethernet, ..Link::ethernet(2, "eth0") }
    }

    #[test]
    fn a_bridge_has_no_native_mode() {
        let level = |xdp_mode, kind: &str| {
            let config = Config { xdp_mode, ..config(&[]) };
            let link = Link { kind: Some(kind.into()), ..link(true, true) };
            mode(&config, &link).map(|finding| finding.level)
        };
        assert_eq!(level(XdpMode::Native, "bridge"), Some(Level::Error));
        assert_eq!(level(XdpMode::Auto, "bridge"), Some(Level::Ok));
        assert_eq!(level(XdpMode::Skb, "bridge"), None);
        assert_eq!(level(XdpMode::Native, "veth"), None);
    }

    #[test]
    fn frames_are_needed() {
        assert!(unusable(&link(true, true)).is_none());
        let message = |link| unusable(&link).map(|finding| finding.message).unwrap_or_default();
        assert!(message(link(false, true)).contains("is not an Ethernet interface"));
        assert_eq!(message(link(true, false)), "interface eth0 is down");
    }
}
