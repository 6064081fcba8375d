//! UDP through the load balancer: DNS by dnsmasq and dig, volume by iperf3, and checksums looked at one by one.

mod common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use common::PATIENCE;
use common::balancer::Balancer;
use common::clients::{dig, iperf3};
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, VIP_ONE_ARM, one_arm, two_arms};
use common::servers::{WHICH, dnsmasq_everywhere};
use etherparse::{IpNumber, Ipv4HeaderSlice, UdpHeaderSlice};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

const DNS_BACKENDS: &str =
    "--scheduler rr --backend 10.0.0.10:53 --backend 10.0.0.11:53 --backend 10.0.0.12:53";
const ECHO: u16 = 7000;
const IPERF: u16 = 5201;

sockopt_impl!(
    /// Sends datagrams without a checksum.
    NoCheck, Both, libc::SOL_SOCKET, libc::SO_NO_CHECK, bool
);

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_dns_over_udp() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = dnsmasq_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:53/udp {DNS_BACKENDS} --assign-vip"))?;
        assert_eq!(ask(lab, VIP, "+notcp", 40000..40030)?, each(10));
        let figures = lb.figures()?;
        assert!(figures.connections("udp").values().all(|count| *count == 10), "{figures:?}");
        figures.assert_all_direct();
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_dns_over_udp_and_tcp_one_arm() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        let _servers = dnsmasq_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP_ONE_ARM}:53/any {DNS_BACKENDS} --assign-vip");
        let lb = Balancer::start(lab, &args)?;
        assert_eq!(ask(lab, VIP_ONE_ARM, "+notcp", 40000..40015)?, each(5));
        assert_eq!(ask(lab, VIP_ONE_ARM, "+tcp", 40000..40009)?, each(3));
        let figures = lb.figures()?;
        assert!(figures.connections("udp").values().all(|count| *count == 5), "{figures:?}");
        assert!(figures.connections("tcp").values().all(|count| *count == 3), "{figures:?}");
        figures.assert_all_direct();
        Ok(())
    })
}

/// Who answered how often. The ports are given, for two queries from one port would be one flow; dig itself ignores
/// answers that do not come from the address that it asked.
fn ask(
    lab: &Lab,
    vip: &str,
    transport: &str,
    ports: std::ops::Range<u16>,
) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for port in ports {
        let lines = dig(lab, vip, &format!("-b {CLIENT}#{port} {transport} {WHICH} A"))?;
        ensure!(lines.len() == 1, "from port {port}: {lines:?}");
        *answers.entry(lines[0].clone()).or_default() += 1;
    }
    Ok(answers)
}

fn each(count: usize) -> BTreeMap<String, usize> {
    (1..=3).map(|n| (format!("10.9.9.{n}"), count)).collect()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_volume() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _server = lab.start("web3", "iperf3", &["-s", "-p", &IPERF.to_string()])?;
        lab.wait_for_port("web3", "tcp", IPERF)?;
        let args = format!("eth0 --vip {VIP}:{IPERF}/any --backend 10.0.0.12:{IPERF} --assign-vip");
        let lb = Balancer::start(lab, &args)?;
        for direction in ["", "-R"] {
            let report = iperf3(lab, VIP, &format!("-u -p {IPERF} -t 3 -b 5M -l 1200 {direction}"))?;
            let sum = &report["end"]["sum"];
            let lost = sum["lost_percent"].as_f64().context("no loss")?;
            let packets = sum["packets"].as_u64().context("no packets")?;
            println!("{direction}: {packets} datagrams, {lost:.3} % lost");
            // 521 a second: so few that a receiver that has to wait for its CPU loses none either.
            assert!(lost < 1.0 && packets > 1000, "{packets} datagrams, {lost} % lost {direction}");
        }
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

/// What the kernel hides from its users: what the header of each datagram says on arrival, at both ends.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_headers_two_arms() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        headers(lab, VIP, 1)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_headers_one_arm() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        headers(lab, VIP_ONE_ARM, 2)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_headers_without_tx_offload() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        for namespace in ["client", "web1"] {
            lab.run(namespace, "ethtool", &["-K", "eth0", "tx", "off"])?;
        }
        headers(lab, VIP, 1)
    })
}

/// `hops`: routers that a client's packet meets on its way, the load balancer included.
fn headers(lab: &Lab, vip: &str, hops: u8) -> Result<()> {
    let port = 41000;
    let args = format!("eth0 --vip {vip}:7/udp --backend 10.0.0.10:{ECHO} --assign-vip");
    let lb = Balancer::start(lab, &args)?;
    let client = End::open(lab, "client", CLIENT, port)?;
    let backend = End::open(lab, "web1", "10.0.0.10", ECHO)?;
    for no_check in [false, true] {
        for end in [&client, &backend] {
            setsockopt(&end.socket, NoCheck, &no_check)?;
        }
        for size in [0, 1, 2, 3, 17, 512, 1471, 1472] {
            let payload: Vec<u8> = (0..size).map(|n: u32| (n * 31 + size) as u8).collect();
            client.socket.send_to(&payload, (vip, 7))?;
            let request = backend.arrived()?;
            let what = format!("{size} bytes, checksum {}", !no_check);
            assert_eq!((request.from, request.to), (at(CLIENT, port)?, at("10.0.0.10", ECHO)?), "{what}");
            assert_eq!((request.payload == payload, request.no_checksum), (true, no_check), "{what}");
            assert_eq!(request.ttl, 64 - hops, "{what}");
            backend.socket.send_to(&payload, (CLIENT, port))?;
            let reply = client.arrived()?;
            assert_eq!((reply.from, reply.to), (at(vip, 7)?, at(CLIENT, port)?), "{what}");
            assert_eq!((reply.payload == payload, reply.no_checksum), (true, no_check), "{what}");
        }
    }
    assert_eq!(lb.figures()?.connections("udp").values().sum::<u64>(), 1);
    lb.figures()?.assert_all_direct();
    Ok(())
}

type At = (Ipv4Addr, u16);

fn at(address: &str, port: u16) -> Result<At> {
    Ok((address.parse()?, port))
}

/// A UDP socket, and one beside it that sees the headers of what arrives.
struct End {
    socket: UdpSocket,
    raw: OwnedFd,
    at: At,
}

/// A datagram, whose checksum is right or absent.
struct Arrived {
    from: At,
    to: At,
    ttl: u8,
    no_checksum: bool,
    payload: Vec<u8>,
}

impl End {
    fn open(lab: &Lab, namespace: &str, address: &str, port: u16) -> Result<End> {
        let (socket, raw) = lab.within(namespace, || -> Result<_> {
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
            Ok((UdpSocket::bind((address, port))?, raw))
        })??;
        let patience = TimeVal::seconds(PATIENCE.as_secs().try_into()?);
        setsockopt(&raw, sockopt::ReceiveTimeout, &patience)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(End { socket, raw, at: at(address, port)? })
    }

    /// The next datagram for this socket, also received by the socket itself.
    fn arrived(&self) -> Result<Arrived> {
        let mut buffer = [0; 2048];
        loop {
            let length = recv(self.raw.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty())
                .context("nothing arrived")?;
            let arrived = Arrived::parse(&buffer[..length])?;
            if arrived.to != self.at {
                continue;
            }
            let mut copy = [0; 2048];
            let (length, from) = self.socket.recv_from(&mut copy)?;
            assert_eq!(from, arrived.from.into());
            assert_eq!(copy[..length], arrived.payload);
            return Ok(arrived);
        }
    }
}

impl Arrived {
    fn parse(packet: &[u8]) -> Result<Arrived> {
        let ip = Ipv4HeaderSlice::from_slice(packet)?;
        ensure!(ip.protocol() == IpNumber::UDP, "not UDP");
        let datagram = &packet[ip.slice().len()..];
        let udp = UdpHeaderSlice::from_slice(datagram)?;
        let payload = &datagram[udp.slice().len()..];
        let right = udp.to_header().calc_checksum_ipv4(&ip.to_header(), payload)?;
        ensure!(
            udp.checksum() == 0 || udp.checksum() == right,
            "checksum {:04x}, but {right:04x} is right",
            udp.checksum()
        );
        Ok(Arrived {
            from: (ip.source_addr(), udp.source_port()),
            to: (ip.destination_addr(), udp.destination_port()),
            ttl: ip.ttl(),
            no_checksum: udp.checksum() == 0,
            payload: payload.to_vec(),
        })
    }
}
