//! Who sends a packet to whom, as far as its first bytes tell.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use etherparse::{EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use crate::dataplane::Seen;
use crate::model::Protocol;

/// A sender or receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub address: IpAddr,
    /// 0 is a port like any other.
    pub port: Option<u16>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, None) => write!(f, "{address}"),
            (IpAddr::V4(address), Some(port)) => write!(f, "{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        }
    }
}

/// What is known of a packet's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Headers {
    /// `tcp`, `udp`, `icmp`, or a number.
    pub protocol: Option<String>,
    /// Source and destination.
    pub ends: Option<(End, End)>,
    /// What is in the frame, if that is not IP.
    pub ether_type: Option<u16>,
    pub tcp_flags: Option<u8>,
}

impl Headers {
    /// Of a packet that was seen: the program tells what it knows; else the first bytes do.
    pub fn of(seen: &Seen) -> Headers {
        let known = seen.packet.filter(|_| seen.has_ports || seen.frame.is_empty());
        let told = known.map(|(protocol, source, destination)| {
            let port = |port: u16| (seen.has_ports || port != 0).then_some(port);
            let end = |end: SocketAddrV4| End { address: (*end.ip()).into(), port: port(end.port()) };
            let flags = (protocol == Protocol::Tcp).then_some(seen.tcp_flags);
            Headers {
                protocol: Some(protocol.to_string()),
                ends: Some((end(source), end(destination))),
                ether_type: None,
                tcp_flags: flags,
            }
        });
        told.unwrap_or_else(|| Headers::read(&seen.frame))
    }

    /// What stands in a frame, or in its beginning.
    fn read(frame: &[u8]) -> Headers {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return Headers::default() };
        let (addresses, protocol, is_first): ((IpAddr, IpAddr), IpNumber, bool) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                let ends = (header.source_addr().into(), header.destination_addr().into());
                (ends, header.protocol(), header.fragments_offset().value() == 0)
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                let ends = (header.source_addr().into(), header.destination_addr().into());
                (ends, ip.payload().ip_number, true)
            }
            _ => {
                let payload = packet.ether_payload();
                return Headers {
                    ether_type: payload.map(|payload| payload.ether_type.0),
                    ..Headers::default()
                };
            }
        };
        let (ports, tcp_flags) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                (Some((tcp.source_port(), tcp.destination_port())), tcp.slice().get(13).copied())
            }
            Some(TransportSlice::Udp(udp)) => (Some((udp.source_port(), udp.destination_port())), None),
            _ => (None, None),
        };
        let ports = ports.filter(|_| is_first);
        let end = |address, port| End { address, port };
        Headers {
            protocol: Some(name(protocol)),
            ends: Some((
                end(addresses.0, ports.map(|(source, _)| source)),
                end(addresses.1, ports.map(|(_, destination)| destination)),
            )),
            ether_type: None,
            tcp_flags,
        }
    }

    /// What is in the frame, where that is not IP.
    pub fn other(&self) -> Option<String> {
        let ether_type = self.ether_type?;
        Some(match EtherType(ether_type) {
            EtherType::ARP => format!("ARP (0x{ether_type:04x})"),
            _ => format!("ethertype 0x{ether_type:04x}"),
        })
    }
}

fn name(protocol: IpNumber) -> String {
    match protocol {
        IpNumber::TCP => "tcp".to_owned(),
        IpNumber::UDP => "udp".to_owned(),
        IpNumber::ICMP => "icmp".to_owned(),
        IpNumber::IPV6_ICMP => "icmpv6".to_owned(),
        IpNumber(other) => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn ends(frame: &[u8]) -> Option<(String, String, String)> {
        let headers = Headers::read(frame);
        let (source, destination) = headers.ends?;
        Some((headers.protocol?, source.to_string(), destination.to_string()))
    }

    #[test]
    fn addresses_and_ports_are_read_as_far_as_they_are_there() {
        let builder = || PacketBuilder::ethernet2(MACS.0, MACS.1);
        let mut frame = Vec::new();
        let tcp = builder().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(0, 81, 1, 100).syn();
        tcp.write(&mut frame, &[0; 400]).unwrap();
        let whole = ("tcp".into(), "10.0.0.1:0".into(), "10.0.0.2:81".into());
        assert_eq!(ends(&frame), Some(whole));
        assert_eq!(Headers::read(&frame).tcp_flags, Some(2));
        assert!(ends(&frame[..128]).is_some(), "more is not sent");
        // Not even its ports are there.
        assert_eq!(ends(&frame[..34]), Some(("tcp".into(), "10.0.0.1".into(), "10.0.0.2".into())));
        assert_eq!(Headers::read(&frame[..20]).ends, None);
        assert_eq!(Headers::read(&[]), Headers::default());

        let mut frame = Vec::new();
        let udp = builder().single_vlan(5.try_into().unwrap()).ipv6([1; 16], [2; 16], 64).udp(9, 53);
        udp.write(&mut frame, &[]).unwrap();
        let address = |byte: u8, port: u16| format!("[{}]:{port}", std::net::Ipv6Addr::from([byte; 16]));
        assert_eq!(ends(&frame), Some(("udp".into(), address(1, 9), address(2, 53))));

        let mut frame = Vec::new();
        let ping = builder().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).icmpv4_echo_request(1, 1);
        ping.write(&mut frame, &[]).unwrap();
        assert_eq!(ends(&frame), Some(("icmp".into(), "10.0.0.1".into(), "10.0.0.2".into())));
    }

    #[test]
    fn what_is_not_ip_is_told_by_its_ethertype() {
        let mut frame = [MACS.0, MACS.1].concat();
        frame.extend([0x88, 0xcc]);
        frame.extend([0; 46]);
        assert_eq!(Headers::read(&frame).other(), Some("ethertype 0x88cc".into()));
        frame[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(Headers::read(&frame).other(), Some("ARP (0x0806)".into()));
        assert_eq!(Headers::read(&frame[..13]).other(), None);
    }
}
