//! Makes sequences that meet the corners: few clients and ports, so that connections are met again; replies of the backends
//! that the model says have them; and one frame in eight is damaged.

use std::net::{Ipv4Addr, SocketAddrV4};

use fastrand::Rng;

use super::machine::Machine;
use super::packets::frame::{Checksum, Frame, Transport, tcp, udp};
use super::packets::lab::*;
use super::scenario::OTHER_VIP;
use super::sequence::{Edit, Hop, Op, Sent};
use super::world::State;

/// What flags real and spoofed segments have, the usual ones more often.
const FLAGS: [&str; 18] =
    ["S", "S", "S", "A", "A", "A", "PA", "PA", "FA", "FA", "F", "RA", "R", "SA", "", "SF", "SR", "SFRA"];
const REPLY_FLAGS: [&str; 14] =
    ["SA", "SA", "SA", "A", "A", "PA", "PA", "FA", "FA", "RA", "R", "S", "", "SFA"];

/// A connection that is on its way through a handshake, and what comes next.
struct Script {
    client: SocketAddrV4,
    service: u16,
    stage: usize,
}

pub struct Generator {
    rng: Rng,
    script: Option<Script>,
    /// To be retransmitted.
    last: Option<Sent>,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        Generator { rng: Rng::with_seed(seed), script: None, last: None }
    }

    /// The next thing to happen, knowing what is in the model's table.
    pub fn next(&mut self, machine: &Machine) -> Op {
        if let Some(op) = self.handshake(machine) {
            return op;
        }
        match self.rng.u32(0..1000) {
            0..400 => self.damaged(machine, Self::request),
            400..640 => self.damaged(machine, Self::answer),
            640..690 => self.damaged(machine, Self::stray),
            690..700 => self.last.clone().map_or_else(|| self.time(machine), Op::Frame),
            700..800 => {
                let (client, service) = (self.client(), self.service(machine));
                self.script = Some(Script { client, service, stage: 0 });
                self.next(machine)
            }
            800..885 => self.time(machine),
            885..900 => Op::Empty { service: self.service(machine), pass: self.chance(75) },
            900..910 => Op::Random(self.rng.u32(..)),
            910..920 => self.micros(machine),
            920..935 => Op::Sweep,
            935..970 => {
                let down = self.pick(&[State::Down, State::Reset, State::Disabled]);
                let state = self.pick(&[State::Up, State::Up, State::Drain, down]);
                Op::State { row: self.row(machine), state }
            }
            970..985 => {
                let hop = self.pick(&[Hop::Known, Hop::Known, Hop::Known, Hop::Unknown, Hop::Front]);
                Op::Hop { row: self.row(machine), hop }
            }
            985..995 => {
                let direct = Some((true, true));
                let sends = self.pick(&[direct, direct, Some((true, false)), Some((false, true)), None]);
                Op::Egress { front: self.rng.bool(), sends }
            }
            _ => Op::Neighbour { which: self.rng.usize(0..2), valid: self.rng.bool() },
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn row(&mut self, machine: &Machine) -> usize {
        self.rng.usize(0..machine.world.backends.len())
    }

    fn service(&mut self, machine: &Machine) -> u16 {
        let services: Vec<u16> = machine.world.services.keys().copied().collect();
        self.pick(&services)
    }

    fn client(&mut self) -> SocketAddrV4 {
        let known = [
            *CLIENT.ip(),
            *CLIENT.ip(),
            *FAR_CLIENT.ip(),
            *FAR_CLIENT.ip(),
            *SILENT_CLIENT.ip(),
            Ipv4Addr::new(198, 51, 100, 7),
            *backend(0).ip(),
        ];
        let odd = [
            Ipv4Addr::new(127, 0, 0, 1),
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::new(0, 1, 2, 3),
            Ipv4Addr::new(255, 255, 255, 255),
            *VIP.ip(),
            *OTHER_VIP.ip(),
            // No forwarding to the host itself.
            Ipv4Addr::new(192, 168, 1, 1),
        ];
        let ip = if self.chance(4) { self.pick(&odd) } else { self.pick(&known) };
        let port =
            if self.chance(5) { self.rng.u16(..) } else { self.pick(&[40000, 40001, 40002, 40003, 8080]) };
        SocketAddrV4::new(ip, port)
    }

    /// An entry of the model's table: its client, service and backend.
    fn entry(&mut self, machine: &Machine) -> Option<(SocketAddrV4, u16, u16)> {
        let live: Vec<_> = machine
            .connections
            .iter()
            .flatten()
            .filter(|entry| matches!(entry.state >> 16 & 7, 1..=6))
            .collect();
        if live.is_empty() {
            return None;
        }
        let entry = live[self.rng.usize(0..live.len())];
        Some((client_of(entry.key), (entry.key >> 48) as u16, entry.state as u16))
    }

    /// A frame of a client for a service.
    fn request(&mut self, machine: &Machine) -> Sent {
        let known = if self.chance(60) { self.entry(machine) } else { None };
        let (client, service) = match known {
            Some((client, service, _)) => (client, service),
            None => (self.client(), self.service(machine)),
        };
        let flags = self.pick(&FLAGS);
        let front = !self.chance(3);
        Sent { front, frame: self.client_frame(machine, client, service, flags), edits: Vec::new() }
    }

    fn client_frame(
        &mut self,
        machine: &Machine,
        client: SocketAddrV4,
        service: u16,
        flags: &'static str,
    ) -> Frame {
        let service = &machine.world.services[&service];
        let vip = SocketAddrV4::new(service.address, service.port);
        self.dressed(if service.protocol == 6 { tcp(client, vip, flags) } else { udp(client, vip) })
    }

    /// A frame of a backend for a client: mostly of a connection that it has.
    fn answer(&mut self, machine: &Machine) -> Sent {
        let known = if self.chance(90) { self.entry(machine) } else { None };
        let (client, backend) = match known {
            Some((client, _, backend)) => (client, backend),
            None => {
                let all: Vec<u16> = machine.world.backends.keys().copied().collect();
                (self.client(), self.pick(&all))
            }
        };
        let flags = self.pick(&REPLY_FLAGS);
        self.reply(machine, client, backend, flags).unwrap_or_else(|| self.request(machine))
    }

    fn reply(
        &mut self,
        machine: &Machine,
        client: SocketAddrV4,
        backend: u16,
        flags: &'static str,
    ) -> Option<Sent> {
        let row = machine.world.backends.get(&backend)?;
        let from = SocketAddrV4::new(row.address, row.port);
        let protocol = machine.world.services[&row.service].protocol;
        let faces_front = machine.world.next_hops.get(&row.next_hop).is_some_and(|hop| hop.interface == 10);
        let frame = if protocol == 6 { tcp(from, client, flags) } else { udp(from, client) };
        let frame = self.dressed(frame.macs(LB_BACK_MAC, backend_mac(row.address.octets()[3] - 10)));
        let front = faces_front != self.chance(4);
        Some(Sent { front, frame, edits: Vec::new() })
    }

    /// For nobody, or for a VIP on another port.
    fn stray(&mut self, _: &Machine) -> Sent {
        let to = self.pick(&[
            SocketAddrV4::new(*VIP.ip(), 81),
            VIP,
            OTHER_VIP,
            SocketAddrV4::new(*VIP.ip(), 0),
            SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 1), 80),
            backend(0),
        ]);
        let from = self.client();
        let flags = self.pick(&FLAGS);
        let frame = if self.rng.bool() { tcp(from, to, flags) } else { udp(from, to) };
        let frame = self.dressed(frame);
        let mut edits = Vec::new();
        if self.chance(30) {
            // Another protocol, an address of a group, or another EtherType.
            let at = frame.ip_offset();
            let edit = [
                Edit::Set { at: at + 9, value: self.pick(&[1, 2, 47, 132]) },
                Edit::Set { at: 0, value: 0x33 },
                Edit::Set { at: at - 1, value: self.pick(&[6, 0xdd]) },
            ];
            edits.push(self.pick(&edit));
        }
        Sent { front: self.rng.bool(), frame, edits }
    }

    /// What a segment may have besides: payload, options, tags, padding, TTLs, and checksums that are not finished.
    fn dressed(&mut self, mut frame: Frame) -> Frame {
        let len = match self.rng.u32(0..100) {
            0..40 => 0,
            40..70 => self.rng.usize(1..80),
            70..90 => self.rng.usize(80..1400),
            90..96 => self.rng.usize(1400..1475),
            _ => self.rng.usize(1475..2500),
        };
        frame.payload = std::iter::repeat_with(|| self.rng.u8(..)).take(len).collect();
        if self.chance(12) {
            frame.ip_options = vec![1; self.pick(&[4, 8, 40])];
        }
        if frame.transport == Transport::Tcp && self.chance(25) {
            frame.tcp_options = vec![1; self.pick(&[4, 12, 40])];
        }
        if self.chance(12) {
            let tags = [vec![(0x8100, 3)], vec![(0x88a8, 7), (0x8100, 9)], vec![(0x8100, 1); 3]];
            frame.tags = tags[self.rng.usize(0..3)].clone();
        }
        if self.chance(15) {
            frame.padding = self.rng.usize(1..20);
        }
        if self.chance(6) {
            frame.ttl = self.pick(&[0, 1, 2, 255]);
        }
        if self.chance(3) {
            frame.more_fragments = self.rng.bool();
            frame.fragment_offset = self.pick(&[0, 1, 185]);
        }
        match self.rng.u32(0..100) {
            0..25 => frame.checksum = Checksum::Partial,
            25..30 if frame.transport == Transport::Udp => frame.checksum = Checksum::Absent,
            30..36 => look_partial(&mut frame),
            36..40 => self.vanish(&mut frame),
            _ => {}
        }
        frame
    }

    /// Gives the payload a word by which the checksum towards a backend comes out as 0.
    fn vanish(&mut self, frame: &mut Frame) {
        if frame.payload.len() < 2 {
            frame.payload = vec![0; 2];
        }
        frame.payload[..2].fill(0);
        let n = self.rng.u8(0..3);
        let towards = frame.clone().to(backend(n));
        let check = checksum_of(&towards);
        frame.payload[..2].copy_from_slice(&check.to_be_bytes());
    }

    fn damaged(&mut self, machine: &Machine, make: fn(&mut Generator, &Machine) -> Sent) -> Op {
        let mut sent = make(self, machine);
        if self.chance(12) {
            for _ in 0..self.rng.usize(1..4) {
                let edit = self.edit(&sent.frame);
                sent.edits.push(edit);
            }
        }
        self.last = Some(sent.clone());
        Op::Frame(sent)
    }

    /// Mostly in the headers, where it matters.
    fn edit(&mut self, frame: &Frame) -> Edit {
        let ip = frame.ip_offset();
        let transport = ip + 20 + frame.ip_options.len();
        let check = transport + if frame.transport == Transport::Tcp { 16 } else { 6 };
        let whole = frame.bytes().len();
        match self.rng.u32(0..12) {
            0 => Edit::Cut { len: self.rng.usize(0..whole) },
            1 => Edit::Cut { len: self.rng.usize(ip..transport + 21) },
            2 => Edit::Set { at: ip, value: self.pick(&[0x44, 0x45, 0x46, 0x4f, 0x65, 0x40]) },
            3 => Edit::Set { at: ip + 2, value: self.pick(&[0, 1, 0xff]) },
            4 => Edit::Flip { at: ip + 3, bits: self.pick(&[1, 2, 4, 8, 0x10]) },
            5 => Edit::Set { at: transport + 12, value: self.pick(&[0, 0x40, 0x50, 0x60, 0xf0]) },
            6 => Edit::Set { at: transport + 5, value: self.pick(&[0, 7, 8, 9, 255]) },
            7 => Edit::Set { at: check + self.rng.usize(0..2), value: self.pick(&[0, 0xff]) },
            8 => Edit::Set { at: ip + 10 + self.rng.usize(0..2), value: self.pick(&[0, 0xff]) },
            9 => Edit::Flip { at: self.rng.usize(0..whole), bits: 1 << self.rng.u32(0..8) },
            _ => Edit::Flip { at: self.rng.usize(0..whole.min(transport + 20)), bits: self.rng.u8(1..) },
        }
    }

    fn time(&mut self, machine: &Machine) -> Op {
        let timeout = i32::from(machine.world.timeouts[self.rng.usize(1..16)]);
        Op::Clock(match self.rng.u32(0..100) {
            0..30 => 1,
            30..50 => self.rng.i32(2..20),
            50..60 => -self.rng.i32(1..20),
            60..90 => timeout + self.rng.i32(-2..3),
            90..95 => self.rng.i32(0..40_000),
            _ => self.rng.i32(65_000..66_000),
        })
    }

    /// Around the bounds of the histogram, the limit, and where the clock wraps; at times it goes back.
    fn micros(&mut self, machine: &Machine) -> Op {
        let by = match self.rng.u32(0..10) {
            0..6 => (64 << self.rng.u32(0..16)) + self.rng.u32(0..2),
            6 => 128_000_000 + self.rng.u32(0..2),
            7 => self.rng.u32(..),
            _ => self.rng.u32(0..64),
        };
        Op::Micros(machine.micros.wrapping_add(by).wrapping_sub(self.rng.u32(0..2)))
    }

    /// SYN, SYN-ACK, ACK, data both ways; one in four also ends.
    fn handshake(&mut self, machine: &Machine) -> Option<Op> {
        // So that most handshakes take some time.
        if self.script.is_some() && self.chance(30) {
            return Some(self.micros(machine));
        }
        let Script { client, service, stage } = self.script.take()?;
        let steps: [(bool, &str); 7] = [
            (true, "S"),
            (false, "SA"),
            (true, "A"),
            (true, "PA"),
            (false, "PA"),
            (false, "FA"),
            (true, "FA"),
        ];
        let (by_client, flags) = *steps.get(stage)?;
        let end = if stage == 4 && self.chance(75) { steps.len() } else { stage + 1 };
        let sent = if by_client {
            let frame = self.client_frame(machine, client, service, flags);
            Sent { front: true, frame, edits: Vec::new() }
        } else {
            let raw = machine.connections.iter().flatten().find(|entry| {
                client_of(entry.key) == client
                    && (entry.key >> 48) as u16 == service
                    && matches!(entry.state >> 16 & 7, 1..=6)
            })?;
            self.reply(machine, client, raw.state as u16, flags)?
        };
        self.script = Some(Script { client, service, stage: end });
        Some(Op::Frame(sent))
    }
}

fn client_of(key: u64) -> SocketAddrV4 {
    let ip = Ipv4Addr::from((key as u32).to_ne_bytes());
    SocketAddrV4::new(ip, ((key >> 32) as u16).swap_bytes())
}

/// The transport checksum as it stands in the frame.
fn checksum_of(frame: &Frame) -> u16 {
    let bytes = frame.bytes();
    let transport = frame.ip_offset() + 20 + frame.ip_options.len();
    let at = transport + if frame.transport == Transport::Tcp { 16 } else { 6 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Gives the payload a word by which the finished checksum looks like an unfinished one.
fn look_partial(frame: &mut Frame) {
    if frame.payload.len() < 2 {
        frame.payload = vec![0; 2];
    }
    frame.payload[..2].fill(0);
    let whole = u32::from(checksum_of(frame));
    let partial = u32::from(checksum_of(&frame.clone().checksum(Checksum::Partial)));
    // One's complement: what the sum has too little goes into the payload.
    let word = (whole + 0xffff - partial) % 0xffff;
    frame.payload[..2].copy_from_slice(&(word as u16).to_be_bytes());
}
