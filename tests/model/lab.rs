//! A small world for the tests of the model, and frames.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use etherparse::{PacketBuilder, TcpHeader};

use crate::machine::{Machine, Outcome};
use crate::parse::{ACK, FIN, RST, SYN, TCP, UDP};
use crate::state::{FREE, Key, Phase, State};
use crate::table::Slot;
use crate::world::{self, Backend, Fib, NextHop, Scheduler, Sends, Service, World};

pub type End = (Ipv4Addr, u16);

pub const VIP: End = (Ipv4Addr::new(192, 168, 1, 100), 80);
pub const CLIENT: End = (Ipv4Addr::new(192, 168, 1, 2), 40000);
pub const A: End = (Ipv4Addr::new(10, 0, 0, 10), 8080);
pub const B: End = (Ipv4Addr::new(10, 0, 0, 11), 8080);
pub const DNS: End = (Ipv4Addr::new(10, 0, 0, 12), 53);
pub const UDP_VIP: End = (VIP.0, 53);

/// The interfaces that face clients and backends.
pub const OUTSIDE: u32 = 1;
pub const INSIDE: u32 = 2;

/// The services, and their backends: 1 and 2 of the first, 3 of the second.
pub const WEB: u16 = 1;
pub const NAMES: u16 = 2;

/// Of UNCONFIRMED and ANSWERED, ESTABLISHED, CLOSING, and of established UDP.
pub const TIMEOUTS: [u16; 16] = [0, 40, 40, 1200, 120, 120, u16::MAX, 20, 0, 40, 40, 240, 0, 0, 0, 20];

pub const FRAME_DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 0xd];
pub const FRAME_SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 0x5];
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

fn service(end: End, protocol: u8, ring: &[u16]) -> Service {
    Service {
        address: end.0,
        port: end.1,
        protocol,
        scheduler: Scheduler::RoundRobin,
        sticky: 0,
        ring: ring.to_vec(),
        members: Vec::new(),
        pass_empty: false,
    }
}

pub fn backend(service: u16, end: End) -> Backend {
    Backend {
        service,
        address: end.0,
        port: end.1,
        weight: 1,
        state: world::State::Up,
        shared: false,
        counted: false,
        sticky: false,
        next_hop: 1,
    }
}

fn next_hop(interface: u32, destination: [u8; 6]) -> NextHop {
    let sends = Sends::default();
    NextHop { interface, mtu: 1500, valid: true, sends, destination, source: OWN_MAC }
}

/// Native mode, everything direct, nothing partial.
pub fn world() -> World {
    World {
        skb_mode: false,
        partial_possible: false,
        stack: false,
        key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0],
        buckets: 64,
        timeouts: TIMEOUTS,
        services: BTreeMap::from([(WEB, service(VIP, TCP, &[1, 2])), (NAMES, service(UDP_VIP, UDP, &[3]))]),
        backends: BTreeMap::from([(1, backend(WEB, A)), (2, backend(WEB, B)), (3, backend(NAMES, DNS))]),
        origins: BTreeMap::from([
            ((A.0, A.1, TCP), vec![(WEB, 1)]),
            ((B.0, B.1, TCP), vec![(WEB, 2)]),
            ((DNS.0, DNS.1, UDP), vec![(NAMES, 3)]),
        ]),
        next_hops: BTreeMap::from([(1, next_hop(INSIDE, BACKEND_MAC)), (2, next_hop(OUTSIDE, CLIENT_MAC))]),
        neighbours: BTreeMap::from([((OUTSIDE, CLIENT_MAC), 2), ((INSIDE, BACKEND_MAC), 1)]),
        egresses: BTreeMap::from([(OUTSIDE, Sends::default()), (INSIDE, Sends::default())]),
        routes: BTreeMap::new(),
        default_route: Fib::Found { interface: OUTSIDE, mtu: 1400, destination: CLIENT_MAC, source: OWN_MAC },
    }
}

pub fn machine() -> Machine {
    Machine::new(world())
}

pub fn tcp(from: End, to: End, flags: u8) -> Vec<u8> {
    tcp_with(from, to, flags, b"some bytes", 64)
}

pub fn tcp_with(from: End, to: End, flags: u8, payload: &[u8], ttl: u8) -> Vec<u8> {
    let mut header = TcpHeader::new(from.1, to.1, 1000, 500);
    header.syn = flags & SYN != 0;
    header.ack = flags & ACK != 0;
    header.rst = flags & RST != 0;
    header.fin = flags & FIN != 0;
    let builder = PacketBuilder::ethernet2(FRAME_SOURCE, FRAME_DESTINATION)
        .ipv4(from.0.octets(), to.0.octets(), ttl)
        .tcp_header(header);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame of this length can be built");
    frame
}

pub fn udp(from: End, to: End) -> Vec<u8> {
    udp_with(from, to, b"some bytes", 64)
}

pub fn udp_with(from: End, to: End, payload: &[u8], ttl: u8) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(FRAME_SOURCE, FRAME_DESTINATION)
        .ipv4(from.0.octets(), to.0.octets(), ttl)
        .udp(from.1, to.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame of this length can be built");
    frame
}

/// What a frame becomes on its way out by XDP.
pub fn with_macs(mut frame: Vec<u8>, destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame
}

pub fn key(client: End, service: u16) -> Key {
    Key { client: client.0, port: client.1, service }
}

/// A state of the connection of a key.
pub fn state(machine: &Machine, key: Key, backend: u16, phase: Phase, seen: u16) -> State {
    let udp = machine.world.services[&key.service].protocol == UDP;
    State { backend, phase, seen, udp, tag: machine.candidates(key).tag, ..FREE }
}

/// Puts an entry into a slot, and into its backend's load if it counts.
pub fn place(machine: &mut Machine, key: Key, at: Slot, state: State) {
    machine.connections[at.bucket][at.slot].key = key.pack();
    machine.swap(at, state);
}

/// The same, in the first slot where it is looked for.
pub fn enter(machine: &mut Machine, key: Key, backend: u16, phase: Phase, seen: u16) -> Slot {
    let at = machine.slots_of(key)[0];
    let state = state(machine, key, backend, phase, seen);
    place(machine, key, at, state);
    at
}

/// The state of the entry of a key.
pub fn found(machine: &Machine, key: Key) -> Option<State> {
    machine.look_up(key).map(|at| machine.state_at(at))
}

/// A SYN of a client to the web service.
pub fn open(machine: &mut Machine, client: End, now: u32) -> Outcome {
    machine.packet(OUTSIDE, &tcp(client, VIP, SYN), now, 0)
}
