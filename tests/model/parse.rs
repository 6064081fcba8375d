//! Step 1 of docs/packets.md: what a frame says, or the first check that it fails.

use std::net::Ipv4Addr;

use crate::reason::Reason;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// A frame that passed the checks. Offsets are from the frame's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where the IP header begins,
    pub ip: usize,
    /// where the transport header does,
    pub transport: usize,
    /// and where the IP packet ends; what follows is padding.
    pub end: usize,
    pub protocol: u8,
    pub ttl: u8,
    pub first_fragment: bool,
    pub source: Ipv4Addr,
    pub source_port: u16,
    pub destination: Ipv4Addr,
    pub destination_port: u16,
    /// Of TCP; else 0.
    pub flags: u8,
}

impl Packet {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn total_length(&self) -> usize {
        self.end - self.ip
    }

    /// Bytes of IP payload.
    pub fn payload_length(&self) -> usize {
        self.end - self.transport
    }

    /// Where the transport checksum is.
    pub fn checksum_field(&self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }
}

/// Which check failed, and whether it counts for every frame or only for those to a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Always(Reason),
    ForVip { reason: Reason, destination: Ipv4Addr, protocol: u8 },
}

pub fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

pub fn address(frame: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3])
}

pub fn parse(frame: &[u8]) -> Result<Packet, Refusal> {
    let ip = ethernet(frame).map_err(Refusal::Always)?;
    let destination = address(frame, ip + 16);
    let protocol = frame[ip + 9];
    let for_vip = |reason| Refusal::ForVip { reason, destination, protocol };

    let version = frame[ip] >> 4;
    let header_length = usize::from(frame[ip] & 15) * 4;
    let total_length = usize::from(word(frame, ip + 2));
    if version != 4 || header_length < 20 || total_length < header_length {
        return Err(for_vip(Reason::DropMalformed));
    }
    if total_length > frame.len() - ip {
        return Err(for_vip(Reason::DropMalformed));
    }
    if protocol != TCP && protocol != UDP {
        return Err(Refusal::Always(Reason::PassNoService));
    }
    let more_fragments = word(frame, ip + 6) & 0x2000 != 0;
    let fragment_offset = word(frame, ip + 6) & 0x1fff;
    if fragment_offset != 0 {
        return Err(for_vip(Reason::DropFragment));
    }

    let transport = ip + header_length;
    let end = ip + total_length;
    let fits = match protocol {
        TCP => tcp_fits(&frame[transport..end]),
        _ => udp_fits(&frame[transport..end], more_fragments),
    };
    if !fits {
        return Err(for_vip(Reason::DropMalformed));
    }
    Ok(Packet {
        ip,
        transport,
        end,
        protocol,
        ttl: frame[ip + 8],
        first_fragment: more_fragments,
        source: address(frame, ip + 12),
        source_port: word(frame, transport),
        destination,
        destination_port: word(frame, transport + 2),
        flags: if protocol == TCP { frame[transport + 13] } else { 0 },
    })
}

/// Checks 1 to 4: where the IP header begins.
fn ethernet(frame: &[u8]) -> Result<usize, Reason> {
    let mut ip = 14;
    if frame.len() < ip {
        return Err(Reason::PassTruncated);
    }
    for _ in 0..2 {
        let ether_type = word(frame, ip - 2);
        if ether_type != 0x8100 && ether_type != 0x88a8 {
            break;
        }
        ip += 4;
        if frame.len() < ip {
            return Err(Reason::PassTruncated);
        }
    }
    if word(frame, ip - 2) != 0x0800 {
        return Err(Reason::PassNotIpv4);
    }
    if frame[0] & 1 == 1 {
        return Err(Reason::PassMulticast);
    }
    if frame.len() < ip + 20 {
        return Err(Reason::PassTruncated);
    }
    Ok(ip)
}

fn tcp_fits(payload: &[u8]) -> bool {
    if payload.len() < 20 {
        return false;
    }
    let data_offset = usize::from(payload[12] >> 4);
    data_offset >= 5 && data_offset * 4 <= payload.len()
}

fn udp_fits(payload: &[u8], first_fragment: bool) -> bool {
    if payload.len() < 8 {
        return false;
    }
    let length = usize::from(word(payload, 4));
    length >= 8 && (length <= payload.len() || first_fragment)
}
