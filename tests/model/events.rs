//! "Events" of docs/connections.md.

use crate::hash::hash;
use crate::machine::{Events, Handshake, Machine};
use crate::parse::{ACK, Packet, RST, SYN, TCP};
use crate::state::{Key, Phase, State};
use crate::table::Rank;

/// Microseconds: what took longer is not counted.
const LIMIT: u32 = 128_000_000;
/// Handshakes of a backend whose time is taken.
const TIMED_PER_UNIT: u32 = 256;
/// Of a histogram; the last one has no bound.
pub const BUCKETS: usize = 16;

/// The bucket of a time in microseconds.
pub fn bucket_of(took: u32) -> usize {
    (0..BUCKETS - 1).find(|&bucket| took <= 64 << bucket).unwrap_or(BUCKETS - 1)
}

impl Machine {
    fn events_of(&mut self, backend: u16) -> &mut Events {
        self.events.entry(backend).or_default()
    }

    /// An entry of this backend was inserted, or put in the place of another.
    pub fn opened(&mut self, backend: u16) {
        self.backends.entry(backend).or_default().connections += 1;
    }

    /// A packet has made another state of the one that was read.
    pub fn happened(&mut self, old: State, new: State, packet: &Packet) {
        let events = self.events_of(new.backend);
        if old.expired && !new.expired {
            events.revived += 1;
        }
        if old.phase != Phase::Closed && new.phase == Phase::Closed {
            let how = if packet.has(RST) { &mut events.reset } else { &mut events.closed };
            *how += 1;
        }
    }

    /// An entry's slot was given to another.
    pub fn gave_way(&mut self, old: State, now: u16) {
        if !old.is_live() {
            return;
        }
        let over = self.rank(old, now) == Rank::Expired;
        let events = self.events_of(old.backend);
        let how = if over { &mut events.expired } else { &mut events.evicted };
        *how += 1;
    }

    /// An entry was replaced in its slot.
    pub fn moved(&mut self, old: State) {
        if old.is_live() {
            self.events_of(old.backend).moved += 1;
        }
    }

    /// A sweep has made another state of one.
    pub fn swept(&mut self, old: State, new: State) {
        if !old.is_live() || new.is_live() {
            return;
        }
        let events = self.events_of(old.backend);
        let how = if new.expired { &mut events.expired } else { &mut events.evicted };
        *how += 1;
    }

    /// A packet of a client goes on with an entry.
    pub fn went_on(&mut self, state: State, packet: &Packet) {
        let opens = packet.has(SYN) && !packet.has(ACK) && !packet.has(RST);
        if packet.protocol == TCP && opens && state.is_unconfirmed() {
            self.events_of(state.backend).syn_retransmits += 1;
        }
    }

    /// A packet of the backend meets its entry.
    pub fn replied(&mut self, state: State, packet: &Packet) {
        if packet.protocol == TCP && packet.has(RST) {
            self.events_of(state.backend).rsts += 1;
        }
    }

    /// Row and tag of a key in the table of handshakes.
    pub fn handshake_of(&self, key: Key) -> (u16, u32) {
        let hash = hash(key.pack(), self.world.key[0], self.world.key[1]);
        (((hash ^ hash >> 32) % 65536) as u16, (hash >> 16) as u32 | 1)
    }

    /// A SYN has made an entry.
    pub fn handshake_begins(&mut self, key: Key, backend: u16, now: u16) {
        let timed = self.timed.entry(backend).or_insert((now, 0));
        if timed.0 != now {
            *timed = (now, 0);
        }
        if timed.1 < TIMED_PER_UNIT {
            timed.1 += 1;
            let (row, tag) = self.handshake_of(key);
            self.handshakes.insert(row, Handshake { tag, began: self.micros });
        }
    }

    /// The SYN-ACK has come.
    pub fn handshake_ends(&mut self, key: Key, backend: u16) {
        let (row, tag) = self.handshake_of(key);
        let Some(began) = self.handshakes.get(&row).filter(|there| there.tag == tag).map(|there| there.began)
        else {
            return;
        };
        self.handshakes.insert(row, Handshake::default());
        let took = self.micros.wrapping_sub(began);
        if took <= LIMIT {
            let events = self.events_of(backend);
            events.handshakes[bucket_of(took)] += 1;
            events.microseconds += u64::from(took);
        }
    }
}

/// Every connection that was opened lives, or has ended in one way.
impl Machine {
    /// What came to a backend and what has become of it, if these are not the same.
    pub fn imbalances(&self) -> Vec<(u16, u64, u64)> {
        let live = |backend: u16| {
            let states = self.connections.iter().flatten().map(|entry| State::unpack(entry.state));
            states.filter(|state| state.is_live() && state.backend == backend).count() as u64
        };
        let balance = |&backend: &u16| {
            let opened = self.backends.get(&backend).map_or(0, |counters| counters.connections);
            let events = self.events.get(&backend).copied().unwrap_or_default();
            let ended = events.closed + events.reset + events.expired + events.evicted + events.moved;
            (backend, opened + events.revived, ended + live(backend))
        };
        self.world.backends.keys().map(balance).filter(|(_, came, went)| came != went).collect()
    }

    pub fn check_balance(&self) {
        assert_eq!(self.imbalances(), []);
    }
}
