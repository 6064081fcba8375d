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
use super::attributes::{attributes, attributes_after, string_value, u32_value};

// Attribute types of linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_ALT_IFNAME: u16 = 53;
/// Inside `IFLA_LINKINFO`.
const IFLA_INFO_KIND: u16 = 1;

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
    /// Whether its frames have Ethernet headers (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Whether it is the loopback interface (`IFF_LOOPBACK`).
    pub loopback: bool,
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
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answer = self
            .get(RouteNetlinkMessage::GetLink(message), RTM_NEWLINK, parse)
            .with_context(|| format!("looking up the network interface {name}"))?;
        match answer {
            Ok(link) => Ok(Some(link)),
            Err(refusal) if refusal.errno() == Errno::ENODEV => Ok(None),
            Err(refusal) => {
                Err(refusal.into_error()).with_context(|| format!("looking up the network interface {name}"))
            }
        }
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
        ethernet,
        loopback: header.flags.contains(LinkFlags::Loopback),
    };
    for attribute in attributes_after(header.buffer_len(), payload) {
        match attribute? {
            (IFLA_IFNAME, value) => link.name = string_value(value),
            (IFLA_ADDRESS, value) if ethernet => link.mac = value.try_into().ok(),
            (IFLA_MTU, value) => link.mtu = u32_value(value).context("a network interface's MTU")?,
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
    Ok(Some(link))
}

#[cfg(test)]
mod tests {
    use std::thread::spawn;

    use nix::sched::{CloneFlags, unshare};

    use super::super::testing::{MAC, PAIR, PEER_MAC, in_namespace, ip};
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
                ethernet: true,
                loopback: false,
            };
            assert_eq!(near, expected);
            let far = link(&mut netlink, "far")?;
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
