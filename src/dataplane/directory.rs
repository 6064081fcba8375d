//! The directory's lines: where each service and each backend address goes.

use std::net::SocketAddrV4;

use anyhow::{Result, bail, ensure};
use libbpf_rs::MapHandle;

use super::hash::{candidates, hash_endpoint};
use super::mapped::Rows;
use super::tables::{as_bytes, from_bytes};
use super::types::{
    lb_addr, lb_constants, lb_origin, lb_pair, lb_serves, lb_service_bucket, lb_service_entry,
};
use crate::model::Protocol;

/// How many services of a protocol may have the same backend.
pub const SERVICES_PER_BACKEND: usize = lb_constants::LB_PAIRS_PER_ORIGIN.0 as usize;

/// Moves before a placement is given up; with half of the lines free a few are enough.
const MOVES: usize = 500;

/// The 16 bytes of an IPv4-mapped address, as two words read from memory.
pub fn addr_of(address: std::net::Ipv4Addr) -> lb_addr {
    let bytes = address.to_ipv6_mapped().octets();
    let half = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    lb_addr { half: [half(0), half(8)] }
}

/// The IPv4 address of a mapped one.
pub fn ipv4_of(addr: lb_addr) -> std::net::Ipv4Addr {
    let [_, _, _, _, a, b, c, d] = addr.half[1].to_ne_bytes();
    std::net::Ipv4Addr::new(a, b, c, d)
}

/// Builds the lines of a directory: service buckets first, origins after them.
///
/// Every key has two candidate lines and stands in the second only while the first is full: that is what lets the data
/// plane stop at a first line with room. Placing moves others to their second line (cuckoo hashing, Pagh and Rodler 2001),
/// which keeps this true, since the line moved from stays full.
pub struct Directory {
    seed: [u64; 2],
    services: Vec<lb_service_bucket>,
    origins: Vec<lb_origin>,
}

impl Directory {
    /// An empty directory. `seed` is the key of the connection table's hash.
    pub fn new(service_buckets: u32, origins: u32, seed: [u64; 2]) -> Directory {
        Directory {
            seed,
            services: vec![lb_service_bucket::default(); service_buckets as usize],
            origins: vec![lb_origin::default(); origins as usize],
        }
    }

    /// Names the service at an address, port and protocol, and that its address is a VIP.
    pub fn add_service(&mut self, vip: SocketAddrV4, protocol: Protocol, service: u16) -> Result<()> {
        let serves = match protocol {
            Protocol::Tcp => lb_serves::LB_SERVES_TCP,
            Protocol::Udp => lb_serves::LB_SERVES_UDP,
        };
        self.mark_vip(vip, serves.0 as u8)?;
        self.place_service(lb_service_entry {
            addr: addr_of(*vip.ip()),
            port: vip.port().to_be(),
            proto: protocol.number(),
            service,
            used: 1,
            serves: 0,
        })
    }

    fn mark_vip(&mut self, vip: SocketAddrV4, serves: u8) -> Result<()> {
        let addr = addr_of(*vip.ip());
        let [first, second] = self.service_lines(&lb_service_entry { addr, ..Default::default() });
        for line in [first, second] {
            for entry in &mut self.services[line].entry {
                if entry.used != 0 && entry.addr.half == addr.half && entry.port == 0 && entry.proto == 0 {
                    entry.serves |= serves;
                    return Ok(());
                }
            }
        }
        self.place_service(lb_service_entry { addr, serves, used: 1, ..Default::default() })
    }

    fn service_lines(&self, entry: &lb_service_entry) -> [usize; 2] {
        candidates(hash_endpoint(entry.addr, entry.port, entry.proto, self.seed), self.services.len() as u32)
    }

    fn place_service(&mut self, mut entry: lb_service_entry) -> Result<()> {
        let mut line = self.service_lines(&entry)[0];
        for turn in 0..MOVES {
            let slots = &mut self.services[line].entry;
            if let Some(slot) = slots.iter_mut().find(|slot| slot.used == 0) {
                *slot = entry;
                return Ok(());
            }
            let evicted = turn / 2 % slots.len();
            std::mem::swap(&mut slots[evicted], &mut entry);
            line = other(self.service_lines(&entry), line);
        }
        bail!("the directory has no room for another service")
    }

    /// Names a backend's address as one that replies of a service come from.
    pub fn add_origin(&mut self, address: SocketAddrV4, protocol: Protocol, pair: lb_pair) -> Result<()> {
        let origin = lb_origin {
            addr: addr_of(*address.ip()),
            port: address.port().to_be(),
            proto: protocol.number(),
            ..Default::default()
        };
        for line in self.origin_lines(&origin) {
            let there = &mut self.origins[line];
            if there.addr.half == origin.addr.half && there.port == origin.port && there.proto == origin.proto
            {
                let free = there.pair.iter_mut().find(|pair| pair.backend == 0);
                ensure!(
                    free.is_some(),
                    "backend {address}/{protocol} is in {} services already: that is the most",
                    there.pair.len()
                );
                free.into_iter().for_each(|free| *free = pair);
                return Ok(());
            }
        }
        let mut origin = origin;
        origin.pair[0] = pair;
        self.place_origin(origin)
    }

    fn origin_lines(&self, origin: &lb_origin) -> [usize; 2] {
        candidates(
            hash_endpoint(origin.addr, origin.port, origin.proto, self.seed),
            self.origins.len() as u32,
        )
    }

    fn place_origin(&mut self, mut origin: lb_origin) -> Result<()> {
        let mut line = self.origin_lines(&origin)[0];
        for _ in 0..MOVES {
            std::mem::swap(&mut self.origins[line], &mut origin);
            if origin.proto == 0 {
                return Ok(());
            }
            line = other(self.origin_lines(&origin), line);
        }
        bail!("the directory has no room for another backend address")
    }

    /// Writes the lines into an empty directory map that no packet reads yet.
    pub fn write(&self, map: MapHandle) -> Result<()> {
        let rows: Rows<lb_service_bucket> = Rows::map(map)?;
        let services = self.services.iter().map(as_bytes);
        for (line, bytes) in services.chain(self.origins.iter().map(as_bytes)).enumerate() {
            rows.set(line, from_bytes(bytes)?)?;
        }
        Ok(())
    }
}

/// The candidate that a key which stood in `line` moves to.
fn other(lines: [usize; 2], line: usize) -> usize {
    if lines[0] == line { lines[1] } else { lines[0] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    fn address(n: usize) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n as u32), 80)
    }

    fn find(directory: &Directory, vip: SocketAddrV4, port: u16, proto: u8) -> Option<lb_service_entry> {
        let key =
            lb_service_entry { addr: addr_of(*vip.ip()), port: port.to_be(), proto, ..Default::default() };
        let is = |e: &lb_service_entry| {
            e.used != 0 && e.addr.half == key.addr.half && e.port == key.port && e.proto == proto
        };
        let [first, second] = directory.service_lines(&key);
        let first = &directory.services[first].entry;
        first.iter().copied().find(is).or_else(|| {
            if first.iter().any(|e| e.used == 0) {
                return None; // where the data plane stops
            }
            directory.services[second].entry.iter().copied().find(is)
        })
    }

    #[test]
    fn a_quarter_full_directory_finds_everything() {
        let mut directory = Directory::new(8192, 16384, SEED);
        for n in 0..2000 {
            directory.add_service(address(n), Protocol::Tcp, n as u16 + 1).unwrap();
        }
        directory.add_service(address(7), Protocol::Udp, 9999).unwrap();
        for n in 0..2000 {
            assert_eq!(find(&directory, address(n), 80, 6).map(|e| e.service), Some(n as u16 + 1));
            let serves = if n == 7 { 3 } else { 1 };
            assert_eq!(find(&directory, address(n), 0, 0).map(|e| e.serves), Some(serves));
        }
        assert_eq!(find(&directory, address(7), 80, 17).map(|e| e.service), Some(9999));
        assert!(find(&directory, address(2000), 80, 6).is_none());
    }

    #[test]
    fn origins_stand_where_they_are_looked_for_and_hold_eight_services() {
        let mut directory = Directory::new(512, 16384, SEED);
        for n in 0..4000 {
            for service in 1..=8 {
                let pair = lb_pair { service, backend: n as u16 + 1 };
                directory.add_origin(address(n), Protocol::Udp, pair).unwrap();
            }
        }
        let ninth = directory.add_origin(address(5), Protocol::Udp, lb_pair { service: 9, backend: 1 });
        assert!(ninth.unwrap_err().to_string().contains("in 8 services already"));
        for n in 0..4000 {
            let key = lb_origin {
                addr: addr_of(*address(n).ip()),
                port: 80u16.to_be(),
                proto: 17,
                ..Default::default()
            };
            let [first, second] = directory.origin_lines(&key);
            let is = |line: usize| directory.origins[line].addr.half == key.addr.half;
            assert!(is(first) || (directory.origins[first].proto != 0 && is(second)), "{n}");
        }
    }

    #[test]
    fn a_full_directory_says_so() {
        let mut directory = Directory::new(2, 2, SEED);
        let failed = (0..5).find_map(|n| directory.add_service(address(n), Protocol::Tcp, 1).err());
        assert!(failed.unwrap().to_string().contains("no room"));
    }

    #[test]
    fn addresses_survive_the_mapping() {
        let address = Ipv4Addr::new(192, 168, 1, 100);
        assert_eq!(ipv4_of(addr_of(address)), address);
    }
}
