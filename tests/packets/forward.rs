//! From clients to backends.

use xdp_lb::dataplane::types::lb_backend_state;
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{Checksum, tcp, udp};
use super::lab::*;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_tcp_and_udp_are_translated() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a SYN goes to the first backend", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_backend("its connection stays there", &tcp(CLIENT, VIP, "A"), 0);
        let data = tcp(CLIENT, VIP, "PA").payload("GET / HTTP/1.1\r\n\r\n");
        lab.reaches_backend("data too", &data, 0);
        lab.reaches_backend("an odd number of bytes too", &data.payload("x"), 0);
        let next = address([192, 168, 1, 2], 40001);
        lab.reaches_backend("another port is another connection", &tcp(next, VIP, "S"), 1);
        lab.reaches_backend("the first UDP service has its own turn", &udp(CLIENT, VIP), 0);
        lab.reaches_backend("a datagram without a payload", &udp(next, VIP).payload(""), 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_counters_name_the_backend() {
    lab(Setup::default(), |lab| {
        let syn = tcp(CLIENT, VIP, "S");
        lab.reaches_backend("a SYN", &syn, 0);
        lab.reaches_backend("an ACK", &tcp(CLIENT, VIP, "A").payload("abc"), 0);
        let counters = lab.plane.tables().backend_counters(lab.row(0).index).unwrap();
        assert_eq!((counters.connections, counters.to_backend.packets), (1, 2));
        assert_eq!(counters.to_backend.bytes, 2 * syn.bytes().len() as u64 + 3);
        assert_eq!(counters.to_client.packets, 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_headers_are_walked_over() {
    lab(Setup::default(), |lab| {
        let mut options = tcp(CLIENT, VIP, "S");
        options.ip_options = vec![7, 7, 4, 0, 0, 0, 0, 0];
        lab.reaches_backend("IP options", &options, 0);
        options.ip_options = vec![1; 40];
        options.tcp_options = vec![2, 4, 5, 0xb4];
        lab.reaches_backend("the most IP options, and TCP options", &options, 0);
        lab.reaches_backend("a VLAN tag", &tcp(CLIENT, VIP, "A").tagged(&[(0x8100, 5)]), 0);
        lab.reaches_backend(
            "two VLAN tags",
            &tcp(CLIENT, VIP, "A").tagged(&[(0x88a8, 7), (0x8100, 4094)]),
            0,
        );
        let mut both = udp(CLIENT, VIP).tagged(&[(0x88a8, 1), (0x88a8, 2)]);
        both.ip_options = vec![1; 12];
        lab.reaches_backend("tags and options", &both, 0);
        let three = tcp(CLIENT, VIP, "S").tagged(&[(0x8100, 1), (0x8100, 2), (0x8100, 3)]).bytes();
        lab.untouched("three tags are one too many", lab.front, &three, (Verdict::Pass, "pass not_ipv4"));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_padding_stays_out_of_the_checksum() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a padded ACK", &tcp(CLIENT, VIP, "A").padded(6), 0);
        lab.reaches_backend("a padded datagram", &udp(CLIENT, VIP).payload("x").padded(17), 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_checksums_have_two_zeros() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("no checksum stays none", &udp(CLIENT, VIP).checksum(Checksum::Absent), 0);
        // Payloads whose checksum towards the backend is computed to be 0, which is sent as 0xffff.
        let toward = udp(CLIENT, backend(0)).payload([0, 0]).bytes();
        let sum = u16::from_be_bytes([toward[40], toward[41]]);
        let zero = udp(CLIENT, VIP).payload(sum.to_be_bytes());
        let after = zero.clone().to(backend(0)).bytes();
        assert_eq!(&after[40..42], &[0xff, 0xff], "the payload makes the sum 0");
        lab.reaches_backend("a computed 0", &zero, 0);
        // And one whose checksum is 0xffff on arrival.
        let toward = udp(CLIENT, VIP).payload([0, 0]).bytes();
        let ones = udp(CLIENT, VIP).payload([toward[40], toward[41]]);
        assert_eq!(&ones.bytes()[40..42], &[0xff, 0xff]);
        lab.reaches_backend("an arriving 0xffff", &ones, 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_out_of_the_interface_that_the_next_hop_names() {
    lab(Setup::default(), |lab| {
        let first = lab.row(0);
        lab.reach(first, Some(backend_mac(0)), 10);
        let syn = tcp(CLIENT, VIP, "S");
        let after = syn.clone().to(backend(0)).ttl(63).macs(backend_mac(0), LB_MAC).bytes();
        lab.expect("one arm", lab.front, &syn.bytes(), (Verdict::Tx, "sent to_backend"), &after);

        lab.reach(first, None, 20);
        let translated = syn.clone().to(backend(0)).bytes();
        let then = (Verdict::Pass, "stack neighbour_unknown");
        lab.expect("a silent neighbour is left to the kernel", lab.front, &syn.bytes(), then, &translated);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_weights_are_exact_and_smooth() {
    let services =
        vec![service(VIP, Protocol::Tcp, Scheduler::WeightedRoundRobin, &[(0, 50), (1, 30), (2, 20)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        let mut counts = [0; 3];
        for n in 0..300 {
            let syn = tcp(address([192, 168, 1, 2], 1000 + n), VIP, "S");
            let (_, _, out) = lab.send(lab.front, &syn.bytes());
            counts[usize::from(out[33] - 10)] += 1;
            if (n + 1) % 10 == 0 {
                let tens = (n as usize + 1) / 10;
                assert_eq!(counts, [5 * tens, 3 * tens, 2 * tens], "after {} connections", n + 1);
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_ip_hash_keeps_a_client_and_maglev_spreads_it() {
    let backends = [(0, 1), (1, 1), (2, 1)];
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::IpHash, &backends),
        service(VIP, Protocol::Udp, Scheduler::Maglev, &backends),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        let mut seen = [0; 3];
        for client in 0..60 {
            let first = chosen(lab, &tcp(address([203, 0, 113, client], 1), VIP, "S").bytes());
            seen[first] += 1;
            for port in 2..10 {
                let again = chosen(lab, &tcp(address([203, 0, 113, client], port), VIP, "S").bytes());
                assert_eq!(again, first, "client {client} stays on its backend");
            }
        }
        assert!(seen.iter().all(|count| *count >= 8), "clients are spread: {seen:?}");
        let mut seen = [0; 3];
        for port in 1..=300 {
            seen[chosen(lab, &udp(address([203, 0, 113, 1], port), VIP).bytes())] += 1;
        }
        assert!(seen.iter().all(|count| *count >= 60), "ports are spread: {seen:?}");
    });
}

fn chosen(lab: &mut Lab, frame: &[u8]) -> usize {
    let (_, reason, out) = lab.send(lab.front, frame);
    assert_eq!(reason, "sent to_backend");
    usize::from(out[33] - 10)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_backend_that_takes_no_more_is_passed_over() {
    lab(Setup::default(), |lab| {
        let client = |port| address([192, 168, 1, 2], port);
        lab.state(0, lb_backend_state::LB_BACKEND_DOWN);
        lab.reaches_backend(
            "the next one takes a connection of one that is down",
            &tcp(client(1), VIP, "S"),
            1,
        );
        lab.state(1, lb_backend_state::LB_BACKEND_DRAIN);
        lab.reaches_backend("draining ones take none", &tcp(client(2), VIP, "S"), 2);
        lab.reaches_backend("but keep what they have", &tcp(client(1), VIP, "A"), 1);
        lab.reaches_backend(
            "a SYN on what is no live connection goes elsewhere",
            &tcp(client(1), VIP, "S"),
            2,
        );
        lab.state(2, lb_backend_state::LB_BACKEND_DOWN);
        let syn = tcp(client(3), VIP, "S").bytes();
        lab.untouched("none is left", lab.front, &syn, (Verdict::Drop, "drop no_backend"));
        lab.reaches_backend("TCP stays on a backend that went down", &tcp(client(2), VIP, "A"), 2);
        lab.state(0, lb_backend_state::LB_BACKEND_UP);
        lab.reaches_backend("a SYN goes elsewhere", &tcp(client(2), VIP, "S"), 0);
        lab.reaches_backend("and takes its connection along", &tcp(client(2), VIP, "A"), 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_leaves_a_backend_that_went_down() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a flow", &udp(CLIENT, VIP), 0);
        lab.state(3, lb_backend_state::LB_BACKEND_DRAIN);
        lab.reaches_backend("stays while its backend drains", &udp(CLIENT, VIP), 0);
        lab.state(3, lb_backend_state::LB_BACKEND_DOWN);
        lab.reaches_backend("and moves at once when it is down", &udp(CLIENT, VIP), 1);
    });
}

/// A walk round the ring wraps at its end, and does not look beyond it: eight more slots are all the others of nine.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_last_slot_that_is_looked_at_is_found() {
    let nine: Vec<(u8, u8)> = (0..9).map(|n| (n, 1)).collect();
    let services = vec![service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &nine)];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.reaches_backend("the first slot", &tcp(CLIENT, VIP, "S"), 0);
        for n in 1..9 {
            lab.state(n, lb_backend_state::LB_BACKEND_DOWN);
        }
        let next = address([192, 168, 1, 2], 40001);
        lab.reaches_backend("from the second slot round to the first", &tcp(next, VIP, "S"), 0);
    });
}
