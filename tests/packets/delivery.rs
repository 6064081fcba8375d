//! Whether XDP sends a packet itself or leaves it to the kernel, by what is known of the interface it leaves by.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use xdp_lb::dataplane::{Egress, Profile, Sweeper};

use super::frame::{Checksum, Mac, tcp};
use super::lab::*;
use super::replies::reply;

const NO_REDIRECT: Egress = Egress { redirect: false, tx: true };
const NO_TX: Egress = Egress { redirect: true, tx: false };

fn setup(profile: Profile) -> Setup {
    Setup { profile: Profile { test_clock: true, ..profile }, ..Setup::default() }
}

/// Both ways by the kernel: translated, everything below IP as it came, of any size, any checksum finished by the kernel.
fn by_the_kernel(lab: &mut Lab) {
    for checksum in [Checksum::Partial, Checksum::Whole] {
        let frame = tcp(CLIENT, VIP, "A").payload("abc").checksum(checksum);
        let after = frame.clone().to(backend(0)).bytes();
        let then = (Verdict::Pass, "stack to_backend");
        lab.expect("translated, its MACs left", lab.front, &frame.bytes(), then, &after);
        let frame = reply(0, CLIENT, "A").payload(vec![7; 1461]).checksum(checksum);
        let after = frame.clone().from(VIP).bytes();
        let then = (Verdict::Pass, "stack to_client");
        lab.expect("of any size", lab.back, &frame.bytes(), then, &after);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_kernel_delivers_where_frames_sent_by_xdp_would_vanish() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        lab.neighbour(CLIENT_MAC);
        lab.egress(lab.front, Some(Egress::STACK));
        lab.egress(lab.back, Some(Egress::STACK));
        by_the_kernel(lab);
        lab.egress(lab.front, Some(Egress::DIRECT));
        lab.egress(lab.back, Some(Egress::DIRECT));
        lab.reaches_backend("as soon as it can be sent it is", &tcp(CLIENT, VIP, "A"), 0);
        lab.reaches_client("both ways", &reply(0, CLIENT, "A"), CLIENT_MAC);
    });
}

/// Before the control plane gave the neighbour a row, and where it has none to give.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_client_without_a_row_is_reached_as_its_interface_allows() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        lab.reaches_backend("a SYN", &tcp(CLIENT, VIP, "S"), 0);
        for egress in [Some(Egress::STACK), Some(NO_REDIRECT), None] {
            lab.egress(lab.front, egress);
            let frame = reply(0, CLIENT, "SA");
            let after = frame.clone().from(VIP).bytes();
            let then = (Verdict::Pass, "stack to_client");
            lab.expect(&format!("{egress:?}"), lab.back, &frame.bytes(), then, &after);
        }
        for egress in [Egress::DIRECT, NO_TX] {
            lab.egress(lab.front, Some(egress));
            lab.reaches_client("it can be redirected to", &reply(0, CLIENT, "A"), CLIENT_MAC);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_back_out_of_the_ingress_interface() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        let first = lab.row(0);
        lab.reach(first, Some(backend_mac(0)), lab.front);
        let syn = tcp(CLIENT, VIP, "S");
        let sent = syn.clone().to(backend(0)).ttl(63).macs(backend_mac(0), LB_MAC).bytes();
        let left = syn.clone().to(backend(0)).bytes();
        for (egress, verdict, reason, after) in [
            (Egress::DIRECT, Verdict::Tx, "sent to_backend", &sent),
            (NO_REDIRECT, Verdict::Tx, "sent to_backend", &sent),
            (NO_TX, Verdict::Redirect, "sent to_backend", &sent),
            (Egress::STACK, Verdict::Pass, "stack to_backend", &left),
        ] {
            lab.egress(lab.front, Some(egress));
            lab.expect(&format!("{egress:?}"), lab.front, &syn.bytes(), (verdict, reason), after);
        }
        lab.egress(lab.front, Some(NO_TX));
        let answer = reply(0, CLIENT, "SA");
        let after = answer.clone().from(VIP).ttl(63).macs(CLIENT_MAC, LB_MAC).bytes();
        let then = (Verdict::Redirect, "sent to_client");
        lab.expect("a reply too", lab.front, &answer.bytes(), then, &after);
    });
}

/// Only the kernel can send what is larger than the MTU, and finish checksums.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_skb_mode_leaves_everything_to_the_kernel() {
    lab(setup(Profile::SKB), |lab| {
        by_the_kernel(lab);
        let row = lab.row(0);
        lab.reach(row, None, 20);
        let frame = tcp(CLIENT, VIP, "A");
        let after = frame.clone().to(backend(0)).bytes();
        let then = (Verdict::Pass, "stack to_backend");
        lab.expect("it knows the neighbour or asks", lab.front, &frame.bytes(), then, &after);
        let frame = tcp(SILENT_CLIENT, VIP, "S");
        let after = frame.clone().to(backend(1)).bytes();
        lab.expect("and the client's", lab.front, &frame.bytes(), then, &after);
        assert_eq!(lab.plane.take_unresolved(), [], "the FIB was not asked");
    });
}

/// Those that the kernel knows.
fn alive() -> HashSet<(u32, Mac)> {
    HashSet::from([(10, CLIENT_MAC), (10, GATEWAY_MAC)])
}

/// Routes that change give every neighbour a new row, and a row is used again only when no connection names it.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_renewed_rows_are_taken_up_by_connections() {
    lab(setup(Profile::NATIVE), |lab| {
        let old = lab.neighbour(GATEWAY_MAC);
        lab.reaches_backend("a client behind a gateway", &tcp(FAR_CLIENT, VIP, "S"), 0);
        lab.reaches_client("by its row", &reply(0, FAR_CLIENT, "SA"), GATEWAY_MAC);
        let (hops, tables) = lab.plane.next_hops();
        assert!(hops.renew_neighbours(tables, &alive()).unwrap());
        let new = lab.neighbour(GATEWAY_MAC);
        assert_ne!(old, new);
        lab.reaches_client("by the FIB, which names the new row", &reply(0, FAR_CLIENT, "A"), GATEWAY_MAC);
        ip("route replace default via 192.168.1.2");
        lab.reaches_client("by the new row", &reply(0, FAR_CLIENT, "A"), GATEWAY_MAC);
        lab.neighbour(CLIENT_MAC);
        let (hops, tables) = lab.plane.next_hops();
        assert!(hops.renew_neighbours(tables, &alive()).unwrap());
        lab.reaches_client("by the new route", &reply(0, FAR_CLIENT, "A"), CLIENT_MAC);
        lab.reaches_client("once it is noted too", &reply(0, FAR_CLIENT, "A"), CLIENT_MAC);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_row_is_used_again_only_when_no_connection_names_it() {
    lab(setup(Profile::NATIVE), |lab| {
        let old = lab.neighbour(CLIENT_MAC);
        lab.reaches_backend("a connection", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("whose answer notes the row", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        // Sweeps as the running process does; the rows that are in use then.
        let swept = |lab: &mut Lab| {
            let sweeper = Sweeper::new(lab.plane.tables().walked(), *lab.plane.settings(), 1000);
            let census = sweeper.sweep(|_| {});
            let (hops, tables) = lab.plane.next_hops();
            hops.collect(tables, &census.nexthops, &alive()).unwrap();
            hops.in_use(&census.nexthops).collect::<Vec<_>>()
        };
        assert_eq!(swept(lab), [((lab.front, CLIENT_MAC), *CLIENT.ip())]);
        let (hops, tables) = lab.plane.next_hops();
        assert!(hops.renew_neighbours(tables, &alive()).unwrap());
        assert_eq!(swept(lab), [], "the connection has forgotten the old row");
        assert_ne!(lab.neighbour(GATEWAY_MAC), old, "too early: a packet may be on its way with it");
        sleep(Duration::from_millis(1100));
        assert_eq!(swept(lab), []);
        let other = [2, 0, 0, 0, 1, 0x33];
        assert_eq!(lab.neighbour(other), old, "free");
        lab.reaches_client("the connection goes where it did", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        assert_eq!(swept(lab), [((lab.front, CLIENT_MAC), *CLIENT.ip())]);
    });
}
