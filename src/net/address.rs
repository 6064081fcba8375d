//! IPv4 addresses of the interfaces.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc::RTM_NEWADDR;

use super::Netlink;
use super::attributes::{attributes_after, ipv4_value};

// Attribute types of linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// An IPv4 address that this host has on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Index of the interface.
    pub ifindex: u32,
    /// The host's own address; on a point-to-point interface not the peer's.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, 0 to 32 bits.
    pub prefix_len: u8,
}

impl Netlink {
    /// The IPv4 addresses of all interfaces.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetAddress(message), RTM_NEWADDR, parse)
            .context("listing the IPv4 addresses of the network interfaces")
    }

    /// Gives an interface an address. `Ok(true)`: it was added; `Ok(false)`: the interface had it already,
    /// with this prefix length. (The same address with another prefix length is another address to the
    /// kernel: added.)
    ///
    /// The neighbours are not told: see [`announce`](super::announce()).
    ///
    /// # Errors
    /// When there is no such interface (errno `ENODEV`), without CAP_NET_ADMIN (`EPERM`), when `prefix_len`
    /// is above 32, or when the kernel does not answer.
    pub fn add_address(&mut self, ifindex: u32, address: Ipv4Addr, prefix_len: u8) -> Result<bool> {
        let doing = || format!("adding the address {address}/{prefix_len} to network interface {ifindex}");
        let message =
            RouteNetlinkMessage::NewAddress(message(ifindex, address, prefix_len).with_context(doing)?);
        match self.change(message, NLM_F_CREATE | NLM_F_EXCL).with_context(doing)? {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno() == Errno::EEXIST => Ok(false),
            Err(refusal) => Err(refusal.into_error()).with_context(doing),
        }
    }

    /// Takes an address from an interface. `Ok(true)`: it was removed; `Ok(false)`: it was not there, or the
    /// interface itself is gone.
    ///
    /// The kernel removes with a subnet's first address its other ones, unless `promote_secondaries` is on:
    /// this cannot happen with prefixes of 32 bits.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN (errno `EPERM`), when `prefix_len` is above 32, or when the kernel does not
    /// answer.
    pub fn delete_address(&mut self, ifindex: u32, address: Ipv4Addr, prefix_len: u8) -> Result<bool> {
        let doing =
            || format!("removing the address {address}/{prefix_len} from network interface {ifindex}");
        let message =
            RouteNetlinkMessage::DelAddress(message(ifindex, address, prefix_len).with_context(doing)?);
        match self.change(message, 0).with_context(doing)? {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno(), Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(false),
            Err(refusal) => Err(refusal.into_error()).with_context(doing),
        }
    }
}

/// The message that names one address.
fn message(ifindex: u32, address: Ipv4Addr, prefix_len: u8) -> Result<AddressMessage> {
    ensure!(prefix_len <= 32, "an IPv4 prefix has 0 to 32 bits");
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = ifindex;
    // Both: the kernel takes the first one as our own address and the second one as the subnet's (or the
    // peer's).
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
    Ok(message)
}

/// The address in the payload of an `RTM_NEWADDR`.
fn parse(payload: &[u8]) -> Result<Option<Address>> {
    let header = AddressHeader::parse(payload).context("an address's header")?;
    if header.family != AddressFamily::Inet {
        return Ok(None);
    }
    let (mut local, mut peer) = (None, None);
    for attribute in attributes_after(header.buffer_len(), payload) {
        match attribute? {
            (IFA_LOCAL, value) => local = Some(ipv4_value(value).context("an interface's address")?),
            (IFA_ADDRESS, value) => peer = Some(ipv4_value(value).context("an interface's address")?),
            _ => {}
        }
    }
    // They differ on point-to-point interfaces only.
    let address = local.or(peer);
    Ok(address.map(|address| Address { ifindex: header.index, address, prefix_len: header.prefix_len }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::{sleep, spawn};
    use std::time::Duration;

    use super::super::testing::{PAIR, errno, in_namespace, index, ip};
    use super::*;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_addresses_are_added_and_deleted() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            ip("addr add 10.9.0.1 peer 10.9.0.2/32 dev far")?;
            ip("addr add 2001:db8::1/64 dev near")?;
            let (near, far) = (index(&mut netlink, "near")?, index(&mut netlink, "far")?);
            let vip = Ipv4Addr::new(192, 168, 1, 100);
            assert!(netlink.add_address(near, vip, 32)?);
            assert!(!netlink.add_address(near, vip, 32)?, "it is there already");
            let of = |all: Vec<Address>, ifindex| {
                all.into_iter().filter(|address| address.ifindex == ifindex).collect::<Vec<_>>()
            };
            let all = netlink.addresses()?;
            assert_eq!(of(all.clone(), near), [Address { ifindex: near, address: vip, prefix_len: 32 }]);
            let own = Address { ifindex: far, address: Ipv4Addr::new(10, 9, 0, 1), prefix_len: 32 };
            assert_eq!(of(all.clone(), far), [own], "not the peer's address");
            assert_eq!(all.len(), 3, "{all:?}: those two and the loopback interface's");
            assert!(!netlink.delete_address(near, vip, 24)?, "not with this prefix");
            assert!(netlink.delete_address(near, vip, 32)?);
            assert!(!netlink.delete_address(near, vip, 32)?, "it is gone");
            assert_eq!(of(netlink.addresses()?, near), []);

            let error = netlink.add_address(4711, vip, 32).expect_err("no such interface");
            assert_eq!(errno(&error), Some(nix::libc::ENODEV), "{error:#}");
            assert!(!netlink.delete_address(4711, vip, 32)?, "nothing to delete without the interface");
            let error = netlink.add_address(near, vip, 33).expect_err("no such prefix");
            assert!(format!("{error:#}").contains("0 to 32 bits"), "{error:#}");
            Ok(())
        })
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_dumps_of_many_datagrams_are_whole() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            let lo = index(&mut netlink, "lo")?;
            // About 80 bytes each: more than two datagrams of 32 KiB.
            let mut expected: Vec<_> = (0..1000u32).map(|i| Ipv4Addr::from(0x0a01_0000 + i)).collect();
            for address in &expected {
                assert!(netlink.add_address(lo, *address, 32)?);
            }
            expected.push(Ipv4Addr::LOCALHOST);
            let mut found: Vec<_> = netlink.addresses()?.iter().map(|address| address.address).collect();
            found.sort();
            assert_eq!(found, expected);
            Ok(())
        })
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_dumps_survive_a_changing_table() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            let mut writer = Netlink::open()?;
            let lo = index(&mut netlink, "lo")?;
            for i in 0..1000u32 {
                netlink.add_address(lo, Ipv4Addr::from(0x0a01_0000 + i), 32)?;
            }
            let (stop, stopped) = channel::<()>();
            let changing = spawn(move || -> Result<()> {
                while stopped.try_recv().is_err() {
                    writer.add_address(lo, Ipv4Addr::new(10, 2, 0, 1), 32)?;
                    writer.delete_address(lo, Ipv4Addr::new(10, 2, 0, 1), 32)?;
                    sleep(Duration::from_millis(20));
                }
                Ok(())
            });
            for _ in 0..100 {
                let count = netlink.addresses()?.len();
                assert!((1001..=1002).contains(&count), "{count}");
            }
            stop.send(())?;
            changing.join().expect("no panic")
        })
    }
}
