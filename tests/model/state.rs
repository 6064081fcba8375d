//! The two words of an entry of the connection table, taken apart.

use std::net::Ipv4Addr;

use crate::hash::{raw_address, raw_port};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Free,
    Unconfirmed,
    Answered,
    Established,
    Closing,
    Reviving,
    Closed,
    Claimed,
}

/// By number.
pub const PHASES: [Phase; 8] = [
    Phase::Free,
    Phase::Unconfirmed,
    Phase::Answered,
    Phase::Established,
    Phase::Closing,
    Phase::Reviving,
    Phase::Closed,
    Phase::Claimed,
];

impl Phase {
    pub fn number(self) -> usize {
        PHASES.iter().position(|&phase| phase == self).expect("every phase has a number")
    }
}

/// A state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub backend: u16,
    pub phase: Phase,
    pub counted: bool,
    pub client_closed: bool,
    pub backend_closed: bool,
    pub expired: bool,
    pub udp: bool,
    pub tag: u8,
    pub next_hop: u16,
    pub seen: u16,
}

/// All-zero memory.
pub const FREE: State = State {
    backend: 0,
    phase: Phase::Free,
    counted: false,
    client_closed: false,
    backend_closed: false,
    expired: false,
    udp: false,
    tag: 0,
    next_hop: 0,
    seen: 0,
};

impl State {
    pub fn unpack(word: u64) -> State {
        let bit = |number: u32| word >> number & 1 == 1;
        State {
            backend: word as u16,
            phase: PHASES[(word >> 16 & 7) as usize],
            counted: bit(19),
            client_closed: bit(20),
            backend_closed: bit(21),
            expired: bit(22),
            udp: bit(23),
            tag: (word >> 24) as u8,
            next_hop: (word >> 32) as u16,
            seen: (word >> 48) as u16,
        }
    }

    pub fn pack(self) -> u64 {
        u64::from(self.backend)
            | (self.phase.number() as u64) << 16
            | u64::from(self.counted) << 19
            | u64::from(self.client_closed) << 20
            | u64::from(self.backend_closed) << 21
            | u64::from(self.expired) << 22
            | u64::from(self.udp) << 23
            | u64::from(self.tag) << 24
            | u64::from(self.next_hop) << 32
            | u64::from(self.seen) << 48
    }

    /// Phases 1 to 6.
    pub fn holds_an_entry(self) -> bool {
        !matches!(self.phase, Phase::Free | Phase::Claimed)
    }

    /// As loads see it: its timeout does not matter until a sweep has found it.
    pub fn is_live(self) -> bool {
        self.holds_an_entry() && self.phase != Phase::Closed && !self.expired
    }

    pub fn is_confirmed(self) -> bool {
        matches!(self.phase, Phase::Established | Phase::Closing | Phase::Reviving)
    }

    pub fn is_unconfirmed(self) -> bool {
        matches!(self.phase, Phase::Unconfirmed | Phase::Answered)
    }
}

/// What the key word is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub client: Ipv4Addr,
    pub port: u16,
    pub service: u16,
}

impl Key {
    pub fn pack(self) -> u64 {
        raw_address(self.client) | raw_port(self.port) << 32 | u64::from(self.service) << 48
    }

    pub fn unpack(word: u64) -> Key {
        Key {
            client: Ipv4Addr::from((word as u32).to_le_bytes()),
            port: u16::from_be_bytes(((word >> 32) as u16).to_le_bytes()),
            service: (word >> 48) as u16,
        }
    }
}
