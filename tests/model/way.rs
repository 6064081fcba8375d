//! Next hops: which way a translated packet goes, and whether XDP can send it.

use std::net::Ipv4Addr;

use crate::machine::Machine;
use crate::reason::Reason;
use crate::world::{Backend, Fib, Mac, NextHop, Sends, Verdict};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Direct { verdict: Verdict, mtu: usize, destination: Mac, source: Mac },
    Stack(Reason),
}

/// How XDP sends by an interface, if it can.
pub fn sent_by(arrived: u32, interface: u32, sends: Sends) -> Option<Verdict> {
    if interface == arrived && !sends.no_tx {
        Some(Verdict::Tx)
    } else if !sends.no_redirect {
        Some(Verdict::Redirect)
    } else {
        None
    }
}

/// By a next hop whose MACs are known.
fn by_row(arrived: u32, row: &NextHop, otherwise: Reason) -> Way {
    match sent_by(arrived, row.interface, row.sends) {
        Some(verdict) => Way::Direct {
            verdict,
            mtu: usize::from(row.mtu),
            destination: row.destination,
            source: row.source,
        },
        None => Way::Stack(otherwise),
    }
}

impl Machine {
    pub fn way_to_backend(&self, arrived: u32, backend: &Backend) -> Way {
        if self.world.stack {
            return Way::Stack(Reason::StackToBackend);
        }
        match self.valid_row(backend.next_hop) {
            Some(row) => by_row(arrived, row, Reason::StackToBackend),
            None => Way::Stack(Reason::StackNeighbourUnknown),
        }
    }

    /// The way to a client, and the index that a look-up on the way gave, or 0. `known` is the entry's index.
    pub fn way_to_client(&self, arrived: u32, client: Ipv4Addr, known: u16) -> (Way, u16) {
        if self.world.stack {
            return (Way::Stack(Reason::StackToClient), 0);
        }
        if let Some(row) = self.valid_row(known) {
            return (by_row(arrived, row, Reason::StackToClient), 0);
        }
        let (interface, mtu, destination, source) = match *self.route(client) {
            Fib::NoNeighbour => return (Way::Stack(Reason::StackNeighbourUnknown), 0),
            Fib::Failed => return (Way::Stack(Reason::StackRouteByKernel), 0),
            Fib::Found { interface, mtu, destination, source } => (interface, mtu, destination, source),
        };
        if let Some(&index) = self.world.neighbours.get(&(interface, destination)) {
            let way = match self.valid_row(index) {
                Some(row) => by_row(arrived, row, Reason::StackToClient),
                None => Way::Stack(Reason::StackNeighbourUnknown),
            };
            return (way, index);
        }
        let sends = self.world.egresses.get(&interface);
        let way = match sends.and_then(|&sends| sent_by(arrived, interface, sends)) {
            Some(verdict) => Way::Direct { verdict, mtu: mtu as usize, destination, source },
            None => Way::Stack(Reason::StackToClient),
        };
        (way, 0)
    }

    fn route(&self, client: Ipv4Addr) -> &Fib {
        self.world.routes.get(&client).unwrap_or(&self.world.default_route)
    }

    /// A next hop whose MACs are known. Index 0 is none.
    pub fn valid_row(&self, index: u16) -> Option<&NextHop> {
        self.world.next_hops.get(&index).filter(|row| index != 0 && row.valid)
    }
}
