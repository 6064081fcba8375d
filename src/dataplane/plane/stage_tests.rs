use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use libbpf_rs::{MapCore as _, MapFlags};

use super::*;
use crate::dataplane::retirement::{of_cpus, set_of_cpus};
use crate::dataplane::tables::as_bytes;
use crate::dataplane::types::{
    lb_backend_checks, lb_backend_counters, lb_backend_events, lb_backend_state as state,
};
use crate::dataplane::usage::Usage;
use crate::dataplane::{Condition, Profile};
use crate::model::{AdminState, Backend, Protocol, Scheduler, Weight};

const VIP: &str = "192.0.2.1:80";

fn backend(n: u16) -> Backend {
    Backend::new(SocketAddrV4::new([10, 0, 0, 1].into(), n), Weight::new(1 + (n % 3) as u8).unwrap())
}

fn service(port: u16, scheduler: Scheduler, backends: impl IntoIterator<Item = u16>) -> Service {
    let vip = SocketAddrV4::new([192, 0, 2, 1].into(), port);
    let backends = backends.into_iter().map(backend).collect();
    Service { scheduler, ..Service::new(vip, Protocol::Tcp, backends) }
}

fn plane(services: &[Service]) -> Plane {
    let mut plane = Plane::load(1000, &Timeouts::default(), services, Profile::NATIVE).unwrap();
    plane.apply(services).unwrap();
    plane
}

/// Every row of every table that the configuration is in. Of the directory, which one is in use.
fn dump(plane: &Plane) -> BTreeMap<(&'static str, u32), Vec<u8>> {
    let mut rows = BTreeMap::new();
    let handles = plane.tables.handles();
    // Those that have no rows by number.
    let others = ["affinity", "neighbours", "egresses", "watched"];
    let shown = handles.into_iter().filter(|(name, _)| !others.contains(name));
    for (name, map) in shown {
        for index in 0..map.max_entries() {
            let key = index.to_ne_bytes();
            let value = if map.map_type().is_percpu() {
                map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap().concat()
            } else {
                map.lookup(&key, MapFlags::ANY).unwrap().unwrap()
            };
            if value.iter().any(|byte| *byte != 0) {
                rows.insert((name, index), value);
            }
        }
    }
    rows
}

fn state_of(plane: &Plane, n: u16) -> state {
    let row = plane.find(VIP.parse().unwrap(), Protocol::Tcp, backend(n).address).unwrap();
    state(plane.tables.backends.get(row.index.into()).unwrap().state.into())
}

/// The backends that a service's ring has, each once.
fn ring(plane: &Plane) -> Vec<u16> {
    let row = plane.inventory.services().values().next().unwrap();
    let slots = rings::read(&plane.tables.rings, row.ring.0, row.ring.1);
    let rows: BTreeSet<u16> = slots.into_iter().collect();
    rows.into_iter().map(|row| plane.inventory.backends()[&row].address.port()).collect()
}

/// As it was after two changes, so that free rows and lines are not empty.
fn used() -> (Plane, Vec<Service>) {
    let services =
        vec![service(80, Scheduler::WeightedRoundRobin, 1..4), service(81, Scheduler::Maglev, 1..3)];
    let mut plane = plane(&services);
    let more = [&services[..], &[service(82, Scheduler::LeastConn, 5..9)]].concat();
    plane.apply(&more).unwrap();
    plane.apply(&services).unwrap();
    plane.collect().unwrap();
    (plane, services)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_abandoned_leaves_no_trace() {
    let (mut plane, services) = used();
    let before = dump(&plane);
    let other = [service(80, Scheduler::IpHash, 2..7), service(83, Scheduler::LeastConn, 1..9)];
    plane.stage(&other).unwrap();
    assert_ne!(dump(&plane), before, "something was written");
    plane.abandon();
    assert_eq!(dump(&plane), before);
    assert_eq!(plane.steps_to(&services), []);
}

/// Nobody else has them in these tests.
fn tables(plane: &mut Plane) -> &mut crate::dataplane::Tables {
    std::sync::Arc::get_mut(&mut plane.tables).unwrap()
}

/// The last step that can fail is that of the directory: a packet has met nothing new until then.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_cannot_be_published_leaves_the_old_tables() {
    let (mut plane, services) = used();
    let before = dump(&plane);
    let not_a_directory = MapHandle::try_from(plane.tables.connections.handle()).unwrap();
    let directory = std::mem::replace(&mut tables(&mut plane).directory, not_a_directory);
    let other = [service(80, Scheduler::IpHash, 2..7), service(83, Scheduler::LeastConn, 1..9)];
    plane.stage(&other).unwrap();
    let error = plane.publish().unwrap_err();
    tables(&mut plane).directory = directory;
    assert!(format!("{error:#}").contains("could not publish the directory"), "{error:#}");
    assert_eq!(dump(&plane), before);
    // And it works as before.
    assert_eq!(plane.steps_to(&services), []);
    plane.apply(&other).unwrap();
    assert_eq!(ring(&plane), [2, 3, 4, 5, 6]);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_plan_that_does_not_fit_changes_nothing() {
    let (mut plane, _) = used();
    let before = dump(&plane);
    let shared: Vec<Service> = (1..=9).map(|port| service(port, Scheduler::RoundRobin, [1])).collect();
    assert!(plane.stage(&shared).is_err(), "a backend of nine services");
    assert_eq!(dump(&plane), before);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_health_and_the_operator_decide_together() {
    let mut one = service(80, Scheduler::RoundRobin, 1..5);
    let mut plane = plane(std::slice::from_ref(&one));
    assert_eq!(ring(&plane), [1, 2, 3, 4]);
    let row = |plane: &Plane, n| plane.find(one.vip, one.protocol, backend(n).address).unwrap().index;
    let rows: Vec<u16> = (1..5).map(|n| row(&plane, n)).collect();

    plane.set_condition(rows[0], Condition::Down);
    plane.set_condition(rows[1], Condition::Gone);
    assert_eq!([1, 2, 3].map(|n| state_of(&plane, n).0), [3, 4, 1], "at once");
    plane.respread().unwrap();
    assert_eq!(ring(&plane), [3, 4]);

    one.backends[2].state = AdminState::Drain;
    one.backends[3].state = AdminState::Disabled;
    plane.apply(std::slice::from_ref(&one)).unwrap();
    assert_eq!([1, 2, 3, 4].map(|n| state_of(&plane, n).0), [3, 4, 2, 5]);
    assert!(ring(&plane).is_empty());
    plane.reset_connections(rows[2]);
    plane.set_condition(rows[0], Condition::Up);
    plane.respread().unwrap();
    assert_eq!([1, 3].map(|n| state_of(&plane, n)), [state::LB_BACKEND_UP, state::LB_BACKEND_RESET]);
    assert_eq!(ring(&plane), [1]);

    // What an instance that takes over reads.
    let usage = Usage::none();
    let read = Inventory::read(&plane.tables.services, &plane.tables.backends, &usage);
    for (index, row) in plane.inventory.backends() {
        assert_eq!(read.backends()[index].state(), row.state(), "{row:?}");
        assert_eq!(read.backends()[index].admin, row.admin);
    }
    assert_eq!(read.services().values().next().unwrap().order, rows);

    one.backends.iter_mut().for_each(|backend| backend.state = AdminState::Enabled);
    plane.apply(std::slice::from_ref(&one)).unwrap();
    assert_eq!(ring(&plane), [1, 3, 4], "what was reset takes connections again, what is down does not");
}

/// However often rings change, lines are used again.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_rings_that_change_for_ever_fit() {
    let one = service(80, Scheduler::Maglev, 1..4);
    let mut plane = plane(std::slice::from_ref(&one));
    let row = plane.find(one.vip, one.protocol, backend(1).address).unwrap().index;
    for turn in 0..200 {
        let condition = if turn % 2 == 0 { Condition::Down } else { Condition::Up };
        plane.set_condition(row, condition);
        plane.respread().unwrap();
    }
    plane.settle().unwrap();
    assert_eq!(ring(&plane), [1, 2, 3]);
}

/// What a free row still counted is in the totals, whatever becomes of the plan that wanted the row.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_figures_of_free_rows_are_not_lost() {
    let (mut plane, services) = used();
    let free = (1..).find(|row| !plane.inventory.backends().contains_key(row)).unwrap();
    let counted = |plane: &Plane, row: u16| {
        let events = plane.tables.backend_events.get(row.into()).unwrap();
        let checks = plane.tables.backend_checks.get(row.into()).unwrap();
        (
            events.closed,
            events.handshake.bucket[15],
            checks.passed,
            plane.tables.backend_counters(row).unwrap(),
        )
    };
    let cpus = of_cpus(&plane.tables.backend_counters, free).unwrap().len();
    let counters = lb_backend_counters { connections: 4, ..Default::default() };
    set_of_cpus(&plane.tables.backend_counters, free, &vec![as_bytes(&counters).to_vec(); cpus]).unwrap();
    let mut events = lb_backend_events { closed: 5, ..Default::default() };
    events.handshake.bucket[15] = 6;
    plane.tables.backend_events.set(free.into(), events).unwrap();
    plane
        .tables
        .backend_checks
        .set(free.into(), lb_backend_checks { passed: 7, ..Default::default() })
        .unwrap();

    let more = [services.clone(), vec![service(82, Scheduler::RoundRobin, 5..9)]].concat();
    for undo in [true, false] {
        plane.stage(&more).unwrap();
        assert!(plane.backends.iter().any(|backend| backend.index == free));
        if undo {
            plane.abandon();
        } else {
            plane.publish().unwrap();
        }
        let connections = 4 * cpus as u64;
        let (closed, slow, passed, counters) = counted(&plane, 0);
        assert_eq!((closed, slow, passed, counters.connections), (5, 6, 7, connections), "undone: {undo}");
        let (closed, slow, passed, counters) = counted(&plane, free);
        assert_eq!((closed, slow, passed, counters.connections), (0, 0, 0, 0), "undone: {undo}");
    }
}
