use std::sync::atomic::Ordering;

use super::*;
use crate::dataplane::hash::hash;
use crate::dataplane::types::lb_constants;
use crate::dataplane::{Plane, Profile, Request};
use crate::model::{Backend, Scheduler, Service, Timeouts, Weight};

const NOW: u16 = 1000;

fn service(vip: &str, protocol: Protocol, scheduler: Scheduler, ports: &[u16]) -> Service {
    let backend = |port: &u16| Backend::new(format!("10.0.0.10:{port}").parse().unwrap(), Weight::MIN);
    Service { scheduler, ..Service::new(vip.parse().unwrap(), protocol, ports.iter().map(backend).collect()) }
}

fn plane(services: &[Service]) -> Plane {
    let request = Request {
        max_connections: 1000,
        timeouts: &Timeouts::default(),
        services,
        profile: Profile::NATIVE,
        key: Some([1, 2, 3, 4]),
    };
    let mut plane = Plane::load_for(&request).unwrap();
    plane.apply(services).unwrap();
    plane
}

/// Puts an entry where a packet would.
fn put(plane: &Plane, client: &str, service: u16, backend: u16, phase: lb_phase, udp: bool, age: u16) {
    let client: SocketAddrV4 = client.parse().unwrap();
    let address = u64::from(u32::from_ne_bytes(client.ip().octets()));
    let key = address | u64::from(client.port().to_be()) << 32 | u64::from(service) << 48;
    let settings = plane.settings();
    let hash = hash(key, [settings.key[0], settings.key[1]]);
    let tag = u64::from((hash >> lb_constants::LB_TAG_SHIFT.0) as u8);
    let counted = plane.tables().backends.get(backend.into()).unwrap().flags
        & lb_backend_flags::LB_BACKEND_COUNTED.0 as u8;
    let state = u64::from(backend)
        | u64::from(phase.0) << lb_state_layout::LB_STATE_PHASE_SHIFT.0
        | u64::from(udp) << lb_state_layout::LB_STATE_UDP_SHIFT.0
        | tag << lb_state_layout::LB_STATE_TAG_SHIFT.0
        | u64::from(NOW - age) << lb_state_layout::LB_STATE_SEEN_SHIFT.0;
    let state = State(state).count(counted != 0);
    let bucket = crate::dataplane::hash::candidates(hash, settings.buckets)[0];
    let free = (0..SLOTS).find_map(|at| {
        let (label, word) = slot(&plane.tables().connections, bucket, at)?;
        (word.load(Ordering::Acquire) == 0).then_some((label, word))
    });
    let (label, word) = free.expect("a free slot");
    label.store(key, Ordering::Release);
    word.store(state.0, Ordering::Release);
    follow(plane.tables().loads(), State(0), state);
}

fn entries(plane: &Plane) -> Entries<'_> {
    Entries::new(plane.tables(), *plane.settings(), NOW)
}

fn clients(listing: &Listing) -> Vec<String> {
    let mut clients: Vec<_> = listing.entries.iter().map(|entry| entry.client.to_string()).collect();
    clients.sort();
    clients
}

fn loads(plane: &Plane) -> Vec<i64> {
    plane.backends().iter().map(|backend| plane.tables().loads().load(backend.index)).collect()
}

fn web() -> Vec<Service> {
    vec![
        service("192.0.2.1:80", Protocol::Tcp, Scheduler::LeastConn, &[8080, 8081, 8082]),
        service("192.0.2.1:53", Protocol::Udp, Scheduler::LeastConn, &[53]),
        service("192.0.2.2:80", Protocol::Tcp, Scheduler::RoundRobin, &[9000]),
    ]
}

fn filled() -> Plane {
    let plane = plane(&web());
    put(&plane, "198.51.100.1:1001", 1, 1, lb_phase::LB_PHASE_ESTABLISHED, false, 8);
    put(&plane, "198.51.100.1:1002", 1, 2, lb_phase::LB_PHASE_ANSWERED, false, 0);
    put(&plane, "198.51.100.2:1003", 1, 1, lb_phase::LB_PHASE_REVIVING, false, 0);
    put(&plane, "198.51.100.2:1004", 1, 1, lb_phase::LB_PHASE_CLOSED, false, 0);
    put(&plane, "198.51.100.3:1005", 2, 4, lb_phase::LB_PHASE_ESTABLISHED, true, 0);
    put(&plane, "198.51.100.3:1006", 1, 3, lb_phase::LB_PHASE_UNCONFIRMED, false, 900);
    put(&plane, "198.51.100.4:1007", 3, 5, lb_phase::LB_PHASE_ESTABLISHED, false, 0);
    plane
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_goes_on_is_listed_by_every_filter() {
    let plane = filled();
    let entries = entries(&plane);
    let all = entries.list(&Which::default());
    let live = ["198.51.100.1:1001", "198.51.100.1:1002", "198.51.100.2:1003", "198.51.100.3:1005"];
    assert_eq!(clients(&all), [&live[..], &["198.51.100.4:1007"]].concat(), "neither closed nor too old");
    assert!(!all.more);
    let first = all.entries.iter().find(|entry| entry.client.port() == 1001).unwrap();
    assert_eq!(first.vip.to_string(), "192.0.2.1:80");
    assert_eq!(first.backend.to_string(), "10.0.0.10:8080");
    assert_eq!((first.protocol, first.state), (Protocol::Tcp, LifeState::Established));
    assert!((2..=4).contains(&first.idle.as_secs()), "{:?}", first.idle);

    let of = |which: Which| clients(&entries.list(&which));
    let backend = Some("10.0.0.10:8080".parse().unwrap());
    assert_eq!(of(Which { backend, ..Which::default() }), [live[0], live[2]]);
    let client = Some("198.51.100.1".parse().unwrap());
    assert_eq!(of(Which { client, ..Which::default() }), [live[0], live[1]]);
    assert_eq!(of(Which { client, backend, ..Which::default() }), [live[0]]);
    let state = Some(LifeState::Closing);
    assert_eq!(of(Which { state, ..Which::default() }), [live[2]]);
    let services = Some(vec![("192.0.2.1:53".parse().unwrap(), Protocol::Udp)]);
    assert_eq!(of(Which { services, ..Which::default() }), [live[3]]);
    assert_eq!(of(Which { services: Some(Vec::new()), ..Which::default() }), [""; 0]);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_listing_stops_at_its_limit_and_says_so() {
    let plane = filled();
    for (limit, found, more) in [(0, 0, true), (4, 4, true), (5, 5, false), (6, 5, false)] {
        let listing = entries(&plane).list(&Which { limit: Some(limit), ..Which::default() });
        assert_eq!((listing.entries.len(), listing.more), (found, more), "{limit}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_ended_is_anothers_and_loads_follow() {
    let mut plane = filled();
    assert_eq!(loads(&plane), [2, 1, 1, 1, 0]);
    let which = Which { backend: Some("10.0.0.10:8080".parse().unwrap()), ..Which::default() };
    assert_eq!(entries(&plane).end(&which).unwrap(), 2);
    assert!(entries(&plane).list(&which).entries.is_empty());
    assert_eq!(loads(&plane), [0, 2, 2, 1, 0], "in turn to the two others");
    assert_eq!(entries(&plane).end(&which).unwrap(), 0);

    let udp =
        Which { services: Some(vec![("192.0.2.1:53".parse().unwrap(), Protocol::Udp)]), ..Which::default() };
    assert_eq!(entries(&plane).end(&udp).unwrap(), 1, "of UDP one backend is enough");
    assert_eq!(loads(&plane), [0, 2, 2, 0, 0]);
    assert!(entries(&plane).list(&udp).entries.is_empty());

    let client = Which { client: Some("198.51.100.3".parse().unwrap()), ..Which::default() };
    assert_eq!(entries(&plane).end(&client).unwrap(), 1, "one over its timeout is ended too");
    assert_eq!(loads(&plane).iter().sum::<i64>(), 4);
    for _ in 0..3 {
        assert_eq!(plane.sweep_at(NOW.into()).unwrap().corrected, 0, "loads and table agree");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_no_more_are_ended_than_the_limit() {
    let plane = filled();
    let which =
        Which { backend: Some("10.0.0.10:8080".parse().unwrap()), limit: Some(1), ..Which::default() };
    assert_eq!(entries(&plane).end(&which).unwrap(), 1);
    assert_eq!(entries(&plane).list(&which).entries.len(), 1);
    assert_eq!(entries(&plane).end(&Which { limit: Some(0), ..which }).unwrap(), 0);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_where_nobody_else_is_up_nothing_is_ended() {
    let plane = filled();
    let error = entries(&plane).end(&Which::default()).unwrap_err().to_string();
    assert!(error.contains("192.0.2.2:80/tcp") && error.contains("besides 10.0.0.10:9000"), "{error}");
    assert_eq!(entries(&plane).list(&Which::default()).entries.len(), 5, "all or nothing");

    for row in [2, 3] {
        let state = plane.tables().backends.byte(row, std::mem::offset_of!(lb_backend, state)).unwrap();
        state.store(lb_backend_state::LB_BACKEND_DOWN.0 as u8, Ordering::Release);
    }
    let backend = |address: &str| Which { backend: Some(address.parse().unwrap()), ..Which::default() };
    assert!(entries(&plane).end(&backend("10.0.0.10:8080")).is_err(), "the others are down");
    assert_eq!(entries(&plane).end(&backend("10.0.0.10:8081")).unwrap(), 1, "its own may be down");
}
