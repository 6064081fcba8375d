//! Which rows are used for what: the control plane's view of the tables, read back from them when they are taken over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::scheduler_of;
use crate::dataplane::directory::{Directory, ipv4_of};
use crate::dataplane::mapped::Rows;
use crate::dataplane::rings;
use crate::dataplane::tables::Capacity;
use crate::dataplane::types::{lb_backend, lb_backend_flags, lb_backend_state, lb_pair, lb_service};
use crate::dataplane::usage::Usage;
use crate::model::{Backend, Protocol, Scheduler, Service, Weight};

/// Services and backends by their index.
#[derive(Clone, Default)]
pub struct Inventory {
    pub services: BTreeMap<u16, ServiceRow>,
    pub backends: BTreeMap<u16, BackendRow>,
    /// Rows that are free, but that entries of the connection table still name.
    pub resting_services: BTreeSet<u16>,
    pub resting_backends: BTreeSet<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    pub vip: SocketAddrV4,
    pub protocol: Protocol,
    /// `None` for one that this version does not know.
    pub scheduler: Option<Scheduler>,
    /// Where its ring lies: first line, number of slots.
    pub ring: (usize, usize),
    /// The same of its members.
    pub members: (usize, usize),
    /// How long its clients are remembered, in units of the table's clock; 0: they are not.
    pub sticky: u32,
}

impl ServiceRow {
    /// The flags of its backends' rows that follow from its configuration.
    pub fn backend_flags(&self) -> u32 {
        let counted = self.scheduler == Some(Scheduler::LeastConn);
        let flag = |is: bool, flag: lb_backend_flags| if is { flag.0 } else { 0 };
        flag(counted, lb_backend_flags::LB_BACKEND_COUNTED)
            | flag(self.sticky != 0, lb_backend_flags::LB_BACKEND_STICKY)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRow {
    pub service: u16,
    pub address: SocketAddrV4,
    pub weight: Weight,
    /// Not configured any more; it drains.
    pub removed: bool,
}

impl Inventory {
    /// Reads the rows of tables that are in use. `usage` is what their connections name.
    pub fn read(services: &Rows<lb_service>, backends: &Rows<lb_backend>, usage: &Usage) -> Inventory {
        let mut inventory = Inventory::default();
        for index in 1..services.len().min(usize::from(u16::MAX) + 1) {
            let Some(row) = services.get(index) else { continue };
            let Some(protocol) = Protocol::from_number(row.proto) else { continue };
            let vip = SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port));
            let scheduler = scheduler_of(row.scheduler);
            let row = ServiceRow {
                vip,
                protocol,
                scheduler,
                ring: rings::published(row.ring),
                members: rings::published(row.members),
                sticky: row.sticky,
            };
            inventory.services.insert(index as u16, row);
        }
        for index in 1..backends.len().min(usize::from(u16::MAX) + 1) {
            let Some(row) = backends.get(index) else { continue };
            let free = u32::from(row.state) == lb_backend_state::LB_BACKEND_NONE.0;
            if free || !inventory.services.contains_key(&row.service) {
                continue;
            }
            let row = BackendRow {
                service: row.service,
                address: SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)),
                weight: Weight::new(row.weight).unwrap_or_default(),
                removed: u32::from(row.flags) & lb_backend_flags::LB_BACKEND_REMOVED.0 != 0,
            };
            inventory.backends.insert(index as u16, row);
        }
        inventory.resting_services =
            usage.services().filter(|index| !inventory.services.contains_key(index)).collect();
        inventory.resting_backends =
            usage.backends().filter(|index| !inventory.backends.contains_key(index)).collect();
        inventory
    }

    /// The services that are configured, in the order of their rows. `time` makes a time of units of the table's clock.
    pub fn configured(&self, time: impl Fn(u32) -> Duration) -> Vec<Service> {
        let backends = |index: u16| {
            let own = self.backends.values().filter(move |row| row.service == index && !row.removed);
            own.map(|row| Backend::new(row.address, row.weight)).collect()
        };
        let service = |(index, row): (&u16, &ServiceRow)| Service {
            scheduler: row.scheduler.unwrap_or_default(),
            sticky: (row.sticky != 0).then(|| time(row.sticky)),
            ..Service::new(row.vip, row.protocol, backends(*index))
        };
        self.services.iter().map(service).collect()
    }

    /// The row of a service, and whether it is new. `sticky` is its time in units of the table's clock.
    pub fn place_service(
        &mut self,
        service: &Service,
        sticky: u32,
        capacity: &Capacity,
    ) -> Result<(u16, bool)> {
        let same = |row: &ServiceRow| (row.vip, row.protocol) == (service.vip, service.protocol);
        if let Some((index, row)) = self.services.iter_mut().find(|(_, row)| same(row)) {
            row.scheduler = Some(service.scheduler);
            row.sticky = sticky;
            return Ok((*index, false));
        }
        let index = free_row(capacity.services, |index| {
            self.services.contains_key(&index) || self.resting_services.contains(&index)
        })
        .with_context(|| format!("there is no room for another service in {} rows", capacity.services))?;
        let row = ServiceRow {
            vip: service.vip,
            protocol: service.protocol,
            scheduler: Some(service.scheduler),
            ring: (0, 0),
            members: (0, 0),
            sticky,
        };
        self.services.insert(index, row);
        Ok((index, true))
    }

    /// The row of a backend of a service, and whether it is new.
    pub fn place_backend(
        &mut self,
        service: u16,
        backend: &Backend,
        capacity: &Capacity,
    ) -> Result<(u16, bool)> {
        let same = |row: &BackendRow| (row.service, row.address) == (service, backend.address);
        if let Some((index, row)) = self.backends.iter_mut().find(|(_, row)| same(row)) {
            row.weight = backend.weight;
            row.removed = false;
            return Ok((*index, false));
        }
        let index = free_row(capacity.backends, |index| {
            self.backends.contains_key(&index) || self.resting_backends.contains(&index)
        })
        .with_context(|| format!("there is no room for another backend in {} rows", capacity.backends))?;
        let row = BackendRow { service, address: backend.address, weight: backend.weight, removed: false };
        self.backends.insert(index, row);
        Ok((index, true))
    }

    /// Takes a service and its backends out; their rows rest until no connection names them.
    pub fn remove_service(&mut self, index: u16) -> Vec<u16> {
        self.services.remove(&index);
        self.resting_services.insert(index);
        let rows: Vec<u16> =
            self.backends.iter().filter(|(_, row)| row.service == index).map(|(row, _)| *row).collect();
        for row in &rows {
            self.backends.remove(row);
            self.resting_backends.insert(*row);
        }
        rows
    }

    /// The flags of a backend's row that follow from the configuration.
    pub fn shared(&self) -> BTreeSet<u16> {
        let mut rows: HashMap<(SocketAddrV4, Protocol), Vec<u16>> = HashMap::new();
        for (index, row) in &self.backends {
            let Some(service) = self.services.get(&row.service) else { continue };
            rows.entry((row.address, service.protocol)).or_default().push(*index);
        }
        rows.into_values().filter(|rows| rows.len() > 1).flatten().collect()
    }

    /// The directory of all that is in use. Removed backends are in it too: their live connections get their replies.
    pub fn directory(&self, capacity: &Capacity, seed: [u64; 2]) -> Result<Directory> {
        let mut directory = Directory::new(capacity.service_buckets, capacity.origins, seed);
        for (index, row) in &self.services {
            directory
                .add_service(row.vip, row.protocol, *index)
                .with_context(|| format!("could not set up service {}/{}", row.vip, row.protocol))?;
        }
        for removed in [false, true] {
            for (index, row) in self.backends.iter().filter(|(_, row)| row.removed == removed) {
                let service = self.services.get(&row.service).context("a backend belongs to no service")?;
                directory
                    .add_origin(
                        row.address,
                        service.protocol,
                        lb_pair { service: row.service, backend: *index },
                    )
                    .with_context(|| {
                        format!("could not set up service {}/{}", service.vip, service.protocol)
                    })?;
            }
        }
        Ok(directory)
    }

    /// The lines of rings that are in use.
    pub fn ring_lines(&self) -> impl Iterator<Item = (usize, usize)> {
        let lists = self.services.values().flat_map(|row| [row.ring, row.members]);
        lists.map(|(first, slots)| (first, rings::lines(slots)))
    }

    /// How many rows tables need that hold all this, and `services` besides.
    pub fn needs(&self, services: &[Service]) -> (usize, usize) {
        let last =
            |rows: Option<&u16>, resting: Option<&u16>| rows.max(resting).map_or(0, |row| usize::from(*row));
        let new = services.iter().map(|service| service.backends.len()).sum::<usize>();
        (
            last(self.services.keys().last(), self.resting_services.last()) + services.len(),
            last(self.backends.keys().last(), self.resting_backends.last()) + new,
        )
    }
}

/// The first row that is not taken. Row 0 means "none".
fn free_row(rows: u32, taken: impl Fn(u16) -> bool) -> Option<u16> {
    (1..rows.min(u32::from(u16::MAX) + 1)).map(|index| index as u16).find(|index| !taken(*index))
}

/// Each service is named once.
pub fn ensure_distinct(services: &[Service]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for service in services {
        ensure!(
            seen.insert((service.vip, service.protocol.number())),
            "service {}/{} is configured twice",
            service.vip,
            service.protocol
        );
    }
    Ok(())
}
