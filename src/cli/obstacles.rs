//! What `explain` finds beyond the program: why a packet does not come to it, or does not arrive where it is sent.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::{Value, json};

use crate::dataplane::{Class, Explanation};
use crate::net::{Link, Netlink, RouteKind};

/// Something that a packet meets outside of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    name: &'static str,
    interface: Option<String>,
    pub message: String,
}

impl Obstacle {
    pub fn json(&self) -> Value {
        json!({ "name": self.name, "interface": self.interface, "message": self.message })
    }
}

/// What there is on the way of a packet that arrives by an interface and leaves for an address.
pub(super) fn obstacles(
    netlink: &mut Netlink,
    ingress: u32,
    explanation: &Explanation,
    destination: Option<Ipv4Addr>,
) -> Result<Vec<Obstacle>> {
    let links = netlink.links()?;
    let link = |index: u32| links.iter().find(|link| link.index == index);
    let mut found: Vec<Obstacle> =
        link(ingress).and_then(|link| cannot_send(link, "no packet arrives by it")).into_iter().collect();
    let Some(destination) = destination else { return Ok(found) };
    let route = netlink.route_to(destination)?;
    let by_kernel = match explanation.reason.class {
        Class::Sent => None,
        Class::Stack => Some(route),
        Class::Pass | Class::Drop | Class::Error => return Ok(found),
    };
    if matches!(by_kernel, Some(None)) {
        found.push(Obstacle {
            name: "no_route",
            interface: None,
            message: format!("this host has no route to {destination}: the packet is lost here (ip route get {destination})"),
        });
        return Ok(found);
    }
    let Some(egress) = explanation.out_ifindex.or(by_kernel.flatten().map(|route| route.ifindex)) else {
        return Ok(found);
    };
    let down = link(egress).and_then(|link| cannot_send(link, "what is sent by it is lost"));
    if let (None, Some(route), Some(link)) = (&down, route, link(egress)) {
        let neighbour = route.gateway.unwrap_or(destination);
        if route.ifindex == egress && route.kind == RouteKind::Unicast {
            found.extend(does_not_answer(netlink, link, neighbour)?);
        }
    }
    found.extend(down);
    Ok(found)
}

fn cannot_send(link: &Link, follows: &str) -> Option<Obstacle> {
    let name = &link.name;
    let (kind, message) = match (link.up, link.running) {
        (_, true) => return None,
        (false, _) => ("interface_down", format!("{name} is down: {follows} (ip link set {name} up)")),
        (true, _) => ("no_carrier", format!("{name} has no carrier: {follows} (is its far end up?)")),
    };
    Some(Obstacle { name: kind, interface: Some(name.clone()), message })
}

fn does_not_answer(netlink: &mut Netlink, link: &Link, address: Ipv4Addr) -> Result<Option<Obstacle>> {
    let neighbours = netlink.neighbours()?;
    let known = neighbours.iter().find(|one| one.ifindex == link.index && one.address == address);
    Ok(known.filter(|one| !one.usable).map(|_| Obstacle {
        name: "neighbour_unreachable",
        interface: Some(link.name.clone()),
        message: format!(
            "{address}, the next hop by {}, does not answer ARP: nobody takes the packet (ip neigh show {address})",
            link.name
        ),
    }))
}
