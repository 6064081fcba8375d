//! Records of clients.

use std::net::Ipv4Addr;

use crate::lab::{A, CLIENT, INSIDE, OUTSIDE, VIP, WEB, enter, found, key, machine, open, tcp};
use crate::machine::{Machine, Record};
use crate::parse::{ACK, FIN, RST, SYN};
use crate::state::{FREE, Phase};
use crate::world::State;

const STICKY: u32 = 100;
const WHO: (Ipv4Addr, u16) = (CLIENT.0, WEB);

fn sticky() -> Machine {
    let mut machine = machine();
    machine.world.services.get_mut(&WEB).unwrap().sticky = STICKY;
    for index in [1, 2] {
        machine.world.backends.get_mut(&index).unwrap().sticky = true;
    }
    machine
}

fn record(backend: u16, last: u32) -> Record {
    Record { backend, last }
}

/// The backend that a new connection of the client gets; the next in turn would be 1.
fn chosen(machine: &mut Machine, now: u32) -> u16 {
    machine.rotations.insert(WEB, 0);
    let client = (CLIENT.0, 7);
    open(machine, client, now);
    let at = machine.look_up(key(client, WEB)).expect("it is sent");
    let backend = machine.state_at(at).backend;
    machine.swap(at, FREE);
    backend
}

#[test]
fn a_record_that_holds_decides() {
    let mut machine = sticky();
    machine.affinity.insert(WHO, record(2, 1000));
    assert_eq!(chosen(&mut machine, 1000 + STICKY), 2);
    assert_eq!(machine.rotations[&WEB], 0, "the rotation is not used up");
    assert_eq!(chosen(&mut machine, 990), 2, "a record from the future is in time");
    assert_eq!(chosen(&mut machine, 1001 + STICKY), 1);
    assert_eq!(machine.affinity[&WHO], record(2, 1000), "one that is not in time is left alone");
    machine.affinity.insert(WHO, record(2, 0xffff_fff0));
    assert_eq!(chosen(&mut machine, 5), 2, "the clock wraps");
    machine.world.services.get_mut(&WEB).unwrap().sticky = 0;
    assert_eq!(chosen(&mut machine, 5), 1, "nobody asks for it");
}

#[test]
fn a_record_of_a_backend_that_takes_nobody_is_removed() {
    for change in [State::Drain, State::Down, State::Reset, State::Disabled] {
        let mut machine = sticky();
        machine.affinity.insert(WHO, record(2, 1000));
        machine.world.backends.get_mut(&2).unwrap().state = change;
        assert_eq!(chosen(&mut machine, 1101), 1);
        assert!(machine.affinity.contains_key(&WHO));
        assert_eq!(chosen(&mut machine, 1100), 1);
        assert!(machine.affinity.is_empty());
    }
    let mut machine = sticky();
    machine.affinity.insert(WHO, record(3, 1000));
    assert_eq!(chosen(&mut machine, 1000), 1);
    assert!(machine.affinity.is_empty(), "of another service");
}

#[test]
fn confirmation_makes_or_renews_a_record() {
    for (flags, backend_closed) in [(ACK, false), (ACK | FIN, false), (ACK | FIN, true)] {
        for (before, after) in [
            (None, record(1, 500)),
            (Some(record(2, 450)), record(2, 500)),
            (Some(record(2, 399)), record(1, 500)),
            (Some(record(3, 450)), record(1, 500)),
        ] {
            let mut machine = sticky();
            let at = enter(&mut machine, key(CLIENT, WEB), 1, Phase::Answered, 490);
            machine.swap(at, crate::state::State { backend_closed, ..machine.state_at(at) });
            machine.affinity.extend(before.map(|record| (WHO, record)));
            machine.packet(OUTSIDE, &tcp(CLIENT, VIP, flags), 500, 0);
            assert_eq!(machine.affinity.get(&WHO), Some(&after), "{before:?}");
        }
    }
}

#[test]
fn only_confirmed_connections_prolong_a_record() {
    let ended = |phase, flags| {
        let mut machine = sticky();
        enter(&mut machine, key(CLIENT, WEB), 1, phase, 490);
        machine.affinity.insert(WHO, record(2, 7));
        machine.packet(INSIDE, &tcp(A, CLIENT, flags), 500, 0);
        machine.affinity[&WHO]
    };
    for phase in [Phase::Established, Phase::Closing, Phase::Reviving] {
        assert_eq!(ended(phase, RST), record(2, 500), "out of time, and renewed");
        assert_eq!(ended(phase, ACK), record(2, 7));
    }
    for phase in [Phase::Unconfirmed, Phase::Answered, Phase::Closed] {
        assert_eq!(ended(phase, RST), record(2, 7));
    }
    // An end makes none.
    let mut machine = sticky();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, 490);
    machine.packet(INSIDE, &tcp(A, CLIENT, RST), 500, 0);
    assert!(machine.affinity.is_empty());
    assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.phase), Some(Phase::Closed));
    // Nor does anything that only a client sends.
    let mut machine = sticky();
    for flags in [SYN, ACK, ACK | FIN] {
        machine.packet(OUTSIDE, &tcp(CLIENT, VIP, flags), 500, 0);
    }
    assert!(machine.affinity.is_empty());
}

#[test]
fn a_sweep_keeps_the_records_of_the_living() {
    let swept = |phase, seen, last| {
        let mut machine = sticky();
        enter(&mut machine, key(CLIENT, WEB), 1, phase, seen);
        machine.affinity.insert(WHO, record(2, last));
        machine.sweep(1000);
        machine.affinity[&WHO].last
    };
    for phase in [Phase::Established, Phase::Closing, Phase::Reviving] {
        assert_eq!(swept(phase, 990, 975), 1000);
        assert_eq!(swept(phase, 990, 976), 976, "a quarter has not passed");
        assert_eq!(swept(phase, 990, 1), 1000, "out of time");
        assert_eq!(swept(phase, 990, 1010), 1010, "it is newer");
    }
    assert_eq!(swept(Phase::Answered, 990, 900), 900);
    assert_eq!(swept(Phase::Closed, 990, 900), 900);
    assert_eq!(swept(Phase::Closing, 879, 900), 900, "over its timeout");
    let mut machine = sticky();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, 990);
    machine.sweep(1000);
    assert!(machine.affinity.is_empty(), "none is made");
    machine.affinity.insert(WHO, record(2, 900));
    machine.world.backends.get_mut(&1).unwrap().sticky = false;
    machine.sweep(1000);
    assert_eq!(machine.affinity[&WHO].last, 900);
}
