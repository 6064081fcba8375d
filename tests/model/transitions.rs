//! "Transitions" of docs/connections.md: what a packet makes of the state of its connection.

use crate::checksum::{header_is_right, looks_partial, transport_is_right};
use crate::machine::Machine;
use crate::parse::{ACK, FIN, Packet, RST, SYN, TCP, UDP};
use crate::state::{Phase, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

/// The columns of the tables; the first from the left that a packet's flags name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Syn,
    Rst,
    Fin,
    None,
}

impl Machine {
    /// The state after a packet of one side. `frame` tells whether the packet's checksums are right.
    pub fn transition(&self, state: State, side: Side, frame: &[u8], packet: &Packet, now: u16) -> State {
        let confirms = side == Side::Client && state.phase == Phase::Answered && packet.protocol == TCP;
        if confirms && !self.is_intact(frame, packet) {
            return state;
        }
        let after = match (packet.protocol, side) {
            (UDP, Side::Client) => udp_client(state, now),
            (UDP, Side::Backend) => udp_backend(state, now),
            (_, Side::Client) => tcp_client(state, packet, now),
            (_, Side::Backend) => tcp_backend(state, packet, now),
        };
        self.with_counted(after)
    }

    /// Whether the backend will not discard the packet for a checksum.
    fn is_intact(&self, frame: &[u8], packet: &Packet) -> bool {
        let partial = self.world.partial_possible && looks_partial(frame, packet);
        header_is_right(frame, packet) && (partial || transport_is_right(frame, packet))
    }
}

fn fresh(state: State, now: u16) -> State {
    State { seen: now, expired: false, ..state }
}

pub fn tcp_client(state: State, packet: &Packet, now: u16) -> State {
    let fresh = fresh(state, now);
    let column = if packet.has(SYN) {
        Column::Syn
    } else if packet.has(RST) || state.phase == Phase::Answered && !packet.has(ACK) {
        Column::Rst
    } else if packet.has(FIN) {
        Column::Fin
    } else {
        Column::None
    };
    match state.phase {
        Phase::Unconfirmed => fresh,
        Phase::Answered => match column {
            Column::Syn | Column::Rst => fresh,
            Column::Fin if !state.backend_closed => {
                State { phase: Phase::Closing, client_closed: true, ..fresh }
            }
            Column::Fin => State { phase: Phase::Closed, client_closed: true, ..fresh },
            Column::None => State { phase: Phase::Established, ..fresh },
        },
        Phase::Established => match column {
            Column::Syn | Column::None => fresh,
            Column::Rst => State { phase: Phase::Closing, ..fresh },
            Column::Fin if !state.backend_closed => {
                State { phase: Phase::Closing, client_closed: true, ..fresh }
            }
            Column::Fin => State { phase: Phase::Closed, client_closed: true, ..fresh },
        },
        Phase::Closing | Phase::Reviving => match column {
            Column::Syn | Column::Rst => state,
            Column::Fin if !state.backend_closed => State { client_closed: true, ..state },
            Column::Fin => State { phase: Phase::Closed, client_closed: true, ..fresh },
            Column::None => State { phase: Phase::Reviving, ..state },
        },
        Phase::Closed | Phase::Free | Phase::Claimed => state,
    }
}

pub fn tcp_backend(state: State, packet: &Packet, now: u16) -> State {
    if state.phase == Phase::Closed {
        return state;
    }
    if packet.has(RST) {
        return State { phase: Phase::Closed, ..fresh(state, now) };
    }
    // A new connection of the same tuple owes nothing to the FINs of the old one.
    let state =
        if packet.has(SYN) { State { client_closed: false, backend_closed: false, ..state } } else { state };
    let fresh = fresh(state, now);
    let closes = packet.has(FIN);
    match state.phase {
        Phase::Unconfirmed | Phase::Answered => {
            let backend_closed = state.backend_closed || closes;
            State { phase: Phase::Answered, backend_closed, ..fresh }
        }
        Phase::Established | Phase::Closing | Phase::Reviving if closes => {
            let phase = if state.client_closed { Phase::Closed } else { Phase::Closing };
            State { phase, backend_closed: true, ..fresh }
        }
        Phase::Established | Phase::Closing => fresh,
        Phase::Reviving => {
            State { phase: Phase::Established, client_closed: false, backend_closed: false, ..fresh }
        }
        Phase::Closed | Phase::Free | Phase::Claimed => state,
    }
}

pub fn udp_client(state: State, now: u16) -> State {
    match state.phase {
        Phase::Unconfirmed | Phase::Established => fresh(state, now),
        Phase::Answered => State { phase: Phase::Established, ..fresh(state, now) },
        _ => state,
    }
}

pub fn udp_backend(state: State, now: u16) -> State {
    match state.phase {
        Phase::Unconfirmed => State { phase: Phase::Answered, ..fresh(state, now) },
        Phase::Answered | Phase::Established => fresh(state, now),
        _ => state,
    }
}
