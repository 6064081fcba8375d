//! What the control plane knows of a service's row and of a backend's.

use std::net::SocketAddrV4;

use super::spread::Spread;
use super::{BackendId, scheduler_of};
use crate::dataplane::directory::ipv4_of;
use crate::dataplane::rings;
use crate::dataplane::types::{
    lb_backend, lb_backend_flags as flags, lb_backend_state as state, lb_service, lb_service_flags,
};
use crate::model::{AdminState, Backend, Initial, OnEmpty, Protocol, Scheduler, Service, Weight};

/// A service's times, in units of the table's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How long its clients are remembered; 0: they are not.
    pub sticky: u32,
    /// Its timeouts where they are not those of the settings: established, unconfirmed, closing, UDP; 0: as there.
    pub timeout: [u16; 4],
}

/// A service's row.
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
    /// See [`Times`].
    pub timeout: [u16; 4],
    pub on_empty: OnEmpty,
    /// The rows of its backends, in the order in which they are configured.
    pub order: Vec<u16>,
    /// What its ring was made of; `None`: it is not known.
    pub spread: Option<Spread>,
}

impl ServiceRow {
    pub fn new(service: &Service, times: Times) -> ServiceRow {
        let mut row = ServiceRow {
            vip: service.vip,
            protocol: service.protocol,
            scheduler: None,
            ring: (0, 0),
            members: (0, 0),
            sticky: 0,
            timeout: [0; 4],
            on_empty: service.on_empty,
            order: Vec::new(),
            spread: None,
        };
        row.configure(service, times);
        row
    }

    /// `None` for a row that is free.
    pub fn read(row: &lb_service) -> Option<ServiceRow> {
        let passes = u32::from(row.flags) & lb_service_flags::LB_SERVICE_PASS_EMPTY.0 != 0;
        Some(ServiceRow {
            vip: SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)),
            protocol: Protocol::from_number(row.proto)?,
            scheduler: scheduler_of(row.scheduler),
            ring: rings::published(row.ring),
            members: rings::published(row.members),
            sticky: row.sticky,
            timeout: row.timeout,
            on_empty: if passes { OnEmpty::Pass } else { OnEmpty::Drop },
            order: Vec::new(),
            spread: None,
        })
    }

    pub fn configure(&mut self, service: &Service, times: Times) {
        self.scheduler = Some(service.scheduler);
        self.on_empty = service.on_empty;
        (self.sticky, self.timeout) = (times.sticky, times.timeout);
    }

    /// The flags of its row.
    pub fn flags(&self) -> u32 {
        if self.on_empty == OnEmpty::Pass { lb_service_flags::LB_SERVICE_PASS_EMPTY.0 } else { 0 }
    }

    /// The flags of its backends' rows that follow from its configuration.
    pub fn backend_flags(&self) -> u32 {
        let counted = self.scheduler == Some(Scheduler::LeastConn);
        let flag = |is: bool, flag: flags| if is { flag.0 } else { 0 };
        flag(counted, flags::LB_BACKEND_COUNTED) | flag(self.sticky != 0, flags::LB_BACKEND_STICKY)
    }
}

/// What is known of a backend's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// It takes connections.
    #[default]
    Up,
    /// It is down; its live TCP connections go on.
    Down,
    /// It is down, and its live TCP connections are reset.
    Gone,
}

/// A backend's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRow {
    pub service: u16,
    pub address: SocketAddrV4,
    pub weight: Weight,
    /// Its weight for now, while it gets less than its share.
    pub share: Option<Weight>,
    /// Not configured any more; it drains.
    pub removed: bool,
    pub admin: AdminState,
    pub condition: Condition,
    /// Of one that drains, is disabled or removed: its live TCP connections are reset.
    pub reset: bool,
}

impl BackendRow {
    pub fn new(service: u16, backend: &Backend, initial: Initial) -> BackendRow {
        BackendRow {
            service,
            address: backend.address,
            weight: backend.weight,
            share: None,
            removed: false,
            admin: backend.state,
            condition: if initial == Initial::Up { Condition::Up } else { Condition::Down },
            reset: false,
        }
    }

    /// `None` for a row that is free.
    pub fn read(row: &lb_backend) -> Option<BackendRow> {
        let has = |flag: flags| u32::from(row.flags) & flag.0 != 0;
        let now = state(row.state.into());
        let removed = has(flags::LB_BACKEND_REMOVED);
        let admin = match (has(flags::LB_BACKEND_DISABLES), has(flags::LB_BACKEND_DRAINS)) {
            (true, _) => AdminState::Disabled,
            (false, true) => AdminState::Drain,
            (false, false) => AdminState::Enabled,
        };
        let leaves = removed || admin != AdminState::Enabled;
        if now == state::LB_BACKEND_NONE {
            return None;
        }
        Some(BackendRow {
            service: row.service,
            address: SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)),
            weight: Weight::new(row.weight).unwrap_or_default(),
            share: None,
            removed,
            admin,
            condition: match now {
                state::LB_BACKEND_DOWN => Condition::Down,
                state::LB_BACKEND_RESET if !leaves => Condition::Gone,
                _ => Condition::Up,
            },
            reset: leaves && now == state::LB_BACKEND_RESET,
        })
    }

    pub fn configure(&mut self, backend: &Backend) {
        self.reset &= backend.state == self.admin && !self.removed && backend.state != AdminState::Enabled;
        (self.weight, self.admin, self.removed) = (backend.weight, backend.state, false);
    }

    /// What packets go by.
    pub fn state(&self) -> state {
        match (self.reset, self.condition, self.admin) {
            (true, ..) | (_, Condition::Gone, _) => state::LB_BACKEND_RESET,
            (_, _, AdminState::Disabled) if !self.removed => state::LB_BACKEND_DISABLED,
            (_, Condition::Down, _) => state::LB_BACKEND_DOWN,
            (_, Condition::Up, AdminState::Enabled) if !self.removed => state::LB_BACKEND_UP,
            _ => state::LB_BACKEND_DRAIN,
        }
    }

    /// Whether it takes new connections.
    pub fn takes_new(&self) -> bool {
        self.state() == state::LB_BACKEND_UP
    }

    /// The flags of its row that are its own.
    pub fn flags(&self) -> u32 {
        let admin = match self.admin {
            AdminState::Enabled => 0,
            AdminState::Drain => flags::LB_BACKEND_DRAINS.0,
            AdminState::Disabled => flags::LB_BACKEND_DISABLES.0,
        };
        admin | if self.removed { flags::LB_BACKEND_REMOVED.0 } else { 0 }
    }

    pub fn id(&self, index: u16) -> BackendId {
        BackendId { index, address: self.address }
    }
}
