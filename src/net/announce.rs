//! Gratuitous ARP: tells a segment that an IPv4 address is now at this interface.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc::ARPHRD_ETHER;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// Frames per announcement: RFC 5227 (section 2.3) wants two, because nobody acknowledges them and one may
/// get lost.
const FRAMES: usize = 2;

/// Announces that `address` is at `mac`, to everybody on the segment of `interface`, so that hosts and
/// switches that knew another place for it (the load balancer that had it before) correct their tables at
/// once.
///
/// Sends an ARP announcement of RFC 5227: a broadcast ARP request (RFC 826) whose sender and target protocol
/// address are both `address`. Two of them, one right after the other: the RFC wants two seconds between
/// them, but those would pass with the caller blocked; one that can wait may call again. `mac` has its bytes
/// as on the wire.
///
/// Works in the calling thread's network namespace.
///
/// # Errors
/// When there is no such interface or it is not Ethernet, when it is down (errno `ENETDOWN`), or without
/// CAP_NET_RAW (`EPERM`).
pub fn announce(interface: &str, mac: [u8; 6], address: Ipv4Addr) -> Result<()> {
    let doing = || format!("announcing {address} on {interface} by gratuitous ARP");
    let destination = link_address(interface).with_context(doing)?;
    // Protocol 0, that is `None`: the socket receives nothing, it only sends.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| explain(errno, interface))
        .context("opening a packet socket")
        .with_context(doing)?;
    let frame = frame(mac, address);
    for _ in 0..FRAMES {
        sendto(socket.as_raw_fd(), &frame, &destination, MsgFlags::empty())
            .map_err(|errno| explain(errno, interface))
            .with_context(doing)?;
    }
    Ok(())
}

/// The packet-socket address of an interface. Sending from a raw packet socket, the kernel uses only the
/// index in it.
fn link_address(interface: &str) -> Result<LinkAddr> {
    let address = getifaddrs()
        .context("listing the network interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("there is no network interface {interface}; `ip link` lists them"))?;
    ensure!(
        address.hatype() == ARPHRD_ETHER,
        "{interface} is not an Ethernet interface: ARP means nothing there"
    );
    Ok(address)
}

/// As an error that holds the [`io::Error`], with what the user can do about it.
fn explain(errno: Errno, interface: &str) -> anyhow::Error {
    let error = anyhow::Error::new(io::Error::from(errno));
    match errno {
        Errno::EPERM | Errno::EACCES => error.context("not permitted: run as root or with CAP_NET_RAW"),
        Errno::ENETDOWN => error.context(format!("the interface is down: ip link set {interface} up")),
        _ => error,
    }
}

/// The whole Ethernet frame, without padding: the driver adds it.
fn frame(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let ethernet = Ethernet2Header { destination: [0xff; 6], source: mac, ether_type: EtherType::ARP };
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: address.octets(),
        // What a request asks for: not known, by RFC 5227 all zero.
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    [&ethernet.to_bytes()[..], &arp.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use nix::sys::socket::{SockProtocol, bind, recv, setsockopt, sockopt::ReceiveTimeout};
    use nix::sys::time::{TimeVal, TimeValLike};

    use super::super::testing::{MAC, PAIR, in_namespace, ip};
    use super::*;

    #[test]
    fn the_frame_is_that_of_rfc_5227() {
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08,
            0x06, // Ethernet: broadcast, ARP
            0, 1, 0x08, 0, 6, 4, 0, 1, // Ethernet, IPv4, their lengths, request
            2, 0, 0, 0, 0, 1, 192, 168, 1, 100, // sender
            0, 0, 0, 0, 0, 0, 192, 168, 1, 100, // target
        ];
        assert_eq!(frame([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 168, 1, 100)), expected);
    }

    #[test]
    fn only_for_existing_ethernet_interfaces() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let error = announce("no-such-if", [2, 0, 0, 0, 0, 1], address).expect_err("no such interface");
        let text = format!("{error:#}");
        assert!(
            text.starts_with("announcing 192.0.2.1 on no-such-if by gratuitous ARP: there is no"),
            "{text}"
        );
        let error = announce("lo", [0; 6], address).expect_err("the loopback interface");
        assert!(format!("{error:#}").contains("lo is not an Ethernet interface"), "{error:#}");
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_an_announcement_reaches_the_other_end() -> Result<()> {
        in_namespace(|| {
            ip(PAIR)?;
            let address = Ipv4Addr::new(192, 168, 1, 100);
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            let far = getifaddrs()?
                .filter(|entry| entry.interface_name == "far")
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .context("no interface far")?;
            bind(socket.as_raw_fd(), &far)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
            announce("near", MAC, address)?;

            let mut seen = 0;
            while seen < 2 {
                let mut frame = [0; 2048];
                let size =
                    recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()).context("no announcement")?;
                // The kernel itself sends IPv6 when an interface comes up.
                if frame[12..14] != [0x08, 0x06] {
                    continue;
                }
                let Some(arp) = etherparse::SlicedPacket::from_ethernet(&frame[..size])?.net else {
                    bail!("not an ARP packet: {:?}", &frame[..size]);
                };
                let etherparse::NetSlice::Arp(arp) = arp else { bail!("{arp:?}") };
                assert_eq!(frame[..6], [0xff; 6], "broadcast");
                assert_eq!(arp.operation(), etherparse::ArpOperation::REQUEST);
                assert_eq!((arp.sender_hw_addr(), arp.target_hw_addr()), (&MAC[..], &[0; 6][..]));
                assert_eq!(arp.sender_protocol_addr(), address.octets());
                assert_eq!(arp.target_protocol_addr(), address.octets());
                seen += 1;
            }
            ip("link set near down")?;
            let error = announce("near", MAC, address).expect_err("the interface is down");
            assert!(format!("{error:#}").contains("ip link set near up"), "{error:#}");
            Ok(())
        })
    }
}
