use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::affinity::Client;
use super::events::Events;
use super::hash::{candidates, hash};
use super::loads::{Counted, Loads};
use super::mapped::Rows;
use super::nexthops::NamedRows;
use super::own_timeouts::OwnTimeouts;
use super::types::{
    lb_backend, lb_backend_flags as flag, lb_bucket, lb_constants as constants, lb_nexthop, lb_nexthop_flags,
    lb_phase, lb_service, lb_settings, lb_state_layout as layout,
};
use super::usage::service_of;

const PER_BUCKET: usize = constants::LB_CONNS_PER_BUCKET.0 as usize;
const KEY: usize = 0;
const STATE: usize = size_of::<u64>();
const ENTRY: usize = 2 * size_of::<u64>();
/// An age above is a packet newer than the walk. A packet's clock is at most a few units behind another's, a walk's as much
/// as this process was held up; no timeout comes near it.
const AGE_LIMIT: u16 = 0xc000;
const UDP: usize = constants::LB_TIMEOUT_UDP.0 as usize;

/// A connection's state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

impl State {
    fn field(self, shift: layout, mask: u64) -> u64 {
        self.0 >> shift.0 & mask
    }

    pub(super) fn backend(self) -> u16 {
        self.field(layout::LB_STATE_BACKEND_SHIFT, 0xffff) as u16
    }

    pub(super) fn phase(self) -> lb_phase {
        lb_phase(self.field(layout::LB_STATE_PHASE_SHIFT, 7) as u32)
    }

    pub(super) fn tag(self) -> u8 {
        self.field(layout::LB_STATE_TAG_SHIFT, 0xff) as u8
    }

    pub(super) fn nexthop(self) -> u16 {
        self.field(layout::LB_STATE_NEXTHOP_SHIFT, 0xffff) as u16
    }

    /// Without a next hop: the FIB is asked for it once more.
    fn forget_nexthop(self) -> State {
        State(self.0 & !(0xffff << layout::LB_STATE_NEXTHOP_SHIFT.0))
    }

    pub(super) fn expired(self) -> bool {
        self.field(layout::LB_STATE_EXPIRED_SHIFT, 1) == 1
    }

    fn expire(self) -> State {
        State(self.0 | 1 << layout::LB_STATE_EXPIRED_SHIFT.0)
    }

    pub(super) fn is_entry(self) -> bool {
        !matches!(self.phase(), lb_phase::LB_PHASE_FREE | lb_phase::LB_PHASE_CLAIMED)
    }

    /// What loads count, as the program sees it.
    pub(super) fn is_live(self) -> bool {
        self.is_entry() && self.phase() != lb_phase::LB_PHASE_CLOSED && !self.expired()
    }

    fn is_confirmed(self) -> bool {
        let unconfirmed = [lb_phase::LB_PHASE_UNCONFIRMED, lb_phase::LB_PHASE_ANSWERED];
        self.is_live() && !unconfirmed.contains(&self.phase())
    }

    pub(super) fn counted(self) -> bool {
        self.field(layout::LB_STATE_COUNTED_SHIFT, 1) == 1
    }

    /// With the counted bit as it should be, by whether the entry's backend is counted.
    pub(super) fn count(self, backend_is_counted: bool) -> State {
        let bit = 1 << layout::LB_STATE_COUNTED_SHIFT.0;
        match self.is_live() {
            true if backend_is_counted => State(self.0 | bit),
            true => self,
            false => State(self.0 & !bit),
        }
    }

    /// In units of the table's clock.
    pub(super) fn age(self, now: u16) -> u16 {
        let age = now.wrapping_sub(self.field(layout::LB_STATE_SEEN_SHIFT, 0xffff) as u16);
        if age < AGE_LIMIT { age } else { 0 }
    }

    pub(super) fn over_timeout(self, now: u16, timeouts: &[u16; 16]) -> bool {
        let udp = self.field(layout::LB_STATE_UDP_SHIFT, 1) as usize;
        self.age(now) > timeouts[self.phase().0 as usize + udp * UDP]
    }
}

/// What a walk over the connection table counted.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Live connections, confirmed or not, by backend index.
    pub active: Vec<u32>,
    /// Slots that hold a confirmed connection within its timeout.
    pub confirmed: u64,
    /// Slots that hold an unconfirmed connection within its timeout.
    pub unconfirmed: u64,
    /// Slots that hold a closed connection, or one over its timeout: still usable, but the next that needs the slot gets it.
    pub replaceable: u64,
    /// All slots.
    pub slots: u64,
    /// The next hops' rows that entries name.
    pub nexthops: NamedRows,
    /// What is in the loads, by backend index.
    pub counted: Vec<Counted>,
    /// By how many connections loads were found to have drifted, and corrected. Not 0 after a process was killed in the
    /// middle of a sweep, or by a bug.
    pub corrected: u64,
}

impl Census {
    fn counted(&mut self, backend: u16) -> &mut Counted {
        at(&mut self.counted, backend)
    }
}

fn at<T: Clone + Default>(rows: &mut Vec<T>, backend: u16) -> &mut T {
    let backend = usize::from(backend);
    if rows.len() <= backend {
        rows.resize(backend + 1, T::default());
    }
    &mut rows[backend]
}

/// The tables that a walk over the connections meets.
#[derive(Clone, Copy)]
pub struct Walked<'a> {
    /// The connections.
    pub connections: &'a Rows<lb_bucket>,
    /// The backends that they name.
    pub backends: &'a Rows<lb_backend>,
    /// Their loads.
    pub loads: Loads<'a>,
    /// What became of connections, where their ends are counted.
    pub events: Events<'a>,
    /// The next hops that connections name.
    pub nexthops: &'a Rows<lb_nexthop>,
}

/// Walks over the connection table while packets change it.
pub struct Sweeper<'a> {
    tables: Walked<'a>,
    settings: lb_settings,
    timeouts: OwnTimeouts,
    now: u16,
}

impl<'a> Sweeper<'a> {
    /// `now` is the time by the table's clock.
    pub fn new(tables: Walked<'a>, settings: lb_settings, now: u16) -> Sweeper<'a> {
        Sweeper { tables, settings, timeouts: OwnTimeouts::none(settings.timeout), now }
    }

    /// Goes by the services' own timeouts where they have some.
    pub fn with_services(self, services: &Rows<lb_service>) -> Sweeper<'a> {
        Sweeper { timeouts: OwnTimeouts::read(self.settings.timeout, services), ..self }
    }

    fn over_timeout(&self, key: u64, state: State) -> bool {
        state.over_timeout(self.now, self.timeouts.of_service(service_of(key)))
    }

    /// Counts, changing nothing.
    pub fn count(&self) -> Census {
        self.walk(|_, _, _, state| state)
    }

    /// Counts; marks as expired what is over its timeout, before its age wraps around (call it at least every ten minutes);
    /// and frees entries that can never be found, because the same key stands before them in its other candidate bucket
    /// or in the same one (two CPUs inserted it at the same instant). Next hops that are not valid any more are forgotten.
    /// Loads follow, and entries made before their backend was counted are counted. `lives` is told of each live confirmed connection of a sticky service.
    pub fn sweep(&self, mut lives: impl FnMut(Client)) -> Census {
        self.walk(|census, bucket, slot, state| {
            let Some((key, word)) = self.entry(bucket, slot) else { return state };
            let flags = self.backend_flags(state.backend());
            let want = self.swept(bucket, slot, key, state, flags);
            let left = if want == state { state } else { self.swap(census, word, state, want) };
            if flags & flag::LB_BACKEND_STICKY.0 as u8 != 0 && left.is_confirmed() {
                let address = Ipv4Addr::from((key as u32).to_ne_bytes());
                lives(Client { address, service: (key >> 48) as u16 });
            }
            left
        })
    }

    /// What a sweep makes of an entry.
    fn swept(&self, bucket: usize, slot: usize, key: u64, state: State, flags: u8) -> State {
        // Of those that have ended none is in anybody's way, and there are many.
        if state.is_live() && self.hidden(bucket, slot, key) {
            return State(0);
        }
        let expires = !state.expired() && self.over_timeout(key, state);
        let state = if expires { state.expire() } else { state };
        let state = state.count(flags & flag::LB_BACKEND_COUNTED.0 as u8 != 0);
        if self.is_valid(state.nexthop()) { state } else { state.forget_nexthop() }
    }

    fn is_valid(&self, nexthop: u16) -> bool {
        let flags = self.tables.nexthops.byte(usize::from(nexthop), offset_of!(lb_nexthop, flags));
        let valid = lb_nexthop_flags::LB_NEXTHOP_VALID.0 as u8;
        flags.is_some_and(|flags| flags.load(Ordering::Acquire) & valid != 0)
    }

    /// Swaps an entry's state; if that wins, its load follows. A swap that fails met a packet: the connection is not idle.
    /// Returns what is there now.
    fn swap(&self, census: &mut Census, word: &AtomicU64, from: State, to: State) -> State {
        match word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire) {
            Err(met) => return State(met),
            Ok(_) => self.tables.events.follow(from, to),
        }
        match (from.counted(), to.counted()) {
            (before, after) if before == after => {}
            (_, true) => {
                self.tables.loads.opened(to.backend());
                census.counted(to.backend()).opened += 1;
            }
            (_, false) => {
                self.tables.loads.ended(from.backend());
                census.counted(from.backend()).ended += 1;
            }
        }
        to
    }

    fn backend_flags(&self, backend: u16) -> u8 {
        let flags = self.tables.backends.byte(usize::from(backend), offset_of!(lb_backend, flags));
        flags.map_or(0, |flags| flags.load(Ordering::Relaxed))
    }

    /// The two buckets that a key may lie in, in the order in which they are searched.
    pub fn candidates(&self, key: u64) -> [usize; 2] {
        candidates(self.hash(key), self.settings.buckets)
    }

    /// `each` returns the state that it leaves.
    fn walk(&self, mut each: impl FnMut(&mut Census, usize, usize, State) -> State) -> Census {
        let buckets = self.tables.connections.len();
        let mut census = Census { slots: (buckets * PER_BUCKET) as u64, ..Census::default() };
        for bucket in 0..buckets {
            for slot in 0..PER_BUCKET {
                let Some((key, word)) = self.entry(bucket, slot) else { continue };
                let state = State(word.load(Ordering::Acquire));
                if !state.is_entry() {
                    continue;
                }
                self.note(&mut census, key, state);
                let left = each(&mut census, bucket, slot, state);
                let live = left.is_live() && !self.over_timeout(key, left);
                census.nexthops.note(left.nexthop(), live.then_some(key));
                if left.counted() {
                    census.counted(left.backend()).entries += 1;
                }
            }
        }
        census
    }

    fn note(&self, census: &mut Census, key: u64, state: State) {
        let phase = state.phase();
        if phase == lb_phase::LB_PHASE_CLOSED || state.expired() || self.over_timeout(key, state) {
            census.replaceable += 1;
            return;
        }
        if matches!(phase, lb_phase::LB_PHASE_UNCONFIRMED | lb_phase::LB_PHASE_ANSWERED) {
            census.unconfirmed += 1;
        } else {
            census.confirmed += 1;
        }
        *at(&mut census.active, state.backend()) += 1;
    }

    fn entry(&self, bucket: usize, slot: usize) -> Option<(u64, &AtomicU64)> {
        let rows = self.tables.connections;
        let key = rows.word(bucket, slot * ENTRY + KEY)?.load(Ordering::Acquire);
        Some((key, rows.word(bucket, slot * ENTRY + STATE)?))
    }

    /// Whether a look-up of the key ends at another entry before it comes to this one.
    fn hidden(&self, bucket: usize, slot: usize, key: u64) -> bool {
        let first = self.candidates(key)[0];
        let holds = |bucket: usize, slots: usize| (0..slots).any(|slot| self.is_found(bucket, slot, key));
        holds(bucket, slot) || (bucket != first && holds(first, PER_BUCKET))
    }

    /// As a packet's look-up: the key again after the state, and the state's tag. A slot that is just being given away shows
    /// its old key and then its new owner's state.
    fn is_found(&self, bucket: usize, slot: usize, key: u64) -> bool {
        let Some((_, word)) = self.entry(bucket, slot).filter(|(before, _)| *before == key) else {
            return false;
        };
        let state = State(word.load(Ordering::Acquire));
        let again = self.entry(bucket, slot).is_some_and(|(again, _)| again == key);
        again && state.is_entry() && state.tag() == self.tag(key)
    }

    fn hash(&self, key: u64) -> u64 {
        hash(key, [self.settings.key[0], self.settings.key[1]])
    }

    fn tag(&self, key: u64) -> u8 {
        (self.hash(key) >> constants::LB_TAG_SHIFT.0) as u8
    }
}
