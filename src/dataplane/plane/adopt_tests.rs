use std::net::SocketAddrV4;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libbpf_rs::{MapCore as _, MapFlags, MapInfo};

use super::*;
use crate::dataplane::affinity::Client;
use crate::dataplane::attach::Mode;
use crate::dataplane::connections::State;
use crate::dataplane::directory::addr_of;
use crate::dataplane::nexthops::NextHop;
use crate::dataplane::pin::PinDir;
use crate::dataplane::retirement::{of_cpus, set_of_cpus};
use crate::dataplane::tables::as_bytes;
use crate::dataplane::types::{
    lb_affinity, lb_affinity_key, lb_backend_checks, lb_backend_counters, lb_backend_events, lb_history,
    lb_phase, lb_state_layout,
};
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
    start_with_all(pins, max_connections, &[service], before)
}

fn start_with_all(
    pins: &Path,
    max_connections: u32,
    services: &[Service],
    before: impl FnOnce(&mut Plane),
) -> (Plane, Option<TakeOver>) {
    let dir = PinDir::acquire(pins).unwrap();
    let timeouts = Timeouts::default();
    let request =
        Request { max_connections, timeouts: &timeouts, services, profile: Profile::NATIVE, key: None };
    let (mut plane, how) = match Left::find(&dir).unwrap() {
        Some(left) => {
            let (plane, how, _) = Plane::take_over(left, &request).unwrap();
            (plane, Some(how))
        }
        None => {
            let mut plane = Plane::load_for(&request).unwrap();
            plane.stage(services).unwrap();
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
    let state = u64::from(lb_phase::LB_PHASE_ESTABLISHED.0) << lb_state_layout::LB_STATE_PHASE_SHIFT.0 | 1;
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
        assert!(plane.tables.affinity().record(goes).unwrap().is_some(), "its own clients come back to it");
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
            assert!(is_valid(plane, used) && is_valid(plane, orphan), "what runs is left alone until then");
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

/// Gives a row figures of each kind, as packets and checks do.
fn count_something(plane: &Plane, index: u16, figure: u64) {
    let cpus = of_cpus(&plane.tables.backend_counters, index).unwrap().len();
    let counters = lb_backend_counters { connections: figure, ..Default::default() };
    let values = vec![as_bytes(&counters).to_vec(); cpus];
    set_of_cpus(&plane.tables.backend_counters, index, &values).unwrap();
    let events = lb_backend_events { closed: figure, rsts: figure + 1, ..Default::default() };
    plane.tables.backend_events.set(index.into(), events).unwrap();
    let checks = lb_backend_checks { passed: figure, failed: figure + 1, ..Default::default() };
    plane.tables.backend_checks.set(index.into(), checks).unwrap();
}

/// Connections for each CPU; connections that were closed, segments with RST; checks passed and failed.
fn counted(plane: &Plane, index: u16) -> [u64; 5] {
    let cpus = of_cpus(&plane.tables.backend_counters, index).unwrap().len() as u64;
    let connections = plane.tables.backend_counters(index).unwrap().connections;
    let events = plane.tables.backend_events.get(index.into()).unwrap();
    let checks = plane.tables.backend_checks.get(index.into()).unwrap();
    [connections / cpus, events.closed, events.rsts, checks.passed, checks.failed]
}

/// So many services that the tables must grow.
fn many() -> Vec<Service> {
    let other = |n: u16| {
        let backend = Backend::new("10.0.0.11:80".parse().unwrap(), Weight::MIN);
        let vip = SocketAddrV4::new([192, 0, 2, 2].into(), 1000 + n);
        let mut service = Service::new(vip, Protocol::Tcp, vec![backend]);
        service.backends[0].address.set_port(1000 + n);
        service
    };
    std::iter::once(service()).chain((0..300).map(other)).collect()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_was_counted_is_taken_over() {
    in_namespace(|pins| {
        let (first, _) = start(pins, 1000);
        count_something(&first, 0, 100);
        count_something(&first, 1, 7);
        // Killed while it gave back row 9, which is in the sums already.
        count_something(&first, 9, 5);
        let info = MapInfo::new(first.tables.backend_counters.as_fd()).unwrap().info;
        let sum = |row| of_cpus(&first.tables.backend_counters, row).unwrap().concat();
        let words = sum(0).chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).sum();
        let (retiring, retiring_in) = (9, info.id.into());
        let history =
            lb_history { reloads: 3, retiring, retiring_in, retired_sum: words, ..Default::default() };
        first.tables.history.set(0, history).unwrap();
        first.tables.backend_events.set(9, Default::default()).unwrap();
        first.tables.backend_checks.set(9, Default::default()).unwrap();
        drop(first);
        let expect = |plane: &Plane, how: &str| {
            assert_eq!(counted(plane, 0), [100, 100, 101, 100, 101], "{how}: what is gone");
            assert_eq!(counted(plane, 1), [7, 7, 8, 7, 8], "{how}");
            assert_eq!(counted(plane, 9)[..2], [0, 0], "{how}");
            assert_eq!(plane.tables.retirements(), Some(1), "{how}");
            assert_eq!(plane.tables.history.get(0).unwrap().reloads, 3, "{how}");
        };
        let (second, how) = start(pins, 1000);
        assert_eq!(how, Some(TakeOver::Adopted));
        expect(&second, "adopted");
        drop(second);
        let (third, how) = start(pins, 3000);
        assert_eq!(how, Some(TakeOver::Converted(vec!["connections", "settings"])));
        expect(&third, "with another table of connections");
        drop(third);
        let (fourth, how) = start_with_all(pins, 3000, &many(), |_| {});
        assert!(
            matches!(&how, Some(TakeOver::Converted(made)) if made.contains(&"backend_events")),
            "{how:?}"
        );
        expect(&fourth, "grown");
        end(fourth, pins);
    });
}

/// Tables of version 4 have no events, no checks, no handshakes and no history.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_tables_of_the_version_before_are_taken_over() {
    const NEW: [&str; 7] = [
        "backend_events",
        "backend_checks",
        "handshakes",
        "history",
        "watched",
        "watch_scratch",
        "data_watch",
    ];
    in_namespace(|pins| {
        let (first, _) = start(pins, 1000);
        connect(&first, 1);
        count_something(&first, 0, 100);
        count_something(&first, 1, 7);
        drop(first);

        let dir = PinDir::acquire(pins).unwrap();
        let mut left = Left::find(&dir).unwrap().unwrap();
        for set in &mut left.sets {
            NEW.iter().for_each(|name| assert!(set.maps.remove(name).is_some(), "{name}"));
            set.settings.abi = 4;
        }
        let (timeouts, services) = (Timeouts::default(), [service()]);
        let request = Request {
            max_connections: 1000,
            timeouts: &timeouts,
            services: &services,
            profile: Profile::NATIVE,
            key: None,
        };
        let (mut second, how, steps) = Plane::take_over(left, &request).unwrap();
        let TakeOver::Converted(made) = how else { panic!("{how:?}") };
        assert!(NEW.iter().all(|name| made.contains(name)) && !made.contains(&"connections"), "{made:?}");
        assert!(steps.is_empty(), "{steps:?}");
        for ifindex in LINKS {
            let attached = second.attach(ifindex, "a veth", Mode::Native, Profile::NATIVE).unwrap();
            assert!(matches!(attached, Attached::Yes));
        }
        second.commit(&dir).unwrap();
        assert!(table(&second).find(1 << 48 | 1).is_some());
        assert_eq!(counted(&second, 0), [100, 0, 0, 0, 0], "what is gone");
        assert_eq!(counted(&second, 1), [7, 0, 0, 0, 0], "what it had counted it keeps");
        assert_eq!(second.settings.abi, ABI);
        drop((second, dir));
        let (third, how) = start(pins, 1000);
        assert_eq!(how, Some(TakeOver::Adopted), "it is of this version now");
        end(third, pins);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_that_find_no_place_are_counted_as_evicted() {
    const ALL: u64 = 600;
    in_namespace(|pins| {
        let (first, _) = start(pins, 1000);
        (1..=ALL).for_each(|client| connect(&first, client));
        drop(first);
        let (second, how) = start(pins, 100);
        assert_eq!(how, Some(TakeOver::Converted(vec!["connections", "settings"])));
        let found = (1..=ALL).filter(|client| table(&second).find(1 << 48 | client).is_some()).count() as u64;
        assert!((200..=352).contains(&found), "{found}");
        assert_eq!(second.tables.backend_events.get(1).unwrap().evicted, ALL - found);
        assert_eq!(second.tables.events().0.get(0).unwrap().evicted, 0);
        end(second, pins);
    });
}
