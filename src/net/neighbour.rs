//! IPv4 neighbours: which hardware address an address on the same segment has (ARP, RFC 826).

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_core::{Emitable, NLM_F_CREATE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc::{NUD_DELAY, NUD_NOARP, NUD_PERMANENT, NUD_PROBE, NUD_REACHABLE, NUD_STALE, RTM_NEWNEIGH};

use super::Netlink;
use super::attributes::{attributes_after, ipv4_value, u32_value};

// Attribute types of linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_FLAGS_EXT: u16 = 15;
/// A bit of `NDA_FLAGS_EXT`.
const NTF_EXT_MANAGED: u32 = 1;

/// The states in which the kernel itself sends to the hardware address (`NUD_VALID` of net/neighbour.h).
const NUD_VALID: u16 = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;

/// An entry of the kernel's ARP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Index of the interface it is on.
    pub ifindex: u32,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its hardware address as it is on the wire; `None` while it is not known, or when it is not one of 6
    /// bytes.
    pub mac: Option<[u8; 6]>,
    /// Whether the kernel would send to it without asking first (permanent, noarp, reachable, stale, delay,
    /// probe).
    pub usable: bool,
    /// Whether nothing was heard of it lately. The kernel does not ask again before it sends there itself:
    /// one that only XDP sends to stays stale, and may be wrong, until [`Netlink::probe_neighbour`].
    pub stale: bool,
}

impl Netlink {
    /// The IPv4 neighbours on all interfaces. Among them are those that the kernel needs no ARP for:
    /// multicast, broadcast and loopback addresses that were sent to lately.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetNeighbour(message), RTM_NEWNEIGH, parse)
            .context("listing the IPv4 neighbours")
    }

    /// Makes the kernel itself resolve or refresh a neighbour, as if it had a packet for it (`NTF_USE`): an
    /// unknown or failed one is asked for by ARP at once; a stale one after `delay_first_probe_time` (5
    /// seconds by default) unless it was heard of meanwhile; a reachable one is left alone, and so is one
    /// that somebody else keeps right: permanent, learned externally (`NTF_EXT_LEARNED`) or refreshed by the
    /// kernel already (`NTF_EXT_MANAGED`). Returns without waiting for the outcome, which shows in
    /// [`neighbours`](Netlink::neighbours).
    ///
    /// # Errors
    /// When there is no such interface (errno `ENODEV`), it has no IPv4 (`EINVAL`), without CAP_NET_ADMIN
    /// (`EPERM`), when the kernel's table is full (`ENOBUFS`), or when the kernel does not answer.
    pub fn probe_neighbour(&mut self, ifindex: u32, address: Ipv4Addr) -> Result<()> {
        let doing = || format!("having the neighbour {address} on network interface {ifindex} resolved");
        // To a kernel from 5.16 on, NTF_USE also means: no longer permanent, learned or managed. It would ask
        // by ARP for the hardware address that an administrator wrote there, and forget it if nobody answers.
        if self.is_kept_by_others(ifindex, address).with_context(doing)? {
            return Ok(());
        }
        let mut message = message(ifindex, address);
        message.header.flags = NeighbourFlags::Use;
        message.header.kind = RouteType::Unicast;
        // Without NLM_F_EXCL and NLM_F_REPLACE: an entry that exists keeps its hardware address.
        let answer =
            self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE).with_context(doing)?;
        answer.map_err(|refusal| refusal.into_error().context(doing()))
    }

    /// Whether there is such a neighbour and keeping it right is not a matter of asking by ARP.
    fn is_kept_by_others(&mut self, ifindex: u32, address: Ipv4Addr) -> Result<bool> {
        let message = RouteNetlinkMessage::GetNeighbour(message(ifindex, address));
        match self.get(message, RTM_NEWNEIGH, |payload| kept_by_others(payload).map(Some))? {
            Ok(kept) => Ok(kept),
            Err(refusal) if refusal.errno() == Errno::ENOENT => Ok(false),
            Err(refusal) => Err(refusal.into_error()),
        }
    }
}

/// The message that names one neighbour.
fn message(ifindex: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message
}

/// Whether the neighbour in the payload of an `RTM_NEWNEIGH` is permanent, learned externally or managed.
fn kept_by_others(payload: &[u8]) -> Result<bool> {
    let header = NeighbourHeader::parse(payload).context("a neighbour's header")?;
    let mut kept = u16::from(header.state) & NUD_PERMANENT != 0;
    kept |= header.flags.contains(NeighbourFlags::ExtLearned);
    for attribute in attributes_after(header.buffer_len(), payload) {
        if let (NDA_FLAGS_EXT, value) = attribute? {
            kept |= u32_value(value).context("a neighbour's flags")? & NTF_EXT_MANAGED != 0;
        }
    }
    Ok(kept)
}

/// The neighbour in the payload of an `RTM_NEWNEIGH`.
fn parse(payload: &[u8]) -> Result<Option<Neighbour>> {
    let header = NeighbourHeader::parse(payload).context("a neighbour's header")?;
    // A proxy entry is an address that this host answers for, not a neighbour.
    if header.family != AddressFamily::Inet || header.flags.contains(NeighbourFlags::Proxy) {
        return Ok(None);
    }
    let (mut address, mut mac) = (None, None);
    for attribute in attributes_after(header.buffer_len(), payload) {
        match attribute? {
            (NDA_DST, value) => address = Some(ipv4_value(value).context("a neighbour's address")?),
            (NDA_LLADDR, value) => mac = value.try_into().ok(),
            _ => {}
        }
    }
    let state = u16::from(header.state);
    Ok(address.map(|address| Neighbour {
        ifindex: header.ifindex,
        address,
        mac,
        usable: state & NUD_VALID != 0,
        stale: state & NUD_STALE != 0,
    }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use anyhow::ensure;

    use super::super::testing::{Host, PAIR, PEER_MAC, errno, in_namespace, index, ip};
    use super::*;

    fn neighbour(netlink: &mut Netlink, address: Ipv4Addr) -> Result<Option<Neighbour>> {
        Ok(netlink.neighbours()?.into_iter().find(|neighbour| neighbour.address == address))
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_neighbours() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            ip("addr add 10.0.0.1/24 dev near")?;
            ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 nud permanent dev near")?;
            ip("neigh add 10.0.0.3 lladdr 02:00:00:00:00:03 nud stale dev near")?;
            ip("neigh add proxy 10.0.0.4 dev near")?;
            let near = index(&mut netlink, "near")?;
            let permanent = Neighbour {
                ifindex: near,
                address: Ipv4Addr::new(10, 0, 0, 2),
                mac: Some(PEER_MAC),
                usable: true,
                stale: false,
            };
            let address = Ipv4Addr::new(10, 0, 0, 3);
            let stale = Neighbour { address, mac: Some([2, 0, 0, 0, 0, 3]), stale: true, ..permanent };
            let address = Ipv4Addr::new(10, 0, 0, 99);
            let unresolved = Neighbour { address, mac: None, usable: false, ..permanent };
            netlink.probe_neighbour(near, unresolved.address)?;
            for expected in [permanent, stale, unresolved] {
                assert_eq!(neighbour(&mut netlink, expected.address)?, Some(expected));
            }
            assert_eq!(neighbour(&mut netlink, Ipv4Addr::new(10, 0, 0, 4))?, None, "a proxy entry");

            netlink.probe_neighbour(near, stale.address)?;
            let probed = neighbour(&mut netlink, stale.address)?;
            assert_eq!(probed, Some(Neighbour { stale: false, ..stale }), "now in delay");
            let error = netlink.probe_neighbour(4711, unresolved.address).expect_err("no such interface");
            assert_eq!(errno(&error), Some(nix::libc::ENODEV), "{error:#}");
            Ok(())
        })
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_probe_resolves_a_neighbour() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            let host = Host::start()?;
            ip(PAIR)?;
            ip(&format!("link set far netns {}", host.thread_id))?;
            ip("addr add 10.0.0.1/24 dev near")?;
            host.ip("addr add 10.0.0.2/24 dev far\nlink set far up")?;
            let near = index(&mut netlink, "near")?;
            let address = Ipv4Addr::new(10, 0, 0, 2);
            assert_eq!(neighbour(&mut netlink, address)?, None);
            netlink.probe_neighbour(near, address)?;
            let expected =
                Neighbour { ifindex: near, address, mac: Some(PEER_MAC), usable: true, stale: false };
            let deadline = Instant::now() + Duration::from_secs(10);
            while neighbour(&mut netlink, address)? != Some(expected) {
                ensure!(Instant::now() < deadline, "{:?}", netlink.neighbours()?);
                sleep(Duration::from_millis(10));
            }
            host.stop();
            Ok(())
        })
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_probe_leaves_alone_what_others_keep_right() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            ip("addr add 10.0.0.1/24 dev near")?;
            ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 nud permanent dev near")?;
            ip("neigh add 10.0.0.3 lladdr 02:00:00:00:00:03 nud stale extern_learn dev near")?;
            ip("neigh add 10.0.0.4 managed dev near")?;
            let near = index(&mut netlink, "near")?;
            let shown = || -> Result<String> {
                let output = Command::new("ip").args(["neigh", "show", "dev", "near"]).output()?;
                Ok(String::from_utf8(output.stdout)?)
            };
            for flag in ["PERMANENT", "extern_learn", "managed"] {
                assert!(shown()?.contains(flag), "{flag}: {}", shown()?);
            }
            for last in 2..=4 {
                netlink.probe_neighbour(near, Ipv4Addr::new(10, 0, 0, last))?;
            }
            for flag in ["PERMANENT", "extern_learn", "STALE", "managed"] {
                assert!(shown()?.contains(flag), "{flag}: {}", shown()?);
            }
            Ok(())
        })
    }
}
