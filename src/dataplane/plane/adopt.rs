//! Takes over what an instance left that died: its tables as they are where they fit, new ones filled from them where not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::convert::{NewTable, OldTable, Pass};
use super::inventory::Inventory;
use super::{Plane, Request};
use crate::dataplane::clock::Clock;
use crate::dataplane::left::{Left, TableSet};
use crate::dataplane::load::{load, table_shapes};
use crate::dataplane::mapped::Rows;
use crate::dataplane::nexthops::NextHops;
use crate::dataplane::rings::RingArena;
use crate::dataplane::tables::{ABI, CONFIGURATION, Capacity, Tables, shape_of};
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
        if !there.contains_key("services") {
            copy_configuration(set, &tables, &mut inventory)?;
        }
        let mut plane = Plane::new(program, tables, settings, capacity, Clock::load()?);
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
        self.old.clear();
        Ok(lost)
    }

    fn pass(&mut self, pass: impl Fn(&mut OldTable, &NewTable<'_>) -> Pass) -> Pass {
        let new = NewTable { rows: &self.tables.connections, settings: &self.settings };
        self.old.iter_mut().map(|old| pass(old, &new)).fold(Pass::default(), Pass::and)
    }
}

fn rows_of<T: plain::Plain + Copy>(set: &TableSet, name: &str) -> Result<Rows<T>> {
    let map = set.maps.get(name).with_context(|| format!("the table {name} is missing"))?;
    Rows::map(MapHandle::try_from(map).with_context(|| format!("could not take hold of the table {name}"))?)
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
    inventory.forget_rings();
    if let Some(counters) = set.maps.get("backend_counters") {
        for index in inventory.backends().keys() {
            let key = u32::from(*index).to_ne_bytes();
            let values =
                counters.lookup_percpu(&key, MapFlags::ANY).context("could not read a backend's counters")?;
            if let Some(values) = values {
                tables.set_backend_counters(*index, &values)?;
            }
        }
    }
    Ok(())
}

fn copy<T: plain::Plain + Copy>(from: &Rows<T>, to: &Rows<T>) -> Result<()> {
    (0..from.len().min(to.len()))
        .filter_map(|index| Some((index, from.get(index)?)))
        .try_for_each(|(index, row)| to.set(index, row))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::dataplane::affinity::Client;
    use crate::dataplane::attach::Mode;
    use crate::dataplane::connections::State;
    use crate::dataplane::directory::addr_of;
    use crate::dataplane::nexthops::NextHop;
    use crate::dataplane::pin::PinDir;
    use crate::dataplane::tables::as_bytes;
    use crate::dataplane::types::{lb_affinity, lb_affinity_key, lb_phase, lb_state_layout};
    use crate::dataplane::{Attached, Profile};
    use crate::model::{Backend, Protocol, Scheduler, Service, Timeouts, Weight};
    use crate::testing::in_own_bpffs;

    const LINKS: [u32; 2] = [10, 20];

    /// A network with two veths and a bpffs of the test's own.
    fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
        in_own_bpffs(|bpffs| {
            for ifindex in LINKS {
                let line = format!("link add if{ifindex} index {ifindex} type veth peer name far{ifindex}");
                assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success());
            }
            test(&bpffs.join("pins"));
        });
    }

    fn service() -> Service {
        let backend = Backend::new("10.0.0.10:80".parse().unwrap(), Weight::MIN);
        let service = Service::new("192.0.2.1:80".parse().unwrap(), Protocol::Tcp, vec![backend]);
        Service { scheduler: Scheduler::RoundRobin, ..service }
    }

    /// Starts over what is there, up to and with the commit.
    fn start(pins: &Path, max_connections: u32) -> (Plane, Option<TakeOver>) {
        start_with(pins, max_connections, service(), |_| {})
    }

    /// The same with another service, and something that happens before the commit.
    fn start_with(
        pins: &Path,
        max_connections: u32,
        service: Service,
        before: impl FnOnce(&mut Plane),
    ) -> (Plane, Option<TakeOver>) {
        let dir = PinDir::acquire(pins).unwrap();
        let (timeouts, services) = (Timeouts::default(), [service]);
        let request = Request {
            max_connections,
            timeouts: &timeouts,
            services: &services,
            profile: Profile::NATIVE,
            key: None,
        };
        let (mut plane, how) = match Left::find(&dir).unwrap() {
            Some(left) => {
                let (plane, how, _) = Plane::take_over(left, &request).unwrap();
                (plane, Some(how))
            }
            None => {
                let mut plane = Plane::load_for(&request).unwrap();
                plane.stage(&services).unwrap();
                (plane, None)
            }
        };
        for ifindex in LINKS {
            let attached = plane.attach(ifindex, "a veth", Mode::Native, Profile::NATIVE).unwrap();
            assert!(matches!(attached, Attached::Yes));
        }
        before(&mut plane);
        plane.commit(&dir).unwrap();
        (plane, how)
    }

    /// Ends what a test started.
    fn end(mut plane: Plane, pins: &Path) {
        plane.detach_all().unwrap();
        PinDir::acquire(pins).unwrap().remove(None).unwrap();
    }

    fn sticky() -> Service {
        Service { sticky: Some(Duration::from_secs(300)), ..service() }
    }

    /// Makes a record of a client of the first service, as a packet does.
    fn remember(plane: &Plane, address: &str, backend: u16) -> Client {
        let client = Client { address: address.parse().unwrap(), service: 1 };
        let key = lb_affinity_key { addr: addr_of(client.address), service: 1, ..Default::default() };
        let record = lb_affinity { backend, ..Default::default() };
        let (_, map) = plane.tables.handles().into_iter().find(|(name, _)| *name == "affinity").unwrap();
        map.update(as_bytes(&key), as_bytes(&record), MapFlags::ANY).unwrap();
        client
    }

    fn table(plane: &Plane) -> NewTable<'_> {
        NewTable { rows: &plane.tables.connections, settings: &plane.settings }
    }

    /// A confirmed connection of the service.
    fn connect(plane: &Plane, client: u64) {
        let state =
            u64::from(lb_phase::LB_PHASE_ESTABLISHED.0) << lb_state_layout::LB_STATE_PHASE_SHIFT.0 | 1;
        assert!(table(plane).insert(1 << 48 | client, State(state)));
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_start_killed_between_two_swaps_is_finished() {
        in_namespace(|pins| {
            let (first, _) = start(pins, 1000);
            connect(&first, 1);
            let (second, how) = start(pins, 3000);
            assert_eq!(how, Some(TakeOver::Converted(vec!["connections", "settings"])));
            // Had it been killed after the first of two swaps, this link would still run the old program.
            second.attachments[&LINKS[1]].replace(first.programs[0].fd()).unwrap();
            connect(&first, 2);
            connect(&second, 3);
            let both = Left::find(&PinDir::acquire(pins).unwrap()).unwrap().unwrap();
            let buckets: Vec<u32> = both.sets.iter().map(|set| set.settings.buckets).collect();
            assert_eq!(buckets, [second.settings.buckets, first.settings.buckets], "the newest comes first");
            drop((first, second, both));

            let (third, how) = start(pins, 3000);
            assert_eq!(how, Some(TakeOver::Adopted));
            for client in 1..=3 {
                assert!(table(&third).find(1 << 48 | client).is_some(), "connection {client}");
            }
            let dir = PinDir::acquire(pins).unwrap();
            assert_eq!(Left::find(&dir).unwrap().unwrap().sets.len(), 1);
            drop(third);
            dir.detach().unwrap();
            dir.remove(None).unwrap();
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_clients_are_remembered_in_a_connection_table_of_another_size() {
        in_namespace(|pins| {
            let (first, _) = start_with(pins, 1000, sticky(), |_| {});
            let client = remember(&first, "192.0.2.7", 1);
            drop(first);
            let (second, how) = start_with(pins, 100_000, sticky(), |_| {});
            assert_eq!(how, Some(TakeOver::Converted(vec!["connections", "settings"])));
            let record = second.tables.affinity().record(client).unwrap();
            assert_eq!(record.map(|record| record.backend), Some(1));
            // Nor does it change where other tables have no room.
            let (timeouts, services) = (Timeouts::default(), [sticky()]);
            let request = Request {
                max_connections: 200_000,
                timeouts: &timeouts,
                services: &services,
                profile: Profile::NATIVE,
                key: None,
            };
            let grown = grown(&second.inventory, second.capacity, &request).unwrap();
            assert_eq!((grown.affinity, grown.buckets), (second.capacity.affinity, 175_000));
            end(second, pins);

            // One that remembers nobody gets the size that is needed now.
            drop(start(pins, 1000));
            let (plane, how) = start_with(pins, 100_000, sticky(), |_| {});
            assert!(matches!(&how, Some(TakeOver::Converted(made)) if made.contains(&"affinity")), "{how:?}");
            assert_eq!(plane.capacity.affinity, 25_000);
            end(plane, pins);
        });
    }

    /// As a process leaves them that was killed between freeing the row and forgetting its clients.
    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_clients_of_a_row_that_had_another_backend_do_not_come_to_the_new_one() {
        in_namespace(|pins| {
            let (mut plane, _) = start_with(pins, 1000, sticky(), |_| {});
            let [stays, goes] =
                [("192.0.2.7", 1), ("192.0.2.8", 2)].map(|(client, row)| remember(&plane, client, row));
            let mut more = sticky();
            more.backends.push(Backend::new("10.0.0.11:80".parse().unwrap(), Weight::MIN));
            plane.stage(std::slice::from_ref(&more)).unwrap();
            assert_eq!(plane.backends.iter().map(|backend| backend.index).collect::<Vec<_>>(), [1, 2]);
            plane.publish().unwrap();
            let records = plane.tables.affinity().records().unwrap();
            assert_eq!(records.keys().collect::<Vec<_>>(), [&stays]);
            remember(&plane, "192.0.2.8", 2);
            plane.apply(&[more]).unwrap();
            assert!(
                plane.tables.affinity().record(goes).unwrap().is_some(),
                "its own clients come back to it"
            );
            end(plane, pins);
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_an_interface_that_is_deleted_before_the_commit_does_not_hinder_it() {
        in_namespace(|pins| {
            drop(start(pins, 1000));
            let delete = |_: &mut Plane| {
                let line = format!("link del if{}", LINKS[0]);
                assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success());
            };
            let (second, how) = start_with(pins, 1000, service(), delete);
            assert_eq!(how, Some(TakeOver::Adopted));
            assert_eq!(second.attached(), [(LINKS[1], Mode::Native)]);
            end(second, pins);
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_next_hops_that_nobody_keeps_up_to_date_are_invalid_from_the_commit_on() {
        in_namespace(|pins| {
            let hop = |n| NextHop { ifindex: 10, mtu: 1500, source: [2; 6], neighbour: Some([n; 6]) };
            let (mut first, _) = start(pins, 1000);
            let used = first.nexthops.of_backend(&first.tables, hop(4)).unwrap().unwrap();
            first.set_next_hop(first.backends[0], used).unwrap();
            // It was killed before it gave this one to a backend, or after it had given the backend another.
            let orphan = first.nexthops.of_backend(&first.tables, hop(6)).unwrap().unwrap();
            drop(first);
            let is_valid =
                |plane: &Plane, row: u16| plane.tables.nexthops.get(row.into()).unwrap().flags & 1 != 0;
            let (second, _) = start_with(pins, 1000, service(), |plane| {
                assert!(
                    is_valid(plane, used) && is_valid(plane, orphan),
                    "what runs is left alone until then"
                );
            });
            assert!(is_valid(&second, used) && !is_valid(&second, orphan));
            end(second, pins);
        });
    }

    /// Rows that were written and never published are found, used or freed.
    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_start_killed_before_it_published_leaves_no_rows() {
        in_namespace(|pins| {
            let (mut first, _) = start(pins, 1000);
            let mut more = service();
            more.backends.push(Backend::new("10.0.0.11:80".parse().unwrap(), Weight::MIN));
            first.stage(&[more]).unwrap();
            // No undoing, as of a process that was killed; its descriptors are closed all the same.
            let staged = first.staged.take();
            drop((first, staged));

            let (mut second, how) = start(pins, 1000);
            assert_eq!(how, Some(TakeOver::Adopted));
            assert_eq!(second.backends.len(), 2);
            assert!(second.has_leavings());
            assert_eq!(second.collect().unwrap().len(), 1);
            assert_eq!(second.backends.len(), 1);
            second.detach_all().unwrap();
            let dir = PinDir::acquire(pins).unwrap();
            dir.remove(None).unwrap();
        });
    }
}
