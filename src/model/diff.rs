use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::{Backend, Protocol, Scheduler, Service, Weight};

/// One change on the way from one set of services to another. Its text is a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The virtual address of the service that changes.
    pub vip: SocketAddrV4,
    /// The protocol of the service that changes.
    pub protocol: Protocol,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Add(Scheduler, Vec<Backend>),
    /// It goes, with its connections.
    Remove,
    /// New connections are spread in another way.
    Scheduler(Scheduler, Scheduler),
    /// Clients come back to their backends for another time, or not at all.
    Sticky(Option<Duration>, Option<Duration>),
    /// It gets a backend.
    AddBackend(Backend),
    /// A backend gets no new connections; live ones go on.
    RemoveBackend(SocketAddrV4),
    /// A backend's share of new connections changes.
    Weight(SocketAddrV4, Weight, Weight),
}

/// The steps from `old` to `new`: services that go, then service by service what changes, in the order of `new`. A service
/// is known by address, port and protocol, a backend by its address and port. The order of backends is no change.
pub fn diff(old: &[Service], new: &[Service]) -> Vec<Step> {
    let is_in = |services: &[Service], one: &Service| services.iter().any(|other| same(other, one));
    let gone = old.iter().filter(|service| !is_in(new, service)).map(|service| step(service, Change::Remove));
    let changed = new.iter().flat_map(|service| match old.iter().find(|other| same(other, service)) {
        Some(before) => changes(before, service),
        None => vec![step(service, Change::Add(service.scheduler, service.backends.clone()))],
    });
    gone.chain(changed).collect()
}

fn same(a: &Service, b: &Service) -> bool {
    (a.vip, a.protocol) == (b.vip, b.protocol)
}

fn step(service: &Service, change: Change) -> Step {
    Step { vip: service.vip, protocol: service.protocol, change }
}

/// What changes in a service that stays.
fn changes(old: &Service, new: &Service) -> Vec<Step> {
    let find = |service: &Service, address| {
        service.backends.iter().find(|backend| backend.address == address).copied()
    };
    let mut changes = Vec::new();
    if old.scheduler != new.scheduler {
        changes.push(Change::Scheduler(old.scheduler, new.scheduler));
    }
    if old.sticky != new.sticky {
        changes.push(Change::Sticky(old.sticky, new.sticky));
    }
    for backend in &old.backends {
        if find(new, backend.address).is_none() {
            changes.push(Change::RemoveBackend(backend.address));
        }
    }
    for backend in &new.backends {
        match find(old, backend.address) {
            None => changes.push(Change::AddBackend(*backend)),
            Some(before) if before.weight != backend.weight => {
                changes.push(Change::Weight(backend.address, before.weight, backend.weight));
            }
            Some(_) => {}
        }
    }
    changes.into_iter().map(|change| step(new, change)).collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {}/{}: ", self.vip, self.protocol)?;
        match &self.change {
            Change::Add(scheduler, backends) => {
                write!(f, "add, {scheduler} over")?;
                backends.iter().try_for_each(|backend| write!(f, " {backend}"))
            }
            Change::Remove => write!(f, "remove"),
            Change::Scheduler(old, new) => write!(f, "scheduler {old} -> {new}"),
            Change::Sticky(old, new) => write!(f, "sticky {} -> {}", time(*old), time(*new)),
            Change::AddBackend(backend) => {
                write!(f, "add backend {} (weight {})", backend.address, backend.weight.get())
            }
            Change::RemoveBackend(address) => {
                write!(f, "remove backend {address}: no new connections, live ones go on")
            }
            Change::Weight(address, old, new) => {
                write!(f, "backend {address}: weight {} -> {}", old.get(), new.get())
            }
        }
    }
}

fn time(sticky: Option<Duration>) -> String {
    sticky.map_or("off".to_owned(), |time| format!("{}s", time.as_secs_f64().round()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(vip: &str, protocol: Protocol, scheduler: Scheduler, backends: &[(&str, u8)]) -> Service {
        let backend = |&(address, weight): &(&str, u8)| {
            Backend::new(address.parse().unwrap(), Weight::new(weight).unwrap())
        };
        let backends = backends.iter().map(backend).collect();
        Service { scheduler, ..Service::new(vip.parse().unwrap(), protocol, backends) }
    }

    fn web(backends: &[(&str, u8)]) -> Service {
        service("192.0.2.1:80", Protocol::Tcp, Scheduler::WeightedRoundRobin, backends)
    }

    fn texts(old: &[Service], new: &[Service]) -> Vec<String> {
        diff(old, new).iter().map(Step::to_string).collect()
    }

    #[test]
    fn nothing_changes_nothing() {
        let services = [web(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)])];
        let reordered = [web(&[("10.0.0.2:80", 2), ("10.0.0.1:80", 1)])];
        assert_eq!(diff(&services, &services), []);
        assert_eq!(diff(&services, &reordered), []);
        assert_eq!(diff(&[], &[]), []);
    }

    #[test]
    fn backends_come_go_and_change_their_weight() {
        let old = [web(&[("10.0.0.1:80", 50), ("10.0.0.2:80", 30), ("10.0.0.3:80", 20)])];
        let new = [web(&[("10.0.0.4:80", 1), ("10.0.0.1:80", 30), ("10.0.0.3:80", 20)])];
        assert_eq!(
            texts(&old, &new),
            [
                "service 192.0.2.1:80/tcp: remove backend 10.0.0.2:80: no new connections, live ones go on",
                "service 192.0.2.1:80/tcp: add backend 10.0.0.4:80 (weight 1)",
                "service 192.0.2.1:80/tcp: backend 10.0.0.1:80: weight 50 -> 30",
            ]
        );
    }

    #[test]
    fn services_are_known_by_address_port_and_protocol() {
        let backends = [("10.0.0.1:80", 1)];
        let tcp = web(&backends);
        let udp = service("192.0.2.1:80", Protocol::Udp, Scheduler::Maglev, &backends);
        let other = service("192.0.2.2:80", Protocol::Tcp, Scheduler::Maglev, &backends);
        assert_eq!(
            texts(&[tcp.clone(), udp.clone()], &[other, tcp.clone()]),
            ["service 192.0.2.1:80/udp: remove", "service 192.0.2.2:80/tcp: add, maglev over 10.0.0.1:80:1",]
        );
        let hashed = Service { scheduler: Scheduler::IpHash, ..tcp.clone() };
        assert_eq!(
            texts(std::slice::from_ref(&tcp), &[hashed]),
            ["service 192.0.2.1:80/tcp: scheduler weighted-round-robin -> ip-hash"]
        );
        let sticky = Service { sticky: Some(Duration::from_secs(90)), ..tcp.clone() };
        assert_eq!(texts(&[tcp], &[sticky]), ["service 192.0.2.1:80/tcp: sticky off -> 90s"]);
    }
}
