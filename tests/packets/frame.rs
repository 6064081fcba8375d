//! Frames, built whole and with independent code: what the program must make of one is built again, not patched.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, SingleVlanHeader, TcpHeader, UdpHeader,
    VlanId,
};

pub type Mac = [u8; 6];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What the transport checksum field holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The finished sum.
    Whole,
    /// The folded pseudo-header sum of a local sender.
    Partial,
    /// UDP without one.
    Absent,
}

#[derive(Clone)]
pub struct Frame {
    pub to_mac: Mac,
    pub from_mac: Mac,
    /// (EtherType, VLAN id), outermost first.
    pub tags: Vec<(u16, u16)>,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub transport: Transport,
    pub flags: &'static str,
    pub ttl: u8,
    pub ip_options: Vec<u8>,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    pub padding: usize,
    pub checksum: Checksum,
    pub more_fragments: bool,
    pub fragment_offset: u16,
}

pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: &'static str) -> Frame {
    Frame {
        to_mac: super::lab::LB_MAC,
        from_mac: super::lab::CLIENT_MAC,
        tags: Vec::new(),
        from,
        to,
        transport: Transport::Tcp,
        flags,
        ttl: 64,
        ip_options: Vec::new(),
        tcp_options: Vec::new(),
        payload: Vec::new(),
        padding: 0,
        checksum: Checksum::Whole,
        more_fragments: false,
        fragment_offset: 0,
    }
}

pub fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Frame {
    Frame { transport: Transport::Udp, payload: b"hello".to_vec(), ..tcp(from, to, "") }
}

impl Frame {
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Frame {
        self.payload = payload.into();
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Frame {
        self.ttl = ttl;
        self
    }

    pub fn checksum(mut self, checksum: Checksum) -> Frame {
        self.checksum = checksum;
        self
    }

    pub fn padded(mut self, padding: usize) -> Frame {
        self.padding = padding;
        self
    }

    pub fn tagged(mut self, tags: &[(u16, u16)]) -> Frame {
        self.tags = tags.to_vec();
        self
    }

    pub fn macs(mut self, to: Mac, from: Mac) -> Frame {
        (self.to_mac, self.from_mac) = (to, from);
        self
    }

    pub fn to(mut self, to: SocketAddrV4) -> Frame {
        self.to = to;
        self
    }

    pub fn from(mut self, from: SocketAddrV4) -> Frame {
        self.from = from;
        self
    }

    /// Where the IP header begins.
    pub fn ip_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ethertype =
            |at: usize| self.tags.get(at).map_or(EtherType::IPV4, |(ethertype, _)| EtherType(*ethertype));
        let ethernet =
            Ethernet2Header { destination: self.to_mac, source: self.from_mac, ether_type: ethertype(0) };
        ethernet.write(&mut out).unwrap();
        for (at, (_, id)) in self.tags.iter().enumerate() {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(*id).unwrap(),
                ether_type: ethertype(at + 1),
                ..Default::default()
            };
            tag.write(&mut out).unwrap();
        }
        let segment_len = self.payload.len()
            + match self.transport {
                Transport::Tcp => 20 + self.tcp_options.len(),
                Transport::Udp => 8,
            };
        let ip = self.ip(segment_len);
        ip.write(&mut out).unwrap();
        let segment = self.segment(&ip);
        assert_eq!(segment.len(), segment_len);
        out.extend(segment);
        out.extend(std::iter::repeat_n(0xa5, self.padding));
        out
    }

    fn ip(&self, segment_len: usize) -> Ipv4Header {
        let protocol = match self.transport {
            Transport::Tcp => IpNumber::TCP,
            Transport::Udp => IpNumber::UDP,
        };
        let (from, to) = (self.from.ip().octets(), self.to.ip().octets());
        let mut ip = Ipv4Header::new(segment_len as u16, self.ttl, protocol, from, to).unwrap();
        ip.identification = 0x1234;
        ip.dont_fragment = !self.more_fragments && self.fragment_offset == 0;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
        ip.options = self.ip_options.as_slice().try_into().unwrap();
        ip.set_payload_len(segment_len).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        ip
    }

    fn segment(&self, ip: &Ipv4Header) -> Vec<u8> {
        let mut out = Vec::new();
        match self.transport {
            Transport::Tcp => {
                let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), 0x0102_0304, 0xffff);
                tcp.set_options_raw(&self.tcp_options).unwrap();
                let has = |flag: char| self.flags.contains(flag);
                (tcp.syn, tcp.ack, tcp.fin, tcp.rst, tcp.psh) =
                    (has('S'), has('A'), has('F'), has('R'), has('P'));
                tcp.checksum = match self.checksum {
                    Checksum::Partial => self.pseudo(6, 20 + self.tcp_options.len() + self.payload.len()),
                    _ => tcp.calc_checksum_ipv4(ip, &self.payload).unwrap(),
                };
                tcp.write(&mut out).unwrap();
            }
            Transport::Udp => {
                let len = 8 + self.payload.len();
                let mut udp = UdpHeader {
                    source_port: self.from.port(),
                    destination_port: self.to.port(),
                    length: len as u16,
                    checksum: 0,
                };
                udp.checksum = match self.checksum {
                    Checksum::Partial => self.pseudo(17, len),
                    Checksum::Absent => 0,
                    Checksum::Whole => udp.calc_checksum_ipv4(ip, &self.payload).unwrap(),
                };
                udp.write(&mut out).unwrap();
            }
        }
        out.extend(&self.payload);
        out
    }

    /// RFC 793's pseudo-header, summed and folded, not complemented.
    fn pseudo(&self, protocol: u32, len: usize) -> u16 {
        let words = |ip: &Ipv4Addr| {
            let [a, b, c, d] = ip.octets();
            u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
        };
        let mut sum = words(self.from.ip()) + words(self.to.ip()) + protocol + len as u32;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}
