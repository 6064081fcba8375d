//! "Client affinity" of docs/connections.md.

use std::net::Ipv4Addr;

use crate::machine::{Machine, Record};
use crate::state::{Key, Phase, State};
use crate::transitions::Side;

/// How old a record is; below 0 if it is newer than now.
pub fn record_age(record: Record, now: u32) -> i64 {
    i64::from(now.wrapping_sub(record.last) as i32)
}

impl Machine {
    fn sticky_time(&self, service: u16) -> i64 {
        self.world.services.get(&service).map_or(0, |service| i64::from(service.sticky))
    }

    /// In time, and its backend takes new connections of the service.
    fn holds(&self, service: u16, record: Record, now: u32) -> bool {
        record_age(record, now) <= self.sticky_time(service) && self.world.is_up(service, record.backend)
    }

    /// The backend that a client's record names, if it holds. What cannot hold again is removed.
    pub fn recorded(&mut self, client: Ipv4Addr, service: u16, now: u32) -> Option<u16> {
        if self.sticky_time(service) == 0 {
            return None;
        }
        let record = self.affinity.get(&(client, service)).copied()?;
        if self.holds(service, record, now) {
            return Some(record.backend);
        }
        if record_age(record, now) <= self.sticky_time(service) {
            self.affinity.remove(&(client, service));
        }
        None
    }

    /// What follows a packet's swap from one state to another.
    pub fn remember(&mut self, key: Key, old: State, new: State, side: Side, now: u32) {
        let recorded = self.world.backends.get(&new.backend).is_some_and(|backend| backend.sticky);
        if !recorded || self.sticky_time(key.service) == 0 {
            return;
        }
        let client = (key.client, key.service);
        let record = self.affinity.get(&client).copied();

        let confirmed = side == Side::Client
            && old.phase == Phase::Answered
            && (new.is_confirmed() || new.phase == Phase::Closed);
        if confirmed {
            let backend = match record {
                Some(record) if self.holds(key.service, record, now) => record.backend,
                _ => new.backend,
            };
            self.affinity.insert(client, Record { backend, last: now });
        }
        let ended = old.is_confirmed() && new.phase == Phase::Closed;
        if let Some(record) = record.filter(|_| ended) {
            self.affinity.insert(client, Record { last: now, ..record });
        }
    }

    /// What a sweep does for the client of a live confirmed entry.
    pub fn keep_fresh(&mut self, key: Key, now: u32) {
        let sticky = self.sticky_time(key.service);
        if let Some(record) = self.affinity.get_mut(&(key.client, key.service)) {
            let age = record_age(*record, now);
            if sticky > 0 && age > 0 && age >= sticky / 4 {
                record.last = now;
            }
        }
    }
}
