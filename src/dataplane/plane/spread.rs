//! How new connections are spread: a service's ring, made of the backends that take some, and made anew while packets pass.

use std::mem::offset_of;
use std::net::SocketAddrV4;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};

use super::inventory::Inventory;
use super::rows::{BackendRow, Condition, ServiceRow};
use super::{BackendId, Plane};
use crate::dataplane::rings::{self, RingArena};
use crate::dataplane::types::{lb_backend, lb_backend_state, lb_service};
use crate::model::{AdminState, Backend, Protocol, Scheduler, Weight};
use crate::ring;

/// What a backend gets of its service's new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub row: u16,
    pub address: SocketAddrV4,
    pub weight: Weight,
    /// Whether it gets less than it will.
    pub ramps: bool,
}

/// What a ring is made of: the same gives the same ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    scheduler: Scheduler,
    shares: Vec<Share>,
}

/// Lines of the ring array: the first, how many.
pub type Run = (usize, usize);

/// A service's ring or its members in another place than before.
#[derive(Clone)]
pub struct NewList {
    pub service: u16,
    pub kind: List,
    pub first: usize,
    pub slots: Vec<u16>,
    pub old: Run,
}

/// What lies in lines of the ring array.
#[derive(Clone, Copy)]
pub enum List {
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

impl Spread {
    fn of(inventory: &Inventory, service: u16) -> Option<Spread> {
        let shares = inventory.shares(service);
        let configured = inventory.services().get(&service)?.scheduler.unwrap_or_default();
        // Round robin has no weights, and a backend that starts slowly must get less all the same.
        let scheduler = match configured {
            Scheduler::RoundRobin if shares.iter().any(|share| share.ramps) => Scheduler::WeightedRoundRobin,
            scheduler => scheduler,
        };
        Some(Spread { scheduler, shares })
    }

    /// Ring and members.
    fn lists(&self) -> [(List, Vec<u16>); 2] {
        let slots: Vec<(Backend, u16)> =
            self.shares.iter().map(|share| (Backend::new(share.address, share.weight), share.row)).collect();
        [
            (List::Ring, ring::build(self.scheduler, &slots)),
            (List::Members, ring::members(self.scheduler, &slots)),
        ]
    }
}

impl Plane {
    /// Finds free lines for a service's ring and members where they are not there as they should be. Nothing is written yet.
    pub(super) fn place_lists(
        &self,
        inventory: &mut Inventory,
        arena: &mut RingArena,
        service: u16,
    ) -> Result<Vec<NewList>> {
        let spread = Spread::of(inventory, service).context("a service has no row")?;
        let row = inventory.service_mut(service).context("a service has no row")?;
        if row.spread.as_ref() == Some(&spread) {
            return Ok(Vec::new());
        }
        let mut lists: Vec<NewList> = Vec::new();
        for (kind, slots) in spread.lists() {
            let (first, length) = *kind.of(row);
            if length == slots.len() && rings::read(&self.tables.rings, first, length) == slots {
                continue;
            }
            let lines = rings::lines(slots.len());
            let Some(new) = (if lines == 0 { Some(0) } else { arena.take(lines) }) else {
                lists.iter().for_each(|list| arena.give_back(list.first, rings::lines(list.slots.len())));
                bail!("there is no room for a ring of {lines} lines in {}", self.capacity.ring_lines);
            };
            lists.push(NewList { service, kind, first: new, slots, old: (first, rings::lines(length)) });
        }
        for list in &lists {
            *list.kind.of(row) = (list.first, list.slots.len());
        }
        row.spread = Some(spread);
        Ok(lists)
    }

    pub(super) fn publish_list(&self, list: &NewList) -> Result<()> {
        let publish = match list.kind {
            List::Ring => rings::publish,
            List::Members => rings::publish_members,
        };
        publish(&self.tables.services, list.service, list.first, list.slots.len())
    }

    /// Notes what is known of a backend's health now: new connections avoid one that is down from the next packet on.
    /// [`Plane::respread`] then takes it out of the ring.
    pub fn set_condition(&mut self, index: u16, condition: Condition) {
        self.change(index, |row| row.condition = condition);
    }

    /// Has the live TCP connections of a backend reset that takes no new ones: each client's next segment goes to another,
    /// which answers it with a RST.
    pub fn reset_connections(&mut self, index: u16) {
        self.change(index, |row| row.reset = true);
    }

    /// Whether a row is still this backend's.
    pub fn has(&self, backend: BackendId) -> bool {
        let row = self.inventory.backends().get(&backend.index);
        row.is_some_and(|row| row.address == backend.address)
    }

    /// Whether a backend takes no new connections by the operator's will: it drains, is disabled or removed.
    pub fn leaves(&self, backend: BackendId) -> bool {
        let row = self.inventory.backends().get(&backend.index);
        let same = row.filter(|row| row.address == backend.address);
        same.is_some_and(|row| row.removed || row.admin != AdminState::Enabled)
    }

    /// Whether the service of a backend has another one that takes new connections: only such a one can answer a segment of
    /// somebody else's connection with a RST.
    pub fn has_other(&self, index: u16) -> bool {
        let service = self.inventory.backends().get(&index).map(|row| row.service);
        service.is_some_and(|service| self.inventory.shares(service).iter().any(|share| share.row != index))
    }

    /// Gives a backend another weight for now; `None`: its own. [`Plane::respread`] then makes the ring of it.
    pub fn set_share(&mut self, index: u16, share: Option<Weight>) {
        self.change(index, |row| row.share = share);
    }

    fn change(&mut self, index: u16, change: impl FnOnce(&mut BackendRow)) {
        let Some(row) = self.inventory.backend_mut(index) else { return };
        let before = (row.state(), row.share);
        change(row);
        if (row.state(), row.share) == before {
            return;
        }
        let (service, state, weight) = (row.service, row.state(), row.share.unwrap_or(row.weight));
        self.store_backend(index, offset_of!(lb_backend, state), state.0);
        self.store_backend(index, offset_of!(lb_backend, weight), weight.get().into());
        self.stale_rings.insert(service);
    }

    /// Makes the rings anew whose backends have changed. What fails is to be tried again: a ring that is out of date still
    /// works, since backends that are down are passed over.
    pub fn respread(&mut self) -> Result<()> {
        if self.stale_rings.is_empty() || self.staged.is_some() {
            return Ok(());
        }
        let mut failed = None;
        for service in self.stale_rings.clone() {
            let is_there = self.inventory.services().contains_key(&service);
            let spread = match if is_there { self.respread_one(service) } else { Ok(()) } {
                // Lines that were given up may be all that is missing.
                Err(_) => self.settle().and_then(|()| self.respread_one(service)),
                spread => spread,
            };
            match spread {
                Ok(()) => _ = self.stale_rings.remove(&service),
                // The others have nothing to do with that.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn respread_one(&mut self, service: u16) -> Result<()> {
        let mut inventory = std::mem::take(&mut self.inventory);
        let mut arena = std::mem::replace(&mut self.arena, RingArena::new(0));
        let placed = self.place_lists(&mut inventory, &mut arena, service);
        (self.inventory, self.arena) = (inventory, arena);
        let lists = placed?;
        for list in &lists {
            rings::write(&self.tables.rings, list.first, &list.slots)?;
        }
        for list in lists {
            self.publish_list(&list)?;
            self.unsettled.push(list.old);
        }
        Ok(())
    }

    /// Frees ring lines that were given up, once no packet reads them any more: waits for that, some ten milliseconds, if
    /// there are any.
    pub fn settle(&mut self) -> Result<()> {
        if !self.unsettled.is_empty() && self.lines.is_some() {
            self.grace()?;
            self.free_unsettled();
        }
        Ok(())
    }

    /// Only after a grace that began when nothing published named these lines any more.
    pub(super) fn free_unsettled(&mut self) {
        for (first, lines) in std::mem::take(&mut self.unsettled) {
            self.arena.give_back(first, lines);
        }
    }

    /// The row of a backend of a service.
    pub fn find(&self, vip: SocketAddrV4, protocol: Protocol, backend: SocketAddrV4) -> Option<BackendId> {
        let inventory = self.staged.as_ref().map_or(&self.inventory, |staged| &staged.inventory);
        inventory.find(vip, protocol, backend).map(|index| BackendId { index, address: backend })
    }

    /// How many SYNs a backend got since it last accepted a connection, and how many of them it refused.
    pub fn answers(&self, index: u16) -> (u32, u32) {
        let row = self.tables.backend_answers.get(index.into()).unwrap_or_default();
        (row.unanswered, row.refused)
    }

    /// What is known of the health of a row's backend.
    pub fn condition(&self, index: u16) -> Option<Condition> {
        self.inventory.backends().get(&index).map(|row| row.condition)
    }

    pub(super) fn store_backend(&self, index: u16, offset: usize, value: u32) {
        if let Some(byte) = self.tables.backends.byte(usize::from(index), offset) {
            byte.store(value as u8, Ordering::Release);
        }
    }

    pub(super) fn store_service(&self, index: u16, offset: usize, value: u32) {
        if let Some(byte) = self.tables.services.byte(usize::from(index), offset) {
            byte.store(value as u8, Ordering::Release);
        }
    }

    /// Gives a row back, which no packet finds any more. What it counted is added to the totals first: killed between the two
    /// it is still a backend's row, of which the next start takes care.
    pub(super) fn clear_backend(&self, index: u16) {
        self.retire_backend(index);
        self.store_backend(index, offset_of!(lb_backend, state), lb_backend_state::LB_BACKEND_NONE.0);
    }

    /// Adds what the row of a backend that is gone counted to the totals.
    pub(super) fn retire_backend(&self, index: u16) {
        if let Err(error) = self.tables.retire_backend(index) {
            tracing::warn!("what a removed backend counted is left out of the totals: {error:#}");
        }
    }

    /// Gives a service's row back.
    pub(super) fn clear_service(&self, index: u16) {
        self.store_service(index, offset_of!(lb_service, proto), 0);
    }
}
