//! Single connections: which there are, and the end of those that an operator wants to end.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, bail};

use super::connections::State;
use super::directory::ipv4_of;
use super::loads::Loads;
use super::own_timeouts::OwnTimeouts;
use super::tables::Tables;
use super::types::{
    lb_backend, lb_backend_flags, lb_backend_state, lb_phase, lb_service, lb_settings, lb_state_layout,
};
use super::usage::{SLOTS, entry, service_of, slot};
use crate::model::Protocol;

/// What a live connection goes through, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifeState {
    /// It has not seen packets of both sides yet.
    Unconfirmed,
    /// It has.
    Established,
    /// One side closes it.
    Closing,
}

impl LifeState {
    /// Every state.
    pub const ALL: [LifeState; 3] = [LifeState::Unconfirmed, LifeState::Established, LifeState::Closing];

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<LifeState> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            LifeState::Unconfirmed => "unconfirmed",
            LifeState::Established => "established",
            LifeState::Closing => "closing",
        }
    }

    /// `None` for a slot without a connection that goes on.
    pub(super) fn of(state: State) -> Option<LifeState> {
        match state.phase() {
            lb_phase::LB_PHASE_UNCONFIRMED | lb_phase::LB_PHASE_ANSWERED => Some(LifeState::Unconfirmed),
            lb_phase::LB_PHASE_ESTABLISHED => Some(LifeState::Established),
            lb_phase::LB_PHASE_CLOSING | lb_phase::LB_PHASE_REVIVING => Some(LifeState::Closing),
            _ => None,
        }
    }
}

/// Which connections are meant. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// Those of one of these services.
    pub services: Option<Vec<(SocketAddrV4, Protocol)>>,
    /// Those of this backend.
    pub backend: Option<SocketAddrV4>,
    /// Those of this client's address.
    pub client: Option<Ipv4Addr>,
    /// Those in this state.
    pub state: Option<LifeState>,
    /// No more than so many.
    pub limit: Option<usize>,
}

/// A live connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its service's address and port.
    pub vip: SocketAddrV4,
    /// Its service's protocol.
    pub protocol: Protocol,
    /// Who connected.
    pub client: SocketAddrV4,
    /// To whom it was given.
    pub backend: SocketAddrV4,
    /// What it goes through.
    pub state: LifeState,
    /// How long ago its last packet passed, by a clock of a quarter to half a second.
    pub idle: Duration,
}

/// Live connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that are meant, in no order.
    pub entries: Vec<Entry>,
    /// Whether there are more of them than were asked for.
    pub more: bool,
}

/// Looks at single entries of the connection table, and ends them, while packets change it.
pub struct Entries<'a> {
    tables: &'a Tables,
    settings: lb_settings,
    now: u16,
}

impl<'a> Entries<'a> {
    /// `now` is the time by the table's clock.
    pub fn new(tables: &'a Tables, settings: lb_settings, now: u16) -> Entries<'a> {
        Entries { tables, settings, now }
    }

    /// The connections that are meant and within their timeouts.
    pub fn list(&self, which: &Which) -> Listing {
        let limit = which.limit.unwrap_or(usize::MAX);
        let mut listing = Listing::default();
        let own = OwnTimeouts::read(self.settings.timeout, &self.tables.services);
        self.walk(which, |found| {
            let timeouts = own.of_service(service_of(found.label));
            if found.state.expired() || found.state.over_timeout(self.now, timeouts) {
                return true;
            }
            listing.more = listing.entries.len() >= limit;
            if !listing.more {
                listing.entries.push(found.entry.clone());
            }
            !listing.more
        });
        listing
    }

    /// Ends the connections that are meant, those over their timeouts too, and returns how many. One of TCP gets another
    /// backend that is up: to that one the client's next segment belongs to nothing, and the RST that it answers passes
    /// on to the client. One of UDP is forgotten. One that a packet changes at the same instant is tried again.
    ///
    /// # Errors
    /// A TCP connection's service has no other backend that is up: nothing has been ended then.
    pub fn end(&self, which: &Which) -> Result<u64> {
        let ups = self.backends_up();
        self.ensure_others(which, &ups)?;
        let limit = which.limit.map_or(u64::MAX, |limit| limit as u64);
        let mut ended = 0;
        self.walk(which, |found| {
            if ended < limit && self.end_one(found, &ups, ended as usize) {
                ended += 1;
            }
            ended < limit
        });
        Ok(ended)
    }

    fn ensure_others(&self, which: &Which, ups: &[Vec<u16>]) -> Result<()> {
        let mut alone = BTreeSet::new();
        self.walk(which, |found| {
            if found.entry.protocol == Protocol::Tcp && others(ups, found).next().is_none() {
                alone.insert((found.entry.vip, found.entry.backend));
            }
            true
        });
        let Some((vip, backend)) = alone.first() else { return Ok(()) };
        bail!(
            "service {vip}/tcp has no backend that is up besides {backend}, and another one is needed to answer the \
             clients of its connections with a RST: nothing was ended; enable or add a backend, or remove the service"
        )
    }

    fn end_one(&self, found: &Found<'_>, ups: &[Vec<u16>], turn: usize) -> bool {
        const TRIES: usize = 4;
        let others: Vec<u16> = others(ups, found).collect();
        let mut from = found.state;
        for _ in 0..TRIES {
            let to = match found.entry.protocol {
                Protocol::Udp => State(0),
                Protocol::Tcp if others.is_empty() => return false,
                Protocol::Tcp => {
                    let other = others[turn % others.len()];
                    from.given_to(other, self.is_counted(other))
                }
            };
            match found.swap(from, to) {
                Ok(()) => {
                    follow(self.tables.loads(), from, to);
                    self.tables.events().ended(from, to);
                    return true;
                }
                Err(Some(met)) => from = met,
                Err(None) => return false,
            }
        }
        false
    }

    fn is_counted(&self, backend: u16) -> bool {
        let row = self.tables.backends.get(usize::from(backend));
        row.is_some_and(|row| u32::from(row.flags) & lb_backend_flags::LB_BACKEND_COUNTED.0 != 0)
    }

    /// Tells `each` of the connections that are meant, while it returns true.
    fn walk(&self, which: &Which, mut each: impl FnMut(&Found<'_>) -> bool) {
        let rows = &self.tables.connections;
        for bucket in 0..rows.len() {
            for at in 0..SLOTS {
                let Some((key, word)) = slot(rows, bucket, at) else { continue };
                let Some((label, state)) = entry(key, word) else { continue };
                let Some(found) = self.entry(label, state) else { continue };
                if which.means(&found) && !each(&Found { entry: found, key, word, label, state }) {
                    return;
                }
            }
        }
    }

    /// `None` where it is no connection that goes on, or one of rows that are free already.
    fn entry(&self, key: u64, state: State) -> Option<Entry> {
        let life = LifeState::of(state)?;
        let service = self.tables.services.get(usize::from(service_of(key)))?;
        let backend = self.tables.backends.get(usize::from(state.backend()))?;
        Some(Entry {
            vip: vip_of(&service),
            protocol: Protocol::from_number(service.proto)?,
            client: SocketAddrV4::new(
                Ipv4Addr::from((key as u32).to_ne_bytes()),
                u16::from_be((key >> 32) as u16),
            ),
            backend: SocketAddrV4::new(ipv4_of(backend.addr), u16::from_be(backend.port)),
            state: life,
            idle: self.time(state.age(self.now)),
        })
    }

    fn time(&self, units: u16) -> Duration {
        let jiffies = u64::from(units) << self.settings.clock_shift;
        Duration::from_millis(jiffies * 1000 / u64::from(self.settings.hz.max(1)))
    }

    /// The backends that are up, by the index of their service.
    fn backends_up(&self) -> Vec<Vec<u16>> {
        let mut ups = vec![Vec::new(); self.tables.services.len()];
        for index in 1..self.tables.backends.len() {
            let Some(row) = self.tables.backends.get(index).filter(is_up) else { continue };
            if let Some(ups) = ups.get_mut(usize::from(row.service)) {
                ups.push(index as u16);
            }
        }
        ups
    }
}

/// A connection in its slot.
struct Found<'a> {
    entry: Entry,
    key: &'a std::sync::atomic::AtomicU64,
    word: &'a std::sync::atomic::AtomicU64,
    label: u64,
    state: State,
}

impl Found<'_> {
    /// Where the swap fails: what is there now, if it still is this connection with this backend.
    fn swap(&self, from: State, to: State) -> Result<(), Option<State>> {
        use std::sync::atomic::Ordering::{AcqRel, Acquire};
        let met = match self.word.compare_exchange(from.0, to.0, AcqRel, Acquire) {
            Ok(_) => return Ok(()),
            Err(met) => State(met),
        };
        let same = self.key.load(Acquire) == self.label
            && met.backend() == from.backend()
            && met.tag() == from.tag()
            && LifeState::of(met).is_some();
        Err(same.then_some(met))
    }
}

impl Which {
    fn means(&self, entry: &Entry) -> bool {
        let of_service = |services: &Vec<_>| services.contains(&(entry.vip, entry.protocol));
        self.services.as_ref().is_none_or(of_service)
            && self.backend.is_none_or(|backend| backend == entry.backend)
            && self.client.is_none_or(|client| client == *entry.client.ip())
            && self.state.is_none_or(|state| state == entry.state)
    }
}

impl State {
    /// The same connection, as another backend's.
    fn given_to(self, backend: u16, is_counted: bool) -> State {
        let mask = 0xffff << lb_state_layout::LB_STATE_BACKEND_SHIFT.0;
        let counted = 1 << lb_state_layout::LB_STATE_COUNTED_SHIFT.0;
        let moved =
            self.0 & !mask & !counted | u64::from(backend) << lb_state_layout::LB_STATE_BACKEND_SHIFT.0;
        State(moved).count(is_counted)
    }
}

/// Backends of a connection's service that are up, without its own.
fn others(ups: &[Vec<u16>], found: &Found<'_>) -> impl Iterator<Item = u16> {
    let own = found.state.backend();
    let ups = ups.get(usize::from(service_of(found.label)));
    ups.into_iter().flatten().copied().filter(move |backend| *backend != own)
}

/// Brings loads in line with a swap that won.
fn follow(loads: Loads<'_>, from: State, to: State) {
    if from.counted() {
        loads.ended(from.backend());
    }
    if to.counted() {
        loads.opened(to.backend());
    }
}

pub(super) fn is_up(row: &lb_backend) -> bool {
    u32::from(row.state) == lb_backend_state::LB_BACKEND_UP.0
        && u32::from(row.flags) & lb_backend_flags::LB_BACKEND_REMOVED.0 == 0
}

fn vip_of(row: &lb_service) -> SocketAddrV4 {
    SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port))
}

#[cfg(test)]
#[path = "entries_tests.rs"]
mod tests;
