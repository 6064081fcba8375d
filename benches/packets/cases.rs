//! The list of what is measured.

use xdp_lb::dataplane::Profile;
use xdp_lb::model::Scheduler;

use crate::Effort;
use crate::case::{Aim, Case, Kind};
use crate::scene::{Fill, Spec};
use crate::wrapper::Draw;

const TO_BACKEND: &str = "sent to_backend";
const TO_CLIENT: &str = "sent to_client";

const SMALL: usize = 64;
const LARGE: usize = 1500;

/// Tables for what is compared with each other: about as large as the second-level cache of a CPU.
const MIDDLE: u32 = 100_000;

/// Of new connections in such a table in one round: they fill less than a tenth of it.
const FEW: u32 = 30_000;

pub fn all(effort: Effort) -> Vec<Case> {
    let mut cases = established(effort);
    cases.extend(new_connections(effort));
    cases.extend(floods(effort));
    cases.extend(schedulers());
    cases.extend(sticky());
    cases.extend(profiles(effort));
    cases.extend(blind(effort));
    cases
}

/// Hits anywhere in tables that hold as many connections as they are made for.
fn established(effort: Effort) -> Vec<Case> {
    let aims = [(1, "1", 30.0), (10_000, "10k", 70.0), (100_000, "100k", 140.0), (1_000_000, "1M", 190.0)];
    let mut cases = Vec::new();
    for (connections, text, aim) in aims.into_iter().filter(|(connections, ..)| *connections <= effort.most) {
        let spec = Spec::new(connections, Fill::Confirmed(connections));
        let case = |name: String, kind, reason| {
            Case::new(name, spec, kind, effort.repeats, reason).draw(Draw::Random(connections))
        };
        let forward = format!("forward, {text} connections");
        cases.push(
            case(forward.clone(), Kind::Data(SMALL, false), TO_BACKEND)
                .aim(Aim::Net(aim))
                .plot("forward", connections),
        );
        cases.push(
            case(format!("reply, {text} connections"), Kind::Reply(SMALL), TO_CLIENT)
                .aim(Aim::Times(1.3, forward))
                .plot("reply", connections),
        );
    }
    cases
}

fn new_connections(effort: Effort) -> Vec<Case> {
    let empty = Spec::new(effort.most, Fill::Empty);
    let middle = Spec::new(MIDDLE, Fill::Empty);
    let full = Spec { backends: 1, ..Spec::new(MIDDLE, Fill::Full) };
    let new = |name, spec, kind, packets| Case::new(name, spec, kind, packets, TO_BACKEND).fresh().opens();
    vec![
        new("new, empty table", empty, Kind::Syn, effort.repeats).aim(Aim::Net(230.0)),
        new("new, empty table for 100k", middle, Kind::Syn, FEW),
        Case::new("new, table full", full, Kind::Syn, effort.repeats, "drop table_full"),
        Case::new("answer (SYN-ACK)", middle, Kind::SynAck, FEW / 10, TO_CLIENT).fresh().after(&[Kind::Syn]),
        Case::new("confirm (ACK)", middle, Kind::Ack, FEW / 10, TO_BACKEND)
            .fresh()
            .after(&[Kind::Syn, Kind::SynAck]),
        Case::new("no service", empty, Kind::Elsewhere, effort.repeats, "pass no_service")
            .aim(Aim::Net(12.0)),
        Case::new("TTL 1", empty, Kind::Dying, effort.repeats, "drop ttl"),
    ]
}

/// Into a table that holds as many unconfirmed connections as it may: each takes another one's place.
fn floods(effort: Effort) -> Vec<Case> {
    let flooded = Spec::new(effort.most, Fill::Flooded);
    let flood = |name, kind| Case::new(name, flooded, kind, effort.repeats, TO_BACKEND).opens();
    vec![
        flood("flood of SYNs", Kind::Syn).aim(Aim::Net(230.0)),
        flood("flood of ACKs", Kind::Ack),
        flood("flood of UDP", Kind::Udp),
        Case::new("flood of RSTs", flooded, Kind::Rst, effort.repeats, "drop rst_unknown"),
    ]
}

fn schedulers() -> Vec<Case> {
    let of = |name: &str, scheduler| {
        let spec = Spec { backends: 64, scheduler, ..Spec::new(MIDDLE, Fill::Empty) };
        Case::new(format!("new, {name}, 64 backends"), spec, Kind::Syn, FEW, TO_BACKEND).fresh().opens()
    };
    vec![
        of("round-robin", Scheduler::RoundRobin),
        of("weighted-round-robin", Scheduler::WeightedRoundRobin),
        of("ip-hash", Scheduler::IpHash),
        of("maglev", Scheduler::Maglev),
        of("least-conn", Scheduler::LeastConn),
    ]
}

fn sticky() -> Vec<Case> {
    const CLIENTS: u32 = 10_000;
    let empty = Spec { sticky: true, ..Spec::new(MIDDLE, Fill::Empty) };
    let known = Spec { sticky: true, ..Spec::new(MIDDLE, Fill::Confirmed(CLIENTS)) };
    vec![
        Case::new("forward, sticky, 10k connections", known, Kind::Data(SMALL, false), FEW, TO_BACKEND)
            .draw(Draw::Random(CLIENTS)),
        Case::new("new, sticky, unknown client", empty, Kind::Syn, FEW, TO_BACKEND).fresh().opens(),
        Case::new("new, sticky, known client", known, Kind::Syn, FEW, TO_BACKEND)
            .draw(Draw::Walk(CLIENTS))
            .opens(),
        Case::new("confirm (ACK), sticky", empty, Kind::Ack, FEW / 10, TO_BACKEND)
            .fresh()
            .after(&[Kind::Syn, Kind::SynAck]),
    ]
}

/// What other profiles of the program take for the packets of an established connection.
fn profiles(effort: Effort) -> Vec<Case> {
    const CLIENTS: u32 = 10_000;
    let spec = Spec::new(CLIENTS, Fill::Confirmed(CLIENTS));
    let case = |name: &str, kind, reason, profile| {
        Case::new(name, spec, kind, effort.repeats, reason).draw(Draw::Random(CLIENTS)).profile(profile)
    };
    let of_virtual =
        |name, length, partial| case(name, Kind::Data(length, partial), TO_BACKEND, Profile::NATIVE_VIRTUAL);
    vec![
        of_virtual("native_virtual, 64 bytes, whole", SMALL, false),
        of_virtual("native_virtual, 64 bytes, partial", SMALL, true),
        of_virtual("native_virtual, 1500 bytes, whole", LARGE, false),
        of_virtual("native_virtual, 1500 bytes, partial", LARGE, true),
        case("native_virtual, reply", Kind::Reply(SMALL), TO_CLIENT, Profile::NATIVE_VIRTUAL),
        case("skb, by the stack, forward", Kind::Data(SMALL, false), "stack to_backend", Profile::SKB),
        case("skb, by the stack, reply", Kind::Reply(SMALL), "stack to_client", Profile::SKB),
    ]
}

/// What a copy takes that cannot be watched: the others of these names look whether somebody watches.
fn blind(effort: Effort) -> Vec<Case> {
    const BLIND: Profile = Profile { blind: true, ..Profile::NATIVE };
    let forward = |text: &str, connections| {
        let spec = Spec::new(connections, Fill::Confirmed(connections));
        Case::new(
            format!("forward, {text}, blind"),
            spec,
            Kind::Data(SMALL, false),
            effort.repeats,
            TO_BACKEND,
        )
        .draw(Draw::Random(connections))
        .profile(BLIND)
    };
    let new = Case::new(
        "new, empty table for 100k, blind",
        Spec::new(MIDDLE, Fill::Empty),
        Kind::Syn,
        FEW,
        TO_BACKEND,
    );
    vec![forward("1 connection", 1), forward("10k connections", 10_000), new.fresh().opens().profile(BLIND)]
}
