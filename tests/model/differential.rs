//! The same things happen to the program in the kernel and to the model; after each of them both must agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use xdp_lb::dataplane::types::{
    lb_backend_answers, lb_backend_events, lb_backend_load, lb_backend_state, lb_bucket, lb_handshake,
    lb_service_state,
};
use xdp_lb::dataplane::{Egress, Reason};

use super::machine::{Answers, BackendCounters, Entry, Events, Handshake, Machine, Record};
use super::packets::lab::{Lab, Verdict as Seen, backend_mac};
use super::scenario::{NEIGHBOURS, Scenario, refresh, set_valid, world};
use super::sequence::{Hop, Op, Sent, hex};
use super::world::{Mac, Sends, State, Verdict, World};

/// The clock at the beginning of each sequence.
pub const START: u32 = 100_000;

type Reasons = BTreeMap<String, (u64, u64)>;

/// The program and the model, side by side.
pub struct Twin<'a> {
    pub lab: &'a mut Lab,
    pub machine: Machine,
    pub now: u32,
    pub random: u32,
    fresh: World,
    /// The neighbours' rows, where they have some.
    rows: Vec<u16>,
    met: BTreeMap<&'static str, u64>,
    reasons: Reasons,
    counters: BTreeMap<u16, BackendCounters>,
}

/// Where they do not agree. `row` is what the packet table must say, by the model.
pub struct Disagreement {
    pub what: String,
    pub row: String,
}

impl Twin<'_> {
    pub fn new<'a>(lab: &'a mut Lab, scenario: &Scenario) -> Twin<'a> {
        let mut fresh = world(lab, scenario);
        for (interface, sends) in [(lab.front, Some((true, true))), (lab.back, Some((true, true)))] {
            set_egress(lab, &mut fresh, interface, sends);
        }
        refresh(&mut fresh, lab);
        let rows =
            NEIGHBOURS.iter().filter_map(|mac| fresh.neighbours.get(&(lab.front, *mac)).copied()).collect();
        let machine = Machine::new(fresh.clone());
        let mut twin = Twin {
            lab,
            machine,
            now: START,
            random: 0,
            fresh,
            rows,
            met: BTreeMap::new(),
            reasons: Reasons::new(),
            counters: BTreeMap::new(),
        };
        twin.reset();
        twin
    }

    /// Everything as it was after loading.
    pub fn reset(&mut self) {
        for row in 0..self.lab.plane.backends().len() {
            self.set_state(row, State::Up);
            self.set_hop(row, Hop::Known);
        }
        for service in self.fresh.services.keys() {
            self.lab.pass_empty(*service, false);
        }
        for index in &self.rows {
            set_valid(self.lab, *index, true);
        }
        for interface in [self.lab.front, self.lab.back] {
            self.lab.egress(interface, Some(Egress::DIRECT));
        }
        let tables = self.lab.plane.tables();
        for bucket in 0..tables.connections.len() {
            tables.connections.set(bucket, lb_bucket::default()).unwrap();
        }
        for index in self.fresh.backends.keys() {
            tables.backend_loads.set(usize::from(*index), lb_backend_load::default()).unwrap();
            tables.backend_answers.set(usize::from(*index), lb_backend_answers::default()).unwrap();
            tables.backend_events.set(usize::from(*index), lb_backend_events::default()).unwrap();
        }
        // All that were written: the model would have disagreed with others.
        for row in self.machine.handshakes.keys() {
            tables.handshakes.set(usize::from(*row), lb_handshake::default()).unwrap();
        }
        for index in self.fresh.services.keys() {
            tables.service_states.set(usize::from(*index), lb_service_state::default()).unwrap();
        }
        let backends = self.fresh.backends.keys().copied().collect();
        tables.affinity().forget_backends(&backends).unwrap();
        self.lab.plane.clear_globals().unwrap();
        (self.now, self.random) = (START, 0);
        self.lab.plane.set_test_clock(START).unwrap();
        refresh(&mut self.fresh, self.lab);
        self.machine = Machine::new(self.fresh.clone());
        self.met.clear();
        (self.reasons, self.counters) = (self.reasons_now(), self.counters_now());
    }

    /// Lets one thing happen to both.
    pub fn step(&mut self, op: &Op) -> Result<String, Disagreement> {
        let row = match op {
            Op::Frame(sent) => self.frame(sent)?,
            Op::Clock(by) => {
                self.now = self.now.wrapping_add_signed(*by);
                self.lab.plane.set_test_clock(self.now).unwrap();
                format!("lab.long_clock({});", self.now)
            }
            Op::Random(number) => {
                self.random = *number;
                self.lab.plane.set_test_random(*number).unwrap();
                format!("lab.plane.set_test_random({number}).unwrap();")
            }
            Op::Micros(now) => {
                self.machine.micros = *now;
                self.lab.plane.set_test_micros(*now).unwrap();
                format!("lab.plane.set_test_micros({now}).unwrap();")
            }
            Op::Sweep => self.sweep()?,
            Op::State { row, state } => {
                self.set_state(*row, *state);
                refresh(&mut self.machine.world, self.lab);
                format!("lab.state({row}, {});", state_name(*state))
            }
            Op::Empty { service, pass } => {
                self.lab.pass_empty(*service, *pass);
                refresh(&mut self.machine.world, self.lab);
                format!("lab.pass_empty({service}, {pass});")
            }
            Op::Hop { row, hop } => {
                self.set_hop(*row, *hop);
                refresh(&mut self.machine.world, self.lab);
                let (mac, interface) = self.way(*row, *hop);
                format!("let row = lab.row({row});\n        lab.reach(row, {mac:?}, {interface});")
            }
            Op::Egress { front, sends } => {
                let interface = if *front { self.lab.front } else { self.lab.back };
                set_egress(self.lab, &mut self.machine.world, interface, *sends);
                refresh(&mut self.machine.world, self.lab);
                let sends = sends.map(|(redirect, tx)| Egress { redirect, tx });
                format!("lab.egress({interface}, {sends:?});")
            }
            Op::Neighbour { which, valid } => match self.rows.get(*which) {
                None => String::new(),
                Some(index) => {
                    set_valid(self.lab, *index, *valid);
                    refresh(&mut self.machine.world, self.lab);
                    let change = if *valid { "fetch_or(1" } else { "fetch_and(!1" };
                    format!(
                        "let flags = lab.plane.tables().nexthops.byte({index}, std::mem::offset_of!(lb_nexthop, flags));\n        \
                         flags.unwrap().{change}, std::sync::atomic::Ordering::Relaxed);"
                    )
                }
            },
        };
        match self.table_differences() {
            what if what.is_empty() => Ok(row),
            what => Err(Disagreement { what, row }),
        }
    }

    fn frame(&mut self, sent: &Sent) -> Result<String, Disagreement> {
        let (name, interface) = if sent.front { ("front", self.lab.front) } else { ("back", self.lab.back) };
        let bytes = sent.bytes();
        let outcome = self.machine.packet(interface, &bytes, self.now, self.random);
        *self.met.entry(outcome.reason).or_default() += 1;
        let program = self.lab.plane.program(self.lab.profile).unwrap();
        let (verdict, out) = program.test_run(&bytes, interface).unwrap();
        let then = format!("(Verdict::{:?}, {:?})", outcome.verdict, outcome.reason);
        let row = match outcome.frame == bytes {
            true => format!("lab.untouched(\"..\", lab.{name}, {}, {then});", sent.row()),
            false => format!("lab.expect(\"..\", lab.{name}, {}, {then}, &{:?});", sent.row(), outcome.frame),
        };
        let expected = match outcome.verdict {
            Verdict::Drop => Seen::Drop,
            Verdict::Pass => Seen::Pass,
            Verdict::Tx => Seen::Tx,
            Verdict::Redirect => Seen::Redirect,
        };
        if verdict != expected as u32 {
            return Err(Disagreement { what: format!("the program's verdict is {verdict}"), row });
        }
        // What becomes of a dropped frame's bytes nobody sees.
        if outcome.verdict != Verdict::Drop && out != outcome.frame {
            return Err(Disagreement { what: format!("the program makes of it {}", hex(&out)), row });
        }
        Ok(row)
    }

    fn sweep(&mut self) -> Result<String, Disagreement> {
        let census = self.lab.sweep(self.now);
        let model = self.machine.sweep(self.now);
        let row = format!("lab.sweep({});", self.now);
        let active = |index: u16| u64::from(census.active.get(usize::from(index)).copied().unwrap_or(0));
        let differs = (census.confirmed, census.unconfirmed, census.replaceable)
            != (model.confirmed, model.unconfirmed, model.replaceable)
            || self
                .fresh
                .backends
                .keys()
                .any(|index| active(*index) != model.active.get(index).copied().unwrap_or(0))
            || census.corrected != 0;
        if differs {
            let what = format!(
                "the sweep counts {} confirmed, {} unconfirmed, {} replaceable, corrects {}; the model {model:?}",
                census.confirmed, census.unconfirmed, census.replaceable, census.corrected
            );
            return Err(Disagreement { what, row });
        }
        Ok(row)
    }

    fn set_state(&self, row: usize, state: State) {
        let state = match state {
            State::Up => lb_backend_state::LB_BACKEND_UP,
            State::Drain => lb_backend_state::LB_BACKEND_DRAIN,
            State::Down => lb_backend_state::LB_BACKEND_DOWN,
            State::Reset => lb_backend_state::LB_BACKEND_RESET,
            State::Disabled => lb_backend_state::LB_BACKEND_DISABLED,
        };
        self.lab.state(row, state);
    }

    fn set_hop(&mut self, row: usize, hop: Hop) {
        let (mac, interface) = self.way(row, hop);
        self.lab.reach(self.lab.row(row), mac, interface);
    }

    fn way(&self, row: usize, hop: Hop) -> (Option<Mac>, u32) {
        let mac = backend_mac(self.lab.row(row).address.ip().octets()[3] - 10);
        match hop {
            Hop::Known => (Some(mac), self.lab.back),
            Hop::Unknown => (None, self.lab.back),
            Hop::Front => (Some(mac), self.lab.front),
        }
    }

    /// Connections, loads, answers, events and rotations are looked at after each step; they are mapped memory.
    fn table_differences(&self) -> String {
        let tables = self.lab.plane.tables();
        let mut what = String::new();
        for (at, bucket) in self.machine.connections.iter().enumerate() {
            let seen = tables.connections.get(at).unwrap();
            for (slot, (entry, seen)) in bucket.iter().zip(seen.conn).enumerate() {
                let seen = Entry { key: seen.key, state: seen.state };
                // A key without an entry means nothing.
                if entry.state != seen.state || (is_entry(entry.state) && entry.key != seen.key) {
                    let _ = write!(what, "bucket {at} slot {slot}: program {seen:x?}, model {entry:x?}; ");
                }
            }
        }
        for index in self.fresh.backends.keys() {
            let seen = tables.backend_loads.get(usize::from(*index)).unwrap();
            let load = self.machine.loads.get(index).copied().unwrap_or_default();
            if (seen.opened, seen.ended) != (load.opened, load.ended) {
                let _ =
                    write!(what, "load of {index}: program {}-{}, model {load:?}; ", seen.opened, seen.ended);
            }
            let seen = tables.backend_answers.get(usize::from(*index)).unwrap();
            let seen = Answers { unanswered: seen.unanswered, refused: seen.refused };
            let answers = self.machine.answers.get(index).copied().unwrap_or_default();
            if seen != answers {
                let _ = write!(what, "answers of {index}: program {seen:?}, model {answers:?}; ");
            }
            let seen = events(&tables.backend_events.get(usize::from(*index)).unwrap());
            let model = self.machine.events.get(index).copied().unwrap_or_default();
            if seen != model {
                let _ = write!(what, "events of {index}: program {seen:?}, model {model:?}; ");
            }
        }
        for (row, model) in &self.machine.handshakes {
            let word = tables.handshakes.get(usize::from(*row)).unwrap().word;
            let seen = Handshake { tag: (word >> 32) as u32, began: word as u32 };
            if seen != *model {
                let _ = write!(what, "handshake {row}: program {seen:x?}, model {model:x?}; ");
            }
        }
        for index in self.fresh.services.keys() {
            let seen = tables.service_states.get(usize::from(*index)).unwrap().rotation;
            let rotation = self.machine.rotations.get(index).copied().unwrap_or(0);
            if seen != rotation {
                let _ = write!(what, "rotation of {index}: program {seen}, model {rotation}; ");
            }
        }
        what
    }

    /// Counters and records are looked at once, in the end: each costs a system call.
    pub fn finish(&mut self) -> Result<(), Disagreement> {
        let mut what = String::new();
        let reasons = self.reasons_now();
        for (name, now) in &reasons {
            let before = self.reasons[name];
            let seen = (now.0 - before.0, now.1 - before.1);
            let model = self.machine.reasons.get(name).copied().unwrap_or_default();
            if seen != model {
                let _ = write!(what, "{name} (packets, bytes): program {seen:?}, model {model:?}; ");
            }
        }
        for (index, now) in self.counters_now() {
            let seen = difference(now, self.counters[&index]);
            let model = self.machine.backends.get(&index).copied().unwrap_or_default();
            if seen != model {
                let _ = write!(what, "counters of backend {index}: program {seen:?}, model {model:?}; ");
            }
        }
        let seen = self.records();
        if seen != self.machine.affinity {
            let _ = write!(what, "clients' records: program {seen:?}, model {:?}; ", self.machine.affinity);
        }
        for (index, came, went) in self.machine.imbalances() {
            let _ = write!(what, "backend {index}: {came} opened or revived, {went} ended or live; ");
        }
        let row = "// in the end".to_owned();
        if what.is_empty() { Ok(()) } else { Err(Disagreement { what, row }) }
    }

    /// How many packets of the sequence met each reason.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.met.clone()
    }

    fn records(&self) -> BTreeMap<(Ipv4Addr, u16), Record> {
        let records = self.lab.plane.tables().affinity().records().unwrap();
        records
            .into_iter()
            .map(|(client, seen)| {
                ((client.address, client.service), Record { backend: seen.backend, last: seen.last })
            })
            .collect()
    }

    fn reasons_now(&self) -> Reasons {
        let count = |reason: &Reason| {
            let counter = self.lab.plane.tables().reason_counter(reason.code()).unwrap();
            (format!("{} {}", reason.class.name(), reason.name), (counter.packets, counter.bytes))
        };
        Reason::ALL.iter().map(count).collect()
    }

    fn counters_now(&self) -> BTreeMap<u16, BackendCounters> {
        let count = |index: &u16| {
            let seen = self.lab.plane.tables().backend_counters(*index).unwrap();
            let counters = BackendCounters {
                connections: seen.connections,
                to_backend: (seen.to_backend.packets, seen.to_backend.bytes),
                to_client: (seen.to_client.packets, seen.to_client.bytes),
            };
            (*index, counters)
        };
        self.fresh.backends.keys().map(count).collect()
    }
}

fn events(row: &lb_backend_events) -> Events {
    Events {
        closed: row.closed,
        reset: row.reset,
        expired: row.expired,
        evicted: row.evicted,
        moved: row.moved,
        revived: row.revived,
        syn_retransmits: row.syn_retransmits,
        rsts: row.rsts,
        handshakes: row.handshake.bucket,
        microseconds: row.handshake.microseconds,
    }
}

fn is_entry(state: u64) -> bool {
    (1..=6).contains(&(state >> 16 & 7))
}

fn difference(now: BackendCounters, before: BackendCounters) -> BackendCounters {
    let minus = |now: (u64, u64), before: (u64, u64)| (now.0 - before.0, now.1 - before.1);
    BackendCounters {
        connections: now.connections - before.connections,
        to_backend: minus(now.to_backend, before.to_backend),
        to_client: minus(now.to_client, before.to_client),
    }
}

fn set_egress(lab: &mut Lab, world: &mut World, interface: u32, sends: Option<(bool, bool)>) {
    lab.egress(interface, sends.map(|(redirect, tx)| Egress { redirect, tx }));
    match sends {
        Some((redirect, tx)) => {
            world.egresses.insert(interface, Sends { no_redirect: !redirect, no_tx: !tx })
        }
        None => world.egresses.remove(&interface),
    };
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Up => "lb_backend_state::LB_BACKEND_UP",
        State::Drain => "lb_backend_state::LB_BACKEND_DRAIN",
        State::Down => "lb_backend_state::LB_BACKEND_DOWN",
        State::Reset => "lb_backend_state::LB_BACKEND_RESET",
        State::Disabled => "lb_backend_state::LB_BACKEND_DISABLED",
    }
}
