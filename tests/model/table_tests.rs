//! Words, ages, ranks and look-up.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use crate::hash::{hash, scale};
use crate::lab::{CLIENT, WEB, enter, found, key, machine, place, state};
use crate::state::{FREE, Key, Phase, State};
use crate::table::{Rank, Slot, age};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn words_survive(word in any::<u64>()) {
        prop_assert_eq!(State::unpack(word).pack(), word);
        prop_assert_eq!(Key::unpack(word).pack(), word);
    }
}

#[test]
fn words_are_as_documented() {
    let key = Key { client: Ipv4Addr::new(1, 2, 3, 4), port: 0x0506, service: 0x0708 };
    assert_eq!(key.pack(), 0x0708_0605_0403_0201);
    let state = State { backend: 0x1122, phase: Phase::Reviving, tag: 0x33, next_hop: 0x4455, ..FREE };
    assert_eq!(State { seen: 0x6677, ..state }.pack(), 0x6677_4455_3305_1122);
    let bits = |state: State| state.pack() >> 16;
    assert_eq!(bits(State { counted: true, ..FREE }), 0x08);
    assert_eq!(bits(State { client_closed: true, ..FREE }), 0x10);
    assert_eq!(bits(State { backend_closed: true, ..FREE }), 0x20);
    assert_eq!(bits(State { expired: true, ..FREE }), 0x40);
    assert_eq!(bits(State { udp: true, ..FREE }), 0x80);
    assert_eq!(FREE.pack(), 0);
}

#[test]
fn the_hash_is_that_of_the_header() {
    // By hand: with a zero seed a zero word stays zero, and 1 is multiplied twice.
    assert_eq!(hash(0, 0, 0), 0);
    let once = 0xff51_afd7_ed55_8ccd_u64;
    let twice = (once ^ once >> 32).wrapping_add(5).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    assert_eq!(hash(1 ^ 9, 9, 5), twice ^ twice >> 32);
    assert_eq!((scale(0, 10), scale(u32::MAX, 10), scale(1 << 31, 10)), (0, 9, 5));
}

#[test]
fn ages() {
    assert_eq!(age(10, 4), 6);
    assert_eq!(age(4, 65534), 6);
    assert_eq!(age(4, 5), 0);
    assert_eq!(age(0, 16), 0);
    assert_eq!(age(0, 17), 65519);
}

#[test]
fn ranks() {
    let machine = machine();
    let rank = |phase, seen| machine.rank(State { phase, seen, ..FREE }, 1000);
    assert_eq!(rank(Phase::Free, 1000), Rank::Free);
    assert_eq!(rank(Phase::Unconfirmed, 960), Rank::Unconfirmed);
    assert_eq!(rank(Phase::Answered, 959), Rank::Expired);
    assert_eq!(rank(Phase::Established, 0), Rank::Kept);
    assert_eq!(rank(Phase::Closing, 880), Rank::Kept);
    assert_eq!(rank(Phase::Reviving, 879), Rank::Expired);
    assert_eq!(rank(Phase::Closed, 1000), Rank::Closed);
    assert_eq!(rank(Phase::Claimed, 980), Rank::Kept);
    assert_eq!(rank(Phase::Claimed, 979), Rank::Expired);
    let udp = State { phase: Phase::Established, seen: 759, udp: true, ..FREE };
    assert_eq!(machine.rank(udp, 1000), Rank::Expired);
    assert_eq!(machine.rank(State { seen: 760, ..udp }, 1000), Rank::Kept);
    let expired = State { phase: Phase::Closed, seen: 1000, expired: true, ..FREE };
    assert_eq!(machine.rank(expired, 1000), Rank::Expired);
}

#[test]
fn a_look_up_takes_the_first_that_stands() {
    let mut machine = machine();
    let key = key(CLIENT, WEB);
    let slots = machine.slots_of(key);
    assert_eq!(slots.len(), 8);
    assert_eq!(found(&machine, key), None);
    let entry = state(&machine, key, 1, Phase::Established, 5);
    place(&mut machine, key, slots[6], entry);
    assert_eq!(machine.look_up(key), Some(slots[6]));
    // None of these stands.
    place(&mut machine, key, slots[0], State { tag: entry.tag ^ 1, ..entry });
    place(&mut machine, key, slots[1], State { phase: Phase::Claimed, ..entry });
    place(&mut machine, key, slots[2], State { phase: Phase::Free, ..entry });
    place(&mut machine, Key { port: 1, ..key }, slots[3], entry);
    assert_eq!(machine.look_up(key), Some(slots[6]));
    // An expired one does.
    place(&mut machine, key, slots[5], State { expired: true, ..entry });
    assert_eq!(machine.look_up(key), Some(slots[5]));
}

#[test]
fn candidates_are_the_halves_of_the_hash() {
    let machine = machine();
    let key = key(CLIENT, WEB);
    let word = hash(key.pack(), machine.world.key[0], machine.world.key[1]);
    let candidates = machine.candidates(key);
    assert_eq!(candidates.first as u64, ((word >> 32) * 64) >> 32);
    assert_eq!(candidates.second as u64, ((word & 0xffff_ffff) * 64) >> 32);
    assert_eq!(u64::from(candidates.tag), word >> 5 & 0xff);
}

#[test]
fn an_entry_is_where_it_was_put() {
    let mut machine = machine();
    let key = key(CLIENT, WEB);
    let at = enter(&mut machine, key, 1, Phase::Unconfirmed, 5);
    assert_eq!(at, Slot { bucket: machine.candidates(key).first, slot: 0 });
    assert_eq!(machine.connections[at.bucket][0].key, key.pack());
}
