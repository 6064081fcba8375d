//! From backends to clients.

use super::frame::{Checksum, Frame, tcp, udp};
use super::lab::*;

/// A frame of the n-th backend to a client.
pub fn reply(n: u8, to: std::net::SocketAddrV4, flags: &'static str) -> Frame {
    tcp(backend(n), to, flags).macs(LB_BACK_MAC, backend_mac(n))
}

pub fn udp_reply(n: u8, to: std::net::SocketAddrV4) -> Frame {
    udp(backend(n), to).macs(LB_BACK_MAC, backend_mac(n))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_replies_come_from_the_vip() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a SYN", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("its SYN-ACK", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        lab.reaches_backend("the ACK", &tcp(CLIENT, VIP, "A"), 0);
        lab.reaches_client("data", &reply(0, CLIENT, "PA").payload("HTTP/1.1 200 OK\r\n\r\n!"), CLIENT_MAC);
        let mut odd = reply(0, CLIENT, "A").tagged(&[(0x8100, 9)]).padded(3);
        odd.ip_options = vec![1; 4];
        odd.tcp_options = vec![1; 12];
        lab.reaches_client("tags, options and padding", &odd, CLIENT_MAC);

        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        lab.reaches_client(
            "one without a checksum",
            &udp_reply(0, CLIENT).checksum(Checksum::Absent),
            CLIENT_MAC,
        );
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_replies_are_counted_for_their_backend() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        let answer = udp_reply(0, CLIENT).payload("an answer");
        lab.reaches_client("its answer", &answer, CLIENT_MAC);
        let counters = lab.plane.tables().backend_counters(lab.row(3).index).unwrap();
        assert_eq!(
            (counters.connections, counters.to_backend.packets, counters.to_client.packets),
            (1, 1, 1)
        );
        assert_eq!(counters.to_client.bytes, answer.bytes().len() as u64);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_way_to_the_client_is_the_routes() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a client behind a gateway", &tcp(FAR_CLIENT, VIP, "S"), 0);
        lab.reaches_client("by the FIB", &reply(0, FAR_CLIENT, "SA"), GATEWAY_MAC);

        // From here on the gateway has an index, which the next reply notes in the connection.
        lab.neighbour(GATEWAY_MAC);
        lab.reaches_client("by the FIB, once more", &reply(0, FAR_CLIENT, "A"), GATEWAY_MAC);
        lab.reaches_client("by its index", &reply(0, FAR_CLIENT, "A"), GATEWAY_MAC);
        ip("route del default");
        lab.reaches_client(
            "by its index, although the route is gone",
            &reply(0, FAR_CLIENT, "A"),
            GATEWAY_MAC,
        );

        let (hops, tables) = lab.plane.next_hops();
        hops.forget_neighbour(tables, 10, GATEWAY_MAC).unwrap();
        let frame = reply(0, FAR_CLIENT, "A");
        let after = frame.clone().from(VIP).bytes();
        let then = (Verdict::Pass, "stack route_by_kernel");
        lab.expect("without both it is left to the kernel", lab.back, &frame.bytes(), then, &after);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_unknown_client_neighbour_is_left_to_the_kernel_and_asked_for() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a client that nobody knows", &tcp(SILENT_CLIENT, VIP, "S"), 0);
        assert_eq!(lab.plane.take_unresolved(), [], "nobody is asked for a client whom nobody answers");
        let frame = reply(0, SILENT_CLIENT, "SA");
        let after = frame.clone().from(VIP).bytes();
        let then = (Verdict::Pass, "stack neighbour_unknown");
        lab.expect("translated, not addressed", lab.back, &frame.bytes(), then, &after);
        assert_eq!(lab.plane.take_unresolved(), [(lab.front, *SILENT_CLIENT.ip())]);
        assert_eq!(lab.plane.take_unresolved(), []);

        // Behind a gateway it is the gateway that is asked for.
        ip("neighbour del 192.168.1.254 dev front");
        lab.reaches_backend("a client behind a gateway", &tcp(FAR_CLIENT, VIP, "S"), 1);
        let frame = reply(1, FAR_CLIENT, "SA");
        let after = frame.clone().from(VIP).bytes();
        lab.expect("which nobody knows", lab.back, &frame.bytes(), then, &after);
        assert_eq!(lab.plane.take_unresolved(), [(lab.front, [192, 168, 1, 254].into())]);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_no_reply_passes_untouched() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a SYN", &tcp(CLIENT, VIP, "S"), 0);
        let mut pass = |what: &str, ifindex: u32, frame: Frame, reason: &str| {
            lab.untouched(what, ifindex, &frame.bytes(), (Verdict::Pass, reason));
        };
        pass(
            "a backend's address from the clients' side",
            10,
            reply(0, CLIENT, "SA"),
            "pass wrong_interface",
        );
        pass("another backend answers", 20, reply(1, CLIENT, "SA"), "pass no_connection");
        let other = address([192, 168, 1, 2], 40001);
        pass("a client's other port", 20, reply(0, other, "SA"), "pass no_connection");
        pass("the other protocol", 20, udp_reply(0, CLIENT), "pass no_connection");
        let port = tcp(address([10, 0, 0, 10], 8081), CLIENT, "SA").macs(LB_BACK_MAC, backend_mac(0));
        pass("a backend's other port", 20, port, "pass no_service");
        pass("from the clients' side, of no connection", 10, reply(2, CLIENT, "SA"), "pass no_connection");
        pass("a direct connection to a backend", 10, tcp(CLIENT, backend(0), "S"), "pass no_service");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_replies_that_cannot_go_on_are_dropped() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a SYN", &tcp(CLIENT, VIP, "S"), 0);
        for ttl in [0, 1] {
            let frame = reply(0, CLIENT, "SA").ttl(ttl).bytes();
            lab.untouched("TTL", lab.back, &frame, (Verdict::Drop, "drop ttl"));
        }
        lab.reaches_client("TTL 2 is enough", &reply(0, CLIENT, "SA").ttl(2), CLIENT_MAC);
        let full = vec![0x5a; MTU as usize - 40];
        lab.reaches_client("the MTU's size", &reply(0, CLIENT, "A").payload(full), CLIENT_MAC);
        let big = reply(0, CLIENT, "A").payload(vec![0x5a; MTU as usize - 39]).bytes();
        lab.untouched("one byte more", lab.back, &big, (Verdict::Drop, "drop too_big"));

        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        let mut fragment = udp_reply(0, CLIENT);
        fragment.more_fragments = true;
        lab.untouched("a first fragment", lab.back, &fragment.bytes(), (Verdict::Drop, "drop fragment"));
        fragment.fragment_offset = 10;
        lab.untouched("a later one", lab.back, &fragment.bytes(), (Verdict::Pass, "pass no_service"));
    });
}
