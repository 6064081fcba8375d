//! Which rows are used for what: the control plane's view of the tables, read back from them when they are taken over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::rows::{BackendRow, ServiceRow, Times};
use super::spread::Share;
use crate::dataplane::capacity::Capacity;
use crate::dataplane::directory::Directory;
use crate::dataplane::mapped::Rows;
use crate::dataplane::rings;
use crate::dataplane::types::{lb_backend, lb_pair, lb_service};
use crate::dataplane::usage::Usage;
use crate::model::{Backend, Initial, Protocol, Service};

/// Services and backends by their index.
#[derive(Clone, Default)]
pub struct Inventory {
    services: BTreeMap<u16, ServiceRow>,
    backends: BTreeMap<u16, BackendRow>,
    service_of: HashMap<(SocketAddrV4, Protocol), u16>,
    backend_of: HashMap<(u16, SocketAddrV4), u16>,
    /// Rows that are free, but that entries of the connection table still name.
    pub resting_services: BTreeSet<u16>,
    pub resting_backends: BTreeSet<u16>,
    /// No row before these is free.
    first_free: FirstFree,
}

#[derive(Clone, Copy)]
struct FirstFree {
    service: u32,
    backend: u32,
}

impl Default for FirstFree {
    /// Row 0 means "none".
    fn default() -> Self {
        FirstFree { service: 1, backend: 1 }
    }
}

impl Inventory {
    /// Reads the rows of tables that are in use. `usage` is what their connections name.
    pub fn read(services: &Rows<lb_service>, backends: &Rows<lb_backend>, usage: &Usage) -> Inventory {
        let mut inventory = Inventory::default();
        for index in rows_of(services.len()) {
            if let Some(row) = services.get(index.into()).as_ref().and_then(ServiceRow::read) {
                inventory.insert_service(index, row);
            }
        }
        for index in rows_of(backends.len()) {
            let Some(row) = backends.get(index.into()).as_ref().and_then(BackendRow::read) else { continue };
            let Some(service) = inventory.services.get_mut(&row.service) else { continue };
            if !row.removed {
                service.order.push(index);
            }
            inventory.insert_backend(index, row);
        }
        inventory.resting_services =
            usage.services().filter(|index| !inventory.services.contains_key(index)).collect();
        inventory.resting_backends =
            usage.backends().filter(|index| !inventory.backends.contains_key(index)).collect();
        inventory
    }

    /// The services by their index.
    pub fn services(&self) -> &BTreeMap<u16, ServiceRow> {
        &self.services
    }

    /// The backends by their index, removed ones that are not free yet included.
    pub fn backends(&self) -> &BTreeMap<u16, BackendRow> {
        &self.backends
    }

    /// All rings are to be built anew.
    pub fn forget_rings(&mut self) {
        for row in self.services.values_mut() {
            (row.ring, row.members, row.spread) = ((0, 0), (0, 0), None);
        }
    }

    /// A service's row, to be changed; address, port and protocol stay.
    pub fn service_mut(&mut self, index: u16) -> Option<&mut ServiceRow> {
        self.services.get_mut(&index)
    }

    /// A backend's row, to be changed; service, address and port stay.
    pub fn backend_mut(&mut self, index: u16) -> Option<&mut BackendRow> {
        self.backends.get_mut(&index)
    }

    /// The row of a backend of a service.
    pub fn find(&self, vip: SocketAddrV4, protocol: Protocol, backend: SocketAddrV4) -> Option<u16> {
        let service = self.service_of.get(&(vip, protocol))?;
        self.backend_of.get(&(*service, backend)).copied()
    }

    fn insert_service(&mut self, index: u16, row: ServiceRow) {
        self.service_of.insert((row.vip, row.protocol), index);
        self.services.insert(index, row);
    }

    fn insert_backend(&mut self, index: u16, row: BackendRow) {
        self.backend_of.insert((row.service, row.address), index);
        self.backends.insert(index, row);
    }

    /// The services that are configured, in the order of their rows. `time` makes a time of units of the table's clock.
    pub fn configured(&self, time: impl Fn(u32) -> Duration) -> Vec<Service> {
        let backend = |index: &u16| {
            let row = self.backends.get(index)?;
            Some(Backend { state: row.admin, ..Backend::new(row.address, row.weight) })
        };
        let service = |row: &ServiceRow| Service {
            scheduler: row.scheduler.unwrap_or_default(),
            sticky: (row.sticky != 0).then(|| time(row.sticky)),
            on_empty: row.on_empty,
            ..Service::new(row.vip, row.protocol, row.order.iter().filter_map(backend).collect())
        };
        self.services.values().map(service).collect()
    }

    /// Rows that became free since the last placing are found again.
    pub fn rewind(&mut self) {
        self.first_free = FirstFree::default();
    }

    /// The row of a service, and whether it is new. `times` are in units of the table's clock.
    pub fn place_service(
        &mut self,
        service: &Service,
        times: Times,
        capacity: &Capacity,
    ) -> Result<(u16, bool)> {
        if let Some(index) = self.service_of.get(&(service.vip, service.protocol)).copied() {
            let row = self.services.get_mut(&index).context("a service has no row")?;
            row.configure(service, times);
            return Ok((index, false));
        }
        let taken = |index| self.services.contains_key(&index) || self.resting_services.contains(&index);
        let index = free_row(&mut self.first_free.service, capacity.services, taken)
            .with_context(|| format!("there is no room for another service in {} rows", capacity.services))?;
        self.insert_service(index, ServiceRow::new(service, times));
        Ok((index, true))
    }

    /// The row of a backend of a service, and whether it is new.
    pub fn place_backend(
        &mut self,
        service: u16,
        backend: &Backend,
        initial: Initial,
        capacity: &Capacity,
    ) -> Result<(u16, bool)> {
        if let Some(index) = self.backend_of.get(&(service, backend.address)).copied() {
            let row = self.backends.get_mut(&index).context("a backend has no row")?;
            row.configure(backend);
            return Ok((index, false));
        }
        let taken = |index| self.backends.contains_key(&index) || self.resting_backends.contains(&index);
        let index = free_row(&mut self.first_free.backend, capacity.backends, taken)
            .with_context(|| format!("there is no room for another backend in {} rows", capacity.backends))?;
        self.insert_backend(index, BackendRow::new(service, backend, initial));
        Ok((index, true))
    }

    /// Takes a service and its backends out; their rows rest until no connection names them.
    pub fn remove_service(&mut self, index: u16) -> Vec<u16> {
        if let Some(row) = self.services.remove(&index) {
            self.service_of.remove(&(row.vip, row.protocol));
        }
        self.resting_services.insert(index);
        let rows: Vec<u16> =
            self.backends.iter().filter(|(_, row)| row.service == index).map(|(row, _)| *row).collect();
        for row in &rows {
            self.free_backend(*row);
            self.resting_backends.insert(*row);
        }
        rows
    }

    /// Takes a backend out, whose row is free then.
    pub fn free_backend(&mut self, index: u16) {
        if let Some(row) = self.backends.remove(&index) {
            self.backend_of.remove(&(row.service, row.address));
        }
    }

    /// How a service's new connections are shared out: among those of its backends that take some.
    pub fn shares(&self, index: u16) -> Vec<Share> {
        let row = |index: &u16| {
            let row = self.backends.get(index)?;
            row.takes_new().then(|| Share {
                row: *index,
                address: row.address,
                weight: row.share.unwrap_or(row.weight),
                ramps: row.share.is_some(),
            })
        };
        self.services.get(&index).map_or(Vec::new(), |service| service.order.iter().filter_map(row).collect())
    }

    /// The backends of which another service has the address, port and protocol too.
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
        let setting_up = |row: &ServiceRow| format!("could not set up service {}/{}", row.vip, row.protocol);
        for (index, row) in &self.services {
            directory.add_service(row.vip, row.protocol, *index).with_context(|| setting_up(row))?;
        }
        for removed in [false, true] {
            for (index, row) in self.backends.iter().filter(|(_, row)| row.removed == removed) {
                let service = self.services.get(&row.service).context("a backend belongs to no service")?;
                let pair = lb_pair { service: row.service, backend: *index };
                directory
                    .add_origin(row.address, service.protocol, pair)
                    .with_context(|| setting_up(service))?;
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
        let (mut new_services, mut new_backends) = (0, 0);
        for service in services {
            let row = self.service_of.get(&(service.vip, service.protocol));
            new_services += usize::from(row.is_none());
            let known = |backend: &&Backend| {
                row.is_some_and(|row| self.backend_of.contains_key(&(*row, backend.address)))
            };
            new_backends += service.backends.iter().filter(|backend| !known(backend)).count();
        }
        (
            last(self.services.keys().last(), self.resting_services.last()) + new_services,
            last(self.backends.keys().last(), self.resting_backends.last()) + new_backends,
        )
    }
}

/// Every index of a table but 0, which means "none".
fn rows_of(rows: usize) -> impl Iterator<Item = u16> {
    1..=u16::try_from(rows.saturating_sub(1)).unwrap_or(u16::MAX)
}

/// The first row from `first` on that is not taken; the next search begins behind it.
fn free_row(first: &mut u32, rows: u32, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let index = (*first..rows.min(u32::from(u16::MAX) + 1)).find(|index| !taken(*index as u16))?;
    *first = index + 1;
    Some(index as u16)
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
