//! What must hold whatever comes: nothing panics, every frame is counted once, loads agree with the table.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::lab::{A, B, CLIENT, DNS, End, INSIDE, OUTSIDE, UDP_VIP, VIP, WEB, machine, tcp, udp};
use crate::machine::{Entry, Machine};
use crate::state::State;
use crate::world::{self, Scheduler, Verdict};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    /// From a client, or from a backend to it; some bytes of the frame are changed, or its end is cut off.
    Frame {
        port: u16,
        way: u8,
        flags: u8,
        changes: Vec<(usize, u8)>,
        cut: usize,
    },
    Wait(u32),
    Sweep,
    Backend(u16, world::State),
}

fn event() -> impl Strategy<Value = Event> {
    let change = (0..64usize, any::<u8>());
    let changes = prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(change, 1..4)];
    let cut = prop_oneof![9 => Just(0usize), 1 => 0..64usize];
    let state = prop_oneof![
        Just(world::State::Up),
        Just(world::State::Drain),
        Just(world::State::Down),
        Just(world::State::Reset)
    ];
    prop_oneof![
        20 => (1..12u16, 0..5u8, 0..0x20u8, changes, cut)
            .prop_map(|(port, way, flags, changes, cut)| Event::Frame { port, way, flags, changes, cut }),
        3 => (0..300u32).prop_map(Event::Wait),
        1 => Just(Event::Sweep),
        1 => (1..4u16, state).prop_map(|(backend, state)| Event::Backend(backend, state)),
    ]
}

fn frame(port: u16, way: u8, flags: u8) -> (u32, Vec<u8>) {
    let client: End = (CLIENT.0, port);
    match way {
        0 => (OUTSIDE, tcp(client, VIP, flags)),
        1 => (INSIDE, tcp(A, client, flags)),
        2 => (INSIDE, tcp(B, client, flags)),
        3 => (OUTSIDE, udp(client, UDP_VIP)),
        _ => (INSIDE, udp(DNS, client)),
    }
}

/// Two buckets, so that there is never room enough; loads are counted.
fn crowded() -> Machine {
    let mut world = machine().world;
    world.buckets = 2;
    let web = world.services.get_mut(&WEB).expect("it is there");
    (web.scheduler, web.members, web.sticky) = (Scheduler::LeastConn, vec![1, 2], 50);
    for backend in world.backends.values_mut() {
        (backend.counted, backend.sticky) = (true, true);
    }
    Machine::new(world)
}

/// Loads by the table: entries that have the counted bit.
fn counted(machine: &Machine) -> BTreeMap<u16, u64> {
    let mut counted = BTreeMap::new();
    for entry in machine.connections.iter().flatten() {
        let state = State::unpack(entry.state);
        if state.counted {
            assert!(state.is_live(), "{state:?}");
            *counted.entry(state.backend).or_default() += 1;
        }
    }
    counted
}

/// The entries that nobody may push out.
fn kept(machine: &Machine, now: u32) -> Vec<u64> {
    let entries = machine.connections.iter().flatten();
    entries
        .filter(|entry| machine.rank(State::unpack(entry.state), now as u16) == crate::table::Rank::Kept)
        .map(|entry| entry.key)
        .collect()
}

fn happen(machine: &mut Machine, event: &Event, now: &mut u32) {
    match event {
        Event::Wait(time) => *now = now.wrapping_add(*time),
        Event::Backend(index, state) => {
            machine.world.backends.get_mut(index).expect("there are three").state = *state;
        }
        Event::Sweep => {
            machine.sweep(*now);
        }
        Event::Frame { port, way, flags, changes, cut } => {
            let (interface, mut frame) = frame(*port, *way, *flags);
            for &(at, byte) in changes {
                let at = at % frame.len();
                frame[at] = byte;
            }
            frame.truncate(frame.len() - cut.min(&frame.len()));
            let kept = kept(machine, *now);
            let outcome = machine.packet(interface, &frame, *now, 7);
            assert_eq!(outcome.frame.len(), frame.len());
            let translated = outcome.reason.starts_with("sent") || outcome.reason.starts_with("stack");
            assert!(translated || outcome.frame == frame);
            let sent = matches!(outcome.verdict, Verdict::Tx | Verdict::Redirect);
            assert_eq!(sent, outcome.reason.starts_with("sent"));
            for key in kept {
                let mut entries = machine.connections.iter().flatten();
                let stands = |entry: &Entry| entry.key == key && State::unpack(entry.state).holds_an_entry();
                assert!(entries.any(stands), "{event:?} pushed out {key:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes(events in proptest::collection::vec(event(), 1..200)) {
        let mut machine = crowded();
        // The long clock wraps on the way.
        let mut now = 0u32.wrapping_sub(1500);
        let mut frames = 0;
        for event in &events {
            happen(&mut machine, event, &mut now);
            frames += u64::from(matches!(event, Event::Frame { .. }));
            let loads = machine.loads.iter().map(|(&backend, &load)| (backend, load.value()));
            let loads: BTreeMap<u16, u64> = loads.filter(|&(_, load)| load > 0).collect();
            prop_assert_eq!(&loads, &counted(&machine));
        }
        prop_assert_eq!(machine.reasons.values().map(|&(packets, _)| packets).sum::<u64>(), frames);
    }
}
