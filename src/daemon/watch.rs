//! What goes wrong while it runs, named with its fix.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::network::View;
use crate::dataplane::{BackendId, Census, Class, Plane, Reason};
use crate::model::Protocol;
use crate::net::{Address, Netlink};

/// So many new connections without one reply are no accident.
const SILENT_CONNECTIONS: u64 = 3;
/// And so long after the first of them: a reply takes its time, and a SYN that got none is sent again after a second.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// Packets left to the kernel within [`SLOW_PATH_WINDOW`] that are worth a word.
const SLOW_PATH_PACKETS: u64 = 20;
const SLOW_PATH_WINDOW: Duration = Duration::from_secs(10);
/// So many backends are looked at in one go.
const AT_ONCE: usize = 1024;
/// Of the connections promised.
const FULL: f64 = 0.9;

/// Remembers figures, to see what does not move.
pub struct Watch {
    backends: HashMap<u16, Silence>,
    slow: HashMap<u32, u64>,
    slow_since: Instant,
    slow_now: Vec<String>,
    /// The first backend of those to be looked at next.
    next: usize,
    /// What is wrong with those that do not answer.
    silent: HashMap<BackendId, String>,
}

/// A backend since its last reply.
struct Silence {
    replies: u64,
    /// Connections it had then.
    connections: u64,
    /// When the first one after that was seen.
    since: Option<Instant>,
}

impl Watch {
    /// Begins to look. What the instance before counted is old.
    pub fn new(plane: &Plane) -> Result<Watch> {
        let mut slow = HashMap::new();
        for reason in Reason::ALL {
            slow.insert(reason.code(), plane.tables().reason_counter(reason.code())?.packets);
        }
        Ok(Watch {
            backends: HashMap::new(),
            slow,
            slow_since: Instant::now(),
            slow_now: Vec::new(),
            next: 0,
            silent: HashMap::new(),
        })
    }

    /// Names the backends that get connections and whose replies never come back through this host.
    pub fn backends(&mut self, plane: &Plane, view: &View, netlink: &mut Netlink) -> Result<Vec<String>> {
        let mut addresses = None;
        // Of thousands some at a time: each is a question to the kernel.
        let all = plane.backends();
        let from = if self.next < all.len() { self.next } else { 0 };
        let some = &all[from..all.len().min(from + AT_ONCE)];
        self.next = from + AT_ONCE;
        for backend in some {
            let counters = plane.tables().backend_counters(backend.index)?;
            let (connections, replies) = (counters.connections, counters.to_client.packets);
            let first = || Silence { replies, connections, since: None };
            let silence = self.backends.entry(backend.index).or_insert_with(first);
            if silence.unanswered(connections, replies, Instant::now()) {
                let addresses = match &mut addresses {
                    Some(addresses) => addresses,
                    none => none.insert(netlink.addresses()?),
                };
                let own = own_address(*backend, view, addresses);
                self.silent.insert(*backend, no_replies(*backend, protocol_of(plane, *backend), own));
            } else {
                self.silent.remove(backend);
            }
        }
        let there: HashSet<BackendId> = all.iter().copied().collect();
        self.silent.retain(|backend, _| there.contains(backend));
        Ok(self.silent.values().cloned().collect())
    }

    /// Names a table that is nearly full, and packets that only the kernel could deliver. Call it after a sweep.
    pub fn table(
        &mut self,
        plane: &Plane,
        census: &Census,
        promised: u32,
        now: Instant,
    ) -> Result<Vec<String>> {
        let mut troubles = Vec::new();
        let live = census.confirmed + census.unconfirmed;
        if live as f64 > FULL * f64::from(promised) {
            troubles.push(format!(
                "the connection table is more than {:.0} % full, of the {promised} connections that it has room for: \
                 start with a larger --max-connections before new ones are refused",
                FULL * 100.0
            ));
        }
        if now - self.slow_since >= SLOW_PATH_WINDOW {
            self.slow_now = self.slow_path(plane)?;
            self.slow_since = now;
        }
        troubles.extend(self.slow_now.iter().cloned());
        Ok(troubles)
    }

    fn slow_path(&mut self, plane: &Plane) -> Result<Vec<String>> {
        let mut troubles = Vec::new();
        for reason in Reason::ALL.iter().filter(|reason| reason.class == Class::Stack) {
            let fix = match reason.name {
                "neighbour_unknown" => {
                    "see which next hop does not answer ARP (ip neigh show nud failed nud incomplete)"
                }
                "route_by_kernel" => {
                    "see whether the clients have a route (ip route get CLIENT) and net.ipv4.conf.lo.forwarding is 1"
                }
                // By the choice of the delivery, which has been said.
                _ => continue,
            };
            let packets = plane.tables().reason_counter(reason.code())?.packets;
            let before = self.slow.insert(reason.code(), packets).unwrap_or(0);
            if packets.saturating_sub(before) >= SLOW_PATH_PACKETS {
                troubles.push(format!(
                    "packets go the slow way by the kernel, which may drop them ({}): {}; {fix}",
                    reason.name, reason.help
                ));
            }
        }
        Ok(troubles)
    }
}

impl Silence {
    fn unanswered(&mut self, connections: u64, replies: u64, now: Instant) -> bool {
        // Fewer connections: the index is another backend's now.
        if replies != self.replies || connections < self.connections {
            *self = Silence { replies, connections, since: None };
            return false;
        }
        if connections == self.connections {
            return false;
        }
        let since = *self.since.get_or_insert(now);
        connections - self.connections >= SILENT_CONNECTIONS && now - since >= SILENT_FOR
    }
}

/// This host's address on a backend's side.
fn own_address(backend: BackendId, view: &View, addresses: &[Address]) -> Option<Ipv4Addr> {
    let link = view.facing(backend)?;
    let on_link: Vec<&Address> = addresses.iter().filter(|address| address.ifindex == link.index).collect();
    let own = on_link.iter().find(|address| same_subnet(address, *backend.address.ip()));
    own.or_else(|| on_link.first()).map(|address| address.address)
}

fn protocol_of(plane: &Plane, backend: BackendId) -> Option<Protocol> {
    let row = plane.tables().backends.get(usize::from(backend.index))?;
    let service = plane.tables().services.get(usize::from(row.service))?;
    Protocol::from_number(service.proto)
}

/// The fix names the address that the backend must send what is for its clients to.
fn no_replies(backend: BackendId, protocol: Option<Protocol>, own: Option<Ipv4Addr>) -> String {
    let via = own.map_or("an address of this host".to_owned(), |own| own.to_string());
    let one_way = match protocol {
        Some(Protocol::Udp) => "; nothing is wrong if it is never to answer, as with syslog",
        _ => "",
    };
    format!(
        "backend {} gets connections, but its replies never come back through this host: it is down, or its way to the \
         clients leads elsewhere (on it: ip route replace default via {via}), or the clients are in its own subnet, where \
         replies go past this host{one_way}",
        backend.address
    )
}

fn same_subnet(address: &Address, other: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(address.prefix_len)).unwrap_or(0);
    u32::from(address.address) & mask == u32::from(other) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_silent_only_after_a_while() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence { replies: 10, connections: 5, since: None };
        assert!(!silence.unanswered(5, 10, later(100)), "nobody asked it");
        assert!(!silence.unanswered(6, 10, later(100)));
        assert!(!silence.unanswered(6, 10, later(110)), "one may be lost");
        assert!(silence.unanswered(8, 10, later(111)));
        assert!(!silence.unanswered(9, 11, later(112)), "it has answered");
        assert!(!silence.unanswered(20, 11, later(113)), "these are new");
        assert!(silence.unanswered(20, 11, later(117)));
    }

    #[test]
    fn subnets() {
        let address = |prefix_len| Address { ifindex: 1, address: Ipv4Addr::new(10, 0, 0, 1), prefix_len };
        assert!(same_subnet(&address(24), Ipv4Addr::new(10, 0, 0, 77)));
        assert!(!same_subnet(&address(24), Ipv4Addr::new(10, 0, 1, 77)));
        assert!(same_subnet(&address(0), Ipv4Addr::new(192, 0, 2, 1)));
        assert!(!same_subnet(&address(32), Ipv4Addr::new(10, 0, 0, 2)));
    }
}
