//! Least connections: where the next one goes, and that what is counted is what lives.

use std::net::SocketAddrV4;

use xdp_lb::dataplane::Plane;
use xdp_lb::dataplane::types::{lb_backend, lb_backend_flags, lb_backend_load, lb_backend_state};
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

fn client(port: u16) -> SocketAddrV4 {
    address([192, 168, 1, 2], port)
}

fn least(backends: &[(u8, u8)]) -> Setup {
    let services = vec![service(VIP, Protocol::Tcp, Scheduler::LeastConn, backends)];
    Setup { services, ..Setup::default() }
}

/// Opens a connection and leaves it unconfirmed. Returns its backend.
fn open(lab: &mut Lab, port: u16) -> u8 {
    let (_, reason, out) = lab.send(lab.front, &tcp(client(port), VIP, "S").bytes());
    assert_eq!(reason, "sent to_backend");
    out[33] - 10
}

#[track_caller]
fn loads(lab: &Lab, expected: &[i64]) {
    let loads: Vec<i64> = (0..expected.len()).map(|n| lab.load(n)).collect();
    assert_eq!(loads, expected, "loads");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_thirty_on_weights_two_to_one_make_twenty_and_ten() {
    lab(least(&[(0, 2), (1, 1)]), |lab| {
        for port in 1..=30 {
            lab.connect(client(port));
            let expected = f64::from(port) / 3.0;
            assert!((lab.load(0) as f64 - 2.0 * expected).abs() < 1.0, "after {port}: {}", lab.load(0));
        }
        loads(lab, &[20, 10]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_least_loaded_takes_the_next() {
    lab(least(&[(0, 1), (1, 1), (2, 1)]), |lab| {
        for port in 1..=9 {
            assert_eq!(u16::from(open(lab, port)), (port - 1) % 3, "equals take turns");
        }
        loads(lab, &[3, 3, 3]);
        for port in [2, 5] {
            lab.reset(client(port), 1);
        }
        loads(lab, &[3, 1, 3]);
        assert_eq!([open(lab, 10), open(lab, 11)], [1, 1], "unconfirmed ones count as others do");
        assert_eq!(open(lab, 12), 2, "equals again: the rotation went on with every connection");
        loads(lab, &[3, 3, 4]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_equals_take_turns_by_their_weights() {
    lab(least(&[(0, 3), (1, 1), (2, 1)]), |lab| {
        // Each is gone before the next comes: all loads are 0, and what is left is weighted round robin.
        let mut counts = [0; 3];
        for port in 1..=50 {
            let n = open(lab, port);
            lab.reset(client(port), n);
            counts[usize::from(n)] += 1;
        }
        assert_eq!(counts, [30, 10, 10]);
        loads(lab, &[0, 0, 0]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_turn_of_equals_far_round_the_ring() {
    // Backends 0 and 1 have a turn each among 602, and all others a load: the walk for the next of the two gives up after
    // 256 slots, and the first of the list is taken.
    let mut backends = vec![(0, 1), (1, 1)];
    backends.extend((2..8).map(|n| (n, 100)));
    lab(least(&backends), |lab| {
        let rows = &lab.plane.tables().backend_loads;
        for n in 2..8 {
            let row = lb_backend_load { opened: 100_000, ended: 0 };
            rows.set(usize::from(lab.row(n).index), row).unwrap();
        }
        assert_eq!(open(lab, 1), 0);
        assert_eq!(open(lab, 2), 1, "the other has less now");
        loads(lab, &[1, 1, 100_000]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sixty_four_backends_are_searched_one_by_one() {
    let backends: Vec<(u8, u8)> = (0..64).map(|n| (n, 1)).collect();
    lab(least(&backends), |lab| {
        (1..=128).for_each(|port| _ = open(lab, port));
        loads(lab, &[2; 64]);
        lab.reset(client(64), 63);
        lab.state(10, lb_backend_state::LB_BACKEND_DOWN);
        lab.reset(client(11), 10);
        assert_eq!(open(lab, 200), 63, "the last of the list; the one that is down has as few");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_of_more_backends_the_less_loaded_of_two_is_taken() {
    let backends: Vec<(u8, u8)> = (0..65).map(|n| (n, 1)).collect();
    lab(least(&backends), |lab| {
        /// The number for which the second pick is this slot of the ring.
        fn slot(n: u32) -> u32 {
            ((u64::from(n) << 32).div_ceil(65)) as u32
        }
        let random = |lab: &Lab, n| lab.plane.set_test_random(slot(n)).unwrap();
        random(lab, 0);
        assert_eq!(open(lab, 1), 0, "the same slot twice");
        random(lab, 7);
        assert_eq!(open(lab, 2), 1, "equals: the rotation's");
        random(lab, 0);
        assert_eq!(open(lab, 3), 2, "the other pick has more");
        (4..=65).for_each(|port| _ = open(lab, port));
        loads(lab, &[1; 65]);
        lab.reset(client(8), 7);
        random(lab, 7);
        assert_eq!(open(lab, 100), 7, "the other pick has less; 0 would have been next");
        assert_eq!(open(lab, 101), 1, "the rotation went on");
        lab.state(2, lb_backend_state::LB_BACKEND_DOWN);
        assert_eq!(open(lab, 102), 7, "one that is down is not picked");
        lab.state(3, lb_backend_state::LB_BACKEND_DOWN);
        random(lab, 2);
        assert_eq!(open(lab, 103), 4, "both picks are down: the next in turn");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_weights_divide_loads_beyond_64_backends_too() {
    let mut backends = vec![(0, 4)];
    backends.extend((1..65).map(|n| (n, 1)));
    lab(least(&backends), |lab| {
        let rows = &lab.plane.tables().backend_loads;
        let set = |n: usize, opened| {
            rows.set(usize::from(lab.row(n).index), lb_backend_load { opened, ended: 0 }).unwrap();
        };
        set(0, 7);
        (1..65).for_each(|n| set(n, 2));
        // The ring's first slot is backend 0's: 7 / 4 against 2 / 1.
        lab.plane.set_test_random(u32::MAX).unwrap();
        assert_eq!(open(lab, 1), 0);
        loads(lab, &[8, 2]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_down_or_taken_is_passed_over() {
    const OTHER_VIP: SocketAddrV4 = address([192, 168, 1, 101], 443);
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::LeastConn, &[(0, 1), (1, 1)]),
        service(OTHER_VIP, Protocol::Tcp, Scheduler::LeastConn, &[(0, 1), (1, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        assert_eq!([open(lab, 1), open(lab, 2)], [0, 1]);
        let other = |lab: &mut Lab, port| {
            let (_, reason, out) = lab.send(lab.front, &tcp(client(port), OTHER_VIP, "S").bytes());
            (reason, out[33] - 10)
        };
        assert_eq!(other(lab, 1), ("sent to_backend".into(), 1), "the tuple is in use with the first");
        assert_eq!(other(lab, 9), ("sent to_backend".into(), 0), "each service has loads of its own");
        loads(lab, &[1, 1, 1, 1]);

        lab.state(0, lb_backend_state::LB_BACKEND_DOWN);
        assert_eq!([open(lab, 3), open(lab, 4)], [1, 1]);
        lab.state(1, lb_backend_state::LB_BACKEND_DRAIN);
        let syn = tcp(client(5), VIP, "S").bytes();
        lab.untouched("nobody is left", lab.front, &syn, (Verdict::Drop, "drop no_backend"));
        loads(lab, &[1, 3]);
        lab.state(1, lb_backend_state::LB_BACKEND_UP);
        lab.reset(client(1), 0);
        lab.reset(client(2), 1);
        // The entry of port 2 is closed, and the tuple of the other service's port 1 ends where the new one begins.
        lab.state(0, lb_backend_state::LB_BACKEND_UP);
        assert_eq!(open(lab, 2), 0);
        loads(lab, &[1, 2]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_every_way_to_end_lowers_the_load_once() {
    lab(least(&[(0, 1)]), |lab| {
        lab.connect(client(1));
        loads(lab, &[1]);
        for flags in ["A", "PA", "S", "FA"] {
            lab.reaches_backend("it goes on", &tcp(client(1), VIP, flags), 0);
        }
        loads(lab, &[1]);
        lab.reaches_client("both have closed it", &reply(0, client(1), "FA"), CLIENT_MAC);
        loads(lab, &[0]);
        for flags in ["A", "FA", "R"] {
            lab.reaches_client("late ones", &reply(0, client(1), flags), CLIENT_MAC);
            lab.reaches_backend("of both", &tcp(client(1), VIP, flags), 0);
        }
        loads(lab, &[0]);
        lab.connect(client(1));
        loads(lab, &[1]);
        lab.reset(client(1), 0);
        lab.reset(client(1), 0);
        loads(lab, &[0]);

        lab.connect(client(2));
        lab.reaches_backend("its client resets it", &tcp(client(2), VIP, "R"), 0);
        loads(lab, &[1]);
        lab.sweep(1000 + 30 * 4 + 1);
        loads(lab, &[0]);
        lab.reaches_backend("what closes stays over its timeout", &tcp(client(2), VIP, "A"), 0);
        loads(lab, &[0]);
        lab.reaches_client("but its backend revives it", &reply(0, client(2), "A"), CLIENT_MAC);
        loads(lab, &[1]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_expired_connection_that_goes_on_counts_again() {
    let services = vec![service(VIP, Protocol::Udp, Scheduler::LeastConn, &[(0, 1)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        lab.reaches_backend("and more", &udp(CLIENT, VIP), 0);
        loads(lab, &[1]);
        lab.sweep(1000 + 60 * 4 + 1);
        loads(lab, &[0]);
        lab.sweep(1000 + 60 * 4 + 1);
        loads(lab, &[0]);
        lab.reaches_backend("it goes on", &udp(CLIENT, VIP), 0);
        loads(lab, &[1]);
        lab.state(0, lb_backend_state::LB_BACKEND_DOWN);
        lab.sweep(1001);
        loads(lab, &[1]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_who_is_evicted_or_replaced_takes_its_count_along() {
    let services = vec![service(VIP, Protocol::Udp, Scheduler::LeastConn, &[(0, 1), (1, 1)])];
    lab(Setup { max_connections: 1, services, ..Setup::default() }, |lab| {
        for port in 1..=100 {
            let (_, reason, _) = lab.send(lab.front, &udp(client(port), VIP).bytes());
            assert_eq!(reason, "sent to_backend");
            assert_eq!(lab.load(0) + lab.load(1), i64::from(port.min(2)), "half of a bucket at most");
        }
        lab.state(0, lb_backend_state::LB_BACKEND_DOWN);
        let before = [lab.load(0), lab.load(1)];
        // The two that live are among these, and which they are is a matter of the table's key.
        for port in 1..=100 {
            lab.reaches_backend("all go to the other", &udp(client(port), VIP), 1);
        }
        loads(lab, &[0, before[0] + before[1]]);
        lab.sweep(1000 + 10 * 4 + 1);
        loads(lab, &[0, 0]);
        for port in 200..=300 {
            lab.clock(port * 100);
            lab.reaches_backend("in the place of an expired one", &udp(client(port), VIP), 1);
            assert!(lab.load(1) <= 4, "{}", lab.load(1));
        }
        lab.sweep(300 * 100);
        loads(lab, &[0, 1]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_tuple_that_gives_way_is_counted_out() {
    const OTHER_VIP: SocketAddrV4 = address([192, 168, 1, 101], 443);
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::LeastConn, &[(0, 1)]),
        service(OTHER_VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        open(lab, 1);
        loads(lab, &[1, 0]);
        lab.clock(1000 + 100);
        let (_, reason, _) = lab.send(lab.front, &tcp(client(1), OTHER_VIP, "S").bytes());
        assert_eq!(reason, "sent to_backend", "the other is over its timeout");
        loads(lab, &[0, 0]);
    });
}

/// Sets the flags of the n-th row of a backend, as a change of its service's scheduler would.
fn set_flags(plane: &Plane, n: usize, flags: u8) {
    let offset = std::mem::offset_of!(lb_backend, flags);
    let byte = plane.tables().backends.byte(usize::from(plane.backends()[n].index), offset).unwrap();
    byte.store(flags, std::sync::atomic::Ordering::Relaxed);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_older_than_the_scheduler_are_counted() {
    const COUNTED: u8 = lb_backend_flags::LB_BACKEND_COUNTED.0 as u8;
    let services = vec![service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        (1..=3).for_each(|port| _ = lab.connect(client(port)));
        loads(lab, &[0]);
        set_flags(&lab.plane, 0, COUNTED);
        lab.reaches_backend("one by its next packet", &tcp(client(1), VIP, "A"), 0);
        loads(lab, &[1]);
        lab.sweep(1000);
        loads(lab, &[3]);
        set_flags(&lab.plane, 0, 0);
        lab.connect(client(4));
        loads(lab, &[3]);
        (1..=4).for_each(|port| lab.reset(client(port), 0));
        loads(lab, &[0]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_two_sweeps_put_a_load_right_and_a_recount_at_once() {
    lab(least(&[(0, 1), (1, 1)]), |lab| {
        (1..=20).for_each(|port| _ = open(lab, port));
        loads(lab, &[10, 10]);
        let index = |lab: &Lab, n| usize::from(lab.row(n).index);
        let rows = &lab.plane.tables().backend_loads;
        rows.set(index(lab, 0), lb_backend_load { opened: 100, ended: 60 }).unwrap();
        rows.set(index(lab, 1), lb_backend_load { opened: 5, ended: 9 }).unwrap();
        assert_eq!(lab.sweep(1000).corrected, 0);
        loads(lab, &[40, -4]);
        assert_eq!(open(lab, 21), 1, "below 0 is 0, and the least");
        assert_eq!(lab.sweep(1000).corrected, 44);
        loads(lab, &[10, 11]);
        assert_eq!(lab.sweep(1000).corrected, 0);

        lab.plane.tables().backend_loads.set(index(lab, 0), lb_backend_load::default()).unwrap();
        assert_eq!(lab.plane.recount_loads_at(1000), 10);
        loads(lab, &[10, 11]);
        assert_eq!(lab.plane.recount_loads_at(1000), 0);
    });
}
