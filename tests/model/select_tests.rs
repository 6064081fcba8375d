//! Which backend a new connection goes to, and who is in conflict.

use std::collections::BTreeMap;

use crate::hash::{hash, raw_address, raw_port, scale};
use crate::lab::{A, CLIENT, End, OUTSIDE, VIP, WEB, backend, enter, found, key, machine, open, tcp};
use crate::machine::Machine;
use crate::parse::{SYN, TCP};
use crate::state::Phase;
use crate::world::{Scheduler, State};

fn web(machine: &mut Machine) -> &mut crate::world::Service {
    machine.world.services.get_mut(&WEB).expect("it is there")
}

/// The backend of a new connection, or the reason why there is none.
fn chosen(machine: &mut Machine, client: End) -> Result<u16, &'static str> {
    let reason = open(machine, client, 1).reason;
    found(machine, key(client, WEB)).map(|state| state.backend).ok_or(reason)
}

#[test]
fn rings_are_walked() {
    let mut machine = machine();
    web(&mut machine).ring = vec![1, 1, 2];
    let order: Vec<_> = (1..=6).map(|port| chosen(&mut machine, (CLIENT.0, port)).unwrap()).collect();
    assert_eq!(order, [1, 1, 2, 1, 1, 2]);
    web(&mut machine).scheduler = Scheduler::WeightedRoundRobin;
    assert_eq!(chosen(&mut machine, (CLIENT.0, 7)), Ok(1));
    assert_eq!(machine.rotations, BTreeMap::from([(WEB, 7)]));
}

#[test]
fn hashes_choose_slots() {
    let mut machine = machine();
    let ring: Vec<u16> = (100..100 + 97).collect();
    web(&mut machine).ring = ring.clone();
    for index in &ring {
        machine.world.backends.insert(*index, backend(WEB, A));
    }
    let [_, _, seed0, seed1] = machine.world.key;
    let slot = |word| usize::from(ring[scale((hash(word, seed0, seed1) >> 32) as u32, 97) as usize]);
    let address = raw_address(CLIENT.0);
    for port in 1..20 {
        web(&mut machine).scheduler = Scheduler::IpHash;
        assert_eq!(chosen(&mut machine, (CLIENT.0, port)).map(usize::from), Ok(slot(address)));
        web(&mut machine).scheduler = Scheduler::Maglev;
        let word = address | raw_port(port + 100) << 32;
        assert_eq!(chosen(&mut machine, (CLIENT.0, port + 100)).map(usize::from), Ok(slot(word)));
    }
    assert!(machine.rotations.is_empty());
}

#[test]
fn up_to_eight_more_slots_are_tried() {
    let mut machine = machine();
    machine.world.backends.get_mut(&1).unwrap().state = State::Down;
    web(&mut machine).ring = [[1; 8].as_slice(), &[2, 1]].concat();
    assert_eq!(chosen(&mut machine, (CLIENT.0, 1)), Ok(2));
    web(&mut machine).ring = [[1; 9].as_slice(), &[2, 1, 1, 1]].concat();
    machine.rotations.clear();
    assert_eq!(chosen(&mut machine, (CLIENT.0, 2)), Err("drop no_backend"));
    assert_eq!(machine.rotations[&WEB], 1);
    assert_eq!(chosen(&mut machine, (CLIENT.0, 3)), Ok(2));
    // Round the ring; a row that is not there or of another service is not taken.
    web(&mut machine).ring = vec![2, 9, 3];
    machine.rotations.insert(WEB, 1);
    assert_eq!(chosen(&mut machine, (CLIENT.0, 4)), Ok(2));
    web(&mut machine).ring.clear();
    assert_eq!(chosen(&mut machine, (CLIENT.0, 5)), Err("drop no_backend"));
}

const OTHER: u16 = 7;
const OTHER_VIP: End = (std::net::Ipv4Addr::new(192, 168, 1, 101), 80);

/// Backend 1 is backend 9 of another service too.
fn shared() -> Machine {
    let mut machine = machine();
    let mut service = machine.world.services[&WEB].clone();
    (service.address, service.ring) = (OTHER_VIP.0, vec![9]);
    machine.world.services.insert(OTHER, service);
    machine.world.backends.insert(9, backend(OTHER, A));
    for index in [1, 9] {
        machine.world.backends.get_mut(&index).unwrap().shared = true;
    }
    machine.world.origins.insert((A.0, A.1, TCP), vec![(WEB, 1), (OTHER, 9)]);
    machine
}

#[test]
fn conflicts() {
    let mut machine = shared();
    enter(&mut machine, key(CLIENT, OTHER), 9, Phase::Answered, 1);
    assert_eq!(chosen(&mut machine, CLIENT), Ok(2));
    assert_eq!(
        chosen(&mut machine, (CLIENT.0, 1)),
        Ok(2),
        "after two slots: the other port is in no conflict"
    );
    let mut machine = shared();
    machine.world.backends.get_mut(&2).unwrap().state = State::Down;
    enter(&mut machine, key(CLIENT, OTHER), 9, Phase::Answered, 1);
    assert_eq!(chosen(&mut machine, CLIENT), Err("drop tuple_in_use"));
    // Of a backend that nobody shares nothing is looked up.
    machine.world.backends.get_mut(&1).unwrap().shared = false;
    assert_eq!(chosen(&mut machine, CLIENT), Ok(1));
}

#[test]
fn what_does_not_live_gives_way() {
    for (phase, seen) in [(Phase::Closed, 1000), (Phase::Answered, 1000 - 41)] {
        let mut machine = shared();
        let at = enter(&mut machine, key(CLIENT, OTHER), 9, phase, seen);
        machine.packet(OUTSIDE, &tcp(CLIENT, VIP, SYN), 1000, 0);
        assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.backend), Some(1));
        assert_eq!(found(&machine, key(CLIENT, OTHER)), None);
        assert_eq!(machine.connections[at.bucket][at.slot].key, key(CLIENT, OTHER).pack(), "the label stays");
    }
    // One that names another backend is not asked to.
    let mut machine = shared();
    enter(&mut machine, key(CLIENT, OTHER), 8, Phase::Closed, 1000);
    machine.packet(OUTSIDE, &tcp(CLIENT, VIP, SYN), 1000, 0);
    assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.backend), Some(1));
    assert!(found(&machine, key(CLIENT, OTHER)).is_some());
}
