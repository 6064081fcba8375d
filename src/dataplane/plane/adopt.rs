//! Takes over what an instance left that died: its tables as they are where they fit, new ones filled from them where not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;

use super::convert::{NewTable, OldTable, Pass};
use super::counts::OldCounts;
use super::inventory::Inventory;
use super::{Plane, Request};
use crate::dataplane::capacity::Capacity;
use crate::dataplane::clock::Clock;
use crate::dataplane::left::{Left, TableSet};
use crate::dataplane::load::{load, table_shapes};
use crate::dataplane::mapped::Rows;
use crate::dataplane::nexthops::NextHops;
use crate::dataplane::retirement::Retirement;
use crate::dataplane::rings::RingArena;
use crate::dataplane::tables::{ABI, CONFIGURATION, Tables, shape_of};
use crate::dataplane::types::{lb_bucket, lb_settings};
use crate::dataplane::usage::Usage;
use crate::model::Step;

/// What becomes of what was left, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeOver {
    /// Tables and connections are taken over as they are.
    Adopted,
    /// They are taken over, but these tables are made anew and filled from the old ones.
    Converted(Vec<&'static str>),
    /// This version does not know the tables.
    Lost {
        /// Their version; 0 if it is not known.
        abi: u32,
        /// How many confirmed connections they hold, as far as this version can tell.
        confirmed: u64,
    },
}

impl Plane {
    /// Loads the program on what an instance left, and stages the services that are asked for. Nothing that its program uses
    /// is changed before [`Plane::commit`]: a start that fails until then leaves it to go on.
    pub fn take_over(left: Left, request: &Request<'_>) -> Result<(Plane, TakeOver, Vec<Step>)> {
        let Some(set) = left.sets.first().filter(|set| set.is_usable()) else {
            let confirmed = left.sets.iter().map(TableSet::confirmed).sum();
            let abi = left.abi();
            let mut plane = Plane::load_for(request)?;
            let steps = plane.steps_to(request.services);
            plane.stage(request.services)?;
            plane.left = left.links;
            return Ok((plane, TakeOver::Lost { abi, confirmed }, steps));
        };
        resume_retirement(set)?;
        let mut usage = Usage::none();
        let mut tables: Vec<(u32, Rows<lb_bucket>)> = Vec::new();
        for other in left.sets.iter().filter(|set| set.is_usable()) {
            let id = other.id("connections");
            if tables.iter().all(|(known, _)| *known != id) {
                let rows = rows_of(other, "connections")?;
                usage.merge(&Usage::of(&rows, |_, _| false, |_| {}));
                tables.push((id, rows));
            }
        }
        let inventory = Inventory::read(&rows_of(set, "services")?, &rows_of(set, "backends")?, &usage);

        let there = Capacity::of_tables(&set.maps, &set.settings).context("tables are missing")?;
        let buckets = Capacity::new(request.max_connections, 0, 0, 0)?.buckets;
        let same = Capacity { buckets, ..there };
        // A table of another size would be an empty one: no client would come back to its backend.
        let remembers =
            set.maps.contains_key("affinity") && inventory.services().values().any(|row| row.sticky != 0);
        let same = if remembers { same } else { request.with_affinity(same) };
        let (mut plane, made, steps) = Plane::on(set, same, &inventory, request)
            // Not enough room, most likely.
            .or_else(|_| Plane::on(set, grown(&inventory, same, request)?, &inventory, request))?;
        plane.left = left.links;
        let shared = usize::from(!made.contains(&"connections"));
        plane.old = tables.into_iter().skip(shared).map(|(_, rows)| OldTable::new(rows)).collect();
        let how = if made.is_empty() { TakeOver::Adopted } else { TakeOver::Converted(made) };
        Ok((plane, how, steps))
    }

    /// Loads the program on those of the tables that can stay, makes the others, and stages the services. Returns which are
    /// new.
    fn on(
        set: &TableSet,
        capacity: Capacity,
        inventory: &Inventory,
        request: &Request<'_>,
    ) -> Result<(Plane, Vec<&'static str>, Vec<Step>)> {
        let there = tables_that_stay(set, &capacity)?;
        let lb_settings { hz, clock_shift, .. } = set.settings;
        let settings = lb_settings {
            abi: ABI,
            buckets: capacity.buckets,
            service_buckets: capacity.service_buckets,
            origins: capacity.origins,
            timeout: super::timeout_units(request.timeouts, hz, clock_shift),
            ..set.settings
        };
        let (program, tables) = load(request.profile, &settings, &capacity, &there).context(
            "could not make the tables to take over into; what the instance before left goes on as it is",
        )?;
        let made: Vec<_> =
            tables.handles().iter().map(|(name, _)| *name).filter(|name| !there.contains_key(name)).collect();
        let mut inventory = inventory.clone();
        let mut old_counts = None;
        if !there.contains_key("services") {
            copy_configuration(set, &tables, &mut inventory)?;
            old_counts = OldCounts::take(set, &tables)?;
        }
        let mut plane = Plane::new(program, tables, settings, capacity, Clock::load()?);
        plane.old_counts = old_counts;
        plane.nexthops = NextHops::adopt(&plane.tables)?;
        plane.arena = RingArena::with_taken(capacity.ring_lines as usize, inventory.ring_lines());
        plane.inventory = inventory;
        let steps = plane.steps_to(request.services);
        plane.stage(request.services)?;
        Ok((plane, made, steps))
    }

    /// The backends that connections name, in the table and in those that it is still to be filled from.
    pub fn live_backends(&self) -> BTreeSet<u16> {
        let mut usage = Usage::of(&self.tables.connections, |_, _| false, |_| {});
        self.old.iter().for_each(|old| usage.merge(&old.usage()));
        usage.backends().collect()
    }

    /// Carries the connections over while packets still change those in the old tables, until the new one is all but the
    /// same: each that is not there when the programs are swapped may be taken for a new one.
    pub(super) fn carry(&mut self) {
        const PASSES: usize = 4;
        const FEW: u64 = 16;
        self.pass(OldTable::carry);
        for _ in 1..PASSES {
            if self.pass(OldTable::catch_up).moved <= FEW {
                break;
            }
        }
    }

    /// Carries over what changed until the programs were swapped, which they are; the old tables are given up. Counts that
    /// are kept of live connections are right only after this. Returns how many confirmed ones found no place.
    pub(super) fn catch_up(&mut self) -> Result<u64> {
        if self.old.is_empty() {
            return Ok(0);
        }
        // Before packets ask for these; the grace takes its time.
        self.pass(OldTable::catch_up);
        self.grace()?;
        let lost = self.pass(OldTable::catch_up).lost;
        self.count_lost();
        self.old.clear();
        Ok(lost)
    }

    /// Those that found no place have ended.
    fn count_lost(&self) {
        let new = NewTable { rows: &self.tables.connections, settings: &self.settings };
        let events = self.tables.events();
        for old in &self.old {
            old.missing_in(&new).for_each(|state| events.lost(state));
        }
    }

    fn pass(&mut self, pass: impl Fn(&mut OldTable, &NewTable<'_>) -> Pass) -> Pass {
        let new = NewTable { rows: &self.tables.connections, settings: &self.settings };
        self.old.iter_mut().map(|old| pass(old, &new)).fold(Pass::default(), Pass::and)
    }
}

pub(super) fn rows_of<T: plain::Plain + Copy>(set: &TableSet, name: &str) -> Result<Rows<T>> {
    let map = set.maps.get(name).with_context(|| format!("the table {name} is missing"))?;
    Rows::map(MapHandle::try_from(map).with_context(|| format!("could not take hold of the table {name}"))?)
}

/// Ends what the instance before was killed in: what a row of a backend that is gone counted would be there twice. A set of
/// another version may have no notes of it.
fn resume_retirement(set: &TableSet) -> Result<()> {
    let (Some(counters), Ok(history)) = (set.maps.get("backend_counters"), rows_of(set, "history")) else {
        return Ok(());
    };
    let (Ok(events), Ok(checks)) = (rows_of(set, "backend_events"), rows_of(set, "backend_checks")) else {
        return Ok(());
    };
    let retirement = Retirement { counters, events: &events, checks: &checks, history: &history };
    retirement.resume().context("could not add what a removed backend counted to the totals")
}

/// The tables that fit a program of this version and this capacity.
fn tables_that_stay(set: &TableSet, capacity: &Capacity) -> Result<BTreeMap<&'static str, MapHandle>> {
    let shapes = table_shapes(capacity)?;
    let fits = |name: &str| -> Result<bool> {
        match (set.maps.get(name), shapes.get(name)) {
            (Some(map), Some(shape)) => Ok(shape_of(map)? == *shape),
            _ => Ok(false),
        }
    };
    let same_directory =
        (set.settings.service_buckets, set.settings.origins) == (capacity.service_buckets, capacity.origins);
    // Programs of two versions may lay a directory out in different ways, and the old one runs until it is swapped.
    let mut configuration_stays = same_directory && set.settings.abi == ABI;
    for name in CONFIGURATION {
        configuration_stays &= fits(name)?;
    }
    let settings_stay = set.settings.buckets == capacity.buckets && configuration_stays;
    let mut there = BTreeMap::new();
    for (name, map) in &set.maps {
        let stays = match *name {
            "settings" => settings_stay,
            name if CONFIGURATION.contains(&name) => configuration_stays,
            _ => true,
        };
        if stays && fits(name)? {
            let map = MapHandle::try_from(map)
                .with_context(|| format!("could not take hold of the table {name}"))?;
            there.insert(*name, map);
        }
    }
    Ok(there)
}

/// Room for what is there and what is to come; for as many clients as `there`.
fn grown(inventory: &Inventory, there: Capacity, request: &Request<'_>) -> Result<Capacity> {
    let (services, backends) = inventory.needs(request.services);
    let lines = super::ring_lines(request.services);
    let capacity = Capacity::new(request.max_connections, services, backends, lines)?;
    Ok(Capacity { affinity: there.affinity, ..capacity.at_least(there) })
}

/// Copies the rows of the configuration into larger tables that no packet reads yet, each under its index. Rings are built
/// anew.
fn copy_configuration(set: &TableSet, tables: &Tables, inventory: &mut Inventory) -> Result<()> {
    copy(&rows_of(set, "services")?, &tables.services)?;
    copy(&rows_of(set, "service_states")?, &tables.service_states)?;
    copy(&rows_of(set, "backends")?, &tables.backends)?;
    // That of a version before may not be there.
    if set.maps.contains_key("backend_checks") {
        copy(&rows_of(set, "backend_checks")?, &tables.backend_checks)?;
    }
    inventory.forget_rings();
    Ok(())
}

fn copy<T: plain::Plain + Copy>(from: &Rows<T>, to: &Rows<T>) -> Result<()> {
    (0..from.len().min(to.len()))
        .filter_map(|index| Some((index, from.get(index)?)))
        .try_for_each(|(index, row)| to.set(index, row))
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
