//! "Selection" of docs/connections.md: which backend a new connection goes to.

use crate::hash::{hash, raw_address, raw_port, scale, upper};
use crate::machine::{Arrival, Machine};
use crate::parse::Packet;
use crate::reason::Reason;
use crate::state::{FREE, Key};
use crate::table::Rank;
use crate::world::{Scheduler, Service};

/// Slots of the ring looked at after one whose backend is not taken.
const RETRIES: usize = 8;

fn nobody_takes(service: &Service) -> Reason {
    if service.pass_empty { Reason::PassNoBackend } else { Reason::DropNoBackend }
}

impl Machine {
    pub fn select(&mut self, arrival: &Arrival, packet: &Packet, index: u16) -> Result<u16, Reason> {
        let service = self.world.services[&index].clone();
        let mut conflict = false;
        if let Some(backend) = self.recorded(packet.source, index, arrival.now) {
            if !self.in_conflict(arrival, packet, backend) {
                return Ok(backend);
            }
        }
        if service.ring.is_empty() {
            return Err(nobody_takes(&service));
        }
        let position = self.position(packet, index, &service);
        if service.scheduler == Scheduler::LeastConn {
            if let Some(backend) = self.least_loaded(index, &service, position, arrival.random) {
                if !self.in_conflict(arrival, packet, backend) {
                    return Ok(backend);
                }
                conflict = true;
            }
        }
        for step in 0..=RETRIES {
            let backend = service.ring[(position + step) % service.ring.len()];
            if !self.world.is_up(index, backend) {
                continue;
            }
            if !self.in_conflict(arrival, packet, backend) {
                return Ok(backend);
            }
            conflict = true;
        }
        Err(if conflict { Reason::DropTupleInUse } else { nobody_takes(&service) })
    }

    /// The first slot of the ring to look at. A rotation is used up by this.
    fn position(&mut self, packet: &Packet, index: u16, service: &Service) -> usize {
        let length = service.ring.len() as u32;
        let by_hash = |word| scale(upper(hash(word, self.world.key[2], self.world.key[3])), length) as usize;
        match service.scheduler {
            Scheduler::IpHash => by_hash(raw_address(packet.source)),
            Scheduler::Maglev => by_hash(raw_address(packet.source) | raw_port(packet.source_port) << 32),
            Scheduler::RoundRobin | Scheduler::WeightedRoundRobin | Scheduler::LeastConn => {
                let rotation = self.rotations.entry(index).or_default();
                let position = *rotation % u64::from(length);
                *rotation += 1;
                position as usize
            }
        }
    }

    /// Whether the client's address and port talk to this backend through another service. What does not live any
    /// more gives way.
    fn in_conflict(&mut self, arrival: &Arrival, packet: &Packet, backend: u16) -> bool {
        let row = self.world.backends[&backend].clone();
        if !row.shared {
            return false;
        }
        let origin = (row.address, row.port, packet.protocol);
        let pairs = self.world.origins.get(&origin).cloned().unwrap_or_default();
        for (other_service, other_backend) in pairs {
            if other_service == row.service {
                continue;
            }
            let key = Key { client: packet.source, port: packet.source_port, service: other_service };
            let Some(at) = self.look_up(key) else {
                continue;
            };
            let state = self.state_at(at);
            if state.backend != other_backend {
                continue;
            }
            if self.rank(state, arrival.clock()) <= Rank::Unconfirmed {
                return true;
            }
            self.gave_way(state, arrival.clock());
            self.swap(at, FREE);
        }
        false
    }
}
