//! What a sweep does and counts.

use std::collections::BTreeMap;

use crate::lab::{CLIENT, NAMES, WEB, enter, found, key, machine, place, state};
use crate::machine::{Census, Load};
use crate::state::{FREE, Phase, State};
use crate::sweep::age_in_walk;

const NOW: u32 = 0x0007_2000;
const CLOCK: u16 = 0x2000;

#[test]
fn entries_over_their_timeout_expire_and_stay_so() {
    let mut machine = machine();
    machine.world.backends.get_mut(&1).unwrap().counted = true;
    let key = key(CLIENT, WEB);
    let at = enter(&mut machine, key, 1, Phase::Established, CLOCK - 1200);
    machine.swap(at, State { counted: true, next_hop: 2, ..machine.state_at(at) });
    let before = machine.state_at(at);
    machine.sweep(NOW);
    assert_eq!(machine.state_at(at), before, "exactly its timeout");
    machine.sweep(NOW + 1);
    assert_eq!(machine.state_at(at), State { expired: true, counted: false, ..before });
    assert_eq!(machine.loads[&1], Load { opened: 1, ended: 1 });
    machine.sweep(NOW + 65536 - 1200);
    assert_eq!(machine.state_at(at), State { expired: true, counted: false, ..before }, "the clock wraps");
}

#[test]
fn what_a_sweep_corrects() {
    let mut machine = machine();
    let key = key(CLIENT, WEB);
    let at = enter(&mut machine, key, 1, Phase::Established, CLOCK);
    // A next hop that is not valid, and a backend that is counted now.
    for next_hop in [2, 77] {
        machine.swap(at, State { next_hop, ..machine.state_at(at) });
        machine.world.next_hops.get_mut(&2).unwrap().valid = false;
        machine.sweep(NOW);
        assert_eq!(machine.state_at(at).next_hop, 0);
    }
    machine.world.backends.get_mut(&1).unwrap().counted = true;
    machine.sweep(NOW);
    assert!(machine.state_at(at).counted);
    assert_eq!(machine.loads[&1], Load { opened: 1, ended: 0 });
    // CLAIMED and FREE slots hold no entry.
    let claimed = State { phase: Phase::Claimed, seen: 5, next_hop: 77, ..FREE };
    machine.connections[at.bucket][at.slot].state = claimed.pack();
    assert_eq!(machine.sweep(NOW), Census::default());
    assert_eq!(machine.state_at(at), claimed);
}

#[test]
fn hidden_entries_are_freed() {
    let mut machine = machine();
    let key = key(CLIENT, WEB);
    let slots = machine.slots_of(key);
    assert_ne!(slots[0].bucket, slots[4].bucket);
    let entry = State { counted: true, ..state(&machine, key, 1, Phase::Established, CLOCK) };
    for at in [1, 3, 4, 6] {
        place(&mut machine, key, slots[at], entry);
    }
    // This one does not stand, and hides nothing.
    place(&mut machine, key, slots[0], State { tag: entry.tag ^ 1, counted: false, ..entry });
    let census = machine.sweep(NOW);
    let phases: Vec<Phase> = slots.iter().map(|&at| machine.state_at(at).phase).collect();
    for (at, phase) in phases.into_iter().enumerate() {
        assert_eq!(phase != Phase::Free, at <= 1, "slot {at}");
    }
    assert_eq!(machine.loads[&1], Load { opened: 4, ended: 3 });
    assert_eq!(census.confirmed, 5, "what it frees is counted once more");
    assert_eq!(
        machine.sweep(NOW).confirmed,
        2,
        "the one with a wrong tag is an entry, if one that nobody finds"
    );
    // What has ended is in nobody's way.
    let closed = State { phase: Phase::Closed, counted: false, ..entry };
    place(&mut machine, key, slots[3], closed);
    machine.sweep(NOW);
    assert_eq!(machine.state_at(slots[3]), closed);
    machine.swap(slots[3], FREE);
    // Without one in the first bucket the first of the second stays.
    machine.swap(slots[1], FREE);
    place(&mut machine, key, slots[4], entry);
    place(&mut machine, key, slots[6], entry);
    machine.sweep(NOW);
    assert_eq!(machine.look_up(key), Some(slots[4]));
    assert_eq!(machine.state_at(slots[6]), FREE);
}

#[test]
fn ages_in_the_walk() {
    assert_eq!(age_in_walk(10, 4), 6);
    assert_eq!(age_in_walk(0, 16384), 0);
    assert_eq!(age_in_walk(0, 16385), 49151);
    let mut machine = machine();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, CLOCK + 16384);
    machine.sweep(NOW);
    assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.expired), Some(false));
}

#[test]
fn the_census() {
    let mut machine = machine();
    let mut port = 0;
    let mut put = |service, backend, phase, seen| {
        port += 1;
        let key = key((CLIENT.0, port), service);
        let at = machine.victim(key, CLOCK).expect("there is room");
        let state = state(&machine, key, backend, phase, seen);
        place(&mut machine, key, at, state);
    };
    put(WEB, 1, Phase::Unconfirmed, CLOCK);
    put(WEB, 1, Phase::Answered, CLOCK - 40);
    put(WEB, 2, Phase::Answered, CLOCK - 41);
    put(WEB, 1, Phase::Established, CLOCK);
    put(WEB, 2, Phase::Closing, CLOCK);
    put(WEB, 2, Phase::Reviving, CLOCK - 121);
    put(WEB, 2, Phase::Closed, CLOCK);
    put(NAMES, 3, Phase::Established, CLOCK - 241);
    put(NAMES, 3, Phase::Established, CLOCK - 240);
    let active = BTreeMap::from([(1, 3), (2, 1), (3, 1)]);
    let census = Census { confirmed: 3, unconfirmed: 2, replaceable: 4, active };
    assert_eq!(machine.sweep(NOW), census);
    assert_eq!(machine.sweep(NOW), census, "and it is the same the next time");
}

#[test]
fn an_entry_with_one_candidate_does_not_hide_itself() {
    let mut machine = machine();
    machine.world.buckets = 1;
    machine.connections.truncate(1);
    let key = key(CLIENT, WEB);
    let entry = state(&machine, key, 1, Phase::Established, CLOCK);
    for at in [1, 2] {
        let at = machine.slots_of(key)[at];
        place(&mut machine, key, at, entry);
    }
    machine.sweep(NOW);
    assert_eq!(machine.sweep(NOW).confirmed, 1);
    assert_eq!(machine.look_up(key), Some(machine.slots_of(key)[1]));
}
