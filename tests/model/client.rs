//! A packet of a client: step 3 of docs/packets.md, and the section of that name in docs/connections.md.

use std::net::Ipv4Addr;

use crate::deliver::{Delivery, Translation};
use crate::machine::{Arrival, Machine};
use crate::parse::{ACK, Packet, RST, SYN, TCP, UDP};
use crate::reason::Reason;
use crate::state::{FREE, Key, Phase, State};
use crate::table::Slot;
use crate::transitions::Side;
use crate::world;

impl Machine {
    pub fn client_packet(
        &mut self,
        arrival: &Arrival,
        packet: &Packet,
        service: u16,
    ) -> Result<Delivery, Reason> {
        if packet.ttl <= 1 {
            return Err(Reason::DropTtl);
        }
        let backend = self.connect(arrival, packet, service)?;
        let row = self.world.backends[&backend].clone();
        let way = self.way_to_backend(arrival.interface, &row);
        let to = Translation { to_backend: true, address: row.address, port: row.port };
        let (verdict, reason, frame) = self.deliver(arrival, packet, &way, to)?;
        Ok(Delivery { verdict, reason, frame, backend, to_backend: true })
    }

    /// The backend that the packet goes to.
    fn connect(&mut self, arrival: &Arrival, packet: &Packet, service: u16) -> Result<u16, Reason> {
        let key = Key { client: packet.source, port: packet.source_port, service };
        let found = self.look_up(key);
        if let Some(at) = found {
            let state = self.state_at(at);
            let row = self.world.backend_of(service, state.backend).map(|backend| backend.state);
            if goes_on(row, state.phase, packet) {
                let new = self.transition(state, Side::Client, arrival.frame, packet, arrival.clock());
                self.write(at, key, new, (Side::Client, packet), arrival.now);
                self.went_on(state, packet);
                return Ok(state.backend);
            }
        }
        if packet.protocol == TCP && packet.has(RST) {
            return Err(Reason::DropRstUnknown);
        }
        if is_bad_source(packet.source, packet.destination) {
            return Err(Reason::DropBadSource);
        }
        let backend = self.select(arrival, packet, service)?;
        let new = self.with_counted(State {
            backend,
            phase: Phase::Unconfirmed,
            udp: packet.protocol == UDP,
            tag: self.candidates(key).tag,
            seen: arrival.clock(),
            ..FREE
        });
        match found {
            Some(at) => {
                self.moved(self.state_at(at));
                self.swap(at, new);
            }
            None if self.insert(key, new, arrival.clock()) => (),
            None => return Err(Reason::DropTableFull),
        }
        self.opened(backend);
        self.asked(key, backend, packet, arrival.clock());
        Ok(backend)
    }

    /// Puts the state that a packet gives in the place of the one that was read.
    pub fn write(&mut self, at: Slot, key: Key, new: State, (side, packet): (Side, &Packet), now: u32) {
        let old = self.state_at(at);
        self.swap(at, new);
        self.happened(old, new, packet);
        self.remember(key, old, new, side, now);
    }
}

/// Whether a packet goes on with the entry that was found. No row: there is none, or it is of another service.
pub fn goes_on(row: Option<world::State>, phase: Phase, packet: &Packet) -> bool {
    let opens = packet.has(SYN) && !packet.has(ACK) && !packet.has(RST);
    match (row, packet.protocol) {
        (None, _) => false,
        (Some(world::State::Up | world::State::Drain), UDP) => true,
        (Some(_), UDP) => false,
        (Some(world::State::Up), _) => !opens || phase != Phase::Closed,
        (Some(world::State::Drain), _) => !opens || phase == Phase::Established,
        (Some(world::State::Down | world::State::Disabled), _) => !opens,
        (Some(world::State::Reset), _) => false,
    }
}

/// 0/8, 127/8, 224/3 and the VIP itself.
pub fn is_bad_source(source: Ipv4Addr, vip: Ipv4Addr) -> bool {
    let first = source.octets()[0];
    first == 0 || first == 127 || first >= 224 || source == vip
}
