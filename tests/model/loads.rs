//! "Loads" of docs/connections.md: what is counted, and who has the least.

use crate::hash::scale;
use crate::machine::{Load, Machine};
use crate::state::State;
use crate::world::Service;

/// Slots of the ring that are looked at for the next of equally loaded members.
const WALK: usize = 256;

impl Load {
    pub fn value(self) -> u64 {
        let value = self.opened.wrapping_sub(self.ended) as i64;
        value.max(0) as u64
    }
}

impl Machine {
    /// A state with the counted bit that it should have.
    pub fn with_counted(&self, state: State) -> State {
        let asked_for = self.world.backends.get(&state.backend).is_some_and(|backend| backend.counted);
        let counted = if !state.is_live() {
            false
        } else if asked_for {
            true
        } else {
            state.counted
        };
        State { counted, ..state }
    }

    /// What follows a swap from one state to another.
    pub fn account(&mut self, old: State, new: State) {
        let moved = old.backend != new.backend;
        if old.counted && (!new.counted || moved) {
            self.loads.entry(old.backend).or_default().ended += 1;
        }
        if new.counted && (!old.counted || moved) {
            self.loads.entry(new.backend).or_default().opened += 1;
        }
    }

    /// Whether a backend has less than another, for its weight.
    fn has_less(&self, a: u16, b: u16) -> bool {
        let load = |index| u128::from(self.loads.get(index).copied().unwrap_or_default().value());
        let weight = |index| self.world.backends.get(index).map_or(0, |backend| u128::from(backend.weight));
        load(&a) * weight(&b) < load(&b) * weight(&a)
    }

    /// The backend that is tried first with least connections, if any takes part.
    pub fn least_loaded(&self, index: u16, service: &Service, position: usize, random: u32) -> Option<u16> {
        if service.members.is_empty() {
            return self.less_of_two(index, &service.ring, position, random);
        }
        let members: Vec<u16> =
            service.members.iter().copied().filter(|&member| self.world.is_up(index, member)).collect();
        let has_least = |&candidate: &u16| !members.iter().any(|&other| self.has_less(other, candidate));
        let least: Vec<u16> = members.iter().copied().filter(has_least).collect();
        let first = *least.first()?;
        if least.len() == 1 {
            return Some(first);
        }
        // Others have the same: whose turn is it?
        let length = service.ring.len();
        for step in 0..length.min(WALK) {
            let backend = service.ring[(position + step) % length];
            if self.world.is_up(index, backend) && !self.has_less(first, backend) {
                return Some(backend);
            }
        }
        Some(first)
    }

    fn less_of_two(&self, index: u16, ring: &[u16], position: usize, random: u32) -> Option<u16> {
        let first = ring[position];
        let second = ring[scale(random, ring.len() as u32) as usize];
        match (self.world.is_up(index, first), self.world.is_up(index, second)) {
            (true, true) => Some(if self.has_less(second, first) { second } else { first }),
            (true, false) => Some(first),
            (false, true) => Some(second),
            (false, false) => None,
        }
    }
}
