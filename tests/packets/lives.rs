//! How connections are confirmed, closed, revived and expire.

use xdp_lb::dataplane::Profile;
use xdp_lb::dataplane::types::{lb_backend, lb_backend_state, lb_phase, lb_state_layout};
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{Checksum, tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

/// Units of the table's clock in so many seconds, at least: a unit is a quarter of a second or more.
const fn seconds(count: u16) -> u16 {
    count * 4 + 1
}

fn connection(lab: &mut Lab) {
    lab.reaches_backend("SYN", &tcp(CLIENT, VIP, "S"), 0);
    lab.reaches_client("SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
    lab.reaches_backend("ACK", &tcp(CLIENT, VIP, "A"), 0);
}

/// The phase of the only entry of the table.
fn phase(lab: &Lab) -> lb_phase {
    let rows = &lab.plane.tables().connections;
    let states: Vec<u64> = (0..rows.len())
        .flat_map(|bucket| rows.get(bucket).unwrap().conn)
        .map(|conn| conn.state)
        .filter(|state| *state != 0)
        .collect();
    assert_eq!(states.len(), 1);
    lb_phase((states[0] >> lb_state_layout::LB_STATE_PHASE_SHIFT.0 & 7) as u32)
}

fn is_phase(lab: &Lab, expected: lb_phase) {
    assert_eq!(phase(lab), expected);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_both_sides_confirm_a_connection() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("SYN", &tcp(CLIENT, VIP, "S"), 0);
        is_phase(lab, lb_phase::LB_PHASE_UNCONFIRMED);
        lab.reaches_backend("an ACK out of turn", &tcp(CLIENT, VIP, "A"), 0);
        is_phase(lab, lb_phase::LB_PHASE_UNCONFIRMED);
        lab.reaches_client("SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_ANSWERED);
        lab.reaches_backend("the SYN again", &tcp(CLIENT, VIP, "S"), 0);
        for flags in ["R", "RA", "", "P", "F"] {
            lab.reaches_backend("what is no ACK confirms nothing", &tcp(CLIENT, VIP, flags), 0);
        }
        is_phase(lab, lb_phase::LB_PHASE_ANSWERED);
        lab.reaches_backend("ACK", &tcp(CLIENT, VIP, "A"), 0);
        is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_is_confirmed_by_a_second_packet_of_the_client() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("one", &udp(CLIENT, VIP), 0);
        lab.reaches_backend("one way only", &udp(CLIENT, VIP), 0);
        is_phase(lab, lb_phase::LB_PHASE_UNCONFIRMED);
        lab.reaches_client("answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_ANSWERED);
        lab.reaches_backend("again", &udp(CLIENT, VIP), 0);
        is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_fin_of_both_closes() {
    lab(Setup::default(), |lab| {
        connection(lab);
        lab.reaches_backend("FIN", &tcp(CLIENT, VIP, "FA"), 0);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
        lab.reaches_client("FIN", &reply(0, CLIENT, "FA"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_CLOSED);
        lab.reaches_backend("the last ACK still arrives", &tcp(CLIENT, VIP, "A"), 0);
        is_phase(lab, lb_phase::LB_PHASE_CLOSED);
        lab.reaches_backend("a SYN is a new connection at once", &tcp(CLIENT, VIP, "S"), 1);
        is_phase(lab, lb_phase::LB_PHASE_UNCONFIRMED);
        let late = reply(0, CLIENT, "A").bytes();
        lab.untouched("the old backend's is no more", lab.back, &late, (Verdict::Pass, "pass no_connection"));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_fin_of_the_backend_first() {
    lab(Setup::default(), |lab| {
        connection(lab);
        lab.reaches_client("FIN", &reply(0, CLIENT, "FA"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
        lab.reaches_backend("ACK", &tcp(CLIENT, VIP, "A"), 0);
        lab.reaches_backend("FIN", &tcp(CLIENT, VIP, "FA"), 0);
        is_phase(lab, lb_phase::LB_PHASE_CLOSED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_rst_of_the_backend_closes_and_that_of_the_client_does_not() {
    lab(Setup::default(), |lab| {
        connection(lab);
        lab.reaches_backend("RST of whoever", &tcp(CLIENT, VIP, "R"), 0);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
        lab.reaches_backend("a SYN goes where the connection is", &tcp(CLIENT, VIP, "S"), 0);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
        lab.reaches_client("data goes on", &reply(0, CLIENT, "A"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
        lab.reaches_backend("in both directions", &tcp(CLIENT, VIP, "A"), 0);
        is_phase(lab, lb_phase::LB_PHASE_REVIVING);
        lab.reaches_client("which revives it", &reply(0, CLIENT, "A"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
        lab.reaches_client("RST of the backend", &reply(0, CLIENT, "R"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_CLOSED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_rst_without_a_connection_makes_none() {
    lab(Setup::default(), |lab| {
        let frame = tcp(CLIENT, VIP, "R").bytes();
        lab.untouched("RST", lab.front, &frame, (Verdict::Drop, "drop rst_unknown"));
        lab.reaches_backend("an ACK in the middle of a stream makes one", &tcp(CLIENT, VIP, "A"), 0);
        is_phase(lab, lb_phase::LB_PHASE_UNCONFIRMED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_the_backend_discards_unseen_confirms_nothing() {
    for broken in [24, 50] {
        // The IP header's checksum, TCP's.
        lab(Setup::default(), move |lab| {
            lab.reaches_backend("SYN", &tcp(CLIENT, VIP, "S"), 0);
            lab.reaches_client("SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
            let mut ack = tcp(CLIENT, VIP, "A").payload("with data").bytes();
            ack[broken] ^= 0x55;
            let (_, reason, _) = lab.send(lab.front, &ack);
            assert_eq!(reason, "sent to_backend");
            is_phase(lab, lb_phase::LB_PHASE_ANSWERED);
            let mut options = tcp(CLIENT, VIP, "A").payload("with data").padded(3);
            options.ip_options = vec![1; 8];
            lab.reaches_backend("a whole one", &options, 0);
            is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
        });
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_local_senders_ack_confirms() {
    let profile = Profile { test_clock: true, ..Profile::NATIVE_VIRTUAL };
    lab(Setup { profile, ..Setup::default() }, |lab| {
        lab.reaches_backend("SYN", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        lab.send(lab.front, &tcp(CLIENT, VIP, "A").checksum(Checksum::Partial).bytes());
        is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nobody_outside_moves_a_live_connection() {
    lab(Setup::default(), |lab| {
        connection(lab);
        lab.reaches_client("the backend ends a first life", &reply(0, CLIENT, "FA"), CLIENT_MAC);
        lab.reaches_backend("the client aborts it", &tcp(CLIENT, VIP, "R"), 0);
        connection(lab);
        lab.reaches_backend("FIN of whoever", &tcp(CLIENT, VIP, "F"), 0);
        lab.reaches_backend("SYN of whoever", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("the live one goes on", &reply(0, CLIENT, "A"), CLIENT_MAC);
        lab.reaches_backend("and is revived", &tcp(CLIENT, VIP, "A"), 0);
        lab.reaches_client("by both", &reply(0, CLIENT, "A"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_ESTABLISHED);
        lab.reaches_client("the backend has sent all", &reply(0, CLIENT, "FA"), CLIENT_MAC);
        is_phase(lab, lb_phase::LB_PHASE_CLOSING);
    });
    lab(Setup::default(), |lab| {
        connection(lab);
        lab.state(0, lb_backend_state::LB_BACKEND_DRAIN);
        lab.reaches_backend("SYN of whoever, while the backend drains", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("the live one goes on", &reply(0, CLIENT, "A"), CLIENT_MAC);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_of_a_burst_not_always_the_newest_goes() {
    lab(one_bucket(), |lab| {
        let mut places = std::collections::BTreeSet::new();
        for n in 1..=64 {
            lab.reaches_backend("one of a burst", &tcp(port(n), VIP, "S"), 0);
            let row = lab.plane.tables().connections.get(0).unwrap();
            let key_port = |key: u64| u16::from_be((key >> 32) as u16);
            places.extend(row.conn.iter().position(|conn| conn.state != 0 && key_port(conn.key) == n));
        }
        assert!(places.len() >= 2, "every new one took the place of the one before: {places:?}");
    });
}

/// A table of one bucket, which fits two unconfirmed entries and two more of others.
fn one_bucket() -> Setup {
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
        service(VIP, Protocol::Udp, Scheduler::RoundRobin, &[(0, 1)]),
    ];
    Setup { max_connections: 1, services, ..Setup::default() }
}

fn port(n: u16) -> std::net::SocketAddrV4 {
    address([192, 168, 1, 2], n)
}

/// Puts a confirmed connection of a client's port into the table.
fn confirmed(lab: &mut Lab, n: u16) {
    lab.reaches_backend("SYN", &tcp(port(n), VIP, "S"), 0);
    lab.reaches_client("SYN-ACK", &reply(0, port(n), "SA"), CLIENT_MAC);
    lab.reaches_backend("ACK", &tcp(port(n), VIP, "A"), 0);
}

fn alive(lab: &mut Lab, n: u16) -> bool {
    let (_, reason, _) = lab.send(lab.back, &reply(0, port(n), "A").bytes());
    reason == "sent to_client"
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_unconfirmed_ones_replace_the_oldest_of_their_kind_only() {
    lab(one_bucket(), |lab| {
        confirmed(lab, 1);
        confirmed(lab, 2);
        for n in 100..200 {
            lab.clock(1000 + n - 100);
            lab.reaches_backend("one of a flood", &tcp(port(n), VIP, "S"), 0);
        }
        assert!(alive(lab, 1) && alive(lab, 2), "confirmed connections outlive a flood");
        assert!(alive(lab, 198) && alive(lab, 199), "the two youngest of the flood are there");
        assert!((100..198).all(|n| !alive(lab, n)), "the others made room");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_bucket_of_live_connections_is_full() {
    lab(one_bucket(), |lab| {
        (1..=4).for_each(|n| confirmed(lab, n));
        let syn = tcp(port(5), VIP, "S").bytes();
        lab.untouched("a fifth", lab.front, &syn, (Verdict::Drop, "drop table_full"));
        assert!((1..=4).all(|n| alive(lab, n)));

        lab.reaches_client("one ends", &reply(0, port(3), "RA"), CLIENT_MAC);
        lab.reaches_backend("its slot is free at once", &tcp(port(5), VIP, "S"), 0);
        assert!(!alive(lab, 3) && [1, 2, 4, 5].into_iter().all(|n| alive(lab, n)));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_timeout_is_a_licence_to_evict() {
    lab(one_bucket(), |lab| {
        confirmed(lab, 1);
        lab.clock(1000 + seconds(600));
        lab.reaches_backend("twice the timeout later it is still there", &tcp(port(1), VIP, "A"), 0);
        assert!(alive(lab, 1));
        for n in 2..=4 {
            confirmed(lab, n);
        }
        lab.clock(1000 + seconds(600) + seconds(290));
        assert!([2, 3, 4].into_iter().all(|n| alive(lab, n)), "others go on");
        lab.clock(1000 + seconds(600) + seconds(600));
        assert!([2, 3, 4].into_iter().all(|n| alive(lab, n)));
        lab.reaches_backend("until another needs the slot", &tcp(port(5), VIP, "S"), 0);
        assert!(!alive(lab, 1) && [2, 3, 4, 5].into_iter().all(|n| alive(lab, n)));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_free_then_expired_then_closed_then_the_oldest_unconfirmed() {
    lab(one_bucket(), |lab| {
        confirmed(lab, 1);
        lab.clock(1000 + seconds(600));
        confirmed(lab, 2);
        lab.reaches_client("closed", &reply(0, port(2), "RA"), CLIENT_MAC);
        confirmed(lab, 3);
        lab.reaches_backend("a free slot first", &tcp(port(4), VIP, "S"), 0);
        lab.reaches_backend("the expired one is usable", &tcp(port(1), VIP, "F"), 0);
        lab.clock(1000 + seconds(1200));
        assert!(alive(lab, 3), "and is refreshed");
        // 1 and 4 are over their timeouts, 2 is closed, 3 is live.
        lab.reaches_backend("an expired slot next", &tcp(port(5), VIP, "S"), 0);
        lab.reaches_backend("and the other", &tcp(port(6), VIP, "S"), 0);
        let unknown = tcp(port(2), VIP, "R").bytes();
        lab.expect(
            "the closed one is still there",
            lab.front,
            &unknown,
            (Verdict::Redirect, "sent to_backend"),
            &tcp(port(2), backend(0), "R").ttl(63).macs(backend_mac(0), LB_BACK_MAC).bytes(),
        );
        assert!(alive(lab, 3));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_closing_lasts_as_long_as_the_backend_sends() {
    lab(one_bucket(), |lab| {
        (1..=4).for_each(|n| confirmed(lab, n));
        lab.reaches_backend("FIN of whoever", &tcp(port(1), VIP, "FA"), 0);
        for step in 1..10 {
            lab.clock(1000 + step * seconds(20));
            assert!(alive(lab, 1), "the backend sends on");
            assert!((2..=4).all(|n| alive(lab, n)));
            let syn = tcp(port(9), VIP, "S").bytes();
            lab.untouched("no slot", lab.front, &syn, (Verdict::Drop, "drop table_full"));
        }
        lab.clock(1000 + 10 * seconds(20) + seconds(40));
        assert!((2..=4).all(|n| alive(lab, n)));
        lab.reaches_backend("packets of the client do not prolong it", &tcp(port(1), VIP, "FA"), 0);
        lab.reaches_backend("its slot is given away", &tcp(port(9), VIP, "S"), 0);
        assert!(!alive(lab, 1));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_clock_may_differ_between_cpus_and_wraps() {
    lab(one_bucket(), |lab| {
        lab.clock(5);
        (1..=4).for_each(|n| confirmed(lab, n));
        lab.clock(0);
        let syn = tcp(port(9), VIP, "S").bytes();
        lab.untouched("older than its entries", lab.front, &syn, (Verdict::Drop, "drop table_full"));
        lab.clock(65530);
        assert!((1..=4).all(|n| alive(lab, n)));
        lab.clock(10);
        lab.untouched("wrapped around", lab.front, &syn, (Verdict::Drop, "drop table_full"));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_has_its_own_timeout() {
    lab(one_bucket(), |lab| {
        for n in 1..=2 {
            lab.reaches_backend("flow", &udp(port(n), VIP), 0);
            lab.reaches_client("answer", &udp_reply(0, port(n)), CLIENT_MAC);
            lab.reaches_backend("flow", &udp(port(n), VIP), 0);
        }
        confirmed(lab, 3);
        confirmed(lab, 4);
        lab.clock(1000 + seconds(120));
        lab.reaches_backend("two minutes later a UDP flow gives way", &tcp(port(5), VIP, "S"), 0);
        assert!(alive(lab, 3) && alive(lab, 4), "and no TCP connection");
    });
}

/// A row that is not, or no longer, what an entry says is no backend of its connection.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_of_rows_that_are_gone_are_opened_anew() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a connection", &tcp(CLIENT, VIP, "S"), 0);
        lab.state(0, lb_backend_state::LB_BACKEND_NONE);
        lab.reaches_backend("the row is free", &tcp(CLIENT, VIP, "A"), 1);
        let index = usize::from(lab.row(1).index);
        let rows = &lab.plane.tables().backends;
        let row = rows.get(index).unwrap();
        rows.set(index, lb_backend { service: row.service + 1, ..row }).unwrap();
        lab.reaches_backend("the row is of another service", &tcp(CLIENT, VIP, "A"), 2);
    });
}
