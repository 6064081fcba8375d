//! Writes down another configuration in rows and lines that no packet refers to yet, and takes that back.
//!
//! What is the same in both configurations is left alone: a service keeps its index, ring and rotation, a backend its index
//! and next hop.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;

use super::inventory::{Inventory, ensure_distinct};
use super::rows::Times;
use super::spread::{NewList, Run};
use super::{Plane, units};
use crate::dataplane::directory::addr_of;
use crate::dataplane::load::directory_lines;
use crate::dataplane::rings::{self, RingArena};
use crate::dataplane::types::{
    lb_backend, lb_backend_answers, lb_backend_load, lb_constants, lb_phase as phase, lb_ring_line,
    lb_service, lb_service_state, lb_settings,
};
use crate::model::{Service, Step, Timeouts, diff};

/// A configuration that is written down but not published.
pub(super) struct Staged {
    pub inventory: Inventory,
    pub arena: RingArena,
    /// The new directory; `None`: that which packets use is right.
    pub lines: Option<MapHandle>,
    pub new_services: Vec<u16>,
    pub new_backends: Vec<u16>,
    pub lists: Vec<NewList>,
    pub gone: Vec<Gone>,
    before: Before,
}

/// A service that goes.
pub(super) struct Gone {
    pub service: u16,
    pub backends: Vec<u16>,
    pub lists: [Run; 2],
}

/// What was in the free rows and lines that are written.
#[derive(Default)]
struct Before {
    services: Vec<(u16, lb_service, lb_service_state)>,
    backends: Vec<(u16, lb_backend, lb_backend_load, lb_backend_answers)>,
    lines: Vec<(usize, lb_ring_line)>,
}

impl Plane {
    /// Writes down a configuration: rows of new services and backends, and new rings, in rows and lines that are free. No
    /// packet finds them before [`Plane::publish`]; new backends may be given their next hops until then. Fails where there
    /// is no room, and then nothing is changed.
    pub fn stage(&mut self, services: &[Service]) -> Result<()> {
        ensure_distinct(services)?;
        self.abandon();
        let staged = match self.plan(services) {
            Err(_) if !self.unsettled.is_empty() => {
                // Lines that were given up may be all that is missing.
                self.settle()?;
                self.plan(services)?
            }
            planned => planned?,
        };
        self.backends = staged.inventory.backends().iter().map(|(index, row)| row.id(*index)).collect();
        let staged = self.staged.insert(staged);
        let written = staged.write(&self.tables);
        if written.is_err() {
            self.abandon();
        }
        written
    }

    /// The steps from what is in the tables to these services, as far as the tables tell.
    pub fn steps_to(&self, services: &[Service]) -> Vec<Step> {
        diff(&self.configured_like(services), services)
    }

    /// What is configured now. Of times only units of the table's clock are known: one that is the same in these is the same;
    /// and what the rows do not tell is taken to be as it is asked for.
    fn configured_like(&self, services: &[Service]) -> Vec<Service> {
        let lb_settings { hz, clock_shift, .. } = self.settings;
        let time = |units: u32| {
            Duration::from_secs_f64(f64::from(units) * f64::from(1u32 << clock_shift) / f64::from(hz))
        };
        let known = services.iter().map(|service| ((service.vip, service.protocol), service));
        let known: std::collections::HashMap<_, _> = known.collect();
        let mut configured = self.inventory.configured(time);
        for old in &mut configured {
            let Some(new) = known.get(&(old.vip, old.protocol)) else { continue };
            if self.sticky_units(new) == self.sticky_units(old) {
                old.sticky = new.sticky;
            }
            (old.name, old.health, old.timeouts) = (new.name.clone(), new.health.clone(), new.timeouts);
            (old.on_down, old.slow_start) = (new.on_down, new.slow_start);
        }
        configured
    }

    fn sticky_units(&self, service: &Service) -> u32 {
        let lb_settings { hz, clock_shift, .. } = self.settings;
        service.sticky.map_or(0, |time| units(time, hz, clock_shift))
    }

    fn times(&self, service: &Service) -> Times {
        let lb_settings { hz, clock_shift, timeout: longest, .. } = self.settings;
        let Timeouts { established, unconfirmed, closing, udp } = service.timeouts;
        let own = [established, unconfirmed, closing, udp];
        let phases = [phase::LB_PHASE_ESTABLISHED, phase::LB_PHASE_UNCONFIRMED, phase::LB_PHASE_CLOSING];
        let udp_at = phase::LB_PHASE_ESTABLISHED.0 as usize + lb_constants::LB_TIMEOUT_UDP.0 as usize;
        let at = phases.map(|one| one.0 as usize).into_iter().chain([udp_at]);
        let mut timeout = [0; 4];
        for ((set, own), at) in timeout.iter_mut().zip(own).zip(at) {
            let own = units(own, hz, clock_shift) as u16;
            // Packets go by the settings: what is not shorter is nothing of its own.
            *set = if own < longest[at] { own } else { 0 };
        }
        Times { sticky: self.sticky_units(service), timeout }
    }

    fn plan(&self, services: &[Service]) -> Result<Staged> {
        let capacity = &self.capacity;
        let mut inventory = self.inventory.clone();
        inventory.rewind();
        let (mut new_services, mut new_backends) = (Vec::new(), Vec::new());
        let (mut kept, mut configured) = (BTreeSet::new(), BTreeSet::new());
        let mut comes_back = false;
        for service in services {
            let (index, is_new) = inventory.place_service(service, self.times(service), capacity)?;
            new_services.extend(is_new.then_some(index));
            kept.insert(index);
            let mut order = Vec::with_capacity(service.backends.len());
            for backend in &service.backends {
                let (row, is_new) =
                    inventory.place_backend(index, backend, service.health.initial, capacity)?;
                new_backends.extend(is_new.then_some(row));
                comes_back |= self.inventory.backends().get(&row).is_some_and(|row| row.removed);
                configured.insert(row);
                order.push(row);
            }
            inventory.service_mut(index).context("a service has no row")?.order = order;
        }
        let gone = self.take_out(&mut inventory, &kept);
        let removed: Vec<u16> = inventory
            .backends()
            .iter()
            .filter(|(index, row)| !row.removed && !configured.contains(index))
            .map(|(index, _)| *index)
            .collect();
        for row in removed {
            inventory.backend_mut(row).context("a backend has no row")?.removed = true;
        }
        let mut arena = self.arena.clone();
        let mut lists = Vec::new();
        for index in kept {
            lists.extend(self.place_lists(&mut inventory, &mut arena, index)?);
        }
        // Removed backends stay in the directory until their connections have ended.
        let same = new_services.is_empty() && new_backends.is_empty() && gone.is_empty() && !comes_back;
        let lines = if same && self.lines.is_some() { None } else { Some(self.directory_of(&inventory)?) };
        let before = Before::default();
        Ok(Staged { inventory, arena, lines, new_services, new_backends, lists, gone, before })
    }

    /// Takes the services out that are not kept.
    fn take_out(&self, inventory: &mut Inventory, kept: &BTreeSet<u16>) -> Vec<Gone> {
        let gone = self.inventory.services().iter().filter(|(index, _)| !kept.contains(index));
        gone.map(|(index, row)| {
            let lists = [row.ring, row.members].map(|(first, slots)| (first, rings::lines(slots)));
            Gone { service: *index, backends: inventory.remove_service(*index), lists }
        })
        .collect()
    }

    /// The lines of a directory of what is in an inventory.
    pub(super) fn directory_of(&self, inventory: &Inventory) -> Result<MapHandle> {
        let directory = inventory.directory(&self.capacity, [self.settings.key[0], self.settings.key[1]])?;
        let lines = directory_lines(self.capacity.directory_lines())?;
        directory.write(MapHandle::try_from(&lines).context("could not take hold of the new directory")?)?;
        Ok(lines)
    }

    /// Takes back what [`Plane::stage`] wrote: the tables are as they were.
    pub fn abandon(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        if let Err(error) = staged.before.restore(&self.tables) {
            tracing::warn!("could not put free rows back as they were: {error:#}");
        }
        self.backends = self.inventory.backends().iter().map(|(index, row)| row.id(*index)).collect();
    }
}

impl Staged {
    /// Fills the free rows and lines, remembering what was in them.
    fn write(&mut self, tables: &super::Tables) -> Result<()> {
        for list in &self.lists {
            for line in list.first..list.first + rings::lines(list.slots.len()) {
                self.before.lines.extend(tables.rings.get(line).map(|row| (line, row)));
            }
            rings::write(&tables.rings, list.first, &list.slots)?;
        }
        // Services first: a backend's row names its service's.
        for index in &self.new_services {
            let row = self.inventory.services().get(index).context("a service has no row")?;
            let at = usize::from(*index);
            let states = &tables.service_states;
            let old = tables.services.get(at).zip(states.get(at));
            self.before.services.extend(old.map(|(row, state)| (*index, row, state)));
            states.set(at, lb_service_state::default())?;
            tables.services.set(
                at,
                lb_service {
                    addr: addr_of(*row.vip.ip()),
                    port: row.vip.port().to_be(),
                    proto: row.protocol.number(),
                    sticky: row.sticky,
                    ..Default::default()
                },
            )?;
        }
        self.new_backends.iter().try_for_each(|index| {
            let row = self.inventory.backends().get(index).context("a backend has no row")?;
            let service =
                self.inventory.services().get(&row.service).context("a backend belongs to no service")?;
            let at = usize::from(*index);
            let old = tables.backends.get(at).zip(tables.backend_loads.get(at));
            let old = old.zip(tables.backend_answers.get(at));
            self.before.backends.extend(old.map(|((row, load), answers)| (*index, row, load, answers)));
            tables.retire_backend(*index)?;
            tables.backend_loads.set(at, lb_backend_load::default())?;
            tables.backend_answers.set(at, lb_backend_answers::default())?;
            tables.backends.set(
                at,
                lb_backend {
                    addr: addr_of(*row.address.ip()),
                    port: row.address.port().to_be(),
                    service: row.service,
                    state: row.state().0 as u8,
                    flags: (service.backend_flags() | row.flags()) as u8,
                    weight: row.weight.get(),
                    ..Default::default()
                },
            )
        })
    }
}

impl Before {
    fn restore(&self, tables: &super::Tables) -> Result<()> {
        for (index, row, load, answers) in &self.backends {
            tables.backends.set(usize::from(*index), *row)?;
            tables.backend_loads.set(usize::from(*index), *load)?;
            tables.backend_answers.set(usize::from(*index), *answers)?;
        }
        for (index, row, state) in &self.services {
            tables.services.set(usize::from(*index), *row)?;
            tables.service_states.set(usize::from(*index), *state)?;
        }
        self.lines.iter().try_for_each(|(line, row)| tables.rings.set(*line, *row))
    }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
