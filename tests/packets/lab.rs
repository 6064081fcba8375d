//! A network namespace with one interface towards clients and one towards backends, and the loaded program.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use xdp_lb::dataplane::types::{lb_backend_state, lb_service, lb_service_flags, lb_state_layout};
use xdp_lb::dataplane::{
    BackendEvents, BackendId, Census, Egress, Explainer, Explanation, NextHop, Plane, Profile, Reason,
    Request,
};
use xdp_lb::model::{Backend, Protocol, Scheduler, Service, Timeouts, Weight};

use super::frame::{Frame, Mac, tcp};

pub const VIP: SocketAddrV4 = address([192, 168, 1, 100], 80);
pub const CLIENT: SocketAddrV4 = address([192, 168, 1, 2], 40000);
/// Behind a gateway.
pub const FAR_CLIENT: SocketAddrV4 = address([203, 0, 113, 9], 40000);
/// On the clients' segment, with a MAC that nobody knows.
pub const SILENT_CLIENT: SocketAddrV4 = address([192, 168, 1, 77], 40000);

pub const LB_MAC: Mac = [2, 0, 0, 0, 0, 1];
pub const LB_BACK_MAC: Mac = [2, 0, 0, 0, 0, 2];
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 2];
pub const GATEWAY_MAC: Mac = [2, 0, 0, 0, 1, 0xfe];
pub const MTU: u32 = 1500;

pub const fn address(ip: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]), port)
}

/// The n-th backend, from 0.
pub fn backend(n: u8) -> SocketAddrV4 {
    address([10, 0, 0, 10 + n], 8080)
}

pub fn backend_mac(n: u8) -> Mac {
    [2, 0, 0, 0, 2, n]
}

pub fn service(
    vip: SocketAddrV4,
    protocol: Protocol,
    scheduler: Scheduler,
    backends: &[(u8, u8)],
) -> Service {
    let backends =
        backends.iter().map(|(n, weight)| Backend::new(backend(*n), Weight::new(*weight).unwrap())).collect();
    Service { scheduler, ..Service::new(vip, protocol, backends) }
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop = 1,
    Pass = 2,
    Tx = 3,
    Redirect = 4,
}

/// How the program is loaded for a test.
pub struct Setup {
    pub services: Vec<Service>,
    pub profile: Profile,
    pub max_connections: u32,
    pub timeouts: Timeouts,
    /// The table's secret; `None`: a random one.
    pub key: Option<[u64; 4]>,
}

impl Default for Setup {
    fn default() -> Setup {
        let backends = [(0, 1), (1, 1), (2, 1)];
        Setup {
            services: vec![
                service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &backends),
                service(VIP, Protocol::Udp, Scheduler::RoundRobin, &backends),
            ],
            profile: Profile { test_clock: true, ..Profile::NATIVE },
            max_connections: 1000,
            timeouts: Timeouts::default(),
            key: None,
        }
    }
}

pub struct Lab {
    pub plane: Plane,
    pub profile: Profile,
    /// Towards clients.
    pub front: u32,
    /// Towards backends.
    pub back: u32,
    /// By profile: a copy that tells before what becomes of each packet, and its tables' version.
    explainer: Option<(Profile, Explainer)>,
}

/// Runs a test in a namespace of its own.
pub fn lab(setup: Setup, test: impl FnOnce(&mut Lab) + Send + 'static) {
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        network();
        let mut lab = Lab::with(setup);
        test(&mut lab);
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The interfaces, neighbours and routes of the namespace that this thread is in.
pub fn network() {
    // Where the program is attached too, the kernel's own chatter would be counted.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    ip(&format!("link add front index 10 address {} type veth peer name front-far", text(LB_MAC)));
    ip(&format!("link add back index 20 address {} type veth peer name back-far", text(LB_BACK_MAC)));
    ip("address add 192.168.1.1/24 dev front");
    ip("address add 10.0.0.1/24 dev back");
    for link in ["lo", "front", "front-far", "back", "back-far"] {
        ip(&format!("link set {link} up"));
    }
    ip(&format!("neighbour add 192.168.1.2 lladdr {} dev front nud permanent", text(CLIENT_MAC)));
    ip(&format!("neighbour add 192.168.1.254 lladdr {} dev front nud permanent", text(GATEWAY_MAC)));
    ip("route add default via 192.168.1.254");
    std::fs::write("/proc/sys/net/ipv4/conf/lo/forwarding", "1").unwrap();
}

impl Lab {
    /// In the namespace of this thread, whose network is there.
    pub fn with(setup: Setup) -> Lab {
        let mut plane = Plane::load_for(&Request {
            max_connections: setup.max_connections,
            timeouts: &setup.timeouts,
            services: &setup.services,
            profile: setup.profile,
            key: setup.key,
        })
        .unwrap();
        plane.apply(&setup.services).unwrap();
        let mut lab = Lab { plane, profile: setup.profile, front: 10, back: 20, explainer: None };
        lab.clock(1000);
        lab.egress(10, Some(Egress::DIRECT));
        lab.egress(20, Some(Egress::DIRECT));
        for backend in lab.plane.backends().to_vec() {
            let n = backend.address.ip().octets()[3] - 10;
            lab.reach(backend, Some(backend_mac(n)), 20);
        }
        lab
    }

    /// Gives a backend a next hop.
    pub fn reach(&mut self, backend: BackendId, neighbour: Option<Mac>, ifindex: u32) -> u16 {
        let source = if ifindex == self.back { LB_BACK_MAC } else { LB_MAC };
        let hop = NextHop { ifindex, mtu: MTU, source, neighbour };
        let (hops, tables) = self.plane.next_hops();
        let index = hops.of_backend(tables, hop).unwrap().unwrap();
        self.plane.set_next_hop(backend, index).unwrap();
        index
    }

    /// The n-th row of a backend.
    pub fn row(&self, n: usize) -> BackendId {
        self.plane.backends()[n]
    }

    /// How frames leave by an interface; `None`: nothing is known of it.
    pub fn egress(&mut self, ifindex: u32, egress: Option<Egress>) {
        let (hops, tables) = self.plane.next_hops();
        hops.set_egress(tables, ifindex, egress).unwrap();
    }

    /// Gives a neighbour on the clients' side a row.
    pub fn neighbour(&mut self, mac: Mac) -> u16 {
        let hop = NextHop { ifindex: self.front, mtu: MTU, source: LB_MAC, neighbour: Some(mac) };
        let (hops, tables) = self.plane.next_hops();
        hops.of_neighbour(tables, hop).unwrap().unwrap()
    }

    /// Sets the state of the n-th row of a backend.
    pub fn state(&self, n: usize, state: lb_backend_state) {
        let offset = std::mem::offset_of!(xdp_lb::dataplane::types::lb_backend, state);
        let index = usize::from(self.row(n).index);
        let byte = self.plane.tables().backends.byte(index, offset).unwrap();
        byte.store(state.0 as u8, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether a service leaves to the kernel what no backend takes.
    pub fn pass_empty(&self, service: u16, pass: bool) {
        let offset = std::mem::offset_of!(lb_service, flags);
        let byte = self.plane.tables().services.byte(usize::from(service), offset).unwrap();
        let flags = if pass { lb_service_flags::LB_SERVICE_PASS_EMPTY.0 } else { 0 };
        byte.store(flags as u8, std::sync::atomic::Ordering::Relaxed);
    }

    /// How the n-th row of a backend answers: SYNs since its last SYN-ACK, refused ones.
    pub fn answers(&self, n: usize) -> (u32, u32) {
        let row = self.plane.tables().backend_answers.get(usize::from(self.row(n).index)).unwrap();
        (row.unanswered, row.refused)
    }

    /// What became of the connections of the n-th row of a backend.
    pub fn events(&self, n: usize) -> BackendEvents {
        let row = self.plane.tables().backend_events.get(usize::from(self.row(n).index)).unwrap();
        BackendEvents::from(&row)
    }

    /// How many connections of the n-th row of a backend were opened.
    pub fn opened(&self, n: usize) -> u64 {
        self.plane.tables().backend_counters(self.row(n).index).unwrap().connections
    }

    /// Of every row, those of backends that are gone too: whatever was opened or revived has ended or lives.
    #[track_caller]
    pub fn balance(&self) {
        let tables = self.plane.tables();
        let rows = tables.backend_events.len();
        let mut live = vec![0; rows];
        for bucket in 0..tables.connections.len() {
            for conn in tables.connections.get(bucket).unwrap().conn {
                let expired = conn.state >> lb_state_layout::LB_STATE_EXPIRED_SHIFT.0 & 1 == 1;
                let phase = conn.state >> lb_state_layout::LB_STATE_PHASE_SHIFT.0 & 7;
                live[usize::from(conn.state as u16)] += u64::from((1..=5).contains(&phase) && !expired);
            }
        }
        for (index, live) in live.into_iter().enumerate() {
            let events = BackendEvents::from(&tables.backend_events.get(index).unwrap());
            let came = tables.backend_counters(index as u16).unwrap().connections + events.revived;
            let ended = events.closed + events.reset + events.expired + events.evicted + events.moved;
            assert_eq!(came, ended + live, "row {index}: {events:?}, {live} live");
        }
    }

    pub fn clock(&mut self, now: u16) {
        self.long_clock(u32::from(now));
    }

    /// Sets the clock of client affinity, of which the table's is the low half.
    pub fn long_clock(&mut self, now: u32) {
        self.plane.program(self.profile).unwrap();
        self.plane.set_test_clock(now).unwrap();
    }

    /// The load of the n-th row of a backend.
    pub fn load(&self, n: usize) -> i64 {
        self.plane.tables().loads().load(self.row(n).index)
    }

    /// A sweep as the running process makes it, at a time of the table's clock.
    pub fn sweep(&mut self, now: u32) -> Census {
        self.plane.sweep_at(now).unwrap()
    }

    /// A whole connection of a client with the backend that it is sent to, up to its confirmation. Returns which.
    pub fn connect(&mut self, client: SocketAddrV4) -> u8 {
        let syn = tcp(client, VIP, "S").bytes();
        let (_, reason, out) = self.send(self.front, &syn);
        assert_eq!(reason, "sent to_backend");
        let n = out[33] - 10;
        self.send(self.back, &tcp(backend(n), client, "SA").macs(LB_BACK_MAC, backend_mac(n)).bytes());
        self.reaches_backend("its ACK", &tcp(client, VIP, "A"), n);
        n
    }

    /// A client's connection is reset by its backend.
    pub fn reset(&mut self, client: SocketAddrV4, n: u8) {
        let rst = tcp(backend(n), client, "R").macs(LB_BACK_MAC, backend_mac(n)).bytes();
        assert_eq!(self.send(self.back, &rst).1, "sent to_client");
    }

    /// What a copy that explains says of a frame.
    fn explain(&mut self, ifindex: u32, frame: &[u8]) -> Explanation {
        if self.explainer.as_ref().is_none_or(|(profile, _)| *profile != self.profile) {
            let explainer = Explainer::load(self.plane.tables(), self.profile).unwrap();
            self.explainer = Some((self.profile, explainer));
        }
        let (_, explainer) = self.explainer.as_ref().unwrap();
        explainer.explain_like(self.plane.program(self.profile).unwrap(), frame, ifindex).unwrap()
    }

    /// Sends a frame in on an interface. Returns the verdict, the reason counted and the frame afterwards, all of which must
    /// have been foretold by the copy that explains.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) -> (Verdict, String, Vec<u8>) {
        let before = self.counts();
        let told = self.explain(ifindex, frame);
        let (number, out) = self.plane.program(self.profile).unwrap().test_run(frame, ifindex).unwrap();
        let verdict = match number {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            other => panic!("verdict {other}"),
        };
        let mut counted = Vec::new();
        for ((reason, old), (_, new)) in before.iter().zip(self.counts()) {
            if new != *old {
                assert_eq!(
                    (new.0 - old.0, new.1 - old.1),
                    (1, frame.len() as u64),
                    "{reason}: counted wrongly"
                );
                counted.push(reason.clone());
            }
        }
        assert_eq!(counted.len(), 1, "a packet is counted once: {counted:?}");
        let foretold = format!("{} {}", told.reason.class.name(), told.reason.name);
        assert_eq!((foretold.as_str(), told.verdict), (counted[0].as_str(), number), "what was foretold");
        assert!(
            told.frame == out,
            "the frame that was foretold\n     got {}\nforetold {}",
            hex(&out),
            hex(&told.frame)
        );
        (verdict, counted.remove(0), out)
    }

    fn counts(&self) -> Vec<(String, (u64, u64))> {
        let count = |reason: &Reason| {
            let counter = self.plane.tables().reason_counter(reason.code()).unwrap();
            (format!("{} {}", reason.class.name(), reason.name), (counter.packets, counter.bytes))
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// A row of the packet table: a frame sent in, the verdict and the reason, and the whole frame afterwards.
    #[track_caller]
    pub fn expect(&mut self, what: &str, ifindex: u32, frame: &[u8], then: (Verdict, &str), after: &[u8]) {
        let (verdict, reason, out) = self.send(ifindex, frame);
        assert_eq!((verdict, reason.as_str()), then, "{what}: verdict and reason");
        assert!(out == after, "{what}: frame\n     got {}\nexpected {}", hex(&out), hex(after));
    }

    /// A row whose frame is left as it came.
    #[track_caller]
    pub fn untouched(&mut self, what: &str, ifindex: u32, frame: &[u8], then: (Verdict, &str)) {
        self.expect(what, ifindex, frame, then, frame);
    }

    /// A client's frame that is sent on to the n-th backend.
    #[track_caller]
    pub fn reaches_backend(&mut self, what: &str, frame: &Frame, n: u8) {
        let after = frame.clone().to(backend(n)).ttl(frame.ttl - 1).macs(backend_mac(n), LB_BACK_MAC);
        self.expect(what, self.front, &frame.bytes(), (Verdict::Redirect, "sent to_backend"), &after.bytes());
    }

    /// A backend's frame that is sent on to its client as if it came from the VIP.
    #[track_caller]
    pub fn reaches_client(&mut self, what: &str, frame: &Frame, mac: Mac) {
        let after = frame.clone().from(VIP).ttl(frame.ttl - 1).macs(mac, LB_MAC);
        self.expect(what, self.back, &frame.bytes(), (Verdict::Redirect, "sent to_client"), &after.bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
