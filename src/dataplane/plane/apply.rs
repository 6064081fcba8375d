//! Brings the tables from what is in them to another configuration while packets pass.
//!
//! Two steps: *stage* writes what no packet refers to yet and may fail; *publish* makes packets find it. What is the same in
//! both configurations is left alone: a service keeps its index, ring and rotation, a backend its index and next hop.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::inventory::{BackendRow, Inventory, ServiceRow, ensure_distinct};
use super::{BackendId, Plane, scheduler_row, units};
use crate::dataplane::connections::State;
use crate::dataplane::directory::addr_of;
use crate::dataplane::load::directory_lines;
use crate::dataplane::rings::{self, RingArena};
use crate::dataplane::types::{
    lb_backend, lb_backend_flags, lb_backend_load, lb_backend_state, lb_phase, lb_service, lb_service_state,
    lb_settings,
};
use crate::dataplane::usage::{Usage, service_of};
use crate::model::{Service, Step, diff};
use crate::ring;

/// A configuration that is written down but not published.
pub(super) struct Staged {
    inventory: Inventory,
    arena: RingArena,
    /// The new directory.
    lines: MapHandle,
    new_services: Vec<u16>,
    new_backends: Vec<u16>,
    lists: Vec<NewList>,
    gone: Vec<Gone>,
}

/// Lines of the ring array: the first, how many.
type Run = (usize, usize);

/// Slots to be written from a line on.
type Written = (usize, Vec<u16>);

/// A service that gets another ring, or other members.
struct NewList {
    service: u16,
    kind: List,
    first: usize,
    slots: usize,
    old: Run,
}

/// What lies in lines of the ring array.
#[derive(Clone, Copy)]
enum List {
    Ring,
    Members,
}

impl List {
    fn of(self, row: &mut ServiceRow) -> &mut (usize, usize) {
        match self {
            List::Ring => &mut row.ring,
            List::Members => &mut row.members,
        }
    }
}

/// A service that goes.
struct Gone {
    service: u16,
    backends: Vec<u16>,
    lists: [Run; 2],
}

impl Plane {
    /// Writes down a configuration: rows of new services and backends, and new rings, in rows and lines that are free. No
    /// packet finds them before [`Plane::publish`]; new backends may be given their next hops until then. Fails where there
    /// is no room, and then nothing is changed.
    pub fn stage(&mut self, services: &[Service]) -> Result<Vec<Step>> {
        ensure_distinct(services)?;
        self.abandon();
        let steps = diff(&self.configured_like(services), services);
        let staged = self.plan(services)?;
        self.backends = staged.inventory.backends.iter().map(|(index, row)| row.id(*index)).collect();
        self.staged = Some(staged);
        Ok(steps)
    }

    /// What is configured now. Of times only units of the table's clock are known: one that is the same in these is the same.
    fn configured_like(&self, services: &[Service]) -> Vec<Service> {
        let lb_settings { hz, clock_shift, .. } = self.settings;
        let time = |units: u32| {
            Duration::from_secs_f64(f64::from(units) * f64::from(1u32 << clock_shift) / f64::from(hz))
        };
        let mut configured = self.inventory.configured(time);
        for old in &mut configured {
            let new = services.iter().find(|new| (new.vip, new.protocol) == (old.vip, old.protocol));
            if let Some(new) = new.filter(|new| self.sticky_units(new) == self.sticky_units(old)) {
                old.sticky = new.sticky;
            }
        }
        configured
    }

    fn sticky_units(&self, service: &Service) -> u32 {
        let lb_settings { hz, clock_shift, .. } = self.settings;
        service.sticky.map_or(0, |time| units(time, hz, clock_shift))
    }

    fn plan(&self, services: &[Service]) -> Result<Staged> {
        let capacity = &self.capacity;
        let mut inventory = self.inventory.clone();
        let mut placed = Vec::new();
        let (mut new_services, mut new_backends) = (Vec::new(), Vec::new());
        let mut configured = BTreeSet::new();
        for service in services {
            let sticky = self.sticky_units(service);
            let (index, is_new) = inventory.place_service(service, sticky, capacity)?;
            new_services.extend(is_new.then_some(index));
            let mut slots = Vec::new();
            for backend in &service.backends {
                let (row, is_new) = inventory.place_backend(index, backend, capacity)?;
                new_backends.extend(is_new.then_some(row));
                configured.insert(row);
                slots.push((*backend, row));
            }
            let members = ring::members(service.scheduler, &slots);
            placed.push((index, [ring::build(service.scheduler, &slots), members]));
        }
        let mut gone = Vec::new();
        let kept: BTreeSet<u16> = placed.iter().map(|(index, _)| *index).collect();
        for index in self.inventory.services.keys().filter(|index| !kept.contains(index)) {
            let row = &self.inventory.services[index];
            let lists = [row.ring, row.members].map(|(first, slots)| (first, rings::lines(slots)));
            gone.push(Gone { service: *index, backends: inventory.remove_service(*index), lists });
        }
        for (_, row) in inventory.backends.iter_mut().filter(|(index, _)| !configured.contains(index)) {
            row.removed = true;
        }
        let mut arena = self.arena.clone();
        let (lists, written) = self.place_lists(&mut inventory, &mut arena, placed)?;
        let directory = inventory.directory(capacity, [self.settings.key[0], self.settings.key[1]])?;
        // From here on nothing lacks room.
        let lines = directory_lines(capacity.directory_lines())?;
        directory.write(MapHandle::try_from(&lines).context("could not take hold of the new directory")?)?;
        for (first, slots) in written {
            rings::write(&self.tables.rings, first, &slots)?;
        }
        self.write_new(&inventory, &new_services, &new_backends)?;
        Ok(Staged { inventory, arena, lines, new_services, new_backends, lists, gone })
    }

    /// Finds free lines for the rings and members that are not there as they should be. Returns them, and what is to be
    /// written where.
    fn place_lists(
        &self,
        inventory: &mut Inventory,
        arena: &mut RingArena,
        placed: Vec<(u16, [Vec<u16>; 2])>,
    ) -> Result<(Vec<NewList>, Vec<Written>)> {
        let (mut lists, mut written) = (Vec::new(), Vec::new());
        let each = placed.into_iter().flat_map(|(index, [ring, members])| {
            [(index, List::Ring, ring), (index, List::Members, members)]
        });
        for (service, kind, slots) in each {
            let row = inventory.services.get_mut(&service).context("a service has no row")?;
            let place = kind.of(row);
            let (first, length) = *place;
            if length == slots.len() && rings::read(&self.tables.rings, first, length) == slots {
                continue;
            }
            let lines = rings::lines(slots.len());
            let new = match lines {
                0 => 0,
                lines => arena.take(lines).with_context(|| {
                    format!("there is no room for a ring of {lines} lines in {}", self.capacity.ring_lines)
                })?,
            };
            *place = (new, slots.len());
            let old = (first, rings::lines(length));
            lists.push(NewList { service, kind, first: new, slots: slots.len(), old });
            written.push((new, slots));
        }
        Ok((lists, written))
    }

    /// Services first: a backend's row names its service's.
    fn write_new(&self, inventory: &Inventory, services: &[u16], backends: &[u16]) -> Result<()> {
        for index in services {
            let row = inventory.services.get(index).context("a service has no row")?;
            self.tables.service_states.set(usize::from(*index), lb_service_state::default())?;
            self.tables.services.set(
                usize::from(*index),
                lb_service {
                    addr: addr_of(*row.vip.ip()),
                    port: row.vip.port().to_be(),
                    proto: row.protocol.number(),
                    sticky: row.sticky,
                    ..Default::default()
                },
            )?;
        }
        for index in backends {
            let row = inventory.backends.get(index).context("a backend has no row")?;
            let service = inventory.services.get(&row.service).context("a backend belongs to no service")?;
            self.tables.clear_backend_counters(*index)?;
            self.tables.backend_loads.set(usize::from(*index), lb_backend_load::default())?;
            self.tables.backends.set(
                usize::from(*index),
                lb_backend {
                    addr: addr_of(*row.address.ip()),
                    port: row.address.port().to_be(),
                    service: row.service,
                    state: lb_backend_state::LB_BACKEND_UP.0 as u8,
                    flags: service.backend_flags() as u8,
                    weight: row.weight.get(),
                    ..Default::default()
                },
            )?;
        }
        Ok(())
    }

    /// Takes back what [`Plane::stage`] wrote.
    pub(super) fn abandon(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        for index in staged.new_backends {
            self.store_backend(index, offset_of!(lb_backend, state), lb_backend_state::LB_BACKEND_NONE.0);
        }
        for index in staged.new_services {
            self.store_service(index, offset_of!(lb_service, proto), 0);
        }
    }

    /// Makes packets find what is staged. From here on it is the configuration.
    pub fn publish(&mut self) -> Result<()> {
        self.forget_clients_of_new()?;
        let staged = self.staged.take().context("there is no configuration to publish")?;
        self.write_backends(&staged.inventory, |row| !row.removed);
        for (index, row) in &staged.inventory.services {
            let scheduler = row.scheduler.map_or(0, |scheduler| scheduler_row(scheduler).0);
            self.store_service(*index, offset_of!(lb_service, scheduler), scheduler);
            if let Some(sticky) =
                self.tables.services.quad(usize::from(*index), offset_of!(lb_service, sticky))
            {
                sticky.store(row.sticky, Ordering::Release);
            }
        }
        for list in &staged.lists {
            self.publish_list(list.service, list.kind, list.first, list.slots)?;
        }
        for gone in &staged.gone {
            self.publish_list(gone.service, List::Ring, 0, 0)?;
            self.publish_list(gone.service, List::Members, 0, 0)?;
        }
        // No ring has these any more.
        self.write_backends(&staged.inventory, |row| row.removed);
        self.lines = Some(staged.lines);
        self.grace()?;
        // No packet sees the old directory or an old ring any more.
        for gone in &staged.gone {
            for backend in &gone.backends {
                self.store_backend(
                    *backend,
                    offset_of!(lb_backend, state),
                    lb_backend_state::LB_BACKEND_NONE.0,
                );
            }
            self.store_service(gone.service, offset_of!(lb_service, proto), 0);
        }
        self.inventory = staged.inventory;
        self.arena = staged.arena;
        let gone = staged.gone.iter().flat_map(|gone| gone.lists);
        let old = staged.lists.iter().map(|list| list.old).chain(gone);
        old.for_each(|(first, lines)| self.arena.give_back(first, lines));
        self.backends = self.inventory.backends.iter().map(|(index, row)| row.id(*index)).collect();
        Ok(())
    }

    /// A process that was killed may have freed a row before it forgot the clients of the backend that had it.
    fn forget_clients_of_new(&self) -> Result<()> {
        let new = self.staged.iter().flat_map(|staged| staged.new_backends.iter().copied());
        self.tables.affinity().forget_backends(&new.collect()).map(|_| ())
    }

    fn publish_list(&self, service: u16, kind: List, first: usize, slots: usize) -> Result<()> {
        match kind {
            List::Ring => rings::publish(&self.tables.services, service, first, slots),
            List::Members => rings::publish_members(&self.tables.services, service, first, slots),
        }
    }

    /// [`Plane::stage`] and [`Plane::publish`].
    pub fn apply(&mut self, services: &[Service]) -> Result<()> {
        self.stage(services)?;
        self.publish()
    }

    /// Writes what may have changed in the rows of backends, field by field. What goes is marked before it drains, what comes
    /// back is up before the mark goes: a crash between the two must not leave a configured backend draining.
    fn write_backends(&self, inventory: &Inventory, is: impl Fn(&BackendRow) -> bool) {
        const REMOVED: u32 = lb_backend_flags::LB_BACKEND_REMOVED.0;
        let shared = inventory.shared();
        for (index, row) in inventory.backends.iter().filter(|(_, row)| is(row)) {
            let Some(before) = self.tables.backends.get(usize::from(*index)) else { continue };
            let was_removed = u32::from(before.flags) & REMOVED != 0;
            let state = |state: lb_backend_state| {
                self.store_backend(*index, offset_of!(lb_backend, state), state.0);
            };
            if was_removed && !row.removed {
                state(lb_backend_state::LB_BACKEND_UP);
            }
            let mut flags = inventory.services.get(&row.service).map_or(0, ServiceRow::backend_flags);
            flags |= if row.removed { REMOVED } else { 0 };
            flags |= if shared.contains(index) { lb_backend_flags::LB_BACKEND_SHARED.0 } else { 0 };
            self.store_backend(*index, offset_of!(lb_backend, flags), flags);
            self.store_backend(*index, offset_of!(lb_backend, weight), row.weight.get().into());
            if row.removed && u32::from(before.state) == lb_backend_state::LB_BACKEND_UP.0 {
                state(lb_backend_state::LB_BACKEND_DRAIN);
            }
        }
    }

    /// Returns when no packet is on its way any more that was on its way at the call: the kernel waits for that when it
    /// replaces an inner map, be it by itself.
    pub(super) fn grace(&self) -> Result<()> {
        let lines = self.lines.as_ref().context("no configuration was published yet")?;
        self.tables
            .directory
            .update(&0u32.to_ne_bytes(), &lines.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .context("could not publish the directory of services")
    }

    fn store_backend(&self, index: u16, offset: usize, value: u32) {
        if let Some(byte) = self.tables.backends.byte(usize::from(index), offset) {
            byte.store(value as u8, Ordering::Release);
        }
    }

    fn store_service(&self, index: u16, offset: usize, value: u32) {
        if let Some(byte) = self.tables.services.byte(usize::from(index), offset) {
            byte.store(value as u8, Ordering::Release);
        }
    }

    /// Whether something was removed whose connections are still in the table, so that [`Plane::collect`] has work to do.
    pub fn has_leavings(&self) -> bool {
        let inventory = &self.inventory;
        !inventory.resting_services.is_empty()
            || !inventory.resting_backends.is_empty()
            || inventory.backends.values().any(|row| row.removed)
    }

    /// Forgets the connections of removed services, and those of removed backends that have ended; frees the rows that none
    /// is left of. Returns the backends that are gone for good. Call it after sweeps.
    pub fn collect(&mut self) -> Result<Vec<BackendId>> {
        if !self.has_leavings() || self.staged.is_some() {
            return Ok(Vec::new());
        }
        let now = self.clock.now(self.settings.clock_shift)?;
        let inventory = &self.inventory;
        let forget = |key: u64, state: State| {
            let row = inventory.backends.get(&state.backend());
            inventory.resting_services.contains(&service_of(key))
                || (row.is_none_or(|row| row.removed) && self.has_ended(state, now))
        };
        let loads = self.tables.loads();
        let usage = Usage::of(&self.tables.connections, forget, |state| {
            if state.counted() {
                loads.ended(state.backend());
            }
        });
        self.free_rows(&usage)
    }

    /// Frees the rows of what was removed that no connection names. What fails leaves the inventory as it was, so that the
    /// next sweep tries once more.
    fn free_rows(&mut self, usage: &Usage) -> Result<Vec<BackendId>> {
        let mut inventory = self.inventory.clone();
        inventory.resting_services.retain(|index| usage.names_service(*index));
        inventory.resting_backends.retain(|index| usage.names_backend(*index));
        inventory.backends.retain(|index, row| !row.removed || usage.names_backend(*index));
        let before = &self.inventory;
        let freed: Vec<BackendId> = before
            .backends
            .iter()
            .filter(|(index, _)| !inventory.backends.contains_key(index))
            .map(|(index, row)| row.id(*index))
            .collect();
        let rested = before.resting_backends.difference(&inventory.resting_backends).copied();
        let forgotten = freed.iter().map(|backend| backend.index).chain(rested);
        self.tables.affinity().forget_backends(&forgotten.collect())?;
        if !freed.is_empty() {
            self.publish_directory(&inventory)?;
        }
        for backend in &freed {
            self.store_backend(
                backend.index,
                offset_of!(lb_backend, state),
                lb_backend_state::LB_BACKEND_NONE.0,
            );
        }
        self.inventory = inventory;
        self.backends.retain(|backend| !freed.contains(backend));
        Ok(freed)
    }

    /// Makes packets find what is in an inventory, and returns when none finds anything else.
    fn publish_directory(&mut self, inventory: &Inventory) -> Result<()> {
        let directory = inventory.directory(&self.capacity, [self.settings.key[0], self.settings.key[1]])?;
        let lines = directory_lines(self.capacity.directory_lines())?;
        directory.write(MapHandle::try_from(&lines).context("could not take hold of the new directory")?)?;
        let before = self.lines.replace(lines);
        let published = self.grace();
        if published.is_err() {
            // A later grace must not publish it by the way.
            self.lines = before;
        }
        published
    }

    /// Of a removed backend nothing is kept that the timeouts do not protect. A closed connection may still have packets
    /// under way for as long as a closing one.
    fn has_ended(&self, state: State, now: u16) -> bool {
        let timeouts = &self.settings.timeout;
        if state.phase() == lb_phase::LB_PHASE_CLOSED {
            return state.expired() || state.age(now) > timeouts[lb_phase::LB_PHASE_CLOSING.0 as usize];
        }
        state.expired() || state.over_timeout(now, timeouts)
    }
}

impl BackendRow {
    pub(super) fn id(&self, index: u16) -> BackendId {
        BackendId { index, address: self.address }
    }
}
