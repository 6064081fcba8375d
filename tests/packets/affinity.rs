//! Sticky services: a client comes back to its backend for a time after its last connection.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use xdp_lb::dataplane::types::lb_backend_state;
use xdp_lb::dataplane::{Client, ClientRecord};
use xdp_lb::model::{Protocol, Scheduler, Service};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

/// Of the clock, and more than `sticky()` has at any rate of the kernel's ticks.
const LATER: u32 = 41;

fn sticky(protocol: Protocol, scheduler: Scheduler) -> Service {
    let service = service(VIP, protocol, scheduler, &[(0, 1), (1, 1), (2, 1)]);
    Service { sticky: Some(Duration::from_secs(10)), ..service }
}

fn round_robin() -> Setup {
    Setup { services: vec![sticky(Protocol::Tcp, Scheduler::RoundRobin)], ..Setup::default() }
}

/// One of two clients.
fn one(port: u16) -> SocketAddrV4 {
    address([192, 168, 1, 2], port)
}

fn other(port: u16) -> SocketAddrV4 {
    address([203, 0, 113, 9], port)
}

fn records(lab: &Lab) -> HashMap<Client, ClientRecord> {
    lab.plane.tables().affinity().records().unwrap()
}

fn record(lab: &Lab, client: SocketAddrV4) -> Option<ClientRecord> {
    let client = Client { address: *client.ip(), service: 1 };
    let found = lab.plane.tables().affinity().record(client).unwrap();
    assert_eq!(records(lab).get(&client).copied(), found);
    found
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_client_comes_back_to_its_backend_for_a_time() {
    lab(round_robin(), |lab| {
        lab.long_clock(1000);
        assert_eq!(lab.connect(one(1)), 0);
        assert!((2..=20).all(|port| lab.connect(one(port)) == 0));
        assert_eq!(lab.connect(other(1)), 1, "another client has its own, and the turns are not used up");
        assert_eq!([lab.connect(one(21)), lab.connect(other(2))], [0, 1]);
        assert_eq!(record(lab, one(0)), Some(ClientRecord { backend: lab.row(0).index, last: 1000 }));
        assert_eq!(records(lab).len(), 2);

        let units = lab.plane.tables().services.get(1).unwrap().sticky;
        assert!((20..LATER).contains(&units), "{units}");
        lab.long_clock(1000 + units);
        assert_eq!(lab.connect(one(22)), 0, "at the end of its time");
        lab.long_clock(1000 + units + 1);
        assert_eq!(lab.connect(other(3)), 2, "after it");
        assert_eq!(lab.connect(other(4)), 2, "where it stays from then on");
        lab.long_clock(1000 + 2 * units);
        assert_eq!(lab.connect(one(23)), 0, "a new connection begins the time again");
        lab.long_clock(1000 + 3 * units + 1);
        assert_eq!(lab.connect(one(24)), 0, "moved on: it is backend 0's turn");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_clock_of_records_outlasts_the_tables() {
    lab(round_robin(), |lab| {
        lab.long_clock(70_000);
        assert_eq!([lab.connect(one(1)), lab.connect(one(2))], [0, 0]);
        lab.long_clock(70_000 + 65_536);
        assert_eq!(lab.connect(one(3)), 1, "the table's clock says the same again");
        lab.long_clock(70_000 + (1 << 31));
        assert_eq!(lab.connect(one(4)), 2, "after 17 years");
        lab.long_clock(u32::MAX - 1);
        assert_eq!([lab.connect(one(5)), lab.connect(other(1)), lab.connect(other(2))], [0, 1, 1]);
        lab.long_clock(3);
        assert_eq!([lab.connect(one(6)), lab.connect(other(3))], [0, 1], "it wraps");
        lab.long_clock(1);
        assert_eq!([lab.connect(one(7)), lab.connect(other(4))], [0, 1], "and may differ between CPUs");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nobody_is_remembered_for_packets_in_its_name() {
    lab(round_robin(), |lab| {
        for n in 0..200u8 {
            let victim = address([198, 51, 100, n], 7);
            for flags in ["S", "A", "PA", "FA"] {
                assert_eq!(lab.send(lab.front, &tcp(victim, VIP, flags).bytes()).1, "sent to_backend");
            }
        }
        assert_eq!(records(lab).len(), 0, "a flood of packets of clients only");
        lab.reaches_backend("SYN", &tcp(one(1), VIP, "S"), 2);
        lab.reaches_client("SYN-ACK", &reply(2, one(1), "SA"), CLIENT_MAC);
        lab.reaches_backend("the SYN again", &tcp(one(1), VIP, "S"), 2);
        let mut broken = tcp(one(1), VIP, "A").bytes();
        broken[50] ^= 0x55;
        assert_eq!(lab.send(lab.front, &broken).1, "sent to_backend");
        lab.reaches_client("RST", &reply(2, one(1), "RA"), CLIENT_MAC);
        assert_eq!(records(lab).len(), 0, "one that the backend refused");
        lab.connect(one(1));
        assert_eq!(records(lab).len(), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_client_that_closes_at_once_is_remembered() {
    lab(round_robin(), |lab| {
        lab.reaches_backend("SYN", &tcp(one(1), VIP, "S"), 0);
        lab.reaches_client("SYN-ACK", &reply(0, one(1), "SA"), CLIENT_MAC);
        lab.reaches_backend("ACK, data and FIN in one", &tcp(one(1), VIP, "FA"), 0);
        assert_eq!(lab.connect(one(2)), 0);
        lab.reaches_backend("SYN", &tcp(other(1), VIP, "S"), 1);
        lab.reaches_client("SYN-ACK", &reply(1, other(1), "SA"), GATEWAY_MAC);
        lab.reaches_client("FIN of the backend", &reply(1, other(1), "FA"), GATEWAY_MAC);
        lab.reaches_backend("which the client's closes", &tcp(other(1), VIP, "FA"), 1);
        assert_eq!(lab.connect(other(2)), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_time_begins_at_the_end_of_the_last_connection() {
    lab(round_robin(), |lab| {
        lab.long_clock(1000);
        assert_eq!(lab.connect(one(1)), 0);
        lab.long_clock(1000 + 2 * LATER);
        lab.reset(one(1), 0);
        assert_eq!(record(lab, one(0)).map(|record| record.last), Some(1000 + 2 * LATER));
        assert_eq!(lab.connect(one(2)), 0, "it has run out and was not swept, but here it ends");
        lab.reaches_backend("FIN", &tcp(one(2), VIP, "FA"), 0);
        lab.long_clock(1010 + 2 * LATER);
        lab.reaches_client("FIN", &reply(0, one(2), "FA"), CLIENT_MAC);
        assert_eq!(record(lab, one(0)).map(|record| record.last), Some(1010 + 2 * LATER));
        lab.long_clock(1020 + 2 * LATER);
        lab.reset(one(2), 0);
        assert_eq!(record(lab, one(0)).map(|record| record.last), Some(1010 + 2 * LATER), "once");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_sweep_keeps_the_records_of_live_connections() {
    lab(round_robin(), |lab| {
        lab.long_clock(1000);
        assert_eq!([lab.connect(one(1)), lab.connect(other(1))], [0, 1]);
        lab.reset(other(1), 1);
        lab.reaches_backend("a third opens only", &tcp(SILENT_CLIENT, VIP, "S"), 2);
        let mut now = 1000;
        while now < 1000 + 3 * LATER {
            now += 10;
            lab.long_clock(now);
            lab.sweep(now);
        }
        assert_eq!(record(lab, one(0)).map(|record| record.last), Some(now));
        assert_eq!(record(lab, other(0)).map(|record| record.last), Some(1000));
        assert_eq!(record(lab, SILENT_CLIENT), None);
        assert_eq!(lab.connect(one(2)), 0, "its first connection still lives");
        assert_eq!(lab.connect(other(2)), 0, "this one's has ended");

        // The connections are over their timeout, and so is the record.
        now += 2000;
        lab.long_clock(now);
        lab.sweep(now);
        assert_eq!(record(lab, one(0)).map(|record| record.last), Some(now - 2000));
        assert_eq!(lab.connect(one(3)), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_backend_that_goes_away_is_forgotten() {
    lab(round_robin(), |lab| {
        for gone in [lb_backend_state::LB_BACKEND_DOWN, lb_backend_state::LB_BACKEND_DRAIN] {
            let client = if gone == lb_backend_state::LB_BACKEND_DOWN { one } else { other };
            let first = lab.connect(client(1));
            assert_eq!(lab.connect(client(2)), first);
            lab.state(first.into(), gone);
            lab.reaches_backend("what goes on does", &tcp(client(1), VIP, "A"), first);
            let (_, reason, out) = lab.send(lab.front, &tcp(client(3), VIP, "S").bytes());
            assert_eq!((reason.as_str(), out[33] - 10 == first), ("sent to_backend", false));
            assert_eq!(record(lab, client(0)), None, "dropped by the look at it");
            lab.state(first.into(), lb_backend_state::LB_BACKEND_UP);
            let next = lab.connect(client(4));
            assert_ne!(next, first, "it has moved on");
            lab.reset(client(1), first);
            assert_eq!(record(lab, client(0)).map(|record| record.backend), Some(lab.row(next.into()).index));
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nobody_comes_back_to_a_dead_or_disabled_backend() {
    for gone in [lb_backend_state::LB_BACKEND_RESET, lb_backend_state::LB_BACKEND_DISABLED] {
        lab(round_robin(), move |lab| {
            assert_eq!([lab.connect(one(1)), lab.connect(one(2))], [0, 0]);
            lab.state(0, gone);
            let goes_on = gone == lb_backend_state::LB_BACKEND_DISABLED;
            lab.reaches_backend("one that it has", &tcp(one(1), VIP, "A"), if goes_on { 0 } else { 1 });
            assert_eq!(record(lab, one(0)).is_some(), goes_on, "dropped by the first look at it");
            let next = lab.connect(one(3));
            assert_ne!(next, 0);
            assert_eq!(record(lab, one(0)).map(|record| record.backend), Some(lab.row(next.into()).index));
            lab.state(0, lb_backend_state::LB_BACKEND_UP);
            assert_eq!(lab.connect(one(4)), next, "it has moved on");
        });
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_end_of_an_old_connection_makes_no_record() {
    lab(round_robin(), |lab| {
        let first = lab.connect(one(1));
        assert_eq!(lab.plane.forget_clients(lab.row(1).index).unwrap(), 0);
        assert_eq!(lab.plane.forget_clients(lab.row(first.into()).index).unwrap(), 1);
        assert_eq!(records(lab).len(), 0);
        lab.reset(one(1), first);
        lab.sweep(1000);
        assert_eq!(records(lab).len(), 0);
        assert_eq!(lab.connect(one(2)), 1, "the scheduler's turn");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_first_of_parallel_connections_decides() {
    lab(round_robin(), |lab| {
        for (port, n) in [(1, 0), (2, 1), (3, 2)] {
            lab.reaches_backend("SYN", &tcp(one(port), VIP, "S"), n);
        }
        for (port, n) in [(2, 1), (3, 2), (1, 0)] {
            lab.reaches_client("SYN-ACK", &reply(n, one(port), "SA"), CLIENT_MAC);
            lab.reaches_backend("ACK", &tcp(one(port), VIP, "A"), n);
        }
        assert_eq!([lab.connect(one(4)), lab.connect(one(5))], [1, 1]);
        lab.reset(one(3), 2);
        assert_eq!(lab.connect(one(6)), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_any_scheduler_and_udp_too() {
    for scheduler in [Scheduler::WeightedRoundRobin, Scheduler::Maglev, Scheduler::LeastConn] {
        lab(Setup { services: vec![sticky(Protocol::Tcp, scheduler)], ..Setup::default() }, |lab| {
            let first = lab.connect(one(1));
            assert!((2..=30).all(|port| lab.connect(one(port)) == first), "{first}");
        });
    }
    lab(Setup { services: vec![sticky(Protocol::Udp, Scheduler::RoundRobin)], ..Setup::default() }, |lab| {
        lab.reaches_backend("a flow", &udp(one(1), VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, one(1)), CLIENT_MAC);
        lab.reaches_backend("unconfirmed: another goes elsewhere", &udp(one(2), VIP), 1);
        lab.reaches_backend("confirmed", &udp(one(1), VIP), 0);
        lab.reaches_backend("another comes back", &udp(one(3), VIP), 0);
        lab.reaches_backend("and one that another client's turn is not", &udp(other(1), VIP), 2);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_services_remember_each_for_themselves() {
    const OTHER_VIP: SocketAddrV4 = address([192, 168, 1, 101], 443);
    let second = service(OTHER_VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1), (1, 1), (2, 1)]);
    let services = vec![
        sticky(Protocol::Tcp, Scheduler::RoundRobin),
        Service { sticky: Some(Duration::from_secs(10)), ..second },
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        assert_eq!(lab.connect(other(9)), 0);
        assert_eq!([lab.connect(one(1)), lab.connect(one(2))], [1, 1]);
        let to_other = |lab: &mut Lab, port| {
            let (_, reason, out) = lab.send(lab.front, &tcp(one(port), OTHER_VIP, "S").bytes());
            assert_eq!(reason, "sent to_backend");
            out[33] - 10
        };
        assert_eq!(to_other(lab, 7), 0);
        // The backend that a client is to come back to has the same tuple by another service: the scheduler's turn.
        let (address, service) = (Ipv4Addr::new(192, 168, 1, 2), 1);
        assert!(records(lab).contains_key(&Client { address, service }));
        assert_eq!(to_other(lab, 8), 1);
        lab.reaches_backend("the tuple of port 8 is in use with backend 1", &tcp(one(8), VIP, "S"), 2);
        assert!(records(lab).contains_key(&Client { address, service }), "which drops no record");
        assert_eq!(lab.connect(one(3)), 1);
    });
}
