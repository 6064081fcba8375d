//! What the control plane has put in place, as plain data. Packets change nothing of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub type Mac = [u8; 6];

/// What the XDP hook is told to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// The state of a backend that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Up,
    Drain,
    Down,
    Reset,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    RoundRobin,
    WeightedRoundRobin,
    IpHash,
    Maglev,
    LeastConn,
}

/// A row that is in none of these maps is free. Ports are plain numbers; only the connection table has raw ones.
#[derive(Clone, Debug)]
pub struct World {
    /// The profile: whether the program runs in SKB mode,
    pub skb_mode: bool,
    /// whether frames may have partial checksums,
    pub partial_possible: bool,
    /// and whether delivery is by the stack.
    pub stack: bool,
    /// `secret[0..4]` of the documents.
    pub key: [u64; 4],
    /// Of the connection table.
    pub buckets: u32,
    /// By phase, + 8 for UDP, in units of the clock.
    pub timeouts: [u16; 16],
    /// By index.
    pub services: BTreeMap<u16, Service>,
    /// By index; one (service, backend) pair each.
    pub backends: BTreeMap<u16, Backend>,
    /// Backend's address, port, IP protocol -> (service, backend), in the order of the row.
    pub origins: BTreeMap<(Ipv4Addr, u16, u8), Vec<(u16, u16)>>,
    /// By index.
    pub next_hops: BTreeMap<u16, NextHop>,
    /// (interface, destination MAC) -> index of a next hop.
    pub neighbours: BTreeMap<(u32, Mac), u16>,
    /// By interface.
    pub egresses: BTreeMap<u32, Sends>,
    /// What the FIB says of the way to an address,
    pub routes: BTreeMap<Ipv4Addr, Fib>,
    /// and to all others.
    pub default_route: Fib,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub address: Ipv4Addr,
    pub port: u16,
    pub protocol: u8,
    pub scheduler: Scheduler,
    /// In units of the clock; 0: not sticky.
    pub sticky: u32,
    pub ring: Vec<u16>,
    /// Empty: two slots of the ring are compared.
    pub members: Vec<u16>,
    /// What no backend takes is the kernel's.
    pub pass_empty: bool,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub service: u16,
    pub address: Ipv4Addr,
    pub port: u16,
    pub weight: u8,
    pub state: State,
    pub shared: bool,
    pub counted: bool,
    pub sticky: bool,
    pub next_hop: u16,
}

/// What XDP cannot do with an interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sends {
    pub no_tx: bool,
    pub no_redirect: bool,
}

#[derive(Clone, Debug)]
pub struct NextHop {
    pub interface: u32,
    pub mtu: u16,
    /// Both MACs are known.
    pub valid: bool,
    pub sends: Sends,
    pub destination: Mac,
    pub source: Mac,
}

/// What the kernel's FIB answers. (That an unknown neighbour is noted for the control plane is not modelled.)
#[derive(Clone, Debug)]
pub enum Fib {
    Found { interface: u32, mtu: u32, destination: Mac, source: Mac },
    NoNeighbour,
    Failed,
}

impl World {
    pub fn service_at(&self, address: Ipv4Addr, port: u16, protocol: u8) -> Option<u16> {
        self.services
            .iter()
            .find(|(_, service)| {
                service.address == address && service.port == port && service.protocol == protocol
            })
            .map(|(&index, _)| index)
    }

    /// Whether an address is a VIP with a service of this protocol, on any port.
    pub fn is_vip(&self, address: Ipv4Addr, protocol: u8) -> bool {
        self.services.values().any(|service| service.address == address && service.protocol == protocol)
    }

    /// A backend's row, if it is there and of this service.
    pub fn backend_of(&self, service: u16, index: u16) -> Option<&Backend> {
        self.backends.get(&index).filter(|backend| backend.service == service)
    }

    /// Whether a backend may be given new connections of a service.
    pub fn is_up(&self, service: u16, index: u16) -> bool {
        self.backend_of(service, index).is_some_and(|backend| backend.state == State::Up)
    }
}
