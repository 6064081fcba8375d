//! The tables of docs/connections.md, read from there, cell by cell.

use crate::client::{goes_on, is_bad_source};
use crate::lab::{A, CLIENT, DNS, OUTSIDE, UDP_VIP, VIP, WEB, enter, found, key, machine, tcp, udp};
use crate::machine::Machine;
use crate::parse::{ACK, FIN, Packet, RST, SYN, parse};
use crate::state::{FREE, Key, PHASES, Phase, State};
use crate::transitions::{tcp_backend, tcp_client, udp_backend, udp_client};
use crate::world;

const DOCUMENT: &str = include_str!("../../docs/connections.md");
const NAMES: [&str; 8] =
    ["FREE", "UNCONFIRMED", "ANSWERED", "ESTABLISHED", "CLOSING", "REVIVING", "CLOSED", "CLAIMED"];
const NOW: u16 = 700;

fn phase(name: &str) -> Phase {
    PHASES[NAMES.iter().position(|&known| known == name).expect("a phase")]
}

/// The rows of the table that follows a heading: a phase and its cells.
fn table(heading: &str) -> Vec<(Phase, Vec<&'static str>)> {
    let after = &DOCUMENT[DOCUMENT.find(heading).expect("the heading is there") + heading.len()..];
    let rows: Vec<_> = after
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (phase(cells[0]), cells[1..].to_vec())
        })
        .collect();
    assert!(rows.len() >= 3, "{heading}: a table of {} rows", rows.len());
    rows
}

/// What a cell says of a state. Nothing: it does not occur.
fn expected(cell: &str, state: State) -> Option<State> {
    let mut after = state;
    for part in cell.split(", ") {
        match part {
            "does not occur" => return None,
            "-" => (),
            "fresh" => (after.seen, after.expired) = (NOW, false),
            "client closed" => after.client_closed = true,
            "backend closed" => after.backend_closed = true,
            "both closed bits cleared" => (after.client_closed, after.backend_closed) = (false, false),
            name => after.phase = phase(name),
        }
    }
    Some(after)
}

/// Every state of a phase that can matter.
fn states(phase: Phase) -> Vec<State> {
    (0..8)
        .map(|bits| State {
            backend: 2,
            phase,
            client_closed: bits & 1 != 0,
            backend_closed: bits & 2 != 0,
            expired: bits & 4 != 0,
            tag: 0x5a,
            next_hop: 2,
            seen: 123,
            ..FREE
        })
        .collect()
}

fn packet(flags: u8) -> Packet {
    parse(&tcp(CLIENT, VIP, flags)).expect("it is well-formed")
}

#[test]
fn packets_of_a_tcp_client() {
    for (phase, cells) in table("**TCP, packet of the client**") {
        for state in states(phase) {
            for flags in 0..0x20u8 {
                let (syn, rst, fin) = (flags & SYN != 0, flags & RST != 0, flags & FIN != 0);
                let bare = phase == Phase::Answered && flags & ACK == 0;
                let cell = match (syn, rst || bare, fin) {
                    (true, _, _) => cells[0],
                    (_, true, _) => cells[1],
                    (_, _, true) if !state.backend_closed => cells[2],
                    (_, _, true) => cells[3],
                    _ => cells[4],
                };
                let expected = expected(cell, state).expect("everything occurs");
                assert_eq!(tcp_client(state, &packet(flags), NOW), expected, "{state:?}, {flags:#x}");
            }
        }
    }
}

#[test]
fn packets_of_a_tcp_backend() {
    for (phase, cells) in table("**TCP, packet of the backend**") {
        for state in states(phase) {
            for flags in 0..0x20u8 {
                let (syn, rst, fin) = (flags & SYN != 0, flags & RST != 0, flags & FIN != 0);
                let before = match syn && !rst && phase != Phase::Closed {
                    true => State { client_closed: false, backend_closed: false, ..state },
                    false => state,
                };
                let cell = match (rst, fin) {
                    (true, _) => cells[0],
                    (_, true) if !before.client_closed => cells[1],
                    (_, true) => cells[2],
                    _ => cells[3],
                };
                if let Some(expected) = expected(cell, before) {
                    assert_eq!(tcp_backend(state, &packet(flags), NOW), expected, "{state:?}, {flags:#x}");
                }
            }
        }
    }
}

#[test]
fn udp_packets() {
    for (phase, cells) in table("**UDP**") {
        for state in states(phase) {
            assert_eq!(Some(udp_client(state, NOW)), expected(cells[0], state));
            assert_eq!(Some(udp_backend(state, NOW)), expected(cells[1], state));
        }
    }
}

#[test]
fn who_goes_on_with_an_entry() {
    use world::State::{Disabled, Down, Drain, Reset, Up};
    let datagram = parse(&udp(CLIENT, UDP_VIP)).expect("it is well-formed");
    let (syn, ack) = (packet(SYN), packet(ACK));
    let going = |row| {
        let phases = [Phase::Unconfirmed, Phase::Established, Phase::Closing, Phase::Closed];
        [&datagram, &syn, &ack].map(|packet| phases.map(|phase| goes_on(row, phase, packet)))
    };
    let (all, none) = ([true; 4], [false; 4]);
    assert_eq!(going(None), [none, none, none]);
    assert_eq!(going(Some(Up)), [all, [true, true, true, false], all]);
    assert_eq!(going(Some(Drain)), [all, [false, true, false, false], all]);
    assert_eq!(going(Some(Down)), [none, none, all]);
    assert_eq!(going(Some(Disabled)), [none, none, all]);
    assert_eq!(going(Some(Reset)), [none, none, none]);
    // Only a SYN without ACK and RST opens.
    assert!(goes_on(Some(Down), Phase::Closed, &packet(SYN | ACK)));
    assert!(goes_on(Some(Down), Phase::Closed, &packet(SYN | RST)));
    assert!(!goes_on(Some(Down), Phase::Closed, &packet(SYN | FIN)));
}

#[test]
fn sources_that_no_client_can_have() {
    let vip = VIP.0;
    for bad in ["0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.168.1.100"] {
        assert!(is_bad_source(bad.parse().unwrap(), vip), "{bad}");
    }
    for good in ["1.0.0.0", "126.255.255.255", "128.0.0.1", "223.255.255.255", "10.0.0.10"] {
        assert!(!is_bad_source(good.parse().unwrap(), vip), "{good}");
    }
}

/// An answered connection, and a client's packet with some bytes inverted.
fn after_damage(machine: &mut Machine, damaged: &[usize]) -> State {
    let key: Key = key(CLIENT, WEB);
    enter(machine, key, 1, Phase::Answered, 5);
    let mut frame = tcp(CLIENT, VIP, ACK);
    for &at in damaged {
        frame[at] ^= 0xff;
    }
    assert_eq!(machine.packet(OUTSIDE, &frame, 9, 0).reason, "sent to_backend");
    found(machine, key).expect("the entry is there")
}

#[test]
fn what_the_backend_would_discard_confirms_nothing() {
    assert_eq!(after_damage(&mut machine(), &[]).phase, Phase::Established);
    // The IP header's checksum, the TCP checksum, and a byte of payload.
    for damaged in [24, 50, 60] {
        let state = after_damage(&mut machine(), &[damaged]);
        assert_eq!((state.phase, state.seen), (Phase::Answered, 5));
    }
}

#[test]
fn a_partial_checksum_confirms_where_it_may_be() {
    for (possible, phase) in [(true, Phase::Established), (false, Phase::Answered)] {
        let mut machine = machine();
        machine.world.partial_possible = possible;
        let key = key(CLIENT, WEB);
        enter(&mut machine, key, 1, Phase::Answered, 5);
        let mut frame = tcp(CLIENT, VIP, ACK);
        let field = crate::checksum::pseudo_header(&frame, &parse(&frame).unwrap());
        frame[50..52].copy_from_slice(&field.to_be_bytes());
        machine.packet(OUTSIDE, &frame, 9, 0);
        assert_eq!(found(&machine, key).map(|state| state.phase), Some(phase));
    }
}

#[test]
fn only_tcp_clients_need_right_checksums() {
    let mut machine = machine();
    let names = key(CLIENT, crate::lab::NAMES);
    enter(&mut machine, names, 3, Phase::Answered, 5);
    let mut datagram = udp(CLIENT, UDP_VIP);
    datagram[40] ^= 0xff;
    machine.packet(OUTSIDE, &datagram, 9, 0);
    assert_eq!(found(&machine, names).map(|state| state.phase), Some(Phase::Established));

    let web = key(CLIENT, WEB);
    enter(&mut machine, web, 1, Phase::Answered, 5);
    let mut reply = tcp(A, CLIENT, RST);
    reply[50] ^= 0xff;
    machine.packet(crate::lab::INSIDE, &reply, 9, 0);
    assert_eq!(found(&machine, web).map(|state| state.phase), Some(Phase::Closed));
    let mut answer = udp(DNS, CLIENT);
    answer[24] ^= 0xff;
    assert_eq!(machine.packet(crate::lab::INSIDE, &answer, 9, 0).reason, "sent to_client");
}
