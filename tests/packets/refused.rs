//! Bad input: never a wrong rewrite; passed byte for byte, or dropped under a named reason.

use super::frame::{Frame, tcp, udp};
use super::lab::*;

const MALFORMED: (Verdict, &str) = (Verdict::Drop, "drop malformed");
const NO_SERVICE: (Verdict, &str) = (Verdict::Pass, "pass no_service");

/// The same break in a frame for a VIP and in one for somebody else.
#[track_caller]
fn broken(lab: &mut Lab, what: &str, make: impl Fn(Frame) -> Vec<u8>, then: (Verdict, &str)) {
    let front = lab.front;
    lab.untouched(what, front, &make(tcp(CLIENT, VIP, "S").payload("payload")), then);
    let elsewhere = address([192, 168, 1, 1], 80);
    lab.untouched(what, front, &make(tcp(CLIENT, elsewhere, "S").payload("payload")), NO_SERVICE);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_frames_cut_off_at_every_byte() {
    lab(Setup::default(), |lab| {
        let mut options = tcp(CLIENT, VIP, "S").payload("abc").tagged(&[(0x88a8, 1), (0x8100, 2)]);
        (options.ip_options, options.tcp_options) = (vec![1; 8], vec![1; 8]);
        for frame in [tcp(CLIENT, VIP, "S"), udp(CLIENT, VIP), options] {
            let whole = frame.bytes();
            let ip = frame.ip_offset();
            for len in 14..whole.len() {
                let then = match len {
                    _ if len < ip => (Verdict::Pass, "pass truncated"),
                    _ if len < ip + 20 => (Verdict::Pass, "pass truncated"),
                    _ => MALFORMED,
                };
                lab.untouched(&format!("{len} of {}", whole.len()), lab.front, &whole[..len], then);
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_headers_cut_off_with_a_total_length_to_match() {
    lab(Setup::default(), |lab| {
        for frame in [tcp(CLIENT, VIP, "S"), udp(CLIENT, VIP)] {
            let whole = frame.bytes();
            for len in 34..whole.len() {
                let mut cut = whole[..len].to_vec();
                cut[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
                lab.untouched(&format!("{len} of {}", whole.len()), lab.front, &cut, MALFORMED);
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_headers_that_contradict_themselves() {
    lab(Setup::default(), |lab| {
        let set = |at: usize, value: u8| {
            move |frame: Frame| {
                let mut bytes = frame.bytes();
                bytes[at] = value;
                bytes
            }
        };
        for ihl in 0..5 {
            broken(lab, &format!("IHL {ihl}"), set(14, 0x40 | ihl), MALFORMED);
        }
        broken(lab, "IHL beyond the total length", set(14, 0x4f), MALFORMED);
        for version in [0, 3, 5, 6, 15] {
            broken(lab, &format!("version {version}"), set(14, version << 4 | 5), MALFORMED);
        }
        for doff in 0..5 {
            broken(lab, &format!("data offset {doff}"), set(46, doff << 4), MALFORMED);
        }
        broken(lab, "data offset beyond the segment", set(46, 0xf0), MALFORMED);
        let total = |length: u16| {
            move |frame: Frame| {
                let mut bytes = frame.bytes();
                bytes[16..18].copy_from_slice(&length.to_be_bytes());
                bytes
            }
        };
        for length in [0, 1, 19, 20, 39, 48, 1500, 0xffff] {
            broken(lab, &format!("total length {length}"), total(length), MALFORMED);
        }
        for length in [0u16, 7, 14, 0xffff] {
            let mut bytes = udp(CLIENT, VIP).bytes();
            bytes[38..40].copy_from_slice(&length.to_be_bytes());
            lab.untouched(&format!("UDP length {length}"), lab.front, &bytes, MALFORMED);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_ttl_0_and_1_go_nowhere() {
    lab(Setup::default(), |lab| {
        for ttl in [0, 1] {
            let frame = tcp(CLIENT, VIP, "S").ttl(ttl).bytes();
            lab.untouched("TTL", lab.front, &frame, (Verdict::Drop, "drop ttl"));
        }
        lab.reaches_backend(
            "TTL 2 is enough, and its turn was not used up",
            &tcp(CLIENT, VIP, "S").ttl(2),
            0,
        );
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sources_that_no_client_can_have() {
    lab(Setup::default(), |lab| {
        for ip in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4], VIP.ip().octets()]
        {
            for frame in [tcp(address(ip, 1234), VIP, "S"), udp(address(ip, 1234), VIP)] {
                lab.untouched("source", lab.front, &frame.bytes(), (Verdict::Drop, "drop bad_source"));
            }
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_fragments_of_a_balanced_protocol_are_dropped() {
    lab(Setup::default(), |lab| {
        for (more, offset) in [(true, 0), (true, 5), (false, 5)] {
            let mut frame = udp(CLIENT, VIP);
            (frame.more_fragments, frame.fragment_offset) = (more, offset);
            lab.untouched("for a VIP", lab.front, &frame.bytes(), (Verdict::Drop, "drop fragment"));
            frame.to = address([192, 168, 1, 1], 80);
            lab.untouched("for another", lab.front, &frame.bytes(), NO_SERVICE);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_first_fragment_for_another_port_of_a_vip_is_dropped_like_the_rest() {
    let services = vec![service(VIP, xdp_lb::model::Protocol::Tcp, Default::default(), &[(0, 1)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        let mut frame = tcp(CLIENT, address([192, 168, 1, 100], 22), "A");
        frame.more_fragments = true;
        lab.untouched("TCP is balanced there", lab.front, &frame.bytes(), (Verdict::Drop, "drop fragment"));
        let mut frame = udp(CLIENT, VIP);
        frame.more_fragments = true;
        lab.untouched("UDP is not", lab.front, &frame.bytes(), NO_SERVICE);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_not_balanced_passes() {
    lab(Setup::default(), |lab| {
        let mut ethertype = |what: &str, kind: u16, reason: &str| {
            let mut bytes = tcp(CLIENT, VIP, "S").bytes();
            bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            lab.untouched(what, 10, &bytes, (Verdict::Pass, reason));
        };
        ethertype("ARP", 0x0806, "pass not_ipv4");
        ethertype("LLDP", 0x88cc, "pass not_ipv4");
        ethertype("IPv6", 0x86dd, "pass not_ipv4");
        ethertype("an 802.3 length", 0x0040, "pass not_ipv4");
        lab.untouched("an empty frame", 10, &[0; 14], (Verdict::Pass, "pass not_ipv4"));
        let cut = &tcp(CLIENT, VIP, "S").tagged(&[(0x8100, 1)]).bytes()[..16];
        lab.untouched("a VLAN tag cut off", 10, cut, (Verdict::Pass, "pass truncated"));

        let front = lab.front;
        lab.untouched(
            "another port of the VIP",
            front,
            &tcp(CLIENT, address([192, 168, 1, 100], 22), "S").bytes(),
            NO_SERVICE,
        );
        let mut icmp = tcp(CLIENT, VIP, "S").bytes();
        icmp[23] = 1;
        lab.untouched("another protocol of the VIP", front, &icmp, NO_SERVICE);
        icmp[14] = 0x44;
        lab.untouched("even malformed", front, &icmp, NO_SERVICE);
        let group = address([224, 0, 0, 251], 80);
        lab.untouched("IP multicast", front, &udp(CLIENT, group).bytes(), NO_SERVICE);
        for to in [[0x01, 0, 0x5e, 0, 0, 0xfb], [0xff; 6]] {
            let frame = tcp(CLIENT, VIP, "S").macs(to, CLIENT_MAC).bytes();
            lab.untouched("a group MAC", front, &frame, (Verdict::Pass, "pass multicast"));
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_frame_larger_than_the_mtu_is_dropped() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("the MTU's size", &tcp(CLIENT, VIP, "A").payload(vec![1; 1460]), 0);
        let big = tcp(CLIENT, VIP, "A").payload(vec![1; 1461]).bytes();
        lab.untouched("one byte more", lab.front, &big, (Verdict::Drop, "drop too_big"));
        let row = lab.row(0);
        lab.reach(row, None, 20);
        let frame = tcp(CLIENT, VIP, "A").payload(vec![1; 1461]);
        let after = frame.clone().to(backend(0)).bytes();
        let then = (Verdict::Pass, "stack neighbour_unknown");
        lab.expect("the kernel decides for itself", lab.front, &frame.bytes(), then, &after);
    });
}
