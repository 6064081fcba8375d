//! A reply: step 4 of docs/packets.md.

use crate::deliver::{Delivery, Translation};
use crate::machine::{Arrival, Machine};
use crate::parse::Packet;
use crate::reason::Reason;
use crate::state::{Key, State};
use crate::table::Slot;
use crate::transitions::Side;

impl Machine {
    pub fn reply(
        &mut self,
        arrival: &Arrival,
        packet: &Packet,
        pairs: &[(u16, u16)],
    ) -> Result<Delivery, Reason> {
        let (key, at) = self.entry_of_reply(packet, pairs).ok_or(Reason::PassNoConnection)?;
        let state = self.state_at(at);
        let backend = state.backend;
        let service = self.world.services.get(&key.service).cloned().ok_or(Reason::ErrorTables)?;

        if !self.faces(arrival.interface, backend) {
            return Err(Reason::PassWrongInterface);
        }
        if packet.first_fragment {
            return Err(Reason::DropFragment);
        }
        if packet.ttl <= 1 {
            return Err(Reason::DropTtl);
        }
        let (way, index) = self.way_to_client(arrival.interface, key.client, state.next_hop);
        let after = self.transition(state, Side::Backend, arrival.frame, packet, arrival.clock());
        let next_hop = if index != 0 { index } else { after.next_hop };
        self.answered(key, state, packet);
        self.write(at, key, State { next_hop, ..after }, (Side::Backend, packet), arrival.now);
        self.replied(state, packet);

        let to = Translation { to_backend: false, address: service.address, port: service.port };
        let (verdict, reason, frame) = self.deliver(arrival, packet, &way, to)?;
        Ok(Delivery { verdict, reason, frame, backend, to_backend: false })
    }

    /// The first entry that names the backend of one of the pairs.
    fn entry_of_reply(&self, packet: &Packet, pairs: &[(u16, u16)]) -> Option<(Key, Slot)> {
        pairs.iter().find_map(|&(service, backend)| {
            let key = Key { client: packet.destination, port: packet.destination_port, service };
            let at = self.look_up(key)?;
            (self.state_at(at).backend == backend).then_some((key, at))
        })
    }

    /// Whether an interface is the one of a backend's next hop, its MAC known or not.
    fn faces(&self, interface: u32, backend: u16) -> bool {
        let next_hop = self.world.backends.get(&backend).map(|backend| backend.next_hop);
        let row = next_hop.and_then(|index| self.world.next_hops.get(&index));
        row.is_some_and(|row| row.interface == interface)
    }
}
