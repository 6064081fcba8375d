//! States of backends beyond up, drain and down; how backends answer; and what nobody takes.

use crate::lab::{A, B, CLIENT, End, INSIDE, OUTSIDE, UDP_VIP, VIP, WEB, found, key, machine, tcp, udp};
use crate::machine::{Answers, Machine};
use crate::parse::{ACK, FIN, RST, SYN};
use crate::state::Phase;
use crate::world::State;

fn from_client(machine: &mut Machine, port: u16, flags: u8) -> &'static str {
    machine.packet(OUTSIDE, &tcp((CLIENT.0, port), VIP, flags), 5, 0).reason
}

fn from(machine: &mut Machine, backend: End, port: u16, flags: u8) -> &'static str {
    machine.packet(INSIDE, &tcp(backend, (CLIENT.0, port), flags), 5, 0).reason
}

fn answers(machine: &Machine, backend: u16) -> (u32, u32) {
    let Answers { unanswered, refused } = machine.answers.get(&backend).copied().unwrap_or_default();
    (unanswered, refused)
}

fn set(machine: &mut Machine, backend: u16, state: State) {
    machine.world.backends.get_mut(&backend).expect("it is there").state = state;
}

#[test]
fn syns_are_counted_until_one_is_answered() {
    let mut machine = machine();
    set(&mut machine, 2, State::Down);
    for (port, flags, expected) in
        [(1, SYN, 1), (1, SYN, 1), (2, SYN, 2), (3, ACK, 2), (4, SYN | FIN, 2), (5, SYN | ACK, 2)]
    {
        from_client(&mut machine, port, flags);
        assert_eq!(answers(&machine, 1), (expected, 0), "{port} {flags}");
    }
    from(&mut machine, A, 1, RST | ACK);
    assert_eq!(answers(&machine, 1), (2, 1));
    from(&mut machine, A, 3, RST);
    from(&mut machine, A, 2, RST | SYN | ACK);
    assert_eq!(answers(&machine, 1), (2, 1));
    from(&mut machine, A, 4, SYN | ACK);
    assert_eq!(answers(&machine, 1), (0, 0));
    from_client(&mut machine, 1, SYN);
    assert_eq!(answers(&machine, 1), (1, 0), "in the place of a closed one");
    from(&mut machine, A, 4, SYN | ACK);
    assert_eq!(answers(&machine, 1), (0, 0));
    from_client(&mut machine, 6, SYN);
    from_client(&mut machine, 4, ACK);
    from(&mut machine, A, 4, SYN | ACK);
    from(&mut machine, A, 4, RST | ACK);
    assert_eq!(answers(&machine, 1), (1, 0), "of a connection that was confirmed");
}

#[test]
fn a_backend_in_reset_has_no_connections_but_translates() {
    let mut machine = machine();
    from_client(&mut machine, 1, SYN);
    from(&mut machine, A, 1, SYN | ACK);
    from_client(&mut machine, 1, ACK);
    set(&mut machine, 1, State::Reset);
    assert_eq!(from_client(&mut machine, 1, RST), "drop rst_unknown");
    assert_eq!(from(&mut machine, A, 1, ACK), "sent to_client");
    assert_eq!(from_client(&mut machine, 1, ACK), "sent to_backend");
    let state = found(&machine, key((CLIENT.0, 1), WEB)).expect("it was replaced");
    assert_eq!((state.backend, state.phase), (2, Phase::Unconfirmed));
    assert_eq!(from(&mut machine, A, 1, ACK), "pass no_connection");
    assert_eq!(from(&mut machine, B, 1, RST), "sent to_client");
    assert_eq!((answers(&machine, 1), answers(&machine, 2)), ((0, 0), (0, 0)));
}

#[test]
fn what_nobody_takes_is_dropped_or_the_kernels() {
    let mut machine = machine();
    for (backend, state) in [(1, State::Reset), (2, State::Disabled), (3, State::Reset)] {
        set(&mut machine, backend, state);
    }
    let datagram = udp(CLIENT, UDP_VIP);
    assert_eq!(from_client(&mut machine, 1, SYN), "drop no_backend");
    assert_eq!(machine.packet(OUTSIDE, &datagram, 5, 0).reason, "drop no_backend");
    machine.world.services.values_mut().for_each(|service| service.pass_empty = true);
    assert_eq!(from_client(&mut machine, 1, SYN), "pass no_backend");
    assert_eq!(from_client(&mut machine, 1, RST), "drop rst_unknown");
    let outcome = machine.packet(OUTSIDE, &datagram, 5, 0);
    assert_eq!((outcome.reason, outcome.frame), ("pass no_backend", datagram));
    machine.world.services.values_mut().for_each(|service| service.ring.clear());
    assert_eq!(from_client(&mut machine, 1, ACK), "pass no_backend");
}
