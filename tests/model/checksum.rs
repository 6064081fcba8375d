//! One's complement arithmetic on 16-bit words, as in RFC 1071 and RFC 1624, and what a transport checksum is.
//!
//! Zero has two forms, and which one comes out can matter. Sums here are added as they are and folded by end-around
//! carry: 0x0000 comes out only if everything that was added is 0x0000, else it is 0xffff.

use std::net::Ipv4Addr;

use crate::parse::{Packet, UDP, word};

/// Adds two words; what is carried out at the top comes in at the bottom.
pub fn add(a: u16, b: u16) -> u16 {
    let sum = u32::from(a) + u32::from(b);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

pub fn sum(words: &[u16]) -> u16 {
    words.iter().fold(0, |sum, &word| add(sum, word))
}

/// Of bytes, two to a word; an odd one at the end is the upper byte of a word.
pub fn sum_bytes(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let low = if pair.len() == 2 { pair[1] } else { 0 };
        add(sum, u16::from_be_bytes([pair[0], low]))
    })
}

pub fn words(address: Ipv4Addr) -> [u16; 2] {
    let [a, b, c, d] = address.octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), for every m that becomes m'.
pub fn update(checksum: u16, old: &[u16], new: &[u16]) -> u16 {
    let mut sum = !checksum;
    for (&old, &new) in old.iter().zip(new) {
        sum = add(add(sum, !old), new);
    }
    !sum
}

/// A partial checksum after a change: not complemented, before or after.
pub fn update_partial(field: u16, old: &[u16], new: &[u16]) -> u16 {
    let mut sum = field;
    for (&old, &new) in old.iter().zip(new) {
        sum = add(add(sum, !old), new);
    }
    sum
}

/// The sum of the pseudo-header of a frame's IP packet: what a partial checksum is.
pub fn pseudo_header(frame: &[u8], packet: &Packet) -> u16 {
    let addresses = sum_bytes(&frame[packet.ip + 12..packet.ip + 20]);
    sum(&[addresses, u16::from(packet.protocol), packet.payload_length() as u16])
}

/// The sum of pseudo-header and segment, the checksum's field included.
fn segment_sum(frame: &[u8], packet: &Packet) -> u16 {
    add(pseudo_header(frame, packet), sum_bytes(&frame[packet.transport..packet.end]))
}

pub fn transport_is_right(frame: &[u8], packet: &Packet) -> bool {
    segment_sum(frame, packet) == 0xffff
}

pub fn header_is_right(frame: &[u8], packet: &Packet) -> bool {
    sum_bytes(&frame[packet.ip..packet.transport]) == 0xffff
}

/// Whether the field is what a partial checksum would be.
pub fn looks_partial(frame: &[u8], packet: &Packet) -> bool {
    let field = word(frame, packet.checksum_field());
    let whole =
        packet.protocol != UDP || usize::from(word(frame, packet.transport + 4)) == packet.payload_length();
    field != 0 && whole && field == pseudo_header(frame, packet)
}

/// The checksum that the segment of a frame should have, computed over all of it.
pub fn finished(frame: &[u8], packet: &Packet) -> u16 {
    let mut frame = frame.to_vec();
    let at = packet.checksum_field();
    frame[at..at + 2].fill(0);
    !segment_sum(&frame, packet)
}

/// A checksum as it is sent: UDP has no 0, which would mean none.
pub fn sent(checksum: u16, protocol: u8) -> u16 {
    if protocol == UDP && checksum == 0 { 0xffff } else { checksum }
}
