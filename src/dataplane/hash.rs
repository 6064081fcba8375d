//! The data plane's hash (`include/lb_hash.h`), for the tables that the control plane lays out or checks.

use super::types::lb_addr;

/// `lb_hash` of the header.
pub fn hash(word: u64, seed: [u64; 2]) -> u64 {
    let mut word = word ^ seed[0];
    word ^= word >> 32;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 32;
    word = word.wrapping_add(seed[1]);
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 32)
}

/// `lb_hash_endpoint` of the header; the port as it stands in a packet.
pub fn hash_endpoint(addr: lb_addr, port: u16, proto: u8, seed: [u64; 2]) -> u64 {
    let first = if addr.half[0] == 0 { 0 } else { hash(addr.half[0], seed) };
    hash(addr.half[1] ^ (u64::from(port) << 16 | u64::from(proto)) ^ first, seed)
}

/// The two candidate lines, below `lines`, of a hash.
pub fn candidates(hash: u64, lines: u32) -> [usize; 2] {
    let scale = |half: u64| ((half * u64::from(lines)) >> 32) as usize;
    [scale(hash >> 32), scale(hash & 0xffff_ffff)]
}
