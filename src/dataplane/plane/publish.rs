//! Makes packets find what is staged.

use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::inventory::Inventory;
use super::rows::{BackendRow, ServiceRow};
use super::stage::Staged;
use super::{Plane, scheduler_row};
use crate::dataplane::types::{lb_backend, lb_backend_flags, lb_backend_state, lb_service};
use crate::model::Service;

impl Plane {
    /// Makes packets find what is staged. From here on it is the configuration. Where it fails the configuration before
    /// stands, and the tables are as they were.
    ///
    /// In this order: what only new services have; the directory, after which no packet finds a service that goes; then, by
    /// single stores that cannot fail, the services and backends that stay.
    pub fn publish(&mut self) -> Result<()> {
        let published = self.publish_directory_of_staged();
        let Some(staged) = self.staged.take_if(|_| published.is_ok()) else {
            self.abandon();
            return published.and(Err(anyhow::anyhow!("there is no configuration to publish")));
        };
        // What comes before the rings that have it, what goes after those that have it no more.
        self.write_backends(&staged.inventory, BackendRow::takes_new);
        for (index, row) in staged.inventory.services() {
            self.write_service(*index, row);
        }
        let is_new = |service: &u16| staged.new_services.contains(service);
        for list in staged.lists.iter().filter(|list| !is_new(&list.service)) {
            self.publish_list(list)?;
        }
        self.write_backends(&staged.inventory, |row| !row.takes_new());
        for gone in &staged.gone {
            gone.backends.iter().for_each(|backend| self.clear_backend(*backend));
            self.clear_service(gone.service);
        }
        let Staged { inventory, arena, lists, gone, .. } = staged;
        (self.inventory, self.arena) = (inventory, arena);
        self.unsettled.extend(lists.iter().map(|list| list.old));
        self.unsettled.extend(gone.iter().flat_map(|gone| gone.lists));
        self.stale_rings.clear();
        self.backends = self.inventory.backends().iter().map(|(index, row)| row.id(*index)).collect();
        Ok(())
    }

    /// The part of it that may fail.
    fn publish_directory_of_staged(&mut self) -> Result<()> {
        self.forget_clients_of_new()?;
        let staged = self.staged.as_ref().context("there is no configuration to publish")?;
        for index in &staged.new_services {
            let row = staged.inventory.services().get(index).context("a service has no row")?;
            self.write_service(*index, row);
        }
        for list in staged.lists.iter().filter(|list| staged.new_services.contains(&list.service)) {
            self.publish_list(list)?;
        }
        let Some(lines) = &staged.lines else { return Ok(()) };
        let lines = MapHandle::try_from(lines).context("could not take hold of the new directory")?;
        self.switch_directory(lines)?;
        // What was given up before has nothing to do with what is staged, whose lines lie elsewhere.
        for (first, lines) in std::mem::take(&mut self.unsettled) {
            self.arena.give_back(first, lines);
            if let Some(staged) = &mut self.staged {
                staged.arena.give_back(first, lines);
            }
        }
        Ok(())
    }

    /// [`Plane::stage`] and [`Plane::publish`].
    pub fn apply(&mut self, services: &[Service]) -> Result<()> {
        self.stage(services)?;
        self.publish()
    }

    /// Makes packets use another directory, and returns when none uses the one before.
    pub(super) fn switch_directory(&mut self, lines: MapHandle) -> Result<()> {
        let before = self.lines.replace(lines);
        let switched = self.grace();
        if switched.is_err() {
            // A later grace must not publish it by the way.
            self.lines = before;
        }
        switched
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

    /// A process that was killed may have freed a row before it forgot the clients of the backend that had it.
    fn forget_clients_of_new(&self) -> Result<()> {
        let new = self.staged.iter().flat_map(|staged| staged.new_backends.iter().copied());
        self.tables.affinity().forget_backends(&new.collect()).map(|_| ())
    }

    /// Writes what may have changed in a service's row, field by field.
    fn write_service(&self, index: u16, row: &ServiceRow) {
        let scheduler = row.scheduler.map_or(0, |scheduler| scheduler_row(scheduler).0);
        self.store_service(index, offset_of!(lb_service, scheduler), scheduler);
        self.store_service(index, offset_of!(lb_service, flags), row.flags());
        let at = usize::from(index);
        if let Some(sticky) = self.tables.services.quad(at, offset_of!(lb_service, sticky)) {
            sticky.store(row.sticky, Ordering::Release);
        }
        for (timeout, offset) in row.timeout.iter().zip((offset_of!(lb_service, timeout)..).step_by(2)) {
            if let Some(half) = self.tables.services.half(at, offset) {
                half.store(*timeout, Ordering::Release);
            }
        }
    }

    /// Writes what may have changed in the rows of backends, field by field. What goes is marked before it drains, what comes
    /// back is up before the mark goes: a crash between the two must not leave a configured backend draining.
    fn write_backends(&self, inventory: &Inventory, is: impl Fn(&BackendRow) -> bool) {
        let shared = inventory.shared();
        for (index, row) in inventory.backends().iter().filter(|(_, row)| is(row)) {
            let state = || self.store_backend(*index, offset_of!(lb_backend, state), row.state().0);
            let comes_back = row.state() == lb_backend_state::LB_BACKEND_UP;
            if comes_back {
                state();
            }
            let mut flags = inventory.services().get(&row.service).map_or(0, ServiceRow::backend_flags);
            flags |= row.flags();
            flags |= if shared.contains(index) { lb_backend_flags::LB_BACKEND_SHARED.0 } else { 0 };
            self.store_backend(*index, offset_of!(lb_backend, flags), flags);
            let weight = row.share.unwrap_or(row.weight);
            self.store_backend(*index, offset_of!(lb_backend, weight), weight.get().into());
            if !comes_back {
                state();
            }
        }
    }
}
