//! The state that packets change, and the step.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::deliver::Delivery;
use crate::events::BUCKETS;
use crate::parse::{Refusal, parse};
use crate::reason::Reason;
use crate::world::{Verdict, World};

pub use crate::sweep::Census;

/// Slots of the table that remembers which senders' checksums are partial.
pub const PARTIAL_SENDERS: u32 = 4096;

/// A slot of the connection table: raw words as documented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub key: u64,
    pub state: u64,
}

/// Two counts that only grow; a load is their difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub opened: u64,
    pub ended: u64,
}

/// What is known of how a backend answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub unanswered: u32,
    pub refused: u32,
}

/// What became of a backend's connections, but for how many were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    pub closed: u64,
    pub reset: u64,
    pub expired: u64,
    pub evicted: u64,
    pub moved: u64,
    pub revived: u64,
    pub syn_retransmits: u64,
    pub rsts: u64,
    /// How many handshakes took how long.
    pub handshakes: [u64; BUCKETS],
    /// How long they took together.
    pub microseconds: u64,
}

/// When a handshake began, in microseconds. All zeros: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    pub tag: u32,
    pub began: u32,
}

/// Which backend a client had, and when by the long clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub backend: u16,
    pub last: u32,
}

/// Pairs are (packets, bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    pub connections: u64,
    pub to_backend: (u64, u64),
    pub to_client: (u64, u64),
}

/// What has become of a frame. Of one that is not translated, `frame` is as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Class and name, like "drop ttl".
    pub reason: &'static str,
    pub frame: Vec<u8>,
}

/// What is not in the table is 0 or not there.
#[derive(Clone, Debug)]
pub struct Machine {
    pub world: World,
    pub connections: Vec<[Entry; 4]>,
    /// By backend.
    pub loads: BTreeMap<u16, Load>,
    /// By backend.
    pub answers: BTreeMap<u16, Answers>,
    /// By backend.
    pub events: BTreeMap<u16, Events>,
    /// By row.
    pub handshakes: BTreeMap<u16, Handshake>,
    /// By backend: a unit of the clock, and handshakes begun in it whose time is taken. There is one CPU.
    pub timed: BTreeMap<u16, (u16, u32)>,
    /// The time by which handshakes are measured: what `lb_test_micros` holds.
    pub micros: u32,
    /// By client and service.
    pub affinity: BTreeMap<(Ipv4Addr, u16), Record>,
    pub senders: Vec<bool>,
    /// By service.
    pub rotations: BTreeMap<u16, u64>,
    /// By class and name: (packets, bytes).
    pub reasons: BTreeMap<String, (u64, u64)>,
    pub backends: BTreeMap<u16, BackendCounters>,
}

/// A frame and what is known of its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub interface: u32,
    pub frame: &'a [u8],
    /// The long clock.
    pub now: u32,
    pub random: u32,
}

impl Arrival<'_> {
    /// The table's clock: the low half of the long one.
    pub fn clock(&self) -> u16 {
        self.now as u16
    }
}

impl Machine {
    pub fn new(world: World) -> Machine {
        Machine {
            connections: vec![[Entry::default(); 4]; world.buckets as usize],
            loads: BTreeMap::new(),
            answers: BTreeMap::new(),
            events: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            timed: BTreeMap::new(),
            micros: 0,
            affinity: BTreeMap::new(),
            senders: vec![false; PARTIAL_SENDERS as usize],
            rotations: BTreeMap::new(),
            reasons: BTreeMap::new(),
            backends: BTreeMap::new(),
            world,
        }
    }

    /// One frame in by an interface; `now` is the long clock, `random` what `lb_test_random` holds.
    pub fn packet(&mut self, interface: u32, frame: &[u8], now: u32, random: u32) -> Outcome {
        let arrival = Arrival { interface, frame, now, random };
        match self.handle(&arrival) {
            Ok(delivery) => {
                self.count(delivery.reason, frame.len());
                self.count_for_backend(&delivery, frame.len());
                Outcome { verdict: delivery.verdict, reason: delivery.reason.name(), frame: delivery.frame }
            }
            Err(reason) => {
                self.count(reason, frame.len());
                let verdict = if reason.class() == "pass" { Verdict::Pass } else { Verdict::Drop };
                Outcome { verdict, reason: reason.name(), frame: frame.to_vec() }
            }
        }
    }

    /// Step 2 of docs/packets.md, "Whose frame is it?"
    fn handle(&mut self, arrival: &Arrival) -> Result<Delivery, Reason> {
        let packet = match parse(arrival.frame) {
            Ok(packet) => packet,
            Err(Refusal::Always(reason)) => return Err(reason),
            Err(Refusal::ForVip { reason, destination, protocol }) => {
                let ours = self.world.is_vip(destination, protocol);
                return Err(if ours { reason } else { Reason::PassNoService });
            }
        };
        if packet.first_fragment && self.world.is_vip(packet.destination, packet.protocol) {
            return Err(Reason::DropFragment);
        }
        let service = self.world.service_at(packet.destination, packet.destination_port, packet.protocol);
        if let Some(service) = service {
            return self.client_packet(arrival, &packet, service);
        }
        let origin = (packet.source, packet.source_port, packet.protocol);
        if let Some(pairs) = self.world.origins.get(&origin).cloned() {
            return self.reply(arrival, &packet, &pairs);
        }
        Err(Reason::PassNoService)
    }

    fn count(&mut self, reason: Reason, bytes: usize) {
        let counter = self.reasons.entry(reason.name().to_owned()).or_default();
        counter.0 += 1;
        counter.1 += bytes as u64;
    }

    fn count_for_backend(&mut self, delivery: &Delivery, bytes: usize) {
        let counters = self.backends.entry(delivery.backend).or_default();
        let counter = if delivery.to_backend { &mut counters.to_backend } else { &mut counters.to_client };
        counter.0 += 1;
        counter.1 += bytes as u64;
    }
}
