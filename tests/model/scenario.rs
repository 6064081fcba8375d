//! The set-ups in which the program is compared with the model, and the model's view of them.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::Ordering;
use std::time::Duration;

use xdp_lb::dataplane::Profile;
use xdp_lb::dataplane::types::{
    lb_backend_state, lb_nexthop, lb_nexthop_flags, lb_ring_layout, lb_service, lb_service_flags, lb_settings,
};
use xdp_lb::model::{Protocol, Scheduler as Configured, Service as Config};

use super::packets::lab::*;
use super::world::{Backend, Fib, NextHop, Scheduler, Sends, Service, State, World};

pub const OTHER_VIP: SocketAddrV4 = super::packets::lab::address([192, 168, 1, 101], 443);
/// Any secret; always the same, so that a sequence can be repeated.
const KEY: [u64; 4] =
    [0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0, 0x1357_9bdf_0246_8ace, 0xfdb9_7531_eca8_6420];

/// Seconds.
const STICKY: u64 = 20;

/// A set-up: services, how large the table is, and whether the neighbours on the clients' side have rows.
pub struct Scenario {
    pub name: &'static str,
    pub profile: Profile,
    pub services: Vec<Config>,
    pub max_connections: u32,
    pub neighbours: bool,
}

impl Scenario {
    pub fn setup(&self) -> Setup {
        Setup {
            services: self.services.clone(),
            profile: Profile { test_clock: true, ..self.profile },
            max_connections: self.max_connections,
            key: Some(KEY),
            ..Setup::default()
        }
    }
}

/// What a test needs to be in the same set-up.
impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    let mut services = vec![")?;
        for service in &self.services {
            let backends: Vec<_> = service
                .backends
                .iter()
                .map(|backend| (backend.address.ip().octets()[3] - 10, backend.weight.get()))
                .collect();
            let (ip, port) = (service.vip.ip().octets(), service.vip.port());
            writeln!(
                f,
                "        service(address({ip:?}, {port}), Protocol::{:?}, Scheduler::{:?}, &{backends:?}),",
                service.protocol, service.scheduler
            )?;
        }
        writeln!(f, "    ];")?;
        for n in (0..self.services.len()).filter(|n| self.services[*n].sticky.is_some()) {
            writeln!(f, "    services[{n}].sticky = Some(std::time::Duration::from_secs({STICKY}));")?;
        }
        let profile =
            format!("Profile {{ test_clock: true, ..Profile::{} }}", self.profile.name().to_uppercase());
        let rest = format!("max_connections: {}, key: Some({KEY:?})", self.max_connections);
        write!(f, "    let setup = Setup {{ services, profile: {profile}, {rest}, ..Setup::default() }};")
    }
}

/// Every kind of service in every profile.
pub fn all() -> Vec<Scenario> {
    Profile::ALL.iter().flat_map(|profile| of_profile(*profile)).collect()
}

fn of_profile(profile: Profile) -> Vec<Scenario> {
    use Configured::{IpHash, LeastConn, Maglev, RoundRobin, WeightedRoundRobin};
    use Protocol::{Tcp, Udp};
    let three = [(0, 1), (1, 1), (2, 1)];
    let weighted = [(0, 3), (1, 1), (2, 2)];
    let many: Vec<(u8, u8)> = (0..70).map(|n| (n, 1 + n % 3)).collect();
    let sticky = |service: Config| Config { sticky: Some(Duration::from_secs(STICKY)), ..service };
    let both = |vip, scheduler, backends: &[(u8, u8)]| {
        vec![service(vip, Tcp, scheduler, backends), service(vip, Udp, scheduler, backends)]
    };
    let scenario = |name, services, max_connections, neighbours| Scenario {
        name,
        profile,
        services,
        max_connections,
        neighbours,
    };
    let shared = vec![
        service(VIP, Tcp, WeightedRoundRobin, &weighted),
        service(OTHER_VIP, Tcp, RoundRobin, &three[..2]),
        service(OTHER_VIP, Udp, RoundRobin, &three[..1]),
        service(VIP, Udp, RoundRobin, &three[..2]),
    ];
    let sticky_and_shared = vec![
        sticky(service(VIP, Tcp, RoundRobin, &three)),
        service(OTHER_VIP, Tcp, LeastConn, &weighted),
        sticky(service(VIP, Udp, WeightedRoundRobin, &weighted)),
    ];
    let hashed = vec![
        service(VIP, Tcp, IpHash, &weighted),
        service(OTHER_VIP, Tcp, Maglev, &three),
        service(VIP, Udp, Maglev, &three),
        sticky(service(OTHER_VIP, Udp, IpHash, &weighted)),
    ];
    vec![
        scenario("tiny table", both(VIP, RoundRobin, &three), 1, true),
        scenario("shared backends", shared, 20, true),
        scenario("least connections", both(VIP, LeastConn, &weighted), 8, false),
        scenario("least of many", both(VIP, LeastConn, &many), 30, true),
        scenario("sticky", sticky_and_shared, 12, true),
        scenario("hashed", hashed, 30, false),
    ]
}

/// The neighbours on the clients' side that the kernel knows.
pub const NEIGHBOURS: [super::packets::frame::Mac; 2] = [CLIENT_MAC, GATEWAY_MAC];

/// What the control plane has put into the tables, read and understood anew.
pub fn world(lab: &mut Lab, scenario: &Scenario) -> World {
    let settings: lb_settings = *lab.plane.settings();
    let mut world = World {
        skb_mode: scenario.profile.skb_mode,
        partial_possible: scenario.profile.partial_possible,
        stack: scenario.profile.stack,
        key: settings.key,
        buckets: settings.buckets,
        timeouts: settings.timeout,
        services: BTreeMap::new(),
        backends: BTreeMap::new(),
        origins: BTreeMap::new(),
        next_hops: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        egresses: BTreeMap::new(),
        routes: routes(),
        default_route: found(GATEWAY_MAC),
    };
    for config in &scenario.services {
        add_service(&mut world, lab, config);
    }
    let shared: Vec<u16> =
        world.origins.values().filter(|pairs| pairs.len() > 1).flatten().map(|p| p.1).collect();
    for index in shared {
        world.backends.get_mut(&index).expect("it was added").shared = true;
    }
    if scenario.neighbours {
        for mac in NEIGHBOURS {
            let index = lab.neighbour(mac);
            world.neighbours.insert((lab.front, mac), index);
        }
    }
    refresh(&mut world, lab);
    world
}

fn add_service(world: &mut World, lab: &Lab, config: &Config) {
    let raw = |address: Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets()));
    let rows = &lab.plane.tables().services;
    let is_it = |row: &lb_service| {
        row.addr.half[1] >> 32 == raw(*config.vip.ip())
            && row.port == config.vip.port().to_be()
            && row.proto == config.protocol.number()
    };
    let (index, row) = (1..rows.len())
        .map(|index| (index as u16, rows.get(index).unwrap()))
        .find(|(_, row)| is_it(row))
        .expect("each service has a row");
    let service = Service {
        address: *config.vip.ip(),
        port: config.vip.port(),
        protocol: config.protocol.number(),
        scheduler: match config.scheduler {
            Configured::RoundRobin => Scheduler::RoundRobin,
            Configured::WeightedRoundRobin => Scheduler::WeightedRoundRobin,
            Configured::IpHash => Scheduler::IpHash,
            Configured::Maglev => Scheduler::Maglev,
            Configured::LeastConn => Scheduler::LeastConn,
        },
        sticky: row.sticky,
        ring: slots(lab, row.ring),
        members: slots(lab, row.members),
        pass_empty: false,
    };
    for backend in &config.backends {
        let rows = &lab.plane.tables().backends;
        let found = lab.plane.backends().iter().find(|id| {
            let row = rows.get(usize::from(id.index)).unwrap();
            row.service == index && id.address == backend.address
        });
        let id = found.expect("each backend has a row").index;
        world.backends.insert(
            id,
            Backend {
                service: index,
                address: *backend.address.ip(),
                port: backend.address.port(),
                weight: backend.weight.get(),
                state: State::Up,
                shared: false,
                counted: config.scheduler == Configured::LeastConn,
                sticky: config.sticky.is_some(),
                next_hop: 0,
            },
        );
        let origin = (*backend.address.ip(), backend.address.port(), service.protocol);
        world.origins.entry(origin).or_default().push((index, id));
    }
    world.services.insert(index, service);
}

/// A ring, or a list of members, that a service's row names.
fn slots(lab: &Lab, word: u64) -> Vec<u16> {
    let rings = &lab.plane.tables().rings;
    let field = |shift: lb_ring_layout| (word >> shift.0) as usize & 0xff_ffff;
    let first = field(lb_ring_layout::LB_RING_OFFSET_SHIFT);
    let length = field(lb_ring_layout::LB_RING_LENGTH_SHIFT);
    (0..length.div_ceil(32)).flat_map(|line| rings.get(first + line).unwrap().backend).take(length).collect()
}

/// The parts that change during a sequence.
pub fn refresh(world: &mut World, lab: &Lab) {
    let tables = lab.plane.tables();
    let mut used: Vec<u16> = world.neighbours.values().copied().collect();
    for (index, backend) in &mut world.backends {
        let row = tables.backends.get(usize::from(*index)).unwrap();
        backend.state = match lb_backend_state(u32::from(row.state)) {
            lb_backend_state::LB_BACKEND_UP => State::Up,
            lb_backend_state::LB_BACKEND_DRAIN => State::Drain,
            lb_backend_state::LB_BACKEND_DOWN => State::Down,
            lb_backend_state::LB_BACKEND_RESET => State::Reset,
            lb_backend_state::LB_BACKEND_DISABLED => State::Disabled,
            other => panic!("a backend in state {other:?}"),
        };
        backend.next_hop = row.nexthop;
        used.push(row.nexthop);
    }
    for (index, service) in &mut world.services {
        let row = tables.services.get(usize::from(*index)).unwrap();
        service.pass_empty = u32::from(row.flags) & lb_service_flags::LB_SERVICE_PASS_EMPTY.0 != 0;
    }
    for index in used {
        // A row stays what it was when nobody names it any more: entries still do.
        world.next_hops.insert(index, next_hop(&tables.nexthops.get(usize::from(index)).unwrap()));
    }
    let indices: Vec<u16> = world.next_hops.keys().copied().collect();
    for index in indices {
        world.next_hops.insert(index, next_hop(&tables.nexthops.get(usize::from(index)).unwrap()));
    }
}

fn next_hop(row: &lb_nexthop) -> NextHop {
    let has = |flag: lb_nexthop_flags| u32::from(row.flags) & flag.0 != 0;
    NextHop {
        interface: row.ifindex,
        mtu: row.mtu,
        valid: has(lb_nexthop_flags::LB_NEXTHOP_VALID),
        sends: Sends {
            no_tx: has(lb_nexthop_flags::LB_NEXTHOP_NO_TX),
            no_redirect: has(lb_nexthop_flags::LB_NEXTHOP_NO_REDIRECT),
        },
        destination: row.macs[..6].try_into().unwrap(),
        source: row.macs[6..].try_into().unwrap(),
    }
}

/// Makes the row of a neighbour valid or not, as if it had been retired.
pub fn set_valid(lab: &Lab, index: u16, valid: bool) {
    let byte = lab.plane.tables().nexthops.byte(usize::from(index), offset_of!(lb_nexthop, flags)).unwrap();
    let flag = lb_nexthop_flags::LB_NEXTHOP_VALID.0 as u8;
    if valid {
        byte.fetch_or(flag, Ordering::Relaxed);
    } else {
        byte.fetch_and(!flag, Ordering::Relaxed);
    }
}

/// What the lab's network looks like to the kernel's FIB.
fn routes() -> BTreeMap<Ipv4Addr, Fib> {
    let mut routes = BTreeMap::new();
    for host in 0..=255 {
        let here = [([192, 168, 1, host], 1), ([10, 0, 0, host], 1)];
        for (octets, own) in here {
            let fib = if host == own || host == 255 { Fib::Failed } else { Fib::NoNeighbour };
            routes.insert(Ipv4Addr::from(octets), fib);
        }
    }
    routes.insert(*CLIENT.ip(), found(CLIENT_MAC));
    routes.insert(Ipv4Addr::new(192, 168, 1, 254), found(GATEWAY_MAC));
    routes
}

fn found(destination: super::packets::frame::Mac) -> Fib {
    Fib::Found { interface: 10, mtu: MTU, destination, source: LB_MAC }
}
