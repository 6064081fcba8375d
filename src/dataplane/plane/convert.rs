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

/// How far an entry has come, the least first.
fn rank(state: State) -> (Worth, bool) {
    (worth(state), state.phase() == lb_phase::LB_PHASE_ANSWERED)
}

/// A table whose entries are to be carried over.
pub struct OldTable {
    rows: Rows<lb_bucket>,
    /// What each slot was carried over with.
    carried: Vec<Carried>,
}

/// An entry as it was carried over. With its key: packets may give the slot to another connection between two passes.
#[derive(Clone, Copy, Default)]
struct Carried {
    key: u64,
    /// 0: none was.
    state: u64,
}

impl Carried {
    fn of(self, key: u64) -> Option<u64> {
        (self.state != 0 && self.key == key).then_some(self.state)
    }
}

/// What a pass over an old table did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries that were written to the new one.
    pub moved: u64,
    /// Confirmed ones that have no place there now. Each pass tries them once more, so that those of the last one count.
    pub lost: u64,
}

impl Pass {
    /// The sum of passes over several tables.
    pub fn and(self, other: Pass) -> Pass {
        Pass { moved: self.moved + other.moved, lost: self.lost + other.lost }
    }
}

/// What became of an entry that was to be carried over.
enum Placed {
    Moved,
    /// The new table has one that is newer.
    Newer,
    /// Packets change the new one all the time.
    Busy,
    NoRoom,
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
        OldTable { rows, carried: vec![Carried::default(); slots] }
    }

    /// What its entries name.
    pub fn usage(&self) -> Usage {
        Usage::of(&self.rows, |_, _| false, |_| {})
    }

    /// Carries over all entries, those that are worth most first.
    pub fn carry(&mut self, new: &NewTable<'_>) -> Pass {
        let mut pass = Pass::default();
        for wanted in [Worth::Confirmed, Worth::Unconfirmed, Worth::Replaceable] {
            self.each(|key, state, carried| {
                if worth(state) == wanted {
                    new.carry(key, state, carried, &mut pass);
                }
            });
        }
        pass
    }

    /// Carries over what has changed since. What packets have changed in the new table meanwhile is newer, and stays; but
    /// an entry that they made there because the connection's own was not there yet knows less than that, and gives way.
    pub fn catch_up(&mut self, new: &NewTable<'_>) -> Pass {
        let mut pass = Pass::default();
        self.each(|key, state, carried| new.carry(key, state, carried, &mut pass));
        pass
    }

    /// Entries that are not in the new one.
    pub fn missing_in(&self, new: &NewTable<'_>) -> impl Iterator<Item = State> {
        let slots = (0..self.rows.len()).flat_map(|bucket| (0..SLOTS).map(move |at| (bucket, at)));
        let entries = slots.filter_map(|(bucket, at)| {
            let (key, state) = slot(&self.rows, bucket, at)?;
            entry(key, state)
        });
        entries.filter(|(key, _)| new.find(*key).is_none()).map(|(_, state)| state)
    }

    fn each(&mut self, mut each: impl FnMut(u64, State, &mut Carried)) {
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

    /// Brings an entry here if it is not as it was carried over.
    fn carry(&self, key: u64, state: State, carried: &mut Carried, pass: &mut Pass) {
        let before = carried.of(key);
        if before.is_some_and(|before| (state.0 ^ before) & !SEEN == 0) {
            return;
        }
        match self.place(key, before, state) {
            Placed::Moved => pass.moved += 1,
            Placed::Newer => {}
            // To be tried once more.
            Placed::Busy => return,
            Placed::NoRoom => {
                pass.lost += u64::from(worth(state) == Worth::Confirmed);
                return;
            }
        }
        *carried = Carried { key, state: state.0 };
    }

    /// Gives an entry that is there another state if it is still as it was carried over, or is one of a connection that is
    /// further in the other table; inserts it if it is not there.
    fn place(&self, key: u64, carried: Option<u64>, state: State) -> Placed {
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            let Some((bucket, at, now)) = self.find(key) else {
                return if self.insert(key, state) { Placed::Moved } else { Placed::NoRoom };
            };
            let is_as_carried =
                carried.is_some_and(|carried| (self.tagged(key, State(carried)).0 ^ now.0) & !SEEN == 0);
            // A packet that did not find its connection here has had one made, maybe with another backend.
            let knows_less = worth(now) == Worth::Unconfirmed && rank(state) > rank(now);
            if !is_as_carried && !knows_less {
                return Placed::Newer;
            }
            let Some((_, word)) = slot(self.rows, bucket, at) else { return Placed::NoRoom };
            let new = self.tagged(key, state).0 & !SEEN | now.0 & SEEN;
            // A swap that fails met a packet: look once more at what it made of it.
            if word.compare_exchange(now.0, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Placed::Moved;
            }
        }
        Placed::Busy
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
            old.carried.fill(Carried::default());
            assert_eq!(old.carry(&new), Pass { moved: 1000, lost: 0 });
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
        let lost = old.carry(&new).lost;
        assert_eq!(
            old.catch_up(&new).lost,
            lost,
            "those that found no place are counted once more, not twice"
        );
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
        assert_eq!(old.carry(&new), Pass { moved: 3, lost: 0 });
        assert_eq!(old.catch_up(&new), Pass::default(), "nothing has moved");

        // In the old table: 1 and 2 are confirmed, 4 is new. In the new one: 2 is closed.
        let before = NewTable { rows: &old.rows, settings: &old_settings };
        for key in [1, 2] {
            change(&before, key, state(established, 7));
        }
        assert!(before.insert(4, state(established, 8)));
        change(&new, 2, state(lb_phase::LB_PHASE_CLOSED, 7));
        assert_eq!(old.catch_up(&new).moved, 2);
        let phase = |key| new.find(key).map(|(.., state)| state.phase());
        assert_eq!(phase(1), Some(established));
        assert_eq!(phase(2), Some(lb_phase::LB_PHASE_CLOSED));
        assert_eq!(phase(3), Some(answered));
        assert_eq!(phase(4), Some(established));
    }

    /// As a packet does.
    fn change(table: &NewTable<'_>, key: u64, state: State) {
        let (bucket, at, _) = table.find(key).unwrap();
        let word = slot(table.rows, bucket, at).unwrap().1;
        word.store(table.tagged(key, state).0, Ordering::Release);
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_what_packets_made_of_a_connection_that_was_not_there_yet_gives_way() {
        let (rows, old_settings) = (table(10), settings(10, 1));
        let [unconfirmed, answered, established, closed] = [
            lb_phase::LB_PHASE_UNCONFIRMED,
            lb_phase::LB_PHASE_ANSWERED,
            lb_phase::LB_PHASE_ESTABLISHED,
            lb_phase::LB_PHASE_CLOSED,
        ];
        let mut old = OldTable::new(rows);
        let (rows, settings) = (table(20), settings(20, 2));
        let new = NewTable { rows: &rows, settings: &settings };
        // What a key was carried over with, what it is in the old table then, and in the new one; what comes of it.
        let cases = [
            (None, (established, 7), (unconfirmed, 8), (established, 7)),
            (None, (established, 7), (answered, 8), (established, 7)),
            (None, (answered, 7), (unconfirmed, 8), (answered, 7)),
            (Some((unconfirmed, 7)), (established, 7), (unconfirmed, 8), (established, 7)),
            (None, (unconfirmed, 7), (unconfirmed, 8), (unconfirmed, 8)),
            (None, (established, 7), (established, 8), (established, 8)),
            (None, (established, 7), (closed, 8), (closed, 8)),
            (None, (closed, 7), (unconfirmed, 8), (unconfirmed, 8)),
        ];
        let of = |(phase, backend): (lb_phase, u16)| state(phase, backend);
        let fill = |old: &OldTable, key, state| {
            let table = NewTable { rows: &old.rows, settings: &old_settings };
            assert!(table.insert(key, state));
            change(&table, key, state);
        };
        for (key, (carried, ..)) in (1..).zip(cases) {
            carried.into_iter().for_each(|carried| fill(&old, key, of(carried)));
        }
        assert_eq!(old.carry(&new), Pass { moved: 1, lost: 0 });
        for (key, (_, then, made, _)) in (1..).zip(cases) {
            fill(&old, key, of(then));
            assert!(new.insert(key, of(made)));
            change(&new, key, of(made));
        }
        assert_eq!(old.catch_up(&new), Pass { moved: 4, lost: 0 });
        for (key, (.., expected)) in (1..).zip(cases) {
            let (.., found) = new.find(key).unwrap();
            assert_eq!((found.phase(), found.backend()), expected, "case {key}");
        }
        assert_eq!(old.catch_up(&new), Pass::default());
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_slot_that_another_connection_has_now_is_not_taken_for_the_one_before() {
        let mut old = OldTable::new(table(1));
        let (rows, settings) = (table(20), settings(20, 2));
        let new = NewTable { rows: &rows, settings: &settings };
        let fill = |old: &OldTable, key, state: State| {
            let (label, word) = slot(&old.rows, 0, 0).unwrap();
            label.store(key, Ordering::Release);
            word.store(state.0, Ordering::Release);
        };
        let established = lb_phase::LB_PHASE_ESTABLISHED;
        fill(&old, 1, state(established, 7));
        assert_eq!(old.carry(&new).moved, 1);
        // The same state word, of another connection.
        fill(&old, 2, state(established, 7));
        assert_eq!(old.catch_up(&new).moved, 1);
        assert_eq!(new.find(2).map(|(.., state)| state.backend()), Some(7));
        // One that packets have brought as far as the slot's first one was is newer all the same.
        assert!(new.insert(3, state(established, 7)));
        fill(&old, 3, state(lb_phase::LB_PHASE_CLOSED, 7));
        assert_eq!(old.catch_up(&new).moved, 0);
        assert_eq!(new.find(3).map(|(.., state)| state.phase()), Some(established));
        assert_eq!(old.catch_up(&new), Pass::default());
    }
}
