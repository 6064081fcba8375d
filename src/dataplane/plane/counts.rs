//! What was counted in tables of the configuration that are given up: nothing of it is lost, and nothing counts twice.

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;

use super::Plane;
use crate::dataplane::counters::{difference, of_all_backends};
use crate::dataplane::left::TableSet;
use crate::dataplane::mapped::Rows;
use crate::dataplane::tables::Tables;
use crate::dataplane::types::{lb_backend_counters, lb_backend_events};

/// Counters in which packets count until the programs are swapped, and what was taken over of them before.
pub struct OldCounts {
    counters: MapHandle,
    taken: Vec<lb_backend_counters>,
    /// A version before had none.
    events: Option<(Rows<lb_backend_events>, Vec<lb_backend_events>)>,
}

impl OldCounts {
    /// Takes over what was counted so far, into tables that nobody uses yet.
    pub fn take(set: &TableSet, tables: &Tables) -> Result<Option<OldCounts>> {
        let Some(counters) = set.maps.get("backend_counters") else { return Ok(None) };
        let counters = MapHandle::try_from(counters).context("could not take hold of the counters")?;
        let events = set.maps.get("backend_events").map(|_| super::adopt::rows_of(set, "backend_events"));
        let events: Option<Rows<lb_backend_events>> = events.transpose()?;
        let events = events.map(|rows| {
            let taken = (0..rows.len()).filter_map(|index| rows.get(index)).collect::<Vec<_>>();
            (rows, taken)
        });
        let mut counts = OldCounts { counters, taken: Vec::new(), events: None };
        counts.taken = of_all_backends(&counts.counters)?;
        for (index, taken) in counts.taken.iter().enumerate() {
            tables.events().carry(index as u16, *taken);
        }
        for (index, taken) in events.iter().flat_map(|(_, taken)| taken).enumerate() {
            tables.events().catch_up(index as u16, &lb_backend_events::default(), taken);
        }
        Ok(Some(OldCounts { events, ..counts }))
    }

    /// Adds what came since.
    fn catch_up(&self, tables: &Tables) -> Result<()> {
        let now = of_all_backends(&self.counters)?;
        for (index, (now, taken)) in now.iter().zip(&self.taken).enumerate() {
            tables.events().carry(index as u16, difference(*now, *taken));
        }
        if let Some((rows, taken)) = &self.events {
            for (index, taken) in taken.iter().enumerate() {
                if let Some(now) = rows.get(index) {
                    tables.events().catch_up(index as u16, taken, &now);
                }
            }
        }
        Ok(())
    }
}

impl Plane {
    /// Takes over what packets counted in the old tables until the programs were swapped, which they are.
    pub(super) fn catch_up_with_counts(&mut self) -> Result<()> {
        let Some(counts) = self.old_counts.take() else { return Ok(()) };
        self.grace()?;
        counts.catch_up(&self.tables).context("what packets counted while the programs were swapped is lost")
    }
}
