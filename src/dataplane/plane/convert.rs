//! Carries the entries of one connection table over into another while packets use either.

use std::sync::atomic::Ordering;

use crate::dataplane::connections::State;
use crate::dataplane::hash::{candidates, hash};
use crate::dataplane::mapped::Rows;
use crate::dataplane::types::{lb_bucket, lb_constants, lb_phase, lb_settings, lb_state_layout as layout};
use crate::dataplane::usage::{SLOTS, Usage, entry, slot};

const SEEN: u64 = 0xffff << layout::LB_STATE_SEEN_SHIFT.0;
const TAG: u64 = 0xff << layout::LB_STATE_TAG_SHIFT.0;

/// How much an entry is worth, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Closed, or over its timeout.
    Replaceable,
    /// Packets of one side only.
    Unconfirmed,
    /// A connection.
    Confirmed,
}

fn worth(state: State) -> Worth {
    match state.phase() {
        _ if state.expired() => Worth::Replaceable,
        lb_phase::LB_PHASE_FREE | lb_phase::LB_PHASE_CLOSED | lb_phase::LB_PHASE_CLAIMED => {
            Worth::Replaceable
        }
        lb_phase::LB_PHASE_UNCONFIRMED | lb_phase::LB_PHASE_ANSWERED => Worth::Unconfirmed,
        _ => Worth::Confirmed,
    }
}

/// A table whose entries are to be carried over.
pub struct OldTable {
    rows: Rows<lb_bucket>,
    /// The state word that each slot was carried over with; 0: it was not.
    carried: Vec<u64>,
}

/// The table they are carried into.
pub struct NewTable<'a> {
    /// Its buckets.
    pub rows: &'a Rows<lb_bucket>,
    /// How keys are placed in it.
    pub settings: &'a lb_settings,
}

impl OldTable {
    pub fn new(rows: Rows<lb_bucket>) -> OldTable {
        let slots = rows.len() * SLOTS;
        OldTable { rows, carried: vec![0; slots] }
    }

    /// What its entries name.
    pub fn usage(&self) -> Usage {
        Usage::of(&self.rows, |_, _| false, |_| {})
    }

    /// Carries over all entries, those that are worth most first. Returns how many confirmed ones found no place.
    pub fn carry(&mut self, new: &NewTable<'_>) -> u64 {
        let mut lost = 0;
        for wanted in [Worth::Confirmed, Worth::Unconfirmed, Worth::Replaceable] {
            self.each(|key, state, carried| {
                if worth(state) == wanted && *carried == 0 {
                    if new.insert(key, state) {
                        *carried = state.0;
                    } else {
                        lost += u64::from(wanted == Worth::Confirmed);
                    }
                }
            });
        }
        lost
    }

    /// Carries over what has changed since, once no packet uses the old table any more. What packets have changed in the new
    /// one meanwhile is newer, and stays.
    pub fn catch_up(&mut self, new: &NewTable<'_>) {
        self.each(|key, state, carried| {
            if (state.0 ^ *carried) & !SEEN != 0
                && !new.change(key, *carried, state)
                && new.insert(key, state)
            {
                *carried = state.0;
            }
        });
    }

    fn each(&mut self, mut each: impl FnMut(u64, State, &mut u64)) {
        for bucket in 0..self.rows.len() {
            for at in 0..SLOTS {
                let Some((key, state)) = slot(&self.rows, bucket, at) else { continue };
                if let Some((key, state)) = entry(key, state) {
                    each(key, state, &mut self.carried[bucket * SLOTS + at]);
                }
            }
        }
    }
}

impl NewTable<'_> {
    fn hash(&self, key: u64) -> u64 {
        hash(key, [self.settings.key[0], self.settings.key[1]])
    }

    fn buckets(&self, key: u64) -> [usize; 2] {
        candidates(self.hash(key), self.settings.buckets)
    }

    /// The state with the tag that the key has in this table.
    fn tagged(&self, key: u64, state: State) -> State {
        let tag = u64::from((self.hash(key) >> lb_constants::LB_TAG_SHIFT.0) as u8);
        State(state.0 & !TAG | tag << layout::LB_STATE_TAG_SHIFT.0)
    }

    /// The slot of an entry.
    pub fn find(&self, key: u64) -> Option<(usize, usize, State)> {
        let [first, second] = self.buckets(key);
        [first, second].into_iter().flat_map(|bucket| (0..SLOTS).map(move |at| (bucket, at))).find_map(
            |(bucket, at)| {
                let (label, state) =
                    slot(self.rows, bucket, at).and_then(|(key, state)| entry(key, state))?;
                (label == key).then_some((bucket, at, state))
            },
        )
    }

    /// Gives an entry that is there another state, if it is still as it was carried over. `false`: it is not there.
    fn change(&self, key: u64, carried: u64, state: State) -> bool {
        let Some((bucket, at, now)) = self.find(key) else { return false };
        let is_as_carried = (self.tagged(key, State(carried)).0 ^ now.0) & !SEEN == 0;
        if let (true, Some((_, word))) = (is_as_carried, slot(self.rows, bucket, at)) {
            let new = self.tagged(key, state).0 & !SEEN | now.0 & SEEN;
            // A swap that fails met a packet, which knows better.
            let _ = word.compare_exchange(now.0, new, Ordering::AcqRel, Ordering::Relaxed);
        }
        true
    }

    /// Puts an entry into a slot that is free or worth less, as packets do: claim, key, state. `true` if it is there.
    pub fn insert(&self, key: u64, state: State) -> bool {
        const TRIES: usize = 3;
        if self.find(key).is_some() {
            return true;
        }
        let claimed =
            u64::from(lb_phase::LB_PHASE_CLAIMED.0) << layout::LB_STATE_PHASE_SHIFT.0 | state.0 & SEEN;
        for _ in 0..TRIES {
            let Some((bucket, at, old)) = self.victim(key, worth(state)) else { return false };
            let Some((label, word)) = slot(self.rows, bucket, at) else { return false };
            if word.compare_exchange(old, claimed, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            label.store(key, Ordering::Release);
            let state = self.tagged(key, state).0;
            return word.compare_exchange(claimed, state, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        }
        false
    }

    /// The slot that an entry is put into, and what is in it: of the two buckets' the least worth; a free one in the first
    /// bucket while that has two left besides, else in the emptier one.
    fn victim(&self, key: u64, worth_in: Worth) -> Option<(usize, usize, u64)> {
        let [first, second] = self.buckets(key);
        let states = |bucket: usize| {
            (0..SLOTS).filter_map(move |at| {
                let word = slot(self.rows, bucket, at)?.1.load(Ordering::Acquire);
                Some((bucket, at, word))
            })
        };
        let is_free = |word: u64| State(word).phase() == lb_phase::LB_PHASE_FREE;
        let free = |bucket: usize| states(bucket).filter(|(.., word)| is_free(*word)).count();
        let order = match free(first) + 1 >= SLOTS || free(first) >= free(second) {
            true => [first, second],
            false => [second, first],
        };
        let all: Vec<_> = order.into_iter().flat_map(states).collect();
        let is_claimed = |word: u64| State(word).phase() == lb_phase::LB_PHASE_CLAIMED;
        all.iter().find(|(.., word)| is_free(*word)).copied().or_else(|| {
            let least = all.iter().filter(|(.., word)| !is_claimed(*word));
            least
                .min_by_key(|(.., word)| worth(State(*word)))
                .filter(|(.., word)| worth(State(*word)) < worth_in)
                .copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::{MapHandle, MapType};

    use super::*;

    fn table(buckets: u32) -> Rows<lb_bucket> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        let name = Some("connections");
        Rows::map(MapHandle::create(MapType::Array, name, 4, 64, buckets, &options).unwrap()).unwrap()
    }

    fn settings(buckets: u32, key: u64) -> lb_settings {
        lb_settings { buckets, key: [key, !key, 0, 0], ..Default::default() }
    }

    fn state(phase: lb_phase, backend: u16) -> State {
        State(u64::from(phase.0) << layout::LB_STATE_PHASE_SHIFT.0 | u64::from(backend))
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_entries_are_carried_over_into_a_table_of_another_size_and_key() {
        let (rows, old_settings) = (table(1000), settings(1000, 1));
        let filled = NewTable { rows: &rows, settings: &old_settings };
        for key in 1..=1000u64 {
            assert!(filled.insert(key, state(lb_phase::LB_PHASE_ESTABLISHED, key as u16)));
        }
        let mut old = OldTable::new(rows);
        for (buckets, key) in [(400, 1), (5000, 2), (1000, 1)] {
            let (rows, settings) = (table(buckets), settings(buckets, key));
            let new = NewTable { rows: &rows, settings: &settings };
            old.carried.fill(0);
            assert_eq!(old.carry(&new), 0);
            for key in 1..=1000u64 {
                let (.., found) = new.find(key).unwrap();
                assert_eq!((found.backend(), found.phase()), (key as u16, lb_phase::LB_PHASE_ESTABLISHED));
            }
        }
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_confirmed_ones_come_first_where_room_is_short() {
        let (rows, old_settings) = (table(100), settings(100, 1));
        let filled = NewTable { rows: &rows, settings: &old_settings };
        for key in 1..=30u64 {
            filled.insert(key, state(lb_phase::LB_PHASE_CLOSED, 1));
            filled.insert(key + 100, state(lb_phase::LB_PHASE_UNCONFIRMED, 2));
            filled.insert(key + 200, state(lb_phase::LB_PHASE_ESTABLISHED, 3));
        }
        let mut old = OldTable::new(rows);
        let (rows, settings) = (table(4), settings(4, 1));
        let new = NewTable { rows: &rows, settings: &settings };
        let lost = old.carry(&new);
        let found = (201..=230u64).filter(|key| new.find(*key).is_some()).count() as u64;
        assert_eq!(found + lost, 30);
        assert!(found >= 14, "{found} in 16 slots");
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_what_changed_since_is_caught_up_with_unless_the_new_table_is_newer() {
        let (rows, old_settings) = (table(10), settings(10, 1));
        let filled = NewTable { rows: &rows, settings: &old_settings };
        let [answered, established] = [lb_phase::LB_PHASE_ANSWERED, lb_phase::LB_PHASE_ESTABLISHED];
        (1..=3u64).for_each(|key| assert!(filled.insert(key, state(answered, 7))));
        let mut old = OldTable::new(rows);
        let (rows, settings) = (table(20), settings(20, 1));
        let new = NewTable { rows: &rows, settings: &settings };
        assert_eq!(old.carry(&new), 0);

        // In the old table: 1 and 2 are confirmed, 4 is new. In the new one: 2 is closed.
        let before = NewTable { rows: &old.rows, settings: &old_settings };
        for key in [1, 2] {
            assert!(before.change(key, state(answered, 7).0, state(established, 7)));
        }
        assert!(before.insert(4, state(established, 8)));
        assert!(new.change(2, state(answered, 7).0, state(lb_phase::LB_PHASE_CLOSED, 7)));
        old.catch_up(&new);
        let phase = |key| new.find(key).map(|(.., state)| state.phase());
        assert_eq!(phase(1), Some(established));
        assert_eq!(phase(2), Some(lb_phase::LB_PHASE_CLOSED));
        assert_eq!(phase(3), Some(answered));
        assert_eq!(phase(4), Some(established));
    }
}
