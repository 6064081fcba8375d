//! The checks of step 1, one by one, and whose frame it is.

use std::net::Ipv4Addr;

use crate::lab::{A, CLIENT, OUTSIDE, UDP_VIP, VIP, machine, tcp, udp};
use crate::parse::{ACK, SYN, parse};
use crate::world::Verdict;

fn reason_of(frame: &[u8]) -> &'static str {
    let outcome = machine().packet(OUTSIDE, frame, 1, 0);
    if outcome.reason.starts_with("pass ") {
        assert_eq!((outcome.verdict, &outcome.frame[..]), (Verdict::Pass, frame));
    }
    outcome.reason
}

/// A frame with some bytes set.
fn changed(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for &(at, byte) in changes {
        frame[at] = byte;
    }
    frame
}

fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat()[..], &frame[12..]].concat()
}

const IP: usize = 14;
const TRANSPORT: usize = 34;

#[test]
fn ethernet_and_what_is_not_ours() {
    let syn = tcp(CLIENT, VIP, SYN);
    let (vlan, qinq) = ([0x81, 0, 0, 5], [0x88, 0xa8, 0, 6]);
    assert_eq!(reason_of(&syn), "sent to_backend");
    assert_eq!(reason_of(&syn[..13]), "pass truncated");
    assert_eq!(reason_of(&[]), "pass truncated");
    assert_eq!(reason_of(&syn[..33]), "pass truncated");
    assert_eq!(reason_of(&tagged(&syn, &[vlan])), "sent to_backend");
    assert_eq!(reason_of(&tagged(&syn, &[qinq, vlan])), "sent to_backend");
    assert_eq!(reason_of(&tagged(&syn, &[vlan, vlan, vlan])), "pass not_ipv4");
    assert_eq!(reason_of(&tagged(&syn, &[vlan])[..17]), "pass truncated");
    assert_eq!(reason_of(&tagged(&syn, &[vlan, vlan])[..21]), "pass truncated");
    assert_eq!(reason_of(&changed(&syn, &[(12, 0x86), (13, 0xdd)])), "pass not_ipv4");
    assert_eq!(reason_of(&changed(&syn, &[(0, 3)])), "pass multicast");
    // A group address is looked at before the IP header is.
    assert_eq!(reason_of(&changed(&syn, &[(0, 3)])[..20]), "pass multicast");
    assert_eq!(reason_of(&changed(&syn, &[(0, 3), (12, 0)])), "pass not_ipv4");
}

#[test]
fn headers_that_contradict_the_frame() {
    let syn = tcp(CLIENT, VIP, SYN);
    let datagram = udp(CLIENT, UDP_VIP);
    let malformed = [
        changed(&syn, &[(IP, 0x55)]),
        changed(&syn, &[(IP, 0x44)]),
        changed(&syn, &[(IP + 2, 0), (IP + 3, 19)]),
        changed(&syn, &[(IP + 3, syn[IP + 3] + 1)]),
        // 19 bytes of TCP header in the total length.
        changed(&syn, &[(IP + 3, 39)]),
        syn[..53].to_vec(),
        changed(&syn, &[(TRANSPORT + 12, 0x40)]),
        changed(&syn, &[(TRANSPORT + 12, 0x80)]),
        changed(&datagram, &[(IP + 3, 27)]),
        changed(&datagram, &[(TRANSPORT + 5, 7)]),
        changed(&datagram, &[(TRANSPORT + 5, 19)]),
    ];
    for frame in malformed {
        assert_eq!(reason_of(&frame), "drop malformed", "{frame:02x?}");
        // To another address it is the host's, whatever it is.
        assert_eq!(reason_of(&changed(&frame, &[(IP + 19, 101)])), "pass no_service", "{frame:02x?}");
    }
    // On another port of the VIP they count all the same; of a protocol without a service they do not.
    let other_port = tcp(CLIENT, (VIP.0, 81), SYN);
    assert_eq!(reason_of(&changed(&other_port, &[(IP, 0x44)])), "drop malformed");
    assert_eq!(reason_of(&other_port), "pass no_service");
    assert_eq!(reason_of(&changed(&syn, &[(IP, 0x44), (IP + 9, 1)])), "pass no_service");
    assert_eq!(reason_of(&changed(&syn, &[(IP + 9, 1)])), "pass no_service");
}

#[test]
fn lengths_that_are_accepted() {
    let mut padded = tcp(CLIENT, VIP, SYN);
    padded.extend([0xaa; 7]);
    assert_eq!(reason_of(&padded), "sent to_backend");
    let packet = parse(&padded).expect("it is well-formed");
    assert_eq!((packet.end, packet.payload_length()), (padded.len() - 7, 30));
    let datagram = udp(CLIENT, UDP_VIP);
    assert_eq!(reason_of(&changed(&datagram, &[(TRANSPORT + 5, 17)])), "sent to_backend");
    assert_eq!(reason_of(&changed(&tcp(CLIENT, VIP, SYN), &[(IP + 10, 0xff)])), "sent to_backend");
}

#[test]
fn fragments() {
    let syn = tcp(CLIENT, VIP, SYN);
    let datagram = udp(CLIENT, UDP_VIP);
    assert_eq!(reason_of(&changed(&syn, &[(IP + 7, 1)])), "drop fragment");
    assert_eq!(reason_of(&changed(&syn, &[(IP + 6, 0x20)])), "drop fragment");
    // Do-not-fragment and the reserved bit are no fragment.
    assert_eq!(reason_of(&changed(&syn, &[(IP + 6, 0xc0)])), "sent to_backend");
    // A first fragment's UDP length is that of the whole datagram.
    assert_eq!(reason_of(&changed(&datagram, &[(IP + 6, 0x20), (TRANSPORT + 4, 9)])), "drop fragment");
    assert_eq!(reason_of(&changed(&datagram, &[(IP + 6, 0x20), (TRANSPORT + 5, 7)])), "drop malformed");
    assert_eq!(reason_of(&changed(&syn, &[(IP + 6, 0x20), (TRANSPORT + 12, 0x40)])), "drop malformed");
    let elsewhere = tcp(CLIENT, (Ipv4Addr::new(192, 168, 1, 1), 80), SYN);
    assert_eq!(reason_of(&changed(&elsewhere, &[(IP + 7, 1)])), "pass no_service");
    assert_eq!(reason_of(&changed(&elsewhere, &[(IP + 6, 0x20)])), "pass no_service");
}

#[test]
fn a_backend_may_be_a_client() {
    assert_eq!(reason_of(&tcp(A, VIP, SYN)), "sent to_backend");
    assert_eq!(reason_of(&tcp(A, (VIP.0, 81), SYN | ACK)), "pass no_connection");
    assert_eq!(reason_of(&tcp(A, CLIENT, SYN | ACK)), "pass no_connection");
    assert_eq!(reason_of(&tcp((A.0, 8081), CLIENT, SYN | ACK)), "pass no_service");
}
