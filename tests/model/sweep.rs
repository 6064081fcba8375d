//! "Sweep" of docs/connections.md.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::Machine;
use crate::state::{FREE, Key, Phase, State};
use crate::table::{SLOTS, Slot};

/// What a sweep has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub confirmed: u64,
    pub unconfirmed: u64,
    pub replaceable: u64,
    /// By backend: confirmed and unconfirmed ones.
    pub active: BTreeMap<u16, u64>,
}

/// An age in the walk: what is more is newer than the walk, which was held up.
pub fn age_in_walk(now: u16, seen: u16) -> u16 {
    let age = now.wrapping_sub(seen);
    if age >= 49152 { 0 } else { age }
}

impl Machine {
    /// The sweep of the running process at a time of the long clock.
    pub fn sweep(&mut self, now: u32) -> Census {
        let mut census = Census::default();
        let mut alive = BTreeSet::new();
        for bucket in 0..self.connections.len() {
            for slot in 0..SLOTS {
                let at = Slot { bucket, slot };
                if self.state_at(at).holds_an_entry() {
                    self.sweep_entry(at, now as u16, &mut census, &mut alive);
                }
            }
        }
        for key in alive {
            self.keep_fresh(key, now);
        }
        census
    }

    fn sweep_entry(&mut self, at: Slot, now: u16, census: &mut Census, alive: &mut BTreeSet<Key>) {
        let key = Key::unpack(self.connections[at.bucket][at.slot].key);
        let state = self.state_at(at);
        let over = age_in_walk(now, state.seen) > self.timeout(state);
        let next_hop = if self.valid_row(state.next_hop).is_some() { state.next_hop } else { 0 };
        let swept = self.with_counted(State { expired: state.expired || over, next_hop, ..state });
        let hidden = state.is_live() && self.is_hidden(key, at);
        let left = if hidden { FREE } else { swept };
        self.swept(state, left);
        self.swap(at, left);

        if swept.expired || swept.phase == Phase::Closed {
            census.replaceable += 1;
            return;
        }
        *census.active.entry(swept.backend).or_default() += 1;
        if swept.is_unconfirmed() {
            census.unconfirmed += 1;
            return;
        }
        census.confirmed += 1;
        if hidden {
            return;
        }
        if self.world.backends.get(&swept.backend).is_some_and(|backend| backend.sticky) {
            alive.insert(key);
        }
    }

    /// Whether the same key stands in an entry that a look-up finds earlier.
    fn is_hidden(&self, key: Key, at: Slot) -> bool {
        let candidates = self.candidates(key);
        let before = (0..at.slot).map(|slot| Slot { bucket: at.bucket, slot });
        let is_second = at.bucket == candidates.second && at.bucket != candidates.first;
        let in_first = (0..SLOTS).filter(|_| is_second).map(|slot| Slot { bucket: candidates.first, slot });
        before.chain(in_first).any(|earlier| self.stands_at(key, earlier))
    }
}
