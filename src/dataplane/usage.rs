use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::connections::State;
use super::mapped::Rows;
use super::types::{lb_bucket, lb_conn, lb_constants};

pub(super) const SLOTS: usize = lb_constants::LB_CONNS_PER_BUCKET.0 as usize;
/// Where in a key its service begins.
const SERVICE_SHIFT: u32 = 48;

/// A slot of the connection table: its key and its state word.
pub(super) fn slot(rows: &Rows<lb_bucket>, bucket: usize, slot: usize) -> Option<(&AtomicU64, &AtomicU64)> {
    let at = slot * size_of::<lb_conn>();
    let key = rows.word(bucket, at + offset_of!(lb_conn, key))?;
    Some((key, rows.word(bucket, at + offset_of!(lb_conn, state))?))
}

/// The entry in a slot as of one instant: key, state word.
pub(super) fn entry(key: &AtomicU64, state: &AtomicU64) -> Option<(u64, State)> {
    let before = key.load(Ordering::Acquire);
    let now = State(state.load(Ordering::Acquire));
    (now.is_entry() && key.load(Ordering::Acquire) == before).then_some((before, now))
}

/// The index of the service that a key belongs to.
pub(super) fn service_of(key: u64) -> u16 {
    (key >> SERVICE_SHIFT) as u16
}

/// Which rows the entries of a connection table name: none of these may be used for something else.
pub(super) struct Usage {
    services: Vec<bool>,
    backends: Vec<bool>,
}

impl Usage {
    const ROWS: usize = u16::MAX as usize + 1;

    /// Nothing is named.
    pub fn none() -> Usage {
        Usage { services: vec![false; Self::ROWS], backends: vec![false; Self::ROWS] }
    }

    /// Walks over all entries. Those that `forget` is true of are freed first, and `forgotten` is told of them; one that a
    /// packet changes at the same instant is left for the next walk.
    pub fn of(
        rows: &Rows<lb_bucket>,
        forget: impl Fn(u64, State) -> bool,
        mut forgotten: impl FnMut(State),
    ) -> Usage {
        let mut usage = Usage::none();
        for bucket in 0..rows.len() {
            for at in 0..SLOTS {
                let Some((key, state)) = slot(rows, bucket, at) else { continue };
                let Some((label, word)) = entry(key, state) else { continue };
                let freed = forget(label, word)
                    && state.compare_exchange(word.0, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
                if freed {
                    forgotten(word);
                } else {
                    usage.services[usize::from(service_of(label))] = true;
                    usage.backends[usize::from(word.backend())] = true;
                }
            }
        }
        usage
    }

    /// Whether an entry belongs to a service.
    pub fn names_service(&self, index: u16) -> bool {
        self.services[usize::from(index)]
    }

    /// Whether an entry belongs to a backend.
    pub fn names_backend(&self, index: u16) -> bool {
        self.backends[usize::from(index)]
    }

    /// Every service that an entry belongs to.
    pub fn services(&self) -> impl Iterator<Item = u16> {
        named(&self.services)
    }

    /// Every backend that an entry belongs to.
    pub fn backends(&self) -> impl Iterator<Item = u16> {
        named(&self.backends)
    }

    /// Adds what another table's entries name.
    pub fn merge(&mut self, other: &Usage) {
        self.services.iter_mut().zip(&other.services).for_each(|(here, there)| *here |= there);
        self.backends.iter_mut().zip(&other.backends).for_each(|(here, there)| *here |= there);
    }
}

fn named(rows: &[bool]) -> impl Iterator<Item = u16> {
    rows.iter().enumerate().filter(|(_, named)| **named).map(|(index, _)| index as u16)
}
