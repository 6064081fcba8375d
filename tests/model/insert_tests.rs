//! Which slot a new entry gets.

use std::net::Ipv4Addr;

use crate::lab::{CLIENT, OUTSIDE, VIP, WEB, key, machine, open, place, tcp};
use crate::machine::Machine;
use crate::parse::SYN;
use crate::state::{FREE, Key, Phase, State};
use crate::table::{SLOTS, Slot};

const NOW: u16 = 1000;

/// A key whose buckets differ, and whose tag ends in two zero bits: among equals the highest slot is the victim.
fn plain_key(machine: &Machine) -> Key {
    (1..)
        .map(|port| Key { port, ..key(CLIENT, WEB) })
        .find(|&key| {
            let candidates = machine.candidates(key);
            candidates.first != candidates.second && candidates.tag & 3 == 0
        })
        .expect("there is one")
}

/// Fills a bucket with states of somebody else.
fn fill(machine: &mut Machine, bucket: usize, states: [(Phase, u16); SLOTS]) {
    for (slot, (phase, seen)) in states.into_iter().enumerate() {
        let other = Key { client: Ipv4Addr::new(1, 1, 1, slot as u8), ..key(CLIENT, WEB) };
        place(machine, other, Slot { bucket, slot }, State { backend: 1, phase, seen, ..FREE });
    }
}

const FULL: (Phase, u16) = (Phase::Established, NOW);
const EMPTY: (Phase, u16) = (Phase::Free, 0);

/// The victim's bucket (false: the first one) and slot.
fn victim(first: [(Phase, u16); SLOTS], second: [(Phase, u16); SLOTS]) -> Option<(bool, usize)> {
    let mut machine = machine();
    let key = plain_key(&machine);
    let candidates = machine.candidates(key);
    fill(&mut machine, candidates.first, first);
    fill(&mut machine, candidates.second, second);
    machine.victim(key, NOW).map(|at| (at.bucket == candidates.second, at.slot))
}

#[test]
fn free_slots_are_spread() {
    assert_eq!(victim([EMPTY; 4], [EMPTY; 4]), Some((false, 3)));
    assert_eq!(victim([FULL, EMPTY, EMPTY, EMPTY], [EMPTY; 4]), Some((false, 3)));
    assert_eq!(victim([FULL, FULL, EMPTY, EMPTY], [EMPTY; 4]), Some((true, 3)));
    assert_eq!(victim([FULL, EMPTY, EMPTY, FULL], [FULL, FULL, EMPTY, EMPTY]), Some((true, 3)));
    assert_eq!(victim([FULL, FULL, EMPTY, EMPTY], [FULL, EMPTY, EMPTY, FULL]), Some((false, 3)));
    assert_eq!(victim([FULL, FULL, FULL, EMPTY], [FULL; 4]), Some((false, 3)));
    assert_eq!(victim([FULL; 4], [EMPTY, FULL, FULL, FULL]), Some((true, 0)));
    assert_eq!(victim([FULL; 4], [FULL; 4]), None);
}

#[test]
fn what_is_worth_least_goes_first() {
    let closed = (Phase::Closed, NOW - 10);
    let older = (Phase::Closed, NOW - 11);
    let expired = (Phase::Answered, NOW - 41);
    assert_eq!(victim([closed, FULL, FULL, FULL], [FULL; 4]), Some((false, 0)));
    assert_eq!(victim([closed, FULL, FULL, FULL], [FULL, older, FULL, FULL]), Some((true, 1)));
    // What has ended is room like free slots: the bucket with more of it, and of it three are enough for the first.
    assert_eq!(victim([FULL, older, closed, FULL], [FULL, FULL, FULL, older]), Some((false, 1)));
    assert_eq!(victim([FULL, FULL, FULL, closed], [FULL, closed, closed, FULL]), Some((true, 2)));
    assert_eq!(victim([FULL, closed, expired, EMPTY], [EMPTY; 4]), Some((false, 3)));
    assert_eq!(victim([older, FULL, FULL, FULL], [FULL, FULL, expired, FULL]), Some((true, 2)));
    // The age comes before the slot, in a bucket and between them.
    assert_eq!(victim([older, FULL, FULL, closed], [FULL; 4]), Some((false, 0)));
    assert_eq!(victim([FULL, FULL, FULL, closed], [older, FULL, FULL, FULL]), Some((true, 0)));
    // Of two that are alike in everything, the first bucket's.
    assert_eq!(victim([FULL, closed, FULL, FULL], [FULL, closed, FULL, FULL]), Some((false, 1)));
}

#[test]
fn unconfirmed_ones_take_half_of_a_bucket() {
    let young = (Phase::Unconfirmed, NOW - 1);
    let old = (Phase::Answered, NOW - 30);
    // Two are there: the free slots are not to be had, the other bucket is.
    assert_eq!(victim([young, young, EMPTY, EMPTY], [FULL, FULL, FULL, EMPTY]), Some((true, 3)));
    // Both have two: the oldest goes.
    assert_eq!(victim([young, young, EMPTY, EMPTY], [EMPTY, young, old, EMPTY]), Some((true, 2)));
    assert_eq!(victim([old, FULL, young, FULL], [FULL, FULL, FULL, young]), Some((false, 0)));
    // Where fewer are confirmed, however old the other bucket's is.
    assert_eq!(victim([old, FULL, FULL, FULL], [FULL, young, FULL, old]), Some((true, 3)));
    assert_eq!(victim([young, EMPTY, young, old], [FULL, old, young, EMPTY]), Some((false, 3)));
    assert_eq!(victim([FULL, young, FULL, FULL], [FULL; 4]), Some((false, 1)));
    assert_eq!(victim([young, FULL, FULL, FULL], [FULL, young, FULL, FULL]), Some((true, 1)));
    assert_eq!(victim([FULL, young, FULL, FULL], [FULL, young, FULL, FULL]), Some((false, 1)));
}

#[test]
fn the_tag_chooses_among_equals() {
    let machine = machine();
    for tag in 0..4u8 {
        let key = (1..)
            .map(|port| Key { port, ..key(CLIENT, WEB) })
            .find(|&key| machine.candidates(key).tag & 3 == tag)
            .expect("there is one");
        assert_eq!(machine.victim(key, NOW).map(|at| at.slot), Some(usize::from(3 ^ tag)));
    }
}

#[test]
fn a_full_table_drops_new_connections_and_uses_up_the_rotation() {
    let mut machine = machine();
    machine.world.buckets = 1;
    machine.connections.truncate(1);
    fill(&mut machine, 0, [FULL; 4]);
    assert_eq!(open(&mut machine, CLIENT, NOW.into()).reason, "drop table_full");
    assert_eq!(machine.rotations[&WEB], 1);
    // A flood of SYNs moves nobody: it goes round in the half that it may have.
    fill(&mut machine, 0, [FULL, EMPTY, FULL, EMPTY]);
    for port in 1..100 {
        let syn = tcp((CLIENT.0, port), VIP, SYN);
        assert_eq!(machine.packet(OUTSIDE, &syn, NOW.into(), 0).reason, "sent to_backend");
    }
    assert_eq!(machine.state_at(Slot { bucket: 0, slot: 0 }).phase, Phase::Established);
    assert_eq!(machine.state_at(Slot { bucket: 0, slot: 2 }).phase, Phase::Established);
    assert_eq!(machine.backends[&1].connections + machine.backends[&2].connections, 99);
}
