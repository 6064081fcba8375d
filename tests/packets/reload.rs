//! Another configuration over tables in use: by the instance that runs, and by the one that takes over.

use std::net::SocketAddrV4;
use std::thread::sleep;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use xdp_lb::dataplane::types::{lb_backend_checks, lb_histogram};
use xdp_lb::dataplane::{
    Attached, BackendEvents, Census, Counter, Egress, Left, Mode, NextHop, PinDir, Plane, Profile, Request,
    TakeOver,
};
use xdp_lb::metrics::{CheckFigures, Snapshot};
use xdp_lb::model::{Protocol, Scheduler, Service, Timeouts};

use super::frame::{Frame, tcp, udp};
use super::lab::*;

fn setup(services: Vec<Service>) -> Setup {
    let timeouts = Timeouts { closing: Duration::from_secs(1), ..Timeouts::default() };
    Setup { services, profile: Profile::NATIVE, timeouts, ..Setup::default() }
}

fn web(backends: &[(u8, u8)]) -> Service {
    service(VIP, Protocol::Tcp, Scheduler::RoundRobin, backends)
}

fn from(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(*CLIENT.ip(), port)
}

/// Confirms a connection from a port of the client, to the n-th backend.
fn establish(lab: &mut Lab, port: u16, n: u8) {
    lab.reaches_backend("SYN", &tcp(from(port), VIP, "S"), n);
    lab.reaches_client("SYN-ACK", &reply(port, n, "SA"), CLIENT_MAC);
    lab.reaches_backend("ACK", &tcp(from(port), VIP, "A"), n);
}

fn reply(port: u16, n: u8, flags: &'static str) -> Frame {
    tcp(backend(n), from(port), flags).macs(LB_BACK_MAC, backend_mac(n))
}

fn goes_on(lab: &mut Lab, port: u16, n: u8) {
    lab.reaches_backend("client", &tcp(from(port), VIP, "A"), n);
    lab.reaches_client("backend", &reply(port, n, "A"), CLIENT_MAC);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_removed_backend_keeps_its_connections() {
    lab(setup(vec![web(&[(0, 1), (1, 1), (2, 1)])]), |lab| {
        establish(lab, 40000, 0);
        establish(lab, 40001, 1);
        lab.plane.apply(&[web(&[(1, 5), (2, 1)])]).unwrap();
        goes_on(lab, 40000, 0);
        goes_on(lab, 40001, 1);
        // The ring is new, the rotation goes on: at 2.
        for (port, n) in [(40010, 1), (40011, 2), (40012, 1)] {
            lab.reaches_backend("SYN", &tcp(from(port), VIP, "S"), n);
        }
        assert!(lab.plane.has_leavings());
        assert_eq!(lab.plane.collect().unwrap(), []);
        goes_on(lab, 40000, 0);

        // It is closed, but late packets are still taken for a while.
        lab.reaches_client("RST", &reply(40000, 0, "RA"), CLIENT_MAC);
        assert_eq!(lab.plane.collect().unwrap(), []);
        lab.reaches_client("late", &reply(40000, 0, "A"), CLIENT_MAC);
        sleep(Duration::from_millis(2100));
        let gone = lab.plane.collect().unwrap();
        assert_eq!(gone.iter().map(|gone| gone.address).collect::<Vec<_>>(), [backend(0)]);
        assert!(!lab.plane.has_leavings());
        let frame = reply(40000, 0, "A").bytes();
        lab.untouched(
            "its address is nobody's any more",
            lab.back,
            &frame,
            (Verdict::Pass, "pass no_service"),
        );
        goes_on(lab, 40001, 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_removed_backend_that_comes_back_is_the_same() {
    let all = || web(&[(0, 1), (1, 1), (2, 1)]);
    lab(setup(vec![all()]), move |lab| {
        establish(lab, 40000, 0);
        let rows = lab.plane.backends().to_vec();
        lab.plane.apply(&[web(&[(1, 1)])]).unwrap();
        lab.plane.apply(&[all()]).unwrap();
        assert_eq!(lab.plane.backends(), rows);
        assert!(!lab.plane.has_leavings());
        goes_on(lab, 40000, 0);
        for (port, n) in [(40001, 1), (40002, 2), (40003, 0)] {
            establish(lab, port, n);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_removed_service_is_forgotten() {
    let other = SocketAddrV4::new(*VIP.ip(), 81);
    let second = |protocol, vip| service(vip, protocol, Scheduler::RoundRobin, &[(0, 1), (1, 1), (2, 1)]);
    let first = web(&[(0, 1), (1, 1), (2, 1)]);
    lab(setup(vec![first.clone(), second(Protocol::Udp, VIP)]), move |lab| {
        establish(lab, 40000, 0);
        lab.reaches_backend("UDP", &udp(CLIENT, VIP), 0);
        let rows = lab.plane.backends().len();
        lab.plane.apply(std::slice::from_ref(&first)).unwrap();
        let frame = udp(CLIENT, VIP).bytes();
        lab.untouched("no service", lab.front, &frame, (Verdict::Pass, "pass no_service"));
        goes_on(lab, 40000, 0);
        // Its rows are not used for another while its connections are there; after that they are.
        lab.plane.apply(&[first.clone(), second(Protocol::Udp, other)]).unwrap();
        let highest = |lab: &Lab| lab.plane.backends().iter().map(|backend| backend.index).max().unwrap();
        assert!(usize::from(highest(lab)) > rows - 2 && lab.plane.sweep().unwrap().unconfirmed == 1);
        assert_eq!(lab.plane.collect().unwrap(), []);
        assert!(!lab.plane.has_leavings() && lab.plane.sweep().unwrap().unconfirmed == 0);
        lab.plane.apply(std::slice::from_ref(&first)).unwrap();
        lab.plane.apply(&[first, second(Protocol::Udp, VIP)]).unwrap();
        for backend in lab.plane.backends().to_vec() {
            let n = backend.address.ip().octets()[3] - 10;
            lab.reach(backend, Some(backend_mac(n)), 20);
        }
        lab.reaches_backend("UDP", &udp(CLIENT, VIP), 0);
        goes_on(lab, 40000, 0);
    });
}

/// Of all backends that are shown and those that are gone: opened; packets to them and from them; ended in each way, revived,
/// and segments with RST; handshakes and their time; checks.
fn sums(lab: &Lab) -> Vec<u64> {
    let snapshot = Snapshot::take(lab.plane.tables(), &Census::default()).unwrap();
    let gone = &snapshot.gone;
    let figures = |opened: u64, sent: [&Counter; 2], events: &BackendEvents, checks: &CheckFigures| {
        let ends = [events.closed, events.reset, events.expired, events.evicted, events.moved];
        let handshakes = [events.handshakes.count(), events.handshakes.microseconds];
        let checked = [checks.passed, checks.failed, checks.durations.count(), checks.durations.microseconds];
        let others = [opened, sent[0].packets, sent[1].packets, events.revived, events.rsts];
        [&others[..], &ends, &handshakes, &checked].concat()
    };
    let backends = snapshot.services.iter().flat_map(|service| &service.backends);
    let shown = backends.map(|backend| {
        let sent = [&backend.to_backend, &backend.to_client];
        figures(backend.connections, sent, &backend.events, &backend.checks)
    });
    let gone = figures(gone.connections, [&gone.to_backend, &gone.to_client], &gone.events, &gone.checks);
    shown.fold(gone, |sum, row| sum.iter().zip(row).map(|(a, b)| a + b).collect())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_was_counted_stays_in_the_sums() {
    let other = SocketAddrV4::new(*VIP.ip(), 81);
    let second = service(other, Protocol::Udp, Scheduler::RoundRobin, &[(0, 1), (1, 1)]);
    let all = vec![web(&[(0, 1), (1, 1), (2, 1)]), second.clone()];
    lab(setup(all.clone()), move |lab| {
        for (port, n) in [(40000, 0), (40001, 1), (40002, 2), (40003, 0)] {
            establish(lab, port, n);
        }
        lab.reaches_client("a RST", &reply(40000, 0, "RA"), CLIENT_MAC);
        for n in 0..2 {
            lab.reaches_backend("a datagram", &udp(from(50000 + u16::from(n)), other), n);
        }
        for row in lab.plane.backends().to_vec() {
            let checks = lb_backend_checks {
                duration: lb_histogram { bucket: [1; 16], microseconds: 77 },
                passed: 3,
                failed: 4,
                ..Default::default()
            };
            lab.plane.tables().backend_checks.set(row.index.into(), checks).unwrap();
        }
        let before = sums(lab);
        assert_eq!(before[..4], [6, 10, 5, 0], "opened, sent to backends and to clients");
        let same = |lab: &Lab, what: &str| {
            assert_eq!(sums(lab), before, "{what}");
            lab.balance();
        };
        // Staged and undone, with rows that were somebody's before.
        let more = [all.clone(), vec![web_on(82, &[(3, 1), (4, 1)])]].concat();
        lab.plane.stage(&more).unwrap();
        same(lab, "staged");
        lab.plane.abandon();
        same(lab, "abandoned");
        lab.plane.apply(&more).unwrap();
        lab.plane.apply(&all).unwrap();
        lab.plane.collect().unwrap();
        same(lab, "a service came and went");

        // Removed while it has connections, come back, and removed for good.
        lab.plane.apply(&[web(&[(1, 1), (2, 1)]), second.clone()]).unwrap();
        same(lab, "a backend is removed");
        lab.plane.apply(&all).unwrap();
        same(lab, "it comes back");
        lab.plane.apply(&[web(&[(1, 1), (2, 1)]), second.clone()]).unwrap();
        lab.reaches_client("its last connection ends", &reply(40003, 0, "RA"), CLIENT_MAC);
        sleep(Duration::from_millis(2100));
        let before = sums(lab);
        assert_eq!(lab.plane.collect().unwrap().len(), 1);
        assert_eq!(sums(lab), before, "its row is free");
        lab.balance();
        assert_eq!(lab.plane.tables().backend_counters(0).unwrap().connections, 2);

        // A service whose connections live goes, and another takes its place.
        lab.plane.apply(&[web(&[(1, 1), (2, 1)])]).unwrap();
        assert_eq!(sums(lab), before, "a service is removed");
        assert_eq!(lab.plane.collect().unwrap(), []);
        assert!(!lab.plane.has_leavings());
        let mut after = before.clone();
        after[7] += 2;
        assert_eq!(sums(lab), after, "its two connections are forgotten: over their time");
        let gone = BackendEvents::from(&lab.plane.tables().backend_events.get(0).unwrap());
        assert_eq!(gone.expired, 2, "which is where their rows went");
        lab.plane.apply(&[web_on(82, &[(1, 1), (3, 1)]), web(&[(3, 1)])]).unwrap();
        lab.plane.collect().unwrap();
        assert_eq!(sums(lab), after, "others have the rows");
        lab.balance();
        // They begin from 0.
        for row in lab.plane.backends().to_vec() {
            let is_new = row.address == backend(3);
            let counted = lab.plane.tables().backend_counters(row.index).unwrap().connections;
            assert!(!is_new || counted == 0, "{row:?}: {counted}");
        }
    });
}

fn web_on(port: u16, backends: &[(u8, u8)]) -> Service {
    let vip = SocketAddrV4::new(*VIP.ip(), port);
    service(vip, Protocol::Tcp, Scheduler::RoundRobin, backends)
}

/// Hundreds of reloads with other rings and backends each time use up nothing.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_reloads_leave_no_litter() {
    lab(setup(vec![web(&[(0, 1)])]), |lab| {
        establish(lab, 40000, 0);
        for turn in 0..200u8 {
            let scheduler = [Scheduler::Maglev, Scheduler::WeightedRoundRobin][usize::from(turn % 2)];
            let backends: Vec<_> = (0..=turn % 50).map(|n| (n, 1 + turn % 100)).collect();
            lab.plane.apply(&[service(VIP, Protocol::Tcp, scheduler, &backends)]).unwrap();
            lab.plane.collect().unwrap();
            goes_on(lab, 40000, 0);
        }
        assert!(lab.plane.backends().iter().all(|backend| backend.index <= 100));
    });
}

/// More than fits is refused, and nothing has changed then.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_configuration_without_room_changes_nothing() {
    lab(setup(vec![web(&[(0, 1), (1, 1)])]), |lab| {
        establish(lab, 40000, 0);
        let error = lab.plane.apply(&services(300)).unwrap_err();
        assert!(format!("{error:#}").contains("no room for another service"), "{error:#}");
        goes_on(lab, 40000, 0);
        establish(lab, 40001, 1);
        assert_eq!(lab.plane.backends().len(), 2);
    });
}

/// The service under test, and many others.
fn services(count: u16) -> Vec<Service> {
    let other = |n: u16| {
        let vip = SocketAddrV4::new([198, 51, 100, (n % 250) as u8].into(), 1000 + n);
        let scheduler = if n % 8 == 0 { Scheduler::Maglev } else { Scheduler::RoundRobin };
        let mut service = service(vip, Protocol::Tcp, scheduler, &[(1, 1), (2, 1)]);
        // A backend's address is in at most eight services.
        service.backends.iter_mut().for_each(|backend| backend.address.set_port(10000 + n));
        service
    };
    [web(&[(0, 1), (1, 1)])].into_iter().chain((1..count).map(other)).collect()
}

fn request<'a>(services: &'a [Service], timeouts: &'a Timeouts) -> Request<'a> {
    Request { max_connections: 1000, timeouts, services, profile: Profile::NATIVE_VIRTUAL, key: None }
}

/// A bpffs of the thread's own.
fn with_pins(test: impl FnOnce(&std::path::Path)) {
    let dir = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    // In a chroot there is nothing to make private.
    let _ = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).unwrap();
    test(&dir.path().join("pins"));
    // Detached: a process that another thread is just starting may hold a copy of a descriptor for an instant.
    umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
}

/// Services, backends and rings that the tables have no room for: larger ones are filled from them.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_tables_grow_when_they_are_taken_over() {
    lab(Setup::default(), |lab| {
        with_pins(|pins| {
            lab.profile = Profile::NATIVE_VIRTUAL;
            let timeouts = Timeouts::default();
            let few = services(3);
            let dir = PinDir::acquire(pins).unwrap();
            let mut plane = Plane::load_for(&request(&few, &timeouts)).unwrap();
            plane.stage(&few).unwrap();
            attach(&mut plane, lab);
            plane.commit(&dir).unwrap();
            reach_all(&mut plane);
            drop(std::mem::replace(&mut lab.plane, plane));
            for ifindex in [lab.front, lab.back] {
                lab.egress(ifindex, Some(Egress::DIRECT));
            }
            establish(lab, 40000, 0);
            establish(lab, 40001, 1);
            drop(dir);

            for (count, grows) in [(3, false), (300, true), (300, false), (1000, true), (3, false)] {
                let wanted = services(count);
                let dir = PinDir::acquire(pins).unwrap();
                let left = Left::find(&dir).unwrap().unwrap();
                let (mut plane, how, _) = Plane::take_over(left, &request(&wanted, &timeouts)).unwrap();
                match how {
                    TakeOver::Adopted => assert!(!grows, "to {count}"),
                    TakeOver::Converted(made) => {
                        assert!(grows && made.contains(&"services") && made.contains(&"rings"), "{made:?}");
                        assert!(!made.contains(&"connections"), "{made:?}");
                    }
                    TakeOver::Lost { .. } => panic!("lost"),
                }
                attach(&mut plane, lab);
                plane.commit(&dir).unwrap();
                let counted = plane.tables().backend_counters(1).unwrap();
                assert_eq!(counted.connections, 1, "counters are carried over");
                let handshakes = plane.tables().backend_events.get(1).unwrap().handshake.bucket;
                assert_eq!(handshakes.iter().sum::<u64>(), 1, "events are");
                // As a killed one: the pins stay. No next hop is set again.
                drop(std::mem::replace(&mut lab.plane, plane));
                goes_on(lab, 40000, 0);
                goes_on(lab, 40001, 1);
            }
            let dir = PinDir::acquire(pins).unwrap();
            lab.plane.detach_all().unwrap();
            dir.remove(None).unwrap();
        });
    });
}

fn attach(plane: &mut Plane, lab: &Lab) {
    for ifindex in [lab.front, lab.back] {
        let attached = plane.attach(ifindex, "a veth", Mode::Native, Profile::NATIVE_VIRTUAL).unwrap();
        assert!(matches!(attached, Attached::Yes));
    }
}

fn reach_all(plane: &mut Plane) {
    for backend in plane.backends().to_vec() {
        let n = backend.address.ip().octets()[3] - 10;
        let hop = NextHop { ifindex: 20, mtu: MTU, source: LB_BACK_MAC, neighbour: Some(backend_mac(n)) };
        let (hops, tables) = plane.next_hops();
        let index = hops.of_backend(tables, hop).unwrap().unwrap();
        plane.set_next_hop(backend, index).unwrap();
    }
}
