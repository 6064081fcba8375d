//! The arithmetic, against etherparse and against itself.

use etherparse::{Ipv4HeaderSlice, TcpHeaderSlice};
use proptest::prelude::*;

use crate::checksum::{
    add, finished, header_is_right, looks_partial, pseudo_header, sent, sum_bytes, transport_is_right,
    update, update_partial,
};
use crate::lab::{CLIENT, UDP_VIP, VIP, tcp_with, udp_with};
use crate::parse::{ACK, TCP, UDP, parse};

#[test]
fn zero_has_two_forms() {
    assert_eq!(add(0, 0), 0);
    assert_eq!(add(0xffff, 0), 0xffff);
    assert_eq!(add(0xffff, 0xffff), 0xffff);
    assert_eq!(add(0x8000, 0x8000), 1);
    assert_eq!(add(1, 0xfffe), 0xffff);
    // RFC 1624, section 4: equation 3 gives 0x0000 here, where equation 2 gave 0xffff.
    assert_eq!(update(0xdd2f, &[0x5555], &[0x3285]), 0x0000);
    // Wrong checksums are kept wrong, and both forms of zero go the same way.
    assert_eq!(update(0x0000, &[1], &[2]), update(0xffff, &[1], &[2]));
    assert_eq!(update(0xffff, &[7], &[7]), 0x0000);
    assert_eq!(update_partial(0xffff, &[7], &[7]), 0xffff);
    assert_eq!(sum_bytes(&[1, 2, 3]), 0x0402);
    assert_eq!((sent(0, UDP), sent(0, TCP), sent(5, UDP)), (0xffff, 0, 5));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whole_checksums_are_those_of_etherparse(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = tcp_with(CLIENT, VIP, ACK, &payload, 64);
        let packet = parse(&frame).expect("it is well-formed");
        let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).expect("it has an IP header").to_header();
        let header = TcpHeaderSlice::from_slice(&frame[34..]).expect("it has a TCP header").to_header();
        let theirs = header.calc_checksum_ipv4(&ip, &payload).expect("it is short enough");
        prop_assert_eq!(finished(&frame, &packet), theirs);
        prop_assert!(header_is_right(&frame, &packet) && transport_is_right(&frame, &packet));
        frame[packet.ip + 8] ^= 1;
        frame[packet.transport + 4] ^= 1;
        prop_assert!(!header_is_right(&frame, &packet) && !transport_is_right(&frame, &packet));
    }

    /// A right checksum is right after the update, so the update is as good as computing it anew.
    #[test]
    fn updates_follow_the_words(before in proptest::collection::vec(any::<u16>(), 1..9), new in any::<u16>()) {
        let whole = |words: &[u16]| !words.iter().fold(0, |sum, &word| add(sum, word));
        let mut after = before.clone();
        after[0] = new;
        let updated = update(whole(&before), &before[..1], &[new]);
        let computed = whole(&after);
        // The two forms of zero are one number.
        prop_assert_eq!(u32::from(updated) % 0xffff, u32::from(computed) % 0xffff);
    }

    #[test]
    fn partial_ones_stay_partial(payload in proptest::collection::vec(any::<u8>(), 0..20), new in any::<[u8; 4]>()) {
        let mut frame = udp_with(CLIENT, UDP_VIP, &payload, 64);
        let packet = parse(&frame).expect("it is well-formed");
        let field = pseudo_header(&frame, &packet);
        frame[40..42].copy_from_slice(&field.to_be_bytes());
        prop_assert!(looks_partial(&frame, &packet));
        let old: Vec<u16> = crate::checksum::words(packet.destination).to_vec();
        let updated = update_partial(field, &old, &crate::checksum::words(new.into()));
        frame[30..34].copy_from_slice(&new);
        prop_assert_eq!(updated, pseudo_header(&frame, &packet));
    }
}

#[test]
fn what_looks_partial() {
    let mut frame = udp_with(CLIENT, UDP_VIP, b"payload", 64);
    let packet = parse(&frame).expect("it is well-formed");
    assert!(!looks_partial(&frame, &packet));
    let field = pseudo_header(&frame, &packet);
    frame[40..42].copy_from_slice(&field.to_be_bytes());
    assert!(looks_partial(&frame, &packet));
    // A UDP length that is not that of the payload.
    frame[39] -= 1;
    assert!(!looks_partial(&frame, &packet));
}
