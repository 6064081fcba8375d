use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::dataplane::{BackendId, NextHop, Plane};
use crate::net::{Link, Neighbour, Netlink, RouteKind};

/// How long a start waits for the backends' next hops to answer ARP.
const RESOLVE_WAIT: Duration = Duration::from_secs(1);
const RESOLVE_STEP: Duration = Duration::from_millis(50);

/// Keeps the data plane's next hops in step with the kernel's links, routes and neighbours.
pub struct Network {
    netlink: Netlink,
    /// The MAC each neighbour was last seen with.
    macs: HashMap<(u32, Ipv4Addr), [u8; 6]>,
    /// What was last published for a backend.
    ways: HashMap<u16, Way>,
    /// The interfaces that have the program.
    attached: Vec<u32>,
    last_warning: String,
}

/// How a backend is reached.
#[derive(Clone, PartialEq, Eq)]
struct Way {
    index: u16,
    interface: String,
    next_hop: Ipv4Addr,
    mac: Option<[u8; 6]>,
}

/// One look at the kernel.
struct View {
    links: HashMap<u32, Link>,
    neighbours: HashMap<(u32, Ipv4Addr), Neighbour>,
}

impl Network {
    /// `attached` are the interfaces that have, or are about to have, the program.
    pub fn new(netlink: Netlink, attached: Vec<u32>) -> Network {
        Network { netlink, macs: HashMap::new(), ways: HashMap::new(), attached, last_warning: String::new() }
    }

    /// Resolves the backends' next hops, waiting a moment for neighbours that are silent so far. One that stays silent is no
    /// error: the kernel delivers to it until it is known.
    pub fn resolve(&mut self, plane: &mut Plane) -> Result<()> {
        let deadline = Instant::now() + RESOLVE_WAIT;
        loop {
            self.refresh(plane)?;
            let silent: Vec<&Way> = self.ways.values().filter(|way| way.mac.is_none()).collect();
            if silent.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                for way in silent {
                    crate::note!(
                        "warning: next hop {} on {} does not answer ARP; what goes there is left to the kernel \
                         until it does",
                        way.next_hop,
                        way.interface
                    );
                }
                return Ok(());
            }
            sleep(RESOLVE_STEP);
        }
    }

    /// As [`Network::refresh`]; an error is said once and tried again at the next call: what works goes on meanwhile.
    pub fn refresh_or_warn(&mut self, plane: &mut Plane) {
        let warning = match self.refresh(plane) {
            Ok(troubles) => troubles.join("; "),
            Err(error) => format!("could not follow the network: {error:#}"),
        };
        self.warn(warning);
    }

    /// Has the kernel ask for the neighbours that packets met and it did not know: replies to a client whose ARP it never
    /// saw, as after it learned of the VIP by an announcement.
    pub fn ask_for_unresolved(&mut self, plane: &Plane) {
        for (ifindex, address) in plane.take_unresolved() {
            if let Err(error) = self.netlink.probe_neighbour(ifindex, address) {
                self.warn(format!("{error:#}"));
            }
        }
    }

    fn warn(&mut self, warning: String) {
        if warning != self.last_warning {
            if !warning.is_empty() {
                crate::note!("warning: {warning}");
            }
            self.last_warning = warning;
        }
    }

    /// Returns what keeps backends from being reached, or their replies from being translated.
    fn refresh(&mut self, plane: &mut Plane) -> Result<Vec<String>> {
        let view = self.look()?;
        self.follow_neighbours(plane, &view)?;
        let mut troubles = Vec::new();
        for backend in plane.backends().to_vec() {
            troubles.extend(self.follow_backend(plane, &view, backend)?);
        }
        troubles.dedup();
        Ok(troubles)
    }

    fn look(&mut self) -> Result<View> {
        let links = self.netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let neighbours = self.netlink.neighbours()?;
        let neighbours = neighbours.into_iter().map(|n| ((n.ifindex, n.address), n)).collect();
        Ok(View { links, neighbours })
    }

    /// Every neighbour may be a client's next hop. One that the kernel merely forgot keeps its row: it is most likely where
    /// it was.
    fn follow_neighbours(&mut self, plane: &mut Plane, view: &View) -> Result<()> {
        for (at, neighbour) in &view.neighbours {
            let (true, Some(mac), Some(link)) = (neighbour.usable, neighbour.mac, view.links.get(&at.0))
            else {
                continue;
            };
            let Some(hop) = next_hop(link, Some(mac)) else { continue };
            plane.neighbour(hop)?;
            let moved = self.macs.insert(*at, mac).filter(|old| *old != mac);
            if let Some(old) = moved {
                let elsewhere =
                    |(other, known): (&(u32, Ipv4Addr), &[u8; 6])| other.0 == at.0 && *known == old;
                if !self.macs.iter().any(elsewhere) {
                    plane.retire_neighbour(at.0, old)?;
                }
            }
        }
        Ok(())
    }

    fn follow_backend(
        &mut self,
        plane: &mut Plane,
        view: &View,
        backend: BackendId,
    ) -> Result<Option<String>> {
        let address = *backend.address.ip();
        let route = self.netlink.route_to(address)?.filter(|route| route.kind == RouteKind::Unicast);
        let Some((route, link)) = route.and_then(|route| Some((route, view.links.get(&route.ifindex)?)))
        else {
            return Ok(Some(format!("there is no route to backend {} any more", backend.address)));
        };
        let next = route.gateway.unwrap_or(address);
        let neighbour = view.neighbours.get(&(route.ifindex, next));
        if neighbour.is_none_or(|neighbour| !neighbour.usable || neighbour.stale) {
            // Frames sent by XDP do not tell the kernel that the neighbour is in use.
            self.netlink.probe_neighbour(route.ifindex, next)?;
        }
        let mac = neighbour.filter(|neighbour| neighbour.usable).and_then(|neighbour| neighbour.mac);
        let Some(hop) = next_hop(link, mac) else {
            return Ok(Some(format!("{}, which backend {} is behind, is down", link.name, backend.address)));
        };
        let known = self.ways.get(&backend.index);
        // While ARP is being asked again the old MAC is the best guess.
        if mac.is_none() && known.is_some_and(|way| way.mac.is_some() && way.interface == link.name) {
            return Ok(None);
        }
        let Some(index) = plane.next_hop(hop)? else {
            return Ok(Some(format!(
                "no row is left for the next hop of backend {}: restart xdp-lb",
                backend.address
            )));
        };
        let way = Way { index, interface: link.name.clone(), next_hop: next, mac };
        if known.is_none_or(|known| known.index != index) {
            plane.set_next_hop(backend, index)?;
        }
        self.ways.insert(backend.index, way);
        let foreign = !self.attached.contains(&link.index);
        Ok(foreign.then(|| {
            format!(
                "backend {} is behind {} now, which has no program: its replies are not translated until xdp-lb is \
                 started again",
                backend.address, link.name
            )
        }))
    }

    /// How a backend is reached, for people.
    pub fn describe(&self, backend: BackendId) -> String {
        let Some(way) = self.ways.get(&backend.index) else { return "not reachable now".into() };
        let via = match way.next_hop == *backend.address.ip() {
            true => String::new(),
            false => format!(" via {}", way.next_hop),
        };
        match way.mac {
            Some(mac) => format!("by {}{via} at {}", way.interface, mac_text(mac)),
            None => format!("by {}{via}, which does not answer ARP yet", way.interface),
        }
    }
}

/// `None` for a link that is down or has no MAC.
fn next_hop(link: &Link, neighbour: Option<[u8; 6]>) -> Option<NextHop> {
    let source = link.mac.filter(|_| link.up && link.ethernet)?;
    Some(NextHop { ifindex: link.index, mtu: link.mtu, source, neighbour })
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
