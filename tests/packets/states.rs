//! States of backends, and what becomes of packets that none of them takes.

use std::net::SocketAddrV4;

use xdp_lb::dataplane::types::lb_backend_state;
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

const UP: lb_backend_state = lb_backend_state::LB_BACKEND_UP;
const DOWN: lb_backend_state = lb_backend_state::LB_BACKEND_DOWN;
const RESET: lb_backend_state = lb_backend_state::LB_BACKEND_RESET;
const DISABLED: lb_backend_state = lb_backend_state::LB_BACKEND_DISABLED;

/// Services of the default set-up.
const TCP: u16 = 1;
const UDP: u16 = 2;

fn from(port: u16) -> SocketAddrV4 {
    address([192, 168, 1, 2], port)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_of_a_dead_backend_get_the_rst_of_another() {
    lab(Setup::default(), |lab| {
        assert_eq!([lab.connect(from(1)), lab.connect(from(2)), lab.connect(from(3))], [0, 1, 2]);
        lab.state(0, RESET);
        lab.reaches_client("what it still sends arrives", &reply(0, from(1), "PA"), CLIENT_MAC);
        // The turn is backend 0's.
        lab.reaches_backend("the client's next segment", &tcp(from(1), VIP, "PA"), 1);
        lab.reaches_backend("and all after it", &tcp(from(1), VIP, "A"), 1);
        let late = reply(0, from(1), "PA").bytes();
        lab.untouched("it is no more", lab.back, &late, (Verdict::Pass, "pass no_connection"));
        lab.reaches_client("the client learns it", &reply(1, from(1), "R"), CLIENT_MAC);
        assert_eq!(lab.answers(1), (0, 0), "which is no refusal");
        lab.reaches_backend("others are not touched", &tcp(from(2), VIP, "A"), 1);
        lab.reaches_backend("others are not touched", &tcp(from(3), VIP, "A"), 2);
        for port in 4..10 {
            assert_ne!(lab.connect(from(port)), 0, "it takes no new ones");
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_every_segment_but_a_rst_leaves_a_dead_backend() {
    lab(Setup::default(), |lab| {
        for flags in ["S", "A", "PA", "FA", "F", "SA", ""] {
            for phase in 0..3 {
                lab.state(0, UP);
                let services = [&[(0, 1)][..], &[(1, 1)], &[(0, 1), (1, 1)]];
                lab.plane.apply(&[service(VIP, Protocol::Tcp, Scheduler::RoundRobin, services[0])]).unwrap();
                lab.reaches_backend("SYN", &tcp(CLIENT, VIP, "S"), 0);
                if phase > 0 {
                    lab.reaches_client("SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
                    lab.reaches_backend("ACK", &tcp(CLIENT, VIP, "A"), 0);
                }
                if phase > 1 {
                    lab.reaches_client("FIN", &reply(0, CLIENT, "FA"), CLIENT_MAC);
                }
                lab.plane.apply(&[service(VIP, Protocol::Tcp, Scheduler::RoundRobin, services[2])]).unwrap();
                let other = lab.plane.backends().iter().position(|row| row.address == backend(1)).unwrap();
                lab.reach(lab.row(other), Some(backend_mac(1)), lab.back);
                lab.state(0, RESET);
                let rst = tcp(CLIENT, VIP, "R").bytes();
                lab.untouched("a RST", lab.front, &rst, (Verdict::Drop, "drop rst_unknown"));
                lab.reaches_client("after which it is still there", &reply(0, CLIENT, "A"), CLIENT_MAC);
                lab.reaches_backend(flags, &tcp(CLIENT, VIP, flags), 1);
                lab.reaches_client("and closed", &reply(1, CLIENT, "RA"), CLIENT_MAC);
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_without_another_backend_a_dead_one_keeps_its_entries() {
    lab(Setup::default(), |lab| {
        lab.connect(CLIENT);
        lab.state(0, RESET);
        lab.state(1, DISABLED);
        lab.state(2, DOWN);
        let ack = tcp(CLIENT, VIP, "A").bytes();
        lab.untouched("nobody's RST", lab.front, &ack, (Verdict::Drop, "drop no_backend"));
        lab.pass_empty(TCP, true);
        lab.untouched("the kernel's", lab.front, &ack, (Verdict::Pass, "pass no_backend"));
        lab.reaches_client("it is still there", &reply(0, CLIENT, "PA"), CLIENT_MAC);
        lab.state(0, UP);
        lab.reaches_backend("and goes on if the backend comes back", &tcp(CLIENT, VIP, "A"), 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_loads_follow_the_connections_of_a_dead_backend() {
    let services = vec![service(VIP, Protocol::Tcp, Scheduler::LeastConn, &[(0, 1), (1, 1)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        for port in 1..=4 {
            lab.connect(from(port));
        }
        let loads = |lab: &Lab| [lab.load(0), lab.load(1)];
        assert_eq!(loads(lab), [2, 2]);
        lab.state(0, RESET);
        assert_eq!(loads(lab), [2, 2]);
        lab.reaches_backend("one of its own", &tcp(from(1), VIP, "A"), 1);
        assert_eq!(loads(lab), [1, 3]);
        lab.reaches_backend("of the other's", &tcp(from(2), VIP, "A"), 1);
        assert_eq!(loads(lab), [1, 3]);
        lab.reset(from(1), 1);
        assert_eq!(loads(lab), [1, 2]);
        lab.reaches_backend("the other of its own", &tcp(from(3), VIP, "FA"), 1);
        assert_eq!(loads(lab), [0, 3]);
        lab.sweep(1000);
        assert_eq!(loads(lab), [0, 3]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_disabled_backend_is_as_one_that_is_down() {
    lab(Setup::default(), |lab| {
        lab.connect(CLIENT);
        lab.state(0, DISABLED);
        lab.reaches_backend("what it has goes on", &tcp(CLIENT, VIP, "PA"), 0);
        lab.reaches_client("both ways", &reply(0, CLIENT, "PA"), CLIENT_MAC);
        lab.reaches_backend("an end, too", &tcp(CLIENT, VIP, "R"), 0);
        for port in 1..=6 {
            assert_ne!(lab.connect(from(port)), 0, "no new ones");
        }
        lab.reaches_backend("a SYN goes elsewhere", &tcp(CLIENT, VIP, "S"), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_leaves_dead_and_disabled_backends() {
    for state in [RESET, DISABLED] {
        lab(Setup::default(), move |lab| {
            lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
            lab.state(3, state);
            lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
            lab.reaches_backend("moves at once", &udp(CLIENT, VIP), 1);
            let late = udp_reply(0, CLIENT).bytes();
            lab.untouched("another answer", lab.back, &late, (Verdict::Pass, "pass no_connection"));
            for port in 1..=6 {
                let (_, reason, out) = lab.send(lab.front, &udp(from(port), VIP).bytes());
                assert_eq!((reason.as_str(), out[33] == 10), ("sent to_backend", false), "no new ones");
            }
        });
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_service_leaves_to_the_kernel_what_nobody_takes() {
    const PASS: (Verdict, &str) = (Verdict::Pass, "pass no_backend");
    const DROP: (Verdict, &str) = (Verdict::Drop, "drop no_backend");
    lab(Setup::default(), |lab| {
        let segments =
            ["S", "A", "PA", "FA", "SA"].map(|flags| tcp(CLIENT, VIP, flags).payload("data").bytes());
        let tagged = udp(CLIENT, VIP).tagged(&[(0x8100, 9)]).padded(3);
        let datagrams = [udp(CLIENT, VIP), udp(CLIENT, VIP).checksum(super::frame::Checksum::Absent), tagged];
        (0..6).for_each(|n| lab.state(n, [DOWN, RESET, DISABLED][n % 3]));
        for (tcp, udp) in [(false, false), (true, false), (false, true), (true, true)] {
            lab.pass_empty(TCP, tcp);
            lab.pass_empty(UDP, udp);
            for segment in &segments {
                lab.untouched("a segment", lab.front, segment, if tcp { PASS } else { DROP });
            }
            for datagram in &datagrams {
                lab.untouched("a datagram", lab.front, &datagram.bytes(), if udp { PASS } else { DROP });
            }
        }
        let rst = tcp(CLIENT, VIP, "R").bytes();
        lab.untouched("a RST is of no new connection", lab.front, &rst, (Verdict::Drop, "drop rst_unknown"));
        let odd = tcp(address([127, 0, 0, 1], 9), VIP, "S").bytes();
        lab.untouched("nobody's address", lab.front, &odd, (Verdict::Drop, "drop bad_source"));
        let late = tcp(CLIENT, VIP, "S").ttl(1).bytes();
        lab.untouched("the last hop", lab.front, &late, (Verdict::Drop, "drop ttl"));
        let rows = &lab.plane.tables().connections;
        assert!((0..rows.len()).all(|at| rows.get(at).unwrap().conn.iter().all(|conn| conn.state == 0)));
        lab.state(1, UP);
        lab.reaches_backend("a backend comes back", &tcp(CLIENT, VIP, "S"), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_kernel_gets_what_is_for_a_service_without_backends() {
    lab(Setup::default(), |lab| {
        for scheduler in [Scheduler::RoundRobin, Scheduler::LeastConn, Scheduler::Maglev] {
            let syn = tcp(CLIENT, VIP, "S").bytes();
            for backends in [&[][..], &[(0, 1)]] {
                lab.plane.apply(&[service(VIP, Protocol::Tcp, scheduler, backends)]).unwrap();
                lab.state(0, DISABLED);
                lab.pass_empty(TCP, false);
                lab.untouched("by default", lab.front, &syn, (Verdict::Drop, "drop no_backend"));
                lab.pass_empty(TCP, true);
                lab.untouched("as it says", lab.front, &syn, (Verdict::Pass, "pass no_backend"));
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_tuple_in_use_is_not_the_kernels() {
    const OTHER_VIP: SocketAddrV4 = address([192, 168, 1, 101], 443);
    let services = [VIP, OTHER_VIP].map(|vip| service(vip, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]));
    lab(Setup { services: services.to_vec(), ..Setup::default() }, |lab| {
        lab.connect(CLIENT);
        lab.pass_empty(TCP, true);
        lab.pass_empty(2, true);
        let syn = tcp(CLIENT, OTHER_VIP, "S").bytes();
        lab.untouched("through another", lab.front, &syn, (Verdict::Drop, "drop tuple_in_use"));
    });
}
