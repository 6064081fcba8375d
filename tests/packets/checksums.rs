//! Partial checksums of local senders: who finishes them depends on the verdict.

use xdp_lb::dataplane::Profile;

use super::frame::{Checksum, Frame, tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

fn setup(profile: Profile) -> Setup {
    Setup { profile: Profile { test_clock: true, ..profile }, ..Setup::default() }
}

fn payloads() -> impl Iterator<Item = Vec<u8>> {
    [0, 1, 2, 43, 44, 45, 63, 64, 65, 100, 107, 108, 109, 491, 492, 493, 619, 620, 1000, 1459, 1460]
        .into_iter()
        .map(|len| (0..len).map(|n| (n * 7 + len) as u8).collect())
}

/// The frame afterwards has its checksum finished.
fn finished(lab: &mut Lab, what: &str, frame: &Frame, from_client: bool) {
    let partial = frame.clone().checksum(Checksum::Partial);
    let done = match from_client {
        true => frame.clone().to(backend(0)).macs(backend_mac(0), LB_BACK_MAC),
        false => frame.clone().from(VIP).macs(CLIENT_MAC, LB_MAC),
    };
    let (ifindex, reason) =
        if from_client { (lab.front, "sent to_backend") } else { (lab.back, "sent to_client") };
    lab.expect(what, ifindex, &partial.bytes(), (Verdict::Redirect, reason), &done.ttl(63).bytes());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_direct_delivery_finishes_partial_checksums() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        for payload in payloads() {
            let what = format!("{} bytes", payload.len());
            finished(lab, &what, &tcp(CLIENT, VIP, "A").payload(payload.clone()), true);
            finished(lab, &what, &reply(0, CLIENT, "A").payload(payload.clone()), false);
            if payload.len() <= 1472 {
                finished(lab, &what, &udp(CLIENT, VIP).payload(payload.clone()), true);
                finished(lab, &what, &udp_reply(0, CLIENT).payload(payload), false);
            }
        }
        let mut odd = tcp(CLIENT, VIP, "A").payload("odd").padded(11).tagged(&[(0x8100, 3)]);
        (odd.ip_options, odd.tcp_options) = (vec![1; 8], vec![1; 12]);
        finished(lab, "padding, options and a tag", &odd, true);
        lab.reaches_backend("whole ones are updated", &tcp(CLIENT, VIP, "A").payload("whole"), 0);
        lab.reaches_backend("and none stays none", &udp(CLIENT, VIP).checksum(Checksum::Absent), 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_finished_zero_of_udp_is_sent_as_ones() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        let toward = udp(CLIENT, backend(0)).payload([0, 0]).bytes();
        let zero = udp(CLIENT, VIP).payload([toward[40], toward[41]]);
        let done = zero.clone().to(backend(0)).macs(backend_mac(0), LB_BACK_MAC).ttl(63).bytes();
        assert_eq!(&done[40..42], &[0xff, 0xff]);
        finished(lab, "a computed 0", &zero, true);
    });
}

/// Carries of carries, and both forms of zero, come once in 65,536 sums: so all of them are tried.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_every_checksum_is_updated_right() {
    for frame in [tcp(CLIENT, VIP, "A"), udp(CLIENT, VIP)] {
        lab(setup(Profile::NATIVE), move |lab| {
            let profile = lab.profile;
            lab.reaches_backend("the first", &frame, 0);
            for word in 0..=u16::MAX {
                let frame = frame.clone().payload(word.to_be_bytes());
                let program = lab.plane.program(profile).unwrap();
                let (_, out) = program.test_run(&frame.bytes(), lab.front).unwrap();
                let after = frame.to(backend(0)).ttl(63).macs(backend_mac(0), LB_BACK_MAC).bytes();
                assert!(out == after, "payload {word:04x}");
            }
        });
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_wire_has_no_partial_checksums() {
    lab(setup(Profile::NATIVE), |lab| {
        // What looks like one is a broken frame there, and stays broken: the update keeps the error.
        let frame = tcp(CLIENT, VIP, "A").payload("abc");
        let (_, reason, out) = lab.send(lab.front, &frame.clone().checksum(Checksum::Partial).bytes());
        assert_eq!(reason, "sent to_backend");
        assert_ne!(out, frame.to(backend(0)).macs(backend_mac(0), LB_BACK_MAC).ttl(63).bytes());
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_stack_delivery_keeps_partial_checksums_partial() {
    lab(setup(Profile::NATIVE_VIRTUAL), |lab| {
        for n in [0, 3] {
            let row = lab.row(n);
            lab.reach(row, None, 20);
        }
        let then = (Verdict::Pass, "stack neighbour_unknown");
        for frame in [tcp(CLIENT, VIP, "A").payload("abc"), udp(CLIENT, VIP)] {
            let partial = frame.checksum(Checksum::Partial);
            let after = partial.clone().to(backend(0)).bytes();
            lab.expect("partial", lab.front, &partial.bytes(), then, &after);
            let whole = partial.checksum(Checksum::Whole);
            let after = whole.clone().to(backend(0)).bytes();
            lab.expect("whole", lab.front, &whole.bytes(), then, &after);
        }
    });
}

/// A frame of a client whose whole checksum happens to be the pseudo-header's sum: what a partial one holds.
fn chance_match() -> Frame {
    let plain = tcp(CLIENT, VIP, "A").payload([0, 0]);
    let check = |frame: &Frame| {
        let bytes = frame.bytes();
        u32::from(u16::from_be_bytes([bytes[50], bytes[51]]))
    };
    let (whole, partial) = (check(&plain), check(&plain.clone().checksum(Checksum::Partial)));
    // One's complement: what the sum has too little goes into the payload.
    let payload = (whole + 0xffff - partial) % 0xffff;
    let frame = plain.payload((payload as u16).to_be_bytes());
    assert_eq!(check(&frame), partial);
    frame
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_whole_checksum_that_looks_partial_stays_whole() {
    for (profile, silent) in
        [(Profile::SKB_DIRECT, false), (Profile::NATIVE_VIRTUAL, false), (Profile::NATIVE_VIRTUAL, true)]
    {
        lab(setup(profile), move |lab| {
            let row = lab.row(0);
            lab.reach(row, (!silent).then_some(backend_mac(0)), 20);
            let mut expect = |what: &str, frame: &Frame| {
                let after = frame.clone().to(backend(0));
                if silent {
                    let then = (Verdict::Pass, "stack neighbour_unknown");
                    lab.expect(what, lab.front, &frame.bytes(), then, &after.bytes());
                } else {
                    let after = after.ttl(63).macs(backend_mac(0), LB_BACK_MAC).bytes();
                    lab.expect(
                        what,
                        lab.front,
                        &frame.bytes(),
                        (Verdict::Redirect, "sent to_backend"),
                        &after,
                    );
                }
            };
            expect("the first packet of a sender", &chance_match());
            expect("another one", &tcp(CLIENT, VIP, "A").payload("whole"));
            expect("one among whole ones", &chance_match());
        });
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_skb_mode_keeps_partial_checksums_partial() {
    lab(setup(Profile::SKB_DIRECT), |lab| {
        for checksum in [Checksum::Partial, Checksum::Whole] {
            lab.reaches_backend("TCP", &tcp(CLIENT, VIP, "A").payload("abc").checksum(checksum), 0);
            lab.reaches_backend("UDP", &udp(CLIENT, VIP).checksum(checksum), 0);
            lab.reaches_client("TCP", &reply(0, CLIENT, "A").checksum(checksum), CLIENT_MAC);
            lab.reaches_client("UDP", &udp_reply(0, CLIENT).checksum(checksum), CLIENT_MAC);
        }
    });
}
