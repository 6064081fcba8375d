//! Rewritten frames, whole and partial checksums, and how they leave.

use proptest::prelude::*;

use crate::checksum::{finished, pseudo_header, update};
use crate::lab::{
    A, BACKEND_MAC, CLIENT, CLIENT_MAC, DNS, End, INSIDE, NAMES, OUTSIDE, OWN_MAC, UDP_VIP, VIP, WEB, enter,
    key, machine, tcp, tcp_with, udp, udp_with, with_macs,
};
use crate::machine::Machine;
use crate::parse::{ACK, RST, SYN, parse, word};
use crate::state::Phase;
use crate::world::Verdict;

/// A machine whose client is connected to backend A and to the name server.
fn connected() -> Machine {
    let mut machine = machine();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, 1);
    enter(&mut machine, key(CLIENT, NAMES), 3, Phase::Established, 1);
    machine
}

fn sent(machine: &mut Machine, interface: u32, frame: &[u8]) -> (Verdict, &'static str, Vec<u8>) {
    let outcome = machine.packet(interface, frame, 2, 0);
    (outcome.verdict, outcome.reason, outcome.frame)
}

fn to_backend(frame: Vec<u8>) -> Vec<u8> {
    with_macs(frame, BACKEND_MAC, OWN_MAC)
}

fn to_client(frame: Vec<u8>) -> Vec<u8> {
    with_macs(frame, CLIENT_MAC, OWN_MAC)
}

/// With the checksum that a local sender leaves to the device.
fn partial(mut frame: Vec<u8>) -> Vec<u8> {
    let packet = parse(&frame).expect("it is well-formed");
    let field = pseudo_header(&frame, &packet).to_be_bytes();
    let at = packet.checksum_field();
    frame[at..at + 2].copy_from_slice(&field);
    frame
}

fn field(frame: &[u8]) -> u16 {
    word(frame, parse(frame).expect("it is well-formed").checksum_field())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whole_frames_are_those_of_etherparse(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        ttl in 2..=255u8,
    ) {
        let mut machine = connected();
        let there = sent(&mut machine, OUTSIDE, &tcp_with(CLIENT, VIP, ACK, &payload, ttl));
        let expected = to_backend(tcp_with(CLIENT, A, ACK, &payload, ttl - 1));
        prop_assert_eq!(there, (Verdict::Redirect, "sent to_backend", expected));
        let back = sent(&mut machine, INSIDE, &tcp_with(A, CLIENT, ACK, &payload, ttl));
        let expected = to_client(tcp_with(VIP, CLIENT, ACK, &payload, ttl - 1));
        prop_assert_eq!(back, (Verdict::Redirect, "sent to_client", expected));
        let there = sent(&mut machine, OUTSIDE, &udp_with(CLIENT, UDP_VIP, &payload, ttl));
        let expected = to_backend(udp_with(CLIENT, DNS, &payload, ttl - 1));
        prop_assert_eq!(there, (Verdict::Redirect, "sent to_backend", expected));
        let back = sent(&mut machine, INSIDE, &udp_with(DNS, CLIENT, &payload, ttl));
        let expected = to_client(udp_with(UDP_VIP, CLIENT, &payload, ttl - 1));
        prop_assert_eq!(back, (Verdict::Redirect, "sent to_client", expected));
    }
}

#[test]
fn tags_and_padding_stay() {
    let wrap = |frame: Vec<u8>| [&frame[..12], &[0x81, 0, 0, 7][..], &frame[12..], &[0xab; 5][..]].concat();
    let frame = wrap(tcp(CLIENT, VIP, ACK));
    let expected = wrap(to_backend(tcp_with(CLIENT, A, ACK, b"some bytes", 63)));
    assert_eq!(sent(&mut connected(), OUTSIDE, &frame).2, expected);
}

#[test]
fn errors_in_checksums_are_kept() {
    for wrong in [0x0000u16, 0xffff, 0x1234] {
        let mut frame = tcp(CLIENT, VIP, ACK);
        let right = field(&frame);
        frame[50..52].copy_from_slice(&wrong.to_be_bytes());
        frame[24..26].copy_from_slice(&wrong.to_be_bytes());
        let after = sent(&mut connected(), OUTSIDE, &frame).2;
        let mut expected = to_backend(tcp_with(CLIENT, A, ACK, b"some bytes", 63));
        let header = update(wrong, &[0xc0a8, 0x0164, 0x4006], &[0x0a00, 0x000a, 0x3f06]);
        let transport = update(wrong, &[0xc0a8, 0x0164, 80], &[0x0a00, 0x000a, 8080]);
        expected[24..26].copy_from_slice(&header.to_be_bytes());
        expected[50..52].copy_from_slice(&transport.to_be_bytes());
        assert_eq!(after, expected);
        assert_ne!(transport, update(right, &[0xc0a8, 0x0164, 80], &[0x0a00, 0x000a, 8080]));
    }
}

#[test]
fn udp_without_a_checksum_gets_none_and_never_zero() {
    let mut frame = udp(CLIENT, UDP_VIP);
    frame[40..42].fill(0);
    assert_eq!(field(&sent(&mut connected(), OUTSIDE, &frame).2), 0);
    // The last word of the payload makes the checksum what it has to be for the next one to be 0.
    let answer = |tail: u16| udp_with(CLIENT, DNS, &tail.to_be_bytes(), 63);
    let tail = field(&answer(0));
    assert_eq!(field(&answer(tail)), 0xffff);
    let frame = udp_with(CLIENT, UDP_VIP, &tail.to_be_bytes(), 64);
    assert_eq!(field(&sent(&mut connected(), OUTSIDE, &frame).2), 0xffff);
    let mut machine = connected();
    machine.world.partial_possible = true;
    assert_eq!(field(&sent(&mut machine, OUTSIDE, &partial(frame)).2), 0xffff);
}

#[test]
fn native_direct_finishes_partial_ones() {
    let mut machine = connected();
    machine.world.partial_possible = true;
    let frame = partial(tcp(CLIENT, VIP, ACK));
    let expected = to_backend(tcp_with(CLIENT, A, ACK, b"some bytes", 63));
    assert_eq!(sent(&mut machine, OUTSIDE, &frame).2, expected);
    assert!(machine.senders.iter().all(|&sender| !sender), "nothing is noted");
    let frame = partial(udp(CLIENT, UDP_VIP));
    let expected = to_backend(udp_with(CLIENT, DNS, b"some bytes", 63));
    assert_eq!(sent(&mut machine, OUTSIDE, &frame).2, expected);
    // Where it is not looked for, it is a wrong one like any other.
    machine.world.partial_possible = false;
    let after = sent(&mut machine, OUTSIDE, &frame).2;
    assert_eq!(
        field(&after),
        update(field(&frame), &[0xc0a8, 0x0164, 53], &[0x0a00, 0x000c, 53]),
        "it is updated"
    );
}

#[test]
fn the_stack_keeps_partial_ones_partial() {
    for (stack, skb_mode) in [(true, true), (true, false), (false, true)] {
        let mut machine = connected();
        (machine.world.stack, machine.world.skb_mode) = (stack, skb_mode);
        machine.world.partial_possible = true;
        let ttl = if stack { 64 } else { 63 };
        let frame = partial(tcp(CLIENT, VIP, ACK));
        let after = sent(&mut machine, OUTSIDE, &frame).2;
        let expected = partial(tcp_with(CLIENT, A, ACK, b"some bytes", ttl));
        assert_eq!(after[14..], expected[14..], "the ports take no part");
        assert!(machine.senders[machine.sender(CLIENT.0)]);
        // A whole one says that the sender does them itself.
        sent(&mut machine, OUTSIDE, &tcp(CLIENT, VIP, ACK));
        assert!(!machine.senders[machine.sender(CLIENT.0)]);
        // A datagram without a checksum says nothing.
        sent(&mut machine, OUTSIDE, &frame);
        let mut none = udp(CLIENT, UDP_VIP);
        none[40..42].fill(0);
        assert_eq!(field(&sent(&mut machine, OUTSIDE, &none).2), 0);
        assert!(machine.senders[machine.sender(CLIENT.0)]);
    }
}

/// A frame whose right checksum is what a partial one would be.
fn chance(to: End) -> Vec<u8> {
    let zero = tcp_with(CLIENT, to, ACK, &[0, 0], 64);
    let packet = parse(&zero).expect("it is well-formed");
    // ~(rest + tail) = pseudo-header, so tail = ~pseudo-header - rest, and finished = ~rest.
    let tail = crate::checksum::add(!pseudo_header(&zero, &packet), finished(&zero, &packet));
    let frame = tcp_with(CLIENT, to, ACK, &tail.to_be_bytes(), 64);
    assert_eq!(field(&frame), pseudo_header(&frame, &packet));
    frame
}

#[test]
fn a_match_by_chance() {
    let frame = chance(VIP);
    let mut machine = connected();
    machine.world.partial_possible = true;
    let payload = frame[54..].to_vec();
    let whole = tcp_with(CLIENT, A, ACK, &payload, 64);
    // Finished or updated: the same.
    assert_eq!(field(&sent(&mut machine, OUTSIDE, &frame).2), field(&whole));
    machine.world.stack = true;
    assert_eq!(field(&sent(&mut machine, OUTSIDE, &frame).2), field(&whole));
    // Of a sender whose last one was partial this is partial too.
    let sender = machine.sender(CLIENT.0);
    machine.senders[sender] = true;
    assert_eq!(field(&sent(&mut machine, OUTSIDE, &frame).2), field(&partial(whole)));
    assert!(machine.senders[sender]);
}

#[test]
fn stack_delivery_changes_neither_ttl_nor_macs() {
    let mut machine = connected();
    machine.world.stack = true;
    let there = sent(&mut machine, OUTSIDE, &tcp(CLIENT, VIP, ACK));
    assert_eq!(there, (Verdict::Pass, "stack to_backend", tcp(CLIENT, A, ACK)));
    let back = sent(&mut machine, INSIDE, &tcp(A, CLIENT, ACK));
    assert_eq!(back, (Verdict::Pass, "stack to_client", tcp(VIP, CLIENT, ACK)));
}

#[test]
fn what_is_larger_than_the_mtu() {
    let mut machine = connected();
    let large = tcp_with(CLIENT, VIP, ACK, &[7; 1461], 64);
    assert_eq!(sent(&mut machine, OUTSIDE, &large), (Verdict::Drop, "drop too_big", large.clone()));
    assert_eq!(crate::lab::found(&machine, key(CLIENT, WEB)).map(|state| state.seen), Some(2));
    assert_eq!(machine.backends.get(&1), None);
    assert_eq!(sent(&mut machine, OUTSIDE, &tcp_with(CLIENT, VIP, ACK, &[7; 1460], 64)).1, "sent to_backend");
    machine.world.stack = true;
    assert_eq!(sent(&mut machine, OUTSIDE, &large).1, "stack to_backend");
    // A connection that such a packet makes is counted; nothing was sent.
    machine.world.stack = false;
    let opens = tcp_with((CLIENT.0, 1), VIP, SYN, &[7; 1461], 64);
    assert_eq!(sent(&mut machine, OUTSIDE, &opens).1, "drop too_big");
    assert!(crate::lab::found(&machine, key((CLIENT.0, 1), WEB)).is_some());
    let counted = machine.backends.values().map(|counters| (counters.connections, counters.to_backend));
    assert_eq!(
        counted.filter(|counted| counted.0 > 0).collect::<Vec<_>>(),
        [(1, (2, 3029))],
        "the two before were sent"
    );
}

#[test]
fn counters_are_of_whole_frames() {
    let mut machine = connected();
    let mut frame = tcp(CLIENT, VIP, ACK);
    frame.extend([0; 9]);
    sent(&mut machine, OUTSIDE, &frame);
    sent(&mut machine, INSIDE, &tcp(A, CLIENT, ACK));
    sent(&mut machine, OUTSIDE, &tcp((CLIENT.0, 1), VIP, SYN));
    sent(&mut machine, OUTSIDE, &tcp((CLIENT.0, 2), VIP, RST));
    assert_eq!(machine.reasons["sent to_backend"], (2, 64 + 73));
    assert_eq!(machine.reasons["sent to_client"], (1, 64));
    assert_eq!(machine.reasons["drop rst_unknown"], (1, 64));
    let counters = machine.backends[&1];
    assert_eq!((counters.connections, counters.to_backend, counters.to_client), (1, (2, 137), (1, 64)));
    assert_eq!(machine.reasons.values().map(|&(packets, _)| packets).sum::<u64>(), 4);
}
