//! The loaded programs and their tables, and the control plane's side of them.

mod adopt;
mod collect;
mod convert;
mod counts;
mod hold;
mod inventory;
mod publish;
mod rows;
mod spread;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;

use super::affinity::Aging;
use super::attach::Attachment;
use super::capacity::Capacity;
use super::clock::Clock;
use super::connections::Census;
use super::left::LeftLink;
use super::load::{Profile, Program, load};
use super::loads::{Reconciler, recount};
use super::nexthops::{NextHop, NextHops};
use super::rings::{self, RingArena};
use super::tables::{ABI, Tables};
use super::types::{
    lb_backend, lb_bucket, lb_constants, lb_phase, lb_ring_line, lb_scheduler, lb_settings, lb_unresolved,
};
use crate::model::{Scheduler, Service, Timeouts};
use crate::ring;
use convert::OldTable;
use counts::OldCounts;
use inventory::Inventory;
use spread::Run;
use stage::Staged;

pub use adopt::TakeOver;
pub use hold::{Attached, Committed};
pub use rows::Condition;

/// A backend of a service, as the tables know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// Its row.
    pub index: u16,
    /// Where it listens.
    pub address: SocketAddrV4,
}

/// The loaded programs and their tables, and the control plane's side of them: which rows are used for what.
pub struct Plane {
    tables: Arc<Tables>,
    settings: lb_settings,
    capacity: Capacity,
    clock: Clock,
    programs: Vec<Program>,
    nexthops: NextHops,
    inventory: Inventory,
    arena: RingArena,
    backends: Vec<BackendId>,
    /// A configuration that is written down, but that no packet finds yet.
    staged: Option<Staged>,
    /// The directory that packets use.
    lines: Option<MapHandle>,
    /// Lines of rings that were given up, but that a packet may still read.
    unsettled: Vec<Run>,
    /// Services whose ring is not what it should be.
    stale_rings: BTreeSet<u16>,
    /// By the interface's index.
    attachments: BTreeMap<u32, Attachment>,
    /// The names of the pins that are up to date.
    pinned: BTreeSet<String>,
    /// Links of the instance before that still run its program.
    left: Vec<LeftLink>,
    /// Connection tables of the instance before that are given up.
    old: Vec<OldTable>,
    /// Counters of the instance before that are given up.
    old_counts: Option<OldCounts>,
    loads: Reconciler,
}

/// What a plane is to be loaded for.
pub struct Request<'a> {
    /// How many connections the table promises to hold.
    pub max_connections: u32,
    /// When idle connections may be evicted.
    pub timeouts: &'a Timeouts,
    /// The services, for which there must be room.
    pub services: &'a [Service],
    /// The profile that will be needed first.
    pub profile: Profile,
    /// The secret that says where connections lie; `None`: a random one. A test that is to be repeated names it.
    pub key: Option<[u64; 4]>,
}

impl Request<'_> {
    /// Room for the clients of sticky services, if there are any.
    fn with_affinity(&self, capacity: Capacity) -> Capacity {
        match self.services.iter().any(|service| service.sticky.is_some()) {
            true => capacity.with_affinity(self.max_connections),
            false => capacity,
        }
    }
}

impl Plane {
    /// Loads the program and makes its tables for these services, which [`Plane::apply`] then writes.
    pub fn load(
        max_connections: u32,
        timeouts: &Timeouts,
        services: &[Service],
        profile: Profile,
    ) -> Result<Plane> {
        Plane::load_for(&Request { max_connections, timeouts, services, profile, key: None })
    }

    /// The same for a request.
    pub fn load_for(request: &Request<'_>) -> Result<Plane> {
        let clock = Clock::load()?;
        let hz = clock.measure_hz()?;
        let services = request.services;
        let backends = services.iter().map(|service| service.backends.len()).sum();
        let capacity =
            Capacity::new(request.max_connections, services.len(), backends, ring_lines(services))?;
        let capacity = request.with_affinity(capacity);
        let shift = Clock::shift(hz);
        let settings = lb_settings {
            abi: ABI,
            clock_shift: shift,
            hz,
            buckets: capacity.buckets,
            service_buckets: capacity.service_buckets,
            origins: capacity.origins,
            key: request.key.map_or_else(random_key, Ok)?,
            timeout: timeout_units(request.timeouts, hz, shift),
        };
        let (program, tables) = load(request.profile, &settings, &capacity, &BTreeMap::new())
            .map_err(|error| without_memory(error, request.max_connections, capacity))?;
        Ok(Plane::new(program, tables, settings, capacity, clock))
    }

    /// On tables that nothing is known of yet.
    fn new(
        program: Program,
        tables: Tables,
        settings: lb_settings,
        capacity: Capacity,
        clock: Clock,
    ) -> Plane {
        Plane {
            tables: Arc::new(tables),
            settings,
            capacity,
            clock,
            programs: vec![program],
            nexthops: NextHops::default(),
            inventory: Inventory::default(),
            arena: RingArena::new(capacity.ring_lines as usize),
            backends: Vec::new(),
            staged: None,
            lines: None,
            unsettled: Vec::new(),
            stale_rings: BTreeSet::new(),
            attachments: BTreeMap::new(),
            pinned: BTreeSet::new(),
            left: Vec::new(),
            old: Vec::new(),
            old_counts: None,
            loads: Reconciler::default(),
        }
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The same for who reads them by itself, for as long as that wants to: after a swap of programs they may be others.
    pub fn shared_tables(&self) -> Arc<Tables> {
        self.tables.clone()
    }

    /// What the programs were loaded with.
    pub fn settings(&self) -> &lb_settings {
        &self.settings
    }

    /// Every backend that has a row: those that are configured, and removed ones whose connections go on.
    pub fn backends(&self) -> &[BackendId] {
        &self.backends
    }

    /// The next hops, to be changed, with the tables that they are in.
    pub fn next_hops(&mut self) -> (&mut NextHops, &Tables) {
        (&mut self.nexthops, &self.tables)
    }

    /// The next hop that a backend has now, and its row.
    pub fn next_hop_of(&self, backend: BackendId) -> Option<(u16, NextHop)> {
        let index = self.tables.backends.get(usize::from(backend.index))?.nexthop;
        self.nexthops.of_row(index).map(|hop| (index, hop))
    }

    /// The row of the next hop that a backend's row names now, valid or not.
    pub fn next_hop_row(&self, backend: BackendId) -> Option<u16> {
        self.tables.backends.get(usize::from(backend.index)).map(|row| row.nexthop)
    }

    /// Sends what goes to a backend to another next hop, by one store.
    pub fn set_next_hop(&self, backend: BackendId, nexthop: u16) -> Result<()> {
        self.tables
            .backends
            .half(usize::from(backend.index), offset_of!(lb_backend, nexthop))
            .with_context(|| format!("there is no backend {}", backend.index))?
            .store(nexthop, Ordering::Release);
        Ok(())
    }

    /// Takes the (interface index, address) of neighbours that packets met and the kernel did not know.
    pub fn take_unresolved(&self) -> Vec<(u32, Ipv4Addr)> {
        (0..self.tables.unresolved.len())
            .filter_map(|row| self.tables.unresolved.word(row, offset_of!(lb_unresolved, neighbour)))
            .map(|word| word.swap(0, Ordering::Relaxed))
            .filter(|word| *word != 0)
            .map(|word| (word as u32, Ipv4Addr::from(((word >> 32) as u32).to_ne_bytes())))
            .collect()
    }

    /// Sets the table's clock; for programs of a profile with a test clock.
    pub fn set_test_clock(&self, now: u32) -> Result<()> {
        self.programs.iter().try_for_each(|program| program.set_test_clock(now))
    }

    /// Sets what programs of such a profile take for a random number.
    pub fn set_test_random(&self, number: u32) -> Result<()> {
        self.programs.iter().try_for_each(|program| program.set_test_random(number))
    }

    /// Sets the time in microseconds by which such programs measure handshakes.
    pub fn set_test_micros(&self, now: u32) -> Result<()> {
        self.programs.iter().try_for_each(|program| program.set_test_micros(now))
    }

    /// Sets what the programs keep beside their tables to 0, as after loading: clocks and random number of a test, and which
    /// senders leave their checksums to be finished.
    pub fn clear_globals(&self) -> Result<()> {
        self.programs.iter().try_for_each(Program::clear_globals)
    }

    /// Counts the connections, marks those over their timeouts, corrects loads that have drifted, and refreshes the records
    /// of clients with live connections. Call it at least every [`super::sweep_interval`].
    pub fn sweep(&mut self) -> Result<Census> {
        let now = self.clock.now_long(self.settings.clock_shift)?;
        self.sweep_at(now)
    }

    /// The same at a time of the long clock.
    pub fn sweep_at(&mut self, now: u32) -> Result<Census> {
        let services = &self.tables.services;
        let sticky = |service: u16| services.get(usize::from(service)).map_or(0, |row| row.sticky);
        let mut aging = Aging::read(self.tables.affinity(), now, sticky);
        let mut census = Census::default();
        let sweeper = self.tables.sweeper(self.settings, now as u16);
        let corrected = self.loads.reconcile(self.tables.loads(), || {
            census = sweeper.sweep(|client| aging.lives(client));
            census.counted.clone()
        });
        aging.finish()?;
        Ok(Census { corrected, ..census })
    }

    /// Brings the loads in line with the connection table at once: after a take-over, when they may have been made anew, or
    /// the services' schedulers were changed. Returns how many connections they were off.
    pub fn recount_loads(&self) -> Result<u64> {
        Ok(self.recount_loads_at(self.clock.now(self.settings.clock_shift)?))
    }

    /// The same at a time of the table's clock.
    pub fn recount_loads_at(&self, now: u16) -> u64 {
        let sweeper = self.tables.sweeper(self.settings, now);
        recount(self.tables.loads(), || sweeper.sweep(|_| {}).counted)
    }

    /// Forgets which clients were to come back to a backend: before its index is given to another. Returns how many.
    pub fn forget_clients(&self, backend: u16) -> Result<usize> {
        self.tables.affinity().forget_backends(&BTreeSet::from([backend]))
    }
}

impl Drop for Plane {
    /// A start that failed leaves the tables that it would have taken over as they were.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// How many bytes the rings of these services take, with room for as many again.
pub fn ring_memory(services: &[Service]) -> u64 {
    (ring_lines(services) * 2 * size_of::<lb_ring_line>()) as u64
}

/// The lines of all rings.
fn ring_lines(services: &[Service]) -> usize {
    let lines = |service: &Service| {
        let members = if service.scheduler == Scheduler::LeastConn { ring::MAX_MEMBERS } else { 0 };
        rings::lines(ring_slots(service)) + rings::lines(members)
    };
    services.iter().map(lines).sum()
}

fn ring_slots(service: &Service) -> usize {
    match service.scheduler {
        Scheduler::IpHash | Scheduler::Maglev => ring::MAGLEV_SLOTS,
        Scheduler::RoundRobin => service.backends.len(),
        Scheduler::WeightedRoundRobin | Scheduler::LeastConn => {
            service.backends.iter().map(|backend| usize::from(backend.weight.get())).sum()
        }
    }
}

fn scheduler_row(scheduler: Scheduler) -> lb_scheduler {
    match scheduler {
        Scheduler::RoundRobin => lb_scheduler::LB_SCHEDULER_ROUND_ROBIN,
        Scheduler::WeightedRoundRobin => lb_scheduler::LB_SCHEDULER_WEIGHTED_ROUND_ROBIN,
        Scheduler::IpHash => lb_scheduler::LB_SCHEDULER_IP_HASH,
        Scheduler::Maglev => lb_scheduler::LB_SCHEDULER_MAGLEV,
        Scheduler::LeastConn => lb_scheduler::LB_SCHEDULER_LEAST_CONN,
    }
}

/// The scheduler of a service's row; `None` for a row of another version.
pub(crate) fn scheduler_of(row: u8) -> Option<Scheduler> {
    Scheduler::NAMES.iter().map(|(scheduler, ..)| *scheduler).find(|s| scheduler_row(*s).0 == u32::from(row))
}

/// Nobody outside can aim at a bucket without knowing the key.
fn random_key() -> Result<[u64; 4]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("could not read a key for the connection table from /dev/urandom")?;
    let mut key = [0; 4];
    for (word, chunk) in key.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    Ok(key)
}

/// Says so where it was the connection table that there was no memory for.
fn without_memory(error: anyhow::Error, connections: u32, capacity: Capacity) -> anyhow::Error {
    let kind = error.downcast_ref::<libbpf_rs::Error>().map(libbpf_rs::Error::kind);
    if kind != Some(libbpf_rs::ErrorKind::OutOfMemory) {
        return error;
    }
    let bytes = f64::from(capacity.buckets) * size_of::<lb_bucket>() as f64;
    error.context(format!(
        "the kernel has no memory for a table of {connections} connections ({:.1} GB): use a smaller --max-connections, or \
         raise this process' memory limit",
        bytes / 1e9
    ))
}

/// A time in units of the table's clock, rounded up.
fn units(duration: Duration, hz: u32, shift: u32) -> u32 {
    let jiffies = (duration.as_secs_f64() * f64::from(hz)).ceil();
    (jiffies / f64::from(1u32 << shift)).ceil() as u32
}

/// Timeouts by phase, + 8 for UDP, in units of the table's clock, rounded up.
fn timeout_units(timeouts: &Timeouts, hz: u32, shift: u32) -> [u16; 16] {
    /// Much longer than any program runs, even on a virtual CPU that was paused: a slot whose writer died is used again.
    const STUCK: Duration = Duration::from_secs(5);
    const UDP: usize = lb_constants::LB_TIMEOUT_UDP.0 as usize;
    let units = |timeout: Duration| units(timeout, hz, shift) as u16;
    let mut row = [u16::MAX; 16];
    let mut set = |phase: lb_phase, timeout: Duration| {
        row[phase.0 as usize] = units(timeout);
        row[phase.0 as usize + UDP] = units(timeout);
    };
    set(lb_phase::LB_PHASE_UNCONFIRMED, timeouts.unconfirmed);
    set(lb_phase::LB_PHASE_ANSWERED, timeouts.unconfirmed);
    set(lb_phase::LB_PHASE_ESTABLISHED, timeouts.established);
    set(lb_phase::LB_PHASE_CLOSING, timeouts.closing);
    set(lb_phase::LB_PHASE_REVIVING, timeouts.closing);
    set(lb_phase::LB_PHASE_CLAIMED, STUCK);
    row[lb_phase::LB_PHASE_ESTABLISHED.0 as usize + UDP] = units(timeouts.udp);
    row
}
