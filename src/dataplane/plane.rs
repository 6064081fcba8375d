use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::affinity::Aging;
use super::attach::{Attachment, Mode, is_taken, is_unsupported, pin, program_name, program_on};
use super::clock::Clock;
use super::connections::{Census, Sweeper};
use super::directory::{Directory, addr_of};
use super::load::{Profile, Program, Source, directory_lines, load};
use super::loads::{Reconciler, recount};
use super::nexthops::NextHops;
use super::pin::PROGRAM_PREFIX;
use super::rings::{self, RingArena};
use super::tables::{ABI, Capacity, Tables};
use super::types::{
    lb_backend, lb_backend_flags, lb_backend_state, lb_bucket, lb_constants, lb_pair, lb_phase, lb_scheduler,
    lb_service, lb_settings, lb_unresolved,
};
use crate::model::{Protocol, Scheduler, Service, Timeouts};
use crate::ring;

/// A backend of a service, as the tables know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendId {
    /// Its row.
    pub index: u16,
    /// Where it listens.
    pub address: SocketAddrV4,
}

/// The loaded programs and their tables, and the control plane's side of them: which rows are used for what.
pub struct Plane {
    tables: Tables,
    settings: lb_settings,
    capacity: Capacity,
    clock: Clock,
    programs: Vec<Program>,
    arena: RingArena,
    nexthops: NextHops,
    backends: Vec<BackendId>,
    services: u16,
    loads: Reconciler,
}

impl Plane {
    /// Loads the program and makes its tables for these services, which [`Plane::apply`] then writes.
    pub fn load(
        max_connections: u32,
        timeouts: &Timeouts,
        services: &[Service],
        profile: Profile,
    ) -> Result<Plane> {
        let clock = Clock::load()?;
        let hz = clock.measure_hz()?;
        let backends = services.iter().map(|service| service.backends.len()).sum();
        let ring_lines = services.iter().map(ring_lines).sum();
        let mut capacity = Capacity::new(max_connections, services.len(), backends, ring_lines)?;
        if services.iter().any(|service| service.sticky.is_some()) {
            capacity = capacity.with_affinity(max_connections);
        }
        let shift = Clock::shift(hz);
        let settings = lb_settings {
            abi: ABI,
            clock_shift: shift,
            hz,
            buckets: capacity.buckets,
            service_buckets: capacity.service_buckets,
            origins: capacity.origins,
            key: random_key()?,
            timeout: timeout_units(timeouts, hz, shift),
        };
        let (program, tables) = load(profile, &settings, Source::New(capacity))
            .map_err(|error| without_memory(error, max_connections, capacity))?;
        Ok(Plane {
            tables: tables.context("a new program came without tables")?,
            settings,
            capacity,
            clock,
            programs: vec![program],
            arena: RingArena::new(capacity.ring_lines as usize),
            nexthops: NextHops::default(),
            backends: Vec::new(),
            services: 0,
            loads: Reconciler::default(),
        })
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What the programs were loaded with.
    pub fn settings(&self) -> &lb_settings {
        &self.settings
    }

    /// Every backend that has a row.
    pub fn backends(&self) -> &[BackendId] {
        &self.backends
    }

    /// Writes the services into tables that have none yet (call it once): backends first, then rings, then the directory
    /// that makes packets find them. The backends have no next hop until [`Plane::set_next_hop`].
    pub fn apply(&mut self, services: &[Service]) -> Result<()> {
        let mut directory = Directory::new(
            self.capacity.service_buckets,
            self.capacity.origins,
            [self.settings.key[0], self.settings.key[1]],
        );
        for service in services {
            self.add_service(service, &mut directory)
                .with_context(|| format!("could not set up service {}/{}", service.vip, service.protocol))?;
        }
        self.mark_shared(services)?;
        let lines = directory_lines(self.capacity.directory_lines())?;
        directory.write(MapHandle::try_from(&lines).context("could not take hold of the new directory")?)?;
        use std::os::fd::{AsFd as _, AsRawFd as _};
        self.tables
            .directory
            .update(&0u32.to_ne_bytes(), &lines.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .context("could not publish the directory of services")
    }

    fn add_service(&mut self, service: &Service, directory: &mut Directory) -> Result<()> {
        let index = self.services.checked_add(1).context("there are 65,535 services already")?;
        self.services = index;
        let mut slots = Vec::new();
        for backend in &service.backends {
            let row = u16::try_from(self.backends.len() + 1).context("there are 65,535 backends already")?;
            self.tables.backends.set(
                usize::from(row),
                lb_backend {
                    addr: addr_of(*backend.address.ip()),
                    port: backend.address.port().to_be(),
                    service: index,
                    state: lb_backend_state::LB_BACKEND_UP.0 as u8,
                    flags: flags_row(service),
                    weight: backend.weight.get(),
                    ..Default::default()
                },
            )?;
            self.backends.push(BackendId { index: row, address: backend.address });
            slots.push((*backend, row));
            directory.add_origin(
                backend.address,
                service.protocol,
                lb_pair { service: index, backend: row },
            )?;
        }
        self.tables.services.set(
            usize::from(index),
            lb_service {
                addr: addr_of(*service.vip.ip()),
                port: service.vip.port().to_be(),
                proto: service.protocol.number(),
                scheduler: scheduler_row(service.scheduler).0 as u8,
                sticky: service
                    .sticky
                    .map_or(0, |time| units(time, self.settings.hz, self.settings.clock_shift)),
                ..Default::default()
            },
        )?;
        let ring = ring::build(service.scheduler, &slots);
        let first = self.arena.take(rings::lines(ring.len())).context("the ring array is full")?;
        rings::write(&self.tables.rings, first, &ring)?;
        rings::publish(&self.tables.services, index, first, ring.len())?;
        self.publish_members(index, &ring::members(service.scheduler, &slots))?;
        directory.add_service(service.vip, service.protocol, index)
    }

    fn publish_members(&mut self, service: u16, members: &[u16]) -> Result<()> {
        if members.is_empty() {
            return rings::publish_members(&self.tables.services, service, 0, 0);
        }
        let first = self.arena.take(rings::lines(members.len())).context("the ring array is full")?;
        rings::write(&self.tables.rings, first, members)?;
        rings::publish_members(&self.tables.services, service, first, members.len())
    }

    /// Marks the backends whose address, port and protocol are in several services: before one of them gets a connection,
    /// the program checks that its replies could be told from those of the others.
    fn mark_shared(&self, services: &[Service]) -> Result<()> {
        let mut rows: HashMap<(SocketAddrV4, Protocol), Vec<u16>> = HashMap::new();
        let protocols =
            services.iter().flat_map(|service| service.backends.iter().map(move |_| service.protocol));
        for (backend, protocol) in self.backends.iter().zip(protocols) {
            rows.entry((backend.address, protocol)).or_default().push(backend.index);
        }
        for row in rows.into_values().filter(|rows| rows.len() > 1).flatten() {
            self.tables
                .backends
                .byte(usize::from(row), offset_of!(lb_backend, flags))
                .with_context(|| format!("there is no backend {row}"))?
                .fetch_or(lb_backend_flags::LB_BACKEND_SHARED.0 as u8, Ordering::Release);
        }
        Ok(())
    }

    /// The next hops, to be changed, with the tables that they are in.
    pub fn next_hops(&mut self) -> (&mut NextHops, &Tables) {
        (&mut self.nexthops, &self.tables)
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

    /// Attaches the program to an interface.
    pub fn attach(
        &mut self,
        ifindex: u32,
        interface: &str,
        mode: Mode,
        profile: Profile,
    ) -> Result<Attached> {
        let program = self.program(profile)?;
        match Attachment::new(program, ifindex, mode) {
            Ok(attachment) => Ok(Attached::Yes(attachment)),
            Err(error) if is_unsupported(&error) => Ok(Attached::Unsupported(error)),
            Err(error) if is_taken(&error) => match program_on(ifindex) {
                Some(id) => match program_name(id).as_deref() {
                    Some("xdp_lb") => bail!(
                        "{interface} already has another xdp-lb (program id {id}), with another --pin-dir: stop that one"
                    ),
                    name => bail!(
                        "{interface} already has another XDP program ({}, id {id}): stop what attached it (or, if it was \
                         attached without a link: ip link set dev {interface} xdp off)",
                        name.unwrap_or("no name")
                    ),
                },
                None => Err(anyhow!(error))
                    .with_context(|| format!("another program is being attached to {interface}")),
            },
            Err(error) => Err(anyhow!(error)).with_context(|| {
                let mode = if mode == Mode::Native { "native" } else { "SKB" };
                format!("could not attach the program to {interface} in {mode} mode")
            }),
        }
    }

    /// The copy of the program for a profile, loaded on first use.
    pub fn program(&mut self, profile: Profile) -> Result<&Program> {
        let at = match self.programs.iter().position(|program| program.profile == profile) {
            Some(at) => at,
            None => {
                let (program, _) = load(profile, &self.settings, Source::Shared(&self.tables))?;
                self.programs.push(program);
                self.programs.len() - 1
            }
        };
        Ok(&self.programs[at])
    }

    /// Sets the table's clock; for programs of a profile with a test clock.
    pub fn set_test_clock(&self, now: u32) -> Result<()> {
        self.programs.iter().try_for_each(|program| program.set_test_clock(now))
    }

    /// Sets what programs of such a profile take for a random number.
    pub fn set_test_random(&self, number: u32) -> Result<()> {
        self.programs.iter().try_for_each(|program| program.set_test_random(number))
    }

    /// Pins tables and programs.
    pub fn pin(&self, pin_dir: &Path) -> Result<()> {
        self.tables.pin(pin_dir)?;
        for program in &self.programs {
            pin(program.fd(), &pin_dir.join(format!("{PROGRAM_PREFIX}{}", program.profile.name())))?;
        }
        Ok(())
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
        let sweeper = Sweeper::new(self.tables.walked(), self.settings, now as u16);
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
        let sweeper = Sweeper::new(self.tables.walked(), self.settings, now);
        recount(self.tables.loads(), || sweeper.sweep(|_| {}).counted)
    }

    /// Forgets which clients were to come back to a backend: before its index is given to another. Returns how many.
    pub fn forget_clients(&self, backend: u16) -> Result<usize> {
        self.tables.affinity().forget_backend(backend)
    }
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

/// What became of an attempt to attach.
pub enum Attached {
    /// The program runs.
    Yes(Attachment),
    /// The driver does not do this mode; the kernel's error.
    Unsupported(std::io::Error),
}

/// Lines that a service's ring and its members take.
fn ring_lines(service: &Service) -> usize {
    let members = if service.scheduler == Scheduler::LeastConn { ring::MAX_MEMBERS } else { 0 };
    rings::lines(ring_slots(service)) + rings::lines(members)
}

/// What packets of its backends' connections have to do.
fn flags_row(service: &Service) -> u8 {
    let counted =
        if service.scheduler == Scheduler::LeastConn { lb_backend_flags::LB_BACKEND_COUNTED.0 } else { 0 };
    let sticky = if service.sticky.is_some() { lb_backend_flags::LB_BACKEND_STICKY.0 } else { 0 };
    (counted | sticky) as u8
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

/// A duration in units of the table's clock, rounded up.
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
