//! The one hash of include/lb_hash.h, and how raw addresses and ports become words.

use std::net::Ipv4Addr;

pub fn hash(word: u64, seed0: u64, seed1: u64) -> u64 {
    let mut word = word ^ seed0;
    word ^= word >> 32;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 32;
    word = word.wrapping_add(seed1);
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 32
}

/// The upper half of a hash: with [`scale`] it is an index.
pub fn upper(hash: u64) -> u32 {
    (hash >> 32) as u32
}

pub fn lower(hash: u64) -> u32 {
    (hash & 0xffff_ffff) as u32
}

/// Half of a hash as an index below n.
pub fn scale(half: u32, n: u32) -> u32 {
    ((u64::from(half) * u64::from(n)) >> 32) as u32
}

/// The bytes as they stand in a packet, loaded by a little-endian machine.
pub fn raw_address(address: Ipv4Addr) -> u64 {
    u64::from(u32::from_le_bytes(address.octets()))
}

pub fn raw_port(port: u16) -> u64 {
    u64::from(u16::from_le_bytes(port.to_be_bytes()))
}
