//! Network interfaces.

use anyhow::{Context, Result};
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkLayerType, LinkMessage,
};
use nix::errno::Errno;
use nix::libc::RTM_NEWLINK;

use super::Netlink;
use super::attributes::{attributes, attributes_after, i32_value, string_value, u32_value};
use super::socket::Refusal;

// Attribute types of linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_ALT_IFNAME: u16 = 53;
/// Inside `IFLA_LINKINFO`.
const IFLA_INFO_KIND: u16 = 1;
/// Inside `IFLA_XDP`: the ids of the programs by mode.
const XDP_MODES: [(u16, XdpAttached); 3] =
    [(5, XdpAttached::Native), (6, XdpAttached::Skb), (7, XdpAttached::Offloaded)];

/// Longest name of an interface in bytes (`IFNAMSIZ` - 1), and of an alternative one (`ALTIFNAMSIZ` - 1).
const MAX_NAME: usize = 15;
const MAX_ALTERNATIVE_NAME: usize = 127;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it, unique in its network namespace.
    pub index: u32,
    /// Its name, such as `eth0`.
    pub name: String,
    /// Its hardware address as it is on the wire; `None` unless it is an Ethernet interface.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet that it sends, in bytes, link-layer header not included.
    pub mtu: u32,
    /// What kind of virtual interface it is (`veth`, `bridge`, `vlan`, ...); `None` for hardware and
    /// loopback.
    pub kind: Option<String>,
    /// Whether it was set up (`IFF_UP`). It may still have no carrier.
    pub up: bool,
    /// Whether it can send now (`IFF_RUNNING`): it was set up, and has a carrier.
    pub running: bool,
    /// Whether its frames have Ethernet headers (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Whether it is the loopback interface (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// The far end, if it is a veth.
    pub peer: Option<Peer>,
    /// Index of the bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// The XDP program on it. With several modes in use at once, the one that runs first.
    pub xdp: Option<XdpOnLink>,
}

/// The far end of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its index, in its own namespace.
    pub index: u32,
    /// What this namespace calls the other one (`ip netns list-id`); `None` if the far end is in this one too.
    pub netns: Option<i32>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct XdpOnLink {
    /// The kernel's number of the program.
    pub program: u32,
    /// Where it runs.
    pub mode: XdpAttached,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpAttached {
    /// In the driver.
    Native,
    /// After the kernel made a socket buffer.
    Skb,
    /// In the hardware.
    Offloaded,
}

impl Netlink {
    /// All network interfaces.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        // Counters would be most of each answer, and cost the driver work.
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(&RouteNetlinkMessage::GetLink(message), RTM_NEWLINK, parse)
            .context("listing the network interfaces")
    }

    /// The interface of this name, or of this alternative name (`ip link property add ... altname`); its
    /// `name` is the first one. `None` when there is no such interface.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        // The kernel refuses names that are empty or too long as malformed requests and cuts names at a NUL.
        if name.is_empty() || name.len() > MAX_ALTERNATIVE_NAME || name.contains('\0') {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(if name.len() <= MAX_NAME {
            LinkAttribute::IfName(name.to_owned())
        } else {
            let text = [name.as_bytes(), b"\0"].concat();
            LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, text))
        });
        let doing = || format!("looking up the network interface {name}");
        match self.get_link(message).with_context(doing)? {
            Ok(link) => Ok(Some(link)),
            Err(refusal) if refusal.errno() == Errno::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.into_error()).with_context(doing),
        }
    }

    /// The interface with this index in another namespace, given by its id in this one. `None` when there is no such
    /// interface or namespace, and without CAP_NET_ADMIN over that namespace.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn link_in(&mut self, netns: i32, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        // The same number as IFLA_TARGET_NETNSID.
        message.attributes.push(LinkAttribute::IfNetnsId(netns));
        let answer = self
            .get_link(message)
            .with_context(|| format!("looking up the network interface {index} in the namespace {netns}"))?;
        // What is refused is not to be known: by rights (EACCES, EPERM), or because it is gone (EINVAL, ENODEV).
        Ok(answer.ok())
    }

    /// The far end of a veth, if it is to be had.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn link_of_peer(&mut self, peer: Peer) -> Result<Option<Link>> {
        if let Some(netns) = peer.netns {
            return self.link_in(netns, peer.index);
        }
        let mut message = LinkMessage::default();
        message.header.index = peer.index;
        let answer = self
            .get_link(message)
            .with_context(|| format!("looking up the network interface {}", peer.index))?;
        Ok(answer.ok())
    }

    fn get_link(&mut self, mut message: LinkMessage) -> Result<Result<Link, Refusal>> {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.get(RouteNetlinkMessage::GetLink(message), RTM_NEWLINK, parse)
    }
}

/// The interface in the payload of an `RTM_NEWLINK`.
fn parse(payload: &[u8]) -> Result<Option<Link>> {
    let header = LinkHeader::parse(payload).context("a network interface's header")?;
    let ethernet = header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        kind: None,
        up: header.flags.contains(LinkFlags::Up),
        running: header.flags.contains(LinkFlags::Running),
        ethernet,
        loopback: header.flags.contains(LinkFlags::Loopback),
        peer: None,
        master: None,
        xdp: None,
    };
    let (mut lower, mut netns) = (None, None);
    for attribute in attributes_after(header.buffer_len(), payload) {
        match attribute? {
            (IFLA_IFNAME, value) => link.name = string_value(value),
            (IFLA_ADDRESS, value) if ethernet => link.mac = value.try_into().ok(),
            (IFLA_MTU, value) => link.mtu = u32_value(value).context("a network interface's MTU")?,
            (IFLA_LINK, value) => lower = Some(u32_value(value).context("a network interface's peer")?),
            (IFLA_LINK_NETNSID, value) => {
                netns = Some(i32_value(value).context("a network interface's peer")?);
            }
            (IFLA_MASTER, value) => {
                link.master = Some(u32_value(value).context("a network interface's master")?);
            }
            (IFLA_XDP, nested) => link.xdp = xdp(nested)?,
            (IFLA_LINKINFO, nested) => {
                for attribute in attributes(nested) {
                    if let (IFLA_INFO_KIND, value) = attribute? {
                        link.kind = Some(string_value(value));
                    }
                }
            }
            _ => {}
        }
    }
    // Other kinds name what they lie on (a VLAN its parent).
    if link.kind.as_deref() == Some("veth") {
        link.peer = lower.filter(|index| *index != 0).map(|index| Peer { index, netns });
    }
    Ok(Some(link))
}

/// The program in an `IFLA_XDP`.
fn xdp(nested: &[u8]) -> Result<Option<XdpOnLink>> {
    let ids = attributes(nested).collect::<Result<Vec<_>>>()?;
    for (attribute, mode) in XDP_MODES {
        if let Some((_, id)) = ids.iter().find(|(kind, _)| *kind == attribute) {
            let program = u32_value(id).context("the id of a network interface's XDP program")?;
            return Ok(Some(XdpOnLink { program, mode }));
        }
    }
    Ok(None)
}

#[cfg(test)]
impl Link {
    /// A network interface as most are, for tests.
    pub fn ethernet(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            kind: None,
            up: true,
            running: true,
            ethernet: true,
            loopback: false,
            peer: None,
            master: None,
            xdp: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::spawn;

    use nix::sched::{CloneFlags, unshare};

    use super::super::testing::{Host, MAC, PAIR, PEER_MAC, in_namespace, ip};
    use super::*;

    fn link(netlink: &mut Netlink, name: &str) -> Result<Link> {
        netlink.link(name)?.with_context(|| format!("no interface {name}"))
    }

    #[test]
    fn without_privileges_it_reads_everything() -> Result<()> {
        let mut netlink = Netlink::open()?;
        assert!(netlink.links()?.iter().any(|link| link.loopback && link.name == "lo" && !link.ethernet));
        netlink.addresses()?;
        netlink.neighbours()?;
        assert_eq!(netlink.link("no-such-if")?, None);
        Ok(())
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_links() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            ip("link set far down")?;
            ip("link property add dev near altname quite-a-long-alternative-name altname short")?;
            let near = link(&mut netlink, "near")?;
            let expected = Link {
                index: near.index,
                name: "near".into(),
                mac: Some(MAC),
                mtu: 1400,
                kind: Some("veth".into()),
                up: true,
                // Without its far end it has no carrier.
                running: false,
                ethernet: true,
                loopback: false,
                peer: Some(Peer { index: link(&mut netlink, "far")?.index, netns: None }),
                master: None,
                xdp: None,
            };
            assert_eq!(near, expected);
            let far = link(&mut netlink, "far")?;
            assert_eq!(netlink.link_of_peer(near.peer.expect("a peer"))?, Some(far.clone()));
            assert!(!far.up && far.mac == Some(PEER_MAC) && far.index != near.index);
            let lo = link(&mut netlink, "lo")?;
            assert!(lo.loopback && lo.up && !lo.ethernet && lo.mac.is_none() && lo.kind.is_none());
            let mut all = netlink.links()?;
            all.sort_by_key(|link| link.name.clone());
            assert_eq!(all, [far, lo, near.clone()]);
            for name in ["quite-a-long-alternative-name", "short"] {
                assert_eq!(netlink.link(name)?, Some(near.clone()));
            }
            for name in
                ["", "c", "lo\0x", "exactly15bytes!", "sixteen bytes!!!", &"x".repeat(127), &"x".repeat(200)]
            {
                assert_eq!(netlink.link(name)?, None, "{name:?}");
            }
            Ok(())
        })
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_far_ends_in_other_namespaces() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            ip("link add br0 type bridge\nlink set near master br0")?;
            let far = link(&mut netlink, "far")?;
            let host = Host::start()?;
            ip(&format!("link set far netns {}", host.thread_id))?;
            host.ip("link set far name inside mtu 1300 up")?;
            let near = link(&mut netlink, "near")?;
            assert_eq!(near.master, Some(link(&mut netlink, "br0")?.index));
            let peer = near.peer.context("no peer")?;
            assert_eq!(peer.index, far.index);
            let netns = peer.netns.context("the peer is elsewhere")?;
            let inside = netlink.link_of_peer(peer)?.context("root may look at it")?;
            assert_eq!((inside.name.as_str(), inside.mtu, inside.mac), ("inside", 1300, Some(PEER_MAC)));
            assert_eq!(inside.peer.map(|peer| peer.index), Some(near.index));
            assert_eq!(netlink.link_in(netns, 4711)?, None);
            assert_eq!(netlink.link_in(4711, 1)?, None, "no such namespace");
            host.stop();
            Ok(())
        })
    }

    #[test]
    fn the_program_that_runs_first_is_named() -> Result<()> {
        let id =
            |kind: u16, id: u32| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &id.to_ne_bytes()].concat();
        let attached = [&5u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), &[4, 0, 0, 0]].concat();
        let both = [attached.clone(), id(6, 17), id(5, 42)].concat();
        assert_eq!(xdp(&both)?, Some(XdpOnLink { program: 42, mode: XdpAttached::Native }));
        let skb = [attached.clone(), id(4, 17), id(6, 17)].concat();
        assert_eq!(xdp(&skb)?, Some(XdpOnLink { program: 17, mode: XdpAttached::Skb }));
        assert_eq!(xdp(&attached)?, None);
        Ok(())
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_socket_stays_in_its_namespace() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            let there = spawn(move || -> Result<_> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok((netlink.links()?.len(), Netlink::open()?.links()?.len()))
            });
            assert_eq!(there.join().expect("no panic")?, (3, 1));
            Ok(())
        })
    }
}
