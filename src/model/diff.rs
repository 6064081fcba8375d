use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::{AdminState, Backend, Health, Protocol, Scheduler, Service, Timeouts, Weight};

/// One change on the way from one set of services to another. Its text is a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What people call the service that changes.
    pub service: String,
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
    /// It has another name.
    Name(String),
    /// New connections are spread in another way.
    Scheduler(Scheduler, Scheduler),
    /// Clients come back to their backends for another time, or not at all.
    Sticky(Option<Duration>, Option<Duration>),
    /// Something else of it is set otherwise: the key, what it was, what it is.
    Setting(&'static str, String, String),
    /// Its backends are checked in another way.
    Health(&'static str),
    /// It gets a backend.
    AddBackend(Backend),
    /// A backend gets no new connections; live ones go on.
    RemoveBackend(SocketAddrV4),
    /// A backend's share of new connections changes.
    Weight(SocketAddrV4, Weight, Weight),
    /// The operator wants something else of a backend.
    State(SocketAddrV4, AdminState, AdminState),
}

type Key = (SocketAddrV4, Protocol);

fn key(service: &Service) -> Key {
    (service.vip, service.protocol)
}

/// The steps from `old` to `new`: services that go, then service by service what changes, in the order of `new`. A service
/// is known by address, port and protocol, a backend by its address and port. The order of backends is no change.
pub fn diff(old: &[Service], new: &[Service]) -> Vec<Step> {
    let by_key = |services: &[Service]| -> HashMap<Key, usize> {
        services.iter().enumerate().map(|(at, service)| (key(service), at)).collect()
    };
    let (before, after) = (by_key(old), by_key(new));
    let gone = old.iter().filter(|service| !after.contains_key(&key(service)));
    let gone = gone.map(|service| step(service, Change::Remove));
    let changed = new.iter().flat_map(|service| match before.get(&key(service)) {
        Some(at) => changes(&old[*at], service),
        None => vec![step(service, Change::Add(service.scheduler, service.backends.clone()))],
    });
    gone.chain(changed).collect()
}

fn step(service: &Service, change: Change) -> Step {
    Step { service: service.label(), change }
}

/// What changes in a service that stays.
fn changes(old: &Service, new: &Service) -> Vec<Step> {
    let mut changes = settings(old, new);
    let before: HashMap<SocketAddrV4, &Backend> = old.backends.iter().map(|one| (one.address, one)).collect();
    let after: HashMap<SocketAddrV4, &Backend> = new.backends.iter().map(|one| (one.address, one)).collect();
    let gone = old.backends.iter().filter(|backend| !after.contains_key(&backend.address));
    changes.extend(gone.map(|backend| Change::RemoveBackend(backend.address)));
    for backend in &new.backends {
        let Some(old) = before.get(&backend.address) else {
            changes.push(Change::AddBackend(*backend));
            continue;
        };
        if old.weight != backend.weight {
            changes.push(Change::Weight(backend.address, old.weight, backend.weight));
        }
        if old.state != backend.state {
            changes.push(Change::State(backend.address, old.state, backend.state));
        }
    }
    changes.into_iter().map(|change| step(new, change)).collect()
}

/// What changes in a service apart from its backends.
fn settings(old: &Service, new: &Service) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(Change::Name(old.name.clone()));
    }
    if old.scheduler != new.scheduler {
        changes.push(Change::Scheduler(old.scheduler, new.scheduler));
    }
    if old.sticky != new.sticky {
        changes.push(Change::Sticky(old.sticky, new.sticky));
    }
    let mut set = |what, old: String, new: String| {
        if old != new {
            changes.push(Change::Setting(what, old, new));
        }
    };
    let times = |timeouts: &Timeouts| {
        [timeouts.established, timeouts.unconfirmed, timeouts.closing, timeouts.udp].map(text)
    };
    let names = ["timeout-established", "timeout-unconfirmed", "timeout-closing", "timeout-udp"];
    for ((name, old), new) in names.into_iter().zip(times(&old.timeouts)).zip(times(&new.timeouts)) {
        set(name, old, new);
    }
    set("on-empty", old.on_empty.name().into(), new.on_empty.name().into());
    set("on-down", old.on_down.name().into(), new.on_down.name().into());
    set("slow-start", text(old.slow_start), text(new.slow_start));
    if old.health != new.health {
        changes.extend(health(&old.health, &new.health));
    }
    changes
}

/// The keys of a check that change; of another kind of check, or another request, only that.
fn health(old: &Health, new: &Health) -> Vec<Change> {
    if old.probe != new.probe {
        return vec![Change::Health(new.probe.name())];
    }
    let port =
        |health: &Health| health.port.map_or("that of the backend".to_owned(), |port| port.to_string());
    let initial = |health: &Health| format!("{:?}", health.initial).to_lowercase();
    let settings = [
        ("health interval", text(old.interval), text(new.interval)),
        ("health timeout", text(old.timeout), text(new.timeout)),
        ("health rise", old.rise.to_string(), new.rise.to_string()),
        ("health fall", old.fall.to_string(), new.fall.to_string()),
        ("health port", port(old), port(new)),
        ("health initial", initial(old), initial(new)),
        ("health passive", old.passive.to_string(), new.passive.to_string()),
    ];
    let changed = settings.into_iter().filter(|(_, old, new)| old != new);
    changed.map(|(what, old, new)| Change::Setting(what, old, new)).collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {}: ", self.service)?;
        match &self.change {
            Change::Add(scheduler, backends) => {
                write!(f, "add, {scheduler} over")?;
                backends.iter().try_for_each(|backend| write!(f, " {backend}"))?;
                if backends.is_empty() { write!(f, " no backends yet") } else { Ok(()) }
            }
            Change::Remove => write!(f, "remove"),
            Change::Name(old) => write!(f, "new name, it was {old}"),
            Change::Scheduler(old, new) => write!(f, "scheduler {old} -> {new}"),
            Change::Sticky(old, new) => write!(f, "sticky {} -> {}", time(*old), time(*new)),
            Change::Setting(what, old, new) => write!(f, "{what} {old} -> {new}"),
            Change::Health(probe) => write!(f, "another health check ({probe})"),
            Change::AddBackend(backend) => {
                write!(f, "add backend {} weight {}", backend.address, backend.weight.get())?;
                match backend.state {
                    AdminState::Enabled => Ok(()),
                    state => write!(f, " ({state})"),
                }
            }
            Change::RemoveBackend(address) => {
                write!(f, "remove backend {address}: no new connections, live ones go on")
            }
            Change::Weight(address, old, new) => {
                write!(f, "backend {address}: weight {} -> {}", old.get(), new.get())
            }
            Change::State(address, old, new) => write!(f, "backend {address}: {old} -> {new}"),
        }
    }
}

fn time(sticky: Option<Duration>) -> String {
    sticky.map_or("off".to_owned(), |time| format!("{}s", time.as_secs_f64().round()))
}

/// 90s, 500ms: what a configuration takes.
fn text(time: Duration) -> String {
    if time.subsec_millis() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::super::{HttpProbe, OnEmpty, Probe};
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
    fn backends_come_go_and_change() {
        let old = [web(&[("10.0.0.1:80", 50), ("10.0.0.2:80", 30), ("10.0.0.3:80", 20)])];
        let mut new = [web(&[("10.0.0.4:80", 1), ("10.0.0.1:80", 30), ("10.0.0.3:80", 20)])];
        new[0].backends[2].state = AdminState::Drain;
        assert_eq!(
            texts(&old, &new),
            [
                "service 192.0.2.1:80/tcp: remove backend 10.0.0.2:80: no new connections, live ones go on",
                "service 192.0.2.1:80/tcp: add backend 10.0.0.4:80 weight 1",
                "service 192.0.2.1:80/tcp: backend 10.0.0.1:80: weight 50 -> 30",
                "service 192.0.2.1:80/tcp: backend 10.0.0.3:80: enabled -> drain",
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

    #[test]
    fn each_setting_has_its_step() {
        let old = Service { name: "web".into(), health: Health::of(Probe::Tcp), ..web(&[]) };
        let mut new = Service { name: "shop".into(), on_empty: OnEmpty::Pass, ..old.clone() };
        new.timeouts.udp = Duration::from_millis(1500);
        new.slow_start = Duration::from_secs(30);
        new.health.fall = 5;
        assert_eq!(
            texts(std::slice::from_ref(&old), &[new]),
            [
                "service shop: new name, it was web",
                "service shop: timeout-udp 60s -> 1500ms",
                "service shop: on-empty drop -> pass",
                "service shop: slow-start 0s -> 30s",
                "service shop: health fall 3 -> 5",
            ]
        );
        let http = Service { health: Health::of(Probe::Http(HttpProbe::default())), ..old.clone() };
        assert_eq!(texts(std::slice::from_ref(&old), &[http]), ["service web: another health check (http)"]);
        let empty = Service { protocol: Protocol::Udp, ..old.clone() };
        assert_eq!(
            texts(&[old], &[empty]),
            ["service web: remove", "service web/udp: add, weighted-round-robin over no backends yet"]
        );
    }
}
