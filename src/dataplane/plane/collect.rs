//! What becomes of the rows of what was removed.

use anyhow::Result;

use super::rows::BackendRow;
use super::{BackendId, Plane};
use crate::dataplane::connections::State;
use crate::dataplane::own_timeouts::OwnTimeouts;
use crate::dataplane::types::lb_phase;
use crate::dataplane::usage::{Usage, service_of};

impl Plane {
    /// Whether something was removed whose connections are still in the table, so that [`Plane::collect`] has work to do.
    pub fn has_leavings(&self) -> bool {
        let inventory = &self.inventory;
        !inventory.resting_services.is_empty()
            || !inventory.resting_backends.is_empty()
            || inventory.backends().values().any(|row| row.removed)
    }

    /// Forgets the connections of removed services, and those of removed backends that have ended; frees the rows that none
    /// is left of. Returns the backends that are gone for good. Call it after sweeps.
    pub fn collect(&mut self) -> Result<Vec<BackendId>> {
        if !self.has_leavings() || self.staged.is_some() {
            return Ok(Vec::new());
        }
        let now = self.clock.now(self.settings.clock_shift)?;
        let inventory = &self.inventory;
        let own = OwnTimeouts::read(self.settings.timeout, &self.tables.services);
        let forget = |key: u64, state: State| {
            let row = inventory.backends().get(&state.backend());
            inventory.resting_services.contains(&service_of(key))
                || (row.is_none_or(|row| row.removed)
                    && has_ended(state, now, own.of_service(service_of(key))))
        };
        let (loads, events) = (self.tables.loads(), self.tables.events());
        let usage = Usage::of(&self.tables.connections, forget, |state| {
            if state.counted() {
                loads.ended(state.backend());
            }
            events.forgotten(state);
        });
        self.free_rows(&usage)
    }

    /// Frees the rows of what was removed that no connection names. What fails leaves the inventory as it was, so that the
    /// next sweep tries once more.
    fn free_rows(&mut self, usage: &Usage) -> Result<Vec<BackendId>> {
        let mut inventory = self.inventory.clone();
        inventory.resting_services.retain(|index| usage.names_service(*index));
        inventory.resting_backends.retain(|index| usage.names_backend(*index));
        let before = &self.inventory;
        let is_free = |(index, row): &(&u16, &BackendRow)| row.removed && !usage.names_backend(**index);
        let freed: Vec<BackendId> =
            before.backends().iter().filter(is_free).map(|(index, row)| row.id(*index)).collect();
        freed.iter().for_each(|backend| inventory.free_backend(backend.index));
        let rested: Vec<u16> =
            before.resting_backends.difference(&inventory.resting_backends).copied().collect();
        let forgotten = freed.iter().map(|backend| backend.index).chain(rested.iter().copied());
        self.tables.affinity().forget_backends(&forgotten.collect())?;
        // Their connections went with their service, but ended after it.
        rested.iter().for_each(|index| self.retire_backend(*index));
        if !freed.is_empty() {
            let lines = self.directory_of(&inventory)?;
            self.switch_directory(lines)?;
        }
        freed.iter().for_each(|backend| self.clear_backend(backend.index));
        self.inventory = inventory;
        self.backends.retain(|backend| !freed.contains(backend));
        Ok(freed)
    }
}

/// Of a removed backend nothing is kept that the timeouts do not protect. A closed connection may still have packets under
/// way for as long as a closing one.
fn has_ended(state: State, now: u16, timeouts: &[u16; 16]) -> bool {
    if state.phase() == lb_phase::LB_PHASE_CLOSED {
        return state.expired() || state.age(now) > timeouts[lb_phase::LB_PHASE_CLOSING.0 as usize];
    }
    state.expired() || state.over_timeout(now, timeouts)
}
