//! What is counted of the lives of connections, and how long their handshakes take.

use std::net::SocketAddrV4;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use xdp_lb::dataplane::types::{lb_backend_state, lb_handshake, lb_phase};
use xdp_lb::dataplane::{BackendEvents, Entries, Histogram, Which};
use xdp_lb::model::{Protocol, Scheduler};

use super::answers::{answers, from, one, sends};
use super::frame::{Frame, tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

const OTHER_VIP: SocketAddrV4 = address([192, 168, 1, 101], 443);
/// Of the lab.
const START: u16 = 1000;

/// After how many units of the table's clock a connection in this phase, or a flow of UDP, is not over its timeout yet.
fn timeout(lab: &Lab, phase: lb_phase, udp: bool) -> u16 {
    lab.plane.settings().timeout[phase.0 as usize + usize::from(udp) * 8]
}

fn none() -> BackendEvents {
    BackendEvents::default()
}

/// Without handshakes, which these tests do not look at.
#[track_caller]
fn expect(lab: &Lab, n: usize, expected: BackendEvents) {
    let seen = lab.events(n);
    assert_eq!(BackendEvents { handshakes: Histogram::default(), ..seen }, expected);
    lab.balance();
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_each_end_of_a_connection_is_counted_once() {
    lab(one(), |lab| {
        for port in 1..=4 {
            lab.connect(from(port));
            assert_eq!(lab.opened(0), u64::from(port));
        }
        expect(lab, 0, none());
        answers(lab, 1, "FA");
        sends(lab, 1, "FA");
        expect(lab, 0, BackendEvents { closed: 1, ..none() });
        sends(lab, 2, "FA");
        answers(lab, 2, "FA");
        expect(lab, 0, BackendEvents { closed: 2, ..none() });
        answers(lab, 3, "RA");
        expect(lab, 0, BackendEvents { closed: 2, reset: 1, rsts: 1, ..none() });
        sends(lab, 4, "R");
        expect(lab, 0, BackendEvents { closed: 2, reset: 1, rsts: 1, ..none() });
        for port in 1..=3 {
            for flags in ["FA", "RA", "A"] {
                answers(lab, port, flags);
                sends(lab, port, flags);
            }
        }
        expect(lab, 0, BackendEvents { closed: 2, reset: 1, rsts: 4, ..none() });
        lab.connect(from(3));
        assert_eq!(lab.opened(0), 5, "in the place of a closed one");
        expect(lab, 0, BackendEvents { closed: 2, reset: 1, rsts: 4, ..none() });
        sends(lab, 9, "S");
        answers(lab, 9, "RA");
        expect(lab, 0, BackendEvents { closed: 2, reset: 2, rsts: 5, ..none() });
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_packet_after_the_timeout_was_found_revives() {
    lab(one(), |lab| {
        lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        lab.reaches_backend("and more", &udp(CLIENT, VIP), 0);
        let idle = START + timeout(lab, lb_phase::LB_PHASE_ESTABLISHED, true);
        lab.sweep(u32::from(idle));
        expect(lab, 1, none());
        for _ in 0..2 {
            lab.sweep(u32::from(idle + 1));
            expect(lab, 1, BackendEvents { expired: 1, ..none() });
        }
        for _ in 0..2 {
            lab.reaches_backend("it goes on", &udp(CLIENT, VIP), 0);
            expect(lab, 1, BackendEvents { expired: 1, revived: 1, ..none() });
        }
        // A confirmed one that closes: its client's segments change nothing, its backend's RST revives and ends it.
        for port in [1, 2] {
            lab.connect(from(port));
            sends(lab, port, "FA");
        }
        lab.sweep(u32::from(START + timeout(lab, lb_phase::LB_PHASE_CLOSING, false) + 1));
        expect(lab, 0, BackendEvents { expired: 2, ..none() });
        for flags in ["A", "FA", "S"] {
            sends(lab, 1, flags);
        }
        expect(lab, 0, BackendEvents { expired: 2, ..none() });
        answers(lab, 1, "RA");
        expect(lab, 0, BackendEvents { expired: 2, revived: 1, reset: 1, rsts: 1, ..none() });
        answers(lab, 2, "FA");
        expect(lab, 0, BackendEvents { expired: 2, revived: 2, reset: 1, closed: 1, rsts: 1, ..none() });
        // A time that was over before any sweep found it is nothing.
        lab.connect(from(3));
        lab.clock(START + 40000);
        sends(lab, 3, "A");
        expect(lab, 0, BackendEvents { expired: 2, revived: 2, reset: 1, closed: 1, rsts: 1, ..none() });
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_who_loses_its_slot_is_evicted_or_has_expired() {
    lab(Setup { max_connections: 1, ..one() }, |lab| {
        // One bucket, of which unconfirmed ones may have half.
        for port in 1..=10 {
            lab.reaches_backend("a datagram", &udp(from(port), VIP), 0);
        }
        expect(lab, 1, BackendEvents { evicted: 8, ..none() });
        assert_eq!(lab.opened(1), 10);
        let unconfirmed = timeout(lab, lb_phase::LB_PHASE_UNCONFIRMED, true);
        lab.clock(START + unconfirmed + 1);
        for port in 11..=14 {
            lab.reaches_backend("two slots are free", &udp(from(port), VIP), 0);
        }
        expect(lab, 1, BackendEvents { evicted: 10, ..none() });
        lab.clock(START + 2 * unconfirmed + 2);
        for port in 21..=24 {
            lab.reaches_backend("all are over their timeout", &udp(from(port), VIP), 0);
        }
        expect(lab, 1, BackendEvents { evicted: 12, expired: 2, ..none() });
        lab.sweep(u32::from(START + 2 * unconfirmed + 2));
        expect(lab, 1, BackendEvents { evicted: 12, expired: 4, ..none() });
        for port in 31..=34 {
            lab.reaches_backend("two have expired", &udp(from(port), VIP), 0);
        }
        expect(lab, 1, BackendEvents { evicted: 16, expired: 4, ..none() });
        // So has what was closed.
        for port in 1..=6 {
            sends(lab, port, "S");
            answers(lab, port, "RA");
        }
        assert_eq!((lab.events(0).reset, lab.events(0).evicted, lab.events(0).expired), (6, 0, 0));
        lab.balance();
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_who_is_given_to_another_backend_has_moved() {
    let both = |p| service(VIP, p, Scheduler::RoundRobin, &[(0, 1), (1, 1)]);
    let services = vec![both(Protocol::Tcp), both(Protocol::Udp)];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.connect(CLIENT);
        lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
        for n in [0, 2] {
            lab.state(n, lb_backend_state::LB_BACKEND_RESET);
        }
        for _ in 0..2 {
            lab.reaches_backend("to the other", &tcp(CLIENT, VIP, "A"), 1);
            lab.reaches_backend("to the other", &udp(CLIENT, VIP), 1);
        }
        for n in [0, 2] {
            expect(lab, n, BackendEvents { moved: 1, ..none() });
            expect(lab, n + 1, none());
            assert_eq!((lab.opened(n), lab.opened(n + 1)), (1, 1));
        }
        lab.reaches_client("its RST", &reply(1, CLIENT, "R"), CLIENT_MAC);
        expect(lab, 1, BackendEvents { reset: 1, rsts: 1, ..none() });
        // Nobody takes it: it stays.
        lab.state(3, lb_backend_state::LB_BACKEND_DOWN);
        let frame = udp(CLIENT, VIP).bytes();
        lab.untouched("nobody", lab.front, &frame, (Verdict::Drop, "drop no_backend"));
        expect(lab, 3, none());
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_tuple_that_gives_way_has_expired() {
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
        service(OTHER_VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        let other = |lab: &mut Lab, port| lab.send(lab.front, &tcp(from(port), OTHER_VIP, "S").bytes()).1;
        sends(lab, 1, "S");
        sends(lab, 2, "S");
        answers(lab, 2, "RA");
        lab.sweep(u32::from(START));
        assert_eq!(other(lab, 2), "sent to_backend", "the other is closed");
        expect(lab, 0, BackendEvents { reset: 1, rsts: 1, ..none() });
        lab.clock(START + timeout(lab, lb_phase::LB_PHASE_UNCONFIRMED, false) + 1);
        assert_eq!(other(lab, 1), "sent to_backend", "the other is over its timeout");
        expect(lab, 0, BackendEvents { reset: 1, rsts: 1, expired: 1, ..none() });
        expect(lab, 1, none());
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_syns_that_are_sent_again_are_counted() {
    lab(one(), |lab| {
        sends(lab, 1, "S");
        for flags in ["SA", "SR", "A", "FA"] {
            sends(lab, 1, flags);
        }
        expect(lab, 0, none());
        sends(lab, 1, "S");
        sends(lab, 1, "SF");
        answers(lab, 1, "SA");
        sends(lab, 1, "S");
        expect(lab, 0, BackendEvents { syn_retransmits: 3, ..none() });
        sends(lab, 1, "A");
        sends(lab, 1, "S");
        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        lab.reaches_backend("another", &udp(CLIENT, VIP), 0);
        expect(lab, 0, BackendEvents { syn_retransmits: 3, ..none() });
        expect(lab, 1, none());
        assert_eq!(lab.opened(0), 1);
    });
}

/// A payload that makes a frame one byte too large.
fn large(frame: Frame) -> Vec<u8> {
    let payload = vec![7; MTU as usize - 39];
    Frame { payload, ..frame }.bytes()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_events_count_though_the_packet_is_dropped_afterwards() {
    lab(one(), |lab| {
        let too_big = (Verdict::Drop, "drop too_big");
        for _ in 0..2 {
            lab.untouched("a SYN", lab.front, &large(tcp(CLIENT, VIP, "S")), too_big);
        }
        assert_eq!(lab.opened(0), 1);
        lab.untouched("its RST", lab.back, &large(reply(0, CLIENT, "RA")), too_big);
        let counted = BackendEvents { syn_retransmits: 1, reset: 1, rsts: 1, ..none() };
        expect(lab, 0, counted.clone());
        // What is no reply is no event.
        sends(lab, 1, "S");
        let (spoofed, late) = (reply(0, from(1), "RA").bytes(), reply(0, from(1), "RA").ttl(1).bytes());
        lab.untouched("from elsewhere", lab.front, &spoofed, (Verdict::Pass, "pass wrong_interface"));
        lab.untouched("too late", lab.back, &late, (Verdict::Drop, "drop ttl"));
        let stranger = reply(0, from(7), "RA").bytes();
        lab.untouched("of nobody", lab.back, &stranger, (Verdict::Pass, "pass no_connection"));
        expect(lab, 0, counted);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_an_operator_ends_is_reset() {
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1), (1, 1)]),
        service(VIP, Protocol::Udp, Scheduler::RoundRobin, &[(0, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.connect(CLIENT);
        lab.connect(from(7));
        lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
        lab.reaches_backend("another", &udp(from(7), VIP), 0);
        lab.sweep(u32::from(START + timeout(lab, lb_phase::LB_PHASE_UNCONFIRMED, true) + 1));
        expect(lab, 2, BackendEvents { expired: 2, ..none() });
        lab.reaches_backend("one goes on", &udp(CLIENT, VIP), 0);
        let end = |lab: &Lab, which: &Which| {
            Entries::new(lab.plane.tables(), *lab.plane.settings(), START).end(which).unwrap()
        };
        assert_eq!(end(lab, &Which { backend: Some(backend(0)), ..Which::default() }), 3);
        expect(lab, 0, BackendEvents { reset: 1, ..none() });
        expect(lab, 1, BackendEvents { revived: 1, ..none() });
        expect(lab, 2, BackendEvents { expired: 2, revived: 1, reset: 1, ..none() });
        lab.reaches_backend("data", &tcp(CLIENT, VIP, "PA"), 1);
        lab.reaches_client("the stranger's RST", &reply(1, CLIENT, "R"), CLIENT_MAC);
        expect(lab, 1, BackendEvents { revived: 1, reset: 1, rsts: 1, ..none() });
    });
}

fn micros(lab: &Lab, now: u32) {
    lab.plane.set_test_micros(now).unwrap();
}

/// Which buckets count, and the sum of all times.
#[track_caller]
fn measured(lab: &Lab, buckets: &[(usize, u64)], sum: u64) {
    let handshakes = lab.events(0).handshakes;
    let counted = handshakes.buckets.iter().copied().enumerate().filter(|(_, count)| *count > 0);
    assert_eq!((counted.collect::<Vec<_>>(), handshakes.microseconds), (buckets.to_vec(), sum));
}

/// A handshake that takes so long.
fn takes(lab: &mut Lab, port: u16, took: u32) {
    const SOME_TIME: u32 = 4_000_000_000;
    micros(lab, SOME_TIME);
    sends(lab, port, "S");
    micros(lab, SOME_TIME.wrapping_add(took));
    answers(lab, port, "SA");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_handshake_is_measured_from_the_first_syn_to_the_first_answer() {
    lab(one(), |lab| {
        micros(lab, 1000);
        sends(lab, 1, "S");
        measured(lab, &[], 0);
        micros(lab, 1500);
        sends(lab, 1, "S");
        micros(lab, 2000);
        answers(lab, 1, "A");
        measured(lab, &[], 0);
        answers(lab, 1, "SA");
        measured(lab, &[(4, 1)], 1000);
        micros(lab, 3000);
        answers(lab, 1, "SA");
        sends(lab, 1, "A");
        answers(lab, 1, "SA");
        measured(lab, &[(4, 1)], 1000);
        // A RST is no answer to measure. The next SYN of the same port has its own time.
        sends(lab, 2, "S");
        micros(lab, 3100);
        answers(lab, 2, "RA");
        micros(lab, 9000);
        sends(lab, 2, "S");
        micros(lab, 9010);
        answers(lab, 2, "SA");
        measured(lab, &[(0, 1), (4, 1)], 1010);
        // Nothing was begun by what is no SYN.
        for (port, flags) in [(3, "A"), (4, "SA"), (5, "SF")] {
            sends(lab, port, flags);
            answers(lab, port, "SA");
        }
        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        measured(lab, &[(0, 1), (4, 1)], 1010);
        assert_eq!(lab.events(1), none());
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_each_time_falls_into_its_bucket() {
    lab(one(), |lab| {
        let (mut sum, mut port) = (0, 0);
        let mut expected = [0; Histogram::BUCKETS];
        let bounds = (0..15).map(|bucket| (64 << bucket, bucket));
        let times = bounds.flat_map(|(bound, at)| [(bound, at), (bound + 1, at + 1)]);
        for (took, bucket) in [(0, 0), (1, 0)].into_iter().chain(times).chain([(128_000_000, 15)]) {
            port += 1;
            takes(lab, port, took);
            (sum, expected[bucket]) = (sum + u64::from(took), expected[bucket] + 1);
            let handshakes = lab.events(0).handshakes;
            assert_eq!((handshakes.buckets, handshakes.microseconds), (expected, sum), "{took} us");
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_times_that_cannot_be_are_left_out() {
    lab(one(), |lab| {
        takes(lab, 1, 128_000_001);
        measured(lab, &[], 0);
        takes(lab, 2, u32::MAX);
        measured(lab, &[], 0);
        // The row is empty all the same.
        micros(lab, 4_000_000_010);
        answers(lab, 1, "SA");
        answers(lab, 2, "SA");
        measured(lab, &[], 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_of_handshakes_that_share_a_row_the_later_is_measured() {
    lab(one(), |lab| {
        let rows = |lab: &Lab| {
            let handshakes = &lab.plane.tables().handshakes;
            let used = |row: &usize| handshakes.get(*row).unwrap().word != 0;
            (0..handshakes.len()).filter(used).collect::<Vec<_>>()
        };
        micros(lab, 7);
        sends(lab, 1, "S");
        let row = rows(lab)[0];
        let handshakes = &lab.plane.tables().handshakes;
        let word = handshakes.get(row).unwrap().word;
        assert_eq!((rows(lab).len(), word as u32), (1, 7));
        // Another's word, which differs in the tag's highest bit.
        let others = lb_handshake { word: word ^ 1 << 63 };
        handshakes.set(row, others).unwrap();
        answers(lab, 1, "SA");
        measured(lab, &[], 0);
        assert_eq!(lab.plane.tables().handshakes.get(row).unwrap().word, others.word, "it is left alone");
        sends(lab, 1, "A");
        answers(lab, 1, "R");
        micros(lab, 20);
        sends(lab, 1, "S");
        micros(lab, 30);
        answers(lab, 1, "SA");
        measured(lab, &[(0, 1)], 10);
        assert!(rows(lab).is_empty());
    });
}

/// The time of the first 256 in a unit of the table's clock is taken, on each CPU.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_of_many_handshakes_only_some_are_measured() {
    const TIMED: u16 = 256;
    // Any key, but always the same: with some more rows are shared.
    let key = Some([1, 2, 3, 4]);
    lab(Setup { max_connections: 10_000, key, ..one() }, |lab| {
        let this = Pid::from_raw(0);
        let allowed = sched_getaffinity(this).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap()).unwrap();
        sched_setaffinity(this, &one).unwrap();
        let measured = |lab: &Lab| lab.events(0).handshakes.count() as u16;
        let send = |lab: &mut Lab, ifindex, frame: Frame| {
            lab.plane.program(lab.profile).unwrap().test_run(&frame.bytes(), ifindex).unwrap();
        };
        lab.clock(START + 1);
        for port in 1..=TIMED + 1 {
            send(lab, 10, tcp(from(port), VIP, "S"));
        }
        for port in 1..=TIMED + 1 {
            send(lab, 20, reply(0, from(port), "SA"));
            assert!(measured(lab) >= port.min(TIMED) - 1, "rows are shared by chance: {port}");
        }
        assert!((TIMED - 2..=TIMED).contains(&measured(lab)), "{}", measured(lab));
        let before = measured(lab);
        assert_eq!(lab.opened(0), u64::from(TIMED) + 1);
        lab.clock(START + 2);
        send(lab, 10, tcp(from(TIMED + 3), VIP, "S"));
        send(lab, 20, reply(0, from(TIMED + 3), "SA"));
        assert_eq!(measured(lab), before + 1, "another unit");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_real_clock_measures_too() {
    let profile = xdp_lb::dataplane::Profile::NATIVE;
    lab(Setup { profile, ..one() }, |lab| {
        sends(lab, 1, "S");
        std::thread::sleep(std::time::Duration::from_millis(20));
        answers(lab, 1, "SA");
        let handshakes = lab.events(0).handshakes;
        assert_eq!(handshakes.count(), 1);
        assert!((20_000..5_000_000).contains(&handshakes.microseconds), "{handshakes:?}");
    });
}
