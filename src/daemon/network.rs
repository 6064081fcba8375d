//! The network as the kernel sees it, and the data plane's next hops kept in step with it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::dataplane::{BackendId, NamedRows, NextHop, Plane};
use crate::net::{Link, Neighbour, Netlink, Route, RouteKind};

const RESOLVE_STEP: Duration = Duration::from_millis(10);

/// The ways to so many backends are asked for at each look.
const FEW_ROUTES: usize = 256;
/// Those to more only when something was heard of, and after this time whatever was heard.
const ROUTES_HOLD: Duration = Duration::from_secs(10);

/// How long a neighbour that had answered is asked again before it is called silent.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// An address of nobody (TEST-NET-1, RFC 5737): the way to it is the default route, by which most clients are reached.
const ANYBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A MAC on the segment of an interface.
type Station = (u32, [u8; 6]);

/// Keeps the data plane's next hops in step with the kernel's links, routes and neighbours.
pub struct Network {
    netlink: Netlink,
    /// The ways to the backends, as they were when they were last asked for, and when that was.
    routes: HashMap<Ipv4Addr, Option<Route>>,
    asked: Instant,
    /// The MAC each neighbour was last seen with.
    macs: HashMap<(u32, Ipv4Addr), [u8; 6]>,
    /// How each backend was reached at the last look.
    ways: HashMap<BackendId, Way>,
    /// Whether connections must ask for their way once more, because routes have changed.
    reroute: bool,
    /// The interfaces as they were at the last look.
    interfaces: Vec<(u32, bool)>,
    /// Neighbours that the kernel would send to, at the last look.
    alive: HashSet<Station>,
    /// Neighbours that connections are sent to, as the last sweep found them, each with one of its clients.
    in_use: HashMap<Station, Ipv4Addr>,
    /// Those of them of which it is not known whether they are still the way to their clients.
    unsure: HashSet<Station>,
}

/// How a backend is reached.
#[derive(Clone, PartialEq, Eq)]
struct Way {
    index: u16,
    ifindex: u32,
    interface: String,
    next_hop: Ipv4Addr,
    /// Where it is, or was when it last answered.
    mac: Option<[u8; 6]>,
    /// Since when it does not answer, if it did before.
    unanswered: Option<Instant>,
}

impl Way {
    fn is_silent(&self) -> bool {
        self.mac.is_none() || self.unanswered.is_some_and(|since| since.elapsed() >= SILENT_FOR)
    }
}

/// One look at the kernel.
pub struct View {
    /// All interfaces by index.
    pub links: BTreeMap<u32, Link>,
    neighbours: HashMap<(u32, Ipv4Addr), Neighbour>,
    /// The way to each backend's address, if it is one to a machine.
    pub routes: HashMap<Ipv4Addr, Route>,
    /// Interfaces that clients are reached by: those of connections, and that of the default route.
    pub client_ways: BTreeSet<u32>,
}

impl View {
    /// The interface that faces a backend.
    pub fn facing(&self, backend: BackendId) -> Option<&Link> {
        self.links.get(&self.routes.get(backend.address.ip())?.ifindex)
    }
}

impl Network {
    /// Follows the network namespace that `netlink` belongs to.
    pub fn new(netlink: Netlink) -> Network {
        Network {
            netlink,
            routes: HashMap::new(),
            asked: Instant::now(),
            macs: HashMap::new(),
            ways: HashMap::new(),
            reroute: false,
            interfaces: Vec::new(),
            alive: HashSet::new(),
            in_use: HashMap::new(),
            unsure: HashSet::new(),
        }
    }

    /// The socket, for other questions.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Resolves the backends' next hops, waiting so long for those of them that are silent so far. One that stays silent is no
    /// error: the kernel delivers to it until it is known. Nothing that connections use is changed: the tables may be those
    /// that an instance before left running.
    pub fn resolve(
        &mut self,
        plane: &mut Plane,
        wait: Duration,
        awaits: impl Fn(SocketAddrV4) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            let view = self.look(plane)?;
            self.follow_backends(plane, &view)?;
            let silent = |(backend, way): (&BackendId, &Way)| awaits(backend.address) && way.is_silent();
            if !self.ways.iter().any(silent) || Instant::now() >= deadline {
                return Ok(());
            }
            sleep(RESOLVE_STEP);
        }
    }

    /// Next hops of backends that do not answer ARP, for people.
    pub fn silent(&self) -> Vec<String> {
        let silent = self.ways.values().filter(|way| way.is_silent());
        let mut silent: Vec<String> =
            silent.map(|way| format!("{} on {}", way.next_hop, way.interface)).collect();
        silent.sort();
        silent.dedup();
        silent
    }

    /// Looks at everything that matters to the next hops.
    pub fn look(&mut self, plane: &Plane) -> Result<View> {
        let links = self.netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let neighbours = self.netlink.neighbours()?;
        let neighbours = neighbours.into_iter().map(|n| ((n.ifindex, n.address), n)).collect();
        let routes = self.look_for_routes(plane)?;
        let mut client_ways: BTreeSet<u32> = self.in_use.keys().map(|(ifindex, _)| *ifindex).collect();
        client_ways.extend(self.way_to(ANYBODY)?.map(|route| route.ifindex));
        Ok(View { links, neighbours, routes, client_ways })
    }

    /// Changes of routes and links are heard of; asking the kernel for the ways to thousands of backends each second would
    /// cost more than all the rest.
    fn look_for_routes(&mut self, plane: &Plane) -> Result<HashMap<Ipv4Addr, Route>> {
        let addresses: BTreeSet<Ipv4Addr> =
            plane.backends().iter().map(|backend| *backend.address.ip()).collect();
        if addresses.len() <= FEW_ROUTES || self.asked.elapsed() >= ROUTES_HOLD {
            self.forget_routes();
        }
        self.routes.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !self.routes.contains_key(&address) {
                let way = self.way_to(address)?;
                self.routes.insert(address, way);
            }
        }
        Ok(self.routes.iter().filter_map(|(address, way)| Some((*address, (*way)?))).collect())
    }

    /// The ways to the backends may be others now.
    pub fn forget_routes(&mut self) {
        self.routes.clear();
        self.asked = Instant::now();
    }

    /// `None` if the way is not one to a machine.
    fn way_to(&mut self, address: Ipv4Addr) -> Result<Option<Route>> {
        Ok(self.netlink.route_to(address)?.filter(|route| route.kind == RouteKind::Unicast))
    }

    /// Brings the next hops in step with what was seen. `rerouted`: routes have changed, so that every connection must ask
    /// for its way to the client once more. Returns what keeps backends from being reached.
    pub fn follow(&mut self, plane: &mut Plane, view: &View, rerouted: bool) -> Result<Vec<String>> {
        self.follow_links(plane, view)?;
        self.follow_neighbours(plane, view)?;
        let troubles = self.follow_backends(plane, view)?;
        let used = self.ways.values().map(|way| way.index).collect();
        let (hops, tables) = plane.next_hops();
        hops.keep_backends(tables, &used)?;
        // Last: what they ask for is then all there. What the kernel would not send to now stays as it is.
        self.reroute |= rerouted;
        if self.reroute {
            self.reroute = !hops.renew_neighbours(tables, &self.alive)?;
            self.unsure.extend(self.in_use.keys());
        }
        self.make_sure(plane, view)?;
        Ok(troubles)
    }

    fn follow_backends(&mut self, plane: &mut Plane, view: &View) -> Result<Vec<String>> {
        let there: HashSet<BackendId> = plane.backends().iter().copied().collect();
        self.ways.retain(|backend, _| there.contains(backend));
        let mut troubles = Vec::new();
        for backend in plane.backends().to_vec() {
            troubles.extend(self.follow_backend(plane, view, backend)?);
        }
        troubles.dedup();
        Ok(troubles)
    }

    /// After a sweep: rows that nothing names any more are used again, and neighbours that connections are sent to are kept
    /// fresh in the kernel's table.
    pub fn swept(&mut self, plane: &mut Plane, named: &NamedRows) -> Result<()> {
        let (hops, tables) = plane.next_hops();
        hops.collect(tables, named, &self.alive)?;
        self.in_use = hops.in_use(named).collect();
        self.unsure = self.in_use.keys().copied().collect();
        // What has a row is remembered even while the kernel does not know it: it may come back as another machine.
        let rows: HashSet<Station> = hops.neighbours().collect();
        self.macs.retain(|at, mac| rows.contains(&(at.0, *mac)));
        Ok(())
    }

    /// Has the kernel ask for the neighbours that packets met and it did not know: replies to a client whose ARP it never
    /// saw, as after it learned of the VIP by an announcement. Returns what kept it from asking.
    pub fn ask_for_unresolved(&mut self, plane: &Plane) -> Option<String> {
        let ask = |(ifindex, address)| self.netlink.probe_neighbour(ifindex, address).err();
        plane.take_unresolved().into_iter().filter_map(ask).last().map(|error| format!("{error:#}"))
    }

    /// An interface that goes takes its routes with it without a word about them, and what was behind it is elsewhere.
    fn follow_links(&mut self, plane: &mut Plane, view: &View) -> Result<()> {
        let now: Vec<(u32, bool)> = view.links.values().map(|link| (link.index, link.up)).collect();
        if now == self.interfaces {
            return Ok(());
        }
        self.reroute |= !self.interfaces.is_empty();
        self.interfaces = now;
        let (hops, tables) = plane.next_hops();
        let gone: Vec<Station> =
            hops.neighbours().filter(|(ifindex, _)| !view.links.contains_key(ifindex)).collect();
        for (ifindex, mac) in gone {
            hops.forget_neighbour(tables, ifindex, mac)?;
        }
        Ok(())
    }

    /// Every neighbour may be a client's next hop. One that the kernel merely forgot keeps its row while connections name it:
    /// it is most likely where it was.
    fn follow_neighbours(&mut self, plane: &mut Plane, view: &View) -> Result<()> {
        let hop_of = |(at, neighbour): (&(u32, Ipv4Addr), &Neighbour)| {
            let mac = neighbour.mac.filter(|_| neighbour.usable)?;
            Some((mac, next_hop(view.links.get(&at.0)?, Some(mac))?))
        };
        let known = view.neighbours.iter().filter_map(|seen| Some((seen.0, seen.1, hop_of(seen)?)));
        let known: Vec<_> = known.collect();
        self.alive = known.iter().map(|(at, _, (mac, _))| (at.0, *mac)).collect();
        for (at, neighbour, (mac, hop)) in known {
            let (hops, tables) = plane.next_hops();
            hops.of_neighbour(tables, hop)?;
            let moved = self.macs.insert(*at, mac).filter(|old| *old != mac);
            if let Some(old) = moved.map(|old| (at.0, old)) {
                self.moved_from(plane, old)?;
            }
            // Frames sent by XDP do not tell the kernel that the neighbour is in use.
            if neighbour.stale && self.in_use.contains_key(&(at.0, mac)) {
                self.netlink.probe_neighbour(at.0, at.1)?;
            }
        }
        Ok(())
    }

    /// An address is not at this station any more. Connections may have been sent there by it; if the station has other
    /// addresses, which of them, nobody knows: all ask for their way once more.
    fn moved_from(&mut self, plane: &mut Plane, old: Station) -> Result<()> {
        let (hops, tables) = plane.next_hops();
        if !self.alive.contains(&old) {
            return hops.forget_neighbour(tables, old.0, old.1);
        }
        hops.renew_neighbours(tables, &HashSet::from([old]))?;
        self.unsure.insert(old);
        Ok(())
    }

    /// Compares the way to a client of each neighbour in use with the neighbour. One that is not the way any more is
    /// forgotten, but only when the kernel knows the one that is: until then it is the best guess.
    fn make_sure(&mut self, plane: &mut Plane, view: &View) -> Result<()> {
        for station in std::mem::take(&mut self.unsure) {
            let Some(client) = self.in_use.get(&station).copied() else { continue };
            let Some(route) = self.way_to(client)? else { continue };
            let next = route.gateway.unwrap_or(client);
            let neighbour = view.neighbours.get(&(route.ifindex, next)).filter(|neighbour| neighbour.usable);
            match neighbour.and_then(|neighbour| neighbour.mac) {
                Some(mac) if (route.ifindex, mac) == station => {}
                Some(_) => {
                    let (hops, tables) = plane.next_hops();
                    hops.forget_neighbour(tables, station.0, station.1)?;
                }
                None => {
                    if view.links.get(&route.ifindex).is_some_and(|link| link.up) {
                        self.netlink.probe_neighbour(route.ifindex, next)?;
                    }
                    self.unsure.insert(station);
                }
            }
        }
        Ok(())
    }

    /// Routes go with the interface that they lead out by.
    fn no_route(&self, view: &View, backend: BackendId) -> String {
        let (address, way) = (backend.address, self.ways.get(&backend));
        match way.and_then(|way| view.links.get(&way.ifindex)).filter(|link| !link.up) {
            Some(Link { name, .. }) => format!(
                "{name}, which backend {address} is behind, is down, and the route with it: set it up (ip link set {name} up)"
            ),
            None => format!(
                "there is no route to backend {address} any more: add one (ip route add {} via GATEWAY)",
                address.ip()
            ),
        }
    }

    fn follow_backend(
        &mut self,
        plane: &mut Plane,
        view: &View,
        backend: BackendId,
    ) -> Result<Option<String>> {
        let address = *backend.address.ip();
        let route = view.routes.get(&address);
        let Some((route, link)) = route.and_then(|route| Some((route, view.links.get(&route.ifindex)?)))
        else {
            return Ok(Some(self.no_route(view, backend)));
        };
        let next = route.gateway.unwrap_or(address);
        let neighbour = view.neighbours.get(&(route.ifindex, next));
        if link.up && neighbour.is_none_or(|neighbour| !neighbour.usable || neighbour.stale) {
            self.netlink.probe_neighbour(route.ifindex, next)?;
        }
        let mac = neighbour.filter(|neighbour| neighbour.usable).and_then(|neighbour| neighbour.mac);
        let Some(hop) = next_hop(link, mac) else {
            return Ok(Some(format!(
                "{0}, which backend {1} is behind, is down: set it up (ip link set {0} up)",
                link.name, backend.address
            )));
        };
        let known = self.ways.get_mut(&backend);
        // While ARP is being asked again the old MAC is the best guess.
        let same = |way: &Way| way.mac.is_some() && way.ifindex == link.index && way.next_hop == next;
        let interface = link.name.clone();
        let way = |index, mac, unanswered| Way {
            index,
            ifindex: link.index,
            interface,
            next_hop: next,
            mac,
            unanswered,
        };
        match known {
            Some(known) if mac.is_none() && same(known) => {
                known.unanswered.get_or_insert_with(Instant::now);
                return Ok(None);
            }
            // So is the one that the instance before left.
            None if mac.is_none() => {
                let left = plane.next_hop_of(backend).filter(|(_, hop)| hop.ifindex == link.index);
                if let Some((index, NextHop { neighbour: Some(left), .. })) = left {
                    self.ways.insert(backend, way(index, Some(left), Some(Instant::now())));
                    return Ok(None);
                }
            }
            _ => {}
        }
        let (hops, tables) = plane.next_hops();
        let Some(index) = hops.of_backend(tables, hop)? else {
            return Ok(Some(format!(
                "no row is left for the next hop of backend {}: it stays at the old one",
                backend.address
            )));
        };
        // By the row itself: a change that was taken back may have put it to what it was.
        if plane.next_hop_row(backend) != Some(index) {
            plane.set_next_hop(backend, index)?;
        }
        self.ways.insert(backend, way(index, mac, None));
        Ok(None)
    }

    /// How a backend is reached, for people.
    pub fn describe(&self, backend: BackendId) -> String {
        let Some(way) = self.ways.get(&backend) else { return "not reachable now".into() };
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
