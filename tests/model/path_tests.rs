//! The way of packets through the world: next hops, refusals, lives of connections.

use crate::lab::{
    A, B, BACKEND_MAC, CLIENT, CLIENT_MAC, INSIDE, OUTSIDE, VIP, WEB, enter, found, key, machine, tcp,
    tcp_with,
};
use crate::machine::Machine;
use crate::parse::{ACK, FIN, RST, SYN};
use crate::state::Phase;
use crate::world::{Fib, Sends, State, Verdict};

fn from_client(machine: &mut Machine, flags: u8) -> (Verdict, &'static str) {
    let outcome = machine.packet(OUTSIDE, &tcp(CLIENT, VIP, flags), 5, 0);
    (outcome.verdict, outcome.reason)
}

fn reply(machine: &mut Machine, flags: u8) -> (Verdict, &'static str) {
    let outcome = machine.packet(INSIDE, &tcp(A, CLIENT, flags), 5, 0);
    (outcome.verdict, outcome.reason)
}

fn phase(machine: &Machine) -> Option<Phase> {
    found(machine, key(CLIENT, WEB)).map(|state| state.phase)
}

/// Connected to A; nothing is noted of the way to the client.
fn connected() -> Machine {
    let mut machine = machine();
    enter(&mut machine, key(CLIENT, WEB), 1, Phase::Established, 1);
    machine
}

#[test]
fn the_life_of_a_connection() {
    let mut machine = machine();
    assert_eq!(from_client(&mut machine, SYN), (Verdict::Redirect, "sent to_backend"));
    assert_eq!(phase(&machine), Some(Phase::Unconfirmed));
    assert_eq!(reply(&mut machine, SYN | ACK), (Verdict::Redirect, "sent to_client"));
    assert_eq!(phase(&machine), Some(Phase::Answered));
    from_client(&mut machine, ACK);
    assert_eq!(phase(&machine), Some(Phase::Established));
    from_client(&mut machine, ACK | FIN);
    assert_eq!(phase(&machine), Some(Phase::Closing));
    reply(&mut machine, ACK | FIN);
    assert_eq!(phase(&machine), Some(Phase::Closed));
    // It is still found, by a packet that does not open one; a SYN makes a new one in the same slot.
    let at = machine.look_up(key(CLIENT, WEB));
    from_client(&mut machine, ACK);
    assert_eq!((phase(&machine), machine.rotations[&WEB]), (Some(Phase::Closed), 1));
    from_client(&mut machine, SYN);
    assert_eq!((phase(&machine), machine.rotations[&WEB]), (Some(Phase::Unconfirmed), 2));
    assert_eq!(machine.look_up(key(CLIENT, WEB)), at);
    assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.backend), Some(2));
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "pass no_connection"));
    assert_eq!(machine.backends[&2].connections, 1);
}

#[test]
fn new_entries_are_as_documented() {
    let mut machine = machine();
    from_client(&mut machine, ACK);
    let state = found(&machine, key(CLIENT, WEB)).expect("any packet but a RST opens");
    assert_eq!((state.backend, state.phase, state.next_hop, state.seen), (1, Phase::Unconfirmed, 0, 5));
    assert!(!state.udp && !state.counted && !state.expired && !state.client_closed && !state.backend_closed);
    reply(&mut machine, SYN | ACK);
    let noted = |machine: &Machine| found(machine, key(CLIENT, WEB)).map(|state| state.next_hop);
    assert_eq!(noted(&machine), Some(2), "by the first reply");
}

#[test]
fn refusals_change_nothing() {
    let mut machine = machine();
    assert_eq!(from_client(&mut machine, RST | SYN), (Verdict::Drop, "drop rst_unknown"));
    let mut refuse = |frame: &[u8]| machine.packet(OUTSIDE, frame, 5, 0).reason;
    assert_eq!(refuse(&tcp(("127.0.0.1".parse().unwrap(), 9), VIP, SYN)), "drop bad_source");
    assert_eq!(refuse(&tcp(("127.0.0.1".parse().unwrap(), 9), VIP, RST)), "drop rst_unknown");
    assert_eq!(refuse(&tcp_with(CLIENT, VIP, RST, b"", 1)), "drop ttl");
    assert_eq!(refuse(&tcp_with(CLIENT, VIP, SYN, b"", 0)), "drop ttl");
    assert!(machine.rotations.is_empty() && machine.backends.is_empty());
    assert!(machine.connections.iter().flatten().all(|entry| *entry == Default::default()));
}

#[test]
fn entries_whose_backend_is_gone() {
    for change in [0, 1] {
        let mut machine = connected();
        if change == 0 {
            machine.world.backends.remove(&1);
        } else {
            machine.world.backends.get_mut(&1).unwrap().service = 7;
        }
        assert_eq!(from_client(&mut machine, RST), (Verdict::Drop, "drop rst_unknown"));
        assert_eq!(from_client(&mut machine, ACK), (Verdict::Redirect, "sent to_backend"));
        let state = found(&machine, key(CLIENT, WEB)).expect("it is replaced");
        assert_eq!((state.backend, state.phase), (2, Phase::Unconfirmed));
    }
    let mut machine = connected();
    machine.world.backends.get_mut(&1).unwrap().state = State::Down;
    from_client(&mut machine, ACK);
    assert_eq!(machine.backends[&1].to_backend.0, 1);
    from_client(&mut machine, SYN);
    assert_eq!(machine.backends[&2].to_backend.0, 1);
    machine.world.backends.get_mut(&2).unwrap().state = State::Drain;
    assert_eq!(from_client(&mut machine, SYN), (Verdict::Drop, "drop no_backend"));
    machine.world.services.remove(&WEB);
    machine.world.origins.insert((B.0, B.1, 6), vec![(WEB, 2)]);
    assert_eq!(machine.packet(INSIDE, &tcp(B, CLIENT, ACK), 5, 0).reason, "error tables");
}

#[test]
fn ways_to_a_backend() {
    let mut machine = connected();
    let mut with = |change: fn(&mut crate::world::NextHop)| {
        let before = machine.world.next_hops[&1].clone();
        change(machine.world.next_hops.get_mut(&1).unwrap());
        let outcome = from_client(&mut machine, ACK);
        machine.world.next_hops.insert(1, before);
        outcome
    };
    assert_eq!(with(|_| ()), (Verdict::Redirect, "sent to_backend"));
    assert_eq!(with(|row| row.interface = OUTSIDE), (Verdict::Tx, "sent to_backend"));
    assert_eq!(with(|row| row.valid = false), (Verdict::Pass, "stack neighbour_unknown"));
    assert_eq!(with(|row| row.sends.no_redirect = true), (Verdict::Pass, "stack to_backend"));
    assert_eq!(with(|row| row.sends.no_tx = true), (Verdict::Redirect, "sent to_backend"));
    assert_eq!(
        with(|row| (row.interface, row.sends.no_tx) = (OUTSIDE, true)),
        (Verdict::Redirect, "sent to_backend")
    );
    assert_eq!(
        with(|row| (row.interface, row.sends.no_redirect) = (OUTSIDE, true)),
        (Verdict::Tx, "sent to_backend")
    );
    let none = Sends { no_tx: true, no_redirect: true };
    let mut one_arm = machine.clone();
    one_arm.world.next_hops.get_mut(&1).unwrap().sends = none;
    one_arm.world.next_hops.get_mut(&1).unwrap().interface = OUTSIDE;
    assert_eq!(from_client(&mut one_arm, ACK), (Verdict::Pass, "stack to_backend"));
    machine.world.next_hops.remove(&1);
    assert_eq!(from_client(&mut machine, ACK), (Verdict::Pass, "stack neighbour_unknown"));
}

#[test]
fn checks_of_a_reply_and_their_order() {
    let mut machine = connected();
    let mut fragment = tcp(A, CLIENT, ACK);
    fragment[20] = 0x20;
    let mut last_hop = tcp_with(A, CLIENT, ACK, b"", 1);
    assert_eq!(machine.packet(OUTSIDE, &fragment, 5, 0).reason, "pass wrong_interface");
    assert_eq!(machine.packet(INSIDE, &fragment, 5, 0).reason, "drop fragment");
    assert_eq!(machine.packet(INSIDE, &last_hop, 5, 0).reason, "drop ttl");
    last_hop[20] = 0x20;
    assert_eq!(machine.packet(INSIDE, &last_hop, 5, 0).reason, "drop fragment");
    assert_eq!(found(&machine, key(CLIENT, WEB)).map(|state| state.seen), Some(1), "nothing was seen");
    // The interface is known before the MAC is.
    machine.world.next_hops.get_mut(&1).unwrap().valid = false;
    assert_eq!(reply(&mut machine, ACK).1, "sent to_client");
    assert_eq!(machine.packet(INSIDE, &tcp(B, CLIENT, ACK), 5, 0).reason, "pass no_connection");
}

#[test]
fn the_first_pair_whose_backend_is_named_takes_the_reply() {
    let mut machine = connected();
    machine.world.origins.insert((A.0, A.1, 6), vec![(7, 9), (WEB, 2), (WEB, 1)]);
    assert_eq!(reply(&mut machine, ACK), (Verdict::Redirect, "sent to_client"));
    assert_eq!(machine.backends[&1].to_client.0, 1);
}

fn noted(machine: &Machine) -> u16 {
    found(machine, key(CLIENT, WEB)).map(|state| state.next_hop).expect("the entry is there")
}

#[test]
fn ways_to_a_client() {
    // The FIB leads to a row, which is noted, and used from then on.
    let mut machine = connected();
    assert_eq!(reply(&mut machine, ACK), (Verdict::Redirect, "sent to_client"));
    assert_eq!(noted(&machine), 2);
    machine.world.default_route = Fib::Failed;
    assert_eq!(reply(&mut machine, ACK), (Verdict::Redirect, "sent to_client"));
    machine.world.next_hops.get_mut(&2).unwrap().sends.no_redirect = true;
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack to_client"));
    // The row is not valid any more: the FIB is asked.
    machine.world.next_hops.get_mut(&2).unwrap().valid = false;
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack route_by_kernel"));
    machine.world.default_route = Fib::NoNeighbour;
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack neighbour_unknown"));
    assert_eq!(noted(&machine), 2, "what is noted stays");
}

#[test]
fn ways_to_a_client_that_only_the_fib_knows() {
    let mut machine = connected();
    machine.world.neighbours.clear();
    let mtu = 60;
    let found = Fib::Found { interface: OUTSIDE, mtu, destination: CLIENT_MAC, source: BACKEND_MAC };
    machine.world.routes.insert(CLIENT.0, found);
    machine.world.default_route = Fib::Failed;
    let outcome = machine.packet(INSIDE, &tcp(A, CLIENT, ACK), 5, 0);
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Redirect, "sent to_client"));
    assert_eq!(outcome.frame[..12], [CLIENT_MAC, BACKEND_MAC].concat());
    assert_eq!(noted(&machine), 0);
    let large = tcp_with(A, CLIENT, ACK, &[0; 30], 64);
    assert_eq!(machine.packet(INSIDE, &large, 5, 0).reason, "drop too_big");
    machine.world.egresses.insert(OUTSIDE, Sends { no_tx: false, no_redirect: true });
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack to_client"));
    machine.world.egresses.remove(&OUTSIDE);
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack to_client"));
}

#[test]
fn index_0_is_none() {
    let mut machine = connected();
    let row = machine.world.next_hops[&2].clone();
    machine.world.next_hops.insert(0, row);
    machine.world.default_route = Fib::Failed;
    assert_eq!(reply(&mut machine, ACK), (Verdict::Pass, "stack route_by_kernel"));
    machine.world.backends.get_mut(&1).unwrap().next_hop = 0;
    assert_eq!(from_client(&mut machine, ACK), (Verdict::Pass, "stack neighbour_unknown"));
}
