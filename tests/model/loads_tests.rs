//! What is counted in a load, and who has the least.

use crate::lab::{
    A, CLIENT, INSIDE, OUTSIDE, VIP, WEB, backend, enter, found, key, machine, open, place, state, tcp,
};
use crate::machine::{Load, Machine};
use crate::parse::{ACK, FIN, RST, SYN};
use crate::state::{FREE, Phase, State};
use crate::world::{self, Scheduler};

/// The web service by least connections, with the ring 1, 2.
fn least() -> Machine {
    let mut machine = machine();
    let service = machine.world.services.get_mut(&WEB).unwrap();
    (service.scheduler, service.members) = (Scheduler::LeastConn, vec![1, 2]);
    for index in [1, 2] {
        machine.world.backends.get_mut(&index).unwrap().counted = true;
    }
    machine
}

fn load(machine: &Machine, backend: u16) -> (u64, u64) {
    let load = machine.loads.get(&backend).copied().unwrap_or_default();
    (load.opened, load.ended)
}

fn set_load(machine: &mut Machine, backend: u16, opened: u64, ended: u64) {
    machine.loads.insert(backend, Load { opened, ended });
}

fn chosen(machine: &mut Machine, port: u16, random: u32) -> u16 {
    machine.packet(OUTSIDE, &tcp((CLIENT.0, port), VIP, SYN), 1, random);
    found(machine, key((CLIENT.0, port), WEB)).expect("it is sent").backend
}

#[test]
fn the_counted_bit() {
    let mut machine = least();
    let bit = |machine: &Machine, phase, expired, backend, counted| {
        machine.with_counted(State { backend, phase, expired, counted, ..FREE }).counted
    };
    for counted in [false, true] {
        assert!(bit(&machine, Phase::Unconfirmed, false, 1, counted));
        assert!(bit(&machine, Phase::Reviving, false, 1, counted));
        assert!(!bit(&machine, Phase::Closed, false, 1, counted));
        assert!(!bit(&machine, Phase::Established, true, 1, counted));
        // A backend that is not COUNTED, and one that is not there.
        assert_eq!(bit(&machine, Phase::Established, false, 3, counted), counted);
        assert_eq!(bit(&machine, Phase::Established, false, 99, counted), counted);
        assert!(!bit(&machine, Phase::Established, true, 3, counted));
    }
    // Timeouts do not matter: seen long ago, and live.
    machine.world.timeouts = [0; 16];
    assert!(bit(&machine, Phase::Established, false, 1, false));
}

#[test]
fn a_life_is_counted_once() {
    let mut machine = least();
    open(&mut machine, CLIENT, 1);
    assert_eq!(load(&machine, 1), (1, 0));
    machine.packet(INSIDE, &tcp(A, CLIENT, SYN | ACK), 1, 0);
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, ACK), 2, 0);
    machine.packet(INSIDE, &tcp(A, CLIENT, FIN | ACK), 2, 0);
    assert_eq!(load(&machine, 1), (1, 0));
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, FIN | ACK), 2, 0);
    assert_eq!(load(&machine, 1), (1, 1));
    machine.packet(INSIDE, &tcp(A, CLIENT, RST), 2, 0);
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, ACK), 2, 0);
    assert_eq!(load(&machine, 1), (1, 1));
}

#[test]
fn replacement_moves_the_count() {
    let mut machine = least();
    open(&mut machine, CLIENT, 1);
    machine.world.backends.get_mut(&1).unwrap().state = world::State::Down;
    open(&mut machine, CLIENT, 1);
    assert_eq!((load(&machine, 1), load(&machine, 2)), ((1, 1), (1, 0)));
    // To the same backend: nothing moves.
    let at = machine.look_up(key(CLIENT, WEB)).unwrap();
    machine.swap(at, State { phase: Phase::Answered, ..machine.state_at(at) });
    assert_eq!(load(&machine, 2), (1, 0));
}

#[test]
fn eviction_is_counted_for_both() {
    let mut machine = least();
    machine.world.buckets = 1;
    machine.connections.truncate(1);
    for port in 1..=4 {
        let key = key((CLIENT.0, port), WEB);
        let slot = crate::table::Slot { bucket: 0, slot: usize::from(port - 1) };
        let state = State { counted: true, ..state(&machine, key, 1, Phase::Established, 0) };
        place(&mut machine, key, slot, state);
    }
    assert_eq!(load(&machine, 1), (4, 0));
    // All are over their timeout: one goes, whichever backend takes its place.
    machine.world.services.get_mut(&WEB).unwrap().ring = vec![1];
    machine.world.services.get_mut(&WEB).unwrap().members = vec![1];
    open(&mut machine, (CLIENT.0, 9), 5000);
    assert_eq!(load(&machine, 1), (5, 1));
}

#[test]
fn entries_are_counted_from_their_next_packet_on() {
    let mut machine = least();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, 1);
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, ACK), 1, 0);
    assert_eq!(load(&machine, 1), (1, 0));
    // One whose backend is not COUNTED any more stays counted while it lives.
    machine.world.backends.get_mut(&1).unwrap().counted = false;
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, ACK), 2, 0);
    assert_eq!(load(&machine, 1), (1, 0));
    machine.packet(INSIDE, &tcp(A, CLIENT, RST), 3, 0);
    assert_eq!(load(&machine, 1), (1, 1));
}

#[test]
fn the_least_loaded_member() {
    let mut machine = least();
    set_load(&mut machine, 1, 5, 0);
    set_load(&mut machine, 2, 4, 0);
    assert_eq!(chosen(&mut machine, 1, 0), 2);
    // Now 5 and 5: equals in turn, by the rotation.
    assert_eq!(machine.rotations[&WEB], 1);
    assert_eq!(chosen(&mut machine, 2, 0), 2);
    // By weight: 5/1 against 12/3.
    machine.world.backends.get_mut(&2).unwrap().weight = 3;
    set_load(&mut machine, 2, 12, 0);
    assert_eq!(chosen(&mut machine, 3, 0), 2);
    set_load(&mut machine, 2, 16, 0);
    assert_eq!(chosen(&mut machine, 4, 0), 1);
    // Below 0 counts as 0.
    set_load(&mut machine, 1, 3, 9);
    set_load(&mut machine, 2, 0, 0);
    machine.rotations.insert(WEB, 1);
    assert_eq!(chosen(&mut machine, 5, 0), 2);
    set_load(&mut machine, 2, 1, 0);
    machine.rotations.insert(WEB, 1);
    assert_eq!(chosen(&mut machine, 6, 0), 1);
    // Who is not up takes no part.
    machine.world.backends.get_mut(&2).unwrap().state = world::State::Drain;
    set_load(&mut machine, 1, 100, 0);
    assert_eq!(chosen(&mut machine, 7, 0), 1);
}

#[test]
fn equals_are_looked_for_in_256_slots() {
    let mut machine = least();
    let service = machine.world.services.get_mut(&WEB).unwrap();
    machine.world.backends.insert(4, backend(WEB, A));
    service.members = vec![4, 2, 1];
    service.ring = [vec![2; 256], vec![1, 4]].concat();
    set_load(&mut machine, 2, 9, 0);
    assert_eq!(chosen(&mut machine, 1, 0), 4, "neither is within reach: the first member");
    set_load(&mut machine, 4, 0, 0);
    assert_eq!(chosen(&mut machine, 2, 0), 1, "from the second slot on one is");
}

#[test]
fn equals_are_looked_for_among_those_that_are_up() {
    let mut machine = least();
    machine.world.backends.insert(4, backend(WEB, A));
    machine.world.backends.get_mut(&4).unwrap().state = world::State::Down;
    let service = machine.world.services.get_mut(&WEB).unwrap();
    (service.members, service.ring) = (vec![1, 2], vec![4, 2, 1]);
    assert_eq!(chosen(&mut machine, 1, 0), 2);
}

#[test]
fn two_slots_are_compared_without_members() {
    let mut machine = least();
    machine.world.services.get_mut(&WEB).unwrap().members.clear();
    set_load(&mut machine, 1, 5, 0);
    set_load(&mut machine, 2, 3, 0);
    assert_eq!(chosen(&mut machine, 1, u32::MAX), 2);
    machine.rotations.insert(WEB, 0);
    assert_eq!(chosen(&mut machine, 2, 0), 1, "twice the same slot");
    set_load(&mut machine, 2, 6, 0);
    machine.rotations.insert(WEB, 0);
    assert_eq!(chosen(&mut machine, 3, u32::MAX), 1, "only if it has less");
    machine.world.backends.get_mut(&1).unwrap().state = world::State::Down;
    machine.rotations.insert(WEB, 0);
    assert_eq!(chosen(&mut machine, 4, u32::MAX), 2);
    // Both picks are down: the ring is walked.
    machine.rotations.insert(WEB, 0);
    assert_eq!(chosen(&mut machine, 5, 0), 2);
}
