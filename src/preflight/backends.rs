use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Finding, Level, Scene};
use crate::config::Config;
use crate::dataplane::SERVICES_PER_BACKEND;
use crate::model::Protocol;
use crate::net::{Address, Link, Route, RouteKind};

const ROUTE: &str = "route";

pub(super) fn check(scene: &Scene, config: &Config) -> Vec<Finding> {
    let found = routes(scene, config).into_iter().map(|(_, finding)| finding);
    found.chain(relations(scene, config)).collect()
}

/// The same, with one line for all backends that are reached by an interface.
pub(super) fn check_briefly(scene: &Scene, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    for (by, finding) in routes(scene, config) {
        match by.filter(|_| finding.level == Level::Ok) {
            Some(by) if scene.shows(by) => *reached.entry(by.name.clone()).or_default() += 1,
            Some(_) => {}
            None => findings.push(finding),
        }
    }
    findings.extend(reached.into_iter().map(|(interface, count)| {
        let message = match count {
            1 => format!("1 backend is reached by {interface}"),
            _ => format!("{count} backends are reached by {interface}"),
        };
        Finding::ok(ROUTE, &message)
    }));
    findings.extend(detours(scene));
    findings.extend(relations(scene, config));
    findings
}

/// Backends that are reached by another way, as the interface with their subnet is down: another route took its place.
fn detours(scene: &Scene) -> Vec<Finding> {
    let mut found: BTreeMap<(&str, &str), Vec<Ipv4Addr>> = BTreeMap::new();
    for backend in scene.routes.keys() {
        let (Some(by), Some(down)) = (scene.link_to(*backend), link_that_is_down(scene, *backend)) else {
            continue;
        };
        let is_in_subnet = |own: &&Address| {
            own.ifindex == by.index
                && network(*backend, own.prefix_len) == network(own.address, own.prefix_len)
        };
        if !scene.addresses.iter().any(|own| is_in_subnet(&own)) {
            found.entry((&down.name, &by.name)).or_default().push(*backend);
        }
    }
    let finding = |((down, by), backends): ((&str, &str), Vec<Ipv4Addr>)| {
        let more =
            if backends.len() > 1 { format!(" and {} more", backends.len() - 1) } else { String::new() };
        let message = format!(
            "{down} is down, in whose subnet the backend {}{more} is: what goes there is sent by {by}",
            backends[0]
        );
        Finding::error(ROUTE, &message, &format!("ip link set {down} up"))
    };
    found.into_iter().map(finding).collect()
}

/// Between services, backends and clients.
fn relations(scene: &Scene, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let clashes = clashes(config);
    if clashes.is_empty() {
        findings.push(Finding::ok("clash", "no two services or backends clash"));
    }
    findings.extend(clashes);
    findings.extend(shared_subnets(scene));
    findings
}

/// Every backend must be another machine that this host has a way to: each with the interface by which it is reached.
fn routes<'a>(scene: &'a Scene, config: &Config) -> Vec<(Option<&'a Link>, Finding)> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    let backends: BTreeSet<SocketAddrV4> = backends.map(|backend| backend.address).collect();
    let found = |backend: SocketAddrV4| {
        let route = scene.routes.get(backend.ip()).and_then(Option::as_ref);
        let by = scene.link_to(*backend.ip());
        let down = link_that_is_down(scene, *backend.ip()).map(|link| link.name.as_str());
        (by, judge(backend, route, by.map(|link| link.name.as_str()), down))
    };
    backends.into_iter().map(found).collect()
}

/// The interface with the subnet that an address is in, if it is down: the kernel has no route by it then.
fn link_that_is_down(scene: &Scene, backend: Ipv4Addr) -> Option<&Link> {
    let own = scene
        .addresses
        .iter()
        .filter(|own| network(backend, own.prefix_len) == network(own.address, own.prefix_len));
    own.filter_map(|own| scene.links.get(&own.ifindex)).find(|link| !link.up)
}

fn network(address: Ipv4Addr, prefix_len: u8) -> u32 {
    u32::from(address) & u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

fn judge(backend: SocketAddrV4, route: Option<&Route>, by: Option<&str>, down: Option<&str>) -> Finding {
    let address = backend.ip();
    let error = |message: String, fix: &str| Finding::error(ROUTE, &message, fix);
    match (route.map(|route| route.kind), by) {
        (None, _) => match down {
            Some(down) => error(
                format!("no route to backend {backend}: {down}, in whose subnet it is, is down"),
                &format!("ip link set {down} up"),
            ),
            None => error(
                format!("no route to backend {backend}"),
                &format!("ip route add {address} via GATEWAY"),
            ),
        },
        (Some(RouteKind::Local), _) => error(
            format!("backend {backend} is an address of this host: a backend must be another machine"),
            "name the address of another machine",
        ),
        (Some(RouteKind::Other), _) => error(
            format!("the route to backend {backend} is not one to a machine"),
            &format!("ip route replace {address} via GATEWAY"),
        ),
        (Some(RouteKind::Unicast), None) => error(
            format!("the route to backend {backend} names an interface that is gone"),
            &format!("ip route replace {address} via GATEWAY"),
        ),
        (Some(RouteKind::Unicast), Some(interface)) => {
            Finding::ok(ROUTE, &format!("backend {backend} is reached by {interface}"))
        }
    }
}

/// What cannot be balanced whatever the network is like.
fn clashes(config: &Config) -> Vec<Finding> {
    const NAME: &str = "clash";
    let mut findings = Vec::new();
    let vips: BTreeSet<Ipv4Addr> = config.services.iter().map(|service| *service.vip.ip()).collect();
    let mut services: BTreeMap<(SocketAddrV4, u8), usize> = BTreeMap::new();
    let mut pairs: BTreeMap<(SocketAddrV4, u8), usize> = BTreeMap::new();
    let mut are_vips = BTreeSet::new();
    for service in &config.services {
        *services.entry((service.vip, service.protocol.number())).or_default() += 1;
        let mut seen = BTreeSet::new();
        for backend in &service.backends {
            let address = backend.address;
            if vips.contains(address.ip()) && are_vips.insert(address) {
                let message = format!("backend {address} has the address of a VIP");
                findings.push(Finding::error(NAME, &message, "give the backend an address of its own"));
            }
            if seen.insert(address) {
                *pairs.entry((address, service.protocol.number())).or_default() += 1;
            } else {
                let message =
                    format!("backend {address} is twice in the service {}/{}", service.vip, service.protocol);
                findings.push(Finding::error(
                    NAME,
                    &message,
                    "name it once, with the weight that it should have",
                ));
            }
        }
    }
    for ((vip, protocol), _) in services.into_iter().filter(|(_, count)| *count > 1) {
        let message = format!("the service {vip}/{} is there twice", protocol_name(protocol));
        findings.push(Finding::error(NAME, &message, "make it one service with all the backends"));
    }
    for ((backend, protocol), count) in pairs.into_iter().filter(|(_, count)| *count > SERVICES_PER_BACKEND) {
        let message = format!(
            "backend {backend}/{} is in {count} services, {SERVICES_PER_BACKEND} is the most",
            protocol_name(protocol)
        );
        let fix = "let the backend listen on more ports, and give each to some of the services";
        findings.push(Finding::error(NAME, &message, fix));
    }
    findings
}

fn protocol_name(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.to_string())
}

/// A backend in a subnet of the clients' interface answers clients there directly, under its own address.
fn shared_subnets(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_named = |ifindex: u32| scene.named.iter().any(|named| named.index == ifindex);
    for own in scene.addresses.iter().filter(|address| is_named(address.ifindex) && address.prefix_len < 32) {
        let bits = network(own.address, own.prefix_len);
        let inside = |backend: &&Ipv4Addr| network(**backend, own.prefix_len) == bits;
        let on_link =
            |backend: &&Ipv4Addr| scene.link_to(**backend).is_some_and(|link| link.index == own.ifindex);
        let Some(backend) = scene.routes.keys().filter(on_link).find(inside) else { continue };
        let subnet = format!("{}/{}", Ipv4Addr::from(bits), own.prefix_len);
        let message = format!(
            "clients in {subnet} would hang: the backend {backend} is in it too, and answers them directly, not through \
             this host"
        );
        let fix =
            format!("let clients come from outside of {subnet}, or give the backends a subnet of their own");
        findings.push(Finding::warning("client-subnet", &message, &fix));
    }
    findings
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Backend, Service, Weight};
    use crate::preflight::Level;

    /// Services of TCP: VIP and backends.
    pub(in crate::preflight) fn config(services: &[(&str, &[&str])]) -> Config {
        let socket = |text: &str| text.parse().expect("an address and a port");
        let backend = |backend: &&str| Backend::new(socket(backend), Weight::MIN);
        let service = |(vip, backends): &(&str, &[&str])| {
            Service::new(socket(vip), Protocol::Tcp, backends.iter().map(backend).collect())
        };
        Config {
            max_connections: 1000,
            stats_interval: None,
            ..Config::new(vec!["eth0".into()], services.iter().map(service).collect())
        }
    }

    fn messages(services: &[(&str, &[&str])]) -> Vec<String> {
        let findings = clashes(&config(services));
        assert!(findings.iter().all(|finding| finding.level == Level::Error && finding.fix.is_some()));
        findings.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn services_and_backends_that_clash() {
        assert!(messages(&[("1.1.1.1:80", &["10.0.0.1:80"]), ("1.1.1.1:81", &["10.0.0.1:80"])]).is_empty());
        assert_eq!(
            messages(&[("1.1.1.1:80", &["1.1.1.2:80"]), ("1.1.1.2:80", &["10.0.0.1:80"])]),
            ["backend 1.1.1.2:80 has the address of a VIP"]
        );
        assert_eq!(
            messages(&[("1.1.1.1:80", &["10.0.0.1:80"]), ("1.1.1.1:80", &["10.0.0.2:80"])]),
            ["the service 1.1.1.1:80/tcp is there twice"]
        );
        assert_eq!(
            messages(&[("1.1.1.1:80", &["10.0.0.1:80", "10.0.0.1:80"])]),
            ["backend 10.0.0.1:80 is twice in the service 1.1.1.1:80/tcp"]
        );
        let vips: Vec<String> = (1..=9).map(|host| format!("1.1.1.{host}:80")).collect();
        let services: Vec<(&str, &[&str])> =
            vips.iter().map(|vip| (vip.as_str(), &["10.0.0.1:80"][..])).collect();
        assert!(messages(&services[..8]).is_empty());
        assert_eq!(messages(&services), ["backend 10.0.0.1:80/tcp is in 9 services, 8 is the most"]);
    }
}
