//! What becomes of connections, and how long their handshakes take.

use crate::events::bucket_of;
use crate::lab::{A, B, CLIENT, INSIDE, OUTSIDE, VIP, WEB, enter, key, machine, place, state, tcp, tcp_with};
use crate::machine::{Events, Machine};
use crate::parse::{ACK, FIN, RST, SYN};
use crate::state::{Key, Phase, State};
use crate::world;

fn web(port: u16) -> Key {
    key((CLIENT.0, port), WEB)
}

/// Backend 1 is the only one that is up.
fn only_one() -> Machine {
    let mut machine = machine();
    set(&mut machine, 2, world::State::Down);
    machine
}

fn set(machine: &mut Machine, backend: u16, state: world::State) {
    machine.world.backends.get_mut(&backend).expect("it is there").state = state;
}

fn client(machine: &mut Machine, port: u16, flags: u8, now: u32) {
    machine.packet(OUTSIDE, &tcp((CLIENT.0, port), VIP, flags), now, 0);
}

fn backend(machine: &mut Machine, port: u16, flags: u8, now: u32) {
    machine.packet(INSIDE, &tcp(A, (CLIENT.0, port), flags), now, 0);
}

fn establish(machine: &mut Machine, port: u16, now: u32) {
    client(machine, port, SYN, now);
    backend(machine, port, SYN | ACK, now);
    client(machine, port, ACK, now);
}

/// What was counted of the ends of connections; handshakes aside.
fn ends(machine: &Machine, backend: u16) -> Events {
    let events = machine.events.get(&backend).copied().unwrap_or_default();
    Events { handshakes: Default::default(), microseconds: 0, ..events }
}

#[test]
fn each_end_has_its_count() {
    let mut machine = only_one();
    for port in 1..=4 {
        establish(&mut machine, port, 5);
    }
    backend(&mut machine, 1, FIN | ACK, 5);
    client(&mut machine, 1, FIN | ACK, 5);
    client(&mut machine, 2, FIN, 5);
    backend(&mut machine, 2, FIN, 5);
    backend(&mut machine, 3, RST, 5);
    client(&mut machine, 4, RST, 5);
    assert_eq!(ends(&machine, 1), Events { closed: 2, reset: 1, rsts: 1, ..Events::default() });
    // Whatever comes after it.
    for flags in [RST | ACK, FIN, ACK] {
        backend(&mut machine, 1, flags, 5);
    }
    assert_eq!(ends(&machine, 1), Events { closed: 2, reset: 1, rsts: 2, ..Events::default() });
    // A new connection in the place of a closed one ends nothing.
    client(&mut machine, 3, SYN, 5);
    assert_eq!(machine.backends[&1].connections, 5);
    assert_eq!(ends(&machine, 1), Events { closed: 2, reset: 1, rsts: 2, ..Events::default() });
    machine.check_balance();
}

#[test]
fn who_goes_on_after_its_timeout_was_found_is_revived() {
    let mut machine = only_one();
    for port in 1..=4 {
        establish(&mut machine, port, 5);
    }
    machine.sweep(1205);
    assert_eq!(ends(&machine, 1), Events::default(), "exactly its timeout");
    client(&mut machine, 4, ACK, 1206);
    machine.sweep(1206);
    machine.sweep(1206);
    assert_eq!(ends(&machine, 1), Events { expired: 3, ..Events::default() });
    client(&mut machine, 1, ACK, 1206);
    backend(&mut machine, 1, ACK, 1206);
    assert_eq!(ends(&machine, 1), Events { expired: 3, revived: 1, ..Events::default() });
    backend(&mut machine, 2, RST, 1206);
    let events = Events { expired: 3, revived: 2, reset: 1, rsts: 1, ..Events::default() };
    assert_eq!(ends(&machine, 1), events);
    machine.check_balance();
}

#[test]
fn a_closing_connection_that_stays_expired_counts_nothing() {
    let mut machine = only_one();
    establish(&mut machine, 1, 5);
    client(&mut machine, 1, FIN, 5);
    machine.sweep(500);
    let events = Events { expired: 1, ..Events::default() };
    for flags in [ACK, FIN, SYN, RST] {
        client(&mut machine, 1, flags, 500);
        assert_eq!(ends(&machine, 1), events);
    }
    backend(&mut machine, 1, FIN, 500);
    assert_eq!(ends(&machine, 1), Events { revived: 1, closed: 1, ..events });
    machine.check_balance();
}

/// Fills both buckets of a key with entries of others.
fn crowd(machine: &mut Machine, victim: Key, entry: impl Fn(&Machine, Key, usize) -> State) {
    for (n, at) in machine.slots_of(victim).into_iter().enumerate() {
        let other = web(1000 + n as u16);
        let state = entry(machine, other, n);
        place(machine, other, at, state);
        machine.opened(state.backend);
    }
}

#[test]
fn a_slot_that_is_given_away_is_an_end() {
    let unconfirmed = |machine: &Machine, key, n: usize| {
        let phase = if n % 4 < 2 { Phase::Unconfirmed } else { Phase::Established };
        state(machine, key, 2, phase, 100)
    };
    let mut crowded = only_one();
    crowd(&mut crowded, web(1), unconfirmed);
    client(&mut crowded, 1, SYN, 110);
    assert_eq!(ends(&crowded, 2), Events { evicted: 1, ..Events::default() });
    crowded.check_balance();

    // Over its timeout it is expired, though no sweep has found it; found by one it has been counted.
    let mut late = only_one();
    crowd(&mut late, web(1), |machine, key, n| {
        let (phase, seen) = if n == 1 { (Phase::Answered, 1000) } else { (Phase::Established, 2000) };
        state(machine, key, 2, phase, seen)
    });
    client(&mut late, 1, SYN, 2000);
    assert_eq!(ends(&late, 2), Events { expired: 1, ..Events::default() });
    late.check_balance();

    let mut closed = only_one();
    crowd(&mut closed, web(1), |machine, key, n| {
        let phase = if n == 1 { Phase::Closed } else { Phase::Established };
        State { expired: n == 5, ..state(machine, key, 2, phase, 2000) }
    });
    client(&mut closed, 1, SYN, 2000);
    client(&mut closed, 2, SYN, 2000);
    assert_eq!(ends(&closed, 2), Events::default());
}

#[test]
fn who_is_replaced_has_moved() {
    let mut machine = only_one();
    establish(&mut machine, 1, 5);
    set(&mut machine, 1, world::State::Reset);
    set(&mut machine, 2, world::State::Up);
    client(&mut machine, 1, ACK, 5);
    assert_eq!(ends(&machine, 1), Events { moved: 1, ..Events::default() });
    assert_eq!((machine.backends[&1].connections, machine.backends[&2].connections), (1, 1));
    // It has no words with the other one.
    machine.packet(INSIDE, &tcp(B, (CLIENT.0, 1), RST), 5, 0);
    assert_eq!(ends(&machine, 2), Events { reset: 1, rsts: 1, ..Events::default() });
    machine.check_balance();
}

#[test]
fn what_a_sweep_frees_is_evicted() {
    let mut machine = only_one();
    let slots = machine.slots_of(web(1));
    enter(&mut machine, web(1), 1, Phase::Established, 5);
    let twin = state(&machine, web(1), 1, Phase::Established, 5);
    place(&mut machine, web(1), slots[5], twin);
    machine.opened(1);
    machine.opened(1);
    machine.sweep(6);
    assert_eq!(ends(&machine, 1), Events { evicted: 1, ..Events::default() });
    machine.check_balance();
}

#[test]
fn syns_that_are_sent_again() {
    let mut machine = only_one();
    client(&mut machine, 1, SYN, 5);
    client(&mut machine, 1, SYN | ACK, 5);
    client(&mut machine, 1, SYN | RST, 5);
    assert_eq!(ends(&machine, 1), Events::default());
    client(&mut machine, 1, SYN, 5);
    client(&mut machine, 1, SYN | FIN, 5);
    backend(&mut machine, 1, SYN | ACK, 5);
    client(&mut machine, 1, SYN, 5);
    assert_eq!(ends(&machine, 1), Events { syn_retransmits: 3, ..Events::default() });
    client(&mut machine, 1, ACK, 5);
    client(&mut machine, 1, SYN, 5);
    assert_eq!(ends(&machine, 1), Events { syn_retransmits: 3, ..Events::default() }, "it is confirmed");
}

#[test]
fn events_count_whatever_becomes_of_the_packet() {
    let mut machine = only_one();
    let large = |port, flags| tcp_with((CLIENT.0, port), VIP, flags, &[7; 1461], 64);
    for _ in 0..2 {
        assert_eq!(machine.packet(OUTSIDE, &large(1, SYN), 5, 0).reason, "drop too_big");
    }
    let rst = tcp_with(A, (CLIENT.0, 1), RST | ACK, &[7; 1461], 64);
    assert_eq!(machine.packet(INSIDE, &rst, 5, 0).reason, "drop too_big");
    let counters = machine.backends[&1];
    assert_eq!((counters.connections, counters.to_backend), (1, (0, 0)));
    let expected = Events { syn_retransmits: 1, reset: 1, rsts: 1, ..Events::default() };
    assert_eq!(ends(&machine, 1), expected);
    // What is no reply is none.
    machine.packet(OUTSIDE, &tcp(A, (CLIENT.0, 1), RST), 5, 0);
    machine.packet(INSIDE, &tcp_with(A, (CLIENT.0, 1), RST, b"", 1), 5, 0);
    assert_eq!(ends(&machine, 1), expected);
    machine.check_balance();
}

fn measured(machine: &Machine) -> (Vec<(usize, u64)>, u64) {
    let events = machine.events.get(&1).copied().unwrap_or_default();
    let some = events.handshakes.into_iter().enumerate().filter(|(_, count)| *count > 0);
    (some.collect(), events.microseconds)
}

#[test]
fn a_handshake_is_measured_once() {
    let mut machine = only_one();
    machine.micros = 1000;
    client(&mut machine, 1, SYN, 5);
    machine.micros = 1040;
    client(&mut machine, 1, SYN, 5);
    machine.micros = 1065;
    backend(&mut machine, 1, SYN | ACK, 5);
    assert_eq!(measured(&machine), (vec![(1, 1)], 65), "from the first SYN");
    machine.micros = 2000;
    backend(&mut machine, 1, SYN | ACK, 5);
    assert_eq!(measured(&machine), (vec![(1, 1)], 65), "to the first SYN-ACK");
    // A refusal is no handshake; the next SYN begins anew.
    client(&mut machine, 2, SYN, 5);
    backend(&mut machine, 2, RST | ACK, 5);
    machine.micros = 9000;
    client(&mut machine, 2, SYN, 5);
    machine.micros = 9001;
    backend(&mut machine, 2, SYN | ACK, 5);
    assert_eq!(measured(&machine), (vec![(0, 1), (1, 1)], 66));
    // What is no SYN begins nothing.
    client(&mut machine, 3, ACK, 5);
    client(&mut machine, 4, SYN | FIN, 5);
    for port in [3, 4] {
        backend(&mut machine, port, SYN | ACK, 5);
    }
    assert_eq!(measured(&machine).1, 66);
}

#[test]
fn clocks_and_limits() {
    let buckets = [0, 64, 65, 128, 129, 1 << 20, (1 << 20) + 1, u32::MAX].map(bucket_of);
    assert_eq!(buckets, [0, 0, 1, 1, 2, 14, 15, 15]);
    let cases =
        [(5, 4, None), (u32::MAX, 9, Some(10)), (0, 128_000_000, Some(128_000_000)), (0, 128_000_001, None)];
    for (began, ended, took) in cases {
        let mut machine = only_one();
        machine.micros = began;
        client(&mut machine, 1, SYN, 5);
        machine.micros = ended;
        backend(&mut machine, 1, SYN | ACK, 5);
        assert_eq!(measured(&machine).1, took.unwrap_or(0), "{began} to {ended}");
        machine.micros = began;
        backend(&mut machine, 1, SYN | ACK, 5);
        assert_eq!(measured(&machine).1, took.unwrap_or(0), "the row is empty");
    }
}

#[test]
fn the_later_of_two_that_share_a_row_is_measured() {
    let mut machine = only_one();
    let rows: Vec<u16> = (0..=u16::MAX).map(|port| machine.handshake_of(web(port)).0).collect();
    let (first, second) = (0..rows.len())
        .find_map(|n| Some((n, (0..n).find(|before| rows[*before] == rows[n])?)))
        .map(|(n, before)| (before as u16, n as u16))
        .expect("among so many some do");
    client(&mut machine, first, SYN, 5);
    machine.micros = 10;
    client(&mut machine, second, SYN, 5);
    machine.micros = 30;
    backend(&mut machine, first, SYN | ACK, 5);
    assert_eq!(measured(&machine), (vec![], 0));
    backend(&mut machine, second, SYN | ACK, 5);
    assert_eq!(measured(&machine), (vec![(0, 1)], 20));
}

#[test]
fn of_many_handshakes_only_some_are_measured() {
    let mut machine = only_one();
    machine.world.buckets = 1000;
    machine.connections = vec![Default::default(); 1000];
    let handshake = |machine: &mut Machine, port: u16, now: u32| {
        client(machine, port, SYN, now);
        backend(machine, port, SYN | ACK, now);
        measured(machine).0.iter().map(|(_, count)| count).sum::<u64>()
    };
    for port in 1..=256 {
        assert_eq!(handshake(&mut machine, port, 5), u64::from(port));
    }
    assert_eq!(handshake(&mut machine, 257, 5), 256, "too many");
    assert_eq!(handshake(&mut machine, 258, 6), 257, "another unit");
    assert_eq!(handshake(&mut machine, 259, 5), 258, "and another");
}
