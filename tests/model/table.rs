//! The connection table: candidates, ages, look-up, and the one way in which a state word changes.

use crate::hash::{hash, lower, scale, upper};
use crate::machine::Machine;
use crate::state::{Key, Phase, State};

/// Where an entry may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    pub first: usize,
    pub second: usize,
    pub tag: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    pub bucket: usize,
    pub slot: usize,
}

pub const SLOTS: usize = 4;

/// How good a victim a slot is, before its age is looked at. Higher is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Kept,
    Unconfirmed,
    Closed,
    Expired,
    Free,
}

/// How long ago; what is close to wrapping is another CPU's newer clock.
pub fn age(now: u16, seen: u16) -> u16 {
    let age = now.wrapping_sub(seen);
    if age >= 65520 { 0 } else { age }
}

impl Machine {
    pub fn candidates(&self, key: Key) -> Candidates {
        let hash = hash(key.pack(), self.world.key[0], self.world.key[1]);
        Candidates {
            first: scale(upper(hash), self.world.buckets) as usize,
            second: scale(lower(hash), self.world.buckets) as usize,
            tag: (hash >> 5 & 0xff) as u8,
        }
    }

    pub fn state_at(&self, at: Slot) -> State {
        State::unpack(self.connections[at.bucket][at.slot].state)
    }

    /// Whether a look-up that comes to this slot takes it.
    pub fn stands_at(&self, key: Key, at: Slot) -> bool {
        let state = self.state_at(at);
        self.connections[at.bucket][at.slot].key == key.pack()
            && state.tag == self.candidates(key).tag
            && state.holds_an_entry()
    }

    /// The slots that a look-up tries, in its order.
    pub fn slots_of(&self, key: Key) -> Vec<Slot> {
        let candidates = self.candidates(key);
        let slots = |bucket| (0..SLOTS).map(move |slot| Slot { bucket, slot });
        slots(candidates.first).chain(slots(candidates.second)).collect()
    }

    pub fn look_up(&self, key: Key) -> Option<Slot> {
        self.slots_of(key).into_iter().find(|&at| self.stands_at(key, at))
    }

    pub fn timeout(&self, state: State) -> u16 {
        self.world.timeouts[state.phase.number() + if state.udp { 8 } else { 0 }]
    }

    pub fn rank(&self, state: State, now: u16) -> Rank {
        if state.phase == Phase::Free {
            Rank::Free
        } else if state.expired || age(now, state.seen) > self.timeout(state) {
            Rank::Expired
        } else if state.phase == Phase::Closed {
            Rank::Closed
        } else if state.is_unconfirmed() {
            Rank::Unconfirmed
        } else {
            Rank::Kept
        }
    }

    /// Puts a state in the place of another. Loads follow.
    pub fn swap(&mut self, at: Slot, new: State) {
        let old = self.state_at(at);
        self.connections[at.bucket][at.slot].state = new.pack();
        self.account(old, new);
    }
}
